"""The server's worker: who owns the port, who waits, who is let in, and how it leaves.

The client is played by hand: alive or silent as each test needs it.
"""

from __future__ import annotations

import socket

import pytest

from tests.support import frame_factory as make
from tests.support.loop_stepper import spins
from tests.support.pattern import pattern
from tunneltcp.control.counters import Counter, LinkState
from tunneltcp.errors import ExitCode
from tunneltcp.protocol.errors import ResetCode
from tunneltcp.protocol.frames import FrameType
from tunneltcp.protocol.handshake import Stage
from tunneltcp.protocol.messages import RefusedCode
from tunneltcp.protocol.preface import MAGIC, make_preface, port_key
from tunneltcp.workers.server import MAX_REFUSALS, OWNER_SECONDS

OTHER_RUN, OTHER_HOST = "77" * 16, "88" * 16


@pytest.fixture
def server(world):
    return world.server()


def has_left(server) -> bool:
    return server.worker.left is not None


def opens(raw) -> list[int]:
    return [frame.stream_id for frame in raw.of(FrameType.OPEN)]


def in_open(address):
    """An IPv4 address as PROTOCOL.md §7.1 writes it."""
    return b"\4" + socket.inet_aton(address[0]) + address[1].to_bytes(2, "big")


def make_doubted(world, server, raw) -> None:
    """Let the client fall silent for as long as it takes; a stream is there or not."""
    raw.answers_pings = False
    world.pass_time(4.5)
    assert server.worker.link.is_doubted
    assert server.counter(Counter.LINK_STATE) == LinkState.DOUBTED


class TestOwner:
    def test_the_newest_link_of_the_same_run_wins_at_once(self, world, server):
        first = world.linked_client(server.port)
        visitor = world.visitor(server.port, b"hi")
        world.until(lambda: first.data(1))
        second = world.linked_client(server.port)
        world.until(lambda: first.end)
        world.until(lambda: visitor.end)
        assert visitor.end == "rst", "it named no session: that is over"
        world.visitor(server.port, b"hello")
        world.until(lambda: second.data(2) == b"hello")
        assert server.counter(Counter.LINKS_TOTAL) == 2

    def test_a_link_that_replaces_one_that_stands_has_time_to_tell(self, world):
        """With "resume_grace" 0, too: so a client goes on with another token."""
        server = world.server(resume_grace_seconds=0.0)
        first = world.linked_client(server.port)
        visitor = world.visitor(server.port, b"hi")
        world.until(lambda: first.data(1))
        told = make.sync(1, 1) + make.state(1, 2, 1 << 20)
        session = server.worker.session_id
        second = world.linked_client(server.port, session=session, greeting=told)
        assert second.handshake.welcome.resumed
        world.pass_time(0.3)
        assert not second.end
        assert not visitor.end
        second.peer.reset()
        world.until(lambda: visitor.end == "rst")

    @pytest.mark.parametrize("ids", [{"run_id": OTHER_RUN}, {"host_id": OTHER_HOST}])
    def test_another_is_refused_while_the_owner_answers(self, world, server, ids):
        owner = world.linked_client(server.port)
        world.pass_time(0.5)
        pings = len(owner.of(FrameType.PING))
        other = world.raw_client(server.port, **ids)
        world.until(lambda: not other.proves)
        world.settle()
        assert len(owner.of(FrameType.PING)) == pings + 1, "the owner is asked at once"
        assert not other.end, "its answer has not been looked at"
        world.pass_time(0.5)
        assert other.refused is RefusedCode.IN_USE
        assert other.handshake.refusal.proven
        assert other.handshake.refusal.holder.startswith("127.0.0.1:")
        assert not owner.end
        assert server.worker.link is not None

    def test_another_is_welcome_when_the_owner_is_silent(self, world, server):
        owner = world.linked_client(server.port)
        visitor = world.visitor(server.port, b"hi")
        world.until(lambda: owner.data(1))
        owner.answers_pings = False
        world.pass_time(0.5)
        other = world.raw_client(server.port, run_id=OTHER_RUN)
        world.pass_time(OWNER_SECONDS - 0.2)
        assert not other.is_up
        world.pass_time(0.4)
        world.until(lambda: other.is_up and owner.end)
        world.until(lambda: visitor.end == "rst")
        world.visitor(server.port, b"hello")
        world.until(lambda: other.data(2) == b"hello")

    def test_another_is_welcome_at_once_when_the_owner_has_gone(self, world, server):
        owner = world.linked_client(server.port)
        other = world.raw_client(server.port, run_id=OTHER_RUN)
        world.until(lambda: not other.proves)
        world.settle()
        owner.peer.reset()
        world.pass_time(OWNER_SECONDS + 0.1)
        world.until(lambda: other.is_up)

    def test_an_owner_far_away_has_two_seconds_to_answer(self, world, server):
        owner = world.linked_client(server.port)
        owner.answers_pings = False
        world.pass_time(0.5)
        other = world.raw_client(server.port, run_id=OTHER_RUN)
        world.pass_time(OWNER_SECONDS - 0.3)
        owner.send(FrameType.PONG, 0, 1)
        world.pass_time(0.2)
        world.until(lambda: other.refused)
        assert not owner.end

    def test_an_owner_that_spoke_just_before_stays(self, world):
        server = world.server(idle_ping_seconds=30.0)
        owner = world.linked_client(server.port)
        world.pass_time(1.0)
        owner.send(FrameType.PONG, 0, 1)
        world.settle()
        other = world.raw_client(server.port, run_id=OTHER_RUN)
        world.settle()
        assert not other.proves
        world.pass_time(OWNER_SECONDS + 0.2)
        assert other.refused is RefusedCode.IN_USE
        assert not owner.end

    def test_two_others_at_once_and_a_silent_owner_end_with_one_owner(self, world, server):
        owner = world.linked_client(server.port)
        owner.answers_pings = False
        world.pass_time(0.5)
        others = [world.raw_client(server.port, run_id=f"{i:02x}" * 16) for i in range(2)]
        world.pass_time(OWNER_SECONDS + 0.2)
        assert [other.is_up for other in others].count(True) == 1
        world.pass_time(OWNER_SECONDS + 0.5)
        assert [other.refused for other in others].count(RefusedCode.IN_USE) == 1

    def test_who_is_judged_and_goes_away_meanwhile_changes_nothing(self, world, server):
        owner = world.linked_client(server.port)
        owner.answers_pings = False
        world.pass_time(0.5)
        other = world.raw_client(server.port, run_id=OTHER_RUN)
        world.until(lambda: not other.proves)
        other.peer.reset()
        world.pass_time(OWNER_SECONDS + 0.2)
        assert not owner.end


