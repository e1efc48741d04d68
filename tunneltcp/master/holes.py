"""Holes in memory that stays are filled, so that what children make lies side by side.

Theory of operation
-------------------
What is new goes where something old was freed. In a child that is a page that it shares, and
each new object there, however small, costs it a copy of all 4,096 bytes. So before the first
fork objects of each size are made, and kept, until they come from where nothing was before.
There are two places for them: CPython's own for small objects, and the C library's heap for
the others and for OpenSSL. It is done once, costs 1.2 MB once, and each worker has 0.3 MB less
of its own for it, 0.5 MB with TLS.
"""

from __future__ import annotations

import ctypes
import sys
from itertools import pairwise
from typing import Final

__all__ = ["fill_holes"]

_STEP_BYTES: Final = 16
_SMALL_BYTES: Final = 512
"""CPython has a place of its own for each size of small objects, in steps, up to this one."""
_POOL_BYTES: Final = 16 * 1024
"""It cuts them out of blocks of this size."""
_MAX_POOLS: Final = 64
"""More are not filled of one size; it takes 5 to 13."""

_HEAP_SIZES: Final = (
    *(1 << power for power in range(16, 10, -1)),
    *range(1008, 8, -16),
)
"""The C library's chunks are filled from large to small, so that what is left is smaller than
all; sizes in bytes, below those that it gives pages of their own."""
_MAX_CHUNKS: Final = 4096
"""More are not filled of one size; it takes 200 at most."""


class _HeapInfo(ctypes.Structure):
    """``struct mallinfo2``, mallinfo(3)."""

    _fields_ = (  # type: ignore[mutable-override]
        ("before", ctypes.c_size_t * 8),
        ("fordblks", ctypes.c_size_t),
        ("keepcost", ctypes.c_size_t),
    )


def fill_holes() -> None:
    """Do it, in both places; where there is another C library than glibc, in the first."""
    _fill_pools()
    if sys.platform == "linux":
        _fill_heap(ctypes.PyDLL(None))


def _fill_heap(libc: ctypes.PyDLL) -> None:
    try:
        info, break_at, take, give = libc.mallinfo2, libc.sbrk, libc.malloc, libc.free
    except AttributeError:  # musl, or a glibc before 2.33
        return
    info.restype = _HeapInfo
    break_at.restype = take.restype = ctypes.c_size_t
    break_at.argtypes = take.argtypes = give.argtypes = (ctypes.c_size_t,)
    # What was never used is at the end, and is what all others are to come from.
    end = break_at(0) - info().keepcost
    for size in _HEAP_SIZES:
        for _ in range(_MAX_CHUNKS):
            place = take(size)
            if not 0 < place < end:
                give(place)
                break


_fillers: Final[list[list[object]]] = []


def _fill_pools() -> None:
    """Make objects of each small size until they come side by side: the rest is fresh.

    Some 0.8 MB, once.
    """
    for size in range(_STEP_BYTES, _SMALL_BYTES + 1, _STEP_BYTES):
        for _ in range(_MAX_POOLS):
            some: list[object] = [None] * (_POOL_BYTES // size)
            for number in range(len(some)):
                some[number] = _new(size)
            _fillers.append(some)
            places = list(map(id, some))
            jumps = sum(next_ - one != size for one, next_ in pairwise(places))
            if jumps * 8 <= len(some):
                break


def _new(size: int) -> object:
    """Return a new object that takes so many bytes."""
    if size == sys.getsizeof(object()):
        return object()
    if size == 2 * _STEP_BYTES:
        return float(size + 0.5)
    return b"".ljust(size - sys.getsizeof(b""))
