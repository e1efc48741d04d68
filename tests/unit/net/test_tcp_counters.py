"""What the kernel tells of a connection; bytes: tests/property/test_verdict.py."""

from __future__ import annotations

import socket

from tests.support.fake_peer import tcp_pair
from tests.support.wait import wait_until
from tunneltcp.net.tcp_counters import all_acknowledged, packets_resent


def test_where_nothing_is_lost_nothing_is_sent_again():
    near, far = tcp_pair()
    with near, far:
        near.send(b"x" * 100_000)
        assert packets_resent(near) == 0


def test_what_is_no_tcp_connection_tells_nothing():
    near, far = socket.socketpair()
    with near, far:
        assert packets_resent(near) == 0


def test_what_the_other_kernel_took_is_acknowledged_whoever_reads_it():
    near, far = tcp_pair()
    with near, far:
        near.setblocking(False)
        assert all_acknowledged(near)
        near.send(b"x" * 1000)
        wait_until(lambda: all_acknowledged(near))
        try:
            while near.send(b"x" * 1_000_000):
                pass
        except BlockingIOError:
            assert not all_acknowledged(near)


def test_of_what_is_no_socket_nothing_is_known(tmp_path):
    with (tmp_path / "file").open("wb") as file:
        assert not all_acknowledged(file)
