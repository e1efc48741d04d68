"""What a session makes of bytes: the same however they are cut, and of garbage an error."""

from __future__ import annotations

import functools
import itertools
import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support import frame_factory as make
from tests.support.pattern import pattern
from tests.support.session_pair import Side
from tunneltcp.protocol.errors import RemoteProtocolError, ResetCode
from tunneltcp.protocol.frames import (
    MAX_OFFSET,
    MAX_PAYLOAD_BYTES,
    check_open,
)
from tunneltcp.protocol.sender import MAX_ANSWERS

if TYPE_CHECKING:
    from tunneltcp.protocol.stream import Stream

BUDGET = 2 << 20
FIRST_ID = 2**32 - 2
"""Streams 1 and 2 of a test take the quick path through the receiver, the others cannot."""
STREAMS = 4


class Recorder:
    """An endpoint that notes what it is told; it takes a number of bytes, then no more."""

    stream: Stream

    def __init__(self, name, log, appetite):
        self.name = name
        self.log = log
        self.appetite = appetite
        self.came = bytearray()
        self.taken = 0

    def note(self, what):
        if self.log[-1:] != [(self.name, what)]:
            self.log.append((self.name, what))

    def deliver(self, data):
        assert len(data)
        count = 0
        if self.taken == len(self.came):
            count = min(len(data), self.appetite - self.taken)
        self.taken += count
        self.came += data
        self.note("data")
        return count

    def deliver_fin(self):
        self.note("fin")
        if self.taken == len(self.came):
            self.stream.record_fin()
            self.stream.fin_done()

    def resume_reading(self):
        self.note("resume")

    def drop_waiting(self):
        del self.came[self.taken :]

    def abort(self, code):
        self.note(f"abort {code}")

    def close(self):
        self.note("close")


def read_at_most(size, view):
    return min(size, len(view))


class Bench:
    """One session with open streams that have sent something, and a log of what it does."""

    def __init__(self, role, appetites, sent):
        self.log: list[object] = []
        self.side = Side(role, BUDGET, STREAMS, opens=role == "server", first_limit=32768)
        self.session = self.side.session
        self.side.accept = self.accept
        self.appetites = list(appetites)
        self.recorders: list[Recorder] = []
        self.ids = [FIRST_ID + index for index in range(STREAMS - 1)]
        self.kept = b""
        self.error = ""
        self.side.table.words[5] = FIRST_ID
        for stream_id in self.ids:
            if role == "server":
                recorder = self.new_recorder(stream_id)
                stream = self.session.open_stream(recorder, 1, make.addresses(1))
                recorder.stream = stream
            else:
                self.feed(make.open_(stream_id))
        for recorder, size in zip(self.recorders, sent, strict=False):
            recorder.stream.fill(functools.partial(read_at_most, size))
            if size % 2:
                recorder.stream.finish()
        while self.session.data_to_send():
            pass

    def new_recorder(self, stream_id):
        appetite = self.appetites.pop() if self.appetites else 0
        recorder = Recorder(stream_id, self.log, appetite)
        self.recorders.append(recorder)
        return recorder

    def accept(self, stream, addresses):
        self.log.append(("open", stream.id, addresses))
        recorder = self.new_recorder(stream.id)
        recorder.stream = stream
        return recorder

    def feed(self, piece):
        """As a link does; False once the peer has broken the protocol."""
        whole = bytearray(self.kept + piece)
        if self.error:
            return False
        try:
            used = self.session.receive(memoryview(whole), len(whole))
        except RemoteProtocolError as error:
            self.error = str(error)
            self.kept = b""
            return False
        self.kept = bytes(whole[used:])
        assert len(self.kept) < 64
        whole[:] = bytes(len(whole))
        return True

    def effect(self):
        """All that can be seen of what was fed."""
        out = [b"".join(self.session.data_to_send())]
        for _ in range(3):
            self.session.sweep()
            out.append(b"".join(self.session.data_to_send()))
        ends = [(end.name, bytes(end.came), end.taken) for end in self.recorders]
        return self.error, self.kept, self.log, ends, out, self.heard()

    def heard(self):
        return self.side.pongs, self.side.goaways

    def check_bounds(self):
        """However wrong the peer is, memory stays within what was set aside."""
        session = self.session
        assert len(session.streams) <= STREAMS
        assert session.windows.granted_bytes == sum(s.window for s in session.streams.values())
        assert session.windows.granted_bytes <= BUDGET
        assert self.side.arena.used_bytes <= BUDGET
        for end in self.recorders:
            assert len(end.came) - end.taken <= 1 << 20
        size = 0
        while batch := session.data_to_send():
            size += sum(map(len, batch))
        assert size <= MAX_ANSWERS * 64 + BUDGET


