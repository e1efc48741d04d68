"""Rows 1, 2, 3 and 6: requests, connections, bulk, and the CPU time they take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmark.results import Metric
from benchmark.tools import bulk, cpu_seconds, requests

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmark.bench import Bench
    from benchmark.ways import Way

__all__ = ["row_bulk", "row_cpu", "row_encrypted", "row_requests"]

PLAIN = ("direct", "relays", "mux", "ours-plain", "ssh", "frp-plain", "rathole", "bore")
ENCRYPTED = (
    "ours",
    "ssh",
    "ssh-best",
    "frp",
    "frp-best",
    "rathole-noise",
    "rathole-tls",
    "chisel",
)
NEW_CONNECTIONS = 32
"""Visitors at the same time where each request has a connection of its own."""


def row_requests(bench: Bench) -> None:
    """Row 1."""
    measure_requests(bench, 1, bench.chosen(*PLAIN))


def row_bulk(bench: Bench) -> None:
    """Row 2."""
    measure_bulk(bench, 2, bench.chosen(*PLAIN))


def row_encrypted(bench: Bench) -> None:
    """Row 3."""
    ways = bench.chosen(*ENCRYPTED)
    measure_requests(bench, 3, ways)
    measure_bulk(bench, 3, ways)


def row_cpu(bench: Bench) -> None:
    """Row 6."""
    keys = dict.fromkeys((*PLAIN[1:], *ENCRYPTED))
    bench.say("CPU time")
    for way in bench.chosen(*keys):
        bench.attempt(way, "CPU time", measure_cpu)


def measure_requests(bench: Bench, row: int, ways: Sequence[Way]) -> None:
    """Keep-alive and new connections."""
    for connections in bench.effort.connections:
        what = f"{connections} keep-alive connection{'s' * (connections > 1)}"
        bench.interleave(ways, what, measure_keep_alive, row, connections)
    bench.interleave(ways, "new connections", measure_new, row)


def measure_keep_alive(bench: Bench, way: Way, row: int, connections: int) -> None:
    """One run of wrk."""
    seen = requests(bench.up(way).endpoints[0], connections, bench.effort.seconds)
    if seen.errors:
        bench.results.note(f"{way.name}: {seen.errors} errors with {connections} connections")
    of = f"{connections} keep-alive connection{'s' * (connections > 1)}"
    key = f"{row}.c{connections}"
    add = bench.results.add
    rate = Metric(row=row, key=f"{key}.rate", title=f"requests/s, {of}", unit="1/s")
    add(rate, way.key, seen.rate)
    for name, value in (("p50", seen.p50_ms), ("p99", seen.p99_ms)):
        latency = Metric(
            row=row,
            key=f"{key}.{name}",
            title=f"latency {name}, {of}",
            unit="ms",
            is_lower_better=True,
        )
        add(latency, way.key, value)


def measure_new(bench: Bench, way: Way, row: int) -> None:
    """One run of wrk with a connection for each request."""
    where = bench.up(way).endpoints[0]
    seen = requests(where, NEW_CONNECTIONS, bench.effort.seconds, keep_alive=False)
    metric = Metric(row=row, key=f"{row}.new.rate", title="new connections/s", unit="1/s")
    bench.results.add(metric, way.key, seen.rate)


def measure_bulk(bench: Bench, row: int, ways: Sequence[Way]) -> None:
    """Both ways, one and several streams."""
    for streams in bench.effort.streams:
        for direction in ("down", "up"):
            plural = "s" * (streams > 1)
            title = f"bulk {direction}, {streams} stream{plural}"
            metric = Metric(
                row=row, key=f"{row}.{direction}.p{streams}", title=title, unit="Gbit/s"
            )
            bench.interleave(ways, title, measure_stream, metric)


def measure_stream(bench: Bench, way: Way, metric: Metric) -> None:
    """One run of iperf3."""
    _row, direction, streams = metric.key.split(".")
    seen = bulk(
        bench.up(way).endpoints[1],
        down=direction == "down",
        streams=int(streams[1:]),
        seconds=bench.effort.seconds,
        total_bytes=bench.effort.bulk_bytes,
    )
    bench.results.add(metric, way.key, seen.bits_per_second / 1e9)


def measure_cpu(bench: Bench, way: Way) -> None:
    """CPU time of both sides, for requests and for bulk."""
    running = bench.up(way)
    sides = {"server": running.server, "client": running.client}
    before = {side: cpu_seconds(programs) for side, programs in sides.items()}
    asked = requests(running.endpoints[0], 32, bench.effort.seconds)
    between = {side: cpu_seconds(programs) for side, programs in sides.items()}
    moved = bulk(
        running.endpoints[1],
        down=True,
        seconds=bench.effort.seconds,
        total_bytes=bench.effort.bulk_bytes,
    )
    for side, programs in sides.items():
        after = cpu_seconds(programs)
        for name, title, used, amount in (
            ("requests", "100,000 requests", between[side] - before[side], asked.count / 1e5),
            ("bulk", "GB down", after - between[side], moved.bytes_moved / 1e9),
        ):
            metric = Metric(
                row=6,
                key=f"6.{name}.{side}",
                title=f"CPU seconds for {title}, {side}",
                unit="s",
                is_lower_better=True,
            )
            bench.results.add(metric, way.key, used / amount)
