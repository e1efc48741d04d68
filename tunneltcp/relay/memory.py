"""A tunnel's memory: the stream table and the rings, in a file that outlives the worker."""

from __future__ import annotations

import mmap
from typing import Final

from tunneltcp.protocol.arena import Arena
from tunneltcp.protocol.table import StreamTable

__all__ = ["TunnelMemory", "receive_buffer"]

RECEIVE_BYTES: Final = 1 << 20
"""Bytes received from a link at once; more gained nothing (measured)."""


class TunnelMemory:
    """Maps the memory behind ``fd``: ``records_bytes`` of table, then the arena."""

    def __init__(self, fd: int, size: int, records_bytes: int, budget_bytes: int) -> None:
        self._map = mmap.mmap(fd, size)
        # Ring contents are visitors' bytes: they do not belong into a core file.
        self._map.madvise(mmap.MADV_DONTDUMP)
        self._arena_start = records_bytes
        memory = memoryview(self._map)
        self.table = StreamTable(memory[:records_bytes])
        self.arena = Arena(memory[records_bytes:], budget_bytes, self._discard)

    def _discard(self, start: int, size: int) -> None:
        self._map.madvise(mmap.MADV_REMOVE, self._arena_start + start, size)

    def clear(self) -> None:
        """Forget whatever a worker before us left: records and bytes."""
        self.table.clear()
        self._discard(0, len(self._map) - self._arena_start)


class ReceiveBuffer:
    """Memory to receive into from the link, given back to the system when idle."""

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, RECEIVE_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.view = memoryview(self._map)
        self.used = False
        """Whether much of it was touched since the last :meth:`tidy`."""

    def tidy(self) -> None:
        """Give the pages back; what is in there is dropped."""
        if self.used:
            self._map.madvise(mmap.MADV_DONTNEED)
            self.used = False


def receive_buffer() -> ReceiveBuffer:
    """Return a new buffer; a worker needs one."""
    return ReceiveBuffer()
