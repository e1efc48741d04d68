"""A session goes from one link to the next: what is said, what is believed, what is judged."""

from __future__ import annotations

import pytest

from tests.support import frame_factory as make
from tests.support.frame_factory import split_frames
from tests.support.pattern import pattern
from tests.support.session_pair import SessionPair
from tunneltcp.protocol.errors import GoawayCode, RemoteProtocolError, ResetCode
from tunneltcp.protocol.frames import FrameType
from tunneltcp.protocol.table import ERROR_SEEN, FLAGS, STREAM_ID

ID = 1
K = 1024
MIB = 1 << 20
FIN, RESET = 1, 2
"""Flags of STATE."""


def frames_of(*wire):
    return split_frames(wire)


def came(end, size):
    return pattern(end.checker.seed, end.came, size)


def speak(end, size):
    end.write(size)
    while end.read() > 0:
        pass


def finish(end):
    end.end()
    end.read()


def resumed(bench, *peer):
    """Cut, resume; what this side says after the peer's words."""
    bench.session.detach()
    bench.session.resume(32_768)
    greeting = bench.sent()
    bench.feed(*peer)
    return greeting, bench.sent()


# ------------------------------------------------------------------- what is said first


def test_a_resumed_link_begins_with_sync_and_a_state_for_each_stream(bench):
    one, two = bench.open(), bench.open()
    bench.feed(make.data(1, 0, came(one, 700)), make.data(2, 0, came(two, 10)))
    bench.feed(make.fin(2, 10))
    two.fail()
    bench.session.ping(7)
    bench.feed(make.ping(8))
    bench.session.detach()

    bench.session.resume(1)
    assert bench.sent() == frames_of(
        make.sync(2, 2), make.state(1, 700, MIB + 700), make.state(2, 10, 10, FIN | RESET)
    )
    assert bench.sent() == []


def test_what_was_pending_dies_with_the_link(bench):
    end = bench.open()
    bench.session.ping(1)
    bench.feed(make.ping(2), make.data(ID, 0, came(end, 100_000)))
    speak(end, 500)
    bench.session.detach()

    assert not bench.session.sender.has_output
    assert not bench.session.owing
    bench.session.sweep()
    speak(end, 500)
    assert not bench.session.sender.has_output


def test_state_is_told_at_resume_and_what_comes_after_it_by_credit(bench):
    end = bench.open()
    bench.feed(make.data(ID, 0, came(end, 100)))
    greeting, _ = resumed(bench, make.sync(ID, 1), make.state(ID, 0, MIB))
    assert greeting[1] == frames_of(make.state(ID, 100, MIB + 100))[0]
    bench.sweep()
    assert bench.sent() == []  # STATE said it
    bench.feed(make.data(ID, 100, came(end, 50)))
    bench.sweep()
    assert bench.sent() == frames_of(make.credit(ID, 150, MIB + 150))


def test_pong_does_not_overtake_sync(bench):
    bench.open()
    bench.session.resume(1)
    bench.feed(make.sync(ID, 1), make.ping(9))
    assert [frame.type for frame in bench.sent()][:3] == [
        FrameType.SYNC,
        FrameType.STATE,
        FrameType.PONG,
    ]


def test_a_session_without_streams_resumes(bench):
    bench.session.detach()
    bench.session.resume(1)
    assert bench.sent() == frames_of(make.sync(0, 0))
    bench.feed(make.sync(0, 0), make.ping(1))
    assert bench.sent() == frames_of(make.pong(1))
    assert bench.side.resumed == [(0, 0)]


def test_goaway_is_said_again_on_each_link(bench):
    bench.open()
    bench.session.goaway(GoawayCode.DRAINING)
    bench.sent()
    for _ in range(2):
        bench.session.resume(1)
        kinds = [frame.type for frame in bench.sent()]
        assert kinds == [FrameType.SYNC, FrameType.STATE, FrameType.GOAWAY]


def test_goaway_without_a_link_waits_for_one(bench):
    bench.session.detach()
    bench.session.goaway(GoawayCode.DRAINING)
    bench.session.resume(1)
    assert bench.sent() == frames_of(make.sync(0, 0), make.goaway(0, 0))


# ------------------------------------------------------------------------- going on


