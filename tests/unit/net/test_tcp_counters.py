"""What the kernel tells of a connection; bytes: tests/property/test_verdict.py."""

from __future__ import annotations

import socket

from tests.support.fake_peer import tcp_pair
from tunneltcp.net.tcp_counters import packets_resent


def test_where_nothing_is_lost_nothing_is_sent_again():
    near, far = tcp_pair()
    with near, far:
        near.send(b"x" * 100_000)
        assert packets_resent(near) == 0


def test_what_is_no_tcp_connection_tells_nothing():
    near, far = socket.socketpair()
    with near, far:
        assert packets_resent(near) == 0
