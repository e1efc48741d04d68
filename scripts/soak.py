"""Hours of visitors, with and without cuts; started by scripts/soak.

Every byte of every visitor is checked by position (``tests/support/visitors.py``). What must
not happen in the whole time: a visitor that ends otherwise than it should, a link that goes
without having been cut, memory that grows, a descriptor that stays.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from soak_books import MIB, Books, grown
from soak_crowd import CROWD_TUNNELS, SMALL_TUNNELS, crowd, small
from soak_recover import KINDS, recover
from tests.support.apps import Apps
from tests.support.processes import TunnelPair
from tests.support.visitors import Load
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from tests.support.chaos import Chaos
    from tests.support.visitors import GroupStats

WARM_PART = 0.2
"""Of the whole time: what grows in it is warming up."""
SETTLE_SECONDS = 20.0
"""From the end of the visitors until all they had is given back."""


class Soak:
    """Two masters, their tunnels, visitors for each, and the books."""

    def __init__(self, stack: ExitStack, folder: Path, options: argparse.Namespace) -> None:
        apps = stack.enter_context(Apps())
        self.load = stack.enter_context(Load())
        kinds = [("echo", "pattern")[number % 2] for number in range(options.tunnels)]
        targets = {kind: apps.add(kind) for kind in set(kinds)}
        self.pair = stack.enter_context(
            TunnelPair(
                [targets[kind] for kind in kinds],
                folder,
                chaos=options.what == "cuts",
                common={"hold": 60},
            )
        )
        self.names = dict(zip(self.pair.ports, kinds, strict=True))
        self.idle = self.pair.ports[-1] if options.what == "steady" else 0
        self.books = Books(self.pair)
        self.descriptors = self.books.count_descriptors()
        self.cuts: Counter[str] = Counter()
        self.longest = 0.0

    def begin(self) -> None:
        """Send the visitors; with steady links the last tunnel is left idle."""
        for number, (port, kind) in enumerate(self.names.items()):
            if port == self.idle:
                continue
            seed = 1 + 1000 * number
            if kind == "echo":
                self.load.probe(str(port), port, count=3, seed=seed, size=4096, pause=1.0)
            else:
                self.load.transfer(
                    str(port),
                    port,
                    count=2,
                    seed=seed,
                    up=300_000,
                    down=300_000,
                    repeat=True,
                    pause=5.0,
                )

    def stats(self) -> list[GroupStats]:
        """How all the visitors are doing."""
        return [self.load.stats(str(port)) for port in self.names if port != self.idle]

    def tell(self, minutes: float) -> list[str]:
        """Print how it goes; return what is wrong."""
        stats = self.stats()
        gap = max(one.max_gap for one in stats)
        self.longest = max(self.longest, gap)
        for port in self.names:
            if port != self.idle:
                self.load.mark(str(port))
        moved = sum(one.up + one.down for one in stats)
        bad = sum(one.bad for one in stats)
        print(
            f"{minutes:7.1f} min  {sum(one.rounds for one in stats):>9} answers  "
            f"{moved / 1e6:>9.0f} MB  {sum(one.started for one in stats):>6} visitors  "
            f"{bad} bad  {sum(self.cuts.values()):>5} cuts  "
            f"{self.books.links():>5} links  "
            f"{self.books.count('resumes_total'):>5} resumes  longest stall {gap:.2f} s  "
            f"{sum(self.books.measure_memory()) / MIB:.0f} MiB",
            flush=True,
        )
        return [error for one in stats for error in one.errors]

    def finish(self) -> list[str]:
        """End the visitors; return what they leave behind."""
        for port in self.names:
            if port != self.idle:
                self.load.end(str(port))
        for relay in self.pair.relays.values():
            relay.heal()
        try:
            wait_until(
                lambda: all(
                    now <= before
                    for now, before in zip(
                        self.books.count_descriptors(), self.descriptors, strict=True
                    )
                ),
                SETTLE_SECONDS,
            )
        except AssertionError:
            return [f"descriptors: {self.descriptors}, then {self.books.count_descriptors()}"]
        return []


class Cutter:
    """Cuts links now and then, each in its own way, and heals what has to be healed."""

    def __init__(self, soak: Soak, every: float, chance: random.Random) -> None:
        self._soak, self._every, self._chance = soak, every, chance
        begin = time.monotonic()
        self._due = [(begin + chance.uniform(1, every), port, "") for port in soak.pair.relays]

    def turn(self) -> None:
        """Do what is due."""
        now = time.monotonic()
        for entry in [one for one in self._due if one[0] <= now]:
            self._due.remove(entry)
            _when, port, what = entry
            relay = self._soak.pair.relays[port]
            if what == "heal":
                relay.heal()
                continue
            how = self._cut(relay)
            self._soak.cuts[how] += 1
            heals = self._chance.uniform(0.05, min(8.0, self._every / 3))
            self._due.append((now + heals, port, "heal"))
            self._due.append((now + self._every * self._chance.uniform(0.8, 1.2), port, ""))

    def _cut(self, relay: Chaos) -> str:
        how = self._chance.choice(["reset", "close", "half-open", "silence", "bytes", "stall"])
        if how == "reset":
            relay.reset()
        elif how == "close":
            relay.close()
        elif how == "half-open":
            relay.silence("existing")
        elif how == "silence":
            relay.silence()
        elif how == "bytes":  # in the next link too, perhaps inside SYNC and STATE
            relay.cut_after(self._chance.randrange(1, 3000), "both")
        else:
            relay.stall(self._chance.choice(["up", "down"]))
        return how


def soak(options: argparse.Namespace) -> int:
    """Run for as long as is asked; return the exit code."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tt-soak-")))
        run = Soak(stack, folder, options)
        cutter = Cutter(run, options.every, random.Random(options.seed))
        run.begin()
        begin = time.monotonic()
        seconds = options.minutes * 60
        told = begin
        warm: list[int] = []
        warm_at = 0.0
        wrong: list[str] = []
        while not wrong and (passed := time.monotonic() - begin) < seconds:
            cutter.turn()
            time.sleep(0.05)  # noqa: TID251 - it paces itself
            if not warm and passed > WARM_PART * seconds:
                warm, warm_at = run.books.measure_memory(), passed
            if time.monotonic() - told > options.report:
                told = time.monotonic()
                wrong = run.tell(passed / 60)
        wrong += run.tell((time.monotonic() - begin) / 60)
        if warm and not wrong:
            wrong += grown(warm, run.books.measure_memory(), time.monotonic() - begin - warm_at)
        if options.what == "steady" and (again := run.books.links()):
            wrong.append(f"{again} reconnects, and nobody cut a link")
        wrong += run.finish()
        summary(run, wrong)
    return 1 if wrong else 0