def lose(world, server, raw) -> None:
    """The client's network is gone, and the server knows it."""
    raw.peer.reset()
    world.until(lambda: server.counter(Counter.LINK_STATE) == LinkState.DOWN)


class TestResume:
    @pytest.fixture
    def raw(self, world, server):
        return world.linked_client(server.port)

    @pytest.fixture
    def visitor(self, world, server, raw):
        visitor = world.visitor(server.port, b"hello")
        world.until(lambda: raw.data(1) == b"hello")
        return visitor

    def again(self, world, server, raw, **how):
        """Come back with the session; say how far stream 1 is."""
        session = raw.handshake.welcome.session
        greeting = make.sync(1, 1) + make.state(1, 3, 1 << 20)
        return world.linked_client(server.port, session=session, greeting=greeting, **how)

    def test_the_session_goes_on(self, world, server, raw, visitor):
        raw.send(FrameType.DATA, 1, 0, b"to you")
        world.until(lambda: visitor.received == b"to you")
        lose(world, server, raw)
        visitor.send(b", again")
        world.pass_time(20)
        newer = self.again(world, server, raw)
        world.until(lambda: newer.data(1) == b"lo, again")

        assert newer.frames[0] == (FrameType.SYNC, 0, 1, b"\0\0\0\1")
        state = newer.frames[1]
        assert (state.type, state.stream_id, state.value) == (FrameType.STATE, 1, 6)
        welcome = newer.handshake.welcome
        assert (welcome.resumed, welcome.epoch) == (True, 2)
        assert welcome.session == raw.handshake.welcome.session
        table = server.worker.memory.table
        assert (table.epoch, table.words[1]) == (2, int(welcome.session[:16], 16))
        newer.send(FrameType.DATA, 1, 6, b" too")
        world.until(lambda: visitor.received == b"to you too")

    def test_also_over_a_link_that_is_still_there(self, world, server, raw, visitor):
        newer = self.again(world, server, raw)
        world.until(lambda: newer.data(1) == b"lo")
        world.until(lambda: raw.end)
        assert not visitor.end

    def test_a_session_that_is_not_known_is_no_error(self, world, server, raw, visitor):
        lose(world, server, raw)
        newer = world.linked_client(server.port, session="ee" * 16)
        welcome = newer.handshake.welcome
        assert (welcome.resumed, welcome.epoch) == (False, 1)
        assert welcome.session not in ("ee" * 16, raw.handshake.welcome.session)
        world.until(lambda: visitor.end == "rst")

    def test_the_session_of_another_run_is_not_resumed(self, world, server, raw, visitor):
        lose(world, server, raw)
        newer = world.linked_client(
            server.port, session=raw.handshake.welcome.session, run_id=OTHER_RUN
        )
        assert not newer.handshake.welcome.resumed
        world.until(lambda: visitor.end == "rst")

    def test_a_late_duplicate_is_stale_and_harms_nobody(self, world, server, raw, visitor):
        number = server.worker.memory.table.attempt
        for attempt in (number, number - 1):
            late = world.raw_client(server.port, attempt=attempt)
            world.until(lambda late=late: late.refused)
            assert late.refused is RefusedCode.STALE
            assert late.handshake.refusal.proven
        assert not raw.end
        assert not visitor.end
        assert server.worker.memory.table.attempt == number

    def test_an_attempt_of_a_stranger_moves_nothing(self, world, server, raw, visitor):
        number = server.worker.memory.table.attempt
        late = world.raw_client(server.port, attempt=2**53, token="x" * 32)
        world.until(lambda: late.end)
        assert server.worker.memory.table.attempt == number
        assert not raw.end

    def test_who_breaks_the_protocol_ends_the_session(self, world, server, raw, visitor):
        newer = world.linked_client(
            server.port, session=raw.handshake.welcome.session, greeting=make.sync(99, 0)
        )
        world.until(lambda: newer.end and visitor.end)
        assert newer.of(FrameType.GOAWAY)[0].payload == b"\0\1"
        assert visitor.end == "rst"
        assert not server.worker.session_id

    def test_a_client_that_left_is_not_waited_for(self, world, server, raw, visitor):
        raw.send(FrameType.GOAWAY, 0, 1, b"\0\0")
        world.settle()
        lose(world, server, raw)
        world.until(lambda: visitor.end == "rst")

    def test_after_the_grace_it_is_over(self, world, server, raw, visitor):
        lose(world, server, raw)
        world.pass_time(59.5, step=0.1)
        assert not visitor.end
        world.pass_time(1.0)
        world.until(lambda: visitor.end == "rst")
        newer = world.linked_client(server.port, session=raw.handshake.welcome.session)
        assert not newer.handshake.welcome.resumed

    def test_a_silent_link_is_given_up_after_the_grace(self, world, server, raw, visitor):
        make_doubted(world, server, raw)
        world.pass_time(61.0, step=0.1)
        world.until(lambda: raw.end and visitor.end == "rst")

    def test_a_resume_that_never_ends_is_given_up(self, world, server, raw, visitor):
        newer = world.linked_client(
            server.port, session=raw.handshake.welcome.session, greeting=make.sync(1, 2)
        )
        world.pass_time(59.0, step=0.1)
        assert not visitor.end
        world.pass_time(2.0)
        world.until(lambda: newer.end and visitor.end == "rst")

    def test_another_host_waits_until_the_owner_gave_up(self, world, server, raw, visitor):
        lose(world, server, raw)
        for _ in range(2):
            world.pass_time(29.0, step=0.1)
            other = world.raw_client(server.port, host_id=OTHER_HOST)
            world.until(lambda other=other: other.refused)
            assert other.refused is RefusedCode.IN_USE
            assert other.handshake.refusal.holder.startswith("127.0.0.1:")
        assert not visitor.end
        world.pass_time(3.0)
        assert world.linked_client(server.port, host_id=OTHER_HOST).is_up

    def test_another_host_waits_also_for_a_silent_owner(self, world, server, raw):
        raw.answers_pings = False
        world.pass_time(0.5)
        other = world.raw_client(server.port, host_id=OTHER_HOST)
        world.pass_time(OWNER_SECONDS + 0.3)
        assert other.refused is RefusedCode.IN_USE
        assert not raw.end

    def test_a_restarted_client_of_the_same_host_has_the_port_at_once(
        self, world, server, raw, visitor
    ):
        lose(world, server, raw)
        newer = world.linked_client(server.port, run_id=OTHER_RUN, attempt=1)
        world.until(lambda: visitor.end == "rst")
        assert newer.handshake.welcome.epoch == 1


