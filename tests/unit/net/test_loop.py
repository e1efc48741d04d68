"""The loop: what wakes it, in which order it calls, and what it says of itself.

All of it with each thing that a loop can wait with.
"""

from __future__ import annotations

import os
import random
import selectors
import socket
import time

import pytest

from tests.support.fake_clock import FakeClock
from tests.support.fake_peer import tcp_pair
from tests.support.loop_stepper import LoopStepper, spins
from tunneltcp.net.loop import BEAT_SECONDS, READ, WRITE, Loop
from tunneltcp.net.poller import PortablePoller, new_poller

POLLERS = {
    "epoll": new_poller,
    "selector of poll": lambda: PortablePoller(selectors.PollSelector()),
    "selector of select": lambda: PortablePoller(selectors.SelectSelector()),
}


@pytest.fixture(params=POLLERS)
def make_loop(request):
    """Make a loop that waits with one of them."""
    return lambda **options: Loop(poller=POLLERS[request.param](), **options)


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def loop(make_loop, clock):
    loop = make_loop(clock=clock, max_sleep_seconds=0)
    yield loop
    loop.close()


@pytest.fixture
def pair():
    one, other = socket.socketpair()
    one.setblocking(False)
    other.setblocking(False)
    yield one, other
    one.close()
    other.close()


class TestTimers:
    def test_are_called_in_the_order_of_their_times(self, loop, clock):
        called = []
        times = [random.uniform(0, 10) for _ in range(200)]
        for when in times:
            loop.call_later(when, lambda when=when: called.append(when))
        clock.advance(20)
        loop.turn()
        assert called == sorted(times)

    def test_are_not_called_before_their_time(self, loop, clock):
        called = []
        loop.call_later(1.0, lambda: called.append("timer"))
        clock.advance(0.999)
        loop.turn()
        assert called == []
        clock.advance(0.001)
        loop.turn()
        loop.turn()
        assert called == ["timer"]

    def test_count_from_the_beginning_of_the_turn(self, loop, clock):
        begin = clock()
        clock.advance(5)
        assert loop.call_later(1.0, lambda: None).when == begin + 1
        assert loop.call_at(begin + 7, lambda: None).when == begin + 7

    def test_that_are_cancelled_are_not_called(self, loop, clock):
        called = []
        first = loop.call_later(1.0, lambda: called.append("first"))
        loop.call_later(2.0, lambda: called.append("second"))
        first.cancel()
        first.cancel()
        clock.advance(3)
        loop.turn()
        assert called == ["second"]

    def test_one_may_cancel_another_that_is_due_in_the_same_turn(self, loop, clock):
        called = []
        second = loop.call_later(2.0, lambda: called.append("second"))
        loop.call_later(1.0, second.cancel)
        clock.advance(3)
        loop.turn()
        assert called == []

    def test_cancel_after_the_call_is_harmless(self, loop, clock):
        timer = loop.call_later(0.0, lambda: None)
        loop.turn()
        timer.cancel()
        loop.turn()

    def test_one_made_in_a_callback_and_due_at_once_is_called_in_the_same_turn(self, loop):
        called = []
        loop.call_later(0.0, lambda: loop.call_later(0.0, lambda: called.append("inner")))
        loop.turn()
        assert called == ["inner"]


