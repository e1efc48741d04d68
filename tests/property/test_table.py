"""The stream table against a model, over re-mappings of the same memory."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tunneltcp.protocol.errors import LocalProtocolError
from tunneltcp.protocol.table import (
    BYTES_READ,
    COOKIE,
    FIN_OFFSET,
    FLAGS,
    HEADER_WORDS,
    RECORD_WORDS,
    RING_WORD,
    STREAM_ID,
    StreamTable,
)

RECORDS = 6
WORDS = (RING_WORD, BYTES_READ, FLAGS, FIN_OFFSET)


class TableModel(RuleBasedStateMachine):
    """Streams take records and write into them; workers come and go."""

    def __init__(self):
        super().__init__()
        self.memory = bytearray(8 * (HEADER_WORDS + RECORD_WORDS * RECORDS) + 17)
        self.table = self.map()
        self.live = {}
        self.last_id = 0
        self.last_attempt = 0
        self.lost = 0

    def map(self):
        # A whole number of words, and as a worker maps it: over what is there already.
        return StreamTable(memoryview(self.memory)[: len(self.memory) // 8 * 8])

    @rule(cookie=st.integers(0, 2**64 - 1), values=st.tuples(*[st.integers(0, 2**64 - 1)] * 4))
    def take(self, cookie, values):
        stream_id = self.table.next_stream_id()
        assert stream_id > self.last_id, "an id was used twice"
        self.last_id = stream_id
        if len(self.live) + self.lost == self.table.capacity:
            with pytest.raises(LocalProtocolError):
                self.table.take(stream_id, cookie)
            return
        record = self.table.take(stream_id, cookie)
        assert record not in self.live, "a record of two streams"
        assert record >= HEADER_WORDS
        assert (record - HEADER_WORDS) % RECORD_WORDS == 0
        assert not any(self.table.words[record + word] for word in WORDS), "not clean"
        for word, value in zip(WORDS, values, strict=True):
            self.table.words[record + word] = value
        self.live[record] = (cookie, stream_id, *values)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def give(self, data):
        record = data.draw(st.sampled_from(sorted(self.live)))
        del self.live[record]
        self.table.give(record)
        assert not any(self.table.words[record : record + RECORD_WORDS])

    @rule()
    def another_worker_maps_it(self):
        """It finds every record in use where it was; freed ones it may not know."""
        self.table = self.map()
        self.lost = self.table.words[7] - len(self.live)

    @rule()
    def another_worker_starts_afresh(self):
        self.table = self.map()
        self.table.clear()
        self.live.clear()
        self.lost = 0
        assert not any(self.table.words[HEADER_WORDS:])

    @rule()
    def raise_attempt(self):
        attempt = self.table.raise_attempt()
        assert attempt > self.last_attempt
        self.last_attempt = attempt

    @rule(session=st.binary(min_size=16, max_size=16), epoch=st.integers(0, 2**63))
    def set_session(self, session, epoch):
        self.table.set_session(session, epoch)
        words = self.table.words
        assert words[1].to_bytes(8, "big") + words[2].to_bytes(8, "big") == session
        assert words[3] == epoch

    @invariant()
    def records_say_what_was_stored(self):
        assert self.table.capacity == RECORDS + 2 // RECORD_WORDS
        for record, (cookie, stream_id, *values) in self.live.items():
            words = self.table.words
            assert words[record + COOKIE] == cookie
            assert words[record + STREAM_ID] == stream_id
            assert [words[record + word] for word in WORDS] == values


def test_table():
    run_state_machine_as_test(TableModel, settings=settings(stateful_step_count=40))
