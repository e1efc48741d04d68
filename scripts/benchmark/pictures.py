"""Bar charts as SVG, for README and the report."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from benchmark.results import figure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmark.results import Results

__all__ = ["PICTURES", "Picture", "draw"]

WIDTH = 760
LABEL_WIDTH = 190
BAR_HEIGHT = 18
GAP = 6
GROUP_GAP = 14
VALUE_WIDTH = 90
TOP = 58
OURS_COLOUR, OTHER_COLOUR, REFERENCE_COLOUR = "#0b7285", "#adb5bd", "#dee2e6"
INK, FAINT = "#212529", "#6c757d"


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """What is drawn: a group of bars for each metric."""

    file: str
    title: str
    subtitle: str
    metrics: tuple[tuple[str, str], ...]
    """Keys, and what to call them."""


PICTURES = (
    Picture(
        file="requests.svg",
        title="Requests per second through a tunnel",
        subtitle="keep-alive HTTP, one tunnel, everything on one machine; longer is better",
        metrics=(
            ("1.c32.rate", "32 connections, not encrypted"),
            ("3.c32.rate", "32 connections, encrypted"),
        ),
    ),
    Picture(
        file="bulk.svg",
        title="One download through a tunnel, Gbit/s",
        subtitle="iperf3, everything on one machine; longer is better",
        metrics=(("2.down.p1", "not encrypted"), ("3.down.p1", "encrypted")),
    ),
    Picture(
        file="distance.svg",
        title="One download over a long path of 1 Gbit/s, Mbit/s",
        subtitle="default settings, after the first 3 seconds; longer is better",
        metrics=(
            ("4.rtt20.down", "20 ms round trip"),
            ("4.rtt100.down", "100 ms round trip"),
            ("4.rtt200.down", "200 ms round trip"),
        ),
    ),
    Picture(
        file="quiet.svg",
        title="A keystroke beside 4 downloads, p99 in ms",
        subtitle="100 Mbit/s and 20 ms, one queue for all; shorter is better",
        metrics=(
            ("5.q250000.down.p99", "queue of 250 KB"),
            ("5.q5000000.down.p99", "queue of 5 MB"),
        ),
    ),
    Picture(
        file="memory.svg",
        title="Memory of the server's side, MB",
        subtitle="PSS after visits to each tunnel; shorter is better",
        metrics=(("7.tunnels1.server", "1 tunnel"), ("7.tunnels100.server", "100 tunnels")),
    ),
)


def draw(picture: Picture, results: Results, names: Mapping[str, str]) -> str | None:
    """Draw a picture; None if nothing of it was measured.

    Args:
        picture: What to draw.
        results: Where the figures are.
        names: Of the ways, in the order in which their bars stand.
    """
    groups = []
    for key, title in picture.metrics:
        bars = [
            (way, name, value)
            for way, name in names.items()
            if (value := results.median(key, way)) is not None
        ]
        if bars:
            groups.append((title, bars))
    if not groups:
        return None
    lines: list[str] = []
    y = TOP
    for title, bars in groups:
        longest = max(value for _way, _name, value in bars) or 1.0
        y += GROUP_GAP
        lines.append(_text(12, y, title, size=13, weight="bold"))
        y += GAP + 2
        for way, name, value in bars:
            lines += _bar(y, way, name, value, longest)
            y += BAR_HEIGHT + GAP
    height = y + GROUP_GAP
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" font-family="system-ui, sans-serif" role="img">',
        f"<title>{escape(picture.title)}</title>",
        f'<rect width="{WIDTH}" height="{height}" rx="6" fill="#ffffff"/>',
        _text(12, 26, picture.title, size=17, weight="bold"),
        _text(12, 46, picture.subtitle, size=12, colour=FAINT),
    ]
    return "\n".join([*head, *lines, "</svg>"]) + "\n"


def _bar(y: int, way: str, name: str, value: float, longest: float) -> Sequence[str]:
    room = WIDTH - LABEL_WIDTH - VALUE_WIDTH
    width = max(1.0, value / longest * room)
    colour = OTHER_COLOUR
    if way.startswith("ours"):
        colour = OURS_COLOUR
    elif way in {"direct", "relays", "mux"}:
        colour = REFERENCE_COLOUR
    baseline = y + BAR_HEIGHT - 5
    return (
        _text(LABEL_WIDTH - 8, baseline, name, size=12, anchor="end"),
        f'<rect x="{LABEL_WIDTH}" y="{y}" width="{width:.1f}" height="{BAR_HEIGHT}" '
        f'rx="2" fill="{colour}"/>',
        _text(LABEL_WIDTH + width + 6, baseline, figure(value), size=12, colour=FAINT),
    )


def _text(
    x: float,
    y: float,
    text: str,
    *,
    size: int,
    weight: str = "normal",
    colour: str = INK,
    anchor: str = "start",
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" '
        f'fill="{colour}" text-anchor="{anchor}">{escape(text)}</text>'
    )