def test_bytes_are_sent_again_from_what_was_delivered(bench):
    end = bench.open()
    bench.feed(make.credit(ID, 0, MIB))
    speak(end, 5000)
    bench.sent()
    bench.feed(make.credit(ID, 1000, MIB))

    _, said = resumed(bench, make.sync(ID, 1), make.state(ID, 3000, MIB))
    assert said == frames_of(make.data(ID, 3000, pattern(end.seed, 3000, 2000)))
    assert end.stream.acked == 3000
    assert bench.side.resumed == [(1, 2000)]


def test_nothing_of_a_stream_is_sent_before_its_state(bench):
    one, two = bench.open(), bench.open()
    bench.feed(make.credit(1, 0, MIB), make.credit(2, 0, MIB))
    for end in (one, two):
        speak(end, 100)
    finish(one)
    _, said = resumed(bench, make.sync(2, 2), make.state(2, 0, MIB))
    assert said == frames_of(make.data(2, 0, pattern(two.seed, 0, 100)))
    speak(two, 10)
    assert [frame.stream_id for frame in bench.sent()] == [2]
    bench.feed(make.state(1, 0, MIB))
    assert [frame.type for frame in bench.sent()] == [FrameType.DATA, FrameType.FIN]


def test_a_stream_without_news_says_nothing(bench):
    end = bench.open()
    speak(end, 100)
    bench.sent()
    _, said = resumed(bench, make.sync(ID, 1), make.state(ID, 100, MIB))
    assert said == []
    assert end.stream.ring is None
    assert not bench.session.streams[ID].queued
    bench.sent()
    assert bench.side.arena.used_bytes == 0


def test_a_limit_is_replaced_also_downwards(bench):
    end = bench.open()
    bench.feed(make.credit(ID, 0, MIB))
    speak(end, 50_000)
    bench.sent()
    _, said = resumed(bench, make.sync(ID, 1), make.state(ID, 1000, 3000))
    assert said == frames_of(make.data(ID, 1000, pattern(end.seed, 1000, 2000)))
    bench.feed(make.credit(ID, 3000, 4000))
    assert bench.sent() == frames_of(make.data(ID, 3000, pattern(end.seed, 3000, 1000)))


def test_a_fin_that_was_not_delivered_is_sent_again(bench):
    end = bench.open()
    speak(end, 10)
    finish(end)
    bench.sent()
    _, said = resumed(bench, make.sync(ID, 1), make.state(ID, 10, MIB))
    assert said == frames_of(make.fin(ID, 10))
    _, said = resumed(bench, make.sync(ID, 1), make.state(ID, 10, MIB, FIN))
    assert said == []
    assert end.stream.fin_acked


def test_a_fin_that_was_delivered_and_the_peers_end_a_stream(bench):
    end = bench.open()
    finish(end)
    bench.sent()
    bench.feed(make.fin(ID, 0))
    resumed(bench, make.sync(ID, 1), make.state(ID, 0, MIB, FIN))
    assert end.over == "clean"
    assert not bench.session.streams


def test_what_came_and_was_not_taken_comes_again(bench):
    end = bench.open()
    end.appetite = 60
    bench.feed(make.data(ID, 0, came(end, 100)), make.fin(ID, 100))
    assert end.fin_waits
    greeting, _ = resumed(bench, make.sync(ID, 1), make.state(ID, 0, MIB))
    assert greeting[1] == frames_of(make.state(ID, 60, MIB + 60))[0]
    assert not end.fin_waits
    assert not end.waiting

    end.appetite = 1000
    bench.feed(make.data(ID, 60, pattern(end.checker.seed, 60, 40)), make.fin(ID, 100))
    assert end.taken == 100
    assert end.fin_passed_on
    assert bench.sent() == frames_of(make.credit(ID, 100, MIB + 100, FIN))


def test_half_a_frame_is_forgotten_with_its_link(bench):
    end = bench.open()
    whole = make.data(ID, 0, pattern(end.checker.seed, 0, 100))
    bench.feed(whole[:50])
    assert end.taken == 34
    resumed(bench, make.sync(ID, 1), make.state(ID, 0, MIB))
    bench.feed(make.data(ID, 34, pattern(end.checker.seed, 34, 66)))
    assert end.taken == 100


