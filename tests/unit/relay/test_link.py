"""A link: a session over a connection, with life signs, in any pieces, until its end."""

from __future__ import annotations

import os
import random
import socket
from contextlib import suppress

import pytest

from tests.support.fake_clock import FakeClock
from tests.support.fake_link import RawLink
from tests.support.fake_peer import FakePeer, tcp_pair
from tests.support.fake_session import UNKNOWN_ADDRESSES, FakeEndpoint, FakeHandler
from tests.support.loop_stepper import LoopStepper, spins
from tests.support.pattern import pattern
from tunneltcp.net.loop import Loop
from tunneltcp.protocol.arena import Arena
from tunneltcp.protocol.errors import GoawayCode, ResetCode
from tunneltcp.protocol.flight import Flight, Mode
from tunneltcp.protocol.frames import FrameType
from tunneltcp.protocol.session import SWEEP_SECONDS, Session
from tunneltcp.protocol.table import StreamTable
from tunneltcp.relay.link import RTT_SECONDS, Link
from tunneltcp.relay.memory import TunnelMemory, receive_buffer

RECORDS_BYTES = 4096 + 64 * 256
ARENA_BYTES = 16 << 20
LONG = 3 << 20


class CountingSocket(socket.socket):
    """Counts the calls that write, and may take less than it is given."""

    sends = 0
    takes: int | None = None

    def sendmsg(self, buffers, *rest):
        self.sends += 1
        if self.takes is None:
            return super().sendmsg(buffers, *rest)
        return super().send(b"".join(buffers)[: self.takes])

    def send(self, data, *rest):
        self.sends += 1
        return super().send(data if self.takes is None else data[: self.takes], *rest)


