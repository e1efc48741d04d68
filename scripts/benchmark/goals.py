"""What is to be reached, and what would be a gross regression; pure.

A goal compares one figure of ours with the best of some others of the same run, or with a
bound. The goals are ambitions: not meeting one is reported. The gates are for CI on busy
machines: each is a ratio to a reference that ran beside, with half of what is usual or less
as its bound, so that only something gone badly wrong fails.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from benchmark.results import figure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmark.results import Results

__all__ = ["GATES", "GOALS", "Bound", "Goal", "Quiet", "Ratio", "Verdict", "behind", "judge"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of a goal."""

    text: str
    figure: str
    is_met: bool | None
    """None: something was not measured."""


class Goal(Protocol):
    """Something to reach."""

    @property
    def rows(self) -> frozenset[int]:
        """The rows whose figures it needs."""

    def judge(self, results: Results) -> Verdict:
        """Look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """A figure of ours is at least ``factor`` times the best of others."""

    text: str
    key: str
    way: str
    factor: float
    others: tuple[tuple[str, str], ...]
    """Keys and ways; those that were not measured are left out."""

    @property
    def rows(self) -> frozenset[int]:
        """From the keys."""
        return frozenset(row_of(key) for key, _way in ((self.key, ""), *self.others))

    def judge(self, results: Results) -> Verdict:
        """Look."""
        ours = results.median(self.key, self.way)
        found = [(results.median(key, way), way) for key, way in self.others]
        there = [(value, way) for value, way in found if value]
        text = f"{self.text} at least {self.factor:g} times"
        if ours is None or not there:
            return Verdict(text=text, figure="not measured", is_met=None)
        best, name = max(there)
        is_met = ours >= self.factor * best
        return Verdict(text=text, figure=f"{ours / best:.2f} times ({name})", is_met=is_met)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """A figure of ours is not above a bound."""

    text: str
    key: str
    way: str
    bound: float
    unit: str

    @property
    def rows(self) -> frozenset[int]:
        """From the key."""
        return frozenset({row_of(self.key)})

    def judge(self, results: Results) -> Verdict:
        """Look."""
        text = f"{self.text} at most {self.bound:g} {self.unit}"
        ours = results.median(self.key, self.way)
        if ours is None:
            return Verdict(text=text, figure="not measured", is_met=None)
        return Verdict(text=text, figure=f"{ours:.3g} {self.unit}", is_met=ours <= self.bound)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quiet:
    """A quiet visitor's round trips stay short while others fill the path."""

    text: str
    key: str
    """Without what it is compared by: ``5.q250000.down``."""
    idle_key: str
    """Such as ``5.q250000.idle.p50``: what it is measured against."""
    extra_ms: float
    rate: float = 0
    """The least that the others together must get, Mbit/s."""
    way: str = "ours"

    @property
    def rows(self) -> frozenset[int]:
        """From the key."""
        return frozenset({row_of(self.key)})

    def judge(self, results: Results) -> Verdict:
        """Look."""
        idle_name = self.idle_key.rsplit(".", 1)[1]
        text = f"{self.text}: p99 at most {self.extra_ms:g} ms above the {idle_name} idle"
        if self.rate:
            text += f", at {self.rate:g} Mbit/s or more"
        idle = results.median(self.idle_key, self.way)
        p99 = results.median(f"{self.key}.p99", self.way)
        rate = results.median(f"{self.key}.rate", self.way) if self.rate else 0.0
        if idle is None or p99 is None or rate is None:
            return Verdict(text=text, figure="not measured", is_met=None)
        figure = f"{p99 - idle:+.0f} ms" + (f" at {rate:.0f} Mbit/s" if self.rate else "")
        is_met = p99 - idle <= self.extra_ms and rate >= self.rate
        return Verdict(text=text, figure=figure, is_met=is_met)


def row_of(key: str) -> int:
    """The row of a metric's key."""
    return int(key.split(".")[0])


def judge(results: Results, goals: Sequence[Goal]) -> list[Verdict]:
    """Look at all of them."""
    return [goal.judge(results) for goal in goals]


def behind(results: Results, ours: Sequence[str], others: Sequence[str]) -> list[str]:
    """Where somebody is ahead of us by over 5 %, in words."""
    found = []
    for metric in results.metrics.values():
        if not metric.is_judged:
            continue
        rank = -1 if metric.is_lower_better else 1
        values = {
            way: value
            for way in (*ours, *others)
            if (value := results.median(metric.key, way)) is not None
        }
        mine = [values[way] for way in ours if way in values]
        theirs = [(rank * values[way], way) for way in others if way in values]
        if not mine or not theirs:
            continue
        best_mine = max(rank * value for value in mine) * rank
        best, name = max(theirs)
        best *= rank
        low, high = sorted((best, best_mine))
        if best != best_mine and (best > best_mine) == (rank > 0) and high > 1.05 * low:
            found.append(
                f"row {metric.row}, {metric.title}: {name} {figure(best)} {metric.unit}, "
                f"ours {figure(best_mine)}"
            )
    return found


# What is to be reached.

