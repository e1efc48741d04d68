"""Rows 1, 2, 3 and 6: requests, connections, bulk, and the CPU time they take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmark.results import Metric
from benchmark.tools import bulk, cpu_seconds, requests

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmark.bench import Bench
    from benchmark.ways import Running, Way

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
CPU_CONNECTIONS = 32
"""CPU time is taken beside the requests of so many visitors, and beside one download."""
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
    """Row 6: taken beside rows 1 to 3, so only what those have not measured is left."""
    for row, ways in ((1, bench.chosen(*PLAIN[1:])), (3, bench.chosen(*ENCRYPTED))):
        for way in ways:
            if bench.results.median("6.requests.server", way.key) is None:
                bench.say(f"CPU time, {way.name}")
                bench.attempt(way, "CPU time", measure_keep_alive, row, CPU_CONNECTIONS)
                metric = bulk_metric(row + (row == 1), "down", 1)
                bench.attempt(way, "CPU time", measure_stream, metric)


def measure_requests(bench: Bench, row: int, ways: Sequence[Way]) -> None:
    """Keep-alive and new connections."""
    for connections in bench.effort.connections:
        what = f"{connections} keep-alive connection{'s' * (connections > 1)}"
        bench.interleave(ways, what, measure_keep_alive, row, connections)
    bench.interleave(ways, "new connections", measure_new, row)


def measure_keep_alive(bench: Bench, way: Way, row: int, connections: int) -> None:
    """One run of wrk."""
    running = bench.up(way)
    before = used(running)
    seen = requests(running.endpoints[0], connections, bench.effort.seconds)
    if connections == CPU_CONNECTIONS:
        add_cpu(bench, way, "requests", before, used(running), seen.count / 1e5)
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
            metric = bulk_metric(row, direction, streams)
            bench.interleave(ways, metric.title, measure_stream, metric)


def bulk_metric(row: int, direction: str, streams: int) -> Metric:
    """What one run of iperf3 is for."""
    title = f"bulk {direction}, {streams} stream{'s' * (streams > 1)}"
    return Metric(row=row, key=f"{row}.{direction}.p{streams}", title=title, unit="Gbit/s")


def measure_stream(bench: Bench, way: Way, metric: Metric) -> None:
    """One run of iperf3."""
    _row, direction, streams = metric.key.split(".")
    running = bench.up(way)
    before = used(running)
    seen = bulk(
        running.endpoints[1],
        down=direction == "down",
        streams=int(streams[1:]),
        seconds=bench.effort.seconds,
        total_bytes=bench.effort.bulk_bytes,
    )
    if (direction, streams) == ("down", "p1"):
        add_cpu(bench, way, "bulk", before, used(running), seen.bytes_moved / 1e9)
    bench.results.add(metric, way.key, seen.bits_per_second / 1e9)


def used(running: Running) -> dict[str, float]:
    """CPU seconds of both sides until now."""
    return {"server": cpu_seconds(running.server), "client": cpu_seconds(running.client)}


def add_cpu(
    bench: Bench,
    way: Way,
    name: str,
    before: Mapping[str, float],
    after: Mapping[str, float],
    amount: float,
) -> None:
    """Take what both sides have used for so many ``requests`` or ``bulk``."""
    if way.key == "direct":
        return
    what = {"requests": "100,000 requests", "bulk": "GB down"}[name]
    for side in ("server", "client"):
        metric = Metric(
            row=6,
            key=f"6.{name}.{side}",
            title=f"CPU seconds for {what}, {side}",
            unit="s",
            is_lower_better=True,
        )
        bench.results.add(metric, way.key, (after[side] - before[side]) / amount)
