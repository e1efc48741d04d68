"""Both workers of a tunnel together: bytes, ends, counters, records."""

from __future__ import annotations

import random

import pytest

from tests.support.pattern import pattern
from tunneltcp.control.counters import Counter, LinkState
from tunneltcp.net.sockopt import cookie
from tunneltcp.protocol.table import CONFIRMED, END_READ

LONG = 3 << 20


class Tunnel:
    def __init__(self, world, **settings) -> None:
        self.world = world
        self.app = world.app()
        self.server = world.server(**settings)
        self.client = world.client(self.server.port, self.app.port)
        world.until(self.is_up, "the link")

    def is_up(self) -> bool:
        return bool(self.server.worker.link and self.client.worker.link)

    def visit(self, data: bytes = b"hi"):
        """A visitor and its peer at the target."""
        before = len(self.app.peers)
        visitor = self.world.visitor(self.server.port, data)
        self.world.until(lambda: len(self.app.peers) > before, "the target")
        return visitor, self.app.peers[-1]


@pytest.fixture
def tunnel(world):
    return Tunnel(world)


class TestBytes:
    def test_cross_by_position(self, world, tunnel):
        visitor, peer = tunnel.visit(pattern(1, 0, LONG))
        peer.send(pattern(2, 0, LONG))
        visitor.finish()
        peer.finish()
        world.until(lambda: visitor.end and peer.end)
        assert (visitor.end, peer.end) == ("fin", "fin")
        assert peer.received == pattern(1, 0, LONG)
        assert visitor.received == pattern(2, 0, LONG)

    def test_of_many_visitors_do_not_mix(self, world, tunnel):
        rng = random.Random(4)
        ends = [tunnel.visit(pattern(seed, 0, 100)) for seed in range(30)]
        sizes = [rng.choice([100, 5000, 200_000]) for _ in ends]
        for seed, ((visitor, peer), size) in enumerate(zip(ends, sizes, strict=True)):
            visitor.send(pattern(seed, 100, size - 100))
            peer.send(pattern(1000 + seed, 0, size))
        for seed, ((visitor, peer), size) in enumerate(zip(ends, sizes, strict=True)):
            world.until(
                lambda v=visitor, p=peer, s=size: len(v.received) == len(p.received) == s
            )
            assert peer.received == pattern(seed, 0, size)
            assert visitor.received == pattern(1000 + seed, 0, size)


def first_and_other(tunnel, first):
    """Both ends of a new visit; the one that is to end first comes first."""
    visitor, peer = tunnel.visit(b"question")
    return (visitor, peer) if first == "visitor" else (peer, visitor)


