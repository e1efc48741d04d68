"""The host of a worker that is a whole program: names, signals, memory."""

from __future__ import annotations

import os
import resource
import signal
import threading  # noqa: TID251 - to see who looks names up
from typing import Any

import pytest

from tests.support.wait import wait_until
from tunneltcp.net.loop import Loop
from tunneltcp.workers import alone
from tunneltcp.workers.alone import AloneHost, raise_descriptor_limit

BUDGET = 4 << 20


class Bench:
    """A host, a loop, and what passed between it and a worker."""

    def __init__(
        self, resolve=lambda host: {"addresses": [[2, "127.0.0.9", 0]], "error": None}
    ):
        self.loop = Loop(max_sleep_seconds=0.02)
        self.said: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.signals: list[int] = []
        self.host = AloneHost(
            budget_bytes=BUDGET,
            drain_seconds=3.0,
            on_event=self.events.append,
            on_signal=self.signals.append,
            resolve=resolve,
        )
        self.host.open(self.loop, self.said.append)

    def until(self, condition):
        def check():
            self.loop.turn()
            return condition()

        wait_until(check, 5)

    def resolve(self, host, port):
        self.host.tell({"type": "resolve", "host": host, "port": port})

    def close(self):
        self.host.close()
        self.loop.close()


@pytest.fixture
def make_bench():
    made = []

    def make(**options):
        made.append(Bench(**options))
        return made[-1]

    yield make
    for bench in made:
        bench.close()


@pytest.fixture
def bench(make_bench):
    return make_bench()


class TestMessages:
    def test_what_a_master_would_be_told_goes_to_the_program(self, bench):
        bench.host.tell({"type": "ready"})
        assert bench.events == [{"type": "ready"}]

    def test_what_a_master_would_say_goes_to_the_worker(self, bench):
        bench.host.say({"type": "who", "number": 0})
        assert bench.said == [{"type": "who", "number": 0}]


class TestNames:
    def test_are_looked_up_beside_the_loop(self, make_bench):
        threads = []

        def resolve(host):
            threads.append(threading.current_thread())
            return {"addresses": [[2, "127.0.0.9", 0]], "error": None}

        bench = make_bench(resolve=resolve)
        bench.resolve("a.test", 7)
        bench.until(lambda: bench.said)
        assert threads[0] is not threading.main_thread()
        assert threads[0].daemon, "it must not keep a program that ends"
        assert bench.said[0]["addresses"] == [[2, "127.0.0.9", 7, 0]]
        assert (bench.said[0]["host"], bench.said[0]["port"]) == ("a.test", 7)
        assert bench.events == []

    def test_who_asks_for_the_same_name_shares_the_answer(self, make_bench):
        asked, go = [], threading.Event()

        def resolve(host):
            asked.append(host)
            go.wait(20)
            return {"addresses": [], "error": "no such name"}

        bench = make_bench(resolve=resolve)
        bench.resolve("a.test", 7)
        bench.resolve("a.test", 8)
        bench.resolve("b.test", 8)
        go.set()
        bench.until(lambda: len(bench.said) == 3)
        assert sorted(asked) == ["a.test", "b.test"]
        assert sorted((one["host"], one["port"]) for one in bench.said) == [
            ("a.test", 7), ("a.test", 8), ("b.test", 8),
        ]  # fmt: skip

    def test_that_take_too_long_are_answered_and_not_looked_up_twice(
        self, make_bench, monkeypatch
    ):
        asked, go = [], threading.Event()

        def resolve(host):
            asked.append(host)
            go.wait(20)
            return {"addresses": [[2, "127.0.0.9", 0]], "error": None}

        bench = make_bench(resolve=resolve)
        with monkeypatch.context() as patch:
            patch.setattr(alone, "LOOKUP_SECONDS", 0.05)
            bench.resolve("slow.test", 7)
        bench.until(lambda: bench.said)
        assert "in time" in bench.said[0]["error"]
        bench.resolve("slow.test", 7)
        go.set()
        bench.until(lambda: len(bench.said) == 2)
        assert bench.said[1]["addresses"]
        assert asked == ["slow.test"]

    def test_an_answer_after_the_end_is_harmless(self):
        go = threading.Event()

        def resolve(host):
            go.wait(20)
            return {"addresses": [], "error": None}

        bench = Bench(resolve=resolve)
        bench.resolve("a.test", 7)
        thread = next(
            t for t in threading.enumerate() if t.daemon and t.name.startswith("Thread")
        )
        bench.close()
        go.set()
        thread.join(5)
        assert not thread.is_alive()


class TestSignals:
    @pytest.fixture
    def caught(self, bench):
        """The process's own handlers are back when the bench has closed."""
        before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        bench.host.catch_signals(bench.loop)
        yield bench
        bench.host.close()
        assert before == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
        bench.host.close = lambda: None

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_the_first_drains_and_the_second_stops(self, caught, number):
        os.kill(os.getpid(), number)
        caught.until(lambda: caught.said)
        assert caught.said == [{"type": "drain", "seconds": 3.0}]
        os.kill(os.getpid(), number)
        caught.until(lambda: len(caught.said) == 2)
        assert caught.said[1] == {"type": "stop"}
        assert caught.signals == [number, number]

    def test_one_that_was_ignored_stays_ignored(self, bench):
        old = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
        try:
            bench.host.catch_signals(bench.loop)
            os.kill(os.getpid(), signal.SIGHUP)
            bench.loop.turn()
            assert bench.said == []
        finally:
            signal.signal(signal.SIGHUP, old)


def test_memory_has_room_for_every_size_at_its_worst(bench):
    """Each size of ring may take the whole budget once, and the others still get theirs."""
    arena = bench.host.map_memory().arena
    for size in (1 << shift for shift in range(14, 23)):
        rings = []
        while (ring := arena.take(size)) is not None:
            rings.append(ring)
        assert sum(ring.size for ring in rings) == BUDGET
        for ring in rings:
            arena.give(ring)


def test_counters_can_be_read_by_who_made_the_host(bench):
    bench.host.map_counters()[3] = 7
    assert bench.host.map_counters()[3] == 7


def test_descriptors_are_raised_within_what_is_allowed():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        raise_descriptor_limit()
        now, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert 256 < now <= alone.DESCRIPTORS or now == hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
