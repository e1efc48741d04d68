"""Guesses at the token from an address of the Internet; a namespace lends it to us."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.apps import Apps
from tests.support.netns import two_hosts
from tests.support.ports import free_port
from tests.support.processes import Master
from tests.support.wait import wait_until
from tunneltcp.protocol.preface import MAGIC
from tunneltcp.workers.penalties import MAX_DELAY_SECONDS

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.needs_root]

SERVER, CLIENT = "198.51.100.1", "198.51.100.2"

GUESS = f"""
import socket, sys, time
def guess():
    sock = socket.create_connection(({SERVER!r}, int(sys.argv[1])), 10)
    sock.sendall({MAGIC!r} + bytes(36))
    return time.monotonic(), sock
def answer(begin, sock):
    said = b""
    while more := sock.recv(100):
        said += more
    assert b'"denied"' in said, said
    print(time.monotonic() - begin)
for _ in range(int(sys.argv[2])):
    answer(*guess())
for late in [guess() for _ in range(int(sys.argv[3]))]:
    answer(*late)
"""


def test_answers_come_late_until_the_right_token_comes_from_there(tmp_path: Path) -> None:
    port = free_port()
    with two_hosts() as hosts, Apps() as apps:
        for host, address in ((hosts.server, SERVER), (hosts.client, CLIENT)):
            host.run("ip", "addr", "add", f"{address}/24", "dev", host.device)
        tunnels = [{"remote_port": port, "local_port": apps.add("echo")}]

        def guess(first: int, then: int = 0) -> list[float]:
            words = (sys.executable, "-c", GUESS, str(port), str(first), str(then))
            return [float(line) for line in hosts.client.run(*words).split()]

        config = {"tunnels": tunnels, "bind": "*"}
        server = Master("server", config, tmp_path / "server", prefix=hosts.server.prefix)
        client = Master(
            "client", tunnels, tmp_path / "client", server=SERVER, prefix=hosts.client.prefix
        )
        with server:
            seconds = guess(4, 10)
            at_once = MAX_DELAY_SECONDS - 0.1
            assert max(seconds[:4]) < at_once < min(seconds[4:])
            assert "no link from 198.51.100.2" in server.log_text()
            with client:
                wait_until(lambda: client.link_up(port), 10, client.complaint)
                assert max(guess(3)) < at_once, "lifted"
