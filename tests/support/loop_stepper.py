"""Real loops, one turn at a time, in the test's own thread.

Theory of operation
-------------------
Everything of a test lives in one thread: the loops under test, and the far ends that the
test plays (*pumps*: called once in each round). A round calls every pump and turns every
loop once, and none of them waits, so a condition is met after as many rounds as it needs
and no test sleeps. With a :class:`~tests.support.fake_clock.FakeClock` the loops' time
stands still between :meth:`LoopStepper.pass_time` calls; only the deadline of
:meth:`LoopStepper.until` is real.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tests.support.fake_clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunneltcp.net.loop import Loop

__all__ = ["LoopStepper", "spins"]

_SETTLE_ROUNDS = 12
"""Loopback delivers within the system call; this many rounds see through any exchange."""


def _nothing() -> None:
    """What a timer calls that only ends a turn."""


def spins(loop: Loop, seconds: float = 0.02) -> bool:
    """Turn the loop for so many real seconds; say whether it did so without ever waiting.

    A loop that waits does so for a millisecond at least, also where its clock stands still
    just before a timer; one that spins takes a turn in some ten microseconds. Where the
    machine stood still meanwhile even that one has few turns: then it is watched once more.
    """
    return any(_spins_now(loop, seconds) for _ in range(3))


def _spins_now(loop: Loop, seconds: float) -> bool:
    end = time.monotonic() + seconds
    turns = 0
    while time.monotonic() < end:
        loop.call_later(seconds, _nothing)
        loop.turn()
        turns += 1
    return turns > 3 * seconds / 0.001


class LoopStepper:
    """Turns several loops until something is so, or a deadline has passed."""

    def __init__(self, clock: FakeClock | None = None) -> None:
        self.clock = FakeClock() if clock is None else clock
        self.loops: list[Loop] = []
        self.pumps: list[Callable[[], object]] = []

    def turn(self) -> None:
        """One round: each pump once, each loop once; nothing waits."""
        for pump in list(self.pumps):
            pump()
        for loop in list(self.loops):
            loop.turn(wait=False)

    def until(
        self,
        condition: Callable[[], object],
        what: str | Callable[[], object] = "",
        seconds: float = 5.0,
    ) -> None:
        """Turn until ``condition()`` is true.

        Raises:
            AssertionError: If it is not within so many real seconds.
        """
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                said = what() if callable(what) else what
                raise AssertionError(f"not within {seconds:g} s: {said or condition}")
            self.turn()

    def settle(self, rounds: int = _SETTLE_ROUNDS) -> None:
        """Turn until whatever was begun has come to rest, without letting time pass."""
        for _ in range(rounds):
            self.turn()

    def pass_time(self, seconds: float, step: float = 0.05) -> None:
        """Let the loops' clock run, and turn twice at each of its steps.

        What was begun before is seen through first: it happened before the time passed.
        """
        self.settle(4)
        end = self.clock() + seconds
        while (left := end - self.clock()) > 1e-9:
            self.clock.advance(min(step, left))
            self.turn()
            self.turn()