@pytest.mark.parametrize(("start", "size"), [(0, 100), (0, 150), (40, 61), (99, 1), (60, 100)])
def test_an_overlap_after_a_resume_is_dropped(bench, start, size):
    end = bench.open()
    bench.feed(make.data(ID, 0, came(end, 100)))
    resumed(bench, make.sync(ID, 1), make.state(ID, 0, MIB))
    whole = make.data(ID, start, pattern(end.checker.seed, start, size))
    bench.feed(*(whole[at : at + 7] for at in range(0, len(whole), 7)))
    assert end.taken == max(100, start + size)
    bench.feed(make.data(ID, end.taken, came(end, 10)))
    assert not end.over


def test_an_overlap_in_pieces_is_dropped(bench):
    end = bench.open()
    bench.feed(make.data(ID, 0, came(end, 100)))
    resumed(bench, make.sync(ID, 1), make.state(ID, 0, MIB))
    whole = make.data(ID, 20, pattern(end.checker.seed, 20, 130))
    view = memoryview(whole)
    used = bench.session.receive(view, 30)
    while used < len(whole):
        used += bench.session.receive(view[used:], min(11, len(whole) - used))
    assert end.taken == 150


def test_an_overlap_that_no_resume_explains_is_an_error(bench):
    end = bench.open()
    bench.feed(make.data(ID, 0, came(end, 100)))
    resumed(bench, make.sync(ID, 1), make.state(ID, 0, MIB))
    bench.feed(make.data(ID, 100, came(end, 50)), make.data(ID, 120, b"x" * 30))
    assert (end.over, end.code) == ("aborted", ResetCode.STREAM_ERROR)


def test_a_gap_after_a_resume_is_an_error_of_that_stream(bench):
    end, other = bench.open(), bench.open()
    resumed(bench, make.sync(2, 2), make.state(1, 0, MIB), make.state(2, 0, MIB))
    bench.feed(make.data(1, 1, b"x"))
    assert (end.over, end.code) == ("aborted", ResetCode.STREAM_ERROR)
    assert not other.over


# ---------------------------------------------------------------- without a link


def test_a_socket_is_read_until_the_ring_is_full(bench):
    end = bench.open()
    bench.feed(make.credit(ID, 0, MIB))
    bench.session.detach()
    speak(end, 2 * MIB)
    assert end.read_bytes == end.ring.size == MIB
    assert not end.watching
    bench.session.resume(32_768)
    bench.feed(make.sync(ID, 1), make.state(ID, 0, MIB))
    sent = bench.sent() + bench.sent()
    assert sum(len(frame.payload) for frame in sent if frame.type is FrameType.DATA) == MIB
    bench.feed(make.credit(ID, MIB, 2 * MIB))
    assert end.watching


def test_rings_go_back_without_a_link(server):
    end = server.open()
    server.session.detach()
    other = server.open(quietly=False)
    speak(end, 300 * K)
    speak(other, 100)
    other.fail()  # nobody ever heard of it
    assert server.side.arena.used_bytes == end.ring.size
    assert not server.session.sender.retired
    assert not server.session.resetting


def test_a_visitor_that_comes_during_the_pause_is_opened_when_sync_has_come(server):
    server.open()
    server.feed(make.credit(1, 0, MIB))
    server.session.detach()
    late = server.open(quietly=False)
    speak(late, 10)
    finish(late)
    server.session.resume(32_768)
    later = server.open(quietly=False)
    assert [frame.type for frame in server.sent()] == [FrameType.SYNC] + [FrameType.STATE] * 2
    server.feed(make.sync(1, 1))

    said = server.sent()
    assert [(frame.type, frame.stream_id) for frame in said] == [
        (FrameType.OPEN, 2),
        (FrameType.DATA, 2),
        (FrameType.FIN, 2),
        (FrameType.OPEN, 3),
    ]
    assert said[0].payload == make.addresses(1)
    server.feed(make.state(1, 0, MIB))
    assert not late.over
    assert not later.over


def test_an_open_that_was_lost_is_sent_again(server):
    end = server.open(quietly=False)
    speak(end, 100)
    first = server.sent()
    assert [frame.type for frame in first] == [FrameType.OPEN, FrameType.DATA]
    _, said = resumed(server, make.sync(0, 0))
    assert said == first


def test_what_the_lost_link_ended_may_come_again_on_the_next(server):
    """Of a stream that the peer never answered, and ended: the FIN had not been passed on."""
    end = server.open(quietly=False)
    end.connected = False  # it takes nothing yet
    server.sent()
    server.feed(make.data(ID, 0, pattern(end.checker.seed, 0, 1)), make.fin(ID, 1))
    server.session.begin(32_768)
    opened = server.sent()[0]
    assert opened.type is FrameType.OPEN
    assert opened.value == end.stream.window


