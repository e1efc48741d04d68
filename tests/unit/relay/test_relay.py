"""A socket and its stream: bytes by position, half-close, reset, what waits and for how long.

The far end of the stream is played by a ``FakeEndpoint`` behind two real sessions, the far
end of the socket by a ``FakePeer``.
"""

from __future__ import annotations

import random
import socket

import pytest

from tests.support.fake_clock import FakeClock
from tests.support.fake_peer import FakeApp, FakePeer, tcp_pair
from tests.support.fake_session import FakeEndpoint, FakeWire
from tests.support.loop_stepper import LoopStepper, spins
from tests.support.pattern import pattern
from tunneltcp.net.loop import Loop
from tunneltcp.net.sockopt import prepare_connection
from tunneltcp.protocol.errors import ResetCode
from tunneltcp.protocol.table import CONFIRMED, END_READ
from tunneltcp.relay.relay import CONNECT_SECONDS, Relay, TargetRelay

LONG = 3 << 20
"""Bytes: more than a window, several rings, and what the kernel holds of one connection."""


class Bench:
    """One loop, one wire, and what a test adds."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.stepper = LoopStepper(self.clock)
        self.loop = Loop(clock=self.clock)
        self.stepper.loops.append(self.loop)
        self.over: list[Relay] = []
        self.connected: list[TargetRelay] = []
        self.until, self.settle = self.stepper.until, self.stepper.settle
        self._closers = [self.loop.close]

    def use(self, wire: FakeWire) -> FakeWire:
        self.stepper.pumps.append(wire.pump)
        self.wire = wire
        return wire

    def play(self, peer):
        self.stepper.pumps.append(peer.pump)
        self._closers.append(peer.close)
        return peer

    def close(self) -> None:
        for closer in self._closers:
            closer()


class VisitorBench(Bench):
    """The server's side: a visitor that is connected, its relay, its stream."""

    def __init__(self, *, reads: bool = True, wire: FakeWire | None = None) -> None:
        super().__init__()
        self.use(FakeWire() if wire is None else wire)
        one, self.sock = tcp_pair()
        prepare_connection(self.sock)
        self._closers.append(self.sock.close)
        self.visitor = self.play(FakePeer(one, reads=reads))
        self.relay = Relay(self.loop, self.sock, self.over.append)
        self.stream = self.wire.open(self.relay)
        self.relay.start(self.stream)
        self.until(lambda: self.wire.client_handler.endpoints, "OPEN")
        self.far: FakeEndpoint = self.wire.client_handler.endpoints[-1]


class TargetBench(Bench):
    """The client's side: a visitor far away, and a relay that connects to a target."""

    def __init__(self, addresses) -> None:
        super().__init__()
        self.relays: list[TargetRelay] = []
        self.addresses = addresses
        self.use(FakeWire(self._open))
        self.far = FakeEndpoint()
        self.stream = self.wire.open(self.far)

    def _open(self, stream):
        relay = TargetRelay(self.loop, self.addresses, self.over.append, self.connected.append)
        self.relays.append(relay)
        relay.start(stream)
        return relay

    @property
    def relay(self) -> TargetRelay:
        return self.relays[0]

    def close(self) -> None:
        for relay in self.relays:
            if relay not in self.over:
                relay.abort(ResetCode.CANCELLED)
        super().close()

    def is_over(self) -> bool:
        return self.far.aborted is not None or self.far.closed


@pytest.fixture
def bench():
    bench = VisitorBench()
    yield bench
    bench.close()


@pytest.fixture
def make_target():
    made = []

    def make(*addresses):
        made.append(TargetBench(list(addresses)))
        return made[-1]

    yield make
    for bench in made:
        bench.close()


def v4(port: int):
    return (socket.AF_INET, ("127.0.0.1", port))


