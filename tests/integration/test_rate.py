"""A bandwidth limit: both ways, shared by the visitors, changed without cutting them."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import orjson
import pytest

from tests.support.processes import TunnelPair
from tests.support.storm import pause
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.apps import Apps
    from tests.support.visitors import Load

pytestmark = pytest.mark.slow

RATE = 1_000_000
"""Bytes a second."""
MEASURED_SECONDS = 1.2
OVER = 1.15
"""Times the rate: what a twentieth of a second and the framing may add."""
UNDER = 0.6
"""On a machine that does other things besides."""
TRIES = 5
"""What waited while the machine stood still comes all at once; but not each time."""


@pytest.fixture
def pair(apps: Apps, tmp_path: Path) -> Iterator[TunnelPair]:
    with TunnelPair([apps.add("pattern")], tmp_path, common={"rate": "8 Mbit/s"}) as running:
        yield running


def speed(count: Callable[[], int]) -> float:
    """Bytes a second that move now."""
    begin, before = time.monotonic(), count()
    pause(MEASURED_SECONDS)
    return (count() - before) / (time.monotonic() - begin)


def kept(count: Callable[[], int]) -> bool:
    """Say whether what is counted moves at the rate."""
    return any(UNDER * RATE < speed(count) < OVER * RATE for _ in range(TRIES))


def test_it_holds_both_ways_is_shared_and_changes_for_who_is_there(
    pair: TunnelPair, load: Load
) -> None:
    for name, seed in (("one", 100), ("two", 200)):
        load.transfer(name, pair.port, seed=seed, down=-1)
    wait_until(lambda: all(load.stats(name).down > 300_000 for name in ("one", "two")), 10)
    shares = {name: -load.stats(name).down for name in ("one", "two")}

    assert kept(lambda: sum(load.stats(name).down for name in ("one", "two")))
    shares = {name: more + load.stats(name).down for name, more in shares.items()}
    assert 0.6 < shares["one"] / shares["two"] < 1.6, shares

    load.transfer("up", pair.port, seed=300, up=-1)

    def uploaded() -> int:
        return int(pair.client.tunnel(pair.port)["bytes_in"])

    wait_until(lambda: uploaded() > 300_000, 10)
    assert kept(uploaded)

    for master in (pair.server, pair.client):
        config = orjson.loads(master.config_path.read_bytes())
        master.config_path.write_bytes(orjson.dumps(config | {"rate": "80 Mbit/s"}))
        master.send(signal.SIGHUP)

    def faster() -> bool:
        before = [uploaded(), load.stats("one").down]
        pause(0.3)
        return all(
            now - then > 0.3 * 1.5 * RATE
            for now, then in zip((uploaded(), load.stats("one").down), before, strict=True)
        )

    wait_until(faster, 15, "both ways are faster than before")
    for name in ("one", "two", "up"):
        stats = load.stats(name)
        assert stats.running == 1, stats.errors
        load.end(name)
