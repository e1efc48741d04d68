"""What is handed out for the link: fair, in order, and untouched until it is written."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from tests.support import frame_factory as make
from tests.support.frame_factory import split_frames
from tests.support.pattern import pattern
from tests.support.session_pair import MANY, SessionPair
from tunneltcp.protocol.arena import MIN_RING_BYTES
from tunneltcp.protocol.errors import ResetCode
from tunneltcp.protocol.frames import MAX_PAYLOAD_BYTES, FrameType


def warm(pair, visits):
    """Let streams get their full windows and rings, then come to rest."""
    pair.make_willing()
    for visit in visits:
        visit.visitor.write(3 << 20)
    pair.settle()
    pair.make_willing()
    pair.settle()
    pair.check_complete()


@given(st.integers(1, 5000), st.booleans(), st.integers(0, 3))
def test_a_modest_stream_is_in_the_very_next_batch(size, later, batches):
    pair = SessionPair(16 << 20)
    greedy, modest = pair.must_open(), pair.must_open()
    warm(pair, [greedy])
    greedy.visitor.write(64 << 20)
    while greedy.visitor.read() > 0:
        pass
    for _ in range(batches):  # the greedy one is in the middle of it
        pair.server.write()
        pair.client.receive(pair.server.out)
        pair.server.receive(pair.client.out)
        while greedy.visitor.read() > 0:
            pass
    if later:
        pair.server.write(1)  # a batch is handed out, and the wire is full
    modest.visitor.write(size)
    modest.visitor.read()
    pair.server.write()
    if later:
        pair.server.write()

    batch = split_frames(bytes(pair.server.out.flying))
    mine = [frame for frame in batch if frame.stream_id == modest.visitor.stream.id]
    assert [(f.type, f.value, len(f.payload)) for f in mine] == [(FrameType.DATA, 0, size)]


@given(st.integers(2, 12), st.integers(1, 4))
def test_streams_are_served_in_turn(count, rounds):
    pair = SessionPair(64 << 20)
    visits = [pair.must_open() for _ in range(count)]
    warm(pair, visits)
    pair.settle()
    for visit in visits:
        visit.visitor.write(MANY)
        while visit.visitor.read() > 0:
            pass
    order = []
    for _ in range(rounds * count):
        pair.server.write()
        order += [f.stream_id for f in split_frames(bytes(pair.server.out.flying)) if f.payload]
        pair.server.out.flying.clear()
    ids = [visit.visitor.stream.id for visit in visits]
    first = order.index(ids[0]) % count
    turn = order[first : first + count]
    assert sorted(turn) == ids, "each stream once, before any has a second frame"
    assert order[: 2 * count] == (order[:count] * 2)[: len(order[: 2 * count])]


@given(st.lists(st.integers(1, 400_000), min_size=1, max_size=6), st.integers(1, 40))
def test_frames_of_a_stream_are_in_order_and_without_gap(sizes, budget_units):
    pair = SessionPair(budget_units * 8 * MIN_RING_BYTES)
    visit = pair.must_open()
    pair.make_willing()
    seen = bytearray()
    for size in sizes:
        visit.visitor.write(size)
    visit.visitor.end()
    for _ in range(400):
        while visit.visitor.read() > 0:
            pass
        pair.server.write()
        seen += pair.server.out.flying
        pair.client.receive(pair.server.out)
        pair.client.session.sweep()
        pair.client.session.sweep()
        pair.client.write()
        pair.server.receive(pair.client.out)
    frames = [f for f in split_frames(seen) if f.stream_id]
    assert frames[0].type is FrameType.OPEN
    offset = 0
    for frame in frames:
        if frame.type is FrameType.DATA:
            assert frame.value == offset
            assert len(frame.payload) <= MAX_PAYLOAD_BYTES
            offset += len(frame.payload)
    assert offset == sum(sizes)
    fins = [f for f in frames if f.type is FrameType.FIN]
    assert [f.value for f in fins] == [offset]
    later = frames[frames.index(fins[0]) :]
    assert not [f for f in later if f.type is FrameType.DATA]


# ------------------------------------------------- buffers that were not written yet


def pair_at_rest(visitors):
    """A pair whose visitors were all answered, and the visits."""
    pair = SessionPair()
    visits = [pair.must_open() for _ in range(visitors)]
    pair.make_willing()
    pair.settle()
    return pair, visits


def test_a_ring_that_grows_leaves_the_buffers_handed_out_alone():
    pair, (visit, other) = pair_at_rest(2)
    visit.visitor.write(65_536)
    visit.visitor.read()
    pair.server.write(100)
    old = visit.visitor.ring
    assert old.size == 65_536

    visit.visitor.write(200_000)
    assert visit.visitor.read() > 0, "the ring has grown"
    assert visit.visitor.ring is not old
    other.visitor.write(65_536)
    other.visitor.read()
    assert other.visitor.ring is not old

    pair.server.write()  # compares what is written with what was handed out
    pair.make_willing()
    pair.settle()
    pair.check_complete()


def test_a_reset_that_comes_meanwhile_leaves_the_buffers_handed_out_alone():
    pair, (visit, other) = pair_at_rest(2)
    visit.visitor.write(65_536)
    visit.visitor.read()
    pair.server.write(100)
    old = visit.visitor.ring

    visit.target.fail()
    pair.client.write()
    pair.server.receive(pair.client.out)
    assert visit.visitor.over == "aborted"
    other.visitor.write(65_536)
    other.visitor.read()
    assert other.visitor.ring is not old, "something handed out still points to it"

    pair.server.write()
    pair.settle()
    pair.check_complete()
    other.visitor.write(65_536)
    other.visitor.read()
    assert pair.server.arena.used_bytes == 65_536, "the old ring came back"


@given(st.integers(1, 65_536), st.integers(1, 3))
def test_a_ring_is_used_again_only_where_all_was_written(first, streams):
    """The peer delivers the first half of a batch while the other half waits."""
    pair, visits = pair_at_rest(streams + 1)
    for visit in visits:
        visit.visitor.write(first)
        visit.visitor.read()
    pair.server.write(16 + first)  # exactly the first stream's frame
    pair.client.receive(pair.server.out)
    pair.client.session.sweep()
    pair.client.session.sweep()
    pair.client.write()
    pair.server.receive(pair.client.out)
    assert visits[0].visitor.stream.acked == first
    assert not visits[0].visitor.holds_ring

    visits[0].visitor.write(100_000)
    while visits[0].visitor.read() > 0:  # takes another ring, or the warm one
        pass
    pair.check()
    pair.settle()
    pair.check_complete()


@given(st.integers(2, 5), st.integers(1, 65_536), st.integers(0, 400_000), st.data())
def test_a_peer_that_lies_about_what_came_changes_no_buffer(streams, first, written, data):
    """It acknowledges what was handed out, and a part of that is not written yet."""
    pair, visits = pair_at_rest(streams)
    for visit in visits:
        visit.visitor.write(first)
        visit.visitor.read()
    pair.server.write(min(written, streams * (16 + first) - 1))
    liars = data.draw(st.lists(st.sampled_from(visits), min_size=1, unique=True))
    for visit in liars:
        lie = make.credit(visit.visitor.stream.id, first, MANY)
        pair.server.session.receive(memoryview(lie), len(lie))
        assert not visit.visitor.holds_ring
    for visit in visits:
        visit.visitor.write(100_000)
        while visit.visitor.read() > 0:
            pass
    pair.server.check()
    pair.server.write()  # compares what is written with what was handed out
    pair.server.write()
    pair.server.check()
    assert not pair.server.session.sender.retired


def test_a_local_reset_keeps_its_ring_until_the_last_buffer_is_written():
    pair, (visit, other) = pair_at_rest(2)
    visit.visitor.write(1000)
    visit.visitor.read()
    old = visit.visitor.ring
    visit.visitor.fail()
    pair.server.write(20)  # DATA and RESET are handed out together

    other.visitor.write(1000)
    other.visitor.read()
    assert other.visitor.ring is not old
    pair.server.write()
    frames = split_frames(bytes(pair.server.out.flying))
    assert [f.type for f in frames] == [FrameType.DATA, FrameType.RESET]
    pair.settle()
    pair.check_complete()
    assert visit.target.taken == 1000, "what was read before goes in front of the RESET"


def test_control_frames_overtake_data():
    pair, (visit,) = pair_at_rest(1)
    visit.visitor.write(500_000)
    visit.visitor.read()
    pair.server.session.receive(memoryview(make.ping(77)), 16)
    pair.server.session.ping(5)
    pair.server.write()

    kinds = [f.type for f in split_frames(bytes(pair.server.out.flying))]
    assert kinds[:3] == [FrameType.PING, FrameType.PONG, FrameType.DATA]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["read", "read", "write", "lie", "reset", "fail", "end"]),
        st.integers(0, 3),
        st.sampled_from([1, 500, 1400, 1401, 20_000, 70_000]),
    ),
    min_size=1,
    max_size=40,
)


@example([("read", 0, 500), ("lie", 0, 1), ("read", 1, 500)])
@example([("read", 0, 500), ("lie", 0, 1), ("write", 0, 1), ("read", 1, 500)])
@example([("read", 0, 500), ("write", 0, 1), ("lie", 0, 1), ("read", 1, 500)])
@given(STEPS)
def test_whatever_waits_goes_out_whole_in_order_and_behind_nothing_final(steps):
    """Small pieces are framed when they are read; rings come back meanwhile, to others."""
    pair, visits = pair_at_rest(4)
    server = pair.server
    for what, number, size in steps:
        end = visits[number].visitor
        stream = end.stream
        if what == "write":
            server.write(size)
        elif end.over or end.ended:
            continue
        elif what == "read":
            end.write(size)
            end.read()
        elif what == "end":
            end.ended = end.read_bytes == end.written
            end.read()
        elif what == "fail":
            end.fail()
        else:
            lie = make.credit(stream.id, stream.sent, MANY)
            said = lie if what == "lie" else make.reset(stream.id, ResetCode.CANCELLED)
            server.session.receive(memoryview(said), len(said))
        server.check()
    while server.write():
        pass
    assert not server.session.sender.has_output

    sent = dict.fromkeys((visit.visitor.stream.id for visit in visits), 0)
    over = set()
    for frame in split_frames(bytes(server.out.flying)):
        if frame.type is FrameType.CREDIT or not frame.stream_id:
            continue
        assert frame.stream_id not in over, f"{frame} behind the end of its stream"
        if frame.type is FrameType.DATA:
            seed = visits[frame.stream_id - 1].visitor.seed
            assert frame.value == sent[frame.stream_id]
            assert frame.payload == pattern(seed, frame.value, len(frame.payload))
            sent[frame.stream_id] += len(frame.payload)
        else:
            over.add(frame.stream_id)
    for visit in visits:
        end = visit.visitor
        if end.over != "aborted":
            assert sent[end.stream.id] == min(end.read_bytes, end.stream.limit)