# ------------------------------------------------------------------- frames to feed


@st.composite
def scripts(draw, role):
    """A row of frames, most of them right; offsets are followed per stream."""
    ids = [FIRST_ID + index for index in range(STREAMS - 1)]
    offsets = dict.fromkeys([*ids, FIRST_ID - 1, FIRST_ID + STREAMS], 0)
    frames = []
    for _ in range(draw(st.integers(1, 14))):
        kind = draw(st.sampled_from("ddddddfrccpqgoowwx"))
        target = draw(st.sampled_from(ids if draw(st.integers(0, 9)) else list(offsets)))
        at = offsets[target]
        if kind == "d":
            size = draw(st.sampled_from([1, 2, 15, 16, 17, 100, 4096, 20_000]))
            frames.append(make.data(target, at, pattern(target, at, size)))
            offsets[target] += size
        elif kind == "w":
            away = draw(st.sampled_from([-1, 1, 100_000, 2_000_000]))
            size = draw(st.sampled_from([1, 50, 1 << 18]))
            frames.append(make.data(target, max(0, at + away), bytes(size)))
        elif kind == "f":
            wrong = draw(st.integers(0, 5)) == 0
            frames.append(make.fin(target, at + wrong))
        elif kind == "r":
            frames.append(make.reset(target, draw(st.integers(0, 7))))
        elif kind == "c":
            delivered = draw(st.sampled_from([0, 1, 10, 11, 1000, 2**62, 2**64 - 1]))
            limit = draw(st.sampled_from([0, 1000, 65_536, 1 << 20, 2**62, 2**62 + 1]))
            frames.append(make.credit(target, delivered, limit, draw(st.integers(0, 3))))
        elif kind == "p":
            frames.append(make.ping(draw(st.integers(0, 2**64 - 1))))
        elif kind == "q":
            frames.append(make.pong(draw(st.integers(0, 2**64 - 1))))
        elif kind == "g":
            frames.append(make.goaway(draw(st.integers(0, 99)), draw(st.integers(0, 2))))
        elif kind == "o" and role == "client":
            frames.append(make.open_(max(ids) + draw(st.integers(-1, 3)), port=5))
        elif draw(st.integers(0, 3)) == 0:
            frames.append(draw(wrong_frames))
    return b"".join(frames)


wrong_frames = st.builds(
    make.frame,
    st.integers(0, 15),
    st.sampled_from([0, 1, FIRST_ID, FIRST_ID + 2, FIRST_ID + 9, 2**40 - 1]),
    st.sampled_from([0, 1, 100, MAX_OFFSET, MAX_OFFSET + 1, 2**64 - 1]),
    st.binary(max_size=40),
    st.sampled_from([-1, -1, -1, -1, 0, 9, 39, 1 << 18, (1 << 18) + 1, (1 << 20) - 1]),
)
roles = st.sampled_from(["server", "client"])
appetites = st.lists(
    st.sampled_from([0, 1, 3000, 16_384, 1 << 30]), min_size=STREAMS, max_size=STREAMS
)
sent_sizes = st.lists(st.sampled_from([0, 1, 10, 11, 1000, 30_001]), min_size=3, max_size=3)


def cut(whole, places):
    edges = [0, *sorted({place % (len(whole) + 1) for place in places}), len(whole)]
    return [whole[start:end] for start, end in itertools.pairwise(edges)]


@given(st.data(), roles, appetites, sent_sizes, st.lists(st.integers(0, 2**32), max_size=12))
def test_any_cut_has_the_same_effect(data, role, appetites, sent, places):
    whole = data.draw(scripts(role))
    first = Bench(role, appetites, sent)
    first.feed(whole)
    expected = first.effect()

    second = Bench(role, appetites, sent)
    for piece in cut(whole, places):
        second.feed(piece)
    assert second.effect() == expected


@pytest.mark.parametrize("role", ["server", "client"])
@given(data=st.data(), appetites=appetites, sent=sent_sizes)
def test_byte_by_byte_has_the_same_effect(role, data, appetites, sent):
    whole = data.draw(scripts(role))[:3000]
    first = Bench(role, appetites, sent)
    first.feed(whole)
    expected = first.effect()

    second = Bench(role, appetites, sent)
    for index in range(len(whole)):
        second.feed(whole[index : index + 1])
    assert second.effect() == expected