class TestDescriptors:
    def test_are_called_when_ready_and_only_for_what_was_asked(self, loop, pair):
        one, other = pair
        events: list[int] = []
        loop.register(one.fileno(), READ, events.append)
        loop.turn()
        assert events == []
        other.send(b"x")
        loop.turn()
        assert events == [READ]
        loop.modify(one.fileno(), READ | WRITE, events.append)
        loop.turn()
        assert events == [READ, READ | WRITE]
        one.recv(10)
        loop.turn()
        assert events[2:] == [WRITE]

    def test_modify_changes_the_callback_too(self, loop, pair):
        one, _ = pair
        called = []
        loop.register(one.fileno(), WRITE, lambda _: called.append("old"))
        loop.modify(one.fileno(), WRITE, lambda _: called.append("new"))
        loop.turn()
        assert called == ["new"]

    def test_unregistered_are_not_called(self, loop, pair):
        one, _ = pair
        called: list[int] = []
        loop.register(one.fileno(), WRITE, called.append)
        loop.unregister(one.fileno())
        loop.turn()
        assert called == []

    def test_are_called_before_timers_and_on_turn_last(self, loop, pair, clock):
        one, _ = pair
        called = []
        loop.on_turn = lambda: called.append("turn")
        loop.call_later(0.0, lambda: called.append("timer"))
        loop.register(one.fileno(), WRITE, lambda _: called.append("descriptor"))
        loop.turn()
        assert called == ["descriptor", "timer", "turn"]

    @pytest.mark.parametrize("asked", [READ, WRITE])
    def test_an_error_counts_as_what_was_asked_for(self, loop, asked):
        one, other = tcp_pair()
        linger = (1).to_bytes(4, "little") + bytes(4)
        other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        other.close()  # a RST
        events: list[int] = []
        loop.register(one.fileno(), asked, events.append)
        loop.turn()
        one.close()
        assert events
        assert events[0] & asked

    @pytest.mark.parametrize("asked", [READ, WRITE])
    def test_a_hang_up_counts_as_what_was_asked_for(self, loop, asked):
        reading, writing = os.pipe()
        fd, gone = (reading, writing) if asked == READ else (writing, reading)
        os.close(gone)
        events: list[int] = []
        loop.register(fd, asked, events.append)
        loop.turn()
        os.close(fd)
        assert events
        assert events[0] & asked


class TestStaleEvents:
    """Both descriptors are ready in one turn; whichever is called first closes the other."""

    @staticmethod
    def ready_pairs() -> list[tuple[socket.socket, socket.socket]]:
        pairs = [socket.socketpair(), socket.socketpair()]
        for _, other in pairs:
            other.send(b"x")
        return pairs

    def test_of_a_closed_descriptor_is_not_delivered(self, loop):
        pairs = self.ready_pairs()
        called = []

        def call(index):
            called.append(index)
            victim = pairs[1 - index][0]
            loop.unregister(victim.fileno())
            victim.close()

        for index, (one, _) in enumerate(pairs):
            loop.register(one.fileno(), READ, lambda _, index=index: call(index))
        loop.turn()
        loop.unregister(pairs[called[0]][0].fileno())
        for one, other in pairs:
            one.close()
            other.close()
        assert len(called) == 1

    def test_of_a_number_that_was_reused_is_not_delivered(self, loop):
        pairs = self.ready_pairs()
        called = []
        reused: list[socket.socket] = []

        def call(index):
            called.append(index)
            victim = pairs[1 - index][0]
            number = victim.fileno()
            loop.unregister(number)
            victim.close()
            fresh = socket.socketpair()
            reused.extend(fresh if fresh[0].fileno() == number else reversed(fresh))
            assert reused[0].fileno() == number, "the number was to be reused"
            loop.register(number, READ, lambda _: called.append("fresh"))

        for index, (one, _) in enumerate(pairs):
            loop.register(one.fileno(), READ, lambda _, index=index: call(index))
        loop.turn()
        assert len(called) == 1
        # Only this turn's event was not meant for it.
        reused[1].send(b"x")
        loop.unregister(pairs[called[0]][0].fileno())
        loop.turn()
        assert called[1:] == ["fresh"]
        for sock in [*reused, *(sock for pair in pairs for sock in pair)]:
            sock.close()


class TestSleep:
    def test_never_longer_than_the_maximum(self, make_loop):
        loop = make_loop(max_sleep_seconds=0.02)
        loop.call_later(60.0, lambda: None)
        begin = time.monotonic()
        loop.turn()
        took = time.monotonic() - begin
        loop.close()
        assert 0.01 < took < 10, "and not until the timer"

    def test_no_longer_than_until_the_next_timer(self, make_loop):
        loop = make_loop(max_sleep_seconds=10)
        called = []
        loop.call_later(0.02, lambda: called.append("timer"))
        begin = time.monotonic()
        while not called:
            loop.turn()
        took = time.monotonic() - begin
        loop.close()
        assert 0.01 < took < 5

    def test_a_loop_with_nothing_to_do_does_not_spin(self, make_loop):
        loop = make_loop(max_sleep_seconds=10)
        spun = spins(loop)
        loop.close()
        assert not spun

    def test_run_turns_until_it_is_stopped(self, loop):
        turns = []

        def on_turn():
            turns.append(1)
            if len(turns) == 3:
                loop.stop()

        loop.on_turn = on_turn
        loop.run()
        assert len(turns) == 3


