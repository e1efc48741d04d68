"""The largest of the rates that were seen lately."""

from __future__ import annotations

from typing import Final

__all__ = ["PeakRate"]

SPANS_KEPT: Final = 5
"""How long the largest rate counts: so many spans to twice as many."""


class PeakRate:
    """What a path carries at best, bytes a second; forgets what was long ago."""

    __slots__ = ("_before", "_lately", "_spans")

    def __init__(self) -> None:
        self._lately = self._before = 0.0
        self._spans = 0

    @property
    def rate(self) -> float:
        """The largest rate."""
        return max(self._lately, self._before)

    def note(self, rate: float, *, ages: bool) -> None:
        """Take the rate of one more span; without ``ages`` nothing is forgotten for it."""
        self._lately = max(self._lately, rate)
        self._spans += ages
        if self._spans >= SPANS_KEPT:
            self._spans = 0
            self._before, self._lately = self._lately, rate
