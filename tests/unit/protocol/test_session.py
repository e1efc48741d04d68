"""Streams begin, end, and get their share of memory."""

from __future__ import annotations

import pytest

from tests.support import frame_factory as make
from tests.support.frame_factory import split_frames
from tests.support.pattern import pattern
from tests.support.session_pair import SessionPair
from tunneltcp.protocol.errors import GoawayCode, RemoteProtocolError, ResetCode
from tunneltcp.protocol.frames import FrameType
from tunneltcp.protocol.session import SWEEP_SECONDS

ID = 1
K = 1024
MIB = 1 << 20


def came(end, size):
    return pattern(end.checker.seed, end.came, size)


def frames_of(*wire):
    return split_frames(wire)


# ---------------------------------------------------------------------- the beginning


def test_open_is_answered_at_once_with_credit(client):
    client.feed(make.open_(5, limit=1000))

    assert client.sent() == frames_of(make.credit(5, 0, MIB))
    stream = client.session.streams[5]
    assert (stream.limit, stream.granted, stream.window) == (1000, MIB, MIB)


def test_a_stream_is_confirmed_by_any_credit(server):
    end = server.open()
    assert not end.stream.confirmed
    assert end.stream.limit == 32 * K
    server.feed(make.credit(ID, 0, MIB))
    assert end.stream.confirmed
    assert end.stream.limit == MIB


def test_a_fin_shows_that_the_peer_knows_a_stream(server):
    end = server.open()
    server.sent()
    server.feed(make.fin(ID, 0))
    assert end.stream.is_known, "it must not begin anew: its socket has FIN"
    assert end.fin_passed_on


def test_a_fin_for_a_stream_that_the_peer_only_guesses_ends_that_stream(server):
    """Its OPEN waits: who answers it has counted on, and would have it opened with no limit."""
    end = server.open(quietly=False)
    end.stream.open_payload = make.addresses(1)  # as behind a link that takes nothing
    server.session.sender.framed.clear()
    server.feed(make.fin(ID, 0))
    assert end.code == ResetCode.STREAM_ERROR
    assert FrameType.OPEN not in [frame.type for frame in server.sent()]


def test_a_visitor_too_many_is_answered_with_over_limit(new_bench):
    bench = new_bench("client", max_streams=2)
    for stream_id in (1, 2, 3):
        bench.feed(make.open_(stream_id))

    assert sorted(bench.session.streams) == [1, 2]
    assert frames_of(make.reset(3, 5))[0] in bench.sent()
    bench.feed(make.data(3, 0, b"early"), make.fin(3, 5))
    bench.feed(make.reset(3, 0))
    bench.feed(make.reset(1, 1), make.open_(4))
    assert sorted(bench.session.streams) == [2, 4]


def test_a_server_opens_no_more_than_it_may(new_bench):
    bench = new_bench("server", max_streams=2)
    assert bench.open()
    assert bench.open()
    assert bench.open() is None
    bench.feed(make.reset(1, 1))
    assert bench.open()


def test_a_target_that_refuses_in_the_very_call(client):
    client.refuses = True
    client.feed(make.open_(ID), make.data(ID, 0, b"early"))
    assert client.sent() == frames_of(make.reset(ID, 1))
    client.feed(make.reset(ID, 0))
    assert not client.session.resetting
    assert client.session.windows.granted_bytes == 0
    assert client.side.arena.used_bytes == 0


# ------------------------------------------------------------------------------- RESET


def test_a_reset_is_answered_once(bench):
    end = bench.open()
    bench.feed(make.reset(ID, 3))

    assert (end.over, end.code) == ("aborted", 3)
    assert bench.sent() == frames_of(make.reset(ID, 0))
    bench.feed(make.reset(ID, 0))
    assert bench.sent() == []
    assert not bench.session.streams


def test_resets_that_cross(bench):
    """Each answers the other's; each forgets at the answer to its own."""
    end = bench.open()
    end.fail()
    assert bench.sent() == frames_of(make.reset(ID, 1))
    bench.feed(make.reset(ID, 2))
    assert bench.sent() == frames_of(make.reset(ID, 0))
    assert end.over == "reset"
    assert bench.session.resetting
    bench.feed(make.reset(ID, 0))
    assert not bench.session.resetting