class TestGuesses:
    def test_a_fin_for_an_open_that_still_waits_costs_that_visitor_alone(self, world, server):
        raw = world.linked_client(server.port)
        first = world.visitor(server.port, b"x" * 100)
        world.until(lambda: raw.of(FrameType.OPEN))
        raw.credit(1, 0, 1 << 30)
        world.settle()
        raw.peer.reads = False
        session = server.worker.session
        first.send(bytes(30 << 20))
        world.until(lambda: session.sender.ready and not session.sender.small_bytes)
        second = world.visitor(server.port, b"hello")
        world.until(lambda: 2 in session.streams)
        raw.send(FrameType.FIN, 2, 0)
        world.settle()
        raw.peer.reads = True
        world.until(lambda: second.end)
        world.until(lambda: not session.sender.ready)
        assert second.end == "rst"
        assert opens(raw) == [1]
        assert not first.end


class TestHold:
    def test_visitors_before_the_link_are_let_in_in_order_with_all_their_bytes(
        self, world, server
    ):
        visitors = []
        for seed in range(5):
            visitors.append(world.visitor(server.port, pattern(seed, 0, 50_000)))
            world.settle()
        assert server.counter(Counter.HELD) == 5
        assert server.counter(Counter.VISITORS) == 5
        assert server.counter(Counter.VISITORS_TOTAL) == 5
        world.pass_time(5)
        assert not any(visitor.end for visitor in visitors)
        raw = world.linked_client(server.port)
        world.until(lambda: len(raw.data(5)) == 50_000)
        assert opens(raw) == [1, 2, 3, 4, 5]
        for seed, visitor in enumerate(visitors):
            assert raw.data(seed + 1) == pattern(seed, 0, 50_000)
            theirs, ours = visitor.sock.getsockname(), visitor.sock.getpeername()
            assert raw.of(FrameType.OPEN)[seed].payload == in_open(theirs) + in_open(ours)
        assert server.counter(Counter.HELD) == 0
        assert server.counter(Counter.VISITORS) == 5

    def test_visitors_are_reset_when_they_have_waited_for_long_enough(self, world):
        server = world.server(hold_seconds=3.0)
        early = world.visitor(server.port, b"hi")
        world.pass_time(2.0)
        late = world.visitor(server.port, b"hi")
        world.pass_time(0.9)
        assert not early.end
        world.pass_time(0.2)
        world.until(lambda: early.end)
        assert early.end == "rst"
        assert not late.end
        assert server.counter(Counter.HELD) == 1
        world.pass_time(2.0)
        world.until(lambda: late.end == "rst")
        assert server.counter(Counter.HELD) == server.counter(Counter.VISITORS) == 0

    def test_waiting_costs_no_turns(self, world, server):
        world.visitor(server.port, b"hi")
        world.visitor(server.port)
        world.settle()
        assert not spins(server.loop)

    def test_with_hold_0_a_visitor_is_reset_as_soon_as_it_is_one(self, world):
        server = world.server(hold_seconds=0.0)
        visitor = world.visitor(server.port, b"hi")
        world.until(lambda: visitor.end)
        assert visitor.end == "rst"
        assert server.counter(Counter.HELD) == 0

    def test_with_hold_0_who_says_nothing_has_a_second_for_it_may_be_the_link(self, world):
        server = world.server(hold_seconds=0.0)
        silent = world.visitor(server.port)
        late = world.raw_client(server.port, dials=False)
        world.pass_time(0.9)
        assert not silent.end
        late.peer.send(late.first)
        world.until(lambda: late.is_up)
        world.until(lambda: opens(late) == [1] or world.pass_time(0.05))
        assert not silent.end, "the link is up: it is a visitor now"

    def test_with_hold_0_and_no_link_silence_ends_by_reset(self, world):
        server = world.server(hold_seconds=0.0)
        silent = world.visitor(server.port)
        world.pass_time(1.1)
        world.until(lambda: silent.end)
        assert silent.end == "rst"

    def test_a_silent_visitor_waits_for_as_long_as_one_that_spoke(self, world):
        server = world.server(hold_seconds=3.0)
        silent = world.visitor(server.port)
        world.pass_time(2.8)
        assert not silent.end
        world.pass_time(0.3)
        world.until(lambda: silent.end)
        assert silent.end == "rst"

    def test_a_silent_visitor_is_let_in_when_the_link_comes(self, world, server):
        silent = world.visitor(server.port)
        world.pass_time(4.0)
        raw = world.linked_client(server.port)
        world.until(lambda: opens(raw) == [1])
        raw.send(FrameType.DATA, 1, 0, b"220 hello\r\n")
        world.until(lambda: silent.received == b"220 hello\r\n")

    def test_strangers_with_many_addresses_do_not_fill_the_log(self, world):
        server = world.server()
        for number in range(MAX_REFUSALS + 50):
            server.worker.on_refused(f"[2001:db8::{number:x}]:1", "wrong", "")
            if number % 20 == 0:
                world.settle(1)  # the master reads
        world.settle()
        server.worker.on_shed()
        world.settle()
        *lines, last = server.told("warning")
        assert len(lines) == MAX_REFUSALS == 256
        assert "no descriptor" in last["text"]

    def test_no_more_than_max_visitors(self, world):
        server = world.server(max_visitors=3)
        visitors = [world.visitor(server.port, b"hi") for _ in range(3)]
        world.settle()
        extra = world.visitor(server.port, b"hi")
        world.until(lambda: extra.end)
        assert extra.end == "rst"
        raw = world.linked_client(server.port)
        world.until(lambda: len(opens(raw)) == 3)
        extra = world.visitor(server.port, b"hi")
        world.until(lambda: extra.end)
        assert not any(visitor.end for visitor in visitors)
        visitors[0].reset()
        world.until(lambda: server.counter(Counter.VISITORS) == 2)
        world.until(lambda: raw.of(FrameType.RESET))
        extra = world.visitor(server.port, b"too early")
        world.until(lambda: extra.end)
        assert len(opens(raw)) == 3, "the first one is still the client's work"
        raw.reset(1, ResetCode.ANSWER)
        world.settle()
        world.visitor(server.port, b"again")
        world.until(lambda: len(opens(raw)) == 4)

    def test_a_visitor_beyond_the_memory_is_reset(self, world):
        server = world.server(budget_bytes=16 * 1024, max_visitors=100)
        raw = world.linked_client(server.port)
        first = world.visitor(server.port, b"hi")
        world.until(lambda: opens(raw) == [1])
        second = world.visitor(server.port, b"hi")
        world.until(lambda: second.end)
        assert second.end == "rst"
        assert not first.end

    def test_after_a_lost_link_new_visitors_wait_for_the_next(self, world, server):
        raw = world.linked_client(server.port)
        raw.peer.reset()
        world.until(lambda: server.counter(Counter.LINK_STATE) == LinkState.DOWN)
        world.visitor(server.port, b"hi")
        world.until(lambda: server.counter(Counter.HELD) == 1)
        raw = world.linked_client(server.port)
        world.until(lambda: raw.data(1) == b"hi")


