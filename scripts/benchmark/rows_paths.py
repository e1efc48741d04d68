"""Rows 4 and 5: long paths, lossy paths, and paths that others fill."""

from __future__ import annotations

import statistics
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from benchmark.lab import ROOT, BenchError, pause, wait_for
from benchmark.places import (
    PathSpec,
    Place,
    RelayPlace,
    congestion_controls,
    missing_packets,
    packets,
)
from benchmark.results import Metric
from benchmark.tools import bulk, start_iperf3, start_target

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmark.bench import Bench
    from benchmark.lab import Program
    from benchmark.places import Endpoint
    from benchmark.ways import Running, Way

__all__ = ["row_paths", "row_quiet"]

LONG = (
    "direct",
    "ours-plain",
    "ours",
    "mux",
    "ssh-best",
    "frp-best",
    "rathole",
    "rathole-tls",
    "chisel",
)
BOTH_DIRECTIONS = ("direct", "ours", "ours-plain")
LOSSY = ("direct", "ours", "ssh-best", "frp", "rathole", "bore", "chisel")
BUSY = ("direct", "ours", "mux", "ssh", "frp", "rathole", "bore", "chisel")

LONG_MBIT = 1000.0
LONG_QUEUE_BYTES = 2_500_000
"""20 ms of that rate."""
LOSSY_PATH = {"rtt_ms": 40.0, "mbit": 100.0, "queue_bytes": 500_000}
"""One round trip's worth of queue."""
LOSSY_EXTRA_SECONDS = 2
"""Losses come by chance: longer is steadier."""
BUSY_RTT_MS = 20.0
BUSY_MBIT = 100.0
BUSY_STREAMS = 4
IDLE_SECONDS = 1.5
"""How long the quiet visitor is watched where nobody else is."""
PROBE_EXTRA_SECONDS = 40.0


@contextmanager
def started(way: Way, place: Place, target: int) -> Iterator[Running]:
    """A way at a place, for the time of a block."""
    running = way.start(place.lab, place, [target])
    try:
        yield running
    finally:
        running.stop()


def row_paths(bench: Bench) -> None:
    """Row 4."""
    for rtt in bench.effort.rtts_ms:
        bench.say(f"bulk over {rtt} ms and {LONG_MBIT:g} Mbit/s")
        for way in bench.chosen_few(*LONG):
            bench.attempt(way, f"{rtt} ms", measure_long, rtt)
    if not bench.effort.losses:
        return
    if (lacking := missing_packets()) is not None:
        bench.results.note(f"Paths that lose packets are left out: {lacking}.")
        return
    there = congestion_controls()
    for congestion in ("cubic", "bbr"):
        if congestion not in there:
            bench.results.note(f"{congestion} is not in this kernel, and left out.")
            continue
        for loss in bench.effort.losses:
            bench.say(f"bulk with {loss:g} % loss, {congestion}")
            measure_losses(bench, loss, congestion)


def measure_long(bench: Bench, way: Way, rtt: int) -> None:
    """Down and up over a relay with a delay."""
    place = RelayPlace(
        bench.lab, PathSpec(rtt_ms=rtt, mbit=LONG_MBIT, queue_bytes=LONG_QUEUE_BYTES)
    )
    try:
        with started(way, place, bench.target("iperf3")) as running:
            for direction in bench.effort.directions:
                if direction == "up" and way.key not in BOTH_DIRECTIONS:
                    continue
                seen = bulk(
                    running.endpoints[0],
                    down=direction == "down",
                    seconds=bench.effort.path_seconds,
                    omit=bench.effort.path_omit if rtt else 0,
                )
                metric = Metric(
                    row=4,
                    key=f"4.rtt{rtt}.{direction}",
                    title=f"bulk {direction}, {rtt} ms round trip, 1 Gbit/s",
                    unit="Mbit/s",
                )
                bench.results.add(metric, way.key, seen.bits_per_second / 1e6)
    finally:
        place.close()


def measure_losses(bench: Bench, loss: float, congestion: str) -> None:
    """Down over packets, for all ways on the same path."""
    path = PathSpec(loss_percent=loss, **LOSSY_PATH)  # type: ignore[arg-type]
    metric = Metric(
        row=4,
        key=f"4.loss{loss:g}.{congestion}",
        title=f"bulk down, 40 ms, 100 Mbit/s, {loss:g} % loss, {congestion}",
        unit="Mbit/s",
    )
    with packets(bench.lab, path, congestion) as place:
        iperf3, port = start_iperf3(bench.lab, place)

        for way in bench.chosen_few(*LOSSY):
            bench.attempt(way, metric.title, measure_lossy, metric, place, port)
        iperf3.stop()


def measure_lossy(bench: Bench, way: Way, metric: Metric, place: Place, port: int) -> None:
    """One way on that path."""
    with started(way, place, port) as running:
        seen = bulk(
            running.endpoints[0],
            down=True,
            seconds=bench.effort.path_seconds + LOSSY_EXTRA_SECONDS,
            omit=1,
            prefix=place.server_prefix,
        )
    bench.results.add(metric, way.key, seen.bits_per_second / 1e6)


