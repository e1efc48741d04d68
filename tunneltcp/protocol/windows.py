"""How much each stream may be sent: windows dealt from one budget (design record 0003).

While less than half of the budget is granted, everybody gets the most. Then the least is set
aside for each stream that may still come, and a new one gets a sixteenth of what is left over:
a gentle decline in which everybody fits. The sum of all windows never passes the budget.
"""

from __future__ import annotations

from typing import Final

__all__ = ["FIRST_WINDOW_BYTES", "MAX_WINDOW_BYTES", "MIN_WINDOW_BYTES", "Windows"]

MAX_WINDOW_BYTES: Final = 1024 * 1024
"""Window of a stream while memory is plenty."""
MIN_WINDOW_BYTES: Final = 16 * 1024
"""Window of a stream when memory is short: never less."""
FIRST_WINDOW_BYTES: Final = 32 * 1024
"""What a server may send on a stream before the first CREDIT (PROTOCOL.md §4.1)."""


class Windows:
    """Deals out windows.

    Args:
        budget_bytes: Bound on the sum of all windows dealt and not given back.
        max_streams: How many there are at most at the same time.
        least_bytes: The smallest window.
    """

    def __init__(self, budget_bytes: int, max_streams: int, least_bytes: int) -> None:
        self._budget = budget_bytes
        self._max_streams = max_streams
        self._least = least_bytes
        self._streams = 0
        self.dealt = 0
        """How many windows were ever dealt."""
        self.granted_bytes = 0
        """Sum of the windows: what may be granted and not delivered at any time."""

    def take(self) -> int | None:
        """Return the window of a new stream in bytes; None if there is no room for one."""
        left = self._budget - self.granted_bytes
        more_to_come = self._max_streams - self._streams
        if left < self._least or more_to_come <= 0:
            return None
        spare = left - more_to_come * self._least
        if self.granted_bytes * 2 >= self._budget:
            window = spare // 16
        elif self._max_streams * self._least <= self._budget:
            window = self._least + spare
        else:  # not everybody can fit anyway
            window = left // 2
        window = max(self._least, min(MAX_WINDOW_BYTES, window))
        self.granted_bytes += window
        self._streams += 1
        self.dealt += 1
        return window

    def give(self, window: int) -> None:
        """A stream with this window is over."""
        self.granted_bytes -= window
        self._streams -= 1