class TestBeat:
    """Who watches must never see a beat later than the last one announced."""

    def check(self, monkeypatch, turns):
        """Turn with (sleep wanted, work done) pairs; return by how much each beat was late."""
        clock = FakeClock()
        loop = Loop(clock=clock, max_sleep_seconds=0.5)
        beats = []
        loop.on_beat = lambda announced: beats.append((clock(), announced))

        def poll(seconds):
            """The one thing that waits: instead of waiting, the clock goes on."""
            clock.advance(seconds)
            return []

        monkeypatch.setattr(loop, "_poll", poll)
        late = []
        for wanted, work in turns:
            loop.call_later(wanted, lambda: None)
            before = len(beats)
            loop.turn()
            if len(beats) > before > 0:
                late.append(beats[-1][0] - beats[-2][1])
            else:
                assert not beats or clock() <= beats[-1][1], "it slept beyond its word"
            clock.advance(work)
        loop.close()
        return beats, late

    def test_never_comes_later_than_announced_by_more_than_the_work_of_a_turn(
        self, monkeypatch
    ):
        rng = random.Random(5)
        turns = [
            (rng.choice([0, 0.01, 0.09, 0.3, 9]), rng.choice([0, 0.02])) for _ in range(800)
        ]
        beats, late = self.check(monkeypatch, turns)
        assert len(beats) > 50
        assert max(late) <= 0.02 + 1e-9

    def test_allows_for_a_long_sleep_before_it_sleeps(self, monkeypatch):
        beats, _ = self.check(monkeypatch, [(9, 0)] * 5)
        assert [announced - at for at, announced in beats] == pytest.approx([0.5] * 5)

    def test_a_sleep_that_would_be_long_begins_with_a_beat(self, monkeypatch):
        beats, late = self.check(monkeypatch, [(0.02, 0), (9, 0), (9, 0)])
        assert [announced - at for at, announced in beats] == pytest.approx([BEAT_SECONDS, 0.5])
        assert late == pytest.approx([0])

    def test_comes_ten_times_a_second_in_a_busy_loop_not_in_each_turn(self, monkeypatch):
        beats, _ = self.check(monkeypatch, [(0, 0.001)] * 1000)
        assert 9 <= len(beats) <= 11
        assert all(announced - at <= BEAT_SECONDS + 1e-9 for at, announced in beats)


@pytest.mark.parametrize("asked", [READ, WRITE])
@pytest.mark.parametrize("how", ["error", "hang-up"])
def test_on_linux_an_error_or_a_hang_up_counts_as_both(asked, how):
    loop = Loop(max_sleep_seconds=0)
    one, other = tcp_pair()
    linger = (how == "error").to_bytes(4, "little") + bytes(4)
    other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    other.close()
    if how == "hang-up":
        one.shutdown(socket.SHUT_WR)
    events: list[int] = []
    loop.register(one.fileno(), asked, events.append)
    loop.turn()
    one.close()
    loop.close()
    assert [event & (READ | WRITE) for event in events] == [READ | WRITE]


def test_a_loop_that_spins_is_known(pair, make_loop):
    loop = make_loop()
    loop.register(pair[0].fileno(), WRITE, lambda _: None)
    spun = spins(loop)
    loop.close()
    assert spun


def test_the_stepper_says_what_it_waited_for_in_vain():
    stepper = LoopStepper()
    with pytest.raises(AssertionError, match=r"not within 0\.01 s: the end of the world"):
        stepper.until(lambda: False, "the end of the world", seconds=0.01)
