"""What a successor finds in the memory: records, rings; sound or not."""

from __future__ import annotations

import itertools
import random

from tunneltcp.protocol.arena import MIN_RING_BYTES, Arena
from tunneltcp.protocol.table import (
    BYTES_READ,
    COOKIE,
    HEADER_WORDS,
    OWNER_WORDS,
    RECORD_WORDS,
    RING_WORD,
    STREAM_ID,
    StreamTable,
)

K16 = MIN_RING_BYTES


def word(unit: int, size_class: int) -> int:
    return (unit + 1) << 8 | size_class


def units_of(rings):
    """Which units these cover; none twice."""
    units = sorted(
        unit
        for ring in rings
        for unit in range((ring.word >> 8) - 1, (ring.word >> 8) - 1 + ring.size // K16)
    )
    assert len(units) == len(set(units))
    return units


class TestRings:
    def adopt(self, words, units=64):
        discarded = []
        memory = memoryview(bytearray(units * K16))
        arena = Arena(memory, units * K16, lambda start, size: discarded.append((start, size)))
        return arena, arena.adopt(words), discarded

    def test_sound_ones_are_as_they_were_and_all_else_is_given_back(self):
        words = [word(2, 1), word(10, 0)]
        arena, rings, discarded = self.adopt(words)
        assert {one: ring.size for one, ring in rings.items()} == {
            words[0]: 2 * K16,
            words[1]: K16,
        }
        assert arena.used_bytes == 3 * K16
        kept = {2, 3, 10}
        given = {
            unit
            for start, size in discarded
            for unit in range(start // K16, (start + size) // K16)
        }
        assert given == set(range(64)) - kept

    def test_what_lies_between_is_handed_out_again(self):
        arena, rings, _ = self.adopt([word(3, 0), word(9, 2)], units=16)
        taken = list(rings.values())
        while (ring := arena.take(1)) is not None:
            taken.append(ring)
        assert units_of(taken) == list(range(16)), "all of it, and nothing twice"

    def test_no_ring_is_refused_because_the_last_of_all_is_in_use(self):
        arena, rings, _ = self.adopt([word(63, 0)])
        taken = [*rings.values()]
        for size in (4 * K16, K16, 8 * K16):
            taken.append(arena.take(size))
            assert taken[-1].size == size
        while (ring := arena.take(1)) is not None:
            taken.append(ring)
        assert units_of(taken) == list(range(64))

    def test_after_a_thousand_takeovers_there_is_a_ring_as_long_as_any_is_left(self):
        """Each worker takes rings behind those that it found; none may drift to the end."""
        chance, budget = random.Random(9), 64 * K16
        memory = memoryview(bytearray(8 * budget))
        kept: list[int] = []
        for _ in range(1000):
            arena = Arena(memory, budget)
            rings = list(arena.adopt(kept).values())
            assert len(rings) == len(kept)
            for _ in range(30):
                if rings and chance.random() < 0.5:
                    arena.give(rings.pop(chance.randrange(len(rings))))
                elif (ring := arena.take(K16 << chance.randrange(5))) is not None:
                    rings.append(ring)
                else:
                    while rings and arena.left_bytes < K16:
                        arena.give(rings.pop())
                    small = arena.take(1)
                    assert small is not None
                    rings.append(small)
                if chance.random() < 0.1:
                    arena.tidy()
            units_of(rings)
            kept = [ring.word for ring in rings]

    def test_two_that_overlap_are_none(self):
        _, rings, _ = self.adopt([word(0, 2), word(3, 0), word(8, 0)])
        assert set(rings) == {word(8, 0)}
        _, rings, _ = self.adopt([word(0, 3), word(1, 0), word(5, 0), word(8, 0)])
        assert set(rings) == {word(8, 0)}

    def test_what_is_no_ring_is_none(self):
        for bad in (1, 7, 1 << 63, word(0, 12), word(0, 255), word(63, 1), word(64, 0)):
            arena, rings, _ = self.adopt([bad])
            assert rings == {}, hex(bad)
            assert arena.used_bytes == 0

    def test_random_words_never_break_it(self):
        chance = random.Random(3)
        for _ in range(300):
            words = [word(chance.randrange(70), chance.randrange(14)) for _ in range(12)]
            arena, rings, _ = self.adopt(words)
            spans = sorted(((w >> 8) - 1, ring.size // K16) for w, ring in rings.items())
            for (start, size), (after, _) in itertools.pairwise(spans):
                assert start + size <= after
            assert arena.used_bytes == sum(ring.size for ring in rings.values())


class TestRecords:
    def table(self):
        self.memory = bytearray(8 * (HEADER_WORDS + 8 * RECORD_WORDS))
        return StreamTable(memoryview(self.memory))

    def again(self):
        return StreamTable(memoryview(self.memory))

    def test_are_found_in_the_order_of_their_ids(self):
        table = self.table()
        first = [table.take(table.next_stream_id(), 100 + n) for n in range(4)]
        table.give(first[0])
        table.take(table.next_stream_id(), 200)
        table.words[first[2] + BYTES_READ] = 77
        found = self.again().records()
        assert [(one.stream_id, one.cookie) for one in found] == [
            (2, 101), (3, 102), (4, 103), (5, 200)
        ]  # fmt: skip
        assert found[1].bytes_read == 77
        assert found[1].final_offset is None

    def test_go_on_and_what_is_free_is_used_again(self):
        table = self.table()
        kept = table.take(table.next_stream_id(), 1)
        free = table.take(table.next_stream_id(), 2)
        table.give(free)
        other = self.again()
        assert len(other.records()) == 1
        assert other.last_id == 2
        assert other.take(other.next_stream_id(), 3) == free
        assert kept != free

    def test_doubles_and_ids_that_never_were_are_freed(self):
        table = self.table()
        one, two, three = (table.take(table.next_stream_id(), n + 1) for n in range(3))
        table.words[two + STREAM_ID] = 1
        table.words[three + COOKIE] = 1
        stranger = table.take(99, 50)
        found = self.again().records()
        assert [record.index for record in found] == [one]
        assert not any(table.words[stranger : stranger + RECORD_WORDS])

    def test_a_record_half_freed_is_freed(self):
        table = self.table()
        one = table.take(table.next_stream_id(), 5)
        table.words[one + RING_WORD] = 258
        table.words[one + STREAM_ID] = 0
        again = self.again()
        assert again.records() == []
        assert again.words[again.take(again.next_stream_id(), 6) + RING_WORD] == 0

    def test_another_layout_is_forgotten_but_for_the_ids(self):
        table = self.table()
        table.take(table.next_stream_id(), 5)
        table.set_session(b"s" * 16, 3)
        table.words[0] = 99
        again = self.again()
        assert again.records() == []
        assert again.session_id == bytes(16)
        assert again.next_stream_id() == 2

    def test_garbage_in_the_header_is_bounded(self):
        table = self.table()
        table.words[7] = (1 << 64) - 1
        assert self.again().records() == []

    def test_who_has_the_session(self):
        table = self.table()
        table.set_session(bytes(range(16)), 1)
        table.set_owner(b"somebody" * 100)
        again = self.again()
        assert again.session_id == bytes(range(16))
        assert again.owner == (b"somebody" * 100)[: 8 * OWNER_WORDS]
        again.set_owner(b"x")
        assert again.owner == b"x".ljust(8 * OWNER_WORDS, b"\0")
