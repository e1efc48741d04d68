"""A worker dies under load: nobody of another tunnel notices; its own see test_crash.py."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.apps import Apps
from tests.support.ports import free_port
from tests.support.processes import Master, TunnelPair, alive
from tests.support.sockets import seconds_until_echo
from tests.support.visitors import Load
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIDES = ["server", "client"]


@pytest.fixture(scope="module")
def load() -> Iterator[Load]:
    with Load() as running:
        yield running


@pytest.fixture(scope="module")
def _module_pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TunnelPair]:
    folder = tmp_path_factory.mktemp("workers")
    with Apps() as apps:
        targets = [apps.add("echo"), apps.add("echo"), apps.add("pattern"), apps.add("pattern")]
        with TunnelPair(targets, folder, common={"hold": 20}) as pair:
            yield pair


@pytest.fixture
def pair(_module_pair: TunnelPair) -> TunnelPair:
    """Tunnels to two ``echo`` and two ``pattern`` apps, all up."""
    _module_pair.wait_links()
    return _module_pair


def master_of(pair: TunnelPair, side: str) -> Master:
    return pair.server if side == "server" else pair.client


@pytest.mark.parametrize("side", SIDES)
def test_a_killed_worker_is_one_tunnels_trouble(
    pair: TunnelPair, load: Load, side: str
) -> None:
    """All tunnels carry load; one worker is killed, three times."""
    master = master_of(pair, side)
    port, echo, pattern = pair.ports[0], pair.ports[1], pair.ports[2]
    load.probe("second", echo, count=4, size=4096)
    load.transfer("third", pattern, count=2, up=-1, down=-1, seed=100)
    load.probe("killed", port, count=4, size=4096, repeat=True, pause=0.01, seed=200)
    load.probe("newcomers", port, count=2, rounds=1, repeat=True, pause=0.005, seed=300)
    gaps: dict[str, list[float]] = {"second": [], "third": []}
    try:
        for _ in range(3):
            wait_until(lambda: load.stats("third").down > 5_000_000)
            for name in gaps:
                load.mark(name)
            restarts = master.tunnel(port)["restarts"]
            old = master.kill_worker(port)
            killed = time.monotonic()
            rounds = load.stats("newcomers").rounds
            wait_until(lambda rounds=rounds: load.stats("newcomers").rounds > rounds, 10)  # type: ignore[misc]
            assert time.monotonic() - killed < 5
            new = master.wait_for_successor(port, old)
            assert new != old
            assert not alive(old)
            tunnel = master.tunnel(port)
            assert tunnel["restarts"] == restarts + 1
            assert tunnel["last_exit"]["signal"] == "SIGKILL"
            pair.wait_links()
            for name, found in gaps.items():
                down = load.stats(name).down
                wait_until(lambda name=name, down=down: load.stats(name).down > down)  # type: ignore[misc]
                found.append(load.stats(name).max_gap)
    finally:
        stats = {name: load.end(name) for name in ("second", "third", "killed", "newcomers")}

    for name in ("second", "third"):
        assert stats[name].bad == 0, (name, stats[name].errors)
        assert min(gaps[name]) < 1, (name, gaps[name])
    for name in ("killed", "newcomers"):
        assert set(stats[name].outcomes) <= {"ok"}, (name, stats[name].errors)


@pytest.mark.parametrize("side", SIDES)
def test_the_successor_serves_at_once(pair: TunnelPair, side: str) -> None:
    """A worker that had lived for a while: visitors wait no longer than for a short pause."""
    times: list[float] = []
    while len(times) < 2 or (min(times) >= 1 and len(times) < 6):
        port = pair.ports[len(times) % 2]
        master_of(pair, side).kill_worker(port)
        times.append(seconds_until_echo(port, tries=True))
        pair.wait_links()

    assert min(times) < 1, times
    assert max(times) < 5, times


@pytest.mark.parametrize("side", SIDES)
def test_who_comes_just_as_a_worker_dies_is_served_by_the_next(
    pair: TunnelPair, side: str
) -> None:
    """Nobody has taken this visitor yet, so its connection has nothing to lose."""
    for port in pair.ports[:2]:
        old = master_of(pair, side).kill_worker(port)
        seconds_until_echo(port)
        master_of(pair, side).wait_for_successor(port, old)
        pair.wait_links(5)


@pytest.mark.parametrize("side", SIDES)
def test_a_worker_that_is_told_to_go_is_replaced(pair: TunnelPair, side: str) -> None:
    """TERM to a worker means "replace me"."""
    master = master_of(pair, side)
    port = pair.ports[1]
    old = master.kill_worker(port, signal.SIGTERM)
    master.wait_for_successor(port, old)
    seconds_until_echo(port)
    pair.wait_links(5)

    assert master.process.poll() is None


@pytest.mark.parametrize("side", SIDES)
def test_a_worker_ignores_signals_meant_for_its_group(
    pair: TunnelPair, load: Load, side: str
) -> None:
    master = master_of(pair, side)
    port = pair.ports[1]
    load.probe("running", port, count=2)
    wait_until(lambda: load.stats("running").rounds > 10)
    pid = master.worker_pid(port)
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        os.kill(pid, number)
    rounds = load.stats("running").rounds
    wait_until(lambda: load.stats("running").rounds > rounds + 100)
    stats = load.end("running")

    assert stats.bad == 0, stats.errors
    assert master.worker_pid(port) == pid


def test_a_port_that_is_busy_is_a_state_of_its_tunnel(pair: TunnelPair, tmp_path: Path) -> None:
    """A second server wants one of our ports: it says so, and serves the rest."""
    free = free_port()
    config = [{"remote_port": pair.port}, {"remote_port": free}]
    with Master("server", config, tmp_path) as second:
        wait_until(lambda: second.tunnel(free)["state"] == "running", 5)
        tunnel = second.tunnel(pair.port)
        assert tunnel["state"] == "backoff"
        assert "use" in tunnel["reason"] or "busy" in tunnel["reason"], tunnel["reason"]
    seconds_until_echo(pair.port)
