"""Keepers as their master sees them: who has one, who is asked, when the past is forgotten."""

from __future__ import annotations

import os
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from loguru import logger

from tests.support.fake_master import _context
from tests.support.leaks import Snapshot
from tunneltcp.control.context import Role
from tunneltcp.control.counters import COUNTERS_BYTES, Counter
from tunneltcp.master import keepers as module
from tunneltcp.master.keepers import Keepers
from tunneltcp.master.report import describe_exit

SEGV, KILL = 11, 9


class Children:
    """Processes that nobody has: they end when the test says so."""

    def __init__(self):
        self.known: dict[int, Any] = {}
        self.killed: list[int] = []

    def __contains__(self, pid):
        return pid in self.known

    def watch(self, pid, on_exit):
        self.known[pid] = on_exit

    def kill(self, pid):
        self.killed.append(pid)

    def end(self, pid):
        self.known.pop(pid)(0)


class Bench:
    """One tunnel's keepers, and what they did."""

    def __init__(self):
        self.children = Children()
        self.lost = 0
        self.keepers: Any = Keepers(self.children, self._lose)  # type: ignore[arg-type]
        self.counters = memoryview(bytearray(COUNTERS_BYTES)).cast("Q")
        self.context = replace(_context(Role.SERVER, 60001), crash_safe=True)
        self.pid = 100

    def _lose(self):
        self.lost += 1

    def worker(self, *, keeper=True):
        """Fork one, and have it say that it has a keeper; return what it is born with."""
        context = self.keepers.equip(self.context)
        self.keepers.forked()
        if keeper:
            self.pid += 1
            self.keepers.made(self.pid)
        return context

    def dies(self, number=KILL, ran_seconds=1.0):
        how = describe_exit(number, ran_seconds, "")
        self.keepers.worker_gone(how, self.counters, 5.0)


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.setattr(module, "os", SimpleNamespace(
        close=os.close, waitid=lambda *_: None, P_PID=0, WEXITED=0, WNOHANG=0, WNOWAIT=0,
    ))  # fmt: skip
    made = Bench()
    yield made
    made.keepers.end()


@pytest.fixture
def said():
    lines: list[str] = []
    number = logger.add(lambda message: lines.append(str(message).strip()), format="{message}")
    yield lines
    logger.remove(number)


def is_open(fd):
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_a_tunnel_is_crash_safe_as_soon_as_its_worker_says_so(bench):
    context = bench.worker(keeper=False)
    assert context.keeper_fd >= 0
    assert not is_open(context.keeper_fd), "the worker's end is the worker's alone"
    assert context.old_keeper_fds == ()
    assert not bench.keepers.is_kept
    bench.keepers.made(77)
    assert bench.keepers.is_kept


def test_one_that_dies_is_asked_for_again(bench):
    bench.worker()
    bench.children.end(bench.pid)
    assert (bench.keepers.is_kept, bench.lost) == (False, 1)
    bench.keepers.made(0)
    assert not bench.keepers.is_kept, "it could not make one"
    bench.keepers.made(bench.pid + 1)
    assert (bench.keepers.is_kept, bench.lost) == (True, 1)


@pytest.mark.parametrize("pid", [0, -1, 5])
def test_a_pid_that_cannot_be_is_not_believed(bench, pid):
    bench.children.known[5] = None
    bench.worker(keeper=False)
    bench.keepers.made(pid)
    assert not bench.keepers.is_kept


def test_one_that_died_as_it_was_born_is_asked_for_once(bench, monkeypatch):
    def gone(*_):
        raise ChildProcessError

    bench.worker(keeper=False)
    monkeypatch.setattr(vars(module)["os"], "waitid", gone)
    bench.keepers.made(77)
    bench.keepers.made(78)
    assert (bench.keepers.is_kept, bench.lost) == (False, 1)


def test_one_that_hung_stood_still_since_it_was_to_beat(bench):
    bench.worker()
    bench.counters[Counter.BEAT_NS] = 3_000_000_000
    bench.dies()
    assert bench.worker().died_at == 3.0
    bench.keepers.drop_old()
    bench.counters[Counter.BEAT_NS] = 7_000_000_000
    bench.dies()
    assert bench.worker().died_at == 5.0, "it died before that"


def test_a_successor_asks_the_keepers_of_all_before_it(bench):
    bench.worker()
    bench.dies()
    assert not bench.keepers.is_kept
    first = bench.worker()
    assert len(first.old_keeper_fds) == 1
    assert first.died_at == 5.0
    bench.dies()
    second = bench.worker()
    assert second.old_keeper_fds[:1] == first.old_keeper_fds
    assert len(second.old_keeper_fds) == 2
    bench.keepers.drop_old()
    assert sorted(bench.children.killed) == [101, 102]
    assert bench.keepers.is_kept, "its own is none of those"
    assert bench.worker().old_keeper_fds == ()


def test_their_number_is_bounded_and_the_oldest_stay(bench):
    contexts = []
    for _ in range(8):
        contexts.append(bench.worker())
        bench.dies()
    context = bench.worker()
    assert context.old_keeper_fds == contexts[4].old_keeper_fds
    assert len(context.old_keeper_fds) == 4
    assert bench.children.killed == [105, 106, 107, 108]


def test_an_old_one_that_dies_is_not_asked(bench):
    bench.worker()
    bench.dies()
    bench.children.end(bench.pid)
    assert bench.worker().old_keeper_fds == ()
    assert bench.lost == 0


def test_after_a_fork_that_failed_nothing_is_left_over(bench):
    bench.worker()
    bench.dies()
    before = Snapshot.take()
    context = bench.keepers.equip(bench.context)
    bench.keepers.forked(failed=True)
    assert not before.new_descriptors()
    assert bench.worker().old_keeper_fds == context.old_keeper_fds


def test_without_crash_safe_there_is_none(bench):
    bench.worker()
    bench.dies()
    bench.context = replace(bench.context, crash_safe=False)
    context = bench.worker(keeper=False)
    assert (context.keeper_fd, context.old_keeper_fds) == (-1, ())
    assert bench.children.killed == [101]


def crashes(bench, numbers):
    """Let one worker die after the other; return what each successor was told."""
    told = []
    for number in numbers:
        bench.dies(number)
        context = bench.worker()
        told.append((context.crashed, context.forgets))
    return told


def test_six_crashes_without_a_byte_moved_and_the_next_begins_with_nothing(bench, said):
    bench.worker()
    assert crashes(bench, [SEGV] * 6) == [(True, False)] * 5 + [(True, True)]
    assert said == ["6 crashes in a row without a byte moved: its visitors are reset"]
    assert bench.worker().old_keeper_fds == ()
    assert crashes(bench, [SEGV] * 5) == [(True, False)] * 5


@pytest.mark.parametrize("between", ["kill", "byte", "poison", "time"])
def test_what_is_no_crash_loop_is_not_counted_as_one(bench, between):
    bench.worker()
    crashes(bench, [SEGV] * 5)
    if between == "kill":
        assert crashes(bench, [KILL]) == [(False, False)]
    elif between == "byte":
        bench.counters[Counter.BYTES_OUT] += 1
        assert crashes(bench, [SEGV]) == [(True, False)]
    elif between == "time":
        bench.dies(SEGV, ran_seconds=61.0)
        assert not bench.worker().forgets
    else:
        bench.keepers.found_poison()
        assert crashes(bench, [SEGV]) == [(True, False)]
    assert crashes(bench, [SEGV] * 4) == [(True, False)] * 4