class Owner:
    answers = 0

    """What a worker would be told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.handler = FakeHandler()
        self.endpoints = self.handler.endpoints

    def on_open(self, link, stream, addresses):
        return self.handler.on_open(stream, addresses)

    def on_doubt(self, link):
        self.said.append("doubt")

    def on_trust(self, link):
        self.said.append("trust")

    def on_answer(self, link):
        self.answers += 1

    def on_goaway(self, link, code):
        self.said.append(f"goaway {code}")

    def on_resumed(self, link, streams, again_bytes):
        self.said.append(f"resumed {streams}, {again_bytes} bytes")

    def on_lost(self, link, reason):
        assert not link.is_open
        self.said.append(f"lost: {reason}")


class Bench:
    """A link on its loop; the far end is ``raw`` or, with ``play_session``, a session."""

    def __init__(
        self, *, opens: bool = True, idle_ping: float = 2.0, rest: bytes = b"", rate: int = 0
    ) -> None:
        self.clock = FakeClock()
        self.stepper = LoopStepper(self.clock)
        self.until, self.settle = self.stepper.until, self.stepper.settle
        self.pass_time = self.stepper.pass_time
        self.loop = Loop(clock=self.clock)
        self.stepper.loops.append(self.loop)
        far, near = tcp_pair()
        self.sock = CountingSocket(fileno=near.detach())
        self.sock.setblocking(False)
        self.raw = RawLink(far)
        self.raw.answers_pings = False
        self.stepper.pumps.append(self.raw.pump)
        fd = os.memfd_create("test")
        os.ftruncate(fd, RECORDS_BYTES + ARENA_BYTES)
        self.memory = TunnelMemory(fd, RECORDS_BYTES + ARENA_BYTES, RECORDS_BYTES, ARENA_BYTES)
        os.close(fd)
        self.owner = Owner()
        session = Session(
            opens=opens, arena=self.memory.arena, table=self.memory.table, max_streams=64
        )
        session.begin(1 << 20)
        self.link = Link(
            self.loop,
            self.sock,
            self.owner,
            session,
            receive_buffer(),
            peer="far:1",
            idle_ping_seconds=idle_ping,
            rate=rate,
        )
        self.loop.on_turn = self.link.end_turn
        self.link.start(rest)
        self.far_session: Session | None = None

    def open(self) -> FakeEndpoint:
        endpoint = FakeEndpoint()
        endpoint.stream = self.link.session.open_stream(endpoint, 7, UNKNOWN_ADDRESSES)
        return endpoint

    def announced(self) -> FakeEndpoint:
        """Open a stream, and let its OPEN reach the far end."""
        endpoint = self.open()
        self.until(lambda: self.raw.of(FrameType.OPEN))
        return endpoint

    def play_session(self, reads: int = 1 << 20) -> FakeHandler:
        """Put a real session at the far end, which reads so many bytes a round."""
        handler = FakeHandler()
        session = Session(
            handler,
            opens=False,
            arena=Arena(memoryview(bytearray(ARENA_BYTES)), ARENA_BYTES),
            table=StreamTable(memoryview(bytearray(RECORDS_BYTES))),
            max_streams=64,
        )
        session.begin()
        self.far_session = session
        peer = FakePeer(self.raw.peer.sock, reads=False)
        kept = b""

        def pump():
            nonlocal kept
            with suppress(BlockingIOError):
                kept += peer.sock.recv(reads)
            used = session.receive(memoryview(kept), len(kept))
            kept = kept[used:]
            session.sweep()
            if not peer.unsent:
                peer.send(b"".join(session.data_to_send()))
            peer.pump()

        self.stepper.pumps[:] = [pump]
        return handler

    def close(self) -> None:
        self.link.close()
        self.raw.close()
        self.sock.close()
        self.loop.close()


@pytest.fixture
def make():
    benches = []

    def make(**settings):
        benches.append(Bench(**settings))
        return benches[-1]

    yield make
    for bench in benches:
        bench.close()


@pytest.fixture
def bench(make):
    return make()


class TestBytes:
    @pytest.mark.parametrize("takes", [1000, 65_537, None])
    def test_cross_in_any_pieces_in_order(self, bench, takes):
        """A kernel that takes only a part of each write, and a peer that reads slowly."""
        handler = bench.play_session(reads=50_000)
        bench.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        bench.sock.takes = takes
        size = LONG // 10 if takes == 1000 else LONG
        mine = [bench.open(), bench.open()]
        for seed, endpoint in enumerate(mine):
            endpoint.write(pattern(seed, 0, size))
            endpoint.finish()
        bench.until(lambda: len(handler.endpoints) == 2)
        for seed, endpoint in enumerate(handler.endpoints):
            endpoint.write(pattern(10 + seed, 0, size))
            endpoint.finish()
        bench.until(lambda: all(one.closed for one in [*mine, *handler.endpoints]), seconds=15)
        for seed, endpoint in enumerate(handler.endpoints):
            assert endpoint.received == pattern(seed, 0, size)
        for seed, endpoint in enumerate(mine):
            assert endpoint.received == pattern(10 + seed, 0, size)

    def test_frames_may_come_byte_by_byte(self, bench, monkeypatch):
        endpoint = bench.announced()
        stream_id = endpoint.stream.id
        script = RawLink(bench.raw.peer.sock)
        monkeypatch.setattr(script.peer, "_push", lambda: None)  # only collects
        script.send(FrameType.DATA, stream_id, 0, b"hello")
        script.send(FrameType.PING, 0, 77)
        script.send(FrameType.DATA, stream_id, 5, b" world")
        script.credit(stream_id, 0, 2 << 20)
        script.send(FrameType.FIN, stream_id, 11)
        for byte in script.peer._out:
            bench.raw.peer.send(bytes([byte]))
            bench.stepper.turn()
        bench.until(lambda: endpoint.fins)
        assert endpoint.received == b"hello world"
        assert endpoint.stream.limit == 2 << 20
        assert [frame.value for frame in bench.raw.of(FrameType.PONG)] == [77]
        assert bench.owner.said == []

    def test_what_came_behind_the_handshake_comes_first(self, make):
        ping = (FrameType.PING << 60).to_bytes(8, "big") + (5).to_bytes(8, "big")
        bench = make(rest=ping + ping[:9])
        bench.raw.peer.send(ping[9:15] + b"\x06")
        bench.until(lambda: bench.raw.of(FrameType.PONG))
        bench.settle()
        assert [frame.value for frame in bench.raw.of(FrameType.PONG)][-1] == 6

    def test_reading_does_not_wait_for_writing(self, bench):
        endpoint = bench.announced()
        bench.raw.peer.reads = False
        bench.raw.credit(endpoint.stream.id, 0, 32 << 20)
        bench.settle()
        bench.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        endpoint.write(bytes(12 << 20))
        bench.settle()
        assert endpoint.stream.sent < endpoint.stream.head, "the link is full"
        bench.raw.send(FrameType.DATA, endpoint.stream.id, 0, b"hello")
        bench.until(lambda: endpoint.received == b"hello")
        assert not spins(bench.loop), "and a full link does not spin"
        bench.raw.peer.reads = True
        bench.until(lambda: bench.raw.of(FrameType.CREDIT) or bench.pass_time(SWEEP_SECONDS))

    def test_delivered_bytes_are_reported_when_the_stream_is_quiet(self, bench):
        endpoint = bench.announced()
        bench.raw.send(FrameType.DATA, endpoint.stream.id, 0, b"hello")
        bench.until(lambda: endpoint.received)
        bench.settle()
        assert not bench.raw.of(FrameType.CREDIT)
        bench.pass_time(3 * SWEEP_SECONDS, step=SWEEP_SECONDS)
        bench.settle()
        assert [frame.value for frame in bench.raw.of(FrameType.CREDIT)] == [5]


class TestSystemCalls:
    def test_none_writes_when_there_is_nothing_to_say(self, bench):
        bench.settle()
        before = bench.sock.sends
        endpoint = bench.open()
        bench.settle()
        assert bench.sock.sends == before + 1
        bench.raw.credit(endpoint.stream.id, 0, 1 << 20)
        bench.raw.send(FrameType.PONG, 0, 1)
        bench.raw.send(FrameType.DATA, endpoint.stream.id, 0, b"hello")
        bench.settle(50)
        assert endpoint.received == b"hello"
        assert bench.sock.sends == before + 1

    def test_nobody_is_even_asked_when_there_is_nothing_to_say(self, bench, monkeypatch):
        bench.settle()
        asked = []
        inner = bench.link.session.data_to_send

        def ask():
            asked.append(1)
            return inner()

        monkeypatch.setattr(bench.link.session, "data_to_send", ask)
        bench.settle(50)
        assert asked == []
        bench.open()
        bench.settle()
        assert asked

    def test_one_write_in_a_turn_for_all_that_happened(self, bench):
        endpoints = [bench.open() for _ in range(20)]
        for endpoint in endpoints:
            endpoint.write(b"request")
        bench.link.session.ping(1)
        before = bench.sock.sends
        bench.stepper.turn()
        assert bench.sock.sends == before + 1
        bench.until(lambda: len(bench.raw.of(FrameType.DATA)) == 20)

    def test_the_last_piece_of_a_long_answer_does_not_leave_the_link_wanting_to_write(
        self, bench
    ):
        handler = bench.play_session()
        endpoint = bench.open()
        endpoint.write(bytes(LONG))
        bench.until(lambda: handler.endpoints and len(handler.endpoints[0].received) == LONG)
        bench.settle()
        assert not spins(bench.loop)


class TestSmallPieces:
    """Framed when they are read, if they go out at the end of the turn."""

    def test_do_not_wait_in_line_on_a_free_link(self, bench):
        endpoint = bench.announced()
        bench.settle()
        sender = bench.link.session.sender
        endpoint.write(b"hello")
        assert sender.framed
        assert not sender.ready
        bench.settle()
        assert not sender.framed
        assert bench.raw.data(endpoint.stream.id) == b"hello"

    def test_wait_in_line_while_the_link_is_full(self, bench):
        full, other = bench.announced(), bench.open()
        for endpoint in (full, other):
            bench.raw.credit(endpoint.stream.id, 0, 32 << 20)
        bench.settle()
        bench.raw.peer.reads = False
        bench.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        full.write(bytes(12 << 20))
        for number in range(5):
            bench.settle()
            other.write(pattern(9, 100 * number, 100))
            assert not bench.link.session.sender.framed
        bench.raw.peer.reads = True
        bench.until(lambda: bench.raw.data(other.stream.id) == pattern(9, 0, 500))

    def test_wait_in_line_while_there_is_more_than_one_write_takes(self, bench):
        """All that was handed out is written, yet the link is to be asked first."""
        full, other = bench.announced(), bench.open()
        for endpoint in (full, other):
            bench.raw.credit(endpoint.stream.id, 0, 32 << 20)
        bench.settle()
        bench.sock.takes = 100_000
        full.write(bytes(2 << 20))
        bench.stepper.turn()
        other.write(b"hello")
        assert not bench.link.session.sender.framed
        bench.sock.takes = None
        bench.until(lambda: bench.raw.data(other.stream.id) == b"hello")


class TestHeldBack:
    """What the bound and the limit do to a link; what they are is test_flight's."""

    def bound(self, bench, size: int) -> Flight:
        flight: Flight = bench.link._flight
        flight.mode, flight.bound, flight.spacing = Mode.BOUND, size, 4096
        flight.look_at = flight.written
        return flight

    def test_at_the_bound_no_data_goes_and_all_else_does(self, bench):
        endpoint = bench.announced()
        flight = self.bound(bench, 100_000)
        endpoint.write(pattern(1, 0, 500_000))
        bench.settle()
        stream_id = endpoint.stream.id
        before = bench.raw.data(stream_id)
        assert 90_000 <= len(before) <= 104_096
        assert not flight.room
        assert not spins(bench.loop)

        bench.raw.send(FrameType.PING, 0, 77)
        bench.raw.send(FrameType.DATA, stream_id, 0, bytes(70_000))
        bench.settle()
        assert [frame.value for frame in bench.raw.of(FrameType.PONG)] == [77]
        assert [frame.value for frame in bench.raw.of(FrameType.CREDIT)] == [70_000]
        assert bench.raw.data(stream_id) == before

        bench.raw.send(FrameType.PONG, 0, bench.raw.of(FrameType.PING)[-1].value)
        bench.settle()
        assert len(bench.raw.data(stream_id)) > len(before) + 80_000

    def test_answers_carry_all_of_it_in_order(self, bench):
        self.bound(bench, 50_000)
        bench.raw.answers_pings = True
        endpoint = bench.announced()
        endpoint.write(pattern(1, 0, 900_000))
        bench.until(lambda: len(bench.raw.data(endpoint.stream.id)) == 900_000)
        assert bench.raw.data(endpoint.stream.id) == pattern(1, 0, 900_000)

    def test_a_keystroke_goes_before_downloads(self, bench):
        busy = [bench.announced() for _ in range(4)]
        modest = bench.open()
        bench.settle()
        self.bound(bench, 30_000)
        for endpoint in busy:
            endpoint.write(bytes(200_000))
        bench.settle()
        modest.write(b"x")
        seen = len(bench.raw.of(FrameType.DATA))
        bench.settle()
        assert len(bench.raw.of(FrameType.DATA)) == seen
        bench.raw.send(FrameType.PONG, 0, bench.raw.of(FrameType.PING)[-1].value)
        bench.settle()
        first = bench.raw.of(FrameType.DATA)[seen]
        assert (first.stream_id, first.payload) == (modest.stream.id, b"x")

    def test_the_next_link_begins_free(self, bench):
        """What the last one set in the session is not its."""
        endpoint = bench.announced()
        sender = bench.link.session.sender
        sender.room_bytes, sender.frame_bytes = 0, 1
        link = Link(
            bench.loop,
            bench.sock,
            bench.owner,
            bench.link.session,
            receive_buffer(),
            peer="far:1",
            idle_ping_seconds=2.0,
        )
        bench.loop.on_turn = link.end_turn
        endpoint.write(bytes(10_000))
        bench.settle()
        assert len(bench.raw.data(endpoint.stream.id)) == 10_000
        bench.loop.on_turn = bench.link.end_turn

    def test_a_rate_is_kept_and_shared(self, make):
        """200 kB/s by the clock of the test, over a real connection."""
        bench = make(rate=200_000)
        bench.raw.answers_pings = True
        mine = [bench.announced() for _ in range(2)]
        for seed, endpoint in enumerate(mine):
            endpoint.write(pattern(seed, 0, 900_000))
        bench.pass_time(3, step=0.005)
        came = [bench.raw.data(endpoint.stream.id) for endpoint in mine]
        for seed, data in enumerate(came):
            assert data == pattern(seed, 0, len(data))
        assert sum(map(len, came)) == pytest.approx(600_000, rel=0.05)
        assert len(came[0]) == pytest.approx(len(came[1]), abs=10_000)
        assert not spins(bench.loop)