class TestUnanswered:
    """A link is lost before its client said that it has seen the visitor."""

    @pytest.fixture
    def lost(self, world, server):
        """A link on which nothing was answered, lost with a visitor and half its bytes."""
        raw = world.linked_client(server.port)
        raw.answers_opens = False
        visitor = world.visitor(server.port, pattern(1, 0, 10_000))
        world.until(lambda: len(raw.data(1)) == 10_000)
        raw.peer.reset()
        world.until(lambda: server.counter(Counter.LINK_STATE) == LinkState.DOWN)
        return visitor

    def test_visitors_wait_and_begin_anew_with_all_their_bytes(self, world, server, lost):
        assert server.counter(Counter.HELD) == server.counter(Counter.VISITORS) == 1
        lost.send(pattern(1, 10_000, 50_000))
        world.pass_time(1.0)
        assert not lost.end
        (relay,) = server.worker._waiting
        assert relay.stream.head == 60_000, "it is read on"
        raw = world.linked_client(server.port)
        world.until(lambda: len(raw.data(1)) == 60_000)
        assert raw.data(1) == pattern(1, 0, 60_000)
        assert server.counter(Counter.HELD) == 0
        assert server.counter(Counter.VISITORS_TOTAL) == 1
        raw.send(FrameType.DATA, 1, 0, b"answer")
        world.until(lambda: lost.received == b"answer")

    def test_they_come_before_those_who_came_later(self, world, server, lost):
        world.visitor(server.port, b"later")
        world.until(lambda: server.counter(Counter.HELD) == 2)
        raw = world.linked_client(server.port)
        world.until(lambda: raw.data(2) == b"later")
        assert raw.data(1) == pattern(1, 0, 10_000)

    def test_they_come_before_those_who_waited_already(self, world, server):
        raw = world.linked_client(server.port)
        raw.answers_opens = False
        world.visitor(server.port, b"first")
        world.until(lambda: raw.data(1) == b"first")
        make_doubted(world, server, raw)
        world.visitor(server.port, b"second")
        world.until(lambda: server.counter(Counter.HELD) == 2)
        raw.peer.reset()
        world.until(lambda: server.counter(Counter.LINK_STATE) == LinkState.DOWN)
        raw = world.linked_client(server.port)
        world.until(lambda: len(raw.of(FrameType.DATA)) == 2)
        assert raw.data(1) == b"first"
        assert raw.data(2) == b"second"
        assert opens(raw) == [1, 2]

    def test_each_waits_for_its_own_time(self, world, server):
        """The older one had waited on a good link before, the younger one never did."""
        raw = world.linked_client(server.port)
        raw.answers_opens = False
        older = world.visitor(server.port, b"first")
        world.until(lambda: raw.data(1) == b"first")
        world.pass_time(5.0)
        raw.send(FrameType.PONG, 0, 1)
        world.settle()
        raw.peer.reset()
        world.until(lambda: server.counter(Counter.LINK_STATE) == LinkState.DOWN)
        younger = world.visitor(server.port, b"second")
        world.pass_time(5.2)
        world.until(lambda: older.end == "rst")
        assert not younger.end
        world.pass_time(5.0)
        world.until(lambda: younger.end == "rst")

    def test_one_that_has_finished_keeps_its_fin(self, world, server):
        raw = world.linked_client(server.port)
        raw.answers_opens = False
        visitor = world.visitor(server.port, b"question")
        visitor.finish()
        world.until(lambda: raw.of(FrameType.FIN))
        raw.peer.reset()
        world.until(lambda: server.counter(Counter.HELD) == 1)
        raw = world.linked_client(server.port)
        world.until(lambda: raw.of(FrameType.FIN))
        assert raw.data(1) == b"question"
        assert raw.of(FrameType.FIN)[0].value == 8

    def test_they_wait_for_no_longer_than_hold(self, world, server, lost):
        world.pass_time(10.1)
        world.until(lambda: lost.end)
        assert lost.end == "rst"
        assert server.counter(Counter.VISITORS) == 0
        world.linked_client(server.port)
        assert server.worker.memory.arena.used_bytes == 0, "nobody is left to be told"

    def test_also_when_a_newer_link_takes_the_place_of_a_living_one(self, world, server):
        raw = world.linked_client(server.port)
        raw.answers_opens = False
        world.visitor(server.port, b"hi")
        world.until(lambda: raw.data(1) == b"hi")
        newer = world.linked_client(server.port)
        world.until(lambda: newer.data(1) == b"hi")

    def test_one_that_the_client_has_answered_is_reset(self, world, server):
        raw = world.linked_client(server.port)
        visitor = world.visitor(server.port, b"hi")
        world.until(lambda: raw.data(1) == b"hi")
        world.settle()
        raw.peer.reset()
        world.pass_time(2.0)
        assert not visitor.end
        world.linked_client(server.port)  # it has no session: it was started anew
        world.until(lambda: visitor.end)
        assert visitor.end == "rst"

    def test_when_draining_nobody_waits(self, world, server):
        raw = world.linked_client(server.port)
        raw.answers_opens = False
        visitor = world.visitor(server.port, b"hi")
        world.until(lambda: raw.data(1) == b"hi")
        server.say(type="drain", seconds=5)
        world.until(lambda: raw.of(FrameType.GOAWAY))
        raw.peer.reset()
        world.until(lambda: server.worker.left is not None)
        assert not visitor.end or visitor.end == "rst"

    def test_they_take_no_places_once_they_have_gone(self, world):
        """Nobody can let go of them: they were reset, and their client does not come back."""
        server = world.server(max_visitors=3, hold_seconds=10.0, resume_grace_seconds=2.0)
        raw = world.linked_client(server.port)
        raw.answers_opens = raw.answers_pings = False
        visitors = [world.visitor(server.port, b"hi") for _ in range(3)]
        world.until(lambda: server.counter(Counter.VISITORS) == 3)
        world.pass_time(15.0)
        assert [visitor.end for visitor in visitors] == ["rst"] * 3
        assert server.worker.link is None
        assert server.worker.memory.arena.used_bytes == 0
        late = world.visitor(server.port, b"hi")
        world.pass_time(1.0)
        assert not late.end, "it is held"

    def test_nor_while_the_link_is_doubted(self, world):
        server = world.server(max_visitors=3, hold_seconds=3.0, resume_grace_seconds=600.0)
        raw = world.linked_client(server.port)
        raw.answers_opens = raw.answers_pings = False
        for _ in range(8):
            visitor = world.visitor(server.port, b"hi")
            world.pass_time(1.0)
            assert not visitor.end, "it is held"
            world.pass_time(4.0)
        assert server.worker.link is not None


