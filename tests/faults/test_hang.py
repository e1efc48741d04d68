"""A worker that hangs is ended, says where it was, and its successor goes on."""

from __future__ import annotations

import os
import re
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.apps import Apps
from tests.support.instants import LOOP, MODULE, Instant, arm, is_armed
from tests.support.processes import Master, TunnelPair
from tests.support.require import is_long
from tests.support.visitors import Load
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

SUSPENDED_SECONDS = 60.0 if is_long() else 5.0


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TunnelPair]:
    with Apps() as apps:
        targets = [apps.add("pattern"), apps.add("echo")]
        folder = tmp_path_factory.mktemp("hang")
        with TunnelPair(targets, folder, module=MODULE) as running:
            for master in (running.server, running.client):
                master.allowed += ["Fatal Python error: Aborted"]
            yield running


def hang(master: Master, port: int, how: str) -> int:
    """Have a worker hang; return its pid."""
    if how == "stopped":
        return master.kill_worker(port, signal.SIGSTOP)
    arm(master, port, Instant.behind("protocol.stream:Stream.fill", "receive_into", LOOP, 30))
    master.restart_worker(port)
    wait_until(lambda: not is_armed(master, port))
    return master.worker_pid(port)


@pytest.mark.parametrize(("side", "how"), [("server", "stopped"), ("client", "loops for ever")])
def test_a_worker_that_hangs_is_replaced_and_its_streams_go_on(
    pair: TunnelPair, side: str, how: str
) -> None:
    master: Master = getattr(pair, side)
    pair.wait_links()
    with Load() as load:
        load.transfer("busy", pair.port, count=4, up=-1, down=-1, seed=5)
        load.probe("other", pair.ports[1], count=2)
        wait_until(lambda: load.stats("busy").down > 1_000_000)
        began = time.monotonic()
        old = hang(master, pair.port, how)
        master.wait_for_successor(pair.port, old)
        assert time.monotonic() - began > 2
        down = load.stats("busy").down
        wait_until(lambda: load.stats("busy").down > down + 1_000_000, 15)
        for name in ("busy", "other"):
            stats = load.end(name)
            assert stats.bad == 0, (name, stats.errors)
    assert "hung" in master.tunnel(pair.port)["last_exit"]["reason"]
    log = master.log_text(f"tunnel-{pair.port}.log")
    assert "Fatal Python error: Aborted" in log
    where = "in turn" if how == "stopped" else "in fill"
    assert where in log, "the stack says where it was"
    stood = re.findall(r"they stood still for ([\d.]+) s", master.log_text())
    assert float(stood[-1]) > 2, "nobody is served by one that hangs"


@pytest.mark.timeout(SUSPENDED_SECONDS + 60)
def test_a_machine_that_was_suspended_ends_nobody(pair: TunnelPair) -> None:
    """All are stopped for longer than a worker may hang, and go on."""
    pair.wait_links()
    masters = (pair.server, pair.client)
    workers = [master.worker_pid(port) for master in masters for port in pair.ports]
    everybody = [*workers, *(master.pid for master in masters)]
    for pid in everybody:
        os.kill(pid, signal.SIGSTOP)
    end = time.monotonic() + SUSPENDED_SECONDS
    wait_until(lambda: time.monotonic() >= end)
    for pid in reversed(everybody):  # masters first
        os.kill(pid, signal.SIGCONT)
    end = time.monotonic() + 1.5
    wait_until(lambda: time.monotonic() >= end)
    assert [m.worker_pid(port) for m in masters for port in pair.ports] == workers
