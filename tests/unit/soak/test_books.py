"""What is flat, and what is not; and all memory of a family."""

from __future__ import annotations

import mmap
import os

import pytest

from soak_books import MIB, Member, Sample, all_memory, flat, grown

RING_BYTES = 32 * MIB
"""Far more than what else changes in a process of tests meanwhile."""


WORKERS = [Member(pid, "server", "worker") for pid in range(10)]


def samples(*megabytes, descriptors=100):
    """Looks at ten workers; the last one may be unlike the others."""
    rows = [value if isinstance(value, tuple) else (value, value) for value in megabytes]
    return [
        Sample(
            {member: MIB * (one if member.pid == 9 else all_) for member in WORKERS},
            dict.fromkeys(WORKERS, descriptors),
        )
        for all_, one in rows
    ]


def test_what_goes_up_and_down_is_flat():
    assert flat(samples(*[50, 52, 48, 51] * 5)) == []


def test_what_goes_up_slowly_is_not():
    assert flat(samples(*[50 + number / 10 for number in range(40)])) == [
        "memory of server workers: 504.5, then 534.5"
    ]


def test_one_worker_that_grows_is_found_among_many():
    assert flat(samples(*[(50, 50 + number / 10) for number in range(40)])) == []
    assert flat(samples(*[(50, 50 + number / 9) for number in range(40)])) == [
        "server worker 9 grew by 3.3 MiB"
    ]


def test_descriptors_that_stay_are_seen():
    few, many = samples(*[50] * 10), samples(*[50] * 10, descriptors=104)
    assert flat(few + many) == ["descriptors of server workers: 1000.0, then 1040.0"]


def test_too_few_looks_say_nothing():
    assert flat(samples(500, 500)) == ["only 2 looks at memory and descriptors: run longer"]


def test_a_worker_of_a_long_run_may_grow_a_little():
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
        for at in range(0, RING_BYTES, MIB):  # in one piece it may stay in the heap, freed
            view[at : at + MIB] = b"x" * MIB
        mapped = all_memory(os.getpid(), ()) - before
    unmapped = all_memory(os.getpid(), ()) - before

    assert mapped == pytest.approx(RING_BYTES, rel=0.2)
    assert unmapped == pytest.approx(RING_BYTES, rel=0.2)