@pytest.fixture
def closed_port():
    """A port that is bound, so nobody else can open it, and where nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


class TestBytes:
    def test_of_the_visitor_arrive_by_position(self, bench):
        bench.visitor.send(pattern(1, 0, LONG))
        bench.until(lambda: len(bench.far.received) >= LONG, lambda: bench.stream)
        assert bench.far.received == pattern(1, 0, LONG)

    def test_for_the_visitor_arrive_by_position(self, bench):
        bench.far.write(pattern(2, 0, LONG))
        bench.until(lambda: len(bench.visitor.received) >= LONG, lambda: bench.stream)
        assert bench.visitor.received == pattern(2, 0, LONG)

    def test_both_ways_at_once_in_pieces(self, bench):
        rng = random.Random(3)
        done = 0
        while done < LONG:
            size = min(rng.choice([1, 100, 70_000, 300_000]), LONG - done)
            bench.visitor.send(pattern(1, done, size))
            bench.far.write(pattern(2, done, size))
            done += size
            bench.stepper.turn()
        bench.until(lambda: len(bench.far.received) >= LONG)
        bench.until(lambda: len(bench.visitor.received) >= LONG)
        assert bench.far.received == pattern(1, 0, LONG)
        assert bench.visitor.received == pattern(2, 0, LONG)

    def test_that_go_in_small_pieces_to_a_slow_reader_stay_in_order(self, bench):
        bench.visitor.reads = False
        bench.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        for offset in range(0, 400_000, 1000):
            bench.far.write(pattern(2, offset, 1000))
            if offset % 50_000 == 0:
                bench.stepper.turn()
        bench.settle()
        assert bench.relay.waiting_bytes > 0, "part of it waits, and more comes behind it"
        bench.visitor.reads = True
        bench.until(lambda: len(bench.visitor.received) >= 400_000)
        assert bench.visitor.received == pattern(2, 0, 400_000)
        assert bench.relay.waiting_bytes == 0
        assert not spins(bench.loop), "nothing waits to be written any more"

    def test_urgent_ones_are_bytes_like_others(self, bench):
        bench.visitor.sock.send(b"a")
        bench.visitor.sock.send(b"b", socket.MSG_OOB)
        bench.visitor.sock.send(b"c")
        bench.until(lambda: len(bench.far.received) >= 3)
        assert bench.far.received == b"abc"

    def test_an_idle_relay_does_not_wake_the_loop(self, bench):
        bench.visitor.send(b"hello")
        bench.until(lambda: bench.far.received)
        assert not spins(bench.loop)


class TestEnds:
    def test_fin_of_the_visitor_is_only_half_an_end(self, bench):
        bench.visitor.send(b"question")
        bench.visitor.finish()
        bench.until(lambda: bench.far.fins)
        assert bench.far.received == b"question"
        bench.settle()
        assert bench.visitor.end == ""
        assert not bench.over
        assert not spins(bench.loop), "input that ended does not wake the loop again"
        bench.far.write(pattern(2, 0, 100_000))
        bench.until(lambda: len(bench.visitor.received) == 100_000)
        bench.far.finish()
        bench.until(lambda: bench.over)
        bench.until(lambda: bench.visitor.end)
        assert bench.visitor.end == "fin"
        assert bench.visitor.received == pattern(2, 0, 100_000)
        assert bench.over == [bench.relay]
        bench.until(lambda: bench.far.closed)
        assert not bench.wire.server.streams
        assert not bench.wire.client.streams

    def test_fin_of_the_target_is_only_half_an_end(self, bench):
        bench.far.write(b"greeting")
        bench.far.finish()
        bench.until(lambda: bench.visitor.end)
        assert bench.visitor.end == "fin"
        assert bench.visitor.received == b"greeting"
        assert not bench.over
        assert not spins(bench.loop)
        bench.visitor.send(pattern(1, 0, 100_000))
        bench.until(lambda: len(bench.far.received) == 100_000)
        bench.visitor.finish()
        bench.until(lambda: bench.over)
        bench.until(lambda: bench.far.closed)
        assert bench.far.received == pattern(1, 0, 100_000)

    def test_both_fins_at_once(self, bench):
        bench.visitor.finish()
        bench.far.finish()
        bench.until(lambda: bench.over and bench.far.closed)
        bench.until(lambda: bench.visitor.end)
        assert bench.visitor.end == "fin"
        assert bench.far.fins == 1

    def test_fin_goes_behind_what_still_waits(self, bench):
        bench.visitor.reads = False
        bench.far.write(pattern(2, 0, LONG))
        bench.settle(50)
        assert bench.relay.waiting_bytes
        bench.far.finish()
        bench.settle()
        bench.visitor.reads = True
        bench.until(lambda: bench.visitor.end)
        assert bench.visitor.end == "fin"
        assert bench.visitor.received == pattern(2, 0, LONG)

    def test_fin_that_comes_while_bytes_wait_is_not_confirmed_before_they_went(self, bench):
        bench.visitor.reads = False
        bench.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        size = 1 << 20  # one window: FIN is not held back by the limit
        bench.far.write(pattern(2, 0, size))
        bench.far.finish()
        bench.settle(50)
        assert bench.relay.waiting_bytes
        assert bench.far.stream.fin_sent
        assert not bench.far.stream.fin_acked
        bench.visitor.reads = True
        bench.until(lambda: bench.far.stream.fin_acked)
        bench.until(lambda: bench.visitor.end)
        assert bench.visitor.received == pattern(2, 0, size)

    def test_rst_of_the_visitor_becomes_reset(self, bench):
        bench.visitor.reset()
        bench.until(lambda: bench.far.aborted is not None)
        assert bench.far.aborted == ResetCode.CANCELLED
        assert not bench.far.fins
        assert bench.over == [bench.relay]
        assert bench.sock.fileno() == -1

    def test_rst_goes_behind_what_the_socket_still_holds(self, bench):
        size = 100_000
        bench.visitor.send(pattern(1, 0, size))
        assert not bench.visitor.unsent
        bench.visitor.reset()
        bench.until(lambda: bench.far.aborted is not None)
        assert bench.far.received == pattern(1, 0, size)
        assert not bench.far.fins

    def test_rst_that_shows_when_writing_goes_behind_what_the_socket_still_holds(self, bench):
        """A target that answers 413 without reading everything, and is then reset."""
        bench.stepper.loops.clear()  # the relay does not get to read before it writes
        bench.visitor.send(b"413 too large")
        bench.visitor.reset()
        bench.far.write(b"more and more")
        bench.until(lambda: bench.far.aborted is not None)
        assert bench.far.received == b"413 too large"
        assert bench.over == [bench.relay]
        bench.stepper.loops.append(bench.loop)
        bench.settle()

    def test_rst_that_shows_while_bytes_wait_ends_the_stream(self, bench):
        bench.visitor.reads = False
        bench.far.write(pattern(2, 0, LONG))
        bench.settle(50)
        assert bench.relay.waiting_bytes
        bench.visitor.reset()
        bench.until(lambda: bench.far.aborted is not None)
        assert bench.over == [bench.relay]
        assert bench.wire.server.windows.granted_bytes == 0
        assert not spins(bench.loop)

    def test_a_reset_of_the_stream_resets_the_socket(self, bench):
        bench.far.write(b"half of it")
        bench.until(lambda: bench.visitor.received)
        bench.far.stream.reset(ResetCode.CANCELLED)
        bench.until(lambda: bench.visitor.end)
        assert bench.visitor.end == "rst"
        assert bench.over == [bench.relay]

    def test_a_reset_after_a_half_close_resets_all_the_same(self, bench):
        bench.visitor.finish()
        bench.until(lambda: bench.far.fins)
        bench.far.stream.reset(ResetCode.CANCELLED)
        bench.until(lambda: bench.visitor.end)
        assert bench.visitor.end == "rst"

    def test_a_lost_link_resets_the_socket(self, bench):
        bench.wire.server.abort_all(ResetCode.CANCELLED)
        bench.until(lambda: bench.visitor.end)
        assert bench.visitor.end == "rst"
        assert bench.over == [bench.relay]

    @pytest.mark.parametrize("who", ["visitor", "stream"])
    def test_nothing_is_registered_any_more_after_the_end(self, bench, who):
        if who == "visitor":
            bench.visitor.reset()
        else:
            bench.far.stream.reset(ResetCode.CANCELLED)
        bench.until(lambda: bench.over)
        bench.settle()
        assert not spins(bench.loop)
        assert len(bench.over) == 1


class TestBounds:
    def test_a_visitor_that_takes_nothing_costs_a_window_and_no_turn(self, bench):
        bench.visitor.reads = False
        bench.far.write(bytes(16 << 20))
        bench.settle(100)
        window = bench.stream.window
        assert 0 < bench.relay.waiting_bytes <= window
        assert bench.stream.received - bench.stream.delivered <= window
        assert not spins(bench.loop)

    def test_the_far_end_that_takes_nothing_stops_the_reading_and_no_turn_is_spent(self, bench):
        bench.far.takes = False
        bench.visitor.send(pattern(1, 0, LONG * 4))
        bench.settle(100)
        assert bench.stream.paused
        # One window is on the other side, as much again may lie in the ring.
        assert bench.stream.head <= 2 * bench.far.stream.window
        assert bench.wire.server.arena.used_bytes <= bench.far.stream.window
        assert bench.visitor.unsent > 0
        assert not spins(bench.loop)
        bench.far.take_all()
        bench.until(lambda: len(bench.far.received) >= LONG * 4, lambda: bench.stream)
        assert bench.far.received == pattern(1, 0, LONG * 4)

    def test_a_paused_relay_still_delivers(self, bench):
        bench.far.takes = False
        bench.visitor.send(pattern(1, 0, LONG * 4))
        bench.settle(100)
        bench.far.write(b"answer")
        bench.until(lambda: bench.visitor.received == b"answer")

    def test_a_relay_that_cannot_write_still_reads(self, bench):
        bench.visitor.reads = False
        bench.far.write(pattern(2, 0, LONG))
        bench.settle(50)
        bench.visitor.send(b"question")
        bench.until(lambda: bench.far.received == b"question")

    def test_reading_waits_for_memory_and_goes_on(self):
        wire = FakeWire(budget_bytes=256 * 1024)
        first = VisitorBench(wire=wire)
        first.far.takes = False
        first.visitor.send(bytes(1 << 20))
        first.settle(50)
        assert wire.server.arena.used_bytes <= 256 * 1024
        first.far.take_all()
        first.until(lambda: len(first.far.received) == 1 << 20)
        first.close()


class TestTargetConnects:
    @pytest.fixture
    def app(self):
        app = FakeApp()
        yield app
        app.close()

    def test_and_relays(self, make_target, app):
        bench = make_target(v4(app.port))
        bench.stepper.pumps.append(app.pump)
        bench.until(lambda: bench.connected)
        assert bench.connected == [bench.relay]
        assert bench.relay.tried == 0
        assert not bench.relay.is_connecting
        bench.until(lambda: app.peers)
        bench.far.write(pattern(1, 0, LONG))
        app.peers[0].send(pattern(2, 0, LONG))
        bench.until(lambda: len(app.peers[0].received) == len(bench.far.received) == LONG)
        assert app.peers[0].received == pattern(1, 0, LONG)
        assert bench.far.received == pattern(2, 0, LONG)
        bench.far.finish()
        bench.until(lambda: app.peers[0].end)
        assert app.peers[0].end == "fin"
        assert not bench.over
        app.peers[0].finish()
        bench.until(lambda: bench.over and bench.far.closed)
        assert bench.far.fins == 1

    def test_to_this_machine_at_once(self, make_target, app):
        """No turn of the loop is waited for, and what came with OPEN goes on at once."""
        bench = make_target(v4(app.port))
        bench.far.write(b"first")
        for _ in range(10):
            bench.wire.pump()
        assert bench.connected == [bench.relay]
        assert not bench.relay.waiting_bytes
        app.pump()
        app.pump()
        assert app.peers[0].received == b"first"

    def test_with_the_options_of_a_target(self, make_target, app):
        bench = make_target(v4(app.port))
        bench.until(lambda: bench.connected)
        sock = bench.relay._sock
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE)

    def test_to_the_second_address_if_the_first_refuses(self, make_target, app, closed_port):
        bench = make_target(v4(closed_port), v4(app.port))
        bench.stepper.pumps.append(app.pump)
        bench.far.write(b"early")
        bench.until(lambda: app.peers and app.peers[0].received)
        assert app.peers[0].received == b"early"
        assert bench.relay.tried == 1
        assert bench.relay.refused == "ECONNREFUSED"

    def test_to_ipv4_if_ipv6_refuses_and_the_other_way(self, make_target, app):
        bench = make_target((socket.AF_INET6, ("::1", app.port, 0, 0)), v4(app.port))
        bench.until(lambda: bench.connected)
        six = FakeApp("::1")
        bench = make_target(v4(six.port), (socket.AF_INET6, ("::1", six.port, 0, 0)))
        bench.until(lambda: bench.connected)
        six.close()

    def test_past_an_address_of_a_family_that_is_not_there(self, make_target, app):
        bench = make_target(v4(app.port))
        bench.addresses = [v4(1), (socket.AF_UNIX + 9999, "?"), v4(app.port)]
        bench.until(lambda: bench.connected, seconds=2)
        assert bench.relay.tried == 2

    def test_and_when_all_refuse_says_so(self, make_target, closed_port):
        bench = make_target(v4(closed_port), v4(closed_port))
        bench.until(bench.is_over)
        assert bench.far.aborted == ResetCode.TARGET_REFUSED
        assert bench.over == [bench.relay]
        assert bench.relay.is_connecting
        assert not bench.connected
        bench.settle()
        assert not bench.wire.client.streams
        assert not spins(bench.loop)

    def test_and_when_an_address_cannot_be_reached_at_once_says_that(self, make_target):
        bench = make_target((socket.AF_INET, ("255.255.255.255", 80)))
        bench.until(bench.is_over)
        assert bench.far.aborted == ResetCode.TARGET_UNREACHABLE

    def test_never_to_itself(self, make_target):
        """Here the relay's socket is bound to the very port it dials: a sure self-connect."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        bench = make_target()

        def opener(stream):
            relay = TargetRelay(
                bench.loop, [v4(port)], bench.over.append, bench.connected.append
            )
            bench.relays.append(relay)
            relay._sock.bind(("127.0.0.1", port))
            relay.start(stream)
            return relay

        bench.wire.client_handler.opener = opener
        bench.until(bench.is_over)
        assert not bench.connected
        assert bench.far.aborted == ResetCode.TARGET_REFUSED


