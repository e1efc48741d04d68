"""Options, order of the rows, and how a run ends."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.bench import FULL, QUICK, TINY, Bench
from benchmark.catalogue import OF_OUR_OWN, WAYS
from benchmark.goals import GATES, GOALS, judge
from benchmark.lab import ROOT, BenchError, Lab, find_program
from benchmark.machine import describe
from benchmark.peers import install_peers
from benchmark.report import publish, write
from benchmark.results import ROWS, Results
from benchmark.rows_life import row_failures, row_memory, row_start
from benchmark.rows_paths import row_paths, row_quiet
from benchmark.rows_speed import row_bulk, row_cpu, row_encrypted, row_requests

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmark.goals import Goal, Verdict
    from benchmark.ways import Way

__all__ = ["main"]

MEASURE: dict[int, Callable[[Bench], None]] = {
    1: row_requests,
    2: row_bulk,
    3: row_encrypted,
    6: row_cpu,
    4: row_paths,
    5: row_quiet,
    7: row_memory,
    8: row_failures,
    9: row_start,
}
"""In the order in which they are measured: what shares running ways stands together."""

SHARED = (1, 2, 3, 6)
"""Rows that share them."""

NEEDS = {"wrk": (1, 3, 6), "nginx": (1, 2, 3, 6), "iperf3": (1, 2, 3, 4, 6)}
"""Programs without which a row cannot be measured."""


def numbers(text: str) -> list[int]:
    """``1-3,5``."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    if not found or not set(found) <= set(ROWS):
        raise argparse.ArgumentTypeError(f"rows are 1 to {max(ROWS)}, such as 1-3,5")
    return found


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    rows = "\n".join(f"  {number}  {title}" for number, title in ROWS.items())
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Compare tunneltcp with other tunnels, on this machine.",
        epilog=f"rows:\n{rows}\n\nways: {', '.join(way.key for way in WAYS)}",
    )
    add = parser.add_argument
    add("--rows", type=numbers, default=list(ROWS), help="such as 1-3,5; all by default")
    add("--ways", help="keys, such as ours,ssh; all that are there by default")
    add("--quick", action="store_true", help="ours and the references alone, in a minute")
    add("--tiny", action="store_true", help=argparse.SUPPRESS)
    add("--rounds", type=int, help="of each pair, in rows 1 to 3 (3)")
    add("--seconds", type=int, help="of one measurement in rows 1 to 3 and 6 (1)")
    add(
        "--install-peers", action="store_true", help="first, by cargo and go, into .bench/peers"
    )
    add("--out", type=Path, default=ROOT / ".bench" / "last", help="folder of the figures")
    add("--publish", action="store_true", help="put them into docs/BENCHMARKS.md too")
    return parser.parse_args(words)


def choose(arguments: argparse.Namespace, results: Results) -> list[Way]:
    """The ways to measure; what is missing is noted."""
    wanted = [way.key for way in WAYS]
    if arguments.ways:
        wanted = arguments.ways.split(",")
        if unknown := set(wanted) - {way.key for way in WAYS}:
            raise BenchError(f"no way is called {', '.join(sorted(unknown))}")
    elif arguments.quick or arguments.tiny:
        wanted = list(OF_OUR_OWN)
    chosen = []
    for way in WAYS:
        if way.key not in wanted:
            continue
        if (lacking := way.missing()) is not None:
            results.note(f"{way.name} is left out: {lacking}.")
            sys.stderr.write(f"left out: {way.name}, {lacking}\n")
            continue
        chosen.append(way)
    return chosen


def measure(bench: Bench, rows: Sequence[int]) -> None:
    """All rows; one that fails is noted."""
    for row, work in MEASURE.items():
        if row not in rows:
            continue
        lacking = [name for name, of in NEEDS.items() if row in of and not find_program(name)]
        if lacking:
            bench.results.note(f"Row {row} is left out: {', '.join(lacking)} is not installed.")
            continue
        if row not in SHARED:
            bench.down()
        bench.say(f"row {row}: {ROWS[row]}")
        work(bench)
    bench.down()


def main(words: Sequence[str] | None = None) -> None:
    """Measure, write, and say what is to be said; exit 1 when a gate is broken."""
    arguments = parse(words)
    effort = TINY if arguments.tiny else QUICK if arguments.quick else FULL
    given = {name: getattr(arguments, name) for name in ("rounds", "seconds")}
    effort = dataclasses.replace(effort, **{k: v for k, v in given.items() if v})
    is_gated = arguments.quick or arguments.tiny
    results = Results()
    try:
        if arguments.install_peers:
            install_peers(lambda text: print(text, file=sys.stderr))
        ways = choose(arguments, results)
        machine = describe()
        goals = [one for one in (GATES if is_gated else GOALS) if one.rows <= {*arguments.rows}]
        with Lab() as lab:
            bench = Bench(lab, effort, results, ways)
            measure(bench, arguments.rows)
            verdicts = judge(results, goals)
            if is_gated:
                verdicts = judge_again(bench, goals, verdicts)
    except BenchError as error:
        sys.exit(f"bench: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    text = write(arguments.out, results, ways, verdicts, machine)
    if arguments.publish:
        publish(arguments.out, text)
    print(text)
    print(f"bench: {arguments.out}/table.md, results.json, pictures", file=sys.stderr)
    if is_gated:
        sys.exit(complain(verdicts))


def judge_again(bench: Bench, goals: Sequence[Goal], verdicts: list[Verdict]) -> list[Verdict]:
    """Measure once more what broke a gate: a busy moment of the machine is no regression."""
    broken = [goal for goal, one in zip(goals, verdicts, strict=True) if one.is_met is False]
    if not broken:
        return verdicts
    bench.say("a gate is broken: once more")
    again = dataclasses.replace(bench, results=Results())
    measure(again, sorted(set().union(*(goal.rows for goal in broken))))
    second = dict(zip(broken, judge(again.results, broken), strict=True))
    return [second.get(goal, one) for goal, one in zip(goals, verdicts, strict=True)]


def complain(verdicts: Sequence[Verdict]) -> int:
    """Say which gates are broken; the exit code."""
    broken = [one for one in verdicts if one.is_met is False]
    for one in broken:
        print(f"bench: gross regression: {one.text} is {one.figure}", file=sys.stderr)
    for one in verdicts:
        if one.is_met is None:
            print(f"bench: not measured: {one.text}", file=sys.stderr)
    return 1 if broken else 0
