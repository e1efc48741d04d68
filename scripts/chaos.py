"""Workers that die under load, hundreds of them; started by scripts/chaos.

The visitors are those of ``tests/support/storm.py``; the tests run the same ones for seconds.
"""

from __future__ import annotations

import argparse
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil

from chaos_others import idle, make_storm, restarts, suspend
from tests.support.instants import LOOP, Instant, functions_of
from tests.support.storm import SIDES, Blow, Storm, pause

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

HOWS: Final = {"KILL": signal.SIGKILL, "SEGV": signal.SIGSEGV, "ABRT": signal.SIGABRT,
               "STOP": signal.SIGSTOP, "LOOP": LOOP}  # fmt: skip
STALL_SECONDS: Final = {"KILL": 0.5, "SEGV": 0.5, "ABRT": 0.5, "STOP": 3.5, "LOOP": 3.5}
"""What 99 of 100 visitors may be stalled at most; a hang is seen after 2 s."""
SERVED_SECONDS: Final = 0.1
"""From a death that was seen to the next worker that serves, of 99 in 100."""
SOUND_SECONDS: Final = 1.2
"""Between the deaths of one side: who lived for a second has a successor at once."""
BOTH_PART: Final = 0.15
"""Of the blows: both sides."""
MASTER_GROWTH_BYTES: Final = 1 << 20
WARM_PART: Final = 0.2
"""Of the blows: what a master's memory grows in it is warming up."""

LOOPED: Final = ("protocol.stream:Stream.fill", "relay.relay:Relay.on_events",
                 "protocol.receiver:Receiver.receive", "relay.link:Link.end_turn",
                 "protocol.sender:Sender.data_to_send", "net.loop:Loop.turn")  # fmt: skip
"""Where a worker loops for ever; any will do."""

WORKER_MODULES: Final = (
    "protocol.stream", "protocol.sender", "protocol.receiver", "protocol.session",
    "protocol.links", "protocol.rebuild", "protocol.arena", "protocol.table",
    "protocol.windows", "protocol.handshake", "relay.relay", "relay.link", "relay.verdict",
    "relay.memory", "workers.base", "workers.server", "workers.client", "workers.successor",
    "workers.inherit", "workers.arrivals", "workers.claims", "workers.dial", "workers.owner",
    "workers.visitor_relay", "workers.visitors", "workers.host", "net.loop", "net.sockopt",
    "net.tls", "net.tcp_counters",
)  # fmt: skip
"""Where a worker may be when it dies."""


class Books:
    """What happened, and how long it took."""

    def __init__(self, storm: Storm, report_seconds: float) -> None:
        self._storm = storm
        self._report = report_seconds
        self._begin = self._told = time.monotonic()
        self.stalls: defaultdict[str, list[float]] = defaultdict(list)
        self.worst: defaultdict[str, list[float]] = defaultdict(list)
        self.served: defaultdict[str, list[float]] = defaultdict(list)
        self.deaths: Counter[str] = Counter()
        self.warm: list[int] = []

    def note(self, kind: str, blow: Blow) -> list[str]:
        """Enter one; now and then say how it goes. What is wrong by now."""
        self.stalls[kind] += blow.stalls
        self.worst[kind].append(blow.stall)
        self.served[kind] += blow.served
        self.deaths[kind] += len(blow.served)
        wrong = self._storm.wrong()
        if wrong or time.monotonic() - self._told > self._report:
            self._told = time.monotonic()
            count = self._storm.count()
            print(
                f"{self._told - self._begin:6.0f} s  {sum(self.deaths.values()):>5} deaths  "
                f"{count['visitors']:>7} visitors  {count['bytes'] / 1e9:>6.1f} GB  "
                f"last: {blow.what}, stall {blow.stall:.3f} s",
                flush=True,
            )
        return [f"{line} (after {blow.what})" for line in wrong]

    def look(self) -> list[int]:
        """Private memory of the masters."""
        return [psutil.Process(one.pid).memory_full_info().uss for one in self._storm.masters]

    def summary(self, *, judged: bool) -> list[str]:
        """Print the distributions; return the promises that were broken."""
        late = []
        print(f"{'':<22}{'count':>7}{'p50':>8}{'p90':>8}{'p99':>8}{'max':>8}  seconds")
        for kind in self.deaths:
            stall = _row(f"{kind}: each stream", self.stalls[kind])
            _row(f"{kind}: longest of all", self.worst[kind])
            served = _row(f"{kind}: next served", self.served[kind])
            if judged and stall > STALL_SECONDS[kind]:
                late.append(f"{kind}: streams stood still for {stall:.2f} s (p99)")
            if judged and served > SERVED_SECONDS:
                late.append(f"{kind}: the next worker served after {served:.3f} s (p99)")
        return late

    def grown(self) -> list[str]:
        """Whether a master needs more memory than when it was warm."""
        if not self.warm:
            return []
        more = [now - before for now, before in zip(self.look(), self.warm, strict=True)]
        print(
            f"masters' memory since warm: {', '.join(f'{one / 1024:+.0f} KiB' for one in more)}"
        )
        return [f"a master grew by {one} bytes" for one in more if one > MASTER_GROWTH_BYTES]


def _row(name: str, samples: list[float]) -> float:
    """Print one distribution; return its 99th percentile."""
    if len(samples) < 2:
        samples = samples * 2 or [0.0, 0.0]
    cuts = statistics.quantiles(samples, n=100, method="inclusive")
    print(
        f"{name:<22}{len(samples):>7}{cuts[49]:>8.3f}{cuts[89]:>8.3f}{cuts[98]:>8.3f}"
        f"{max(samples):>8.3f}",
        flush=True,
    )
    return cuts[98]


