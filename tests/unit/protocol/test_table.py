"""The stream table: where each word lies."""

from __future__ import annotations

import sys

import pytest

from tunneltcp.protocol.errors import LocalProtocolError
from tunneltcp.protocol.table import (
    BYTES_READ,
    CONFIRMED,
    COOKIE,
    END_READ,
    ERROR_SEEN,
    FIN_OFFSET,
    FLAGS,
    HEADER_WORDS,
    LAYOUT_VERSION,
    RECORD_WORDS,
    RING_WORD,
    STREAM_ID,
    StreamTable,
)


def new_table(records=3):
    memory = bytearray(4096 + 64 * records)
    return memory, StreamTable(memoryview(memory))


def word(memory, index):
    return int.from_bytes(memory[8 * index : 8 * index + 8], sys.byteorder)


def test_the_layout():
    assert (HEADER_WORDS * 8, RECORD_WORDS * 8) == (4096, 64)
    assert (COOKIE, STREAM_ID, RING_WORD, BYTES_READ, FLAGS, FIN_OFFSET) == (0, 1, 2, 3, 4, 5)
    assert (END_READ, ERROR_SEEN, CONFIRMED) == (1, 2, 4)
    memory, table = new_table()

    table.next_stream_id()
    table.set_session(bytes(range(16)), 9)
    table.raise_attempt()
    record = table.take(77, 0xC0FFEE)

    header = [word(memory, index) for index in range(8)]
    assert header == [3, 0x0001020304050607, 0x08090A0B0C0D0E0F, 9, 1, 2, 0, 1]
    assert LAYOUT_VERSION == 3
    assert record == HEADER_WORDS
    assert [word(memory, 512 + index) for index in range(8)] == [0xC0FFEE, 77, 0, 0, 0, 0, 0, 0]


def test_when_a_visitor_came_lies_beside_all_that_the_flags_say():
    memory, table = new_table()
    record = table.take(77, 1)
    assert table.came(record) is None
    table.words[record + FLAGS] |= END_READ
    table.set_address(record, bytes([4, 192, 0, 2, 7, 0xFF, 0xFF]))
    table.set_came(record, 1_000_000.13)

    again = StreamTable(memoryview(memory))
    assert again.came(record) == 1_000_000.125
    assert again.address(record) == bytes([4, 192, 0, 2, 7, 0xFF, 0xFF])
    assert again.words[record + FLAGS] & 0xFF == END_READ
    again.give(record)
    assert again.take(78, 1) == record
    assert again.came(record) is None


def test_a_visitor_may_come_as_the_clock_begins_or_after_it_has_run_out():
    _, table = new_table()
    early, late = table.take(1, 0), table.take(2, 0)
    table.set_came(early, 0.0)
    table.set_came(late, 1e12)
    assert table.came(early) == 1 / 16
    assert table.came(late) == (2**32 - 1) / 16


def test_ids_begin_at_one_and_go_on_in_the_next_mapping():
    memory, table = new_table()
    assert [table.next_stream_id(), table.next_stream_id()] == [1, 2]

    again = StreamTable(memoryview(memory))
    again.clear()
    assert again.next_stream_id() == 3


def test_an_id_is_counted_before_it_is_used():
    memory, table = new_table()
    assert table.next_stream_id() == 1
    assert word(memory, 5) == 2


def test_records_are_used_again_and_clean():
    _, table = new_table()
    one, two = table.take(1, 5), table.take(2, 6)
    assert two == one + RECORD_WORDS
    for index in (RING_WORD, BYTES_READ, FLAGS, FIN_OFFSET):
        table.words[one + index] = 99
    table.give(one)

    assert not any(table.words[one : one + RECORD_WORDS])
    assert table.take(3, 0) == one
    assert table.words[two + STREAM_ID] == 2


def test_no_free_record():
    _, table = new_table(2)
    assert table.capacity == 2
    table.take(1, 0)
    table.take(2, 0)

    with pytest.raises(LocalProtocolError, match="no free record"):
        table.take(3, 0)


def test_a_new_mapping_leaves_records_alone_and_clear_frees_them():
    memory, table = new_table()
    record = table.take(1, 5)
    table.words[record + BYTES_READ] = 42

    again = StreamTable(memoryview(memory))
    assert again.words[record + BYTES_READ] == 42
    assert again.take(2, 0) != record

    again.clear()
    assert not any(again.words[HEADER_WORDS:])
    assert again.take(3, 0) == record


def test_an_attempt_is_higher_than_all_before():
    memory, table = new_table()
    assert [table.raise_attempt(), table.raise_attempt()] == [1, 2]
    assert StreamTable(memoryview(memory)).raise_attempt() == 3