class TestDoubt:
    def test_visitors_wait_and_are_let_in_when_the_link_speaks_again(self, world, server):
        raw = world.linked_client(server.port)
        raw.answers_opens = False
        make_doubted(world, server, raw)
        visitor = world.visitor(server.port, b"hi")
        silent = world.visitor(server.port)
        world.pass_time(1.0)
        assert server.counter(Counter.HELD) == 1
        assert opens(raw) == [1], "OPEN can be sent again"
        raw.send(FrameType.PONG, 0, 1)
        world.until(lambda: len(opens(raw)) == 2 or world.pass_time(0.05))
        assert server.counter(Counter.HELD) == 0
        assert server.counter(Counter.LINK_STATE) == LinkState.UP
        assert raw.data(1) == b"hi"
        assert not visitor.end
        assert not silent.end

    def test_those_who_are_in_stay_in(self, world, server):
        raw = world.linked_client(server.port)
        visitor = world.visitor(server.port, b"hi")
        world.until(lambda: raw.data(1))
        make_doubted(world, server, raw)
        assert not visitor.end
        raw.send(FrameType.DATA, 1, 0, b"there you are")
        world.until(lambda: visitor.received)
        assert server.counter(Counter.LINK_STATE) == LinkState.UP

    def test_the_first_of_two_that_speaks_stays(self, world, server):
        raw = world.linked_client(server.port)
        make_doubted(world, server, raw)
        world.visitor(server.port, b"hi")
        world.settle()
        raw.answers_opens = False
        newer = world.linked_client(server.port)
        world.until(lambda: raw.end)
        world.visitor(server.port, b"there")
        world.until(lambda: b"there" in newer.data(1) + newer.data(2))

    def test_a_visitor_makes_the_server_ask_an_idle_link(self, world):
        server = world.server(idle_ping_seconds=30.0)
        raw = world.linked_client(server.port)
        raw.answers_pings = raw.answers_opens = False
        world.pass_time(3.0)
        world.visitor(server.port, b"hi")
        world.pass_time(2.2)
        assert server.worker.link.is_doubted

    def test_a_client_that_leaves_gets_nobody_new(self, world, server):
        raw = world.linked_client(server.port)
        first = world.visitor(server.port, b"hi")
        world.until(lambda: raw.data(1))
        raw.send(FrameType.GOAWAY, 0, 1, b"\0\0")
        world.settle()
        world.visitor(server.port, b"later")
        world.pass_time(1.0)
        assert opens(raw) == [1]
        assert server.counter(Counter.HELD) == 1
        raw.send(FrameType.DATA, 1, 0, b"still here")
        world.until(lambda: first.received == b"still here")
        newer = world.linked_client(server.port)
        world.until(lambda: newer.data(2) == b"later")

    def test_a_client_that_leaves_and_speaks_again_gets_nobody_new(self, world, server):
        raw = world.linked_client(server.port)
        raw.send(FrameType.GOAWAY, 0, 0, b"\0\0")
        world.settle()
        world.visitor(server.port, b"later")
        make_doubted(world, server, raw)
        raw.send(FrameType.PONG, 0, 1)
        world.pass_time(0.2)
        assert server.counter(Counter.LINK_STATE) == LinkState.UP
        assert opens(raw) == []


