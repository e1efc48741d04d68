"""Who takes more memory or descriptors than allowed is replaced, and it is said why."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from tests.support.ports import free_port
from tests.support.wait import wait_until
from tunneltcp.config.model import TunnelConfig
from tunneltcp.control.counters import COUNTERS_BYTES, Counter
from tunneltcp.master.budgets import Budgets, max_fds, max_rss
from tunneltcp.master.monitor import Monitor, Sample
from tunneltcp.master.process import Input, ProcessState
from tunneltcp.net.loop import Loop

BUDGET = 8 << 20


def tunnel(private=0, fds=0, state=ProcessState.RUNNING, **settings) -> Any:
    """What a tunnel says of itself, and what is done to it in ``said``."""
    counters = memoryview(bytearray(COUNTERS_BYTES)).cast("Q")
    counters[Counter.DESCRIPTORS] = fds
    said: list[object] = []
    sample = Sample(rss=private, private=private, cpu=0.0, status="sleeping")
    return SimpleNamespace(
        config=TunnelConfig(remote_port=1, **settings),
        life=SimpleNamespace(state=state),
        sampler=SimpleNamespace(sample=sample, look=lambda: said.append("looked")),
        counters=counters,
        said=said,
        blame=said.append,
        feed=said.append,
    )


def check(one: Any) -> Any:
    Budgets(lambda: BUDGET).check(one)
    return one.said


def test_without_settings_the_bounds_are_what_nobody_honest_needs():
    config = TunnelConfig(remote_port=1, max_visitors=1000)
    assert max_rss(config, BUDGET) == (64 << 20) + 1000 * (16 << 10) + 2 * BUDGET
    assert max_fds(config) == 2000 + 8192
    said = TunnelConfig(remote_port=1, max_rss_bytes=50_000_000, max_fds=64)
    assert (max_rss(said, BUDGET), max_fds(said)) == (50_000_000, 64)


def test_at_its_bounds_a_worker_is_left_alone():
    assert check(tunnel(60_000_000, 100, max_rss_bytes=60_000_000, max_fds=100)) == []


def test_too_much_memory():
    assert check(tunnel(61_500_000, max_rss_bytes=60_000_000)) == [
        "took more memory than its max_rss of 60 MB: 62 MB",
        Input.EXCEED,
    ]


def test_too_many_descriptors():
    assert check(tunnel(0, 101, max_fds=100)) == [
        "had more descriptors than its max_fds of 100: 101",
        Input.EXCEED,
    ]


@pytest.mark.parametrize("state", set(ProcessState) - {ProcessState.RUNNING})
def test_who_does_not_run_is_not_judged(state):
    assert check(tunnel(1 << 40, 1 << 20, state)) == []


def test_the_monitor_tells_of_each_worker_that_it_looked_at():
    now = 0.0
    loop = Loop(clock=lambda: now)
    many = [tunnel() for _ in range(7)]
    many[3].sampler = None
    told: Any = lambda one: one.said.append("told")  # noqa: E731
    monitor = Monitor(loop, many, told)
    for second in range(1, 5):
        now = second + 0.001
        loop.turn(wait=False)
    monitor.close()
    loop.close()
    assert [one.said for one in many] == [
        ["looked", "told"] * (0 if one.sampler is None else 2 if number == 0 else 1)
        for number, one in enumerate(many)
    ]


@pytest.mark.parametrize("kind", ["greedy", "leaky"])
def test_a_worker_over_its_budget_is_replaced_again_and_again_but_not_in_a_loop(
    start_master, kind
):
    memory = psutil.Process().memory_info()
    allowed = max(50_000_000, memory.rss - memory.shared + 60_000_000)
    settings: Any = {"max_rss_bytes": allowed, "max_fds": 100}
    one = TunnelConfig(remote_port=free_port(), name=kind, **settings)
    other = TunnelConfig(remote_port=free_port(), name="good", **settings)
    master = start_master(one, other)
    master.wait_ready()
    unharmed = master.tunnel(1)["pid"]
    wait_until(lambda: master.tunnel(0)["restarts"] >= 2, 15)
    last = master.tunnel(0)["last_exit"]
    assert last["signal"] == "SIGKILL"
    names = {"greedy": "max_rss", "leaky": "max_fds of 100"}
    assert names[kind] in last["reason"]
    assert f"worker died after {last['ran_seconds']:.3f} s: {last['reason']}" in master.log()
    assert master.tunnel(1)["pid"] == unharmed
    assert master.tunnel(1)["restarts"] == 0