def summary(run: Soak, wrong: list[str]) -> None:
    """Say how it was."""
    print(f"cuts: {dict(run.cuts) or 'none'}; longest stall {run.longest:.2f} s")
    for line in wrong:
        print(f"WRONG: {line}")
    print("soak: failed" if wrong else "soak: all was well", flush=True)


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="scripts/soak")
    commands = parser.add_subparsers(dest="what", required=True)
    for name, tunnels in (("steady", 3), ("cuts", 50)):
        command = commands.add_parser(name)
        command.add_argument("--tunnels", type=int, default=tunnels)
        command.add_argument("--minutes", type=float, default=120.0)
        command.add_argument("--every", type=float, default=60.0, help="seconds between cuts")
        command.add_argument("--report", type=float, default=60.0, help="seconds")
        command.add_argument("--seed", type=int, default=1)
    command = commands.add_parser("recover")
    command.add_argument("--cuts", type=int, default=200, help="of each kind")
    command.add_argument("--tunnels", type=int, default=10, help="cut at the same time")
    command.add_argument("--kind", action="append", choices=list(KINDS), default=[])
    command.add_argument("--seed", type=int, default=1)
    for name, tunnels, minutes in (
        ("crowd", CROWD_TUNNELS, 10.0),
        ("small", SMALL_TUNNELS, 5.0),
    ):
        command = commands.add_parser(name)
        command.add_argument("--tunnels", type=int, default=tunnels)
        command.add_argument("--minutes", type=float, default=minutes)
        command.add_argument("--report", type=float, default=60.0, help="seconds")
    command.add_argument(
        "--config", type=orjson.loads, default={}, help="more of the server's, in JSON"
    )
    options = parser.parse_args()
    # What is told to end ends in order: all that was started goes with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    return {"recover": recover, "crowd": crowd, "small": small}.get(options.what, soak)(options)


if __name__ == "__main__":
    sys.exit(main())
