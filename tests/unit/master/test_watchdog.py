"""The watchdog's patience, in its own turns."""

from __future__ import annotations

import signal
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.fake_clock import FakeClock
from tunneltcp.control.counters import COUNTERS_BYTES, Counter
from tunneltcp.master.children import Children
from tunneltcp.master.process import ProcessState
from tunneltcp.master.watchdog import HANG_SECONDS, HUNG, STACK_SECONDS, TURN_SECONDS, Watchdog
from tunneltcp.net.loop import BEAT_SECONDS, Loop


class Recorded(Children):
    """Children of whom it is only noted what was sent to them."""

    def __init__(self, loop: Loop, kills: list[tuple[int, int]]) -> None:
        super().__init__(loop)
        self._kills = kills

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        self._kills.append((pid, number))


class World:
    """A master's loop with some workers, who beat when told."""

    def __init__(self, workers: int) -> None:
        self.clock = FakeClock()
        self.loop = Loop(clock=self.clock)
        self.kills: list[tuple[int, int]] = []
        self.blamed: list[tuple[int, str]] = []
        self.tunnels = [self._tunnel(pid) for pid in range(1, workers + 1)]
        children = Recorded(self.loop, self.kills)
        self.dog = Watchdog(
            self.loop, children, self.tunnels, clock=lambda: int(self.clock.now * 1e9)
        )

    def _tunnel(self, pid: int) -> Any:
        return SimpleNamespace(
            pid=pid,
            life=SimpleNamespace(state=ProcessState.RUNNING),
            counters=memoryview(bytearray(COUNTERS_BYTES)).cast("Q"),
            blame=lambda reason: self.blamed.append((pid, reason)),
        )

    def beat(self, *pids: int) -> None:
        """Say that these will turn again within 0.5 s."""
        for pid in pids:
            counters = self.tunnels[pid - 1].counters
            counters[Counter.BEAT_NS] = int((self.clock.now + 0.5) * 1e9)

    def pass_time(self, seconds: float, *beating: int) -> None:
        """Let the master turn on time."""
        end = self.clock.now + seconds - 1e-6
        while self.clock.now < end:
            self.clock.advance(TURN_SECONDS)
            self.beat(*beating)
            self.loop.turn(wait=False)


@pytest.fixture
def world():
    made = World(3)
    made.beat(1, 2, 3)
    yield made
    made.dog.close()
    made.loop.close()


def test_who_beats_is_left_alone(world):
    world.pass_time(60, 1, 2, 3)
    assert world.kills == []


def test_one_that_hangs_gets_a_moment_for_its_stack_and_is_ended(world):
    world.pass_time(0.5 + HANG_SECONDS, 1, 3)
    assert world.kills == []
    world.pass_time(2 * TURN_SECONDS, 1, 3)
    assert world.kills == [(2, signal.SIGABRT), (2, signal.SIGCONT)]
    assert world.blamed == [(2, HUNG)]
    world.pass_time(STACK_SECONDS, 1, 3)
    assert world.kills[2] == (2, signal.SIGKILL)


def test_a_beat_at_the_last_moment_forgives_all(world):
    for _ in range(3):
        world.pass_time(0.5 + HANG_SECONDS, 1, 3)
        world.beat(2)
        world.loop.turn(wait=False)
    assert world.kills == []


@pytest.mark.parametrize("looks", [1, 2, 7])
def test_one_that_turns_slowly_is_left_alone(world, looks):
    """On a starved machine: late at every look, and yet it turns."""
    for _ in range(40):
        promised = world.clock.now + BEAT_SECONDS
        world.tunnels[1].counters[Counter.BEAT_NS] = int(promised * 1e9)
        world.pass_time(looks * TURN_SECONDS, 1, 3)
    assert world.kills == []


def test_one_at_a_time(world):
    world.pass_time(1 + HANG_SECONDS, 3)
    assert world.kills == [(1, signal.SIGABRT), (1, signal.SIGCONT)]
    world.tunnels[0].pid = None
    world.pass_time(3 * TURN_SECONDS, 3)
    assert (2, signal.SIGABRT) in world.kills
    assert world.kills.index((1, signal.SIGKILL)) < world.kills.index((2, signal.SIGABRT))


@pytest.mark.parametrize("seconds", [10, 86_400])
def test_a_machine_that_slept_ends_nobody(world, seconds):
    """However long: its time counts as one turn, and workers beat again before the next few."""
    for _ in range(5):
        world.clock.advance(seconds)
        world.loop.turn(wait=False)
        world.pass_time(1, 1, 2, 3)
    assert world.kills == []


@pytest.mark.parametrize(
    ("state", "ends"),
    [(state, state in (ProcessState.RUNNING, ProcessState.STOPPING)) for state in ProcessState],
)
def test_only_who_has_said_ready_is_judged_by_its_beats(world, state, ends):
    world.tunnels[1].life.state = state
    world.pass_time(2 + HANG_SECONDS, 1, 3)
    assert bool(world.kills) is ends


def test_a_successor_does_not_inherit_its_patience(world):
    world.pass_time(0.5 + HANG_SECONDS, 1, 3)
    world.tunnels[1].pid = 7
    world.pass_time(HANG_SECONDS - TURN_SECONDS, 1, 3)
    assert world.kills == []


def test_a_closed_one_looks_no_more(world):
    world.dog.close()
    world.pass_time(10)
    assert world.kills == []
