"""``tunneltcp who``: all pages, as a table and as JSON."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import orjson
import pytest
from click.testing import CliRunner

from tunneltcp.cli.main import main
from tunneltcp.cli.units import show_duration


def ago(**units):
    return (datetime.now(UTC) - timedelta(**units)).isoformat()


def visitor(number, **values):
    return {
        "id": number, "address": f"203.0.113.9:{50_000 + number}", "since": ago(minutes=3),
        "bytes_in": 1500, "bytes_out": 2_500_000, "rate_in": 0, "rate_out": 12_345.6,
        "waits_for": "target", **values,
    }  # fmt: skip


def page(numbers, after):
    return {"port": 60001, "visitors": [visitor(n) for n in numbers], "next": after}


def who(*words):
    return CliRunner().invoke(main, ["who", "60001", *words])


def test_all_pages_are_fetched(script_master):
    master = script_master(who=[page([3, 4], 4), page([7, 9], 9), page([12], None)])
    answer = orjson.loads(who("--json").stdout)
    assert answer["port"] == 60001
    assert [one["id"] for one in answer["visitors"]] == [3, 4, 7, 9, 12]
    assert [request["after"] for request in master.heard()] == [0, 4, 9]


def test_pages_that_do_not_go_on_end(script_master):
    master = script_master(who=[page([3], 3)])
    assert who("--json").exit_code == 0
    assert len(master.heard()) == 2


def test_the_table(script_master):
    strange = visitor(5, address="[2001:db8::1]:9\x1b[2J", waits_for=None, since=ago(hours=50))
    script_master(who=[page([4], None) | {"visitors": [visitor(4), strange]}])
    done = who()
    assert done.exit_code == 0
    head, first, second = (line.split() for line in done.stdout.splitlines())
    assert head == ["id", "address", "since", "in", "out", "in/s", "out/s", "waits", "for"]
    assert first == [
        "4", "203.0.113.9:50004", "3", "min", "1.5", "kB", "2.5", "MB", "0", "B", "12.3", "kB",
        "target",
    ]  # fmt: skip
    assert second[:6] == ["5", "[2001:db8::1]:9\\x1b[2J", "2", "d", "2", "h"]
    assert "\x1b" not in done.stdout


def test_nobody_is_connected(script_master):
    script_master(who=[page([], None)])
    assert who().stdout == "60001: nobody is connected\n"
    assert orjson.loads(who("--json").stdout) == {"port": 60001, "visitors": []}


@pytest.mark.parametrize(
    ("units", "shown"),
    [
        ({"seconds": -9}, "0 s"),
        ({"seconds": 59.5}, "59 s"),
        ({"minutes": 59.5}, "59 min"),
        ({"hours": 2, "minutes": 10.5}, "2 h 10 min"),
        ({"days": 4, "hours": 3.5}, "4 d 3 h"),
    ],
)
def test_durations(units, shown):
    assert show_duration(ago(**units)) == shown
