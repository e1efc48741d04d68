"""Each wrong frame: what breaks the session, what breaks one stream, what is ignored."""

from __future__ import annotations

import pytest

from tests.support import frame_factory as make
from tests.support.pattern import pattern
from tunneltcp.protocol.endpoint import take_nothing
from tunneltcp.protocol.errors import RemoteProtocolError, ResetCode
from tunneltcp.protocol.frames import FrameType

ID = 1
MIB = 1 << 20


def came(end, size):
    """Bytes of the pattern that this end must get."""
    return pattern(end.checker.seed, end.came, size)


# ------------------------------------------------------------- what breaks the session


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (make.frame(0), "type 0, 0 bytes"),
        (make.frame(11), "type 11, 0 bytes"),
        (make.frame(15, payload=b"x" * 9), "type 15, 9 bytes"),
        (make.frame(FrameType.DATA, ID), "DATA of 0 bytes"),
        (make.frame(FrameType.DATA, ID, size=262_145), "DATA of 262145 bytes"),
        (make.frame(FrameType.DATA, ID, size=0xFFFFF), "DATA of 1048575 bytes"),
        (make.frame(FrameType.FIN, ID, payload=b"x"), "type 3, 1 bytes"),
        (make.frame(FrameType.RESET, ID, payload=b"x"), "type 4, 1 bytes"),
        (make.frame(FrameType.RESET, ID, payload=b"xxx"), "type 4, 3 bytes"),
        (make.frame(FrameType.CREDIT, ID, payload=b"x" * 8), "type 5, 8 bytes"),
        (make.frame(FrameType.CREDIT, ID, payload=b"x" * 10), "type 5, 10 bytes"),
        (make.frame(FrameType.PING, payload=b"x"), "type 6, 1 bytes"),
        (make.frame(FrameType.GOAWAY), "type 10, 0 bytes"),
        (make.frame(FrameType.OPEN, 9, payload=b"\0"), "type 1, 1 bytes"),
        (make.frame(FrameType.OPEN, 9, payload=b"\0" * 39), "type 1, 39 bytes"),
        (make.frame(FrameType.PING, ID), "PING names a stream"),
        (make.frame(FrameType.PONG, ID), "PONG names a stream"),
        (make.frame(FrameType.GOAWAY, ID, payload=b"\0\0"), "GOAWAY names a stream"),
        (make.frame(FrameType.SYNC, payload=bytes(4)), "SYNC that is not the first"),
        (make.frame(FrameType.STATE, ID, payload=bytes(9)), "a STATE that no SYNC"),
        (make.data(0, 0, b"x"), "stream 0 was never opened"),
        (make.fin(0, 0), "stream 0 was never opened"),
        (make.reset(0, 1), "stream 0 was never opened"),
        (make.credit(0, 0, 0), "stream 0 was never opened"),
        (make.data(2, 0, b"x"), "stream 2 was never opened"),
        (make.data(2**32 + 1, 0, b"x"), "stream 4294967297 was never opened"),
        (make.fin(2, 0), "stream 2 was never opened"),
        (make.reset(2, 1), "stream 2 was never opened"),
        (make.reset(2, 0), "stream 2 was never opened"),
        (make.credit(2**40 - 1, 0, 0), "was never opened"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[:16].hex(),
)
def test_what_breaks_the_session(bench, frame, reason):
    end = bench.open()

    with pytest.raises(RemoteProtocolError, match=reason):
        bench.feed(frame)
    assert not end.over, "the driver ends the streams, not the receiver"


@pytest.mark.parametrize("size", [39, 1 << 18, (1 << 20) - 1])
def test_a_wrong_size_is_seen_before_the_payload_comes(bench, size):
    with pytest.raises(RemoteProtocolError, match=f"type 1, {size} bytes"):
        bench.session.receive(memoryview(make.frame(FrameType.OPEN, 1, size=size)), 16)


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (make.open_(0), "OPEN with limit"),
        (make.open_(5, limit=2**62 + 1), "OPEN with limit"),
        (make.frame(FrameType.OPEN, 5, payload=b"\5" * 14), "of unknown kind"),
        (make.frame(FrameType.OPEN, 5, payload=b"\0\0\0"), "more than two"),
    ],
)
def test_a_wrong_open(client, frame, reason):
    with pytest.raises(RemoteProtocolError, match=reason):
        client.feed(frame)
    assert not client.session.streams


def test_only_a_server_opens(server):
    with pytest.raises(RemoteProtocolError, match="only a server does"):
        server.feed(make.open_(9))


def test_frames_in_front_of_the_wrong_one_count(bench):
    end = bench.open()
    with pytest.raises(RemoteProtocolError):
        bench.feed(make.data(ID, 0, came(end, 5)), make.frame(0))
    assert end.taken == 5


