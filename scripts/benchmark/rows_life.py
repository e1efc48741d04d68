"""Rows 7, 8 and 9: memory, what comes after a failure, and start-up."""

from __future__ import annotations

import os
import signal
import socket
import time
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from benchmark.lab import BenchError, pause, wait_for
from benchmark.places import PathSpec, Place, RelayPlace
from benchmark.results import Metric
from benchmark.tools import pss_bytes
from benchmark.ways import Ours

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmark.bench import Bench
    from benchmark.places import Endpoint
    from benchmark.ways import Running, Way

__all__ = ["row_failures", "row_memory", "row_start"]

MANY = ("ours", "ours-plain", "ssh", "frp", "rathole-tls", "rathole", "bore", "chisel")
IDLE = ("ours", "ours-plain", "mux", "ssh", "frp", "rathole", "bore", "chisel")
FAILING = ("ours", "ours-plain", "ssh", "frp", "rathole", "bore", "chisel")

ANSWER_SECONDS = 15.0
"""Until an answer is given up."""
RETRY_SECONDS = 0.01
"""Between two visits while there is no answer."""
IDLE_BUDGET_BYTES = 1 << 30
"""A bound on what may be granted, not memory: each visitor is granted 16 KiB or more, and by
default (64 MiB) there is no room for 10,000."""
HOLD_SECONDS = 120.0
"""Until all idle visitors are there."""
SETTLE_SECONDS = 0.5
"""A link that is up for a moment before it is cut."""


@contextmanager
def started(way: Way, place: Place, targets: list[int]) -> Iterator[Running]:
    """A way at a place, for the time of a block."""
    running = way.start(place.lab, place, targets)
    try:
        yield running
    finally:
        running.stop()


def visit(where: Endpoint, count: int = 1) -> None:
    """So many visitors at the same moment, each of whom is answered once, then leaves."""
    with ExitStack() as stack:
        visitors = [
            stack.enter_context(socket.create_connection(where, timeout=ANSWER_SECONDS))
            for _ in range(count)
        ]
        for sock in visitors:
            sock.sendall(b"e!")
        for sock in visitors:
            if sock.recv(1) != b"!":
                raise BenchError("a visitor was sent away")


# Memory.


def row_memory(bench: Bench) -> None:
    """Row 7."""
    most = max(bench.effort.tunnels)
    for way in bench.chosen_few(*MANY):
        counts = bench.effort.tunnels if isinstance(way, Ours) else (1, most)
        for count in counts:
            bench.say(f"memory, {way.name}, {count} tunnels")
            bench.attempt(
                way,
                f"{count} tunnels",
                measure_tunnels,
                count,
            )
    for way in bench.chosen_few(*IDLE):
        for count in bench.effort.idle:
            bench.say(f"memory, {way.name}, {count} idle visitors")
            bench.attempt(
                way,
                f"{count} idle visitors",
                measure_idle,
                count,
            )


def memory(bench: Bench, key: str, title: str, unit: str, way: Way, value: float) -> None:
    """Take a size."""
    metric = Metric(row=7, key=key, title=title, unit=unit, is_lower_better=True)
    bench.results.add(metric, way.key, value)


def measure_tunnels(bench: Bench, way: Way, count: int) -> None:
    """All of a side, after visitors have been there and have gone."""
    with started(way, Place(bench.lab), [bench.target("target")] * count) as running:
        for where in running.endpoints:
            visit(where, bench.effort.visits)
        pause(bench.effort.rest_seconds)
        for side, programs in (("server", running.server), ("client", running.client)):
            title = f"PSS with {count} tunnel{'s' * (count > 1)}, {side}"
            size = pss_bytes(programs) / 1e6
            memory(bench, f"7.tunnels{count}.{side}", title, "MB", way, size)


def measure_idle(bench: Bench, way: Way, count: int) -> None:
    """What each silent visitor costs in our processes; the kernel's share is not in it."""
    if isinstance(way, Ours):
        way = way.with_options(max_visitors=2 * count, budget=IDLE_BUDGET_BYTES)
    with started(way, Place(bench.lab), [bench.target("target")]) as running:
        host, port = running.endpoints[0]
        visit((host, port))
        sides = {"server": running.server, "client": running.client}
        before = {side: pss_bytes(programs) for side, programs in sides.items()}
        holder = bench.lab.python("holder", f"{host}:{port}", str(count))

        def is_held() -> bool:
            holder.check()
            return holder.output().endswith("held")

        try:
            wait_for(is_held, HOLD_SECONDS, f"{count} visitors are there")
            pause(bench.effort.rest_seconds)
            for side, programs in sides.items():
                title = f"memory for each of {count:,} idle visitors, {side}"
                size = (pss_bytes(programs) - before[side]) / count / 1e3
                memory(bench, f"7.idle{count}.{side}", title, "KB", way, size)
        finally:
            holder.stop()