def test_an_answer_to_a_reset_that_was_not_sent_yet_is_none(bench):
    end = bench.open()
    end.fail()
    bench.feed(make.reset(ID, 0))
    assert bench.session.resetting
    assert bench.sent() == frames_of(make.reset(ID, 1))


def test_code_0_for_a_live_stream_is_nothing(bench):
    end = bench.open()
    bench.feed(make.reset(ID, 0))
    assert not end.over
    assert bench.sent() == []


@pytest.mark.parametrize("code", [1, 6, 7, 999, 65_535])
def test_any_other_code_resets(bench, code):
    end = bench.open()
    bench.feed(make.reset(ID, code))
    assert (end.over, end.code) == ("aborted", code)


def test_a_reset_takes_what_was_to_be_said_with_it(bench):
    end = bench.open()
    end.write(5000)
    end.read()
    end.end()
    end.read()
    bench.feed(make.data(ID, 0, came(end, 70_000)), make.fin(ID, 70_000), make.reset(ID, 1))

    assert bench.sent() == frames_of(make.reset(ID, 0))
    bench.sent()
    bench.side.check()
    assert bench.side.arena.used_bytes == 0


def test_resetting_twice_or_after_the_end_is_nothing(bench):
    end = bench.open()
    stream = end.stream
    end.fail()
    bench.sent()
    stream.reset(ResetCode.STOPPING)
    assert bench.sent() == []
    assert bench.session.resets == 1


def test_a_visitor_that_resets_before_its_open_went_out():
    pair = SessionPair()
    visit = pair.must_open()
    visit.visitor.fail()

    pair.pump()  # the client must not hear of it: an unknown id would end the link
    pair.settle()
    pair.check_all_over()


def test_a_visitor_that_speaks_and_resets_before_its_open_went_out():
    pair = SessionPair()
    visit = pair.must_open()
    visit.visitor.write(10)
    visit.visitor.read()
    visit.visitor.fail()

    pair.pump()
    pair.settle()
    pair.check_all_over()


def test_a_visitor_that_ends_and_resets_before_its_open_went_out(server):
    end = server.open(quietly=False)
    end.end()
    end.read()
    end.fail()
    assert server.sent() == []
    server.sent()
    server.side.check()
    other, third = server.open(), server.open()
    assert other.record != third.record
    assert min(other.record, third.record) >= 512, "a record in the header"


# ---------------------------------------------------------------------------- FIN, end


def test_a_clean_end_needs_both_fins_and_the_word_of_the_peer(bench):
    end = bench.open()
    end.end()
    end.read()
    bench.sent()
    bench.feed(make.fin(ID, 0))
    assert end.fin_passed_on
    assert not end.over
    assert bench.sent() == frames_of(make.credit(ID, 0, MIB, 1))
    bench.feed(make.credit(ID, 0, MIB, 1))
    assert end.over == "clean"
    assert not bench.session.streams


def test_the_other_order(bench):
    """Ours was delivered first: the last CREDIT goes out although the stream is forgotten."""
    end = bench.open()
    end.end()
    end.read()
    bench.sent()
    bench.feed(make.credit(ID, 0, MIB, 1))
    assert not end.over
    bench.feed(make.data(ID, 0, came(end, 10)), make.fin(ID, 10))
    assert end.over == "clean"
    assert not bench.session.streams
    assert bench.sent() == frames_of(make.credit(ID, 10, MIB + 10, 1))


def test_fin_is_passed_on_behind_all_bytes(bench):
    end = bench.open()
    end.appetite = 4
    bench.feed(make.data(ID, 0, came(end, 10)), make.fin(ID, 10))
    assert not end.fin_passed_on
    end.take(5)
    assert not end.fin_passed_on
    end.take(1)
    assert end.fin_passed_on
    [credit] = bench.sent()
    assert (credit.value, credit.payload[8]) == (10, 1)


def test_the_flag_is_in_every_later_credit(bench):
    end = bench.open()
    bench.feed(make.fin(ID, 0))
    assert bench.sent()[0].payload[8] == 1
    bench.session.sender.owe_credit(end.stream)
    assert bench.sent()[0].payload[8] == 1