def test_an_open_that_was_taken_is_not_sent_again(server):
    end = server.open()
    speak(end, 100)
    server.sent()
    _, said = resumed(server, make.sync(ID, 1), make.state(ID, 0, MIB))
    assert said == frames_of(make.data(ID, 0, pattern(end.seed, 0, 100)))
    assert end.stream.confirmed


def test_opens_keep_their_order(server):
    for _ in range(5):
        server.open()
    server.feed(make.credit(1, 0, MIB))
    _, said = resumed(server, make.sync(1, 1), make.state(1, 0, MIB))
    assert [frame.stream_id for frame in said] == [2, 3, 4, 5]
    assert {frame.type for frame in said} == {FrameType.OPEN}


def test_an_open_for_a_known_stream_is_ignored(client):
    end = client.open()
    resumed(client, make.sync(ID, 1), make.state(ID, 0, MIB))
    client.feed(make.open_(ID))
    assert client.sent() == []
    assert not end.over


def test_no_open_for_a_client_that_leaves(server):
    server.feed(make.goaway(0, 0))
    end = server.open(quietly=False)
    assert server.sent() == []
    _, said = resumed(server, make.sync(0, 0))
    assert said == []
    server.session.begin(100)
    assert [frame.type for frame in server.sent()] == [FrameType.OPEN]
    assert end.stream.limit == 100


# ------------------------------------------------------------------------------- RESET


def test_a_reset_is_remembered_until_it_is_answered(bench):
    end = bench.open()
    end.fail()
    bench.sent()
    greeting, said = resumed(bench, make.sync(ID, 1), make.state(ID, 0, MIB))
    assert greeting[1] == frames_of(make.state(ID, 0, 0, RESET))[0]
    assert said == frames_of(make.reset(ID, 1))
    words = bench.side.table.words
    assert words[end.record + STREAM_ID] == ID
    assert words[end.record + FLAGS] & ERROR_SEEN
    bench.feed(make.reset(ID, 0))
    assert not bench.session.resetting
    assert not words[end.record + STREAM_ID]


def test_a_reset_is_forgotten_when_the_peer_does_not_list_the_stream(bench):
    end = bench.open()
    bench.feed(make.credit(ID, 0, MIB))
    end.fail()
    _, said = resumed(bench, make.sync(ID, 0))
    assert said == []
    assert not bench.session.resetting
    bench.side.check()


def test_what_was_read_in_front_of_a_reset_goes_first(bench):
    """A target that answers and resets has its answer delivered, also after a pause."""
    end = bench.open()
    bench.feed(make.credit(ID, 0, MIB))
    speak(end, 1000)
    bench.sent()
    end.fail()
    bench.sent()
    greeting, said = resumed(bench, make.sync(ID, 1), make.state(ID, 300, MIB))
    assert greeting[1] == frames_of(make.state(ID, 0, 0))[0]
    assert said == frames_of(make.data(ID, 300, pattern(end.seed, 300, 700)), make.reset(ID, 1))
    bench.feed(make.reset(ID, 0))
    bench.sent()
    assert bench.side.arena.used_bytes == 0


def test_a_reset_goes_even_if_the_peer_lies_about_the_rest(bench):
    end = bench.open()
    speak(end, 1000)
    bench.sent()
    end.fail()
    _, said = resumed(bench, make.sync(ID, 1), make.state(ID, 99_999, 99_999))
    assert said == frames_of(make.reset(ID, 1))


def test_the_peers_reset_flag_is_a_reset(bench):
    end = bench.open()
    _, said = resumed(bench, make.sync(ID, 1), make.state(ID, 0, 0, RESET))
    assert (end.over, end.code) == ("aborted", ResetCode.CANCELLED)
    assert said == frames_of(make.reset(ID, 0))


def test_both_have_reset(bench):
    bench.open().fail()
    bench.sent()
    _, said = resumed(bench, make.sync(ID, 1), make.state(ID, 0, 0, RESET))
    assert said == frames_of(make.reset(ID, 1))
    bench.feed(make.reset(ID, 2), make.reset(ID, 0))
    assert bench.sent() == frames_of(make.reset(ID, 0))
    assert not bench.session.resetting