class TestLifeSigns:
    def pings(self, bench) -> int:
        bench.settle()
        return len(bench.raw.of(FrameType.PING))

    def make_busy(self, bench):
        """Open a stream, and let the link's timer find out; its last byte came just now."""
        endpoint = bench.open()
        assert self.pings(bench) == 1, "the first, for the round trip"
        for _ in range(5):
            bench.pass_time(0.5)
            bench.raw.send(FrameType.PONG, 0, 1)
            bench.settle()
        assert self.pings(bench) == 1
        return endpoint

    def test_a_link_with_streams_is_asked_after_a_second_and_doubted_two_later(self, bench):
        self.make_busy(bench)
        bench.pass_time(0.9)
        assert self.pings(bench) == 1
        bench.pass_time(0.2)
        assert self.pings(bench) == 2
        bench.pass_time(1.8)
        assert bench.owner.said == []
        assert not bench.link.is_doubted
        bench.pass_time(0.3)
        assert bench.owner.said == ["doubt"]
        assert bench.link.is_doubted
        assert bench.link.is_open, "a doubted link is kept"
        bench.pass_time(20, step=0.5)
        assert bench.owner.said == ["doubt"]

    def test_an_idle_link_has_the_time_that_is_set(self, make):
        bench = make(idle_ping=7.0)
        assert self.pings(bench) == 1
        bench.pass_time(6.9)
        assert self.pings(bench) == 1
        bench.pass_time(0.2)
        assert self.pings(bench) == 2
        bench.pass_time(1.9)
        assert bench.owner.said == []
        bench.pass_time(0.3)
        assert bench.owner.said == ["doubt"]

    def test_the_first_stream_right_after_a_byte_brings_the_shorter_time(self, make):
        bench = make(idle_ping=30.0)
        bench.raw.send(FrameType.PONG, 0, 1)
        bench.settle()
        bench.open()
        bench.link.ask_for_life()  # not needed: it spoke just now
        bench.pass_time(1.2)
        assert self.pings(bench) == 2
        bench.pass_time(2.1)
        assert bench.owner.said == ["doubt"]

    def test_the_first_stream_that_the_peer_opens_brings_the_shorter_time(self, make):
        bench = make(idle_ping=30.0, opens=False)
        bench.raw.send(FrameType.OPEN, 1, 1 << 20, b"\0\0")
        bench.until(lambda: bench.owner.endpoints)
        bench.pass_time(1.2)
        assert self.pings(bench) == 2
        bench.pass_time(2.1)
        assert bench.owner.said == ["doubt"]

    def test_the_first_stream_of_a_silent_idle_link_brings_a_ping_at_once(self, make):
        """Who opens a stream asks for a life sign."""
        bench = make(idle_ping=30.0)
        bench.pass_time(3.0)
        bench.open()
        bench.link.ask_for_life()
        assert self.pings(bench) == 2
        bench.pass_time(2.1)
        assert bench.owner.said == ["doubt"]

    def test_asking_again_does_not_put_off_the_doubt(self, bench):
        bench.pass_time(0.5)
        for _ in range(10):
            bench.link.ask_for_life()
            bench.pass_time(0.25)
        assert self.pings(bench) == 2
        assert bench.owner.said == ["doubt"]

    def test_any_byte_is_a_sign_of_life(self, bench):
        bench.open()
        for _ in range(8):
            bench.pass_time(0.9)
            bench.raw.send(FrameType.PONG, 0, 1)
            bench.settle()
        assert self.pings(bench) == 1
        assert bench.owner.said == []

    def test_a_doubted_link_that_speaks_is_trusted(self, bench):
        self.make_busy(bench)
        bench.pass_time(3.2)
        assert bench.owner.said == ["doubt"]
        bench.raw.send(FrameType.PONG, 0, 1)
        bench.settle()
        assert bench.owner.said == ["doubt", "trust"]
        assert not bench.link.is_doubted
        bench.pass_time(3.3)
        assert bench.owner.said == ["doubt", "trust", "doubt"]

    def test_silence_is_judged_only_after_a_look_at_the_socket(self, bench):
        """The loop was busy for long: the answer lies in the socket, unread."""
        self.make_busy(bench)
        bench.pass_time(1.1)
        assert self.pings(bench) == 2
        bench.stepper.pumps.clear()
        bench.raw.send(FrameType.PONG, 0, 1)
        bench.clock.advance(10)
        # The same turn finds the byte and the timer due; the timer's call alone must do.
        bench.loop.now = bench.clock()
        bench.link._on_life_timer()
        assert bench.owner.said == []
        assert not bench.link.is_doubted

    def test_a_link_that_answers_is_measured(self, bench):
        bench.stepper.pumps.clear()
        bench.settle()
        bench.clock.advance(0.25)
        bench.raw.answers_pings = True
        bench.raw.pump()
        bench.settle()
        assert bench.link.rtt_seconds == pytest.approx(0.25)

    def test_a_busy_link_is_measured_now_and_then(self, bench):
        endpoint = bench.open()
        before = self.pings(bench)
        for offset in range(60):
            bench.raw.send(FrameType.DATA, endpoint.stream.id, offset, b"x")
            bench.pass_time(0.5)
        assert self.pings(bench) - before == pytest.approx(30 / RTT_SECONDS, abs=1)

    def test_a_pong_to_a_ping_that_was_never_sent_measures_nothing(self, bench):
        bench.raw.send(FrameType.PONG, 0, 123_456)
        bench.settle()
        assert bench.link.rtt_seconds == 0


