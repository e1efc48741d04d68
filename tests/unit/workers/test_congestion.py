"""A link has the congestion control asked for, or the system's and a line in the log."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from loguru import logger

from tests.support.fake_peer import tcp_pair
from tests.support.require import require_ability
from tunneltcp.net.sockopt import set_congestion

SYSCTL = Path("/proc/sys/net/ipv4")


def of_system():
    return (SYSCTL / "tcp_congestion_control").read_text().strip()


def another():
    """One that everybody may use and that is not the system's."""
    allowed = (SYSCTL / "tcp_allowed_congestion_control").read_text().split()
    others = [name for name in allowed if name != of_system()]
    require_ability(None if others else "this kernel has one congestion control")
    return others[0]


def used(fd):
    with socket.socket(fileno=os.dup(fd)) as sock:
        name = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
    return name.rstrip(b"\0").decode()


@pytest.fixture
def log():
    lines = []
    number = logger.add(lambda message: lines.append(str(message)), level="WARNING")
    yield lines
    logger.remove(number)


def links(world, **settings):
    """Both ends of a link."""
    server = world.server(**settings)
    client = world.client(server.port, 1, **settings)
    world.until(lambda: server.worker.link and client.worker.link, "the link")
    return server.worker.link, client.worker.link


@pytest.mark.parametrize("tls", [False, True])
def test_both_ends_use_what_was_asked_for(world, log, tls):
    wanted = another()
    ends = links(world, congestion=wanted, tls=tls)
    assert [used(end.fileno()) for end in ends] == [wanted] * 2
    assert log == []


def test_the_system_chooses_where_nobody_asked(world, log):
    assert [used(end.fileno()) for end in links(world)] == [of_system()] * 2
    assert log == []


def test_a_link_goes_without_what_is_not_there_and_says_so(world, log):
    ends = links(world, congestion="nonesuch")
    assert [used(end.fileno()) for end in ends] == [of_system()] * 2
    assert len(log) == 2, "once on each side"
    assert all("not nonesuch" in line and "sysctl" in line for line in log)


def test_setting_it_leaves_the_connection_open():
    one, other = tcp_pair()
    with one, other:
        set_congestion(one.fileno(), another())
        one.sendall(b"still here")
        assert other.recv(20) == b"still here"
        with pytest.raises(FileNotFoundError):
            set_congestion(one.fileno(), "nonesuch")
