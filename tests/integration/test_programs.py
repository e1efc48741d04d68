"""Real programs through a tunnel: OpenSSH, nginx under wrk, iperf3."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

import orjson
import pytest

from tests.support.apps import Sshd, start_iperf3, start_nginx, start_sshd
from tests.support.pattern import PatternChecker, pattern
from tests.support.ports import free_port
from tests.support.processes import TunnelPair
from tests.support.require import require_program

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with start_sshd(tmp_path_factory.mktemp("sshd")) as running:
        yield running


@pytest.fixture(scope="module")
def public(sshd: Sshd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, int]]:
    """Public port of each program."""
    folder = tmp_path_factory.mktemp("programs")
    with (
        start_nginx(folder / "nginx", free_port()) as nginx,
        start_iperf3(folder / "iperf3", free_port()) as iperf3,
        TunnelPair([sshd.port, nginx, iperf3], folder) as pair,
    ):
        yield dict(zip(("ssh", "nginx", "iperf3"), pair.ports, strict=True))


def test_ssh_runs_a_command_with_much_output(sshd: Sshd, public: dict[str, int]) -> None:
    size = 10_000_000
    make = f"import random,sys; sys.stdout.buffer.write(random.Random(1).randbytes({size}))"
    command = sshd.command(f"{sys.executable} -c '{make}'", port=public["ssh"])
    done = subprocess.run(command, capture_output=True, timeout=30, check=False)
    here = subprocess.run([sys.executable, "-c", make], capture_output=True, check=True)

    assert done.returncode == 0, done.stderr
    assert done.stdout == here.stdout


def test_ssh_carries_an_upload(
    sshd: Sshd, public: dict[str, int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    size = 10_000_000
    there = tmp_path_factory.mktemp("upload") / "file"
    command = sshd.command(f"cat > {there}", port=public["ssh"])
    data = pattern(3, 0, size)
    done = subprocess.run(command, input=data, capture_output=True, timeout=30, check=False)

    assert done.returncode == 0, done.stderr
    checker = PatternChecker(3)
    checker.feed(there.read_bytes())
    assert checker.offset == size


def test_many_requests_of_a_web_server_all_succeed(public: dict[str, int]) -> None:
    wrk = require_program("wrk")
    url = f"http://127.0.0.1:{public['nginx']}/"
    command = [wrk, "-t1", "-c32", "-d3s", url]
    output = subprocess.run(
        command, capture_output=True, text=True, timeout=30, check=True
    ).stdout

    assert "Socket errors" not in output, output
    assert "Non-2xx" not in output, output
    served = re.search(r"(\d+) requests in", output)
    assert served, output
    assert int(served[1]) > 1000, output


def test_new_connections_to_a_web_server_all_succeed(public: dict[str, int]) -> None:
    wrk = require_program("wrk")
    url = f"http://127.0.0.1:{public['nginx']}/"
    command = [wrk, "-t1", "-c8", "-d2s", "-H", "Connection: close", url]
    output = subprocess.run(
        command, capture_output=True, text=True, timeout=30, check=True
    ).stdout

    errors = re.search(
        r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", output
    )
    assert errors is None or not any(map(int, errors.groups())), output


@pytest.mark.parametrize("reverse", [False, True], ids=["upload", "download"])
def test_iperf3_fills_the_link(public: dict[str, int], reverse: bool) -> None:
    iperf3 = require_program("iperf3")
    command = [iperf3, "-c", "127.0.0.1", "-p", str(public["iperf3"]), "-t", "1", "--json"]
    command += ["-R"] if reverse else []
    done = subprocess.run(command, capture_output=True, timeout=30, check=False)
    result = orjson.loads(done.stdout)

    assert done.returncode == 0, result.get("error", done.stdout)
    # Far below what it does, and far above what a link with a stall in it would.
    assert result["end"]["sum_received"]["bits_per_second"] > 200e6