def test_half_close_leaves_the_other_direction_alone(bench):
    end = bench.open()
    bench.feed(make.fin(ID, 0))
    end.write(1000)
    end.read()
    assert sum(len(frame.payload) for frame in bench.sent() if frame.type == 2) == 1000
    bench.feed(make.credit(ID, 1000, MIB))
    assert not end.over


# ------------------------------------------------------------------------------ CREDIT


def test_credit_goes_out_when_64_kib_were_delivered(bench):
    end = bench.open()
    bench.feed(make.data(ID, 0, came(end, 65_535)))
    assert bench.sent() == []
    bench.feed(make.data(ID, 65_535, came(end, 1)))
    assert bench.sent() == frames_of(make.credit(ID, 65_536, 65_536 + MIB))
    bench.feed(make.data(ID, 65_536, came(end, 65_535)))
    assert bench.sent() == []
    bench.feed(make.data(ID, 131_071, came(end, 1)))
    assert len(bench.sent()) == 1


def test_credit_goes_out_when_a_quarter_of_a_small_window_was_delivered(new_bench):
    bench = new_bench("server", budget=2 * MIB, max_streams=100)
    bench.open()
    end = bench.open()
    assert end.stream.window == 16 * K
    bench.feed(make.data(2, 0, came(end, 4095)))
    assert bench.sent() == []
    bench.feed(make.data(2, 4095, came(end, 1)))
    assert bench.sent() == frames_of(make.credit(2, 4096, 4096 + 16 * K))


def test_what_the_socket_did_not_take_is_not_delivered(bench):
    end = bench.open()
    end.appetite = 1000
    bench.feed(make.data(ID, 0, came(end, 100_000)))
    bench.session.sweep()
    bench.session.sweep()
    assert bench.sent() == []
    end.take(64_535)
    assert bench.sent() == []
    end.take(1)
    assert bench.sent()[0].value == 65_536


def test_a_quiet_stream_gets_its_credit_at_the_second_sweep(bench):
    end = bench.open()
    bench.feed(make.data(ID, 0, came(end, 10)))
    bench.session.sweep()
    assert bench.sent() == []
    assert bench.session.owing
    bench.session.sweep()
    assert bench.sent() == frames_of(make.credit(ID, 10, 10 + MIB))
    assert not bench.session.owing
    bench.sweep()
    assert bench.sent() == []
    assert SWEEP_SECONDS == 0.02


def test_a_busy_stream_gets_no_credit_from_sweeps(bench):
    end = bench.open()
    for _ in range(10):
        bench.feed(make.data(ID, end.came, came(end, 10)))
        bench.session.sweep()
        assert bench.sent() == []


# ------------------------------------------------------------------------------ memory


def test_a_window_comes_back_with_the_end_of_its_stream(bench):
    one, two = bench.open(), bench.open()
    assert bench.session.windows.granted_bytes == 2 * MIB
    one.fail()
    assert bench.session.windows.granted_bytes == MIB
    bench.feed(make.reset(two.stream.id, 1))
    assert bench.session.windows.granted_bytes == 0


def starve(bench):
    """One end holds the last ring; another wants one."""
    one, two = bench.open(), bench.open()
    bench.side.hold_back(16 * K)
    one.write(100)
    one.read()
    bench.sent()
    two.write(100)
    assert two.read() == -1
    assert not two.watching
    assert bench.session.starved
    return one, two


def test_a_ring_that_comes_back_feeds_the_starved(bench):
    _, two = starve(bench)
    bench.feed(make.credit(1, 100, MIB))
    assert not two.watching, "what was handed out may not be written yet"
    bench.sent()
    assert two.watching
    assert two.read() == 100


def test_who_starves_is_fed_in_turn_as_far_as_there_are_rings(bench):
    """Were all of a thousand fed for one ring, each ring would cost a thousand reads."""
    _, two = starve(bench)
    three = bench.open()
    three.write(1)
    assert three.read() == -1
    bench.feed(make.credit(1, 100, MIB))
    bench.sent()
    assert two.watching
    assert not three.watching
    assert two.read() == 100
    bench.sent()
    bench.feed(make.credit(2, 100, MIB))
    bench.sent()
    assert three.watching
    assert three.read() == 1


