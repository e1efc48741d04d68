from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.apps import Apps, refused_port
from tests.support.chaos import Chaos
from tests.support.least import least
from tests.support.pattern import pattern
from tests.support.sockets import accept, listener, reset
from tests.support.visitors import Load
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def apps() -> Iterator[Apps]:
    with Apps() as running:
        yield running


@pytest.fixture
def load() -> Iterator[Load]:
    with Load() as running:
        yield running


@pytest.mark.parametrize("flags", ["", "e", "r", "f"])
def test_transfers_end_well(apps: Apps, load: Load, flags: str) -> None:
    load.transfer("a", apps.add("pattern"), count=20, up=100_000, down=200_000, flags=flags)
    stats = load.finish("a")

    assert stats.outcomes == {"ok": 20}
    assert stats.connected == stats.started == 20
    assert stats.down >= 4_000_000


def test_probes_count_their_rounds(apps: Apps, load: Load) -> None:
    load.probe("a", apps.add("echo"), count=3, size=1000, rounds=10)
    stats = load.finish("a")

    assert stats.outcomes == {"ok": 3}
    assert stats.rounds == 30


def test_endless_load_runs_until_it_is_ended(apps: Apps, load: Load) -> None:
    load.transfer("a", apps.add("pattern"), up=-1, down=-1)
    load.probe("b", apps.add("echo"), repeat=True, rounds=1)
    wait_until(lambda: load.stats("a").down > 10_000_000 and load.stats("a").up > 10_000_000)
    wait_until(lambda: load.stats("b").outcomes.get("ok", 0) > 20)

    assert load.end("a").outcomes == {}
    assert load.end("b").bad == 0


def test_refused_reset_short_and_wrong_are_told_apart(load: Load) -> None:
    with refused_port() as port:
        load.transfer("refused", port, down=10)
        assert load.finish("refused").outcomes == {"refused": 1}
    with listener() as target:
        port = target.getsockname()[1]
        load.transfer("reset", port, down=10, seed=1)
        reset(accept(target))
        assert load.finish("reset").outcomes == {"reset": 1}

        for name, answer in {
            "short": pattern(1, 0, 9),
            "wrong": pattern(1, 0, 9) + b"x" + b"OK 0\n",
            "ok": pattern(1, 0, 10) + b"OK 0\n",
        }.items():
            load.transfer(name, port, down=10, seed=0)
            with accept(target) as far:
                far.recv(100)
                far.sendall(answer)
                far.shutdown(socket.SHUT_WR)
                stats = load.finish(name)
            assert stats.outcomes == {name: 1}, stats


@pytest.mark.slow
def test_a_stall_shows_as_a_gap(apps: Apps, load: Load) -> None:
    with Chaos(("127.0.0.1", 0), ("127.0.0.1", apps.add("echo"))) as chaos:
        load.probe("a", chaos.address[1])
        wait_until(lambda: load.stats("a").rounds > 100)

        def gap() -> float:
            load.mark("a")
            return load.stats("a").max_gap

        assert least(gap, 0.2) < 0.2
        begin = time.monotonic()
        load.mark("a")
        chaos.silence()
        wait_until(lambda: load.stats("a").max_gap > 0.3)
        chaos.heal()
        before = load.stats("a").rounds
        wait_until(lambda: load.stats("a").rounds > before)
        assert load.stats("a").max_gap <= time.monotonic() - begin
        assert load.end("a").bad == 0


def test_a_reset_is_the_only_good_end_of_the_torn(apps: Apps, load: Load) -> None:
    load.torn("a", apps.add("resetting"), count=3, seed=1, down=50_000)
    wait_until(lambda: load.stats("a").outcomes.get("ok", 0) > 5)
    assert load.end("a").bad == 0
    with listener() as target:
        load.torn("b", target.getsockname()[1], count=1, seed=1, down=50_000)
        with accept(target) as sock:
            sock.recv(100)
            sock.sendall(pattern(1, 0, 1000))
    wait_until(lambda: load.stats("b").bad)
    assert load.end("b").outcomes == {"short": 1}


def test_the_hasty_reset_what_they_began(apps: Apps, load: Load) -> None:
    port = apps.add("pattern")
    load.hasty("a", port, count=3, seed=1, up=50_000)
    wait_until(lambda: load.stats("a").outcomes.get("ok", 0) > 5)
    assert load.end("a").bad == 0
    assert set(apps.stats(port).ends) == {"reset"}


def test_gaps_are_told_once(load: Load) -> None:
    with listener() as target:
        load.probe("a", target.getsockname()[1], count=1, size=10)
        with accept(target) as sock:
            assert sock.recv(10) == pattern(1, 0, 10)
            wait_until(lambda: load.stats("a").max_gap > 0.2)
            answered = time.monotonic()
            sock.sendall(pattern(1, 0, 10))
            assert sock.recv(10) == pattern(1, 10, 10)
            (first,) = load.gaps("a")
            assert first[0] > 0.2
            assert first[1] <= time.monotonic() - answered
            (second,) = load.gaps("a")
            assert second[0] <= time.monotonic() - answered


def test_any_app_is_what_its_visitor_wants(apps: Apps, load: Load) -> None:
    port = apps.add("any")
    load.transfer("a", port, count=3, up=300_000, down=200_000, app="pattern")
    load.probe("b", port, count=3, size=1000, rounds=5, app="echo")
    load.torn("c", port, count=1, seed=1, down=5000, app="resetting")
    assert load.finish("a").outcomes == {"ok": 3}
    assert load.finish("b").outcomes == {"ok": 3}
    wait_until(lambda: load.stats("c").outcomes.get("ok", 0) > 2)
    assert load.end("c").bad == 0
