"""Time that moves when told."""

from __future__ import annotations

__all__ = ["FakeClock"]


class FakeClock:
    """A clock for what takes one as an argument; stands still until it is told to go on.

    Args:
        now: What it shows first.
        tick: Seconds by which each look at it moves it on: two turns of a real loop never
            begin at the same time.
    """

    def __init__(self, now: float = 1000.0, tick: float = 0.0) -> None:
        self.now = now
        self._tick = tick

    def __call__(self) -> float:
        """Return the seconds it shows."""
        self.now += self._tick
        return self.now

    def advance(self, seconds: float) -> None:
        """Go on by so many seconds at once."""
        self.now += seconds
