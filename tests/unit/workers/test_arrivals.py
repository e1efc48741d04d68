"""Who comes to the port: visitor or link, decided by first bytes and by silence."""

from __future__ import annotations

import os
import socket

import pytest

from tests.support.fake_clock import FakeClock
from tests.support.fake_peer import FakePeer
from tests.support.fake_shortage import no_descriptors
from tests.support.loop_stepper import LoopStepper, spins
from tunneltcp.control.counters import Counter
from tunneltcp.master.resources import open_listeners
from tunneltcp.net.loop import Loop
from tunneltcp.protocol.preface import MAGIC
from tunneltcp.workers import arrivals as module
from tunneltcp.workers.arrivals import SNIFF_SECONDS, Arrivals


class Owner:
    """Keeps whoever comes."""

    def __init__(self) -> None:
        self.visitors: list[tuple[socket.socket, bool]] = []
        self.links: list[socket.socket] = []
        self.addresses: list[object] = []
        self.shed = 0
        self.silence = SNIFF_SECONDS

    def on_visitor(self, sock, address, *, silent):
        self.visitors.append((sock, silent))
        self.addresses.append(address)

    def on_link(self, sock, address):
        self.links.append(sock)
        self.addresses.append(address)

    def on_shed(self):
        self.shed += 1

    def silence_seconds(self):
        return self.silence


class Bench:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.stepper = LoopStepper(self.clock)
        self.settle, self.until = self.stepper.settle, self.stepper.until
        self.loop = Loop(clock=self.clock)
        self.stepper.loops.append(self.loop)
        self.owner = Owner()
        fds = open_listeners(0, ["127.0.0.1"])
        listener = socket.socket(fileno=fds[0])
        self.port = listener.getsockname()[1]
        self.arrivals = Arrivals(self.loop, [listener], self.owner)
        self.arrivals.start()
        self.peers: list[FakePeer] = []

    def come(self, data: bytes = b"") -> FakePeer:
        peer = FakePeer(socket.create_connection(("127.0.0.1", self.port)))
        self.peers.append(peer)
        self.stepper.pumps.append(peer.pump)
        if data:
            peer.send(data)
        return peer

    def pass_time(self, seconds: float) -> None:
        self.stepper.pass_time(seconds, step=0.005)
        self.settle()

    def close(self) -> None:
        self.arrivals.close()
        for sock in [*self.owner.links, *(sock for sock, _ in self.owner.visitors)]:
            sock.close()
        for peer in self.peers:
            peer.close()
        self.loop.close()


@pytest.fixture
def bench():
    bench = Bench()
    yield bench
    bench.close()


