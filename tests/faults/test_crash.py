"""A dead worker is a pause, not a cut: what it carried goes on in its successor, whole."""

from __future__ import annotations

import os
import random
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.apps import Apps, request
from tests.support.leaks import children
from tests.support.pattern import PatternChecker, pattern
from tests.support.processes import Master, TunnelPair, alive
from tests.support.require import is_long
from tests.support.service import ServiceError
from tests.support.sockets import accept, connect, expect_end, listener, receive_exactly
from tests.support.visitors import Load
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SIDES = {"server": ["server"], "client": ["client"], "both": ["server", "client"]}
KILLS = 4
"""Of each side in each test; scripts/chaos has the hundreds."""
STREAMS = 20
FLAGS = ["", "e", "r", "f"]
GROUPS = ["endless", "questions", "newcomers", "busy", *(f"short {flags}" for flags in FLAGS)]

SOUND_SECONDS = 1.5


@pytest.fixture(scope="module")
def _module_load() -> Iterator[Load]:
    with Load() as running:
        yield running


@pytest.fixture
def load(_module_load: Load) -> Iterator[Load]:
    """Visitors; those that a failed test left are ended."""
    yield _module_load
    for name in GROUPS:
        with suppress(ServiceError):
            _module_load.end(name)


@pytest.fixture(scope="module")
def apps() -> Iterator[Apps]:
    with Apps() as running:
        yield running


@pytest.fixture(scope="module", params=["plain", "tls"])
def _module_pair(
    request: pytest.FixtureRequest, apps: Apps, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TunnelPair]:
    targets = [apps.add("pattern"), apps.add("echo")]
    common = {"tls": request.param == "tls", "hold": 20}
    with TunnelPair(targets, tmp_path_factory.mktemp("crash"), common=common) as pair:
        yield pair


@pytest.fixture
def pair(_module_pair: TunnelPair) -> TunnelPair:
    """Tunnels to a ``pattern`` and an ``echo`` app, up and crash-safe."""
    _module_pair.wait_links()
    for master in (_module_pair.server, _module_pair.client):
        for port in _module_pair.ports:
            wait_crash_safe(master, port)
            last = master.tunnel(port)["last_exit"]
            if last and last["signal"] == "SIGKILL" and last["ran_seconds"] < 2:
                # It died fast: the next death would be waited over. Being asked is no failure.
                old = master.kill_worker(port, signal.SIGTERM)
                master.wait_for_successor(port, old)
                wait_crash_safe(master, port)
    _module_pair.wait_links()
    return _module_pair


def wait_crash_safe(master: Master, port: int) -> None:
    wait_until(lambda: master.tunnel(port)["crash_safe"], 10, f"{master} is crash-safe")


def pause(seconds: float) -> None:
    """Let time pass: a worker is to be killed at any moment, not at the next event."""
    end = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() >= end)


def master_of(pair: TunnelPair, side: str) -> Master:
    return pair.server if side == "server" else pair.client


def kill(
    pair: TunnelPair, port: int, sides: Sequence[str], number: int = signal.SIGKILL
) -> None:
    """Kill workers of a tunnel, and wait until their successors have the link."""
    old = {side: master_of(pair, side).kill_worker(port, number) for side in sides}
    for side, pid in old.items():
        master_of(pair, side).wait_for_successor(port, pid)
    for master in (pair.server, pair.client):
        wait_until(
            lambda master=master: master.link_up(port),  # type: ignore[misc]
            10,
            f"the link of {master}",
        )


@pytest.mark.parametrize("sides", SIDES)
def test_busy_streams_go_on(pair: TunnelPair, load: Load, sides: str) -> None:
    """Both directions, all ways to end, and newcomers, while workers are killed."""
    chance = random.Random(f"busy {sides}")
    port = pair.port
    load.transfer("endless", port, count=STREAMS, up=-1, down=-1, seed=1000)
    for number, flags in enumerate(FLAGS):
        load.transfer(
            f"short {flags}", port, count=3, up=200_000, down=300_000, flags=flags,
            repeat=True, seed=10_000 * (number + 1),
        )  # fmt: skip
    load.probe("questions", pair.ports[1], count=10, size=100)
    try:
        for _ in range(KILLS):
            before = load.stats("endless")
            pause(chance.uniform(0.0, 0.3))
            kill(pair, port, SIDES[sides])
            wait_until(
                lambda before=before: (  # type: ignore[misc]
                    load.stats("endless").down > before.down + 2_000_000
                    and load.stats("endless").up > before.up + 2_000_000
                ),
                15,
                lambda: f"bytes move again: {load.stats('endless')}",
            )
        for kind in [f"short {flags}" for flags in FLAGS]:
            rounds = load.stats(kind).outcomes.get("ok", 0)
            wait_until(
                lambda kind=kind, rounds=rounds: (  # type: ignore[misc]
                    load.stats(kind).outcomes.get("ok", 0) > rounds
                ),
                15,
            )
    finally:
        names = ["endless", "questions", *(f"short {flags}" for flags in FLAGS)]
        stats = {name: load.end(name) for name in names}
    for name, found in stats.items():
        assert found.bad == 0, (name, found.errors)
        assert found.connected > 0
    assert stats["questions"].max_gap < 5


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGTERM])
def test_every_way_to_die_is_the_same(pair: TunnelPair, load: Load, number: int) -> None:
    """Also the one that is asked for: TERM means "replace me"."""
    load.transfer("busy", pair.port, count=4, up=20_000_000, down=20_000_000, seed=7)
    wait_until(lambda: load.stats("busy").down > 1_000_000)
    for side in ("server", "client"):
        kill(pair, pair.port, [side], number)
    stats = load.finish("busy", 40)
    assert stats.outcomes == {"ok": 4}, stats.errors


