"""How often a client dials.

At a constant, quick pace: a lost network says nothing about when it will be back. Slower only
after REFUSED, which means that somebody answered.
"""

from __future__ import annotations

import os
from typing import Final

__all__ = [
    "DIAL_SECONDS",
    "MAX_ATTEMPTS",
    "MAX_IN_USE_SECONDS",
    "MAX_REFUSED_SECONDS",
    "SLOW_AFTER_SECONDS",
    "SLOW_DIAL_SECONDS",
    "dial_seconds",
    "jittered",
    "refused_seconds",
]

DIAL_SECONDS: Final = 0.7
"""A new attempt starts this often beside those still pending: one patient ``connect`` comes
up as late as 10 s after the network is back, a loop of fresh ones within one period."""
SLOW_DIAL_SECONDS: Final = 2.0
"""The same after ``SLOW_AFTER_SECONDS`` in vain."""
SLOW_AFTER_SECONDS: Final = 60.0
MAX_ATTEMPTS: Final = 4
"""Attempts pending at once; with the period above, one that needs 2.8 s still comes up."""
MAX_REFUSED_SECONDS: Final = 30.0
"""Longest pause after REFUSED, which only a person can heal."""
MAX_IN_USE_SECONDS: Final = 5.0
"""Longest pause where the owner of the port may leave at any time, or the server starts."""


def dial_seconds(tried_seconds: float) -> float:
    """Return the pause before the next attempt, after so many seconds without a link."""
    return jittered(SLOW_DIAL_SECONDS if tried_seconds > SLOW_AFTER_SECONDS else DIAL_SECONDS)


def refused_seconds(refusals: int, *, heals: bool) -> float:
    """Return the pause after so many refusals in a row, of a kind that ``heals`` by itself."""
    longest = MAX_IN_USE_SECONDS if heals else MAX_REFUSED_SECONDS
    return jittered(min(longest, 0.5 * 2 ** min(refusals, 10)))


def jittered(seconds: float) -> float:
    """Spread by 15 % to both sides, so that fifty workers do not dial in step."""
    return seconds * (0.85 + 0.3 * os.urandom(1)[0] / 255)
