"""The access log: one line for each visitor at its end, in a file of its own."""

from __future__ import annotations

import re
import socket
from functools import partial
from typing import TYPE_CHECKING

import orjson
import pytest

from tests.support.processes import TunnelPair
from tests.support.sockets import connect
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.apps import Apps


def _has_two(folder: Path, port: int) -> bool:
    return len(_lines(folder, port)) == 2


def _lines(folder: Path, port: int) -> list[str]:
    path = folder / f"tunnel-{port}.access.log"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_line_for_each_visitor_at_its_end(
    apps: Apps, tmp_path: Path, log_format: str
) -> None:
    echo = apps.add("echo")
    targets = [{"local_port": echo, "access_log": True}, {"local_port": echo}]
    with TunnelPair(targets, tmp_path, common={"log_format": log_format}) as pair:
        logged, silent = pair.ports
        visitors = []
        for port in (logged, logged, silent):
            with connect(port) as visitor:
                visitors.append(":".join(map(str, visitor.getsockname())))
                visitor.sendall(b"x" * 100)
                visitor.shutdown(socket.SHUT_WR)
                assert len(visitor.makefile("rb").read()) == 100
        for master in (pair.server, pair.client):
            folder = master.log_dir
            wait_until(partial(_has_two, folder, logged), 5, "two lines")
            for line, address in zip(_lines(master.log_dir, logged), visitors, strict=False):
                fields = _fields(line, log_format)
                assert fields.pop("address") == address
                assert 0 <= float(fields.pop("seconds")) < 5
                assert fields == {"bytes_in": "100", "bytes_out": "100", "how": "closed"}
            assert not _lines(master.log_dir, silent), "it was not asked for"
            assert "visitor left" not in (master.log_dir / f"tunnel-{logged}.log").read_text()


def _fields(line: str, log_format: str) -> dict[str, str]:
    if log_format == "json":
        return {key: str(value) for key, value in orjson.loads(line)["fields"].items()}
    assert re.match(r"20\d\d-\S+ INFO  visitor left ", line)
    return dict(word.split("=") for word in line.split()[4:])
