"""A stream that kills whoever touches it: found by what crashed workers had in hand.

Theory of operation
-------------------
Before anything is done with a stream its id is stored in the header of the tunnel's memory
(``IN_HAND``). A successor whose predecessor crashed, by its own fault and not by a SIGKILL,
looks there first. If it is the same stream three times in a row, soon after each other, and
not a byte of it moved meanwhile, that stream is reset and the others live. What was in hand
may be innocent, as when the crash came from something that is no stream; but then it has moved
by the next time, or another one is in hand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tunneltcp.protocol.table import IN_HAND

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tunneltcp.protocol.table import StreamTable

__all__ = ["MAX_CRASHES", "ROW_SECONDS", "find_poison", "take_in_hand"]

MAX_CRASHES: Final = 3
"""In a row, with one stream in hand that does not move."""


ROW_SECONDS: Final = 60
"""Crashes further apart are no row: whoever was served as long is not what kills."""


def take_in_hand(table: StreamTable) -> int:
    """Return which stream the worker before us had in hand; from now on there is none."""
    stream_id = table.words[IN_HAND]
    table.words[IN_HAND] = 0
    return stream_id


def find_poison(
    table: StreamTable, in_hand: int, moved: Mapping[int, int], *, crashed: bool, now: float
) -> int:
    """Return the stream that is to be reset; 0: none. Call it before any stream is touched.

    Args:
        table: Remembers what the next one needs to know, should we crash too.
        in_hand: As from :func:`take_in_hand`.
        moved: How many bytes of each stream have moved, both ways together.
        crashed: Whether the worker before us crashed by its own fault.
        now: Seconds, of the machine's monotonic clock.
    """
    if not crashed or in_hand not in moved:
        table.set_blame(0, 0, 0, 0)
        return 0
    blamed, at, crashes, when = table.blame
    again = (blamed, at) == (in_hand, moved[in_hand]) and now - when < ROW_SECONDS
    crashes = crashes + 1 if again else 1
    if crashes < MAX_CRASHES:
        table.set_blame(in_hand, moved[in_hand], crashes, int(now))
        return 0
    table.set_blame(0, 0, 0, 0)
    return in_hand