class TestEnds:
    @pytest.mark.parametrize("first", ["visitor", "target"])
    def test_half_close(self, world, tunnel, first):
        one, other = first_and_other(tunnel, first)
        one.finish()
        world.until(lambda: other.end)
        assert other.end == "fin"
        world.settle()
        assert one.end == ""
        other.send(pattern(3, 0, 100_000))
        other.finish()
        world.until(lambda: one.end)
        assert one.end == "fin"
        assert one.received.endswith(pattern(3, 0, 100_000))
        world.until(
            lambda: not tunnel.server.worker._relays and not tunnel.client.worker._relays
        )

    @pytest.mark.parametrize("first", ["visitor", "target"])
    def test_rst(self, world, tunnel, first):
        one, other = first_and_other(tunnel, first)
        one.reset()
        world.until(lambda: other.end)
        assert other.end == "rst"

    def test_a_target_that_refuses_resets_the_visitor(self, world, tunnel):
        tunnel.app.listener.close()
        visitor = world.visitor(tunnel.server.port, b"hi")
        world.until(lambda: visitor.end)
        assert visitor.end == "rst"
        assert visitor.received == b""

    @pytest.mark.parametrize("whose", ["server", "client"])
    def test_a_lost_link_is_a_pause(self, world, tunnel, whose):
        visitor, peer = tunnel.visit(b"hello")
        peer.send(b"half of it")
        world.until(lambda: visitor.received)
        session = tunnel.server.worker.session_id
        getattr(tunnel, whose).worker.link.lose("by the test")
        visitor.send(b", more")
        peer.send(b", the rest")
        world.until(tunnel.is_up, "a new link, at once")
        world.until(lambda: visitor.received == b"half of it, the rest")
        world.until(lambda: peer.received == b"hello, more")
        assert tunnel.client.worker.session_id == tunnel.server.worker.session_id == session
        assert tunnel.server.worker.memory.table.epoch == 2
        visitor.finish()
        peer.finish()
        world.until(lambda: visitor.end and peer.end)
        assert (visitor.end, peer.end) == ("fin", "fin")

    def test_200_flaps_in_a_row(self, world, tunnel):
        visitor, peer = tunnel.visit(b"")
        sent = 0
        for number in range(200):
            worker = (tunnel.server, tunnel.client)[number % 2].worker
            if worker.link is not None:
                worker.link.lose("by the test")
            visitor.send(pattern(1, sent, 700))
            peer.send(pattern(2, sent, 700))
            sent += 700
            for _ in range(number % 23):
                world.clock.advance(0.05)
                world.turn()
        world.pass_time(1.0)
        world.until(lambda: len(visitor.received) == len(peer.received) == sent)
        assert peer.received == pattern(1, 0, sent)
        assert visitor.received == pattern(2, 0, sent)

    def test_who_leaves_on_purpose_is_not_waited_for(self, world, tunnel):
        visitor, _ = tunnel.visit(b"hello")
        tunnel.client.say(type="stop")
        world.until(lambda: tunnel.client.worker.left is not None)
        tunnel.client.worker.link.close()  # as the end of its process does
        world.until(lambda: visitor.end)
        assert visitor.end == "rst"
        assert not tunnel.server.worker.session_id

    def test_when_the_grace_is_over_both_ends_are_reset(self, world, tunnel):
        visitor, peer = tunnel.visit(b"hello")
        tunnel.client.worker.link.lose("by the test")
        world.stepper.loops.remove(tunnel.client.loop)
        world.pass_time(59.0, step=0.1)
        assert not visitor.end
        world.pass_time(2.0)
        world.until(lambda: visitor.end)
        assert visitor.end == "rst"
        assert not tunnel.server.worker.session_id
        world.stepper.loops.append(tunnel.client.loop)
        world.until(lambda: peer.end)
        assert peer.end == "rst", "its session is not there any more"


class TestLimits:
    def test_many_beyond_the_clients_limit_do_not_harm_who_is_there(self, world):
        """What the server said of them, before it heard of that, is no fault of its."""
        app, server = world.app(), world.server()
        client = world.client(server.port, app.port, max_visitors=1)
        world.until(lambda: server.worker.link and client.worker.link)
        stays = world.visitor(server.port, b"I stay")
        world.until(lambda: app.peers)
        for _ in range(60):
            crowd = [world.visitor(server.port, b"GET / HTTP/1.1\r\n\r\n") for _ in range(20)]
            for one in crowd:
                one.finish()
            world.until(lambda: all(one.end for one in crowd))  # noqa: B023 - it is over here
            for one in crowd:
                one.close()
        assert not stays.end
        assert server.counter(Counter.LINKS_TOTAL) == 1
        world.pass_time(1.1)
        [warning] = client.told("warning")
        assert warning["text"].startswith("max_visitors or the budget is used up here")


