"""A client's machine that sleeps, moves, or sits behind a path that swallows big packets."""

from __future__ import annotations

import socket

import pytest

from tests.support.loop_stepper import spins
from tunneltcp.net.surroundings import Surroundings
from tunneltcp.protocol.frames import FrameType
from tunneltcp.relay import link as link_module
from tunneltcp.workers import roaming
from tunneltcp.workers.pace import SLOW_AFTER_SECONDS, SLOW_DIAL_SECONDS
from tunneltcp.workers.packets import SMALL_SEGMENT_BYTES
from tunneltcp.workers.roaming import (
    BREATH_SECONDS,
    LONG_LIFE_SECONDS,
    LOOK_SECONDS,
    QUICK_REDIALS,
    SHORT_LIFE_SECONDS,
)

NOBODY = b"\0\0"


@pytest.fixture
def happens(monkeypatch):
    """What the next look sees."""
    said: list[str] = []
    monkeypatch.setattr(Surroundings, "look", lambda _self, _there: said.pop() if said else "")
    return said.append


@pytest.fixture
def raw(world):
    return world.raw_server()


@pytest.fixture
def app(world):
    return world.app()


@pytest.fixture
def client(world, happens, raw, app):
    """A client whose link is up, and asked for life signs hardly ever."""
    client = world.client(raw.port, app.port, idle_ping_seconds=300.0)
    world.until(lambda: raw.up, "the link")
    world.settle()
    return client


def pings(end) -> int:
    return sum(frame.type is FrameType.PING for frame in end.frames)


def test_a_machine_that_woke_up_asks_at_once(world, raw, client, happens):
    link = raw.up[0]
    before = pings(link)
    world.pass_time(LOOK_SECONDS - 0.03)
    link.send(FrameType.PONG, 0, 1)  # what came a moment ago came before it slept
    happens("this machine slept for 3600 s")
    world.pass_time(0.05)
    world.settle()
    assert pings(link) == before + 1
    world.pass_time(5)
    assert raw.up == [link], "it answered"


def test_a_link_that_died_in_sleep_is_replaced_within_three_seconds(
    world, raw, client, happens
):
    link = raw.up[0]
    link.answers_pings = False
    happens("this machine slept for 3600 s")
    world.pass_time(LOOK_SECONDS)
    woke = world.clock()
    world.until(lambda: link.end or world.pass_time(0.1))
    assert world.clock() - woke < 2.5
    assert raw.up


def test_a_link_from_an_address_that_is_gone_is_replaced_at_once(
    world, raw, client, happens, monkeypatch
):
    link = raw.up[0]
    monkeypatch.setattr(roaming, "has_address", lambda _family, _address: False)
    happens("this machine reaches the server from 192.0.2.9 now")
    world.pass_time(LOOK_SECONDS)
    world.until(lambda: link.end)
    world.until(lambda: raw.up)
    reasons = [message["reason"] for message in client.told("link")]
    assert "its address is not this machine's any more" in reasons


def test_the_address_of_the_link_is_looked_at(world, raw, client, happens, monkeypatch):
    seen = []

    def look_at(family, address):
        seen.append((family, address))
        return True

    monkeypatch.setattr(roaming, "has_address", look_at)
    happens("this machine reaches the server from 192.0.2.9 now")
    world.pass_time(LOOK_SECONDS)
    near = raw.up[0].peer.sock.getpeername()
    assert seen == [(socket.AF_INET, near)]


def test_without_a_link_a_machine_that_moved_dials_at_once(world, app, happens):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        client = world.client(closed.getsockname()[1], app.port)
        world.pass_time(SLOW_AFTER_SECONDS + 2 * SLOW_DIAL_SECONDS, step=0.2)
        begin = client.worker.memory.table.attempt
        happens("this machine reaches the server from 192.0.2.9 now")
        world.pass_time(LOOK_SECONDS + 2.0)
    assert client.worker.memory.table.attempt - begin >= 3, "and is quick again"
    assert not spins(client.loop)


def test_a_machine_that_drains_dials_no_more(world, raw, client, happens):
    client.say(type="drain", seconds=60)
    world.until(lambda: client.worker.draining)
    seen = len(raw.ends)
    happens("this machine slept for 3600 s")
    world.pass_time(LOOK_SECONDS)
    assert len(raw.ends) == seen


def resumed(end) -> None:
    """Take it as the next link of the session, with the one stream still there."""
    end.welcome("cc" * 16, 2, resumed=True)
    end.answers_pings = False
    end.send(FrameType.SYNC, 0, 1, (1).to_bytes(4, "big"))
    end.send(FrameType.STATE, 1, 0, (1 << 20).to_bytes(8, "big") + b"\0")


def test_after_two_busy_links_that_went_silent_packets_are_small(world, raw, client, app):
    raw.decide = resumed
    link = raw.up[0]
    link.answers_pings = False
    link.send(FrameType.OPEN, 1, 1 << 20, NOBODY)
    world.until(lambda: app.peers)
    sizes = []
    for _ in range(5):
        link = raw.up[-1]
        sizes.append(link.peer.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG))
        world.until(lambda link=link: link.end or world.pass_time(0.1))
        world.until(lambda: raw.up)
    small = [size <= SMALL_SEGMENT_BYTES for size in sizes]
    assert small == [False, False, True, True, False], sizes


def mute_links(world, raw, app, *, seconds: float = 0.0):
    """Yield the segment size of each of five idle links, which go silent after ``seconds``."""
    raw.decide = lambda end: end.welcome()
    world.client(raw.port, app.port)
    for _ in range(5):
        world.until(lambda: raw.up)
        link = raw.up[-1]
        yield link.peer.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
        world.pass_time(seconds)
        link.answers_pings = False
        world.until(lambda link=link: link.end or world.pass_time(0.1))


def test_idle_links_that_go_silent_say_nothing_of_packets(world, raw, app, monkeypatch):
    monkeypatch.setattr(link_module, "all_acknowledged", lambda _transport: False)
    assert min(mute_links(world, raw, app)) > SMALL_SEGMENT_BYTES


def test_a_ping_that_is_acknowledged_and_never_answered_is_about_packets(
    world, raw, app, monkeypatch
):
    """The server has a stream that is new: its OPEN is in the packet that is swallowed."""
    monkeypatch.setattr(link_module, "all_acknowledged", lambda _transport: True)
    small = [size <= SMALL_SEGMENT_BYTES for size in mute_links(world, raw, app)]
    assert small == [False, False, True, True, False]


def test_links_that_lived_long_are_not_deaths_in_a_row(world, raw, app, monkeypatch):
    monkeypatch.setattr(link_module, "all_acknowledged", lambda _transport: True)
    sizes = mute_links(world, raw, app, seconds=LONG_LIFE_SECONDS)
    assert min(sizes) > SMALL_SEGMENT_BYTES


def test_links_that_die_young_are_not_redialled_in_a_hot_loop(world, raw, client):
    for _ in range(QUICK_REDIALS):
        raw.up[0].peer.reset()
        raw.ends.clear()
        world.settle(30)
        assert raw.up, "at once"
    for _ in range(3):
        raw.up[0].peer.reset()
        raw.ends.clear()
        world.settle(30)
        assert not raw.ends
        world.pass_time(0.8 * BREATH_SECONDS, 0.01)
        assert not raw.ends
        world.pass_time(0.4 * BREATH_SECONDS, 0.01)
        world.until(lambda: raw.up)
    world.pass_time(SHORT_LIFE_SECONDS)
    raw.up[0].peer.reset()
    raw.ends.clear()
    world.settle(30)
    assert raw.up, "one that lived for a while is followed at once again"