class TestTargetIsSilent:
    @pytest.fixture
    def black_hole(self):
        """An address that answers nothing: a listener whose queue is full."""
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(0)
            fillers = []
            for _ in range(3):
                sock = socket.socket()
                sock.setblocking(False)
                sock.connect_ex(listener.getsockname())
                fillers.append(sock)
            yield v4(listener.getsockname()[1])
            for sock in fillers:
                sock.close()

    def test_after_a_while_it_counts_as_unreachable(self, make_target, black_hole):
        bench = make_target(black_hole)
        bench.until(lambda: bench.relays)
        bench.stepper.pass_time(CONNECT_SECONDS - 0.1)
        assert not bench.is_over()
        bench.stepper.pass_time(0.2)
        bench.until(bench.is_over)
        assert bench.far.aborted == ResetCode.TARGET_UNREACHABLE
        assert bench.relay.refused == "ETIMEDOUT"
        assert bench.over == [bench.relay]

    def test_the_next_address_has_its_own_time(self, make_target, black_hole):
        app = FakeApp()
        bench = make_target(black_hole, black_hole, v4(app.port))
        bench.until(lambda: bench.relays)
        bench.stepper.pass_time(2 * CONNECT_SECONDS - 0.2)
        assert not bench.connected
        bench.stepper.pass_time(0.4)
        bench.until(lambda: bench.connected)
        assert bench.relay.tried == 2
        bench.stepper.pass_time(2 * CONNECT_SECONDS, step=1)
        assert not bench.over, "the deadline ended with the connecting"
        app.close()

    def test_what_came_meanwhile_is_delivered_in_order_then_fin(self, make_target, black_hole):
        app = FakeApp()
        bench = make_target(black_hole, v4(app.port))
        bench.stepper.pumps.append(app.pump)
        bench.far.write(pattern(1, 0, 20_000))
        bench.settle()
        bench.far.write(pattern(1, 20_000, 200_000))
        bench.far.finish()
        bench.settle()
        assert bench.relay.waiting_bytes == 220_000
        assert bench.wire.server.streams
        assert not bench.far.stream.fin_acked, "nobody has taken the FIN yet"
        bench.stepper.pass_time(CONNECT_SECONDS + 0.1)
        bench.until(lambda: app.peers and app.peers[0].end)
        assert app.peers[0].end == "fin"
        assert app.peers[0].received == pattern(1, 0, 220_000)
        app.peers[0].send(b"and an answer")
        app.peers[0].finish()
        bench.until(lambda: bench.far.closed)
        assert bench.far.received == b"and an answer"
        app.close()

    def test_a_fin_alone_is_delivered_after_connecting(self, make_target, black_hole):
        app = FakeApp()
        bench = make_target(black_hole, v4(app.port))
        bench.stepper.pumps.append(app.pump)
        bench.far.finish()
        bench.settle()
        bench.stepper.pass_time(CONNECT_SECONDS + 0.1)
        bench.until(lambda: app.peers and app.peers[0].end)
        assert app.peers[0].end == "fin"
        app.close()

    def test_a_reset_meanwhile_ends_the_connecting(self, make_target, black_hole):
        bench = make_target(black_hole)
        bench.until(lambda: bench.relays)
        bench.far.write(b"early")
        bench.settle()
        bench.far.stream.reset(ResetCode.CANCELLED)
        bench.until(lambda: bench.over)
        assert bench.relay._sock.fileno() == -1
        assert bench.relay.waiting_bytes == 0
        bench.stepper.pass_time(CONNECT_SECONDS + 1)
        assert bench.over == [bench.relay]
        assert not spins(bench.loop)

    def test_a_lost_link_meanwhile_ends_the_connecting(self, make_target, black_hole):
        bench = make_target(black_hole)
        bench.until(lambda: bench.relays)
        bench.wire.client.abort_all(ResetCode.CANCELLED)
        assert bench.over == [bench.relay]
        bench.stepper.pass_time(CONNECT_SECONDS + 1)

    def test_connecting_costs_no_turns(self, make_target, black_hole):
        bench = make_target(black_hole)
        bench.until(lambda: bench.relays)
        bench.far.write(b"early")
        bench.settle()
        assert not spins(bench.loop)