def test_a_stream_that_is_reset_before_its_state_came(bench):
    end = bench.open()
    bench.session.resume(1)
    bench.sent()
    bench.feed(make.sync(ID, 1))
    end.fail()
    assert bench.sent() == []
    bench.feed(make.state(ID, 0, MIB))
    assert bench.sent() == frames_of(make.reset(ID, 1))


def test_a_reset_that_comes_before_its_state(bench):
    end = bench.open()
    bench.session.resume(1)
    bench.sent()
    bench.feed(make.sync(ID, 1), make.reset(ID, 3), make.state(ID, 0, MIB))
    assert (end.over, end.code) == ("aborted", 3)
    assert bench.sent() == frames_of(make.reset(ID, 0))
    bench.side.check()


# ------------------------------------------------------------- what the peer does not list


def test_finished_there_and_here(bench):
    end = bench.open()
    bench.feed(make.credit(ID, 0, MIB))
    speak(end, 10)
    finish(end)
    bench.sent()
    bench.feed(make.data(ID, 0, came(end, 5)), make.fin(ID, 5))
    resumed(bench, make.sync(ID, 0))
    assert end.over == "clean"
    bench.sent()
    assert bench.side.arena.used_bytes == 0
    bench.side.check()


@pytest.mark.parametrize("lacks", ["the peer's FIN", "ours", "ours sent", "all"])
def test_not_listed_and_not_finished_is_a_reset(bench, lacks):
    end = bench.open()
    bench.feed(make.credit(ID, 0, MIB))
    if lacks not in ("ours", "all"):
        finish(end)
        if lacks != "ours sent":
            bench.sent()
    if lacks not in ("the peer's FIN", "all"):
        bench.feed(make.fin(ID, 0))
    _, said = resumed(bench, make.sync(ID, 0))
    assert (end.over, end.code) == ("aborted", ResetCode.CANCELLED)
    assert said == []
    bench.side.check()


def test_a_stream_that_the_client_took_and_refused(server):
    """Its RESET "no room" was lost, and it does not remember those."""
    end = server.open()
    resumed(server, make.sync(ID, 0))
    assert end.over == "aborted"


def test_a_state_for_an_unknown_stream_is_ignored(bench):
    end = bench.open()
    _, said = resumed(
        bench, make.sync(ID, 3), make.state(77, 5, 9), make.state(ID, 0, MIB),
        make.state(ID, 9, 9),
    )  # fmt: skip
    assert said == []
    assert not end.over
    assert bench.side.resumed == [(1, 0)]


def test_opened_while_the_states_are_still_coming(client):
    """On a resumed link ordinary frames stand between the STATEs."""
    client.open()
    client.session.resume()
    client.sent()
    client.feed(
        make.sync(2, 1), make.open_(2), make.data(2, 0, b""[:0] + came(client.ends[1], 1))
    )
    client.feed(make.state(1, 0, MIB))
    assert sorted(client.session.streams) == [1, 2]
    assert client.sent() == frames_of(make.credit(2, 0, MIB))


# -------------------------------------------------------------- what cannot be true


@pytest.mark.parametrize(
    ("delivered", "limit", "flags"),
    [
        (101, MIB, 0),
        (2**63, 2**63 + 1, 0),
        (19, MIB, 0),
        (50, 49, 0),
        (50, 2**62 + 1, 0),
        (100, MIB, FIN),
        (50, MIB, FIN),
    ],
    ids=["above sent", "far above", "less than before", "limit below", "limit", "FIN", "FIN?"],
)
def test_a_state_that_cannot_be_true_resets_that_stream_alone(bench, delivered, limit, flags):
    end, other = bench.open(), bench.open()
    bench.feed(make.credit(1, 0, MIB), make.credit(2, 0, MIB))
    speak(end, 100)
    speak(other, 100)
    bench.sent()
    bench.feed(make.credit(1, 20, MIB))
    _, said = resumed(
        bench, make.sync(2, 2), make.state(1, delivered, limit, flags), make.state(2, 0, MIB)
    )
    assert (end.over, end.code) == ("aborted", ResetCode.STREAM_ERROR)
    assert said[-1] == frames_of(make.data(2, 0, pattern(other.seed, 0, 100)))[0]
    assert frames_of(make.reset(1, ResetCode.STREAM_ERROR))[0] in said
    assert not other.over
    bench.side.check()