# ------------------------------------------------------------- what breaks one stream


def check_failed(bench, end):
    assert (end.over, end.code) == ("aborted", 4)
    assert [frame for frame in bench.sent() if frame.stream_id == end.stream.id] == [
        make.split_frames(make.reset(end.stream.id, 4))[0]
    ]
    other = bench.open()
    bench.feed(make.data(other.stream.id, 0, came(other, 3)))
    assert other.taken == 3, "the session goes on"
    bench.side.check()


@pytest.mark.parametrize("stream_id", [1, 2**32 + 5])
@pytest.mark.parametrize(
    ("offset", "size"),
    [(11, 1), (9, 1), (9, 2), (0, 10), (0, 5), (2**62, 1), (2**64 - 1, 1)],
)
def test_data_that_does_not_begin_where_the_last_ended(bench, stream_id, offset, size):
    bench.side.table.words[5] = stream_id
    if stream_id > 1:
        bench.session.last_id = stream_id - 1
    end = bench.open()
    bench.feed(make.data(stream_id, 0, came(end, 10)))

    bench.feed(make.data(stream_id, offset, bytes(size)))
    check_failed(bench, end)
    assert end.taken == 10


def test_data_up_to_the_limit_and_one_byte_further(bench):
    one, other = bench.open(), bench.open()
    assert one.stream.granted == MIB
    for end in (one, other):
        end.appetite = 0
        for _ in range(3):
            bench.feed(make.data(end.stream.id, end.came, came(end, 262_144)))
        bench.feed(make.data(end.stream.id, end.came, came(end, 262_143)))

    bench.feed(make.data(ID, MIB - 1, came(one, 1)))
    assert not one.over
    bench.feed(make.data(2, MIB - 1, came(other, 2)))
    assert other.came == MIB - 1
    check_failed(bench, other)
    bench.feed(make.data(ID, MIB, b"x"))
    assert one.over == "aborted"


def test_a_header_alone_shows_that_data_is_wrong(bench):
    end = bench.open()
    header = make.data(ID, 5, b"x" * 100)[:16]

    assert bench.session.receive(memoryview(header), 16) == 16
    assert end.over == "aborted"
    bench.session.receive(memoryview(b"x" * 100), 100)
    bench.feed(make.ping(1))


def test_data_after_fin(bench):
    end = bench.open()
    bench.feed(make.data(ID, 0, came(end, 10)), make.fin(ID, 10))
    assert end.fin_passed_on

    bench.feed(make.data(ID, 10, b"x"))
    check_failed(bench, end)


@pytest.mark.parametrize("final", [0, 9, 11, 2**64 - 1])
def test_fin_with_a_wrong_final_offset(bench, final):
    end = bench.open()
    bench.feed(make.data(ID, 0, came(end, 10)))

    bench.feed(make.fin(ID, final))
    assert not end.fin_passed_on
    check_failed(bench, end)


def test_a_second_fin_that_differs(bench):
    end = bench.open()
    bench.feed(make.fin(ID, 0))
    bench.feed(make.fin(ID, 1))
    check_failed(bench, end)


def test_the_same_fin_once_more_is_nothing(bench):
    end = bench.open()
    bench.feed(make.fin(ID, 0), make.fin(ID, 0))
    assert not end.over


def sending(bench, size=1000):
    """An end that has read and sent ``size`` bytes."""
    end = bench.open()
    end.write(size)
    end.read()
    assert sum(len(frame.payload) for frame in bench.sent()) == size
    return end


@pytest.mark.parametrize(
    ("delivered", "limit", "flags"),
    [
        (1001, 2**20, 0),
        (2**64 - 1, 2**64 - 1, 0),
        (0, 2**62 + 1, 0),
        (10, 9, 0),
        (0, 2**20, 1),
        (1000, 2**20, 1),
    ],
    ids=["above sent", "far above", "limit above 2^62", "limit below", "FIN?", "FIN not sent"],
)
def test_credit_that_cannot_be_true(bench, delivered, limit, flags):
    end = sending(bench)
    bench.feed(make.credit(ID, delivered, limit, flags))
    check_failed(bench, end)


def test_fin_delivered_while_bytes_are_missing(bench):
    end = sending(bench)
    end.end()
    end.read()
    bench.sent()
    bench.feed(make.credit(ID, 999, 2**20, 1))
    check_failed(bench, end)


def test_fin_delivered_before_fin_was_sent(bench):
    """It was read, it waits for its turn: the peer can't know of it."""
    end = sending(bench)
    end.end()
    end.read()
    bench.feed(make.credit(ID, 1000, 2**20, 1))
    assert (end.over, end.code) == ("aborted", 4)


def test_delivered_is_counted_up_to_what_was_handed_out(bench):
    end = sending(bench)
    end.write(5)
    end.read()
    bench.feed(make.credit(ID, 1001, 2**20))
    assert (end.over, end.code) == ("aborted", 4)