@pytest.mark.parametrize("sides", SIDES)
def test_who_comes_meanwhile_is_served(pair: TunnelPair, load: Load, sides: str) -> None:
    port = pair.ports[1]
    load.probe("newcomers", port, count=8, rounds=1, size=1000, repeat=True)
    for _ in range(KILLS):
        rounds = load.stats("newcomers").rounds
        wait_until(lambda rounds=rounds: load.stats("newcomers").rounds > rounds + 50)  # type: ignore[misc]
        # A worker that died young again and again is waited with.
        sound = time.monotonic() + SOUND_SECONDS
        wait_until(lambda sound=sound: time.monotonic() > sound)  # type: ignore[misc]
        kill(pair, port, SIDES[sides])
    stats = load.end("newcomers")
    assert stats.bad == 0, stats.errors


def test_idle_streams_are_still_there(pair: TunnelPair) -> None:
    """Some have said something, some nothing yet; none has anything under way."""
    port = pair.ports[1]
    visitors = [connect(port) for _ in range(200)]
    try:
        for visitor in visitors[::2]:
            visitor.sendall(b"before")
        for visitor in visitors[::2]:
            assert receive_exactly(visitor, 6) == b"before"
        wait_until(lambda: pair.client.tunnel(port)["visitors"] >= 200)
        kill(pair, port, SIDES["both"])
        for visitor in visitors:
            visitor.sendall(b"after")
        for visitor in visitors:
            assert receive_exactly(visitor, 5) == b"after"
        assert pair.server.tunnel(port)["visitors"] >= 200
        assert pair.client.tunnel(port)["visitors"] >= 200
    finally:
        for visitor in visitors:
            visitor.close()


@pytest.mark.parametrize("sides", SIDES)
def test_half_closed_streams_stay_half_closed(apps: Apps, tmp_path: Path, sides: str) -> None:
    """A FIN that was passed on is not passed on again; the other direction goes on."""
    with (
        listener() as target,
        TunnelPair([target.getsockname()[1]], tmp_path) as pair,
        connect(pair.port) as first,
        connect(pair.port) as second,
    ):
        first.sendall(b"first")
        first_app = accept(target)
        second.sendall(b"second")
        second_app = accept(target)
        with first_app, second_app:
            assert receive_exactly(first_app, 5) == b"first"
            assert receive_exactly(second_app, 6) == b"second"
            first.shutdown(socket.SHUT_WR)
            expect_end(first_app)
            second_app.shutdown(socket.SHUT_WR)
            expect_end(second)
            for number in range(3):
                kill(pair, pair.port, SIDES[sides])
                first_app.sendall(pattern(1, 100_000 * number, 100_000))
                assert receive_exactly(first, 100_000) == pattern(1, 100_000 * number, 100_000)
                second.sendall(pattern(2, 100_000 * number, 100_000))
                got = receive_exactly(second_app, 100_000)
                assert got == pattern(2, 100_000 * number, 100_000)
            first_app.shutdown(socket.SHUT_WR)
            expect_end(first)
            second.shutdown(socket.SHUT_WR)
            expect_end(second_app)


@pytest.mark.parametrize("side", ["server", "client"])
def test_a_reset_stays_a_reset(tmp_path: Path, side: str) -> None:
    """Who is reset while nobody looks does not come out as a clean end."""
    with (
        listener() as target,
        TunnelPair([target.getsockname()[1]], tmp_path) as pair,
        connect(pair.port) as visitor,
    ):
        visitor.sendall(b"hello")
        with accept(target) as app:
            assert receive_exactly(app, 5) == b"hello"
            master = master_of(pair, side)
            pid = master.worker_pid(pair.port)
            near, far = (visitor, app) if side == "server" else (app, visitor)
            os.kill(pid, signal.SIGSTOP)
            near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            near.close()
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(ConnectionResetError):
                far.recv(1)


def keeper_of(master: Master, port: int) -> int:
    """Find the keeper of a worker by its title."""
    found = [
        pid
        for pid in children(master.pid)
        if f"keeper of {port}" in Path(f"/proc/{pid}/cmdline").read_text()
    ]
    assert len(found) == 1, found
    return found[0]


