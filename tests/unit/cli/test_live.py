"""What ``tunneltcp expose`` shows, and that whoever feeds it never waits."""

from __future__ import annotations

import io
import os
import pty
import re
import time
from contextlib import suppress

import pytest
from rich.console import Console

from tests.support.wait import wait_until
from tunneltcp.cli.live import Display, TunnelView, View, ended_line, ending_line, render
from tunneltcp.cli.units import show_bytes, show_duration
from tunneltcp.master.report import stamp


def visitor(address="203.0.113.9:50123", **values):
    return {
        "id": 1, "address": address, "since": stamp(), "bytes_in": 1200, "bytes_out": 34_000,
        "rate_in": 10, "rate_out": 2_000_000, "waits_for": None,
    } | values  # fmt: skip


def tunnel(port=60001, **values):
    plain = {
        "port": port, "target": "localhost:8000", "link": "up", "rtt_ms": 12.34,
        "visitors": 0, "visitors_total": 0, "bytes_in": 0, "bytes_out": 0, "who": (),
    }  # fmt: skip
    return TunnelView(**(plain | values))


def drawn(*views: View, height=24, width=100) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=width, height=height).print(render("the title", views, height))
    return [line.rstrip() for line in file.getvalue().splitlines()]


def screen(text: str) -> list[str]:
    """What a terminal shows in the end, to the line of its cursor. It knows only few codes."""
    lines = [""]
    row = 0
    for code, word in re.findall(r"(\x1b\[\d*[A-Z]|[\r\n])|([^\x1b\r\n]+)", text):
        if code == "\x1b[1A":
            row -= 1
        elif code == "\x1b[2K":
            lines[row] = ""
        elif code == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif code and code != "\r":
            raise AssertionError(f"nothing but lines may be touched: {code!a}")
        lines[row] += word
    assert not any(lines[row + 1 :]), "something is left below the cursor"
    return [line.rstrip() for line in lines[: row + 1]]


class TestDrawing:
    def test_one_tunnel_without_visitors(self):
        lines = drawn(View(at=1.0, tunnels=(tunnel(),)))
        assert lines[0] == "the title"
        shown = "60001 localhost:8000 up 12.3 ms 0/0 0 B 0 B 0 B 0 B"
        assert " ".join(lines[2].split()) == shown
        assert len(lines) == 3

    @pytest.mark.parametrize("link", ["down", "doubted"])
    def test_a_link_that_is_not_up_has_no_round_trip(self, link):
        assert drawn(View(at=1.0, tunnels=(tunnel(link=link),)))[2].split()[2:4] == [
            link,
            "0/0",
        ]

    def test_rates_are_those_between_the_first_and_the_last_look(self):
        views = [
            View(at=at, tunnels=(tunnel(bytes_in=100 * n, bytes_out=5000 * n),))
            for n, at in enumerate((10.0, 10.5, 11.0, 12.0))
        ]
        assert drawn(*views)[2].endswith("300 B  15.0 kB  150 B  7.5 kB")

    def test_who_is_connected(self):
        lines = drawn(View(at=1.0, tunnels=(
            tunnel(visitors=2, who=[visitor(), visitor("[2001:db8::1]:7", waits_for="link")]),
        )))  # fmt: skip
        shown = "203.0.113.9:50123 0 s 1.2 kB 34.0 kB 10 B 2.0 MB"
        assert " ".join(lines[-2].split()) == shown
        assert lines[-1].startswith("[2001:db8::1]:7 ")
        assert lines[-1].endswith(" link")

    def test_several_tunnels_say_whose_visitor_it_is(self):
        lines = drawn(View(at=1.0, tunnels=(
            tunnel(), tunnel(60002, visitors=1, who=[visitor()]),
        )))  # fmt: skip
        assert lines[-1].endswith(" 60002")

    @pytest.mark.parametrize("height", [1, 8, 24])
    def test_more_visitors_than_lines_are_counted(self, height):
        who = [visitor(f"203.0.113.9:{port}") for port in range(1000, 1100)]
        lines = drawn(View(at=1.0, tunnels=(tunnel(visitors=120, who=who),)), height=height)
        shown = sum("203.0.113.9:" in line for line in lines)
        assert len(lines) <= max(height, 7)
        assert lines[-1] == f"  and {120 - shown} more"

    def test_foreign_text_cannot_act_on_the_terminal(self):
        lines = drawn(View(at=1.0, tunnels=(tunnel(target="\x1b[2Jx"),)))
        assert "\x1b" not in "".join(lines)