# ------------------------------------------------------------------- what is ignored


def test_credit_that_goes_backwards(bench):
    end = sending(bench)
    bench.feed(make.credit(ID, 600, 2 * MIB))
    bench.feed(make.credit(ID, 500, MIB + 5))

    assert (end.stream.acked, end.stream.limit) == (600, 2 * MIB)
    assert not end.over


def test_flags_of_later_versions(bench):
    end = sending(bench)
    bench.feed(make.credit(ID, 600, 60_000, 0xFE))
    assert end.stream.acked == 600
    assert not end.over


def test_frames_for_a_stream_that_is_forgotten(bench):
    end = bench.open()
    end.fail()
    bench.sent()
    bench.feed(make.reset(ID, 0))
    assert not bench.session.resetting

    bench.feed(make.data(ID, 77, b"x" * 50), make.fin(ID, 3), make.credit(ID, 9, 9, 1))
    bench.feed(make.reset(ID, 0))
    assert bench.sent() == []
    bench.feed(make.reset(ID, 1))
    assert bench.sent() == make.split_frames(make.reset(ID, 0)), "RESET is always answered"


def test_frames_for_a_stream_whose_reset_is_under_way(bench):
    end = bench.open()
    end.fail()
    bench.feed(make.data(ID, 0, b"x" * 50), make.fin(ID, 50), make.credit(ID, 0, 9))
    assert [f.type for f in bench.sent()] == [FrameType.RESET]


def test_half_a_frame_for_a_stream_that_ends_meanwhile(bench):
    end = bench.open()
    whole = make.data(ID, 0, came(end, 100)) + make.ping(5)
    assert bench.session.receive(memoryview(whole[:50]), 50) == 50
    assert end.taken == 34

    end.fail()
    rest = memoryview(whole[50:])
    assert bench.session.receive(rest, len(rest)) == len(rest)
    assert [f.type for f in bench.sent()] == [FrameType.PONG, FrameType.RESET]


def test_an_open_for_a_known_id(client):
    end = client.open()
    client.feed(make.open_(ID))
    assert client.ends[ID] is end
    assert client.sent() == []


def test_ids_may_leave_gaps(client):
    client.feed(make.open_(5), make.open_(1000))
    client.feed(make.reset(6, 1))
    assert sorted(client.session.streams) == [5, 1000]


# ------------------------------------------------------------------------- in pieces


@pytest.mark.parametrize("size", [0, 1, 15])
def test_less_than_a_header_is_left(bench, size):
    assert bench.session.receive(memoryview(make.ping(1)), size) == 0


def test_a_control_frame_waits_until_it_is_whole(bench):
    bench.open()
    whole = make.ping(1) + make.reset(ID, 1)
    assert bench.session.receive(memoryview(whole), len(whole) - 1) == 16
    assert bench.session.streams


def test_half_a_data_frame_is_handed_on_at_once(bench):
    end = bench.open()
    whole = make.data(ID, 0, came(end, 1000))
    assert bench.session.receive(memoryview(whole), 16) == 16
    assert end.taken == 0
    assert bench.session.receive(memoryview(whole)[16:], 500) == 500
    assert end.taken == 500
    rest = whole[516:] + make.ping(3)
    assert bench.session.receive(memoryview(rest), len(rest)) == len(rest)
    assert end.taken == 1000
    assert FrameType.PONG in [frame.type for frame in bench.sent()]


def test_pong_and_goaway_are_passed_on(bench):
    bench.feed(make.pong(123), make.goaway(9, 1), make.goaway(9, 77))
    assert bench.side.pongs == [123]
    assert bench.side.goaways == [1, 77]


# ------------------------------------------------------------------------- the short cut


@pytest.mark.parametrize("takes", [0, 1, 99, 100, BlockingIOError(), ConnectionResetError()])
def test_what_the_short_cut_does_not_take_goes_to_the_endpoint(bench, takes):
    end = bench.open()
    data = came(end, 100)
    sent = []

    def send(view):
        if isinstance(takes, OSError):
            raise takes
        sent.append(bytes(view[:takes]))
        return takes

    rest = []

    def deliver(view):
        rest.append(bytes(view))
        return 0

    end.deliver = deliver
    end.stream.send = send
    bench.feed(make.data(ID, 0, data))

    count = takes if isinstance(takes, int) else 0
    assert b"".join(sent) + b"".join(rest) == data
    assert (len(rest), end.stream.received) == (count < 100, 100)
    assert end.stream.delivered == count
    assert bench.session.owing


def test_a_stream_that_is_over_has_no_short_cut(bench):
    end = bench.open()
    end.stream.send = len
    end.stream.reset(ResetCode.CANCELLED)

    assert end.stream.send is take_nothing
