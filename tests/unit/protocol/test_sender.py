"""What is said, and in which order."""

from __future__ import annotations

import pytest

from tests.support import frame_factory as make
from tests.support.frame_factory import split_frames
from tests.support.pattern import pattern
from tunneltcp.protocol.errors import GoawayCode, RemoteProtocolError, ResetCode
from tunneltcp.protocol.frames import FrameType
from tunneltcp.protocol.sender import (
    BATCH_BYTES,
    MAX_ANSWERS,
    MAX_BATCH_BUFFERS,
    MODEST_BYTES,
)

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


def test_a_credit_that_is_due_says_what_is_delivered_meanwhile(client):
    """And nothing more is owed: the first bytes come right behind OPEN."""
    end = client.open(quietly=False)
    client.feed(make.data(ID, 0, pattern(end.seed + 1, 0, 60)))
    (credit,) = client.sent()
    assert (credit.type, credit.value) == (FrameType.CREDIT, 60)
    assert not client.session.owing
    client.sweep()
    assert client.sent() == []
    client.feed(make.data(ID, 60, pattern(end.seed + 1, 60, 60)))
    client.sweep()
    assert [(f.type, f.value) for f in client.sent()] == [(FrameType.CREDIT, 120)]


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


class TestFramedWhenRead:
    """What a driver allows that sends a batch at the end of each turn."""

    @pytest.fixture
    def prompt(self, new_bench):
        bench = new_bench("server", first_limit=1 << 20, max_streams=800, budget=1 << 26)
        bench.session.sender.small_bytes = MODEST_BYTES
        return bench

    def read(self, end, size):
        end.write(size)
        assert end.read() == size

    def test_goes_behind_small_frames_and_before_who_waits(self, prompt):
        waiting, one, two = (prompt.open() for _ in range(3))
        self.read(waiting, MODEST_BYTES + 1)
        self.read(one, MODEST_BYTES)
        self.read(two, 1)
        self.read(one, 5)
        prompt.session.ping(5)
        frames = prompt.sent()
        assert [(f.type.name, f.stream_id, f.value, len(f.payload)) for f in frames] == [
            ("PING", 0, 5, 0),
            ("DATA", 2, 0, MODEST_BYTES),
            ("DATA", 3, 0, 1),
            ("DATA", 2, MODEST_BYTES, 5),
            ("DATA", 1, 0, MODEST_BYTES + 1),
        ]
        assert frames[1].payload == pattern(one.seed, 0, MODEST_BYTES)
        assert prompt.session.sender.batch_bytes == sum(16 + len(f.payload) for f in frames)
        assert prompt.sent() == []

    def test_is_something_to_send(self, prompt):
        end = prompt.open()
        assert not prompt.session.sender.has_output
        self.read(end, 1)
        assert prompt.session.sender.has_output

    def test_is_nothing_of_a_stream_that_waits_for_its_turn(self, prompt):
        end = prompt.open()
        self.read(end, 2000)
        self.read(end, 10)
        assert [(f.value, len(f.payload)) for f in prompt.sent()] == [(0, 2010)]

    def test_is_nothing_beyond_the_limit(self, new_bench):
        bench = new_bench("server", first_limit=100)
        bench.session.sender.small_bytes = MODEST_BYTES
        end = bench.open()
        self.read(end, 90)
        self.read(end, 20)
        self.read(end, 20)
        assert [(f.value, len(f.payload)) for f in bench.sent()] == [(0, 90), (90, 10)]
        bench.feed(make.credit(ID, 0, 120))
        self.read(end, 5)
        assert [(f.value, len(f.payload)) for f in bench.sent()] == [(100, 20)]

    def test_is_what_fin_and_reset_go_behind(self, prompt):
        for end, over in ((prompt.open(), "FIN"), (prompt.open(), "RESET")):
            self.read(end, 10)
            if over == "FIN":
                end.end()
                end.read()
            else:
                end.fail()
            assert kinds(prompt.sent()) == ["DATA", over]

    def test_is_all_of_a_short_visit(self, prompt):
        """Nobody waits in line, so nobody does for OPEN and FIN."""
        end = prompt.open(quietly=False)
        self.read(end, 10)
        end.end()
        end.read()
        assert not prompt.session.sender.ready
        frames = prompt.sent()
        assert [(f.type.name, f.stream_id, f.value, len(f.payload)) for f in frames] == [
            ("OPEN", ID, end.stream.granted, len(make.addresses(1))),
            ("DATA", ID, 0, 10),
            ("FIN", ID, 10, 0),
        ]
        assert frames[0].payload == make.addresses(1)
        assert prompt.sent() == []

    def test_is_no_open_while_an_older_one_waits_in_line(self, prompt):
        prompt.session.sender.small_bytes = 0
        prompt.open(quietly=False)
        prompt.session.sender.small_bytes = MODEST_BYTES
        prompt.open(quietly=False)
        assert [(f.type.name, f.stream_id) for f in prompt.sent()] == [("OPEN", 1), ("OPEN", 2)]

    def test_is_no_fin_in_front_of_what_the_limit_holds_back(self, new_bench):
        bench = new_bench("server", first_limit=10)
        end = bench.open()
        self.read(end, 20)
        assert kinds(bench.sent()) == ["DATA"]
        bench.session.sender.small_bytes = MODEST_BYTES
        end.end()
        end.read()
        assert bench.sent() == []
        bench.feed(make.credit(ID, 0, 20))
        assert kinds(bench.sent()) == ["DATA", "FIN"]

    def test_is_told_by_a_reset_when_it_fails_before_it_is_written(self, prompt):
        end = prompt.open(quietly=False)
        end.fail()
        assert kinds(prompt.sent()) == ["OPEN", "RESET"]

    def test_is_not_overtaken_by_the_answer_to_a_reset(self, prompt):
        """After that answer the peer has forgotten the stream."""
        end = prompt.open()
        self.read(end, 10)
        prompt.feed(make.reset(ID, ResetCode.CANCELLED))
        assert kinds(prompt.sent()) == ["DATA", "RESET"]

    def test_keeps_its_ring_until_it_is_written(self, prompt):
        """The stream is over before the turn is, and another reads into a ring."""
        end, other = prompt.open(), prompt.open()
        prompt.session.sender.is_unwritten = False
        self.read(end, 10)
        used = prompt.side.arena.used_bytes
        prompt.feed(make.reset(ID, ResetCode.CANCELLED))
        self.read(other, 500)
        assert prompt.side.arena.used_bytes > used
        data = next(f for f in prompt.sent() if f.stream_id == ID)
        assert data.payload == pattern(end.seed, 0, 10)
        prompt.session.sender.is_unwritten = False
        assert prompt.session.sender.has_output, "the link is asked once more"
        assert prompt.sent() == []
        assert prompt.side.arena.used_bytes == used

    @pytest.mark.parametrize("size", [3, MODEST_BYTES])
    def test_goes_on_in_the_next_batch_when_it_is_too_much_for_one_write(self, prompt, size):
        """What overtakes it goes between two frames, what is said last goes behind all."""
        ends = [prompt.open() for _ in range(MAX_BATCH_BUFFERS // 2 + 5)]
        for end in ends:
            self.read(end, size)
            if end is ends[3]:
                prompt.feed(make.reset(end.stream.id, ResetCode.CANCELLED))
        ends[-1].end()
        ends[-1].read()
        batches = []
        for number in range(2):
            prompt.session.ping(number + 1)
            batches.append(b"".join(buffers := prompt.session.data_to_send()))
            assert len(buffers) <= 1024
            assert len(batches[-1]) < 1.5 * BATCH_BYTES
        one, two = map(split_frames, batches)
        assert [one[0].value, two[0].value] == [1, 2]
        data = [f for f in one + two if f.type is FrameType.DATA]
        assert [f.stream_id for f in data] == [end.stream.id for end in ends]
        for frame, end in zip(data, ends, strict=True):
            assert frame.payload == pattern(end.seed, 0, size)
        assert kinds(one)[4:6] == ["DATA", "RESET"]
        assert kinds(two)[-2:] == ["DATA", "FIN"]
        assert prompt.sent() == []

    def test_makes_no_room_for_more_answers(self, prompt, monkeypatch):
        monkeypatch.setattr("tunneltcp.protocol.sender.MAX_ANSWERS", 5)
        ends = [prompt.open() for _ in range(6)]
        self.read(ends[0], 1)  # one frame
        for end in ends[:4]:
            prompt.feed(make.reset(end.stream.id, ResetCode.CANCELLED))
        with pytest.raises(RemoteProtocolError, match="does not read"):
            prompt.feed(make.reset(ends[4].stream.id, ResetCode.CANCELLED))

    def test_is_nothing_any_more_when_the_link_is_lost(self, prompt):
        end = prompt.open()
        self.read(end, 10)
        prompt.session.detach()
        prompt.session.resume(1 << 20)
        assert kinds(prompt.sent()) == ["SYNC", "STATE"]
        prompt.feed(make.sync(0, 0))
        assert [(f.type.name, len(f.payload)) for f in prompt.sent()] == [
            ("OPEN", 14),
            ("DATA", 10),
        ]
        self.read(end, 5)
        assert prompt.session.sender.ready, "what the last link allowed is not the next one's"
