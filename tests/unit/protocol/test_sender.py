"""What is said, and in which order."""

from __future__ import annotations

import pytest

from tests.support import frame_factory as make
from tests.support.frame_factory import split_frames
from tests.support.pattern import pattern
from tunneltcp.protocol.errors import GoawayCode, RemoteProtocolError, ResetCode
from tunneltcp.protocol.frames import FrameType
from tunneltcp.protocol.sender import BATCH_BYTES, MAX_ANSWERS, MAX_BATCH_BUFFERS

ID = 1


def kinds(frames):
    return [frame.type.name for frame in frames]


def test_open_goes_before_data_and_fin_behind(server):
    end = server.open(quietly=False)
    end.write(100)
    end.end()
    assert end.read() == 100
    assert end.read() == 0

    frames = server.sent()
    assert kinds(frames) == ["OPEN", "DATA", "FIN"]
    opened, data, fin = frames
    assert opened.value == end.stream.granted == 1 << 20
    assert opened.payload == make.addresses(1)
    assert (data.value, data.payload) == (0, pattern(end.seed, 0, 100))
    assert fin.value == 100


def test_streams_are_opened_in_the_order_of_their_ids_also_on_a_link_that_is_held_back(server):
    """One that says little goes first there; a client ignores an id below one it has seen."""
    for size in (30_000, 100, 30_000, 1):
        end = server.open(quietly=False)
        end.write(size)
        end.read()
    server.session.sender.room_bytes = 8000
    opened = []
    while frames := server.sent():
        opened += [frame.stream_id for frame in frames if frame.type is FrameType.OPEN]
    assert opened == [1, 2, 3, 4]


def test_fin_waits_until_all_data_is_out(server):
    end = server.open()
    end.write(40_000)
    end.end()
    end.read()
    end.read()

    assert [(f.type.name, f.value, len(f.payload)) for f in server.sent()] == [
        ("DATA", 0, 32_768)
    ]
    assert server.sent() == []
    server.feed(make.credit(ID, 0, 39_999))
    assert [(f.type.name, len(f.payload)) for f in server.sent()] == [("DATA", 7231)]
    server.feed(make.credit(ID, 0, 100_000))
    assert [(f.type.name, f.value, len(f.payload)) for f in server.sent()] == [
        ("DATA", 39_999, 1),
        ("FIN", 40_000, 0),
    ]


def test_reset_goes_behind_what_was_read_as_far_as_the_limit_admits(server):
    end = server.open()
    end.write(40_000)
    end.read()
    end.fail(ResetCode.STOPPING)

    frames = server.sent()
    assert [(f.type.name, len(f.payload)) for f in frames] == [("DATA", 32_768), ("RESET", 2)]
    assert frames[1].payload == b"\0\6"
    assert frames[1].value == 0


def test_a_frame_ends_where_the_ring_does(new_bench):
    bench = new_bench("server", first_limit=1 << 20)
    end = bench.open()
    end.write(60_000)
    end.read()
    bench.sent()
    bench.feed(make.credit(ID, 50_000, 1 << 20))
    end.write(20_000)
    end.read()
    end.read()

    assert [(f.value, len(f.payload)) for f in bench.sent()] == [
        (60_000, 5536),
        (65_536, 14_464),
    ]


def test_the_order_of_a_batch(client):
    one = client.open()
    two = client.open(quietly=False)
    one.write(10)
    one.read()
    two.fail()
    client.session.goaway(GoawayCode.DRAINING)
    client.session.ping(5)
    client.feed(make.ping(99), make.ping(100))

    frames = client.sent()
    assert kinds(frames) == ["GOAWAY", "PING", "PONG", "DATA", "RESET"]
    assert frames[2].value == 100, "of several PINGs only the latest is answered"
    assert frames[0].value == 2, "the highest id"