class TestEnd:
    def both(self, bench):
        """Two streams that the client has answered."""
        endpoints = [bench.open(), bench.open()]
        bench.until(lambda: all(endpoint.stream.confirmed for endpoint in endpoints))
        return endpoints

    def test_closed_by_the_peer(self, bench):
        endpoints = self.both(bench)
        bench.raw.peer.finish()
        bench.until(lambda: bench.owner.said)
        assert bench.owner.said == ["lost: closed by the other side"]
        assert [one.aborted for one in endpoints] == [None, None], "they wait for a new link"
        assert not any(one.closed for one in endpoints)
        assert bench.sock.fileno() == -1
        assert not bench.link.session.is_attached
        assert not bench.link.ends_session

    def test_reset_by_the_peer(self, bench):
        endpoints = self.both(bench)
        bench.settle()
        bench.raw.peer.reset()
        bench.until(lambda: bench.owner.said)
        assert len(bench.owner.said) == 1
        assert bench.owner.said[0].startswith("lost: connection failed")
        assert [one.aborted for one in endpoints] == [None, None]

    def test_found_out_while_writing(self, bench):
        bench.settle()
        bench.stepper.loops.clear()
        bench.raw.peer.reset()
        bench.open()
        bench.link.end_turn()
        assert len(bench.owner.said) == 1
        assert bench.owner.said[0].startswith("lost: connection failed")

    def test_with_bytes_in_rings_gives_all_memory_back(self, bench):
        endpoint = self.both(bench)[0]
        endpoint.write(bytes(LONG))
        assert bench.memory.arena.used_bytes
        record = endpoint.stream.record
        bench.raw.peer.reset()
        bench.until(lambda: bench.owner.said)
        assert bench.memory.arena.used_bytes, "it may be needed again"
        bench.link.session.abandon(ResetCode.CANCELLED)
        assert bench.memory.arena.used_bytes == 0
        assert bench.memory.table.words[record + 1] == 0

    def test_our_own_close_tells_nobody(self, bench):
        endpoint = self.both(bench)[0]
        bench.link.close()
        bench.link.close()
        bench.until(lambda: bench.raw.end)
        assert bench.raw.end == "fin"
        assert endpoint.aborted is None
        assert bench.owner.said == []
        bench.pass_time(5)
        assert bench.owner.said == []

    def test_a_closed_link_leaves_no_timer_that_acts(self, bench):
        endpoint = bench.announced()
        bench.raw.send(FrameType.DATA, endpoint.stream.id, 0, b"hello")  # a sweep is due
        bench.until(lambda: endpoint.received)
        bench.link.close()
        before = bench.sock.sends
        bench.loop.on_turn = None
        bench.pass_time(5)
        assert bench.sock.sends == before

    @pytest.mark.parametrize(
        "wrong",
        [
            b"\xff" * 16,  # no such type
            (FrameType.PING << 60 | 1).to_bytes(8, "big") + bytes(8),  # a PING with an id
            (FrameType.FIN << 60 | 99).to_bytes(8, "big") + bytes(8),  # never opened
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
        ],
    )
    def test_a_protocol_error_is_answered_with_goaway_1(self, bench, wrong):
        endpoint = self.both(bench)[0]
        bench.raw.peer.send(wrong)
        bench.until(lambda: bench.raw.end)
        assert bench.raw.end == "fin"
        last = bench.raw.frames[-1]
        assert last.type is FrameType.GOAWAY
        assert last.payload == GoawayCode.PROTOCOL_ERROR.to_bytes(2, "big")
        assert len(bench.owner.said) == 1
        assert bench.owner.said[0].startswith("lost: protocol error: ")
        assert bench.link.ends_session
        assert endpoint.aborted is None, "that is for its owner to do"

    def test_a_protocol_error_right_behind_the_handshake(self, make):
        bench = make(rest=b"\xff" * 20)
        bench.until(lambda: bench.raw.end)
        assert bench.raw.frames[-1].type is FrameType.GOAWAY
        assert bench.owner.said[0].startswith("lost: protocol error: ")

    def test_an_error_of_one_stream_is_not_that_of_the_link(self, bench):
        one, other = self.both(bench)
        bench.settle()
        bench.raw.send(FrameType.DATA, one.stream.id, 5, b"gap")
        bench.until(lambda: bench.raw.of(FrameType.RESET))
        assert one.aborted == ResetCode.STREAM_ERROR
        assert other.aborted is None
        assert bench.owner.said == []

    def test_a_goaway_is_passed_on(self, bench):
        bench.raw.send(FrameType.GOAWAY, 0, 0, b"\0\0")
        bench.until(lambda: bench.owner.said)
        assert bench.owner.said == ["goaway 0"]

    @pytest.mark.slow
    def test_a_peer_that_makes_us_answer_and_does_not_read_loses_the_link(self, bench):
        endpoint = bench.announced()
        bench.raw.peer.reads = False
        stream_id = endpoint.stream.id
        flood = (FrameType.RESET << 60 | 2 << 40 | stream_id).to_bytes(8, "big") + bytes(8)
        bench.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        bench.raw.peer.send((flood + b"\0\1") * 150_000)
        bench.until(lambda: bench.owner.said, seconds=10)
        assert bench.owner.said[0].startswith("lost: protocol error: ")


