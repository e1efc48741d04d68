"""What fifty tunnels cost, and that nothing grows."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.apps import Apps
from tests.support.processes import Master, TunnelPair
from tests.support.visitors import Load
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

TUNNELS = 50
WORKER_PSS_BYTES = 7_000_000
SIDE_PSS_BYTES = 350_000_000
"""Guards against growth, some way above what is measured (4.3 to 6.5 MB a worker). The goals
are 3 MB and 150 MB, and are not reached: docs/decisions/0006 and 0009 have the figures and
reasons."""
REST_SECONDS = 30.0


def pss(pid: int) -> int:
    """A process's share of memory, bytes."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no Pss line")


def descriptors(pid: int) -> int:
    """How many descriptors a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - numbers, not paths


def workers(master: Master) -> list[int]:
    return [tunnel["pid"] for tunnel in master.status()["tunnels"]]


def too_much(master: Master) -> dict[str, object]:
    """What is over the bounds on one side."""
    shares = {pid: pss(pid) for pid in workers(master)}
    total = sum(shares.values()) + pss(master.pid)
    over: dict[str, object] = {
        f"worker {pid}": f"{share / 1e6:.2f} MB"
        for pid, share in shares.items()
        if share > WORKER_PSS_BYTES
    }
    if total > SIDE_PSS_BYTES:
        over["all"] = f"{total / 1e6:.1f} MB"
    return over


@pytest.fixture(scope="module")
def apps() -> Iterator[Apps]:
    with Apps() as running:
        yield running


def test_fifty_tunnels_after_a_hundred_visitors_each(apps: Apps, tmp_path: Path) -> None:
    target = apps.add("pattern")
    with TunnelPair([target] * TUNNELS, tmp_path) as pair, Load() as load:
        for first in range(0, TUNNELS, 10):
            ports = pair.ports[first : first + 10]
            for port in ports:
                load.transfer(f"{port}", port, count=100, up=20_000, down=50_000)
            for port in ports:
                assert load.finish(f"{port}", 60).outcomes == {"ok": 100}

        for master in (pair.server, pair.client):
            wait_until(
                lambda master=master: not too_much(master),  # type: ignore[misc]
                REST_SECONDS,
                lambda master=master: f"{master} is within its bounds: {too_much(master)}",  # type: ignore[misc]
            )


def test_no_descriptor_more_after_a_thousand_visitors(apps: Apps, tmp_path: Path) -> None:
    target = apps.add("pattern")
    with TunnelPair([target], tmp_path) as pair, Load() as load:
        masters = (pair.server, pair.client)

        def counted() -> list[int]:
            return [descriptors(pid) for one in masters for pid in (one.pid, *workers(one))]

        load.transfer("first", pair.port, count=50, up=1000, down=1000)
        assert load.finish("first").outcomes == {"ok": 50}
        for master in masters:
            wait_until(lambda m=master: m.tunnel(pair.port)["visitors"] == 0, 10)  # type: ignore[misc]
        before = counted()
        for number in range(5):
            load.transfer("many", pair.port, count=200, up=1000, down=1000, seed=1000 * number)
            assert load.finish("many").outcomes == {"ok": 200}

        wait_until(lambda: counted() == before, 10, lambda: f"{before}, now {counted()}")
