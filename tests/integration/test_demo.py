"""scripts/demo, the main job: three apps through three tunnels, on ports nobody can take."""

from __future__ import annotations

import io
import re
import signal
import socket
import struct
import subprocess
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from demo import App, Tunnel, choose_ports, reserve
from demo_apps import greeter
from demo_table import row, table
from demo_visits import visit_greeter
from tests.support.ports import free_ports
from tests.support.service import ROOT
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HOST = "127.0.0.1"
IP_LOCAL_PORT_RANGE = 51
"""linux/in.h; Linux 6.3 and later."""


@pytest.fixture
def busy() -> Iterator[int]:
    """A port that somebody listens at."""
    with socket.create_server((HOST, 0)) as listener:
        yield listener.getsockname()[1]


def demo(folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, ROOT / "scripts/demo.py", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={"PATH": "/usr/bin:/bin", "TMPDIR": str(folder), "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.slow
def test_each_tunnel_is_visited_and_nothing_is_left(tmp_path, busy):
    running = demo(tmp_path, "--check", "--first-port", str(busy))
    said, _ = running.communicate(timeout=60)
    assert running.returncode == 0, said
    assert re.search(rf"{busy} is busy: \d+ stands in for it", said)
    assert [line.split()[1] for line in said.splitlines() if line.startswith("  ok ")] == [
        "pages",
        "echo",
        "almanac",
    ]
    assert "nothing is left behind" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_it_is_live_until_it_is_interrupted(tmp_path):
    first = min(free_ports(1))
    running = demo(tmp_path, "--first-port", str(first))

    def is_served() -> bool:
        with socket.socket() as visitor:
            return visitor.connect_ex((HOST, first)) == 0

    wait_until(is_served, 30)
    with socket.create_connection((HOST, first), 10) as visitor:
        visitor.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert visitor.recv(12) == b"HTTP/1.1 200"
    running.send_signal(signal.SIGINT)
    said, _ = running.communicate(timeout=30)
    assert running.returncode == 0, said
    assert "nothing is left behind" in said


@pytest.mark.parametrize("columns", [80, 100, 140, 200])
def test_the_pids_to_kill_are_seen_on_every_terminal(columns):
    app = App("almanac", "speaks first", greeter, visit_greeter, "nc {host} {port}")
    link = {"state": "up", "rtt_ms": 123.4}
    said = {
        "state": "running", "pid": 4194301, "link": link, "visitors": 10,
        "visitors_total": 100, "bytes_in": 123 << 20, "bytes_out": 123 << 20,
    }  # fmt: skip
    shown = row(Tunnel(app=app, port=60003, target_port=40777), said, said | {"pid": 4194302})
    seen = io.StringIO()
    console = Console(file=seen, width=columns)
    console.print(table([shown, shown], console.width))
    text = seen.getvalue()
    for word in ("almanac", f"{HOST}:60003", "running", "up, 123.4 ms", "10 of 100"):
        assert text.count(word) == 2, text
    assert text.count("4194301") == text.count("4194302") == 2, text
    assert ("123.0 MiB" in text) is (columns >= 140)


def test_no_outgoing_connection_is_given_a_chosen_port(busy):
    with ExitStack() as stack:
        [port] = choose_ports(stack, busy, 1)
        assert port != busy
        with socket.create_server((HOST, 0)) as somewhere, socket.socket() as outgoing:
            only = struct.pack("=HH", port, port)
            try:
                outgoing.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, only)
            except OSError:
                pytest.skip("this kernel chooses the ports of connections alone")
            with pytest.raises(OSError, match="assign"):
                outgoing.connect(somewhere.getsockname())
        # The server may have it all the same.
        with socket.create_server((HOST, port)):
            assert not reserve(stack, port)