PLAIN_PEERS = ("frp-plain", "rathole", "bore")
ENCRYPTED_PEERS = ("frp", "frp-best", "rathole-noise", "rathole-tls", "chisel")


def _against(text: str, key: str, way: str, *pairs: tuple[float, Sequence[str]]) -> list[Ratio]:
    """Some ratios for one figure: a factor, and the ways whose best it is held against."""
    names = {"relays": "two relays", "ssh": "ssh -R", "direct": "plain TCP"}
    return [
        Ratio(
            text=f"{text}, against {names.get(ways[0], 'the best peer')}:",
            key=key,
            way=way,
            factor=factor,
            others=tuple((key, other) for other in ways),
        )
        for factor, ways in pairs
    ]


def _goals() -> list[Goal]:
    goals: list[Goal] = []
    plain, secure = "ours-plain", "ours"
    for count in (32, 256):
        text = f"requests/s at {count} connections"
        three: tuple[float, Sequence[str]] = (3, ("ssh",))
        pairs = (three, (1.8, ("relays",)), (1.2, PLAIN_PEERS))
        goals += _against(text, f"1.c{count}.rate", plain, *pairs)
        pairs = ((2.5, ("ssh",)), (1.2, ENCRYPTED_PEERS))  # type: ignore[assignment]
        goals += _against(f"{text}, encrypted", f"3.c{count}.rate", secure, *pairs)
    pairs = ((1.8, ("ssh",)), (1, PLAIN_PEERS))  # type: ignore[assignment]
    goals += _against("new connections/s", "1.new.rate", plain, *pairs)
    for direction in ("down", "up"):
        text = f"bulk {direction}"
        pairs = ((0.9, ("relays",)), (2, ("ssh",)), (1, PLAIN_PEERS))
        goals += _against(text, f"2.{direction}.p1", plain, *pairs)
        pairs = ((1, ("ssh", "ssh-best")), (1, ENCRYPTED_PEERS))  # type: ignore[assignment]
        goals += _against(f"{text}, encrypted", f"3.{direction}.p1", secure, *pairs)
    for rtt in (20, 100, 200):
        for direction in ("down", "up"):
            text = f"bulk {direction} at {rtt} ms and 1 Gbit/s"
            goals += _against(text, f"4.rtt{rtt}.{direction}", secure, (0.95, ("direct",)))
    for queue, name in ((250_000, "shallow"), (5_000_000, "deep")):
        goals += [
            Quiet(
                text=f"quiet visitor beside 4 {direction}loads, {name} queue",
                key=f"5.q{queue}.{direction}",
                idle_key=f"5.q{queue}.idle.p50",
                extra_ms=60,
                rate=90,
            )
            for direction in ("down", "up")
        ]
    goals.append(
        Quiet(
            text="quiet visitor beside one that never reads",
            key="5.q250000.stalled",
            idle_key="5.q250000.idle.p99",
            extra_ms=5,
        )
    )
    for side in ("server", "client"):
        goals += [
            Bound(
                text=f"100 tunnels and their master, {side}:",
                key=f"7.tunnels100.{side}",
                way=secure,
                bound=360,
                unit="MB",
            ),
            Bound(
                text=f"an idle visitor, {side}:",
                key=f"7.idle10000.{side}",
                way=secure,
                bound=3,
                unit="KB",
            ),
        ]
    return goals


GOALS: tuple[Goal, ...] = tuple(_goals())
"""Of issue and design; the soak test and the small machine are tests of their own."""

GATES: tuple[Ratio, ...] = (
    Ratio(
        text="requests/s, against the reference mux:",
        key="1.c32.rate",
        way="ours-plain",
        factor=0.45,
        others=(("1.c32.rate", "mux"),),
    ),
    Ratio(
        text="requests/s, against two relays:",
        key="1.c32.rate",
        way="ours-plain",
        factor=0.7,
        others=(("1.c32.rate", "relays"),),
    ),
    Ratio(
        text="new connections/s, against the reference mux:",
        key="1.new.rate",
        way="ours-plain",
        factor=0.25,
        others=(("1.new.rate", "mux"),),
    ),
    Ratio(
        text="bulk down, against the reference mux:",
        key="2.down.p1",
        way="ours-plain",
        factor=0.4,
        others=(("2.down.p1", "mux"),),
    ),
    Ratio(
        text="bulk up, against the reference mux:",
        key="2.up.p1",
        way="ours-plain",
        factor=0.4,
        others=(("2.up.p1", "mux"),),
    ),
    Ratio(
        text="requests/s with TLS, against the plain reference mux:",
        key="3.c32.rate",
        way="ours",
        factor=0.25,
        others=(("1.c32.rate", "mux"),),
    ),
    Ratio(
        text="bulk down with TLS, against the plain reference mux:",
        key="3.down.p1",
        way="ours",
        factor=0.1,
        others=(("2.down.p1", "mux"),),
    ),
    Ratio(
        text="bulk down at 100 ms, against the reference mux and its window of 1 MiB:",
        key="4.rtt100.down",
        way="ours",
        factor=0.6,
        others=(("4.rtt100.down", "mux"),),
    ),
)
