from __future__ import annotations

import socket
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.support.apps import (
    BANNER,
    EARLY_ANSWER,
    Apps,
    refused_port,
    request,
    start_iperf3,
    start_nginx,
    start_sshd,
)
from tests.support.pattern import pattern
from tests.support.ports import free_port
from tests.support.require import require_program
from tests.support.sockets import connect, receive_all, receive_exactly
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def apps() -> Iterator[Apps]:
    with Apps() as running:
        yield running


def test_echo_answers_until_the_end_and_then_ends(apps: Apps) -> None:
    port = apps.add("echo")
    with connect(port) as visitor:
        visitor.sendall(pattern(1, 0, 100_000))
        visitor.shutdown(socket.SHUT_WR)
        assert receive_all(visitor) == pattern(1, 0, 100_000)

    wait_until(lambda: apps.stats(port).ends == {"eof": 1})
    assert apps.stats(port).received == apps.stats(port).sent == 100_000


def test_echo_feels_a_visitor_that_does_not_read(apps: Apps) -> None:
    port = apps.add("echo")
    with connect(port) as visitor:
        visitor.settimeout(0.2)
        with pytest.raises(TimeoutError):
            visitor.sendall(bytes(64 << 20))

    wait_until(lambda: apps.stats(port).open == 0)


def test_a_reset_is_told_from_an_end(apps: Apps) -> None:
    port = apps.add("echo")
    visitor = connect(port)
    visitor.sendall(b"x")
    assert receive_exactly(visitor, 1) == b"x"
    visitor.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    visitor.close()

    wait_until(lambda: apps.stats(port).ends == {"reset": 1})


@pytest.mark.parametrize("flags", ["", "e", "r"])
def test_pattern_moves_bytes_both_ways_and_checks_them(apps: Apps, flags: str) -> None:
    port = apps.add("pattern")
    with connect(port) as visitor:
        line = request(up_seed=3, up=500_000, down_seed=4, down=600_000, flags=flags)
        visitor.sendall(line + pattern(3, 0, 500_000))
        if flags:
            visitor.shutdown(socket.SHUT_WR)
        assert receive_all(visitor) == pattern(4, 0, 600_000) + b"OK 500000\n"


def test_pattern_may_finish_first_and_go_on_reading(apps: Apps) -> None:
    port = apps.add("pattern")
    with connect(port) as visitor:
        visitor.sendall(request(up_seed=3, up=400_000, down_seed=4, down=10, flags="f"))
        assert receive_all(visitor) == pattern(4, 0, 10)
        visitor.sendall(pattern(3, 0, 400_000))
    wait_until(lambda: apps.stats(port).ends == {"eof": 1})


@pytest.mark.parametrize(
    ("body", "end"),
    [
        (pattern(3, 0, 99), b"SHORT 99 of 100\n"),
        (pattern(3, 0, 99) + b"!", b""),
        (bytes(101), b""),
    ],
    ids=["short", "changed", "long"],
)
def test_pattern_finds_wrong_uploads(apps: Apps, body: bytes, end: bytes) -> None:
    port = apps.add("pattern")
    with connect(port) as visitor:
        visitor.sendall(request(up_seed=3, up=100, flags="e") + body)
        visitor.shutdown(socket.SHUT_WR)
        assert receive_all(visitor, may_reset=True) == end

    wait_until(lambda: apps.stats(port).ends == {"wrong": 1})


def test_resetting_ends_with_a_reset(apps: Apps) -> None:
    port = apps.add("resetting")
    with connect(port) as visitor:
        visitor.sendall(b"5 1000\n")
        assert receive_exactly(visitor, 1000) == pattern(5, 0, 1000)
        with pytest.raises(ConnectionResetError):
            visitor.recv(1)


def test_banner_speaks_first(apps: Apps) -> None:
    with connect(apps.add("banner")) as visitor:
        assert receive_exactly(visitor, len(BANNER)) == BANNER
        visitor.sendall(b"hello")
        assert receive_exactly(visitor, 5) == b"hello"


def test_early_answers_and_resets(apps: Apps) -> None:
    with connect(apps.add("early")) as visitor:
        visitor.sendall(b"POST / HTTP/1.1\r\n\r\n")
        assert receive_exactly(visitor, len(EARLY_ANSWER)) == EARLY_ANSWER
        with pytest.raises(ConnectionResetError):
            visitor.recv(1)


def test_deaf_never_reads(apps: Apps) -> None:
    port = apps.add("deaf")
    with connect(port) as visitor:
        visitor.settimeout(0.2)
        with pytest.raises(TimeoutError):
            visitor.sendall(bytes(64 << 20))
    assert apps.stats(port).received == 0


def test_an_app_can_go_down_and_come_back_and_reset_its_visitors(apps: Apps) -> None:
    port = apps.add("echo", "::1")
    with connect(port, "::1") as visitor:
        visitor.sendall(b"x")
        assert receive_exactly(visitor, 1) == b"x"
        assert apps.reset_all(port, "::1") == 1
        with pytest.raises(ConnectionResetError):
            visitor.recv(1)
    apps.remove(port, "::1")
    with pytest.raises(ConnectionRefusedError):
        connect(port, "::1")
    assert apps.add("echo", "::1", port) == port
    connect(port, "::1").close()


def test_a_refused_port_refuses() -> None:
    with refused_port() as port, pytest.raises(ConnectionRefusedError):
        connect(port)


@pytest.mark.slow
def test_nginx_answers(tmp_path: Path) -> None:
    with start_nginx(tmp_path, free_port()) as port, connect(port) as visitor:
        visitor.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert receive_all(visitor).endswith(b"\r\n\r\nok\n")


@pytest.mark.slow
def test_sshd_runs_a_command(tmp_path: Path) -> None:
    with start_sshd(tmp_path / "ssh") as server:
        command = server.command("echo", "hello", port=server.port)
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)

    assert done.stdout == "hello\n"


@pytest.mark.slow
def test_iperf3_measures(tmp_path: Path) -> None:
    with start_iperf3(tmp_path, free_port()) as port:
        command = [require_program("iperf3"), "-c", "127.0.0.1", "-p", str(port), "-n", "1M"]
        subprocess.run(command, capture_output=True, timeout=20, check=True)


@pytest.mark.slow
def test_a_program_that_ends_at_once_says_why(tmp_path: Path) -> None:
    with (
        refused_port() as taken,
        pytest.raises(RuntimeError, match="Address already in use"),
        start_nginx(tmp_path, taken),
    ):
        pytest.fail("it started")
