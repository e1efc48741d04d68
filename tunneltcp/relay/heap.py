"""The C library's heap: what it keeps of freed memory goes back when nothing moves any more.

A burst of visitors takes and frees buffers between objects that stay. By itself the library
gives back only what is free at its end, so a worker would keep its busiest moment's pages.
"""

from __future__ import annotations

import ctypes
import sys
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Heap"]


def _find_trim() -> Callable[[int], Any] | None:
    """Return malloc_trim(3), which glibc has."""
    if sys.platform == "linux":
        trim: Callable[[int], Any] | None = getattr(ctypes.PyDLL(None), "malloc_trim", None)
        return trim
    else:  # noqa: RET505 - so that a checker knows which lines are of this system
        return None


_TRIM: Final = _find_trim()


class Heap:
    """That of this process.

    Args:
        trim: Gives back what is free; by default the C library's, if it has one.
    """

    def __init__(self, trim: Callable[[int], Any] | None = _TRIM) -> None:
        self._trim = trim
        self._moved = 0
        self._trimmed = 0

    def tidy(self, moved: int) -> None:
        """Give back what is free, once after each time that anything moved.

        Args:
            moved: How much has moved until now. If it is what it was in the call before, nobody
                is at work, and a tenth of a millisecond is nobody's loss.
        """
        if moved == self._moved != self._trimmed and self._trim is not None:
            self._trim(0)
            self._trimmed = moved
        self._moved = moved