class TestRecords:
    """The words that a successor would read (tunneltcp/protocol/table.py)."""

    COOKIE, STREAM_ID, RING, READ, FLAGS, FIN = range(6)

    def word(self, bench, index):
        return bench.wire.server.table.words[bench.stream.record + index]

    def test_say_the_truth_while_a_stream_lives(self, bench):
        assert self.word(bench, self.COOKIE) == 7
        assert self.word(bench, self.STREAM_ID) == bench.stream.id
        assert self.word(bench, self.READ) == 0
        bench.far.takes = False
        bench.visitor.send(pattern(1, 0, 10_000))
        bench.until(lambda: len(bench.far.received) == 10_000)
        assert self.word(bench, self.READ) == 10_000
        assert self.word(bench, self.RING) == bench.stream.ring.word != 0
        assert self.word(bench, self.FLAGS) in (0, CONFIRMED)
        bench.far.take_all()
        bench.until(lambda: bench.stream.ring is None)
        assert self.word(bench, self.RING) == 0
        bench.visitor.finish()
        bench.until(lambda: bench.far.fins)
        assert self.word(bench, self.FLAGS) == CONFIRMED | END_READ
        bench.far.write(b"bye")
        bench.far.finish()
        record, words = bench.stream.record, bench.wire.server.table.words
        bench.until(lambda: bench.over)
        assert words[record + self.STREAM_ID] == 0, "free again"

    def test_the_final_offset_stands_before_the_fin_is_relayed(self, bench):
        bench.far.write(b"four")
        bench.far.finish()
        bench.until(lambda: bench.visitor.end)
        assert self.word(bench, self.FIN) == 4 + 1

    def test_an_error_is_recorded(self, bench):
        words = bench.wire.server.table.words
        record = bench.stream.record
        bench.wire.is_cut = True  # so the record is not freed at once
        bench.visitor.reset()
        bench.until(lambda: bench.over)
        assert words[record + self.FLAGS] & 2