def test_who_is_gone_takes_nobody_the_turn_to_be_fed(bench):
    one, two = starve(bench)
    three = bench.open()
    three.write(1)
    three.read()
    two.fail()
    assert list(bench.session.starved) == [three.stream], "nor is it remembered"
    bench.feed(make.credit(1, 100, MIB))
    bench.sent()
    bench.sent()
    assert one.stream.ring is None
    assert three.watching


@pytest.mark.parametrize("whose", ["peer's", "ours"])
def test_a_reset_feeds_the_starved(bench, whose):
    one, two = starve(bench)
    if whose == "ours":
        one.fail()
        bench.sent()
        bench.feed(make.reset(1, 0))  # until then it might have to be sent again
    else:
        bench.feed(make.reset(1, 1))
    bench.sent()
    while bench.session.sender.has_output:
        bench.sent()
    assert two.watching


def test_the_end_of_a_stream_feeds_the_starved(bench):
    one, two = bench.open(), bench.open()
    bench.side.hold_back(16 * K)
    one.end()
    one.read()  # takes the last ring, for nothing
    two.write(100)
    two.read()
    bench.sent()
    bench.feed(make.fin(1, 0))
    bench.feed(make.credit(1, 0, MIB, 1))
    assert one.over == "clean"
    bench.sent()
    while bench.session.sender.has_output:
        bench.sent()
    assert two.watching


def test_a_stream_starves_once(bench):
    _, two = starve(bench)
    for _ in range(100):
        bench.feed(make.credit(2, 0, MIB))
        two.read()
    assert len(bench.session.starved) <= 2


def test_streams_that_are_refused_faster_than_resets_are_read(new_bench):
    """Records are held until RESET went out; the bound on streams does not count those."""
    bench = new_bench("client", max_streams=4)
    bench.refuses = True
    opens = [make.open_(stream_id) for stream_id in range(1, 1000)]
    with pytest.raises(RemoteProtocolError):
        bench.feed(*opens)


@pytest.mark.slow
def test_a_peer_that_never_answers_a_reset(new_bench):
    bench = new_bench("client", max_streams=4)
    bench.refuses = True

    def refuse(count):
        for stream_id in range(1, count):
            bench.feed(make.open_(stream_id))
            bench.session.data_to_send()

    with pytest.raises(RemoteProtocolError):
        refuse(70_000)


# --------------------------------------------------------------------------- the rest


def test_totals_outlive_their_streams(bench):
    one, two = bench.open(), bench.open()
    for end, size in ((one, 10), (two, 500)):
        end.write(size)
        end.read()
        bench.feed(make.data(end.stream.id, 0, came(end, size + 1)))
    assert bench.session.count_bytes() == (510, 512)
    one.fail()
    bench.feed(make.reset(two.stream.id, 1))
    assert bench.session.count_bytes() == (510, 512)
    assert bench.session.resets == 2


def test_ping_and_goaway(bench):
    bench.open()
    bench.session.ping(2**64 - 1)
    bench.session.goaway(GoawayCode.PROTOCOL_ERROR)
    assert bench.sent() == frames_of(make.ping(2**64 - 1), make.goaway(1, 1))


def test_a_late_reset_after_a_clean_end_is_answered(bench):
    end = bench.open()
    end.end()
    end.read()
    bench.sent()
    bench.feed(make.fin(ID, 0), make.credit(ID, 0, MIB, 1), make.reset(ID, 1))
    assert end.over == "clean"
    assert [f.type for f in bench.sent()] == [FrameType.CREDIT, FrameType.RESET]


def test_visitors_who_do_not_read_leave_a_ring_for_the_others():
    """Also where the other side's budget lets each of them have much more than ours."""
    pair = SessionPair(64 << 20, client_budget_bytes=4 << 20, max_streams=1024)
    pair.make_willing()
    for _ in range(40):
        visit = pair.must_open()
        visit.visitor.appetite = 0
        pair.settle()
        visit.target.write(4 << 20)
        pair.settle()
    visit = pair.must_open()
    visit.visitor.appetite = 5000
    pair.settle()
    visit.target.write(5000)
    pair.settle()
    assert visit.visitor.taken == 5000
