"""Bytes that know their place: for each seed an endless, unlike sequence.

Theory of operation
-------------------
All sequences are cut from one block of random bytes. A sequence is a row of pieces of
``PIECE`` bytes (a prime, so that no ring, frame or window falls in step with it), and
where in the block each piece starts is a hash of the seed and of the piece's number. So
a byte that was lost, doubled, moved or taken from another sequence shows at its very
offset (by chance one in 256 is right, so an error may show a byte or two later, never
not at all), and making or checking a mebibyte costs about one copy or comparison of it.
"""

from __future__ import annotations

import functools
import random
from typing import TypeAlias

__all__ = ["PatternChecker", "PatternError", "locate", "pattern"]

Buffer: TypeAlias = bytes | bytearray | memoryview

PIECE = 262_139
"""Bytes cut from the block in one piece: the largest prime under 256 KiB."""

_BLOCK_BYTES = 4 << 20
_MASK = (1 << 64) - 1
_SAMPLE = 24


@functools.cache
def _block() -> bytes:
    return random.Random(20_600_001).randbytes(_BLOCK_BYTES)


def _start(seed: int, piece: int) -> int:
    """Where in the block a piece of a sequence starts."""
    x = (seed * 0x9E3779B97F4A7C15 + piece * 0xBF58476D1CE4E5B9 + 0x1234567) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return (x ^ (x >> 31)) % (_BLOCK_BYTES - PIECE)


def pattern(seed: int, offset: int, size: int) -> bytes:
    """The bytes ``[offset, offset + size)`` of a seed's sequence."""
    block = _block()
    piece, skip = divmod(offset, PIECE)
    start = _start(seed, piece) + skip
    if skip + size <= PIECE:
        return block[start : start + size]
    parts = [block[start : start + PIECE - skip]]
    left = size - (PIECE - skip)
    while left > 0:
        piece += 1
        start = _start(seed, piece)
        parts.append(block[start : start + min(left, PIECE)])
        left -= PIECE
    return b"".join(parts)


def locate(data: Buffer, seed: int, near: int, limit: int = 256 << 20) -> int | None:
    """Where in a seed's sequence the first bytes of ``data`` stand, nearest to an offset.

    For messages only. None: nowhere within the first ``limit`` bytes.
    """
    for begin in (0, _SAMPLE // 2):  # a sample may lie across the end of a piece
        sample = bytes(data[begin : begin + _SAMPLE // 2])
        position = _block().find(sample) if len(sample) == _SAMPLE // 2 else -1
        found = [
            piece * PIECE + position - start - begin
            for piece in range(limit // PIECE + 1)
            if (start := _start(seed, piece)) <= position < start + PIECE
        ]
        if position >= 0 and found:
            return min(found, key=lambda offset: abs(offset - near))
    return None


class PatternError(AssertionError):
    """A byte that does not belong where it came."""

    def __init__(self, seed: int, offset: int, got: bytes) -> None:
        self.seed = seed
        self.offset = offset
        expected = pattern(seed, offset, len(got))
        place = locate(got, seed, offset)
        away = "no near place" if place is None else f"offset {place} ({place - offset:+d})"
        super().__init__(
            f"seed {seed}: first wrong byte at offset {offset}: got {got.hex(' ')}, "
            f"expected {expected.hex(' ')}; what came belongs to {away} of this sequence"
        )


class PatternChecker:
    """Checks one sequence as it comes, in pieces of any size."""

    def __init__(self, seed: int, offset: int = 0) -> None:
        self.seed = seed
        self.offset = offset
        """Of the next byte: as many bytes were right so far."""
        self.error: PatternError | None = None

    def feed(self, data: Buffer) -> None:
        """Check the next bytes.

        Raises:
            PatternError: At the first wrong byte, and from then on for any more.
        """
        if self.error is not None:
            raise self.error
        block = _block()
        view = memoryview(data)
        while view:
            piece, skip = divmod(self.offset, PIECE)
            part = view[: PIECE - skip]
            start = _start(self.seed, piece) + skip
            # startswith() is the one comparison that takes any buffer and is a memcmp.
            if not block.startswith(part, start):
                right = _common(block, start, part)
                self.offset += right
                self.error = PatternError(self.seed, self.offset, bytes(view[right:][:_SAMPLE]))
                raise self.error
            self.offset += len(part)
            view = view[len(part) :]


def _common(block: bytes, start: int, part: memoryview) -> int:
    """How many bytes of ``part`` are right; not all are."""
    right, wrong = 0, len(part)
    while wrong - right > 1:
        middle = (right + wrong) // 2
        if block.startswith(part[right:middle], start + right):
            right = middle
        else:
            wrong = middle
    return right