class TestDisplay:
    def test_without_a_terminal_there_are_only_lines(self, capsys):
        display = Display("the title", plain=False, console=Console(file=io.StringIO()))
        display.show(View(at=1.0, tunnels=(tunnel(),)))
        display.say("INFO", "link up")
        display.say("WARNING", "it has \x1b[2J in it")
        display.close()
        assert capsys.readouterr().out == (
            "tunneltcp: link up\ntunneltcp: it has \\x1b[2J in it\n"
        )

    def test_on_a_terminal_lines_stay_above_and_the_view_goes_at_the_end(self):
        out = io.StringIO()
        console = Console(file=out, force_terminal=True, width=80, height=24, color_system=None)
        display = Display("the title", plain=False, console=console)
        assert display.is_live
        display.show(View(at=1.0, tunnels=(tunnel(),)))
        wait_until(lambda: "60001" in out.getvalue(), 5)
        display.say("INFO", "link up")
        display.say("INFO", "ended")
        display.close()
        assert screen(out.getvalue()) == ["link up", "ended", ""], "and the cursor below"

    def test_plain_wins(self):
        console = Console(file=io.StringIO(), force_terminal=True)
        display = Display("the title", plain=True, console=console)
        assert not display.is_live
        display.close()

    def test_a_terminal_that_does_not_read_holds_nobody_up(self):
        master, slave = pty.openpty()
        with os.fdopen(slave, "w") as file:
            console = Console(file=file, force_terminal=True, width=80, height=24)
            display = Display("the title", plain=False, console=console)
            begin = time.monotonic()
            for number in range(3000):
                display.say("INFO", f"line {number} " + "x" * 70)
                display.show(View(at=float(number), tunnels=(tunnel(),)))
            assert len(display._lines) <= 500, "what waits is bounded"
            display.close()
            assert time.monotonic() - begin < 5
            assert display._thread.is_alive(), "it was to be stuck, or this tests nothing"
            os.set_blocking(master, False)

            def read_on():
                with suppress(BlockingIOError):
                    os.read(master, 1 << 16)
                return not display._thread.is_alive()

            wait_until(read_on, 10)
        os.close(master)

    def test_a_terminal_that_has_gone_ends_only_the_display(self, capsys):
        file = io.StringIO()
        display = Display("t", plain=False, console=Console(file=file, force_terminal=True))
        file.close()
        display.show(View(at=1.0, tunnels=(tunnel(),)))
        display.say("INFO", "x")
        wait_until(lambda: not display._thread.is_alive(), 5)
        display.say("INFO", "y")
        display.close()
        assert capsys.readouterr().err == ""


def test_sentences_count_right():
    assert ending_line(1).startswith("ending: 1 visitor may finish within 5 s")
    assert ending_line(2).startswith("ending: 2 visitors may")
    assert ended_line(0, 0, 1_250_000) == "ended: 0 visitors, 0 B in, 1.2 MB out"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2_345_678, "2.3 MB"), (5e9, "5.0 GB"),
     (7e12, "7.0 TB"), (9e15, "9000.0 TB")],
)  # fmt: skip
def test_bytes(count, text):
    assert show_bytes(count) == text


def test_durations():
    assert show_duration(stamp()) == "0 s"
    assert show_duration("2020-01-01T00:00:00+00:00").split()[1] == "d"
