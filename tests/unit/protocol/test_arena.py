"""The arena: words, warm rings, pages given back."""

from __future__ import annotations

import mmap
from typing import Any

import pytest

from tunneltcp.protocol.arena import MAX_RING_BYTES, MIN_RING_BYTES, Arena

K16 = 16_384


def new_arena(budget=1 << 20, size=1 << 20):
    discarded = []
    arena = Arena(
        memoryview(bytearray(size)), budget, lambda start, size: discarded.append((start, size))
    )
    return arena, discarded


@pytest.mark.parametrize(
    ("wanted", "size", "size_class"),
    [
        (1, K16, 0),
        (K16, K16, 0),
        (K16 + 1, 2 * K16, 1),
        (65_536, 65_536, 2),
        (65_537, 131_072, 3),
    ],
)
def test_sizes_and_words(wanted, size, size_class):
    arena, _ = new_arena()
    first = arena.take(1)
    ring = arena.take(wanted)

    assert first.word == 1 << 8
    assert ring.size == len(ring.view) == size
    assert ring.mask == size - 1
    assert ring.word == 2 << 8 | size_class
    assert arena.used_bytes == K16 + size
    assert arena.left_bytes == (1 << 20) - K16 - size
    assert repr(ring) == f"<Ring {size} bytes at unit 1>"


def test_the_largest_ring():
    assert (MIN_RING_BYTES, MAX_RING_BYTES) == (K16, 32 << 20)
    arena: Any = Arena(memoryview(mmap.mmap(-1, 64 << 20)), 128 << 20)

    assert arena.take(MAX_RING_BYTES + 1) is None
    assert arena.take(MAX_RING_BYTES).word == 1 << 8 | 11


def test_the_budget_bounds_the_sum():
    arena, _ = new_arena(budget=3 * K16)
    one, two = arena.take(2 * K16), arena.take(K16)

    assert arena.take(1) is None
    arena.give(two)
    assert arena.take(K16 + 1) is None
    assert arena.take(1) is two
    arena.give(one)
    assert arena.used_bytes == K16


def test_a_ring_given_back_is_the_next_one_taken():
    arena, _ = new_arena()
    cold, warm = arena.take(1), arena.take(1)
    arena.give(cold)
    arena.give(warm)

    assert arena.take(1) is warm
    assert arena.take(1) is cold


def test_no_room_in_the_memory():
    arena, _ = new_arena(budget=1 << 30, size=3 * K16)
    assert arena.take(4 * K16) is None
    assert arena.take(2 * K16)
    assert arena.take(2 * K16) is None
    assert arena.used_bytes == 2 * K16
    assert arena.take(1)


def test_tidy_discards_what_lay_unused_since_the_last_call():
    arena, discarded = new_arena()
    rings = [arena.take(1) for _ in range(3)]
    for ring in rings:
        arena.give(ring)
    arena.tidy()
    assert discarded == []

    busy = arena.take(1)
    assert busy is rings[2]
    arena.give(busy)
    arena.tidy()
    assert discarded == [(0, K16), (K16, K16)]

    arena.tidy()
    assert discarded[2:] == [(2 * K16, K16)]
    arena.tidy()
    assert len(discarded) == 3
    assert arena.take(1) in rings


def test_a_ring_that_was_discarded_may_be_discarded_again_after_use():
    arena, discarded = new_arena()
    ring = arena.take(1)
    arena.give(ring)
    for _ in range(2):
        arena.tidy()
    assert arena.take(1) is ring
    arena.tidy()
    arena.give(ring)
    for _ in range(2):
        arena.tidy()
    assert discarded == [(0, K16)] * 2


def test_tidy_without_anybody_to_discard():
    arena: Any = Arena(memoryview(bytearray(K16)), K16)
    arena.give(arena.take(1))
    arena.tidy()
    arena.tidy()

    assert arena.take(1)


def test_a_ring_is_cut_from_a_larger_one_that_lies_clean_then_from_the_end_then_from_any():
    arena, discarded = new_arena(size=8 * K16)
    large = arena.take(4 * K16)
    arena.give(large)
    behind = arena.take(1)
    assert behind.word >> 8 == 5, "from the end: the pages of the large one are warm"
    arena.tidy()
    arena.tidy()
    assert discarded == [(0, 4 * K16)]
    assert [arena.take(1).word >> 8 for _ in range(4)] == [1, 2, 3, 4]
    rest = arena.take(2 * K16)
    assert rest.word >> 8 == 6
    arena.give(rest)
    assert [arena.take(1).word >> 8 for _ in range(3)] == [8, 6, 7]
    assert arena.take(1) is None
    assert arena.used_bytes == 8 * K16


def test_what_is_left_of_a_warm_ring_is_given_back_to_the_system_like_others():
    arena, discarded = new_arena(size=4 * K16)
    arena.give(arena.take(4 * K16))
    used = arena.take(1)
    for _ in range(3):
        arena.tidy()
    assert sorted(discarded) == [(K16, K16), (2 * K16, 2 * K16)]
    arena.give(used)
    for _ in range(2):
        arena.tidy()
    assert min(discarded) == (0, K16)
