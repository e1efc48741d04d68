"""One run: its settings, its ways, and what every row needs."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from benchmark.lab import BenchError, Lab
from benchmark.places import Place
from benchmark.tools import ask_once, start_iperf3, start_nginx, start_target

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmark.results import Results
    from benchmark.ways import Running, Way

__all__ = ["FULL", "QUICK", "TINY", "Bench", "Effort"]


MAX_NOTE_CHARACTERS = 300
"""Of a sentence about what went wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much is measured."""

    name: str
    rounds: int
    """Of each pair, in rows 1 to 3."""
    seconds: int
    """One measurement in rows 1 to 3 and 6."""
    connections: tuple[int, ...] = (1, 32, 256)
    streams: tuple[int, ...] = (1, 8)
    bulk_bytes: int = 0
    """Move so many instead of going on for ``seconds``; 0: do not."""
    rtts_ms: tuple[int, ...] = (0, 20, 100, 200)
    path_omit: int = 3
    """Seconds before the measurement of a path: windows grow."""
    path_seconds: int = 2
    losses: tuple[float, ...] = (0.5, 1.0)
    queues: tuple[int, ...] = (250_000, 5_000_000)
    probe_seconds: float = 4
    """How long a quiet visitor is watched."""
    warm_seconds: float = 2
    """Before that: the load fills the path."""
    tunnels: tuple[int, ...] = (1, 10, 50, 100)
    """Row 7."""
    visits: int = 100
    """Of each of those tunnels."""
    rest_seconds: float = 3
    idle: tuple[int, ...] = (1_000, 10_000)
    starts: tuple[int, ...] = (1, 50, 100)
    """Tunnels, row 9."""
    failures: int = 3
    """How often each is made, row 8."""
    directions: tuple[str, ...] = ("down", "up")
    few: tuple[str, ...] = ()
    """The ways of rows 4, 5, 7, 8 and 9; none means all."""


FULL = Effort(name="full", rounds=3, seconds=1)
QUICK = Effort(
    name="quick",
    rounds=1,
    seconds=1,
    connections=(32,),
    streams=(1,),
    rtts_ms=(100,),
    path_omit=1,
    path_seconds=1,
    losses=(),
    queues=(250_000,),
    probe_seconds=2,
    warm_seconds=1,
    tunnels=(1, 10),
    visits=20,
    rest_seconds=1,
    idle=(500,),
    starts=(1, 10),
    failures=1,
    directions=("down",),
    few=("direct", "mux", "ours"),
)
TINY = Effort(
    name="tiny",
    rounds=1,
    seconds=1,
    connections=(32,),
    streams=(1,),
    bulk_bytes=32 << 20,
    rtts_ms=(20,),
    path_omit=0,
    path_seconds=1,
    losses=(),
    queues=(250_000,),
    probe_seconds=0.5,
    warm_seconds=0.3,
    tunnels=(2,),
    visits=2,
    rest_seconds=0.1,
    idle=(50,),
    starts=(2,),
    failures=1,
    directions=("down",),
    few=("direct", "ours"),
)


@dataclass
class Bench:
    """What the rows share."""

    lab: Lab
    effort: Effort
    results: Results
    ways: Sequence[Way]
    """Those that are there."""
    begin: float = field(default_factory=time.monotonic)
    _up: dict[str, Running] = field(default_factory=dict)
    _targets: dict[str, int] = field(default_factory=dict)

    def say(self, text: str) -> None:
        """Progress, on the standard error."""
        sys.stderr.write(f"{time.monotonic() - self.begin:6.0f} s  {text}\n")
        sys.stderr.flush()

    def chosen(self, *keys: str) -> list[Way]:
        """Ways by key, in this order, without those that are not there."""
        return [way for key in keys for way in self.ways if way.key == key]

    def chosen_few(self, *keys: str) -> list[Way]:
        """The same for rows where each way is started anew; little effort means few ways."""
        few = self.effort.few
        return [way for way in self.chosen(*keys) if not few or way.key in few]

    def target(self, name: str) -> int:
        """The port of a target on loopback that stays for the whole run."""
        if name not in self._targets:
            start = {"nginx": start_nginx, "iperf3": start_iperf3, "target": start_target}[name]
            self._targets[name] = start(self.lab, Place(self.lab))[1]
        return self._targets[name]

    def up(self, way: Way) -> Running:
        """A way on loopback to nginx and to iperf3; it stays until :meth:`down`."""
        if way.key not in self._up:
            targets = [self.target("nginx"), self.target("iperf3")]
            running = self._up[way.key] = way.start(self.lab, Place(self.lab), targets)
            ask_once(running.endpoints[0])
        return self._up[way.key]

    def down(self) -> None:
        """End the ways that :meth:`up` has started."""
        for running in self._up.values():
            running.stop()
        self._up.clear()

    def attempt(
        self, way: Way, what: str, measure: Callable[..., None], *values: object
    ) -> None:
        """Measure ``way`` with some values; if it fails, that is noted and the run goes on."""
        try:
            measure(self, way, *values)
        except (BenchError, OSError, subprocess.SubprocessError) as error:
            text = f"{way.name}, {what}: {error}".splitlines()[0][:MAX_NOTE_CHARACTERS]
            self.say(text)
            self.results.note(text)

    def interleave(
        self, ways: Sequence[Way], what: str, measure: Callable[..., None], *values: object
    ) -> None:
        """Measure all ways in turn, several times, each time in the other order."""
        for number in range(self.effort.rounds):
            self.say(f"{what}, round {number + 1}")
            for way in ways if number % 2 == 0 else ways[::-1]:
                self.attempt(way, what, measure, *values)
