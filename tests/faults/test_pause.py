"""What visitors and targets do while the link is away, and what becomes of it after."""

from __future__ import annotations

import re
import socket
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.support.apps import Apps
from tests.support.pattern import pattern
from tests.support.processes import Master, TunnelPair
from tests.support.require import is_long
from tests.support.sockets import (
    accept,
    connect,
    expect_end,
    expect_pattern,
    expect_reset,
    listener,
    receive_exactly,
    reset,
)
from tests.support.visitors import Load
from tests.support.wait import wait_until
from tunneltcp.cli.ask import ask

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


pytestmark = pytest.mark.slow

BACK_SECONDS = 5.0
"""The promise: a link is back within this time."""
GRACE_SECONDS = 1.5
"""``resume_grace`` of the tunnel that is given up."""
SLOW_SECONDS = 60.0 if is_long() else 4.0
"""Of traffic over a thin line."""


class World(NamedTuple):
    pair: TunnelPair
    echo: int
    pattern: int
    by_hand: int
    hasty: int
    """A tunnel to the same target as ``by_hand``, with a short ``resume_grace``."""
    target: socket.socket


@pytest.fixture(scope="module")
def apps() -> Iterator[Apps]:
    with Apps() as running:
        yield running


@pytest.fixture(scope="module")
def load() -> Iterator[Load]:
    with Load() as running:
        yield running


