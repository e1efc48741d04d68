"""Fifty busy streams and a link that is lost again and again, each time in another way."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.apps import Apps
from tests.support.processes import TunnelPair
from tests.support.require import is_long
from tests.support.visitors import Load
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.chaos import Chaos

CUTS = 200 if is_long() else 25
STREAMS = 50
RATE = 40_000_000
"""Bytes a second each way: they are busy all the time, and leave the machine some."""
BUDGET_BYTES = 64 << 20
"""Of the rings, by default: as much a worker may always have."""
GROWTH_BYTES = 24 << 20
"""Of a worker's private memory while it is cut: its rings are full at one look and empty at
another. A leak of one window for each stream and cut would be a gigabyte."""

WAYS = ["reset", "close", "bytes up", "bytes down", "both ends", "slices", "stall", "half-open"]
WEIGHTS = [6, 4, 6, 6, 3, 3, 1, 1]
"""The last two cost three seconds of silence each."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60 if CUTS <= 30 else 900)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TunnelPair]:
    with Apps() as apps:
        folder = tmp_path_factory.mktemp("flaps")
        with TunnelPair([apps.add("pattern")], folder, chaos=True) as running:
            yield running


@pytest.fixture(scope="module")
def load() -> Iterator[Load]:
    with Load() as running:
        yield running


def lose(relay: Chaos, how: str, chance: random.Random) -> None:
    """Begin what ends the link."""
    size = chance.choice([1, 17, 60, 300, 5000, 300_000, 2_000_000])
    if how == "reset":
        relay.reset()
    elif how == "close":
        relay.close()
    elif how == "bytes up":
        relay.cut_after(size, "up", chance.choice(["reset", "close"]), "existing")
    elif how == "bytes down":
        relay.cut_after(size, "down", chance.choice(["reset", "close"]), "existing")
    elif how == "both ends":  # the next one is cut too, in SYNC and STATE or a little later
        relay.cut_after(chance.choice([5000, 6000, 8000, 12_000, 50_000]), "both", scope="new")
        relay.reset()
    elif how == "slices":
        relay.slice(chance.choice([1, 7, 100]), scope="new")
        relay.reset()
    elif how == "stall":
        relay.stall(chance.choice(["up", "down"]), "existing")
    else:
        relay.silence("existing")


def pause(seconds: float) -> None:
    """Let bytes flow."""
    begin = time.monotonic()
    wait_until(lambda: time.monotonic() - begin >= seconds, 5)


def private_bytes(pid: int) -> int:
    fields = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in fields if line.startswith("Private_"))


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - numbers, not paths


def test_fifty_busy_streams(pair: TunnelPair, load: Load) -> None:
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    relay = pair.relay
    workers = [master.worker_pid(pair.port) for master in (pair.server, pair.client)]
    idle = [descriptors(pid) for pid in workers]
    load.transfer("busy", pair.port, count=STREAMS, seed=seed, up=-1, down=-1)
    wait_until(lambda: load.stats("busy").connected == STREAMS, 10)
    most: list[list[int]] = []
    for number in range(CUTS):
        links = pair.client.tunnel(pair.port)["links_total"]
        how = chance.choices(WAYS, WEIGHTS)[0]
        said = f"seed {seed}, cut {number}, {how}"
        lose(relay, how, chance)
        wait_until(
            lambda links=links: pair.client.tunnel(pair.port)["links_total"] > links,  # type: ignore[misc]
            40,
            f"another link: {said}",
        )
        relay.heal()
        relay.rate(RATE, "both")
        pause(chance.choice([0.0, 0.1, 0.5]))
        most.append([private_bytes(pid) for pid in workers])
        stats = load.stats("busy")
        assert stats.bad == 0, f"{said}: {stats.errors}"
    relay.heal()
    moved = load.stats("busy").down
    load.mark("busy")
    wait_until(lambda: load.stats("busy").down > moved + 20_000_000, 20, f"seed {seed}")
    stats = load.end("busy")

    assert stats.bad == 0, f"seed {seed}: {stats.errors}"
    # In pieces, and with an end: what a visitor counts the app has counted too.
    load.transfer("whole", pair.port, count=STREAMS, seed=seed, up=300_000, down=300_000)
    relay.reset()
    assert load.finish("whole").outcomes == {"ok": STREAMS}, f"seed {seed}"
    quarter = max(1, CUTS // 4)
    for worker in range(2):
        before = max(one[worker] for one in most[:quarter])
        after = max(one[worker] for one in most[-quarter:])
        assert after < max(before, BUDGET_BYTES) + GROWTH_BYTES, f"{before} bytes, then {after}"
    wait_until(lambda: [descriptors(pid) for pid in workers] == idle, 10, "descriptors go back")
    assert [master.worker_pid(pair.port) for master in (pair.server, pair.client)] == workers
