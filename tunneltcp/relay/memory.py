"""A tunnel's memory: the stream table and the rings, in a file that outlives the worker.

A worker without a master has nothing that could outlive it: its memory is anonymous.
"""

from __future__ import annotations

import mmap
import sys
from typing import Final

from tunneltcp.protocol.arena import Arena
from tunneltcp.protocol.table import StreamTable

__all__ = ["TunnelMemory", "receive_buffer"]

RECEIVE_BYTES: Final = 1 << 20
"""Bytes received from a link at once; more gained nothing (measured)."""


class TunnelMemory:
    """Maps the memory behind ``fd``: ``records_bytes`` of table, then the arena, the nonces.

    Args:
        fd: None: memory of this process alone.
        nonces_bytes: For the prefaces that a server has taken, at the end.
    """

    def __init__(
        self,
        fd: int | None,
        size: int,
        records_bytes: int,
        budget_bytes: int,
        *,
        nonces_bytes: int = 0,
    ) -> None:
        self._is_file = fd is not None
        self._map = _anonymous(size) if fd is None else mmap.mmap(fd, size)
        # Ring contents are visitors' bytes: they do not belong into a core file.
        if sys.platform == "linux":
            self._map.madvise(mmap.MADV_DONTDUMP)
        self._arena_start = records_bytes
        memory = memoryview(self._map)
        self.table = StreamTable(memory[:records_bytes])
        self._arena_bytes = size - records_bytes - nonces_bytes
        arena_end = records_bytes + self._arena_bytes
        self.arena = Arena(memory[records_bytes:arena_end], budget_bytes, self._discard)
        self.nonces = memory[arena_end:]

    def _discard(self, start: int, size: int) -> None:
        if sys.platform == "linux" and self._is_file:
            self._map.madvise(mmap.MADV_REMOVE, self._arena_start + start, size)
        else:
            _discard(self._map, self._arena_start + start, size)

    def clear(self) -> None:
        """Forget whatever a worker before us left: records and bytes, but for the nonces."""
        self.table.clear()
        self._discard(0, self._arena_bytes)


def _anonymous(size: int) -> mmap.mmap:
    """Return memory that takes no room until it is touched."""
    if sys.platform == "win32":
        return mmap.mmap(-1, size)  # counts as used at once, so ``size`` must be modest
    else:  # noqa: RET505 - a type checker takes the line below for unreachable otherwise
        return mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _discard(memory: mmap.mmap, start: int, size: int) -> None:
    """Give pages of anonymous memory back; what is in them is lost."""
    if sys.platform == "linux":
        memory.madvise(mmap.MADV_DONTNEED, start, size)
    elif sys.platform != "win32":
        memory.madvise(mmap.MADV_FREE, start, size)


class ReceiveBuffer:
    """Memory to receive into from the link, given back to the system when idle."""

    def __init__(self) -> None:
        self._map = _anonymous(RECEIVE_BYTES)
        self.view = memoryview(self._map)
        self.used = False
        """Whether much of it was touched since the last :meth:`tidy`."""

    def tidy(self) -> None:
        """Give the pages back; what is in there is dropped."""
        if self.used:
            _discard(self._map, 0, RECEIVE_BYTES)
            self.used = False


def receive_buffer() -> ReceiveBuffer:
    """Return a new buffer; a worker needs one."""
    return ReceiveBuffer()