def test_a_fin_that_was_delivered_stays_delivered(bench):
    end = bench.open()
    finish(end)
    bench.sent()
    bench.feed(make.credit(ID, 0, MIB, FIN))
    resumed(bench, make.sync(ID, 1), make.state(ID, 0, MIB))
    assert end.over == "aborted"


def test_bytes_that_were_never_sent_cannot_have_come(bench):
    end = bench.open()
    bench.feed(make.credit(ID, 0, MIB))
    bench.session.detach()
    speak(end, 1000)
    resumed(bench, make.sync(ID, 1), make.state(ID, 1, MIB))
    assert end.over == "aborted"


def test_a_peer_that_reset_it_and_forgot_how_far_it_was(bench):
    """Its worker died: what it had read still comes, and then its RESET; nothing goes to it."""
    end = bench.open()
    speak(end, 1000)
    bench.sent()
    bench.feed(make.credit(ID, 600, MIB))
    bench.session.detach()
    _, said = resumed(bench, make.sync(ID, 1), make.state(ID, 0, 0))
    assert (end.over, said) == ("", [])
    bench.feed(make.data(ID, 0, came(end, 3)))
    assert end.taken == 3
    bench.feed(make.reset(ID, 1))
    assert end.over == "aborted"


def test_a_client_that_denies_what_it_answered(server):
    end, other = server.open(), server.open()
    server.feed(make.credit(2, 0, MIB))
    _, said = resumed(server, make.sync(1, 1), make.state(1, 0, MIB))
    assert (other.over, other.code) == ("aborted", ResetCode.STREAM_ERROR)
    assert said == frames_of(make.reset(2, 4))
    assert not end.over


def test_a_client_that_took_what_was_never_opened(server):
    server.session.detach()
    end = server.open(quietly=False)
    _, said = resumed(server, make.sync(ID, 1), make.state(ID, 0, MIB))
    assert end.over == "aborted"
    assert said == []
    assert not server.session.resetting


def test_a_client_ahead_of_the_server(server):
    server.open()
    with pytest.raises(RemoteProtocolError, match="SYNC with id 2"):
        resumed(server, make.sync(2, 0))


def test_a_server_behind_its_client(client):
    client.open()
    with pytest.raises(RemoteProtocolError, match="SYNC with id 0"):
        resumed(client, make.sync(0, 0))


def test_a_huge_count(bench):
    bench.open()
    resumed(bench, make.sync(ID, 65_536))
    with pytest.raises(RemoteProtocolError, match="65537 streams"):
        resumed(bench, make.sync(ID, 65_537))


@pytest.mark.parametrize(
    "frame",
    [
        make.ping(1),
        make.state(ID, 0, MIB),
        make.data(ID, 0, b"x"),
        make.frame(FrameType.SYNC, 5, 1, bytes(4)),
        make.frame(FrameType.SYNC, 0, 1, bytes(5)),
        b"\0",
    ],
    ids=["PING", "STATE", "DATA", "SYNC with a stream", "SYNC too long", "one byte"],
)
def test_a_resumed_link_that_does_not_begin_with_sync(bench, frame):
    bench.open()
    with pytest.raises(RemoteProtocolError, match="does not begin with SYNC"):
        resumed(bench, frame)


def test_sync_twice(bench):
    bench.open()
    with pytest.raises(RemoteProtocolError, match="not the first frame"):
        resumed(bench, make.sync(ID, 1), make.sync(ID, 1))


def test_more_states_than_announced(bench):
    bench.open()
    resumed(bench, make.sync(ID, 1), make.state(ID, 0, MIB))
    with pytest.raises(RemoteProtocolError, match="no SYNC announced"):
        bench.feed(make.state(ID, 0, MIB))


def test_fewer_states_than_announced_leave_it_open(bench):
    end = bench.open()
    resumed(bench, make.sync(ID, 2), make.state(ID, 0, MIB))
    assert not bench.session.links.is_settled
    assert not end.over
    assert bench.side.resumed == []


def test_sync_byte_by_byte(bench):
    bench.open()
    bench.session.resume()
    whole = make.sync(ID, 1) + make.state(ID, 0, MIB) + make.ping(3)
    kept = b""
    for index in range(len(whole)):
        kept += whole[index : index + 1]
        kept = kept[bench.session.receive(memoryview(kept), len(kept)) :]
    assert kept == b""
    assert bench.sent()[-1] == frames_of(make.pong(3))[0]
    assert bench.session.links.is_settled


