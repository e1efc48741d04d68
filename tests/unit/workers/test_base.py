"""What both sides share: the channel to the master, signals, leaving."""

from __future__ import annotations

import gc
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from tunneltcp.control.counters import Counter, LinkState
from tunneltcp.errors import ExitCode
from tunneltcp.relay.heap import Heap
from tunneltcp.workers import host


@pytest.fixture(params=["server", "client"])
def bench(world, request):
    if request.param == "server":
        return world.server()
    return world.client(world.raw_server(speaks=False).port, 1)


class TestChannel:
    def test_says_ready_first(self, world, bench):
        world.turn()
        assert bench.messages[0] == {"type": "ready"}

    def test_stop_means_at_once(self, world, bench):
        bench.say(type="stop")
        world.until(lambda: bench.worker.left is not None)
        assert bench.worker.left is ExitCode.DONE

    def test_its_end_means_that_the_master_has_gone(self, world, bench):
        world.stepper.pumps.remove(bench.pump)
        bench.channel.close()
        world.until(lambda: bench.worker.left is not None)

    @pytest.mark.parametrize("garbage", [b"\xff\xfe", b"[1]", b"{}", b'{"type": "later"}'])
    def test_garbage_is_survived(self, world, bench, garbage):
        bench.channel.send(garbage)
        world.settle()
        assert bench.worker.left is None
        bench.say(type="stop")
        world.until(lambda: bench.worker.left is not None)

    def test_a_master_that_does_not_read_holds_nobody_up(self, world, bench):
        world.stepper.pumps.remove(bench.pump)
        for _ in range(2000):
            bench.worker.tell({"type": "link", "state": "up", "peer": "x", "reason": "y"})
        world.settle()
        bench.say(type="stop")
        world.until(lambda: bench.worker.left is not None)

    def test_a_master_that_has_gone_is_told_nothing_more(self, world, bench):
        world.stepper.pumps.remove(bench.pump)
        bench.channel.close()
        bench.worker.tell({"type": "link"})
        world.until(lambda: bench.worker.left is not None)


class TestCounters:
    def test_of_the_present_begin_anew_and_totals_go_on(self, world, bench):
        counters = bench.counters
        for which in (Counter.VISITORS, Counter.HELD, Counter.RTT_US):
            counters[which] = 7
        counters[Counter.LINK_STATE] = LinkState.DOUBTED
        counters[Counter.BYTES_IN] = 5000
        counters[Counter.VISITORS_TOTAL] = 9
        bench.loop.unregister(bench.worker.host._channel.fileno())
        bench.worker.begin()
        for which in (Counter.VISITORS, Counter.HELD, Counter.RTT_US, Counter.LINK_STATE):
            assert counters[which] == 0
        assert counters[Counter.BYTES_IN] == 5000
        assert counters[Counter.VISITORS_TOTAL] == 9

    def test_lines_that_were_dropped_are_counted(self, world, bench):
        world.pass_time(1.1)
        assert bench.counter(Counter.LOG_DROPPED) == 0

    def test_the_heap_hears_how_much_has_moved(self, world, bench):
        heard: list[int] = []
        bench.worker._heap = Heap(heard.append)
        world.pass_time(2.2)
        assert heard == [0], "what the start left"
        bench.worker._done_in += 5  # of workers before it
        world.pass_time(3.3)
        assert heard == [0, 0]

    def test_the_heap_hears_of_visitors_who_have_gone(self, world, bench):
        """What waited for one who never read is freed then, and not a byte has moved."""
        heard: list[int] = []
        bench.worker._heap = Heap(heard.append)
        bench.counters[Counter.VISITORS_TOTAL] += 3
        bench.counters[Counter.VISITORS] = 3
        world.pass_time(2.2)
        assert heard == [0]
        bench.counters[Counter.VISITORS] = 0
        world.pass_time(3.3)
        assert heard == [0, 0]

    @pytest.mark.parametrize("kernel_says", [True, False])
    def test_descriptors_are_counted_also_those_nobody_knows_of(
        self, world, monkeypatch, kernel_says
    ):
        """The world's, in this test; before Linux 6.2 it takes 10 s to be noticed."""
        gc.collect()  # what other tests have dropped must not close descriptors meanwhile
        bench = world.server()
        if not kernel_says:
            silent = SimpleNamespace(
                stat=lambda _path: SimpleNamespace(st_size=0), listdir=os.listdir
            )
            monkeypatch.setattr(host, "os", silent)
            world.pass_time(host.COUNT_SECONDS + 2)
        world.pass_time(1.2)
        before = bench.counter(Counter.DESCRIPTORS)
        told = Path("/proc/self/fd").stat().st_size
        assert not (kernel_says and told) or before == told
        leaked = [os.dup(0) for _ in range(5)]
        try:
            world.pass_time(1.2 if kernel_says else host.COUNT_SECONDS + 2)
            assert bench.counter(Counter.DESCRIPTORS) == before + 5
        finally:
            for fd in leaked:
                os.close(fd)


class TestSignals:
    """They belong to the process: each test puts back what it found."""

    @staticmethod
    def receive(bench, world, *numbers):
        """Let these signals come; return what the worker told its master."""
        kept = {
            number: signal.getsignal(number)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
        }
        old = signal.set_wakeup_fd(-1)
        try:
            bench.worker.host.catch_signals(bench.loop)
            for number in numbers:
                os.kill(os.getpid(), number)
            world.settle()
        finally:
            signal.set_wakeup_fd(old)
            for number, handler in kept.items():
                signal.signal(number, handler)
            host = bench.worker.host
            bench.loop.unregister(host._waker.fileno())
            host._waker.close()
            host._wake_writer.close()
        return bench.messages

    def test_term_asks_the_master_for_a_successor_and_serves_on(self, world, bench):
        messages = self.receive(bench, world, signal.SIGTERM)
        assert {"type": "replace"} in messages
        assert bench.worker.left is None

    def test_those_for_the_whole_group_are_ignored(self, world, bench):
        messages = self.receive(bench, world, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
        assert {"type": "replace"} not in messages
        assert bench.worker.left is None


def test_run_turns_until_it_is_told_to_stop(world, monkeypatch):
    """The way a process runs it, but for its signals."""
    bench = world.server()
    monkeypatch.setattr(bench.worker.host, "catch_signals", lambda _loop: None)
    monkeypatch.setattr(bench.worker, "begin", lambda: None)
    bench.say(type="stop")
    assert bench.worker.run() == ExitCode.DONE