class TestMemory:
    def test_the_receive_buffer_gives_its_pages_back_when_much_was_used(self):
        buffer = receive_buffer()
        buffer.view[:5] = b"hello"
        buffer.tidy()
        assert bytes(buffer.view[:5]) == b"hello", "too little to be worth it"
        buffer.used = True
        buffer.tidy()
        assert buffer.view[:5] == bytes(5)
        assert not buffer.used

    def test_a_long_receive_makes_the_buffer_worth_giving_back(self, bench):
        endpoint = bench.announced()
        bench.raw.send(FrameType.DATA, endpoint.stream.id, 0, b"hello")
        bench.until(lambda: endpoint.received)
        assert not bench.link._buffer.used
        bench.raw.send(FrameType.DATA, endpoint.stream.id, 5, bytes(200_000))
        bench.until(lambda: len(endpoint.received) == 200_005)
        assert bench.link._buffer.used

    def test_a_fresh_worker_forgets_what_one_before_it_left(self, bench):
        endpoint = bench.open()
        endpoint.write(pattern(1, 0, 10_000))
        arena = bench.memory.arena
        ring = endpoint.stream.ring
        next_id = bench.memory.table.next_stream_id()
        assert ring.view[:100] == pattern(1, 0, 100)
        bench.memory.clear()
        assert ring.view[:100] == bytes(100)
        assert bench.memory.table.words[endpoint.stream.record + 1] == 0
        assert bench.memory.table.next_stream_id() == next_id + 1, "ids are never used again"
        assert arena.budget_bytes == ARENA_BYTES

    def test_idle_rings_give_their_pages_back(self, bench):
        memory = bench.memory
        ring = memory.arena.take(64 * 1024)
        ring.view[:5] = b"hello"
        memory.arena.give(ring)
        memory.arena.tidy()
        memory.arena.tidy()
        assert ring.view[:5] == bytes(5)