class TestCounters:
    def test_say_the_truth_on_both_sides(self, world, tunnel):
        visitor, peer = tunnel.visit(bytes(70_000))
        peer.send(bytes(9_000))
        second, _ = tunnel.visit(bytes(30))
        world.until(lambda: len(peer.received) == 70_000 and len(visitor.received) == 9_000)
        world.until(lambda: tunnel.app.peers[1].received)
        world.pass_time(1.2)
        for side in (tunnel.server, tunnel.client):
            assert side.counter(Counter.VISITORS) == 2
            assert side.counter(Counter.VISITORS_TOTAL) == 2
            assert side.counter(Counter.BYTES_IN) == 70_030
            assert side.counter(Counter.BYTES_OUT) == 9_000
            assert side.counter(Counter.LINKS_TOTAL) == 1
            assert side.counter(Counter.LINK_STATE) == LinkState.UP
            assert side.counter(Counter.HELD) == 0
            assert side.counter(Counter.RESETS_TOTAL) == 0
        second.reset()
        visitor.finish()
        peer.finish()
        world.until(lambda: visitor.end)
        world.pass_time(1.2)
        for side in (tunnel.server, tunnel.client):
            assert side.counter(Counter.VISITORS) == 0
            assert side.counter(Counter.VISITORS_TOTAL) == 2
            assert side.counter(Counter.RESETS_TOTAL) == 1
            assert side.counter(Counter.BYTES_IN) == 70_030, "of those who have gone too"

    def test_go_on_after_a_lost_link(self, world, tunnel):
        _, peer = tunnel.visit(bytes(5000))
        world.until(lambda: len(peer.received) == 5000)
        tunnel.client.worker.link.lose("by the test")
        world.until(lambda: tunnel.server.counter(Counter.LINK_STATE) == LinkState.DOWN)
        assert tunnel.server.counter(Counter.VISITORS) == 1
        world.until(tunnel.is_up)
        _, peer = tunnel.visit(bytes(700))
        world.until(lambda: len(peer.received) == 700)
        world.pass_time(1.2)
        for side in (tunnel.server, tunnel.client):
            assert side.counter(Counter.BYTES_IN) == 5700
            assert side.counter(Counter.LINKS_TOTAL) == 2
            assert side.counter(Counter.RESETS_TOTAL) == 0
            assert side.counter(Counter.VISITORS) == 2

    def test_say_by_when_the_loop_turns_again(self, world, tunnel):
        for _ in range(20):
            world.pass_time(0.1)
            for side in (tunnel.server, tunnel.client):
                left = side.counter(Counter.BEAT_NS) / 1e9 - world.clock()
                assert 0.0 < left <= 0.51  # the longest sleep

    def test_carry_a_round_trip(self, world, tunnel):
        world.pass_time(2.5)
        assert tunnel.server.counter(Counter.RTT_US) >= 0
        tunnel.server.worker.link.rtt_seconds = 0.0123
        world.pass_time(1.1)
        assert tunnel.server.counter(Counter.RTT_US) == 12_300
        tunnel.server.worker.link.lose("by the test")
        assert tunnel.server.counter(Counter.RTT_US) == 0


def test_who_was_let_read_and_never_did_keeps_no_ring_from_others(world, tunnel):
    tunnel.visit(b"hello")
    session = tunnel.server.worker.session
    session.starved[next(iter(session.streams.values()))] = None
    world.pass_time(1.2)
    assert not session.starved


class TestRecords:
    def test_of_a_visitor_name_its_socket_and_what_was_read(self, world, tunnel):
        tunnel.app.reads = False
        visitor, peer = tunnel.visit(pattern(1, 0, 5000))
        relay = next(iter(tunnel.server.worker._relays))
        words = tunnel.server.worker.memory.table.words
        record = relay.stream.record
        world.settle()
        assert words[record] == cookie(relay._sock) > 0
        assert words[record + 1] == relay.stream.id
        assert words[record + 3] == 5000
        assert words[record + 4] & 0xFFFFFFFF == CONFIRMED
        visitor.finish()
        world.settle()
        assert words[record + 4] & 0xFFFFFFFF == CONFIRMED | END_READ
        peer.reset()
        world.until(lambda: visitor.end)
        world.settle()
        assert words[record + 1] == 0

    def test_of_a_target_name_the_stream_and_what_was_read(self, world, tunnel):
        _, peer = tunnel.visit(b"hi")
        peer.send(pattern(1, 0, 5000))
        relay = next(iter(tunnel.client.worker._relays))
        words = tunnel.client.worker.memory.table.words
        world.settle()
        assert words[relay.stream.record + 1] == relay.stream.id
        assert words[relay.stream.record + 3] == 5000

    def test_of_a_target_name_its_socket(self, world, tunnel):
        tunnel.visit(b"hi")
        relay = next(iter(tunnel.client.worker._relays))
        words = tunnel.client.worker.memory.table.words
        assert words[relay.stream.record] == cookie(relay._sock)
