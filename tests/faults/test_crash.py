"""A dead worker is a pause, not a cut: what it carried goes on in its successor, whole.

``scripts/chaos`` has the hundreds of deaths, and judges how long a pause may be; here stand a
few of each, with room for a machine that is busy. With LONG_TESTS=1 there are more.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import statistics
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.support.apps import Apps, request
from tests.support.instants import Instant
from tests.support.leaks import keepers
from tests.support.pattern import PatternChecker
from tests.support.processes import Master, TunnelPair, alive
from tests.support.require import is_long
from tests.support.sockets import accept, connect, listener, receive_exactly
from tests.support.storm import SIDES, Blow, Storm, pause
from tests.support.visitors import Load
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

pytestmark = pytest.mark.slow

ROUNDS = 10 if is_long() else 1
STALL_SECONDS = 2.0
"""Of the median blow; a promise is 0.5 s for 99 in 100, on a machine that is not busy."""
SERVED_SECONDS = 1.0
"""The same; promised are 0.1 s."""
MEET_SECONDS = 1.0
"""Until an instant comes, with all those visitors; some never do."""


# ------------------------------------------------------------------------ in a storm


@pytest.fixture(scope="module", params=["ipv4", "tls and ipv6"])
def _module_storm(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Storm]:
    second = request.param != "ipv4"
    with ExitStack() as stack:
        folder = tmp_path_factory.mktemp("storm")
        storm = Storm(stack, folder, tls=second, ipv6=second, seed=1 + second)
        for master in storm.masters:
            master.allowed += ["Fatal Python error"]
        yield storm


@pytest.fixture
def storm(_module_storm: Storm) -> Iterator[Storm]:
    """All visitors are here; those that a failed test left are ended."""
    _module_storm.wait_ready()
    _module_storm.begin()
    yield _module_storm
    _module_storm.end()


def blows(storm: Storm, chance: random.Random) -> Iterator[Blow]:
    """Every kind of death, on each side and on both; the second of two as one resumes."""
    one, other = chance.sample(SIDES, 2)
    for sides, how, lag in (
        ([one], signal.SIGKILL, 0.0),
        ([other], signal.SIGSEGV, 0.0),
        ([one], signal.SIGABRT, 0.0),
        ([other, one], signal.SIGKILL, 0.0),
        ([one, other], signal.SIGKILL, chance.uniform(0.01, 0.1)),
        ([other], signal.SIGTERM, 0.0),
    ):
        yield storm.kill(sides, how, lag)


@pytest.mark.timeout(120 * ROUNDS)
def test_visitors_see_no_more_than_a_pause(storm: Storm) -> None:
    """Busy, half-closed, reset and finished streams, and newcomers; nothing is left over."""
    chance = random.Random(f"{storm.host}")
    seen = []
    for _ in range(ROUNDS):
        for blow in blows(storm, chance):
            assert storm.wrong() == [], blow.what
            assert max(blow.stood_still) < blow.stall + 1.0, "since this death, not an earlier"
            seen.append(blow)
    assert statistics.median(blow.stall for blow in seen) < STALL_SECONDS, seen
    assert statistics.median(x for blow in seen for x in blow.served) < SERVED_SECONDS, seen
    assert storm.count()["ended well"] > 100
    assert storm.end() == []
    assert storm.left_over() == []


BEHIND = {
    "server": [
        ("protocol.stream:Stream.fill", "receive_into", 20),
        ("protocol.stream:Stream.fill", "receive_into", 50),
        ("protocol.stream:Stream.fill", "receive_into", 301),
        ("relay.relay:Relay.deliver_fin", "shutdown", 1),
        ("relay.relay:Relay.abort", "close", 1),
        ("workers.server:ServerWorker._take_link", "set_attempt", 1),
        ("workers.successor:_Successor.start", "inherit", 1),
    ],
    "client": [
        ("protocol.stream:Stream.fill", "receive_into", 21),
        ("protocol.stream:Stream.fill", "receive_into", 302),
        ("relay.relay:Relay.close", "close_cleanly", 1),
        ("relay.relay:Relay._fail", "record_error", 1),
        ("workers.client:ClientWorker._start_attempt", "raise_attempt", 1),
    ],
}
"""Deaths between a call, the n-th, and what would have been done next."""

OPENING = {
    "server": [
        ("workers.arrivals:Arrivals._accept", "accept", 3),
        ("workers.visitors:Visitors.come", "set_came", 2),
    ],
    "client": [
        ("protocol.session:Session.receive_open", "take", 1),
        ("workers.visitors:Visitors.come", "set_came", 2),
        ("workers.client:ClientWorker.on_open", "come", 2),
        ("relay.relay:TargetRelay._connect", "connect_ex", 2),
    ],
}
"""The same, while a visitor is let in; who is reset anyway would not notice that he was."""

WITHIN = [
    "protocol.stream:Stream._grow",
    "protocol.stream:Stream._first_ring",
    "protocol.links:Links.resume",
    "protocol.links:Links._go_on",
    "workers.successor:_Successor._take_streams",
    "workers.successor:_Successor._rebuild",
]
"""Deaths at any instruction; some lie on a way that is seldom gone."""


def chosen(side: str, chance: random.Random) -> Iterator[Instant]:
    for function, call, hit in BEHIND[side]:
        yield Instant.behind(function, call, hit=hit)
    hellos = {
        "server": "workers.claims:Claim._on_message",
        "client": "workers.dial:Attempt.prove",
    }
    for function in [*WITHIN, hellos[side]]:
        yield Instant.within(function, chance)


@pytest.mark.parametrize("_module_storm", ["ipv4"], indirect=True)
@pytest.mark.timeout(120 * ROUNDS)
def test_a_worker_may_die_at_any_instant(storm: Storm) -> None:
    chance = random.Random("instants")
    met = 0
    for _ in range(ROUNDS):
        for side in SIDES:
            instants = list(chosen(side, chance))
            for instant in instants:
                met += storm.strike(side, instant, MEET_SECONDS) is not None
                assert storm.wrong() == [], f"{instant}, {side}"
        for name in ("torn", "hasty"):
            if name in storm.groups:
                storm.send_away(name)
        for side in SIDES:
            for function, call, hit in OPENING[side]:
                instant = Instant.behind(function, call, hit=hit)
                met += storm.strike(side, instant, MEET_SECONDS) is not None
                assert storm.wrong() == [], f"{instant}, {side}"
    assert met > 15 * ROUNDS, "most of these instants come"
    assert storm.end() == []


# --------------------------------------------------------------------------- by hand


@pytest.fixture(scope="module")
def load() -> Iterator[Load]:
    with Load() as running:
        yield running


class Tunnels:
    """To an ``echo`` app, a ``pattern`` app, a listener, and once more without keepers."""

    def __init__(self, pair: TunnelPair, target: socket.socket) -> None:
        self.pair = pair
        self.target = target
        self.echo, self.pattern, self.by_hand, self.unsafe = pair.ports

    def master(self, side: str) -> Master:
        return self.pair.server if side == "server" else self.pair.client

    def wait_crash_safe(self, port: int) -> None:
        for master in (self.pair.server, self.pair.client):
            wait_until(
                lambda master=master: (  # type: ignore[misc]
                    master.link_up(port) and master.tunnel(port)["crash_safe"]
                ),
                20,
                lambda master=master: f"{master} is crash-safe: {master.tunnel(port)}",  # type: ignore[misc]
            )

    def kill(self, port: int, sides: Sequence[str], number: int = signal.SIGKILL) -> None:
        """Kill workers of a tunnel, and wait until their successors have the link."""
        old = {side: self.master(side).kill_worker(port, number) for side in sides}
        for side, pid in old.items():
            self.master(side).wait_for_successor(port, pid, 20)
        self.wait_crash_safe(port)


@pytest.fixture(scope="module")
def _tunnels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tunnels]:
    folder = tmp_path_factory.mktemp("crash")
    with Apps() as apps, listener() as target:
        echo = apps.add("echo")
        targets = [echo, apps.add("pattern"), target.getsockname()[1]]
        unsafe = {"local_port": echo, "crash_safe": False}
        with TunnelPair([*targets, unsafe], folder, common={"hold": 20}) as pair:
            yield Tunnels(pair, target)


@pytest.fixture
def tunnels(_tunnels: Tunnels) -> Tunnels:
    """All up, and all crash-safe that may be."""
    for port in (_tunnels.echo, _tunnels.pattern, _tunnels.by_hand):
        _tunnels.wait_crash_safe(port)
    _tunnels.pair.wait_links()
    return _tunnels


def test_idle_streams_are_still_there(tunnels: Tunnels) -> None:
    """Some have said something, some nothing yet; none has anything under way."""
    port, count = tunnels.echo, 200
    masters = (tunnels.pair.server, tunnels.pair.client)
    visitors = [connect(port) for _ in range(count)]
    try:
        for visitor in visitors[::2]:
            visitor.sendall(b"before")
        for visitor in visitors[::2]:
            assert receive_exactly(visitor, 6) == b"before"
        wait_until(lambda: tunnels.pair.client.tunnel(port)["visitors"] == count)
        tunnels.kill(port, SIDES)
        for visitor in visitors:
            visitor.sendall(b"after")
        for visitor in visitors:
            assert receive_exactly(visitor, 5) == b"after"
        for master in masters:
            wait_until(lambda master=master: master.tunnel(port)["visitors"] == count)  # type: ignore[misc]
            takeover = master.tunnel(port)["last_takeover"]
            assert takeover["reason"] == "ended by SIGKILL"
            assert (takeover["streams"], takeover["reset"]) == (count, 0)
            assert 0 < takeover["served_seconds"] <= takeover["stood_still_seconds"] < 20
            log = f"{count} streams taken over, 0 reset; they stood still for "
            assert log in master.log_text("master.log")
    finally:
        for visitor in visitors:
            visitor.close()


@pytest.mark.parametrize("side", SIDES)
def test_a_reset_stays_a_reset(tunnels: Tunnels, side: str) -> None:
    """Who is reset while nobody looks does not come out as a clean end."""
    with connect(tunnels.by_hand) as visitor:
        visitor.sendall(b"hello")
        with accept(tunnels.target) as app:
            assert receive_exactly(app, 5) == b"hello"
            pid = tunnels.master(side).worker_pid(tunnels.by_hand)
            near, far = (visitor, app) if side == "server" else (app, visitor)
            os.kill(pid, signal.SIGSTOP)
            near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            near.close()
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(ConnectionResetError):
                far.recv(1)


def keeper_of(master: Master, port: int) -> int:
    """Find the keeper of a worker by its title."""
    (found,) = keepers(master.pid, port)
    return found


@pytest.mark.parametrize("side", SIDES)
def test_a_keeper_that_dies_is_made_anew(tunnels: Tunnels, load: Load, side: str) -> None:
    master, port = tunnels.master(side), tunnels.pattern
    load.transfer("busy", port, count=2, up=-1, down=-1, seed=77)
    try:
        keeper = keeper_of(master, port)
        os.kill(keeper, signal.SIGKILL)
        wait_until(lambda: not alive(keeper))
        tunnels.wait_crash_safe(port)
        wait_until(lambda: keeper_of(master, port) != keeper)
        tunnels.kill(port, [side])
        down = load.stats("busy").down
        wait_until(lambda: load.stats("busy").down > down + 1_000_000, 20)
    finally:
        stats = load.end("busy")
    assert stats.bad == 0, stats.errors


@pytest.mark.parametrize("side", SIDES)
def test_without_its_keeper_a_dead_worker_is_an_honest_cut(tunnels: Tunnels, side: str) -> None:
    """Never a clean end; and the tunnel serves on."""
    master, port = tunnels.master(side), tunnels.pattern
    with connect(port) as visitor:
        visitor.sendall(request(down_seed=9, down=-1))
        checker = PatternChecker(9)
        while checker.offset < 3_000_000:
            checker.feed(visitor.recv(1 << 18))
        worker, keeper = master.worker_pid(port), keeper_of(master, port)
        os.kill(worker, signal.SIGSTOP)
        os.kill(keeper, signal.SIGKILL)
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(ConnectionResetError):  # noqa: PT012 - it comes after some bytes
            while data := visitor.recv(1 << 18):
                checker.feed(data)
            pytest.fail(f"a clean end after {checker.offset} bytes of an endless download")
    master.wait_for_successor(port, worker, 20)
    tunnels.wait_crash_safe(port)


def test_without_crash_safe_a_dead_worker_cuts_its_visitors(tunnels: Tunnels) -> None:
    master, port = tunnels.pair.server, tunnels.unsafe
    assert not master.tunnel(port)["crash_safe"]
    with connect(port) as visitor:
        visitor.sendall(b"hello")
        assert receive_exactly(visitor, 5) == b"hello"
        old = master.kill_worker(port)
        with pytest.raises(ConnectionResetError):
            visitor.recv(1)
    master.wait_for_successor(port, old, 20)
    assert master.tunnel(port)["last_takeover"] is None


@pytest.mark.skipif(not is_long(), reason="ten seconds; the rule itself: test_keepers.py")
def test_what_kills_every_successor_is_given_up(tunnels: Tunnels) -> None:
    """Six crashes in a row without a byte of progress, of which no stream is to blame."""
    master, port = tunnels.pair.server, tunnels.echo
    master.allowed += ["6 crashes in a row"]
    with connect(port) as visitor:
        visitor.sendall(b"hello")
        assert receive_exactly(visitor, 5) == b"hello"
        for _ in range(2):
            old = master.kill_worker(port, signal.SIGSEGV)
            master.wait_for_successor(port, old, 20)
        visitor.sendall(b"there")
        assert receive_exactly(visitor, 5) == b"there", "two are put up with"
        for _ in range(7):  # the first is that with the progress
            pause(1.5)  # for a younger one's successor one waits ever longer
            old = master.kill_worker(port, signal.SIGSEGV)
            master.wait_for_successor(port, old, 20)
        with pytest.raises(ConnectionResetError):
            visitor.recv(1)
    tunnels.pair.wait_links()
    with connect(port) as visitor:
        visitor.sendall(b"again")
        assert receive_exactly(visitor, 5) == b"again"
