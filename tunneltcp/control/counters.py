"""The page of counters that a worker writes and its master reads.

Theory of operation
-------------------
Each tunnel has one page of shared memory (a memfd made by the master) that holds named
64-bit counters. The worker stores, the master loads; an aligned 64-bit load or store is
never torn, so neither waits for the other, and the master can read the counters of a
worker that hangs or is dead. The page belongs to the tunnel, not to the worker: totals
go on in its successor.
"""

from __future__ import annotations

import mmap
from enum import IntEnum
from typing import Final

__all__ = [
    "COUNTERS_BYTES",
    "VISITORS",
    "VISITORS_TOTAL",
    "Counter",
    "LinkState",
    "map_counters",
]

COUNTERS_BYTES = 4096
"""Bytes of one page of counters: one page of memory, room for 512 of them."""


class Counter(IntEnum):
    """Index of each counter in the page."""

    BEAT_NS = 0
    """By when the worker's loop will turn again; CLOCK_MONOTONIC, nanoseconds."""
    LINK_STATE = 1
    """A :class:`LinkState`."""
    LINK_SINCE_NS = 2
    """When the link took its present state; CLOCK_REALTIME, nanoseconds. 0: never."""
    LINKS_TOTAL = 3
    """Links that were ever established."""
    RTT_US = 4
    """Last round trip of a PING, microseconds. 0: not measured yet."""
    VISITORS = 5
    """Visitors connected now, those that wait for the link included."""
    VISITORS_TOTAL = 6
    """Visitors ever taken."""
    HELD = 7
    """Visitors that wait for the link now."""
    BYTES_IN = 8
    """Bytes from visitors towards the target."""
    BYTES_OUT = 9
    """Bytes from the target towards visitors."""
    RESETS_TOTAL = 10
    """Streams that ended by RESET."""
    DESCRIPTORS = 11
    """Descriptors the worker has open."""
    LOG_DROPPED = 12
    """Log lines dropped because they could not be written."""
    RESUMES_TOTAL = 13
    """Links over which a session went on."""
    LINK_KEY = 14
    """Which of the keys the link was made with: 0 is the preferred one."""

    LINKS_REFUSED = 20
    """Attempts at a link from networks that may not have it."""
    VISITORS_REFUSED = 21
    """Connections reset because no visitor may come from their network."""


VISITORS: Final = int(Counter.VISITORS)
VISITORS_TOTAL: Final = int(Counter.VISITORS_TOTAL)
"""What each visitor changes: looking a member up in its class costs more than the count."""


class LinkState(IntEnum):
    """State of a tunnel's link, as stored in the page of counters."""

    DOWN = 0
    UP = 1
    DOUBTED = 2
    """Silent for too long, not replaced yet (PROTOCOL.md §8)."""


def map_counters(fd: int) -> memoryview:
    """Map the page behind ``fd`` and return its counters as 64-bit integers."""
    return memoryview(mmap.mmap(fd, COUNTERS_BYTES)).cast("Q")
