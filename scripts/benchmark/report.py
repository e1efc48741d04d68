"""What a run leaves behind: JSON, a Markdown table, pictures, and the page in docs/."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from benchmark.goals import behind
from benchmark.lab import ROOT
from benchmark.pictures import PICTURES, draw
from benchmark.results import ROWS, figure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from benchmark.goals import Verdict
    from benchmark.results import Metric, Results
    from benchmark.ways import Way

__all__ = ["fill", "markdown", "publish", "write"]

README_PICTURES = 2
"""So many of them; the page has all."""
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"

OURS = ("ours", "ours-plain")
NOT_TUNNELS = ("direct", "relays", "mux")
"""They are there to compare with, and nobody's competitors."""


def markdown(
    results: Results,
    ways: Sequence[Way],
    verdicts: Sequence[Verdict],
    machine: Mapping[str, Any],
) -> str:
    """All of the report."""
    parts = [_machine(machine), *_rows(results, ways)]
    if verdicts:
        parts.append(_verdicts(verdicts))
    parts.append(_behind(results, ways))
    parts.append(_ways(ways))
    if results.notes:
        parts.append("### Left out, and what went wrong\n\n" + _list(results.notes))
    return "\n\n".join(parts) + "\n"


def _machine(machine: Mapping[str, Any]) -> str:
    return (
        f"Measured {machine['when']} at {machine['commit']}: {machine['processor']}, "
        f"{machine['cores']} cores, {machine['memory_gb']} GB, Linux {machine['kernel']}, "
        f"Python {machine['python']}, {machine['congestion']}; load before: "
        f"{machine['load_before']}. Tools: {'; '.join(machine['tools'])}."
    )


def _rows(results: Results, ways: Sequence[Way]) -> list[str]:
    found = []
    for row, title in ROWS.items():
        metrics = results.of_row(row)
        if not metrics:
            continue
        there = [
            way
            for way in ways
            if any(results.median(metric.key, way.key) is not None for metric in metrics)
        ]
        lines = [f"### {row}. {title}", ""]
        lines.append("| | " + " | ".join(way.name for way in there) + " |")
        lines.append("|---|" + "---:|" * len(there))
        lines += [_line(results, metric, there) for metric in metrics]
        found.append("\n".join(lines))
    return found


def _line(results: Results, metric: Metric, ways: Sequence[Way]) -> str:
    cells = [f"{metric.title} ({metric.unit})"]
    for way in ways:
        value = results.median(metric.key, way.key)
        if value is None:
            cells.append("-")
            continue
        cell = figure(value)
        low, high = results.spread(metric.key, way.key)
        if low != high:
            cell += f" <sub>{figure(low)} to {figure(high)}</sub>"
        cells.append(f"**{cell}**" if way.key in OURS else cell)
    return "| " + " | ".join(cells) + " |"


def _verdicts(verdicts: Sequence[Verdict]) -> str:
    lines = ["### Goals", "", "| goal | reached | |", "|---|---:|---|"]
    words = {True: "yes", False: "**no**", None: "?"}
    lines += [f"| {one.text} | {one.figure} | {words[one.is_met]} |" for one in verdicts]
    return "\n".join(lines)


def _behind(results: Results, ways: Sequence[Way]) -> str:
    others = [way.key for way in ways if way.key not in (*OURS, *NOT_TUNNELS)]
    found = behind(results, OURS, others)
    title = "### Where another tunnel is ahead\n\n"
    return title + (_list(found) if found else "Nowhere in this run, by over 5 %.")


def _ways(ways: Sequence[Way]) -> str:
    lines = [
        "### Versions and settings",
        "",
        "| | key | version | settings |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {way.name} | `{way.key}` | {way.version()} | {way.settings} |" for way in ways
    ]
    return "\n".join(lines)


def _list(items: Sequence[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def write(
    folder: Path,
    results: Results,
    ways: Sequence[Way],
    verdicts: Sequence[Verdict],
    machine: Mapping[str, Any],
) -> str:
    """Write everything into a folder; return the Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    text = markdown(results, ways, verdicts, machine)
    (folder / "table.md").write_text(text)
    answer = {
        "machine": machine,
        "ways": {
            way.key: {
                "name": way.name,
                "version": way.version(),
                "settings": way.settings,
                "encrypted": way.encrypted,
            }
            for way in ways
        },
        "metrics": results.as_json(),
        "verdicts": [
            {"text": one.text, "figure": one.figure, "met": one.is_met} for one in verdicts
        ],
        "notes": results.notes,
    }
    (folder / "results.json").write_bytes(orjson.dumps(answer, option=orjson.OPT_INDENT_2))
    for old in folder.glob("*.svg"):
        old.unlink()
    names = {way.key: way.name for way in ways}
    for picture in PICTURES:
        if (drawn := draw(picture, results, names)) is not None:
            (folder / picture.file).write_text(drawn)
    return text


def publish(folder: Path, text: str, root: Path = ROOT) -> None:
    """Put a run's figures into the page, pictures into README, and the samples beside them."""
    shown = [one for one in PICTURES if (folder / one.file).exists()]
    for path, where, pictures, more in (
        (root / "docs" / "BENCHMARKS.md", "benchmarks", shown, text),
        (root / "README.md", "docs/benchmarks", shown[:README_PICTURES], ""),
    ):
        lines = "\n".join(f"![{one.title}]({where}/{one.file})" for one in pictures)
        fill(path, f"{lines}\n\n{more}".strip())
    kept = root / "docs" / "benchmarks"
    kept.mkdir(exist_ok=True)
    for path in (*folder.glob("*.svg"), folder / "results.json"):
        (kept / path.name).write_bytes(path.read_bytes())


def fill(path: Path, text: str) -> None:
    """Replace what stands between the two marks of a page."""
    before, rest = path.read_text().split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")
