"""The arena against a model: rings never overlap, and nothing is lost or kept too long."""

from __future__ import annotations

import itertools
import mmap

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tunneltcp.protocol.arena import MAX_RING_BYTES, MIN_RING_BYTES, Arena

SIZES = st.one_of(
    st.sampled_from([1, 16_384, 16_385, 65_536, 65_537, 262_144, 1 << 20]),
    st.integers(1, 1 << 20),
)


class ArenaModel(RuleBasedStateMachine):
    """Streams take rings, write into them, and give them back; time passes."""

    @initialize(budget=st.sampled_from([0, 16_384, 100_000, 1 << 20, (1 << 20) + 1, 4 << 20]))
    def start(self, budget):
        self.budget = budget
        self.memory = mmap.mmap(-1, 16 * max(budget, 1 << 20))
        self.arena = Arena(memoryview(self.memory), budget, self.discard)
        self.live = {}
        self.stamp = 0
        self.dirty = set()
        self.old_free = set()

    def discard(self, start, size):
        for ring in self.live:
            at = ((ring.word >> 8) - 1) * MIN_RING_BYTES
            assert start + size <= at or at + ring.size <= start, "a live ring was discarded"
        self.memory[start : start + 64] = bytes(64)
        self.memory[start + size - 64 : start + size] = bytes(64)
        assert (start, size) in self.dirty, "discarded twice, or never handed out"
        assert (start, size) in self.old_free, "discarded, but in use since the last call"
        self.dirty.remove((start, size))

    def place(self, ring):
        return (((ring.word >> 8) - 1) * MIN_RING_BYTES, ring.size)

    @rule(size=SIZES)
    def take(self, size):
        ring_bytes = MIN_RING_BYTES
        while ring_bytes < size:
            ring_bytes *= 2
        ring = self.arena.take(size)
        fits = sum(r.size for r in self.live) + ring_bytes <= self.budget
        assert (ring is not None) == fits
        if ring is None:
            return
        assert ring.size == len(ring.view) == ring.mask + 1 == ring_bytes
        assert ring.word & 0xFF == (ring_bytes // MIN_RING_BYTES).bit_length() - 1
        self.stamp += 1
        mark = self.stamp.to_bytes(8, "big") * 8
        ring.view[:64] = ring.view[-64:] = mark
        start = self.place(ring)[0]
        assert self.memory[start : start + 64] == mark, "the word names another place"
        assert ring not in self.live
        self.live[ring] = mark
        self.dirty.add(self.place(ring))
        self.old_free.discard(self.place(ring))

    @precondition(lambda self: bool(getattr(self, "live", None)))
    @rule(data=st.data())
    def give(self, data):
        ring = data.draw(st.sampled_from(list(self.live)))
        del self.live[ring]
        self.arena.give(ring)

    @rule()
    def tidy(self):
        self.arena.tidy()
        assert not self.old_free & self.dirty, "unused for a whole period, but not discarded"
        live = {self.place(ring) for ring in self.live}
        self.old_free = self.dirty - live

    @invariant()
    def holds(self):
        if not hasattr(self, "arena"):
            return
        used = sum(ring.size for ring in self.live)
        assert self.arena.used_bytes == used <= max(self.budget, used and 0)
        assert self.arena.left_bytes == self.budget - used
        places = sorted(map(self.place, self.live))
        for (start, size), (after, _) in itertools.pairwise(places):
            assert start + size <= after, "two rings overlap"
        for ring, mark in self.live.items():
            assert ring.view[:64] == mark == ring.view[-64:], "a live ring was written to"


def test_arena():
    run_state_machine_as_test(ArenaModel, settings=settings(stateful_step_count=50))


@given(st.integers(1, MAX_RING_BYTES * 2))
def test_a_ring_is_the_smallest_power_of_two_that_holds_it(size):
    arena = Arena(memoryview(mmap.mmap(-1, 128 << 20)), 128 << 20)

    ring = arena.take(size)

    if size > MAX_RING_BYTES:
        assert ring is None
    else:
        assert ring is not None
        assert ring.size >= size
        assert ring.size == MIN_RING_BYTES or ring.size < 2 * size
        assert ring.size.bit_count() == 1


@given(st.integers(0, 6), st.integers(1, 5))
def test_without_room_in_the_memory_there_is_no_ring(units, sizes):
    arena = Arena(memoryview(bytearray(units * MIN_RING_BYTES)), 1 << 30)

    rings = [ring for _ in range(10) if (ring := arena.take(sizes * MIN_RING_BYTES))]

    assert sum(ring.size for ring in rings) <= units * MIN_RING_BYTES
    assert arena.used_bytes == sum(ring.size for ring in rings)