# A quiet visitor.


def row_quiet(bench: Bench) -> None:
    """Row 5."""
    lacking = missing_packets()
    if lacking is not None:
        bench.results.note(
            f"Row 5 ran over a relay, where a queue makes senders wait and loses nothing: "
            f"for packets, it {lacking}."
        )
    for queue in bench.effort.queues:
        path = PathSpec(rtt_ms=BUSY_RTT_MS, mbit=BUSY_MBIT, queue_bytes=queue)
        bench.say(f"a quiet visitor, queue of {queue:,} bytes")
        with ExitStack() as stack:
            place: Place
            if lacking is None:
                control = "cubic" if "cubic" in congestion_controls() else "reno"
                place = stack.enter_context(packets(bench.lab, path, control))
                target, port = start_target(bench.lab, place)
                stack.callback(target.stop)
            else:
                place = RelayPlace(bench.lab, path)
                stack.callback(place.close)
                target, port = start_target(bench.lab, Place(bench.lab))
                stack.callback(target.stop)
            for way in bench.chosen_few(*BUSY):
                what = f"queue of {queue:,} bytes"
                bench.attempt(way, what, measure_quiet, place, target, port, queue)


def measure_quiet(
    bench: Bench, way: Way, place: Place, target: Program, port: int, queue: int
) -> None:
    """Idle, beside one that never reads, and beside four busy ones."""
    name = f"{queue / 1e6:g} MB queue"
    with started(way, place, port) as running:
        where = running.endpoints[0]
        watched = min(IDLE_SECONDS, bench.effort.probe_seconds)
        trips = probe(place, where, watched)
        quiet(bench, f"5.q{queue}.idle", f"{name}, nobody else", way, trips)
        with busy(place, where, "--stalled", "1"):
            pause(min(0.5, bench.effort.warm_seconds))
            trips = probe(place, where, watched)
        quiet(bench, f"5.q{queue}.stalled", f"{name}, one that never reads", way, trips)
        for direction in bench.effort.directions:
            words = (f"--{direction}", str(BUSY_STREAMS), "--stalled", "1")
            with busy(place, where, *words) as load:
                pause(bench.effort.warm_seconds)
                receiver = load if direction == "down" else target
                before = moved(receiver)
                trips = probe(place, where, bench.effort.probe_seconds)
                after = moved(receiver)
            rate = (after[0] - before[0]) * 8e-6 / (after[1] - before[1])
            what = f"{name}, {BUSY_STREAMS} {direction}loads"
            quiet(bench, f"5.q{queue}.{direction}", what, way, trips)
            metric = Metric(
                row=5,
                key=f"5.q{queue}.{direction}.rate",
                title=f"rate of those {BUSY_STREAMS} {direction}loads, {name}",
                unit="Mbit/s",
                is_judged=False,
            )
            bench.results.add(metric, way.key, rate)


def quiet(bench: Bench, key: str, title: str, way: Way, trips: list[float]) -> None:
    """Take the median and the 99th percentile of round trips in milliseconds."""
    ranked = sorted(trips)
    found = {"p50": statistics.median(ranked), "p99": ranked[int(len(ranked) * 0.99)]}
    for name, value in found.items():
        metric = Metric(
            row=5,
            key=f"{key}.{name}",
            title=f"echo {name}, {title}",
            unit="ms",
            is_lower_better=True,
        )
        bench.results.add(metric, way.key, value)


def probe(place: Place, where: Endpoint, seconds: float) -> list[float]:
    """Watch a quiet visitor; its round trips in milliseconds."""
    words = [f"{where[0]}:{where[1]}", "--seconds", str(seconds)]
    command = [*place.server_prefix, sys.executable, "-m", "benchmark.probe", *words]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT / "scripts",
        timeout=seconds + PROBE_EXTRA_SECONDS,
        check=False,
    )
    if done.returncode or not done.stdout.strip():
        raise BenchError(f"no echo: {done.stderr.strip()[-200:]}")
    return [float(word) for word in done.stdout.split()]


@contextmanager
def busy(place: Place, where: Endpoint, *words: str) -> Iterator[Program]:
    """Busy visitors for the time of a block."""
    command = (f"{where[0]}:{where[1]}", *words)
    load = place.lab.python("load", *command, prefix=place.server_prefix)
    try:
        yield load
    finally:
        load.stop()


def moved(program: Program) -> tuple[float, float]:
    """Bytes that arrived until now, and the time, as a load or a target says it."""
    lines = program.log.read_text().count("\n")
    program.tell("?")

    def answer() -> str:
        program.check()
        text = program.log.read_text()
        return text.splitlines()[-1] if text.count("\n") > lines else ""

    size, now = map(float, wait_for(answer, 10, "it is said how much arrived").split())
    return size, now
