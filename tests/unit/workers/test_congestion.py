"""A link has the congestion control asked for, or the system's and a line in the log."""

from __future__ import annotations

import os
import socket

import pytest
from loguru import logger

from tests.support.congestion import (
    allowed_congestion,
    congestion_of,
    congestion_of_system,
    require_congestion,
)
from tests.support.fake_peer import tcp_pair
from tests.support.require import require_ability
from tunneltcp.net.sockopt import set_congestion

UNPACED = ("reno", "cubic")


def another():
    """One that everybody may use and that a link over loopback has not without being asked."""
    others = [name for name in allowed_congestion() if name not in (near(), system())]
    require_ability(None if others else "this kernel has no third congestion control")
    return others[0]


def system():
    return congestion_of_system()


def near():
    """What a connection within this machine has."""
    return system() if system() in UNPACED else "reno"


def used(fd):
    with socket.socket(fileno=os.dup(fd)) as sock:
        return congestion_of(sock)


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


@pytest.mark.parametrize("tls", [False, True])
def test_the_system_chooses_where_nobody_asked_and_over_loopback_nothing_is_paced(
    world, log, tls
):
    assert [used(end.fileno()) for end in links(world, tls=tls)] == [near()] * 2
    assert log == []


def test_neither_are_visitors_and_targets_on_this_machine(world):
    """Whatever the system chooses: what the listener has, those that it accepts have."""
    require_congestion("bbr")
    app = world.app()
    server = world.server()
    for listener in server.worker._arrivals._listeners:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"bbr")
    client = world.client(server.port, app.port)
    world.until(lambda: server.worker.link and client.worker.link, "the link")
    world.visitor(server.port, b"hello")
    world.until(lambda: app.peers, "the target")
    (visitor,) = server.worker.all_visitors()
    (target,) = client.worker.all_visitors()
    assert congestion_of(visitor.relay._sock) == "reno"
    assert congestion_of(target.relay._sock) == near()
    assert used(server.worker.link.fileno()) == "reno"


def test_a_link_goes_without_what_is_not_there_and_says_so(world, log):
    ends = links(world, congestion="nonesuch")
    assert [used(end.fileno()) for end in ends] == [system()] * 2
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
