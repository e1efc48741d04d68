"""A tunnel's memory, in a file or of the process alone."""

from __future__ import annotations

import gc
import os
import re
from pathlib import Path

import pytest

from tunneltcp.master.resources import make_memory
from tunneltcp.protocol.arena import MIN_RING_BYTES
from tunneltcp.relay.memory import RECEIVE_BYTES, TunnelMemory, receive_buffer

RECORDS = 4096 + 64 * 64
BUDGET = 1 << 20


@pytest.fixture(params=["file", "alone"])
def memory(request):
    size = RECORDS + 12 * BUDGET
    if request.param == "alone":
        yield TunnelMemory(None, size, RECORDS, BUDGET)
        return
    fd = make_memory("test", size)
    yield TunnelMemory(fd, size, RECORDS, BUDGET)
    os.close(fd)


def resident() -> int:
    """Bytes of this process in memory, counted page by page: its status is behind by some."""
    gc.collect()
    text = Path("/proc/self/smaps_rollup").read_text()
    sizes = re.findall(r"^Pss_(?:Anon|Shmem):\s+(\d+) kB", text, re.MULTILINE)
    return sum(map(int, sizes)) * 1024


def test_rings_hold_what_is_put_in(memory):
    one, other = memory.arena.take(MIN_RING_BYTES), memory.arena.take(MIN_RING_BYTES)
    one.view[:5], other.view[:5] = b"hello", b"world"
    assert bytes(one.view[:5]) + bytes(other.view[:5]) == b"helloworld"


def test_what_nobody_wanted_lately_goes_back_to_the_system(memory):
    ring = memory.arena.take(BUDGET)
    before = resident()
    ring.view[:] = b"x" * len(ring.view)
    filled = resident()
    assert filled - before > BUDGET // 2
    memory.arena.give(ring)
    memory.arena.tidy()
    memory.arena.tidy()
    assert filled - resident() > BUDGET // 2


def test_clear_forgets_records_and_bytes(memory):
    ring = memory.arena.take(MIN_RING_BYTES)
    ring.view[:6] = b"secret"
    record = memory.table.take(memory.table.next_stream_id(), 7)
    memory.clear()
    assert bytes(ring.view[:6]) == bytes(6)
    assert memory.table.words[record + 1] == 0
    assert memory.table.next_stream_id() == 2, "an id is never used again"


def test_the_buffer_of_a_link_is_given_back_when_idle():
    buffer = receive_buffer()
    before = resident()
    buffer.view[:] = b"x" * RECEIVE_BYTES
    buffer.used = True
    filled = resident()
    buffer.tidy()
    assert filled - before > RECEIVE_BYTES // 2
    assert filled - resident() > RECEIVE_BYTES // 2
    assert not buffer.used
