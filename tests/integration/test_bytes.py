"""Every byte arrives once, in order, in its own stream: checked by position."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.support.wait import wait_until

if TYPE_CHECKING:
    from tests.integration.conftest import Tunnels
    from tests.support.processes import Json, Master
    from tests.support.visitors import GroupStats, Load


def test_one_visitor_moves_much_both_ways_at_once(tunnels: Tunnels, load: Load) -> None:
    size = 64 << 20
    load.transfer("much", tunnels.public["pattern"], up=size, down=size, flags="e", seed=10)
    stats = load.finish("much")

    assert stats.outcomes == {"ok": 1}, stats.errors


def test_300_visitors_at_once_each_get_their_own_bytes(tunnels: Tunnels, load: Load) -> None:
    load.transfer("many", tunnels.public["pattern"], count=300, up=200_000, down=300_000)
    stats = load.finish("many")

    assert stats.outcomes == {"ok": 300}, stats.errors


def test_visitors_of_all_sizes_come_and_go(tunnels: Tunnels, load: Load) -> None:
    port = tunnels.public["pattern"]
    sizes = (0, 1, 15, 16, 17, 4096, 65_535, 65_536, 65_537, 262_144, 262_145, 1_048_577)
    for number, size in enumerate(sizes):
        load.transfer(f"{size}", port, count=3, up=size, down=size, seed=1000 + 10 * number)
    for size in sizes:
        stats = load.finish(f"{size}")
        assert stats.outcomes == {"ok": 3}, (size, stats.errors)


def test_short_connections_one_after_the_other(tunnels: Tunnels, load: Load) -> None:
    port = tunnels.public["pattern"]
    load.transfer("short", port, count=8, up=100, down=100, repeat=True)
    wait_until(lambda: load.stats("short").started > 1000, 20)
    stats = load.end("short")

    assert stats.bad == 0, stats.errors


def test_small_questions_and_answers(tunnels: Tunnels, load: Load) -> None:
    load.probe("small", tunnels.public["echo"], count=20, size=1, rounds=200)
    stats = load.finish("small")

    assert stats.outcomes == {"ok": 20}, stats.errors


@pytest.mark.parametrize("name", ["ipv6", "only6"])
def test_a_target_on_ipv6(tunnels: Tunnels, load: Load, name: str) -> None:
    """``::1`` by name, and a ``localhost`` where the app listens on ``::1`` alone."""
    load.transfer("six", tunnels.public[name], count=5, up=100_000, down=100_000)
    stats = load.finish("six")

    assert stats.outcomes == {"ok": 5}, stats.errors


def test_visitors_on_ipv6(tunnels: Tunnels, load: Load) -> None:
    port = tunnels.public["pattern"]
    load.transfer("six", port, host="::1", count=5, up=100_000, down=100_000)
    stats = load.finish("six")

    assert stats.outcomes == {"ok": 5}, stats.errors


def test_what_moved_is_counted(tunnels: Tunnels, load: Load) -> None:
    """Bytes in: from visitors; bytes out: to visitors; on both sides the same."""
    port = tunnels.public["ipv6"]
    masters = (tunnels.pair.server, tunnels.pair.client)
    before = [wait_until(AtRest(master, port), 10) for master in masters]
    load.transfer("counted", port, count=4, up=300_000, down=500_000)
    stats = load.finish("counted")

    for master, then in zip(masters, before, strict=True):
        wait_until(partial(moved, master, port, then, stats), 10, f"{master} counts")


class AtRest:
    """Whether a tunnel has counted nothing more for 1.5 s; it tells twice a second."""

    def __init__(self, master: Master, port: int) -> None:
        self._master, self._port = master, port
        self._last: Json = {}
        self._since = 0.0

    def __call__(self) -> Json:
        now = self._master.tunnel(self._port)
        what = ("visitors", "visitors_total", "bytes_in", "bytes_out")
        if any(now[key] != self._last.get(key) for key in what):
            self._last, self._since = now, time.monotonic()
        return now if time.monotonic() - self._since > 1.5 else {}


def moved(master: Master, port: int, before: Json, stats: GroupStats) -> bool:
    """Say whether a tunnel has counted four visitors and all of their bytes."""
    now = master.tunnel(port)
    assert now["visitors"] == 0, now
    assert now["visitors_total"] - before["visitors_total"] == 4, now
    assert now["bytes_in"] - before["bytes_in"] == stats.up, now
    assert now["bytes_out"] - before["bytes_out"] == stats.down, now
    return True