class TestFirstBytes:
    @pytest.mark.parametrize(
        "first",
        [b"GET / HTTP/1.1\r\n", b"\x16\x03\x01\x02\x00", b"x", MAGIC[:7] + b"\n", b"\0" * 8],
    )
    def test_that_are_no_magic_make_a_visitor_at_once(self, bench, first):
        bench.come(first)
        bench.settle()
        ((sock, silent),) = bench.owner.visitors
        assert not silent
        assert sock.recv(100) == first, "they were only looked at"
        assert len(bench.arrivals) == 0

    def test_that_came_before_the_connection_was_accepted_are_not_waited_for(
        self, bench, monkeypatch
    ):
        bench.come(b"GET / HTTP/1.1\r\n")
        monkeypatch.setattr(bench.arrivals, "_take", None)  # it would be watched there
        bench.settle()
        ((_, silent),) = bench.owner.visitors
        assert not silent

    def test_that_are_the_magic_make_a_link_at_once(self, bench):
        peer = bench.come(MAGIC + b"and more")
        bench.settle()
        assert not bench.owner.visitors
        assert bench.owner.links[0].recv(100) == MAGIC + b"and more"
        assert bench.owner.addresses == [peer.sock.getsockname()]

    def test_silence_makes_a_visitor_after_30_ms(self, bench):
        bench.come()
        bench.settle()
        bench.pass_time(0.029)
        assert len(bench.arrivals) == 1
        assert not bench.owner.visitors
        bench.pass_time(0.002)
        ((_, silent),) = bench.owner.visitors
        assert silent
        assert len(bench.arrivals) == 0

    def test_each_has_its_own_30_ms(self, bench):
        bench.come()
        bench.settle()
        bench.pass_time(0.02)
        bench.come()
        bench.settle()
        bench.pass_time(0.015)
        assert len(bench.owner.visitors) == 1
        bench.pass_time(0.02)
        assert len(bench.owner.visitors) == 2

    @pytest.mark.parametrize("size", [1, 4, 7])
    def test_half_a_magic_counts_as_silence_and_costs_no_turns(self, bench, size):
        bench.come(MAGIC[:size])
        bench.settle()
        assert len(bench.arrivals) == 1
        assert not spins(bench.loop)
        bench.pass_time(0.025)
        assert not bench.owner.visitors
        bench.pass_time(0.007)
        ((sock, silent),) = bench.owner.visitors
        assert silent
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 1
        assert sock.recv(100) == MAGIC[:size]

    def test_the_rest_of_a_magic_within_30_ms_makes_a_link(self, bench):
        peer = bench.come(MAGIC[:3])
        bench.pass_time(0.02)
        peer.send(MAGIC[3:])
        bench.settle()
        assert len(bench.owner.links) == 1

    def test_a_magic_that_comes_byte_by_byte_makes_a_link(self, bench):
        peer = bench.come()
        for byte in MAGIC:
            peer.send(bytes([byte]))
            bench.pass_time(0.003)
        assert len(bench.owner.links) == 1

    def test_half_a_magic_that_goes_on_otherwise_makes_a_visitor(self, bench):
        """At the latest after 30 ms: fewer bytes than a magic do not wake the loop."""
        peer = bench.come(MAGIC[:3])
        bench.settle()
        peer.send(b"other")
        bench.settle()
        ((sock, silent),) = bench.owner.visitors
        assert not silent
        assert sock.recv(100) == MAGIC[:3] + b"other"

    def test_half_a_magic_and_fin_costs_no_turns(self, bench):
        bench.owner.silence = 10.0  # no link is up
        peer = bench.come(MAGIC[:3])
        peer.finish()
        bench.settle()
        assert not spins(bench.loop)

    def test_fin_without_a_byte_is_a_visitor_at_once(self, bench):
        bench.come().finish()
        bench.settle()
        assert [silent for _, silent in bench.owner.visitors] == [False]

    def test_who_is_reset_before_he_spoke_is_nobody(self, bench):
        bench.come().reset()
        other = bench.come()
        bench.settle()
        other.reset()
        bench.pass_time(0.05)
        assert len(bench.arrivals) == 0
        assert not bench.owner.visitors, "his target would see a clean end"

    def test_waiting_for_the_first_bytes_costs_no_turns(self, bench):
        for _ in range(5):
            bench.come()
        bench.settle()
        assert not spins(bench.loop)


class TestWithoutLink:
    def test_silence_lasts_for_as_long_as_the_owner_says(self, bench):
        bench.owner.silence = 10.0
        bench.come()
        bench.pass_time(1.0)
        assert len(bench.arrivals) == 1
        bench.owner.silence = SNIFF_SECONDS
        bench.arrivals.recheck()
        bench.settle()
        assert [silent for _, silent in bench.owner.visitors] == [True]

    def test_recheck_may_make_it_longer_too(self, bench):
        bench.come()
        bench.pass_time(0.02)
        bench.owner.silence = 1.0
        bench.arrivals.recheck()
        bench.pass_time(0.5)
        assert len(bench.arrivals) == 1
        bench.pass_time(0.6)
        assert len(bench.owner.visitors) == 1

    def test_who_speaks_waits_for_nothing(self, bench):
        bench.owner.silence = 10.0
        bench.come(b"GET /")
        bench.come(MAGIC)
        bench.settle()
        assert len(bench.owner.visitors) == 1
        assert len(bench.owner.links) == 1


