from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.ports import Ports, free_port, free_ports, reserved_port
from tests.support.service import ROOT


def test_ports_are_outside_the_ephemeral_range_and_differ() -> None:
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())

    ports = free_ports(50)

    assert len(set(ports)) == 50
    assert all(not low <= port <= high for port in ports)


@pytest.mark.parametrize(
    ("family", "host"), [(socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")]
)
def test_a_port_in_use_is_passed_over(tmp_path: Path, family: int, host: str) -> None:
    port = free_port()
    with socket.socket(family) as taken:
        if family == socket.AF_INET6:
            taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        taken.bind((host, port))
        with pytest.raises(RuntimeError, match="no free port"):
            Ports(tmp_path / "locks", range(port, port + 1)).take()

    assert Ports(tmp_path / "locks", range(port, port + 1)).take() == port


def test_two_processes_never_get_the_same_port(tmp_path: Path) -> None:
    candidates = free_ports(4)  # nobody beside binds one of them meanwhile
    ours = Ports(tmp_path / "locks", candidates)
    mine = {ours.take(), ours.take()}
    code = (
        "import sys; from pathlib import Path; from tests.support.ports import Ports\n"
        f"ports = Ports(Path(sys.argv[1]), {candidates})\n"
        "print(ports.take(), ports.take())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "locks")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)

    assert mine | set(map(int, done.stdout.split())) == set(candidates)
    with pytest.raises(RuntimeError):  # noqa: PT012 - at the end
        for _ in candidates:
            ours.take()


def test_a_port_can_be_given_back(tmp_path: Path) -> None:
    first = free_port()
    ports = Ports(tmp_path / "locks", range(first, first + 1))
    port = ports.take()
    with pytest.raises(RuntimeError):
        ports.take()

    ports.give_back(port)

    assert ports.take() == port


def test_a_reserved_port_is_ours_for_a_block() -> None:
    with reserved_port() as port:
        assert port != free_port()