def test_pieces_of_random_size_are_put_together_again(make, monkeypatch):
    """The link reads whatever is there, however the network cut it."""
    bench = make(opens=False)
    rng = random.Random(9)
    script = RawLink(bench.raw.peer.sock)
    monkeypatch.setattr(script.peer, "_push", lambda: None)
    address = b"\4\xc0\0\2\1\xc3\x50"
    for stream_id in range(1, 6):
        script.send(FrameType.OPEN, stream_id, 1 << 20, address + address)
    done = dict.fromkeys(range(1, 6), 0)
    while min(done.values()) < 60_000:
        stream_id = rng.randint(1, 5)
        size = rng.choice([1, 50, 3000])
        data = pattern(stream_id, done[stream_id], size)
        script.send(FrameType.DATA, stream_id, done[stream_id], data)
        done[stream_id] += size
    wire = bytes(script.peer._out)
    position = 0
    while position < len(wire):
        size = rng.choice([1, 7, 16, 100, 5000, 100_000])
        bench.raw.peer.send(wire[position : position + size])
        position += size
        bench.stepper.turn()
    bench.until(lambda: len(bench.owner.endpoints) == 5)
    for stream_id, endpoint in enumerate(bench.owner.endpoints, 1):
        bench.until(lambda e=endpoint, i=stream_id: len(e.received) == done[i])
        assert endpoint.received == pattern(stream_id, 0, done[stream_id])
    assert bench.owner.said == []