class TestBound:
    def test_at_the_bound_a_random_one_goes(self, bench, monkeypatch):
        monkeypatch.setattr(module, "MAX_UNDECIDED", 8)
        bench.owner.silence = 10.0
        alive = [bench.come() for _ in range(8)]
        bench.settle()
        ranks = []
        for _ in range(40):
            newest = bench.come()
            bench.settle()
            assert len(bench.arrivals) == 8
            gone = [index for index, peer in enumerate(alive) if peer.end]
            assert len(gone) == 1, "one for one, and never the one that just came"
            assert alive[gone[0]].end == "rst"
            ranks.append(gone[0])
            del alive[gone[0]]
            alive.append(newest)
            assert not newest.end
        assert len(set(ranks)) > 3, f"not always the same one: {ranks}"

    def test_links_and_visitors_that_have_spoken_do_not_count(self, bench, monkeypatch):
        monkeypatch.setattr(module, "MAX_UNDECIDED", 2)
        bench.owner.silence = 10.0
        silent = [bench.come(), bench.come()]
        bench.settle()
        for first in [b"GET /", MAGIC] * 5:
            peer = bench.come(first)
            bench.settle()
            assert not peer.end
            silent.append(bench.come())
            bench.settle()
        assert len(bench.arrivals) == 2
        assert sum(peer.end == "rst" for peer in silent) == 10

    def test_the_bound_is_that_of_the_design(self):
        assert module.MAX_UNDECIDED == 4096

    def test_a_crowd_is_accepted_in_turns_and_nobody_is_forgotten(self, bench):
        for _ in range(module.ACCEPTS_PER_TURN * 2 + 5):
            bench.come(b"x")
        bench.stepper.turn()
        assert 0 < len(bench.arrivals) + len(bench.owner.visitors) <= module.ACCEPTS_PER_TURN
        bench.settle()
        assert len(bench.owner.visitors) == module.ACCEPTS_PER_TURN * 2 + 5

    def test_a_crowd_that_has_been_silent_becomes_visitors_in_turns(self, bench):
        bench.owner.silence = 10.0
        for _ in range(module.ACCEPTS_PER_TURN * 3):
            bench.come()
        bench.settle()
        bench.owner.silence = 0.0
        bench.arrivals.recheck()
        for turn in range(1, 4):
            bench.clock.advance(0.001)
            bench.stepper.turn()
            assert len(bench.owner.visitors) == turn * module.ACCEPTS_PER_TURN
        assert len(bench.owner.visitors) == module.ACCEPTS_PER_TURN * 3


class TestClose:
    def test_refuses_who_comes_and_resets_who_is_undecided(self, bench):
        bench.owner.silence = 10.0
        peer = bench.come()
        bench.settle()
        bench.arrivals.close()
        bench.arrivals.close()
        bench.settle()
        assert peer.end == "rst"
        with pytest.raises(ConnectionRefusedError):
            bench.come()
        bench.pass_time(0.2)
        assert not bench.owner.visitors

    def test_start_twice_is_harmless(self, bench):
        bench.arrivals.start()
        bench.come(b"x")
        bench.settle()
        assert len(bench.owner.visitors) == 1


