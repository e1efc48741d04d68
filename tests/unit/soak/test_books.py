"""What is flat, and what is not; and all memory of a family."""

from __future__ import annotations

import mmap
import os

import pytest

from soak_books import MIB, Sample, all_memory, flat, grown

RING_BYTES = 8 * MIB


def samples(*megabytes, descriptors=1000):
    return [
        Sample({"server worker": value * MIB}, {"server worker": descriptors})
        for value in megabytes
    ]


def test_what_goes_up_and_down_is_flat():
    assert flat(samples(*[500, 520, 480, 510] * 5)) == []


def test_what_goes_up_slowly_is_not():
    assert flat(samples(*[500 + number for number in range(40)])) == [
        "memory of server workers: 504.5, then 534.5"
    ]


def test_descriptors_that_stay_are_seen():
    few, many = samples(*[500] * 10), samples(*[500] * 10, descriptors=1031)
    assert flat(few + many) == ["descriptors of server workers: 1000.0, then 1031.0"]


def test_too_few_looks_say_nothing():
    assert flat(samples(500, 500)) == ["only 2 looks at memory and descriptors: run longer"]


def test_one_worker_that_grew_is_found_among_many():
    before = [10 * MIB] * 100
    assert grown(before, before, 3600) == []
    assert grown(before, [*before[:-1], 15 * MIB], 3600) == ["a worker grew by 5.0 MiB"]


@pytest.fixture
def ring():
    fd = os.memfd_create("ring")
    os.ftruncate(fd, RING_BYTES)
    yield fd
    os.close(fd)


def test_rings_count_once_whether_they_are_mapped_or_not(ring):
    before = all_memory(os.getpid(), ())
    with mmap.mmap(ring, RING_BYTES) as view:
        view[:] = b"x" * RING_BYTES
        mapped = all_memory(os.getpid(), ()) - before
    unmapped = all_memory(os.getpid(), ()) - before

    assert mapped == pytest.approx(RING_BYTES, rel=0.2)
    assert unmapped == pytest.approx(RING_BYTES, rel=0.2)
