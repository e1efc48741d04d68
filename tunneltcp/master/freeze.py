"""Freezing: what exists now is not counted and collected any more, so that children share it.

Theory of operation
-------------------
A forked child shares each page of memory until somebody writes to it, and CPython writes to
what it only looks at: it keeps the count of an object's references in the object, and its
collector marks and links what it visits. ``gc.freeze`` ends the second. The first ends where
objects can be *immortal* (PEP 683, CPython 3.12): one whose count has a certain value is
neither counted nor freed. No call makes an object so, but the value is that of ``None``, and
the count is the first word of each object. It is written to all that a child may look at: a
worker's own memory falls from 3.6 to 2 MB (docs/decisions/0018).

Whether that is true of this interpreter is tried first, on an object of our own. Where it is
not (3.11, builds without the lock of the interpreter, others than CPython), nothing is done.
"""

from __future__ import annotations

import _io
import _socket
import ctypes
import gc
import mmap
import select
import sys
from itertools import chain
from types import CodeType, FrameType, GeneratorType
from typing import TYPE_CHECKING, Final

from tunneltcp.master.holes import fill_holes

if TYPE_CHECKING:
    Words = ctypes.Array[ctypes.c_uint32]

__all__ = ["freeze"]

_COUNTED: Final = (
    _socket.socket,
    _io._IOBase,
    mmap.mmap,
    *((select.epoll,) if sys.platform == "linux" else ()),
    memoryview,
    FrameType,
    GeneratorType,
)
"""Those whose end does something: it closes, unmaps, releases, runs what is behind a yield."""

_M_MMAP_THRESHOLD: Final = -3
_MMAP_BYTES: Final = 128 * 1024
"""What glibc begins with."""

_WITH_IMMORTALS: Final = 0x030C0000
"""CPython 3.12, as ``sys.hexversion`` has it."""

_ADDRESS_WORDS: Final = 1 << 60
"""Words of four bytes in more addresses than programs have anywhere (2**47 to 2**56 bytes)."""


def freeze() -> int:
    """Get ready to fork many; call it once all is there that children need.

    Without ``gc.freeze`` the first collection in each worker would write to every object and
    so copy the master's pages: 5.4 MB of private memory instead of 1 MB.

    Returns:
        How many objects are not counted any more. They are never freed either: what is dropped
        of them later stays in memory, once, for as long as this process lives.
    """
    gc.collect()
    _keep_threshold()
    fill_holes()
    was_enabled = gc.isenabled()
    gc.disable()  # else it could free what the walk has only seen
    try:
        words = (ctypes.c_uint32 * _ADDRESS_WORDS).from_address(0)
        mark = _immortal_count(words)
        count = 0 if mark is None else _stop_counting(words, mark)
    finally:
        if was_enabled:
            gc.enable()
    gc.freeze()
    return count


def _keep_threshold() -> None:
    """Have each large block in pages of its own, which go back when it is freed, as at first.

    glibc raises the size from which that is so, for good, to that of the largest such block
    that was ever freed. The walk makes and frees some of 10 MB, and all workers inherit that.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.PyDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)


def _immortal_count(words: Words) -> int | None:
    """Return what an object that is not counted has for its count; None if there are none."""
    if sys.hexversion < _WITH_IMMORTALS or sys.byteorder != "little" or sys.maxsize < 1 << 32:
        return None
    mark = words[id(None) >> 2]
    probe = object()
    place = id(probe) >> 2
    before = words[place]
    counted = [probe, probe]
    if words[place] != before + len(counted):
        return None  # its first word is not its count
    words[place] = mark
    counted.append(probe)
    counted.clear()
    return mark if words[place] == mark else None


def _stop_counting(words: Words, mark: int) -> int:
    """Make immortal all that the collector knows, and all that this refers to."""
    found = gc.get_objects()
    seen: set[int] = set()  # made behind that: what the walk itself needs is not to stay
    while found:
        fresh = dict(zip(map(id, found), found, strict=True))
        for number in fresh.keys() & seen:
            del fresh[number]
        seen.update(fresh)
        for number, one in fresh.items():
            if not issubclass(type(one), _COUNTED):
                words[number >> 2] = mark
        codes = [one for one in fresh.values() if type(one) is CodeType]
        found = [*gc.get_referents(*fresh.values()), *chain.from_iterable(map(_parts, codes))]
    return len(seen)


def _parts(code: CodeType) -> tuple[object, ...]:
    """Return what a code object refers to, and is used; the collector does not know of it.

    Names of variables are not: to ask for them makes a tuple that stays.
    """
    return (code.co_consts, code.co_names, code.co_filename, code.co_name, code.co_qualname)