class TestNoDescriptors:
    """Who connects is in the accept queue before the descriptors are gone."""

    def test_visitors_are_reset_and_the_link_comes_through(self, bench):
        visitors = [bench.come(b"GET /") for _ in range(3)]
        bench.come(MAGIC)
        late = [bench.come(b"GET /") for _ in range(3)]
        with no_descriptors():
            bench.settle()
            assert len(bench.owner.links) == 1
            assert [peer.end for peer in visitors] == ["rst"] * 3
            assert bench.owner.shed >= 3
            assert not bench.owner.visitors
            assert not spins(bench.loop), "and it does not spin"
            bench.pass_time(0.5)
            assert not spins(bench.loop)
            assert [peer.end for peer in late] == [""] * 3, "the link has the last descriptor"
        bench.pass_time(0.3)
        assert len(bench.owner.visitors) == 3, "it recovers"

    def test_the_reserve_is_used_again_and_again(self, bench):
        visitors = [bench.come(b"GET /") for _ in range(20)]
        with no_descriptors():
            bench.until(lambda: all(peer.end == "rst" for peer in visitors))
            bench.settle()
            assert bench.owner.shed == 20
        bench.come(b"GET /")
        bench.settle()
        assert len(bench.owner.visitors) == 1, "it recovers at once: its reserve is back"

    def test_a_few_that_are_left_are_used_first(self, bench):
        for _ in range(5):
            bench.come(b"GET /")
        with no_descriptors(left=2):
            bench.settle()
            assert len(bench.owner.visitors) == 2
            assert bench.owner.shed == 3

    def test_a_silent_one_has_the_reserve_for_30_ms(self, bench):
        silent = bench.come()
        bench.come(MAGIC)
        with no_descriptors():
            bench.settle()
            assert not bench.owner.links
            assert not spins(bench.loop)
            bench.pass_time(0.04)
            assert silent.end == "rst"
            assert len(bench.owner.links) == 1

    def test_a_silent_one_does_not_keep_the_link_out(self, bench):
        bench.owner.silence = 10.0
        bench.come()
        bench.come(MAGIC)
        with no_descriptors():
            bench.settle()
            bench.pass_time(1.5)
            assert len(bench.owner.links) == 1

    def test_the_silent_go_first_one_for_each_that_comes(self, bench):
        """While there is no link they stay undecided; those in the queue are looked at."""
        bench.owner.silence = 10.0
        silent = [bench.come() for _ in range(5)]
        bench.settle()
        late = [bench.come() for _ in range(10)]
        bench.come(MAGIC)
        with no_descriptors():
            bench.settle()
            bench.pass_time(0.2)
            assert len(bench.owner.links) == 1
            gone = sum(peer.end == "rst" for peer in silent + late)
            assert gone == 11 == bench.owner.shed
            assert len(bench.arrivals) == 4
            assert not spins(bench.loop)

    def test_nobody_goes_when_nobody_comes(self, bench):
        """The kernel says that there is no descriptor before it looks into the queue."""
        bench.owner.silence = 10.0
        silent = [bench.come() for _ in range(3)]
        with no_descriptors(left=3):
            bench.settle()
            bench.pass_time(1.0)
            assert len(bench.arrivals) == 3
            assert not any(peer.end for peer in silent)

    def test_one_who_goes_away_gives_the_reserve_back(self, bench):
        bench.owner.silence = 10.0
        first = bench.come()
        bench.come(MAGIC)
        with no_descriptors():
            bench.settle()
            first.reset()
            bench.settle()
            assert len(bench.owner.links) == 1

    def test_a_reserve_that_cannot_be_had_is_tried_again(self, bench):
        peer = bench.come(b"GET /")
        with no_descriptors():
            os.close(bench.arrivals._reserve)
            bench.arrivals._reserve = None
            filler = os.dup(0)
            bench.settle()
            assert not spins(bench.loop)
            assert not peer.end
            os.close(filler)
            bench.pass_time(0.15)
            assert peer.end == "rst"
        bench.come(b"GET /")
        bench.settle()
        assert len(bench.owner.visitors) == 1


def test_a_whole_worker_without_descriptors(world):
    """The link gets in, and what it costs is said in the counters."""
    server = world.server()
    visitors = [world.visitor(server.port, b"GET /") for _ in range(3)]
    raw = world.raw_client(server.port)
    with no_descriptors():
        world.until(lambda: raw.is_up, "the link")
        assert [peer.end for peer in visitors] == ["rst"] * 3
        assert not spins(server.loop)
    assert server.counter(Counter.LINKS_TOTAL) == 1
    visitor = world.visitor(server.port, b"GET /")
    world.pass_time(0.3)
    assert raw.data(1) == b"GET /"
    assert not visitor.end