def in_a_storm(
    options: argparse.Namespace,
    work: Callable[[argparse.Namespace, Storm, Books], Iterable[list[str]]],
    *,
    judged: bool,
) -> int:
    """Run blows under load until all are through or one did harm; return the exit code."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tt-chaos-")))
        storm = make_storm(stack, folder, options)
        for master in storm.masters:
            master.allowed += ["Fatal Python error", "6 crashes in a row"]
        books = Books(storm, options.report)
        storm.begin()
        wrong: list[str] = []
        try:
            for wrong in work(options, storm, books):
                if wrong:
                    break
            wrong = wrong + storm.end() + storm.left_over() + books.grown()
        except AssertionError as error:
            wrong.append(f"it did not recover: {error}"[:3000])
        except SystemExit:
            wrong.append("it was told to end before it was through")
        wrong += books.summary(judged=judged)
        for line in dict.fromkeys(wrong):
            print(f"WRONG: {line}")
    print("chaos: failed" if wrong else "chaos: all was well", flush=True)
    return 1 if wrong else 0


def kills(options: argparse.Namespace, storm: Storm, books: Books) -> Iterable[list[str]]:
    """Kill workers, each kind of death so many times on each side."""
    chance = random.Random(options.seed)
    hows = options.how.split(",")
    left = {(how, side): options.kills for how in hows for side in SIDES}
    total = sum(left.values())
    born = dict.fromkeys(SIDES, time.monotonic())
    while left:
        how, side = chance.choice(list(left))
        sides = [side]
        if how != "LOOP" and chance.random() < BOTH_PART:
            sides = chance.sample(SIDES, 2)
        sound = max(born[one] for one in sides) + options.lives * chance.uniform(1, 1.3)
        pause(max(0.0, sound - time.monotonic()))
        if how == "LOOP":
            blow = storm.strike(
                side, Instant.within(chance.choice(LOOPED), chance, LOOP, 3000), 5
            )
            if blow is None:
                continue
        else:
            lag = chance.choice([0.0, chance.uniform(0.0, 0.1)])
            blow = storm.kill(sides, HOWS[how], lag)
        for one in sides:
            born[one] = time.monotonic()
            if (how, one) in left:
                left[how, one] -= 1
                if not left[how, one]:
                    del left[how, one]
        yield books.note(how, blow)
        if not books.warm and sum(left.values()) < total * (1 - WARM_PART):
            books.warm = books.look()


def instants(options: argparse.Namespace, storm: Storm, books: Books) -> Iterable[list[str]]:
    """Have workers die at instructions chosen by chance, in functions that they run."""
    chance = random.Random(options.seed)
    functions = [one for one in functions_of(WORKER_MODULES) if options.function in one]
    assert functions, f"no function is called {options.function!r}"
    idle_functions: Counter[tuple[str, str]] = Counter()
    met: Counter[str] = Counter()
    tried = 0
    while sum(met.values()) < options.count and tried < 20 * options.count:
        tried += 1
        function, side = chance.choice(functions), chance.choice(SIDES)
        if idle_functions[function, side] > 1:
            continue  # this side, or this load, does not run it
        how = chance.choices(list(HOWS), [70, 12, 12, 3, 3])[0]
        hits = chance.choice([1, 1, 3, 30])
        blow = storm.strike(side, Instant.within(function, chance, HOWS[how], hits), 0.7)
        if blow is None:
            idle_functions[function, side] += 1
            wrong = storm.wrong()
            if wrong:
                yield wrong
            continue
        met[function] += 1
        yield books.note(how, blow)
        if not books.warm and sum(met.values()) > options.count * WARM_PART:
            books.warm = books.look()
    print(f"instants: {sum(met.values())} were met in {len(met)} functions")


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="scripts/chaos")
    commands = parser.add_subparsers(dest="what", required=True)
    for name in ("kills", "instants", "restarts", "idle", "suspend"):
        command = commands.add_parser(name)
        command.add_argument("--seed", type=int, default=1)
        command.add_argument("--busy", type=int, default=50, help="streams")
        command.add_argument("--report", type=float, default=10.0, help="seconds")
        command.add_argument("--tls", action="store_true", help="on the link")
        command.add_argument("--ipv6", action="store_true", help="visitors, link and target")
        if name == "kills":
            command.add_argument("--kills", type=int, default=100, help="of a kind, each side")
            command.add_argument("--how", default=",".join(HOWS))
            command.add_argument("--lives", type=float, default=SOUND_SECONDS, help="seconds")
        elif name == "instants":
            command.add_argument("--count", type=int, default=300)
            command.add_argument("--function", default="", help="only those with this in it")
        elif name == "restarts":
            command.add_argument("--count", type=int, default=20)
        elif name == "idle":
            command.add_argument("--visitors", type=int, default=1000)
        else:
            command.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    # What is told to end ends in order: all that was started goes with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    print(f"chaos: {' '.join(sys.argv[1:])} (seed {options.seed})", flush=True)
    if options.what == "kills":
        return in_a_storm(options, kills, judged=options.lives >= SOUND_SECONDS)
    if options.what == "instants":
        return in_a_storm(options, instants, judged=False)
    others = {"restarts": restarts, "idle": idle, "suspend": suspend}
    return others[options.what](options)


if __name__ == "__main__":
    sys.exit(main())
