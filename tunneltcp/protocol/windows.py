"""How much each stream may be sent: windows dealt from one budget (design record 0003).

While less than half of the budget is granted, every new stream gets the usual window. Then the
least is set aside for each stream that may still come, and a new one gets a sixteenth of what
is left over: a gentle decline in which everybody fits. A window that was used up within two
round trips is what holds its stream back: it doubles, as far as the budget has room beyond what
is set aside (in the first half of the budget at least by an eighth of what is left), and no
further than could ever be on the way. The sum of all windows never passes
the budget.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunneltcp.protocol.stream import Stream

__all__ = [
    "FIRST_WINDOW_BYTES",
    "MAX_WINDOW_BYTES",
    "MIN_WINDOW_BYTES",
    "USUAL_WINDOW_BYTES",
    "Windows",
]

MAX_WINDOW_BYTES: Final = 32 * 1024 * 1024
"""Where windows stop growing: 1 Gbit/s over 250 ms."""
USUAL_WINDOW_BYTES: Final = 1024 * 1024
"""Window of a new stream while memory is plenty."""
MIN_WINDOW_BYTES: Final = 16 * 1024
"""Window of a stream when memory is short: never less."""
FIRST_WINDOW_BYTES: Final = 32 * 1024
"""What a server may send on a stream before the first CREDIT (PROTOCOL.md §4.1)."""

FAST_ROUND_TRIPS: Final = 2
"""A window that lasts no longer than this grows; so it ends at two to four times what is on its
way, which leaves room for a round trip that a queue makes longer."""

FASTEST_RATE: Final = 1_000_000_000
"""Bytes a second that no worker passes on. On a near path a socket takes megabytes at once,
which looks like a window that holds it back: it would grow, for nothing but memory."""


def _no_time() -> float:
    return 0.0


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
        self._everybody_fits = max_streams * least_bytes <= budget_bytes
        self._streams = 0
        self.heirs = 0
        """So many streams of a worker before us are still to be made: each had a window, and
        each gets one."""
        self.dealt = 0
        """How many windows were ever dealt."""
        self.granted_bytes = 0
        """Sum of the windows: what may be granted and not delivered at any time."""
        self.clock: Callable[[], float] = _no_time
        """The time in seconds; who drives the link sets it."""
        self.round_trip_seconds = 0.0
        """The smallest that the link has shown; 0: not known yet, and no window grows."""

    def take(self) -> int | None:
        """Return the window of a new stream in bytes; None if there is no room for one."""
        if self._streams >= self._max_streams:
            return None
        return self._deal()

    def inherit(self) -> int | None:
        """Return the window of one of the ``heirs``; None if there is no room.

        It is never one too many: ``max_streams`` may be lower by now.
        """
        self.heirs -= 1
        return self._deal()

    def _deal(self) -> int | None:
        least, granted = self._least, self.granted_bytes
        left = self._budget - granted
        if left < least:
            return None
        more_to_come = max(0, self._max_streams - self._streams)
        spare = left - more_to_come * least
        if granted * 2 >= self._budget:
            window = spare // 16
        elif self._everybody_fits:
            window = least + spare
        else:
            window = left // 2
        if window > USUAL_WINDOW_BYTES:
            window = USUAL_WINDOW_BYTES
        if self.heirs > 0:
            window = min(window, left - self.heirs * least)
        if window < least:
            window = least
        self.granted_bytes = granted + window
        self._streams += 1
        self.dealt += 1
        return window

    def _spare(self) -> int:
        """What is left when the least is set aside for each stream that may still come."""
        more_to_come = max(0, self._max_streams - self._streams)
        return self._budget - self.granted_bytes - more_to_come * self._least

    def note_used(self, stream: Stream, delivered: int) -> None:
        """The window that this stream had when it was last noted is used up: does it grow?"""
        now = self.clock()
        fast = FAST_ROUND_TRIPS * self.round_trip_seconds
        lasted = now - stream.window_since
        if lasted <= fast and stream.window < FASTEST_RATE * fast:
            stream.set_window(stream.window + self._take_more(stream.window))
        stream.window_since = now
        stream.grow_at = delivered + stream.window

    def _take_more(self, window: int) -> int:
        """Take what this window grows by: as much again, or what there is."""
        left = self._budget - self.granted_bytes
        more = min(window, MAX_WINDOW_BYTES - window)
        spare = self._spare() if self._everybody_fits else left // 2
        if self.granted_bytes * 2 >= self._budget:
            more = min(more, left // 4 - window)
        elif spare < left // 8:  # who uses it up gets some, also where all is set aside
            spare = left // 8
        more = max(0, min(more, spare))
        self.granted_bytes += more
        return more

    def give(self, window: int) -> None:
        """A stream with this window is over."""
        self.granted_bytes -= window
        self._streams -= 1