class TestSilentVisitor:
    """Silent for 30 ms while a link is up: a visitor, that may yet turn out a link."""

    @pytest.fixture
    def raw(self, world, server):
        return world.linked_client(server.port)

    def test_is_let_in_after_30_ms(self, world, server, raw):
        visitor = world.visitor(server.port)
        world.settle()
        assert opens(raw) == []
        world.pass_time(0.04)
        world.until(lambda: opens(raw) == [1])
        raw.send(FrameType.DATA, 1, 0, b"SSH-2.0\r\n")
        world.until(lambda: visitor.received == b"SSH-2.0\r\n")
        visitor.send(b"SSH-2.0 too\r\n")
        world.until(lambda: raw.data(1) == b"SSH-2.0 too\r\n")

    def test_becomes_the_link_if_nothing_was_written_to_it(self, world, server, raw):
        late = world.raw_client(server.port, dials=False)
        world.pass_time(0.1)
        world.until(lambda: opens(raw) == [1])
        late.peer.send(late.first)
        world.until(lambda: late.is_up)
        assert raw.of(FrameType.DATA) == [], "no byte of it reached the target"
        assert raw.of(FrameType.RESET)[0].stream_id == 1
        world.until(lambda: raw.end)
        world.visitor(server.port, b"hello")
        world.until(lambda: late.data(2) == b"hello")
        assert server.counter(Counter.VISITORS) == 1

    def test_is_reset_if_something_was_written_to_it(self, world, server, raw):
        late = world.visitor(server.port)
        world.pass_time(0.1)
        world.until(lambda: opens(raw) == [1])
        raw.send(FrameType.DATA, 1, 0, b"220 hello\r\n")
        world.until(lambda: late.received)
        late.send(make_preface(port_key("", server.port), server.port, bytes(16)))
        world.until(lambda: late.end)
        assert late.end == "rst"
        world.until(lambda: raw.of(FrameType.RESET))
        assert raw.of(FrameType.DATA) == [], "no byte of it reached the target"
        assert server.counter(Counter.VISITORS) == 0

    def test_with_half_a_magic_is_a_visitor_like_others(self, world, server, raw):
        visitor = world.visitor(server.port, MAGIC[:5])
        world.pass_time(0.04)
        world.until(lambda: opens(raw) == [1])
        world.settle()
        assert not spins(server.loop)
        visitor.send(b"and more")
        world.until(lambda: raw.data(1) == MAGIC[:5] + b"and more")

    def test_with_half_a_magic_and_nothing_more_is_passed_on_after_a_second(
        self, world, server, raw
    ):
        visitor = world.visitor(server.port, MAGIC[:5])
        world.pass_time(0.8)
        assert raw.of(FrameType.DATA) == []
        world.pass_time(0.4)
        world.until(lambda: raw.data(1) == MAGIC[:5])
        visitor.send(b"x")
        world.until(lambda: raw.data(1) == MAGIC[:5] + b"x")

    def test_with_half_a_magic_gets_what_the_target_says(self, world, server, raw):
        visitor = world.visitor(server.port, MAGIC[:5])
        world.pass_time(0.04)
        world.until(lambda: opens(raw) == [1])
        raw.send(FrameType.DATA, 1, 0, b"220 hello\r\n")
        world.until(lambda: visitor.received == b"220 hello\r\n")

    def test_whose_preface_comes_in_two_halves_becomes_the_link(self, world, server, raw):
        late = world.raw_client(server.port, dials=False)
        late.peer.send(late.first[:5])
        world.pass_time(0.1)
        world.until(lambda: opens(raw) == [1])
        late.peer.send(late.first[5:])
        world.until(lambda: late.is_up)
        assert raw.of(FrameType.DATA) == []

    def test_with_half_a_magic_and_fin_costs_no_turns(self, world, server, raw):
        visitor = world.visitor(server.port, MAGIC[:5])
        visitor.finish()
        world.pass_time(0.04)
        world.until(lambda: opens(raw) == [1])
        world.settle()
        assert not spins(server.loop)

    def test_that_just_goes_away_is_a_visitor_that_finished(self, world, server, raw):
        visitor = world.visitor(server.port)
        world.pass_time(0.04)
        world.until(lambda: opens(raw) == [1])
        visitor.finish()
        world.until(lambda: raw.of(FrameType.FIN))
        assert raw.of(FrameType.FIN)[0].value == 0

    def test_that_is_reset_is_reset(self, world, server, raw):
        visitor = world.visitor(server.port)
        world.pass_time(0.04)
        world.until(lambda: opens(raw) == [1])
        visitor.reset()
        world.until(lambda: raw.of(FrameType.RESET) or raw.of(FrameType.FIN))
        assert not raw.of(FrameType.FIN), "a connection that failed looks finished"
        assert raw.of(FrameType.RESET)[0].payload == b"\0\1"