@pytest.fixture(scope="module")
def _world(apps: Apps, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with listener() as target:
        port = target.getsockname()[1]
        short = {"local_port": port, "resume_grace": GRACE_SECONDS}
        targets = [apps.add("echo"), apps.add("pattern"), port, short]
        folder = tmp_path_factory.mktemp("pause")
        with TunnelPair(targets, folder, chaos=True, common={"hold": 20}) as pair:
            echo, pattern, by_hand, hasty = pair.ports
            yield World(pair, echo, pattern, by_hand, hasty, target)


@pytest.fixture
def world(_world: World) -> Iterator[World]:
    """Four tunnels, each link through a relay, all up, and nobody there any more."""
    _world.pair.wait_links()
    for master in (_world.pair.server, _world.pair.client):
        for port in _world.pair.ports:
            wait_until(lambda m=master, p=port: m.tunnel(p)["visitors"] == 0)  # type: ignore[misc]
    yield _world
    for relay in _world.pair.relays.values():
        relay.heal()


class Stream(NamedTuple):
    """Both ends of one."""

    visitor: socket.socket
    target: socket.socket


@contextmanager
def stream(world: World, port: int) -> Iterator[Stream]:
    """A stream over which bytes went both ways."""
    with connect(port, timeout=20) as visitor:
        visitor.sendall(b"hello")
        with accept(world.target) as target:
            assert receive_exactly(target, 5) == b"hello"
            target.sendall(b"you")
            assert receive_exactly(visitor, 3) == b"you"
            yield Stream(visitor, target)


@contextmanager
def paused(world: World, port: int) -> Iterator[None]:
    """No link, and both sides know it; after the block there is one again."""
    relay = world.pair.relays[port]
    relay.refuse()
    relay.reset()
    for master in (world.pair.server, world.pair.client):
        wait_until(lambda master=master: not master.link_up(port), 5)  # type: ignore[misc]
    yield
    relay.heal()


# ---------------------------------------------------------------- during the pause


def test_both_ends_talk_on_into_the_pause(world: World) -> None:
    with stream(world, world.by_hand) as (visitor, target):
        with paused(world, world.by_hand):
            visitor.sendall(b"from the visitor")
            target.sendall(b"from the target")
        assert receive_exactly(target, 16) == b"from the visitor"
        assert receive_exactly(visitor, 15) == b"from the target"


def test_a_visitor_that_finishes(world: World) -> None:
    with stream(world, world.by_hand) as (visitor, target):
        with paused(world, world.by_hand):
            visitor.sendall(b"bye")
            visitor.shutdown(socket.SHUT_WR)
        assert receive_exactly(target, 3) == b"bye"
        expect_end(target)
        target.sendall(b"and you")  # half closed it was, and so it is
        target.shutdown(socket.SHUT_WR)
        assert receive_exactly(visitor, 7) == b"and you"
        expect_end(visitor)


def test_a_stream_that_was_half_closed_before(world: World) -> None:
    with stream(world, world.by_hand) as (visitor, target):
        visitor.shutdown(socket.SHUT_WR)
        expect_end(target)
        with paused(world, world.by_hand):
            target.sendall(b"only this way")
        assert receive_exactly(visitor, 13) == b"only this way"
        target.shutdown(socket.SHUT_WR)
        expect_end(visitor)


def test_a_visitor_that_resets(world: World) -> None:
    with stream(world, world.by_hand) as (visitor, target):
        with paused(world, world.by_hand):
            reset(visitor)
        expect_reset(target)


def test_a_target_that_answers_and_closes(world: World) -> None:
    with stream(world, world.by_hand) as (visitor, target):
        with paused(world, world.by_hand):
            target.sendall(pattern(7, 0, 30_000))
            target.close()
        expect_pattern(visitor, 7, 30_000)
        visitor.shutdown(socket.SHUT_WR)
        expect_end(visitor)


def test_a_target_that_resets(world: World) -> None:
    with stream(world, world.by_hand) as (visitor, target):
        with paused(world, world.by_hand):
            reset(target)
        expect_reset(visitor)


def test_a_target_that_is_reached_and_answers(world: World) -> None:
    """The client connects to it although there is no link any more."""
    with connect(world.by_hand, timeout=20) as visitor:
        visitor.sendall(b"hello")
        who = {"op": "who", "port": world.by_hand}
        run_dir = world.pair.client.run_dir
        wait_until(lambda: [one["bytes_in"] for one in ask(run_dir, who)["visitors"]] == [5], 5)
        with paused(world, world.by_hand), accept(world.target) as target:
            assert receive_exactly(target, 5) == b"hello"
            target.sendall(b"welcome")
            target.close()
        assert receive_exactly(visitor, 7) == b"welcome"


def test_an_open_that_dies_on_its_way(world: World) -> None:
    relay = world.pair.relays[world.by_hand]
    relay.stall("down")
    with connect(world.by_hand, timeout=20) as visitor:
        visitor.sendall(b"hello")
        server = world.pair.server
        wait_until(lambda: server.tunnel(world.by_hand)["visitors"] == 1, 5)
        with paused(world, world.by_hand):
            pass
        with accept(world.target) as target:
            assert receive_exactly(target, 5) == b"hello"
            target.sendall(b"here")
            assert receive_exactly(visitor, 4) == b"here"


def test_a_thousand_idle_streams(world: World) -> None:
    with ExitStack() as stack:
        idle = [stack.enter_context(connect(world.echo)) for _ in range(1000)]
        for visitor in idle:
            visitor.sendall(b"hello")
        for visitor in idle:
            assert receive_exactly(visitor, 5) == b"hello"
        masters = world.pair.server, world.pair.client
        for _ in range(3):
            before = [master.tunnel(world.echo)["resumes_total"] for master in masters]
            world.pair.relays[world.echo].reset()
            for master, count in zip(masters, before, strict=True):
                wait_until(
                    lambda m=master, n=count: m.tunnel(world.echo)["resumes_total"] > n,  # type: ignore[misc]
                    2 * BACK_SECONDS,
                )
        for visitor in idle:
            visitor.sendall(b"again")
        for visitor in idle:
            assert receive_exactly(visitor, 5) == b"again"

    log = world.pair.server.log_text(f"tunnel-{world.echo}.log")
    assert log.count(", 1000 streams resumed, ") == 3


# ------------------------------------------------------------------- much under way


def again_megabytes(master: Master, port: int) -> float:
    """The most that one resume sent again."""
    log = master.log_text(f"tunnel-{port}.log")
    return max(map(float, re.findall(r"resumed, (\d+\.\d) MB sent again", log)))


def test_full_rings_both_ways(world: World, load: Load) -> None:
    """Much is to be sent again, and each side reads what the other one sends meanwhile.

    How much of it is whose is chance: one direction may have been the faster one just then.
    ``tests/property/test_cut_everywhere.py`` has rings that are full to the last byte.
    """
    relay = world.pair.relays[world.pattern]
    relay.delay(0.1)  # so that windows grow
    relay.reset()  # a link that had known a short path would take the long one for a queue
    world.pair.wait_links(BACK_SECONDS)
    load.transfer("full", world.pattern, count=16, up=-1, down=-1)
    wait_until(lambda: load.stats("full").up > 60_000_000, 20)
    wait_until(lambda: load.stats("full").down > 60_000_000, 20)
    relay.silence()  # what is on its way is lost with it
    load.mark("full")
    wait_until(lambda: load.stats("full").max_gap > 0.5)
    relay.reset()
    relay.heal()
    world.pair.wait_links(BACK_SECONDS)
    up, down = (getattr(load.stats("full"), which) for which in ("up", "down"))
    wait_until(lambda: load.stats("full").up > up + 50_000_000, 20)
    wait_until(lambda: load.stats("full").down > down + 50_000_000, 20)
    stats = load.end("full")

    assert stats.bad == 0, stats.errors
    sides = (world.pair.server, world.pair.client)
    assert sum(again_megabytes(side, world.pattern) for side in sides) > 2


@pytest.mark.parametrize("direction", ["up", "down"] if is_long() else ["up"])
def test_a_link_that_stalls_for_good_is_replaced(
    world: World, load: Load, direction: str
) -> None:
    """The old one stays half-open, and wakes up when nobody wants it any more."""
    relay = world.pair.relays[world.pattern]
    load.transfer("stalled", world.pattern, count=5, up=3_000_000, down=3_000_000)
    wait_until(lambda: load.stats("stalled").down > 100_000)
    links = world.pair.client.tunnel(world.pattern)["links_total"]
    relay.stall(direction, "existing")  # type: ignore[arg-type]
    wait_until(lambda: world.pair.client.tunnel(world.pattern)["links_total"] > links, 10)
    relay.heal()
    stats = load.finish("stalled")

    assert stats.outcomes == {"ok": 5}, stats.errors


def test_a_thin_line_under_load_is_never_taken_for_dead(world: World, load: Load) -> None:
    relay = world.pair.relays[world.pattern]
    load.transfer("first", world.pattern, count=1, up=1000, down=1000)
    load.finish("first")  # behind all that other tests may have left on its way
    relay.rate(100_000, "both")
    before = world.pair.client.tunnel(world.pattern)["links_total"]
    load.transfer("thin", world.pattern, count=4, up=-1, down=-1)
    begin = time.monotonic()

    def is_over() -> bool:
        for master in (world.pair.client, world.pair.server):
            assert not master.tunnel(world.pattern)["link"]["doubted"]
        return time.monotonic() - begin > SLOW_SECONDS

    wait_until(is_over, SLOW_SECONDS + 5)
    stats = load.end("thin")

    assert stats.bad == 0, stats.errors
    assert stats.down > 0.3 * 100_000 * SLOW_SECONDS
    assert world.pair.client.tunnel(world.pattern)["links_total"] == before


# ------------------------------------------------------------------ when it is over


def write_for_ever(sock: socket.socket) -> None:
    while True:
        sock.sendall(b"anybody?")


def test_after_the_grace_streams_are_reset_never_finished(world: World) -> None:
    with (
        stream(world, world.hasty) as (idle, far_idle),
        stream(world, world.hasty) as (half, far_half),
        stream(world, world.hasty) as (busy, far_busy),
        stream(world, world.by_hand) as other,
    ):
        half.shutdown(socket.SHUT_WR)
        expect_end(far_half)
        far_busy.sendall(bytes(1000))
        receive_exactly(busy, 1000)
        begin = time.monotonic()
        with paused(world, world.hasty):
            far_busy.sendall(bytes(1000))  # and then it finishes: nobody will hear of it
            far_busy.shutdown(socket.SHUT_WR)
            for visitor in (idle, half, busy):
                assert expect_reset(visitor) == 0
            for target in (far_idle, far_busy):
                assert expect_reset(target) == 0
            # What has seen the end already learns of a reset when it writes.
            with pytest.raises(ConnectionError):
                write_for_ever(far_half)
            assert GRACE_SECONDS - 0.2 < time.monotonic() - begin < GRACE_SECONDS + 3
        other.visitor.sendall(b"still here")
        assert receive_exactly(other.target, 10) == b"still here"


def test_another_machine_is_told_who_has_the_port_and_gets_it_after_the_grace(
    world: World, apps: Apps, tmp_path: Path
) -> None:
    config = [{"remote_port": world.hasty, "local_port": apps.add("banner")}]
    name = f"tunnel-{world.hasty}.log"
    relay = world.pair.relays[world.hasty]
    with Master("client", config, tmp_path / "other", server="127.0.0.1") as other:
        other.allowed.append("no link")
        wait_until(lambda: "another client (127.0.0.1:" in other.log_text(name), 10)
        gone = time.monotonic()
        with paused(world, world.hasty):
            wait_until(lambda: other.link_up(world.hasty), GRACE_SECONDS + 10)
            assert time.monotonic() - gone > GRACE_SECONDS - 0.2
        # Now the first one waits: they do not throw each other out in turns.
        log = "another client (127.0.0.1:"
        world.pair.client.allowed.append("no link")
        wait_until(lambda: log in world.pair.client.log_text(name), 10)
        links = other.tunnel(world.hasty)["links_total"]
        assert other.link_up(world.hasty)
        assert other.tunnel(world.hasty)["links_total"] == links == 1
        relay.heal()