def test_credit_is_made_when_it_is_written(client):
    end = client.open(quietly=False)
    client.feed(make.data(ID, 0, pattern(end.checker.seed, 0, 70_000)))
    client.feed(make.data(ID, 70_000, pattern(end.checker.seed, 70_000, 5)))

    [credit] = client.sent()
    assert (credit.type, credit.value) == (FrameType.CREDIT, 70_005)
    assert int.from_bytes(credit.payload[:8], "big") == 70_005 + (1 << 20)


def test_a_batch_is_bounded(new_bench):
    bench = new_bench("server", budget=64 << 20, max_streams=50, first_limit=1 << 20)
    ends = [bench.open() for _ in range(20)]
    for end in ends:
        end.write(1 << 20)
        while end.read() > 0:
            pass
    sizes = []
    while batch := bench.session.data_to_send():
        sizes.append(sum(map(len, batch)))
        assert bench.session.sender.batch_bytes == sizes[-1]
    assert len(sizes) > 20
    assert max(sizes) <= BATCH_BYTES + 262_144 + 2000


def test_a_batch_has_at_most_as_many_buffers_as_sendmsg_takes(new_bench):
    bench = new_bench("server", budget=64 << 20, max_streams=3000)
    for _ in range(1500):
        end = bench.open(quietly=False)
        end.write(1)
        end.read()
        end.end()
        end.read()
    counts = []
    seen = 0
    while batch := bench.session.data_to_send():
        counts.append(len(batch))
        seen += len(split_frames(batch))
    assert seen == 4500
    assert max(counts) <= 1024
    assert min(counts[:-1]) >= MAX_BATCH_BUFFERS


def test_answers_and_credits_share_a_batch_without_loss(new_bench):
    bench = new_bench("client", budget=64 << 20, max_streams=800)
    bench.feed(*[make.open_(index) for index in range(1, 801)])
    for _ in range(700):
        bench.session.ping(1)
    seen = []
    while batch := bench.session.data_to_send():
        assert len(batch) <= 1024
        seen += kinds(split_frames(batch))
    assert seen == ["PING"] * 700 + ["CREDIT"] * 800


@pytest.mark.slow
def test_too_many_answers_for_a_peer_that_does_not_read(client):
    client.open()
    client.session.glitches._allowed = 1 << 20
    client.feed(*[make.reset(ID, 1)] * MAX_ANSWERS)
    with pytest.raises(RemoteProtocolError, match="does not read"):
        client.feed(make.reset(ID, 1))
    assert MAX_ANSWERS == 65_536


@pytest.mark.slow
def test_after_too_many_answers_goaway_can_still_be_said(client):
    """The driver says goaway in its handler of that very error."""
    client.open()
    client.session.glitches._allowed = 1 << 20
    with pytest.raises(RemoteProtocolError, match="does not read"):
        client.feed(*[make.reset(ID, 1)] * (MAX_ANSWERS + 1))

    client.session.goaway(GoawayCode.PROTOCOL_ERROR)
    client.session.ping(1)


def test_pongs_are_coalesced(bench):
    bench.feed(*[make.ping(value) for value in range(1000)])
    assert [(f.type, f.value) for f in bench.sent()] == [(FrameType.PONG, 999)]
    assert bench.sent() == []


def test_has_output(bench):
    session = bench.session
    assert not session.sender.has_output
    assert session.data_to_send() == []
    assert session.sender.batch_bytes == 0
    session.ping(1)
    assert session.sender.has_output
    bench.sent()
    bench.feed(make.ping(1))
    assert session.sender.has_output
    bench.sent()
    end = bench.open(quietly=False)
    assert session.sender.has_output
    bench.sent()
    end.write(1)
    end.read()
    assert session.sender.has_output
    bench.sent()
    assert not session.sender.has_output


def test_after_clear_nothing_is_said(bench):
    end = bench.open(quietly=False)
    end.write(10)
    end.read()
    bench.session.ping(1)
    bench.feed(make.ping(2))
    bench.session.abort_all(ResetCode.CANCELLED)

    assert end.over == "aborted"
    assert not bench.session.sender.has_output
    assert bench.sent() == []
    assert bench.side.arena.used_bytes == 0
