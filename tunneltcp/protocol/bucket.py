"""A bandwidth limit: how far may be written by now.

The bucket fills at the rate and holds what comes in a twentieth of a second. It counts
positions: what was written beyond what it held is waited for.
"""

from __future__ import annotations

from typing import Final

__all__ = ["Bucket"]

BURST_SECONDS: Final = 0.05
"""What may go out at once after a pause: long against a turn of the loop that comes late, so
that the rate is kept, and short against anything that a visitor notices."""
MIN_BURST_BYTES: Final = 4096


class Bucket:
    """Says how much may be written; ``now`` is any clock that only goes forward, seconds.

    Args:
        rate: Bytes a second.
        now: The time.
    """

    __slots__ = ("_at", "_burst", "_to", "rate")

    def __init__(self, rate: int, now: float) -> None:
        self.rate = rate
        self._burst = max(MIN_BURST_BYTES, rate * BURST_SECONDS)
        self._at = now
        self._to = self._burst
        """The position up to which may be written."""

    def room(self, written: int, now: float) -> int:
        """Return how much more may be written by now, after ``written`` bytes in all."""
        self._to = min(self._to + (now - self._at) * self.rate, written + self._burst)
        self._at = now
        return max(0, int(self._to - written))
