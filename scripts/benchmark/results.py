"""What was measured: samples by metric and way, and what stands in the JSON file.

A metric is one line of a table ("requests/s, 32 connections"), a way one column. Every
sample is kept; what is shown is the median, and beside it the smallest and the largest.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ROWS", "Metric", "Results", "figure"]

ROWS = {
    1: "Requests and connections, not encrypted",
    2: "Bulk, not encrypted",
    3: "The same, encrypted",
    4: "Bulk over long and lossy paths",
    5: "A quiet visitor beside busy ones",
    6: "CPU time",
    7: "Memory",
    8: "After a failure",
    9: "Start-up",
}
"""Numbers and names of the rows of the comparison."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One line of a table."""

    row: int
    key: str
    """Such as ``1.c32.rate``; goals and pictures refer to it."""
    title: str
    unit: str
    is_lower_better: bool = False
    is_judged: bool = True
    """False: shown, but neither good nor bad (the rate beside a latency, for example)."""


@dataclass
class Results:
    """All samples of one run."""

    metrics: dict[str, Metric] = field(default_factory=dict)
    samples: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """What was left out or went wrong, each in a sentence."""

    def add(self, metric: Metric, way: str, value: float) -> None:
        """Take one sample."""
        self.metrics.setdefault(metric.key, metric)
        self.samples.setdefault(metric.key, {}).setdefault(way, []).append(value)

    def note(self, text: str) -> None:
        """Take a sentence, once."""
        if text not in self.notes:
            self.notes.append(text)

    def median(self, key: str, way: str) -> float | None:
        """The median of a metric for a way; None if there is no sample."""
        found = self.samples.get(key, {}).get(way)
        return statistics.median(found) if found else None

    def spread(self, key: str, way: str) -> tuple[float, float]:
        """The smallest and the largest sample; there must be one."""
        found = self.samples[key][way]
        return min(found), max(found)

    def of_row(self, row: int) -> list[Metric]:
        """The metrics of a row, in the order in which they were first measured."""
        return [metric for metric in self.metrics.values() if metric.row == row]

    def as_json(self) -> list[dict[str, Any]]:
        """For the JSON file: every metric with every sample."""
        return [
            {
                "row": metric.row,
                "key": metric.key,
                "title": metric.title,
                "unit": metric.unit,
                "lower_is_better": metric.is_lower_better,
                "samples": self.samples[metric.key],
            }
            for metric in self.metrics.values()
        ]


def figure(value: float) -> str:
    """A number with three digits that mean something."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
