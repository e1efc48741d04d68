"""Real programs through a tunnel: OpenSSH, nginx under wrk, iperf3."""

from __future__ import annotations

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
from tests.support.wrk import run_wrk

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with start_sshd(tmp_path_factory.mktemp("sshd")) as running:
        yield running


@pytest.fixture(scope="module")
def pair(sshd: Sshd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TunnelPair]:
    folder = tmp_path_factory.mktemp("programs")
    with (
        start_nginx(folder / "nginx", free_port()) as nginx,
        start_iperf3(folder / "iperf3", free_port()) as iperf3,
        TunnelPair([sshd.port, nginx, iperf3], folder) as running,
    ):
        yield running


@pytest.fixture
def public(pair: TunnelPair) -> dict[str, int]:
    """Public port of each program."""
    return dict(zip(("ssh", "nginx", "iperf3"), pair.ports, strict=True))


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


@pytest.mark.parametrize("keep_alive", [True, False], ids=["kept", "one request each"])
def test_requests_of_a_web_server_all_succeed_whatever_is_restarted(
    public: dict[str, int], pair: TunnelPair, keep_alive: bool
) -> None:
    """``scripts/chaos restarts`` has 20 in a row."""
    run = run_wrk(pair, public["nginx"], keep_alive=keep_alive, restarts=4)

    assert run.wrong == [], run.output
    assert run.requests > (1000 if keep_alive else 200), run.output


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