# Failures.


def row_failures(bench: Bench) -> None:
    """Row 8."""
    for way in bench.chosen_few(*FAILING):
        bench.say(f"failures, {way.name}")
        bench.attempt(way, "failures", measure_failures)


def measure_failures(bench: Bench, way: Way) -> None:
    """Make each failure some times; see how long visitors wait."""
    place = RelayPlace(bench.lab, PathSpec())
    try:
        with started(way, place, [bench.target("target")]) as running:
            for _ in range(bench.effort.failures):
                visit(running.endpoints[0])
                pause(SETTLE_SECONDS)
                watch_failure(bench, way, running, "a cut link", place.cut)
                if not isinstance(way, Ours):
                    continue
                for role in ("server", "client"):
                    pause(SETTLE_SECONDS)
                    (tunnel,) = Ours.status(running, role)["tunnels"]

                    def kill(pid: int = tunnel["pid"]) -> None:
                        os.kill(pid, signal.SIGKILL)

                    what = f"kill -9 of the {role}'s worker"
                    watch_failure(bench, way, running, what, kill)
    finally:
        place.close()


def watch_failure(
    bench: Bench, way: Way, running: Running, what: str, strike: Callable[[], None]
) -> None:
    """How long until a new visitor is answered, and whether one who was there goes on."""
    where = running.endpoints[0]
    key = {"a": "cut", "s": "server", "c": "client"}[what.removeprefix("kill -9 of the ")[0]]
    with socket.create_connection(where, timeout=ANSWER_SECONDS) as there:
        there.sendall(b"e1")
        if there.recv(1) != b"1":
            raise BenchError("the visitor before the failure was sent away")
        strike()
        begin = time.monotonic()
        with suppress(OSError):
            there.sendall(b"2")
        survived = 0.0
        deadline = begin + ANSWER_SECONDS
        wait_for(lambda: is_answered(where), ANSWER_SECONDS, f"an answer after {what}")
        new = time.monotonic() - begin
        there.settimeout(max(0.1, deadline - time.monotonic()))
        with suppress(OSError):
            survived = 100.0 if there.recv(1) == b"2" else 0.0
    add = bench.results.add
    add(
        Metric(
            row=8,
            key=f"8.{key}.new",
            title=f"{what}: until a new visitor is answered",
            unit="ms",
            is_lower_better=True,
        ),
        way.key,
        new * 1000,
    )
    title = f"{what}: visitors who were there and go on"
    add(Metric(row=8, key=f"8.{key}.survived", title=title, unit="%"), way.key, survived)


def is_answered(where: Endpoint) -> bool:
    """Visit once."""
    try:
        visit(where)
    except (OSError, BenchError):
        pause(RETRY_SECONDS)
        return False
    return True


# Start-up.


def row_start(bench: Bench) -> None:
    """Row 9."""
    for way in bench.chosen_few(*MANY):
        for count in bench.effort.starts:
            bench.say(f"start-up, {way.name}, {count} tunnels")
            bench.attempt(
                way,
                f"start with {count} tunnels",
                measure_start,
                count,
            )


def measure_start(bench: Bench, way: Way, count: int) -> None:
    """From nothing until a visitor of each tunnel was answered."""
    targets = [bench.target("target")] * count
    begin = time.monotonic()
    with started(way, Place(bench.lab), targets) as running:
        for where in running.endpoints:
            wait_for(lambda where=where: is_answered(where), ANSWER_SECONDS, "an answer")  # type: ignore[misc]
        seconds = time.monotonic() - begin
    metric = Metric(
        row=9,
        key=f"9.start{count}",
        title=f"both sides started, {count} tunnel{'s' * (count > 1)} answered",
        unit="s",
        is_lower_better=True,
    )
    bench.results.add(metric, way.key, seconds)