@given(roles, st.lists(st.integers(0, 2**32), max_size=12), appetites)
def test_data_arrives_as_it_was_sent(role, places, appetites):
    """The effect is not only the same, it is the right one."""
    bench = Bench(role, appetites, [])
    frames = b""
    for stream_id in bench.ids:
        offset = 0
        for size in (1, 16, 10_000, 5_000):
            frames += make.data(stream_id, offset, pattern(stream_id, offset, size))
            offset += size
        frames += make.fin(stream_id, offset)
    for piece in cut(frames, places):
        assert bench.feed(piece)

    for end in bench.recorders:
        assert bytes(end.came) == pattern(end.name, 0, 15_017)
        assert end.stream.received == end.stream.peer_fin == 15_017
        assert end.stream.delivered == end.taken == min(15_017, end.appetite)


@given(st.data(), roles, st.binary(max_size=300), st.integers(0, 2**32))
def test_garbage_is_a_protocol_error_or_nothing(data, role, garbage, seed):
    bench = Bench(role, [100, 0, 1 << 20], [10, 11, 0])
    whole = data.draw(scripts(role)) + data.draw(wrong_frames) + garbage
    rng = random.Random(seed)
    whole = bytearray(whole)
    for _ in range(rng.randrange(4)):
        whole[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)

    for piece in cut(bytes(whole), [rng.randrange(2**32) for _ in range(6)]):
        if not bench.feed(piece):  # anything but RemoteProtocolError comes out here
            break
        bench.check_bounds()
    bench.session.sweep()
    bench.session.abort_all(ResetCode.CANCELLED)
    bench.check_bounds()
    assert bench.side.arena.used_bytes == 0
    assert bench.session.windows.granted_bytes == 0


@pytest.mark.parametrize("role", ["server", "client"])
@pytest.mark.parametrize("seed", range(4))
def test_long_rows_of_wrong_frames_stay_within_bounds(role, seed, monkeypatch):
    """Thousands of frames that are possible, but make no sense, to one session."""
    monkeypatch.setattr("tunneltcp.protocol.glitches.FREE_GLITCHES", 1 << 20)
    rng = random.Random(seed)
    bench = Bench(role, [1 << 30, 0, 5], [1000, 11, 0])
    top = FIRST_ID + STREAMS
    for _ in range(4000):
        stream_id = rng.randrange(FIRST_ID, top) if role == "client" else rng.choice(bench.ids)
        kind = rng.randrange(7)
        if kind == 0:
            piece = make.data(stream_id, rng.randrange(3), bytes(rng.randrange(1, 50)))
        elif kind == 1:
            piece = make.fin(stream_id, rng.randrange(3))
        elif kind == 2:
            piece = make.credit(stream_id, rng.randrange(3), rng.randrange(2**20), 0)
        elif kind == 3:
            piece = make.reset(stream_id, rng.randrange(3))
        elif kind == 4 and role == "client":
            piece = make.open_(top)
            top += rng.randrange(2)
        else:
            piece = make.ping(5)
        if role == "client" and top > bench.session.last_id + 1:
            piece = make.open_(top)
        assert bench.feed(piece), bench.error
        if rng.randrange(8) == 0:
            bench.check_bounds()
            for known in list(bench.session.resetting):
                assert bench.feed(make.reset(known, 0))
    bench.check_bounds()


# ------------------------------------------------------------------------- payloads


def parse_addresses(payload):
    """PROTOCOL.md §7.1 once more, in another way: the addresses, or None."""
    found = []
    for _ in range(2):
        size = {4: 6, 6: 18, 0: 0}.get(payload[0]) if payload else None
        if size is None or len(payload[1:]) < size:
            return None
        found.append(payload[1 : 1 + size])
        payload = payload[1 + size :]
    return None if payload else found


@given(st.one_of(st.binary(max_size=40), st.binary(max_size=18).map(lambda b: b"\4" + b)))
@example(b"\0\0")
@example(b"\4\1\2\3\4\0\5\0")
@example(b"\6" + bytes(18) + b"\6" + bytes(18))
def test_any_payload_of_open_is_two_addresses_or_an_error(payload):
    if parse_addresses(payload) is not None:
        check_open(payload)
        return
    with pytest.raises(RemoteProtocolError):
        check_open(payload)


def test_the_longest_data_in_one_byte_pieces_is_one_delivery_after_another():
    bench = Bench("client", [1 << 30] * 3, [])
    stream_id = bench.ids[0]
    whole = make.data(stream_id, 0, pattern(1, 0, MAX_PAYLOAD_BYTES))

    for piece in cut(whole, range(1, len(whole), 37)):
        assert bench.feed(piece)
        assert len(bench.kept) < 16
    assert bytes(bench.recorders[0].came) == pattern(1, 0, MAX_PAYLOAD_BYTES)