# ------------------------------------------------------------------------ a new session


def test_abandoned_streams_are_reset_and_everything_is_free():
    pair = SessionPair()
    visits = [pair.must_open() for _ in range(5)]
    pair.settle()
    for visit in visits:
        speak(visit.visitor, 100_000)
    visits[0].visitor.fail()
    visits[1].target.fail()
    pair.server.write(1000)
    pair.cut()
    for visit in visits:
        visit.link_lost = True
    for side in pair.sides:
        side.session.abandon(ResetCode.CANCELLED)

    pair.check_all_over()
    assert {end.over for visit in visits for end in visit.ends} == {"aborted", "reset"}


def test_visitors_whom_no_client_answered_begin_anew_with_the_next():
    """In their order, with all that was read of them; also one that has ended already."""
    pair = SessionPair()
    heard = pair.must_open()
    pair.settle()
    lost, ended, silent = [pair.must_open() for _ in range(3)]
    for visit in (heard, lost, ended):
        speak(visit.visitor, 50_000)
    finish(ended.visitor)
    pair.server.write(30_000)
    pair.client.receive(pair.server.out)

    pair.relink()
    pair.check()
    assert heard.visitor.over == "aborted"
    pair.make_willing()
    pair.settle()
    pair.check_complete()
    assert [visit.target.taken for visit in (lost, ended, silent)] == [50_000, 50_000, 0]
    assert ended.target.fin_passed_on
    pair.end_all()
    pair.settle()
    pair.check_all_over()


def test_a_visitor_that_was_answered_is_reset_when_its_client_is_gone():
    pair = SessionPair()
    visit = pair.must_open()
    pair.settle()
    assert visit.visitor.is_known

    pair.relink()
    assert visit.visitor.over == "aborted"
    assert visit.target.over == "aborted"
    pair.settle()
    pair.check_all_over()


def test_a_visitor_that_grew_its_ring_keeps_every_byte():
    """The limit of HELLO was larger than a first ring, and OPEN never went out."""
    pair = SessionPair(first_limit=MIB)
    visit = pair.must_open()
    speak(visit.visitor, 300_000)
    assert visit.visitor.ring.size == 512 * K

    for _ in range(3):
        pair.relink()
        pair.check()
    assert visit.visitor.ring.size == 512 * K
    pair.make_willing()
    pair.settle()
    assert visit.target.taken == 300_000


def test_totals_do_not_count_twice_what_begins_anew():
    pair = SessionPair()
    visit = pair.must_open()
    speak(visit.visitor, 1000)
    pair.relink()
    assert pair.server.session.count_bytes() == (1000, 0)


def test_ids_go_on_in_a_new_session(server):
    server.open()
    server.feed(make.credit(1, 0, MIB))
    server.session.begin(1)
    assert server.session.last_id == 0
    server.open(quietly=False)
    assert [(frame.type, frame.stream_id) for frame in server.sent()] == [(FrameType.OPEN, 2)]


def test_a_client_takes_any_id_in_a_new_session(client):
    client.feed(make.open_(50))
    client.session.begin()
    client.feed(make.open_(7))
    assert sorted(client.session.streams) == [7]


def test_abort_all_ends_also_those_nobody_answered(server):
    end = server.open()
    server.session.abort_all(ResetCode.STOPPING)
    assert end.over == "aborted"
    assert not server.session.streams
    assert server.side.arena.used_bytes == 0


@pytest.mark.parametrize("name", ["client", "server"])
def test_a_successor_has_room_for_all_that_were_there(name):
    """Those with the large windows of a small budget left, and others came in their place."""
    pair = SessionPair(4 << 20, max_streams=1024)
    pair.make_willing()
    large = [pair.must_open() for _ in range(3)]
    pair.settle()
    for _ in range(57):
        pair.must_open()
    pair.settle()
    for visit in large:
        visit.visitor.fail()
    pair.settle()
    for _ in range(60):
        pair.must_open()
    pair.settle()
    here = [visit for visit in pair.visits if not visit.visitor.over]
    assert len(here) > 80
    pair.die(getattr(pair, name))
    pair.cut()
    pair.resume()
    pair.settle()
    assert not any(visit.visitor.over for visit in here)
