"""Rings for what was read and is not delivered, cut from one block of memory.

Theory of operation
-------------------
A ring holds the bytes of one direction of one stream from the moment they were read from
a socket until the peer says that the far socket took them: it is the send buffer and the
replay buffer in one. The byte at offset *o* of the stream lies at ``o % size``; sizes are
powers of two. The arena hands rings out in size classes; what is given back is handed out
again first, most recently used first, because its pages are warm. If there is none of its
class, a ring is cut from a larger one whose pages were given back, else from the end of the
block, else from a larger one. So a small ring is there as long as anything is free: who takes
over from one dead worker after the other may find the last ring of all in use. ``tidy`` gives
the pages of rings that nobody wanted lately back to the system.

A ring is named by one 64-bit word, ``(first unit + 1) << 8 | class``, so that a record in
shared memory changes from one ring to the next with one store.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["MAX_RING_BYTES", "MIN_RING_BYTES", "Arena", "Ring", "ring_bytes"]

MIN_RING_BYTES: Final = 16 * 1024
"""Bytes of the smallest ring, and the unit in which the arena counts."""

_CLASSES: Final = 12
MAX_RING_BYTES: Final = MIN_RING_BYTES << (_CLASSES - 1)
"""Bytes of the largest ring (32 MiB): the largest window."""


def ring_bytes(word: int) -> int:
    """Return the size of the ring that a word names; 0 if it names none."""
    size_class = word & 0xFF
    return MIN_RING_BYTES << size_class if word >> 8 and size_class < _CLASSES else 0


class Ring:
    """A piece of the arena; ``view`` is its memory, ``mask`` maps offsets into it."""

    __slots__ = ("mask", "size", "view", "word")

    def __init__(self, view: memoryview, word: int) -> None:
        self.view = view
        self.size = len(view)
        self.mask = self.size - 1
        self.word = word

    def __repr__(self) -> str:
        return f"<Ring {self.size} bytes at unit {(self.word >> 8) - 1}>"


MIN_SHARE_BYTES: Final = 512 * 1024
"""Set aside of the smallest budget: 32 rings, each for as long as what it holds is not read.
More would make rings small where many stand still, and a small ring makes bulk slow."""


class Arena:
    """Hands out rings from ``memory`` while their sum stays within ``budget_bytes``.

    Args:
        memory: Where the rings lie.
        budget_bytes: Bound on the sum of the sizes of the rings handed out.
        discard: Gives the pages of a range (start, bytes) back to the system; the range
            then reads as zeros.
    """

    def __init__(
        self,
        memory: memoryview,
        budget_bytes: int,
        discard: Callable[[int, int], None] | None = None,
    ) -> None:
        self._memory = memory
        self._discard = discard
        self._free: list[list[Ring]] = [[] for _ in range(_CLASSES)]
        self._clean: list[list[Ring]] = [[] for _ in range(_CLASSES)]
        self._idle_marks = [0] * _CLASSES
        self._end = 0
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        """Sum of the sizes of the rings handed out."""
        self._set_aside_bytes = 0

    @property
    def left_bytes(self) -> int:
        """What the budget still admits."""
        return self.budget_bytes - self.used_bytes

    def set_aside_for(self, streams: int) -> None:
        """Keep some of the smallest rings for so many streams, or the budget's share of them.

        Where the peer's budget is the larger one its windows do not bound our rings: a few
        streams that stand still would take all, and others would wait for ever.
        """
        share = max(MIN_SHARE_BYTES, self.budget_bytes // 32)
        self._set_aside_bytes = min(MIN_RING_BYTES * streams, share)

    def has_room_for(self, size: int) -> bool:
        """Whether a ring above the smallest may be taken."""
        return self.used_bytes + size + self._set_aside_bytes <= self.budget_bytes

    def take(self, size: int) -> Ring | None:
        """Return a ring of at least ``size`` bytes, or None if the budget is used up."""
        size_class = max(0, (size - 1).bit_length() - 14)
        wanted = MIN_RING_BYTES << size_class
        if self.used_bytes + wanted > self.budget_bytes or size_class >= _CLASSES:
            return None
        free = self._free[size_class] or self._clean[size_class]
        if free:
            ring = free.pop()
            marks, unused = self._idle_marks, len(self._free[size_class])
            if unused < marks[size_class]:
                marks[size_class] = unused
        else:
            found = self._new_ring(size_class)
            if found is None:
                return None
            ring = found
        self.used_bytes += wanted
        return ring

    def _new_ring(self, size_class: int) -> Ring | None:
        """Make a ring of a class of which none is free."""
        ring = self._cut(self._clean, size_class)
        if ring is not None:
            return ring
        start, end = self._end, self._end + (MIN_RING_BYTES << size_class)
        if end > len(self._memory):
            return self._cut(self._free, size_class)
        self._end = end
        return self._ring(start, size_class)

    def _cut(self, free: list[list[Ring]], size_class: int) -> Ring | None:
        """Cut a ring from the smallest larger one; what is left of that is free as it was."""
        larger = next((n for n in range(size_class + 1, _CLASSES) if free[n]), None)
        if larger is None:
            return None
        start = ((free[larger].pop().word >> 8) - 1) * MIN_RING_BYTES
        for rest in range(size_class, larger):
            free[rest].append(self._ring(start + (MIN_RING_BYTES << rest), rest))
        return self._ring(start, size_class)

    def _ring(self, start: int, size_class: int) -> Ring:
        word = (start // MIN_RING_BYTES + 1) << 8 | size_class
        return Ring(self._memory[start : start + (MIN_RING_BYTES << size_class)], word)

    def adopt(self, words: Iterable[int]) -> dict[int, Ring]:
        """Take over the rings of a dead owner; return those that are sound, by their words.

        Two that overlap are both none. All memory that no sound ring covers is discarded and
        free. For a new arena only.
        """
        spans = []
        for word in set(words):
            start = ((word >> 8) - 1) * MIN_RING_BYTES
            end = start + ring_bytes(word)
            if 0 <= start < end <= len(self._memory):
                spans.append((start, end, word))
        spans.sort()
        overlapping: set[int] = set()
        last_end, last_word = 0, 0
        for start, end, word in spans:
            if start < last_end:
                overlapping |= {word, last_word}
            if end > last_end:
                last_end, last_word = end, word
        rings = {}
        for start, end, word in spans:
            if word not in overlapping:
                self._free_gap(self._end, start)
                rings[word] = self._ring(start, word & 0xFF)
                self.used_bytes += end - start
                self._end = end
        self._throw_away(self._end, len(self._memory))
        return rings

    def _free_gap(self, start: int, end: int) -> None:
        """Make rings of what lies between two that are in use, the largest that fit."""
        self._throw_away(start, end)
        while start < end:
            units = (end - start) // MIN_RING_BYTES
            size_class = min(units.bit_length(), _CLASSES) - 1
            self._clean[size_class].append(self._ring(start, size_class))
            start += MIN_RING_BYTES << size_class

    def _throw_away(self, start: int, end: int) -> None:
        if self._discard is not None and start < end:
            self._discard(start, end - start)

    def give(self, ring: Ring) -> None:
        """Take a ring back; nothing may point into it any more."""
        self.used_bytes -= ring.size
        self._free[ring.word & 0xFF].append(ring)

    def tidy(self) -> None:
        """Discard the pages of rings that lay unused since the last call.

        Call it about once a second. The rings at the bottom of each stack, below the
        lowest height since the last call, are those that nobody needed.
        """
        for size_class, free in enumerate(self._free):
            unused = self._idle_marks[size_class]
            for ring in free[:unused]:
                if self._discard is not None:
                    start = ((ring.word >> 8) - 1) * MIN_RING_BYTES
                    self._discard(start, ring.size)
                self._clean[size_class].append(ring)
            del free[:unused]
            self._idle_marks[size_class] = len(free)
