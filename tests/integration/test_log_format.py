"""``--log-format json``: every line of every process is an object."""

from __future__ import annotations

import signal
from functools import partial
from typing import TYPE_CHECKING

import orjson
import pytest

from tests.support.apps import Apps
from tests.support.processes import Master, TunnelPair
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.processes import Json


@pytest.fixture(scope="module")
def target() -> Iterator[int]:
    with Apps() as apps:
        yield apps.add("echo")


def objects(text: str) -> list[Json]:
    """Parse every line; fail at the first that is no object."""
    found = [orjson.loads(line) for line in text.splitlines()]
    assert found
    assert all({"time", "level", "message", "fields"} <= set(line) for line in found)
    return found


def _says(master: Master, name: str, words: str) -> bool:
    return words in master.log_text(name)


def check_logs(master: Master, port: int) -> None:
    for name in ("master.log", f"tunnel-{port}.log"):
        # A worker tells its master first, which shows it, and writes its own log then.
        wait_until(partial(_says, master, name, "link up"), what=name)
        lines = objects(master.log_text(name))
        assert any("link up" in line["message"] for line in lines), name
        assert {line["fields"].get("tunnel", port) for line in lines} == {port}


def test_by_the_config(target: int, tmp_path: Path) -> None:
    with TunnelPair([target], tmp_path, common={"log_format": "json"}) as pair:
        for master in (pair.server, pair.client):
            check_logs(master, pair.port)


def test_by_the_option_which_a_reload_keeps(target: int, tmp_path: Path) -> None:
    with TunnelPair([target], tmp_path / "plain") as pair:
        port, server = pair.port, pair.server
        pair.client.stop()
        config = [{"remote_port": port, "local_port": target}]
        with Master(
            "client", config, tmp_path / "json", server="127.0.0.1",
            arguments=["--log-format", "json"],
        ) as client:  # fmt: skip
            wait_until(lambda: client.link_up(port), 10)
            check_logs(client, port)
            client.send(signal.SIGHUP)
            wait_until(lambda: "config read again" in client.log_text("master.log"), 5)
            client.kill_worker(port)
            wait_until(lambda: "SIGKILL" in client.log_text("master.log"), 5)
            wait_until(lambda: client.link_up(port), 10)
            check_logs(client, port)
            ready, *rest = sorted(client.stderr().splitlines(), key=lambda line: line[0] == "{")
            assert "ready" in ready, "the one line of standard output is for people"
            objects("\n".join(rest))
        assert not server.log_text("master.log").startswith("{")