@pytest.mark.parametrize("side", ["server", "client"])
def test_a_keeper_that_dies_is_made_anew(pair: TunnelPair, load: Load, side: str) -> None:
    master = master_of(pair, side)
    load.transfer("busy", pair.port, count=2, up=-1, down=-1, seed=77)
    keeper = keeper_of(master, pair.port)
    os.kill(keeper, signal.SIGKILL)
    wait_until(lambda: not alive(keeper))
    wait_crash_safe(master, pair.port)
    wait_until(lambda: keeper_of(master, pair.port) != keeper)
    down = load.stats("busy").down
    kill(pair, pair.port, [side])
    wait_until(lambda: load.stats("busy").down > down + 1_000_000)
    stats = load.end("busy")
    assert stats.bad == 0, stats.errors


@pytest.mark.parametrize("side", ["server", "client"])
def test_without_its_keeper_a_dead_worker_is_an_honest_cut(pair: TunnelPair, side: str) -> None:
    """Never a clean end; and the tunnel serves on."""
    master = master_of(pair, side)
    with connect(pair.port) as visitor:
        visitor.sendall(request(down_seed=9, down=-1))
        checker = PatternChecker(9)
        while checker.offset < 3_000_000:
            checker.feed(visitor.recv(1 << 18))
        worker, keeper = master.worker_pid(pair.port), keeper_of(master, pair.port)
        os.kill(worker, signal.SIGSTOP)
        os.kill(keeper, signal.SIGKILL)
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(ConnectionResetError):  # noqa: PT012 - it comes after some bytes
            while data := visitor.recv(1 << 18):
                checker.feed(data)
            pytest.fail(f"a clean end after {checker.offset} bytes of an endless download")
    master.wait_for_successor(pair.port, worker)
    pair.wait_links()
    wait_crash_safe(master, pair.port)


@pytest.mark.parametrize("side", ["server", "client"])
def test_a_successor_that_dies_on_its_way_loses_nothing(
    pair: TunnelPair, load: Load, side: str
) -> None:
    """Each is killed as soon as it is there, often before it is ready."""
    master = master_of(pair, side)
    load.transfer("busy", pair.port, count=4, up=-1, down=-1, seed=700)
    wait_until(lambda: load.stats("busy").down > 1_000_000)
    chance = random.Random(side)
    for _ in range(6):
        before = master.tunnel(pair.port)["restarts"]
        with suppress(ProcessLookupError, AssertionError):
            master.kill_worker(pair.port)
        wait_until(
            lambda before=before: (  # type: ignore[misc]
                master.tunnel(pair.port)["restarts"] > before
                and master.tunnel(pair.port)["pid"]
            ),
            10,
        )
        pause(chance.uniform(0.0, 0.03))
    down = load.stats("busy").down
    wait_until(lambda: load.stats("busy").down > down + 1_000_000, 20)
    stats = load.end("busy")
    assert stats.bad == 0, stats.errors


def test_nothing_is_left_over(pair: TunnelPair) -> None:
    """Processes and descriptors of a master are as many as before.

    Workers are asked to go, since who keeps killing them waits ever longer for the next.
    """

    def held(master: Master) -> tuple[int, int]:
        return len(children(master.pid)), len(list(Path(f"/proc/{master.pid}/fd").iterdir()))

    before = [held(master) for master in (pair.server, pair.client)]
    for _ in range(KILLS):
        kill(pair, pair.port, SIDES["both"], signal.SIGTERM)
        for master in (pair.server, pair.client):
            wait_crash_safe(master, pair.port)
    wait_until(
        lambda: [held(master) for master in (pair.server, pair.client)] == before,
        5,
        lambda: f"{before} again: {[held(master) for master in (pair.server, pair.client)]}",
    )


def test_without_crash_safe_a_dead_worker_cuts_its_visitors(apps: Apps, tmp_path: Path) -> None:
    target = apps.add("echo")
    with TunnelPair([target], tmp_path, common={"crash_safe": False}) as pair:
        assert not pair.server.tunnel(pair.port)["crash_safe"]
        assert len(children(pair.server.pid)) == 1
        with connect(pair.port) as visitor:
            visitor.sendall(b"hello")
            assert receive_exactly(visitor, 5) == b"hello"
            pair.server.kill_worker(pair.port)
            with pytest.raises(ConnectionResetError):
                visitor.recv(1)


@pytest.mark.skipif(not is_long(), reason="ten seconds; the rule itself: test_keepers.py")
def test_what_kills_every_successor_is_given_up(pair: TunnelPair) -> None:
    """Six crashes in a row without a byte of progress, of which no stream is to blame."""
    master, port = pair.server, pair.ports[1]
    master.allowed += ["6 crashes in a row"]
    with connect(port) as visitor:
        visitor.sendall(b"hello")
        assert receive_exactly(visitor, 5) == b"hello"
        for _ in range(2):
            old = master.kill_worker(port, signal.SIGSEGV)
            master.wait_for_successor(port, old)
        visitor.sendall(b"there")
        assert receive_exactly(visitor, 5) == b"there", "two are put up with"
        for _ in range(7):  # the first is that with the progress
            pause(SOUND_SECONDS)
            old = master.kill_worker(port, signal.SIGSEGV)
            master.wait_for_successor(port, old)
        with pytest.raises(ConnectionResetError):
            visitor.recv(1)
    pair.wait_links()
    with connect(port) as visitor:
        visitor.sendall(b"again")
        assert receive_exactly(visitor, 5) == b"again"