class TestDrain:
    def test_those_who_are_here_may_finish(self, world, server):
        raw = world.linked_client(server.port)
        visitor = world.visitor(server.port, b"hi")
        world.until(lambda: raw.data(1))
        server.say(type="drain", seconds=5)
        world.until(lambda: raw.of(FrameType.GOAWAY))
        assert raw.of(FrameType.GOAWAY)[0].payload == b"\0\0"
        with pytest.raises(ConnectionRefusedError):
            world.visitor(server.port)
        world.pass_time(1.0)
        assert not has_left(server)
        raw.send(FrameType.DATA, 1, 0, b"the end")
        raw.send(FrameType.FIN, 1, 7)
        visitor.finish()
        world.until(lambda: raw.of(FrameType.FIN))
        raw.credit(1, 2, 1 << 20, flags=1)
        world.until(lambda: server.worker.left is not None)
        assert server.worker.left == ExitCode.DONE
        assert visitor.received == b"the end"
        world.settle()
        assert visitor.end == "fin"

    def test_with_nobody_here_it_leaves_at_once_with_a_goaway(self, world, server):
        raw = world.linked_client(server.port)
        server.say(type="drain", seconds=5)
        world.until(lambda: server.worker.left is not None)
        world.settle()
        assert raw.of(FrameType.GOAWAY)

    def test_without_a_link_it_leaves_at_once(self, world, server):
        server.say(type="drain", seconds=5)
        world.until(lambda: server.worker.left is not None)

    def test_who_is_held_or_undecided_is_reset(self, world, server):
        held = world.visitor(server.port, b"hi")
        silent = world.visitor(server.port)
        world.settle()
        server.say(type="drain", seconds=5)
        world.until(lambda: held.end and silent.end)
        assert (held.end, silent.end) == ("rst", "rst")

    def test_it_leaves_when_the_time_is_over(self, world, server):
        raw = world.linked_client(server.port)
        visitor = world.visitor(server.port, b"hi")
        world.until(lambda: raw.data(1))
        server.say(type="drain", seconds=2)
        server.say(type="drain", seconds=100)
        world.pass_time(1.9)
        assert not has_left(server)
        world.pass_time(0.2)
        assert server.worker.left == ExitCode.DONE
        assert not visitor.end, "the end of the process resets it"

    def test_it_leaves_when_the_link_is_lost_meanwhile(self, world, server):
        raw = world.linked_client(server.port)
        visitor = world.visitor(server.port, b"hi")
        world.until(lambda: raw.data(1))
        server.say(type="drain", seconds=5)
        world.until(lambda: raw.of(FrameType.GOAWAY))
        raw.peer.reset()
        world.until(lambda: server.worker.left is not None)
        world.until(lambda: visitor.end)
        assert visitor.end == "rst"

    def test_who_has_proven_itself_is_refused_as_draining(self, world, server):
        owner = world.linked_client(server.port)
        world.visitor(server.port, b"hi")
        world.until(lambda: owner.data(1))
        world.pass_time(0.5)
        other = world.raw_client(server.port, run_id=OTHER_RUN)
        world.until(lambda: other.stage is Stage.CHALLENGED)
        world.settle()
        server.say(type="drain", seconds=5)
        world.until(lambda: other.end)
        assert other.refused is RefusedCode.DRAINING

    def test_nobody_is_counted_as_held_any_more(self, world, server):
        raw = world.linked_client(server.port)
        world.visitor(server.port, b"hi")
        world.until(lambda: raw.data(1))
        make_doubted(world, server, raw)
        held = world.visitor(server.port, b"hi")
        world.until(lambda: server.counter(Counter.HELD) == 1)
        server.say(type="drain", seconds=5)
        world.until(lambda: held.end == "rst")
        assert server.counter(Counter.HELD) == 0
        assert server.counter(Counter.VISITORS) == 1


class TestMessages:
    def test_the_master_hears_of_the_link(self, world, server):
        world.turn()
        assert server.told("ready")
        raw = world.linked_client(server.port)
        world.pass_time(0.1)
        make_doubted(world, server, raw)
        raw.send(FrameType.PONG, 0, 1)
        world.settle()
        raw.peer.reset()
        world.until(lambda: len(server.told("link")) == 4)
        assert [message["state"] for message in server.told("link")] == [
            "up",
            "doubted",
            "up",
            "down",
        ]
        assert server.told("link")[0]["peer"].startswith("127.0.0.1:")
        assert server.told("link")[0]["reason"] == "raw/1"
        assert server.told("link")[0]["seconds"] is None
        world.pass_time(1.5)
        world.linked_client(server.port)
        world.until(lambda: len(server.told("link")) == 5)
        assert server.told("link")[4]["seconds"] == pytest.approx(1.5, abs=0.2)
