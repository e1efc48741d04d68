"""What ``tunneltcp expose`` shows: a small live display on a terminal, else plain lines.

Theory of operation
-------------------
A terminal can stop reading at any time (Ctrl-S, a slow connection), and writing to it then
waits. So a thread of its own writes; it is given the latest view and the lines to print, and
whoever gives them never waits. Nothing about the terminal is changed, neither its modes nor
the cursor nor the screen: whatever ends the program leaves it in order.
"""

from __future__ import annotations

import sys
import threading  # noqa: TID251 - who shows something never forks
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console, Group
from rich.live_render import LiveRender
from rich.table import Table
from rich.text import Text

from tunneltcp.cli.units import show_bytes, show_duration, show_visitors
from tunneltcp.config.model import DEFAULT_DRAIN_SECONDS
from tunneltcp.text import escape

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from rich.console import RenderableType

__all__ = [
    "LOOK_SECONDS",
    "Display",
    "TunnelView",
    "View",
    "ended_line",
    "ending_line",
    "render",
]

LOOK_SECONDS: Final = 0.5
"""How often whoever feeds a display gives it a new view."""

RATE_LOOKS: Final = 4
"""Rates are those of the last two seconds."""

MAX_LINES: Final = 500
"""Lines that wait for a terminal that does not read; then the oldest go."""

CLOSE_SECONDS: Final = 1.0
"""How long the end waits for the last line to be written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelView:
    """One tunnel at one moment."""

    port: int
    target: str
    link: str
    """What the link is: "up", "doubted", "down"."""
    rtt_ms: float | None
    visitors: int
    visitors_total: int
    bytes_in: int
    bytes_out: int
    who: Sequence[Mapping[str, Any]] = ()
    """The first of its visitors, as the request "who" tells them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """All tunnels at one moment."""

    at: float
    """Monotonic seconds."""
    tunnels: tuple[TunnelView, ...]


class Display:
    """Writes lines and views to standard output, from a thread."""

    def __init__(self, title: str, *, plain: bool, console: Console | None = None) -> None:
        self._title = title
        self._console = Console(highlight=False) if console is None else console
        self.is_live = (
            not plain and self._console.is_terminal and not self._console.is_dumb_terminal
        )
        self._frame = LiveRender(Text(""), vertical_overflow="crop")
        self._lines: deque[tuple[str, str]] = deque(maxlen=MAX_LINES)
        self._views: deque[View] = deque(maxlen=RATE_LOOKS + 1)
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="display", daemon=True)
        self._thread.start()

    def say(self, level: str, text: str) -> None:
        """Write a line as soon as that is possible; ``level`` as in a log."""
        self._lines.append((level, escape(text)))
        self._wake.set()

    def show(self, view: View) -> None:
        """Show this from now on; without a terminal it is not needed."""
        if self.is_live:
            self._views.append(view)
            self._wake.set()

    def close(self) -> None:
        """Write what is left and take the live part away; give up on a stuck terminal."""
        self._closing = True
        self._wake.set()
        self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        """In the thread; a terminal that has gone ends it, and nothing else."""
        with suppress(OSError, ValueError):
            while not self._closing:
                self._wake.wait()
                self._wake.clear()
                self._write()
            self._views.clear()
            self._write()

    def _write(self) -> None:
        lines = []
        with suppress(IndexError):
            while True:
                lines.append(self._lines.popleft())
        if not self.is_live:
            sys.stdout.write("".join(f"tunneltcp: {text}\n" for _, text in lines))
            sys.stdout.flush()
            return
        console, frame = self._console, self._frame
        with console:  # all of it in one write
            console.control(frame.position_cursor())
            for level, text in lines:
                style = "yellow" if level == "WARNING" else "red" if level == "ERROR" else ""
                console.print(Text(text, style), soft_wrap=True)
            views = tuple(self._views)
            self._frame = frame = LiveRender(Text(""), vertical_overflow="crop")
            if views:
                frame.set_renderable(render(self._title, views, console.height))
                console.print(frame, end="")


def ending_line(visitors: int) -> str:
    """Say what the first Ctrl-C means for the visitors who are here."""
    seconds = f"{DEFAULT_DRAIN_SECONDS:g} s"
    return f"ending: {show_visitors(visitors)} may finish within {seconds}, Ctrl-C ends it now"


def ended_line(visitors_total: int, bytes_in: int, bytes_out: int) -> str:
    """Say what it has been good for."""
    moved = f"{show_bytes(bytes_in)} in, {show_bytes(bytes_out)} out"
    return f"ended: {show_visitors(visitors_total)}, {moved}"


def render(title: str, views: Sequence[View], height: int) -> RenderableType:
    """Draw the last of some views that were taken one after the other.

    Args:
        title: The first line.
        views: At least one; the first and the last make the rates.
        height: Lines there are.
    """
    first, last = views[0], views[-1]
    parts: list[RenderableType] = [Text(escape(title), "bold"), _tunnels(first, last)]
    several = len(last.tunnels) > 1
    room = max(1, height - len(last.tunnels) - 6)
    shown = [(tunnel.port, one) for tunnel in last.tunnels for one in tunnel.who][:room]
    if shown:
        parts += [Text(""), _visitors(shown, with_port=several)]
    more = sum(tunnel.visitors for tunnel in last.tunnels) - len(shown)
    if more > 0 and shown:
        parts.append(Text(f"  and {more} more", "dim"))
    return Group(*parts)


def _table(columns: Iterable[str], left: Iterable[str]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in columns:
        table.add_column(name, justify="left" if name in left else "right", no_wrap=True)
    return table


def _tunnels(first: View, last: View) -> Table:
    names = ["port", "target", "link", "visitors", "in", "out", "in/s", "out/s"]
    table = _table(names, ("target", "link"))
    before = {tunnel.port: tunnel for tunnel in first.tunnels}
    seconds = last.at - first.at
    for tunnel in last.tunnels:
        old = before.get(tunnel.port, tunnel)
        rates = (tunnel.bytes_in - old.bytes_in, tunnel.bytes_out - old.bytes_out)
        table.add_row(
            str(tunnel.port),
            Text(escape(tunnel.target)),
            _link(tunnel),
            f"{tunnel.visitors}/{tunnel.visitors_total}",
            show_bytes(tunnel.bytes_in),
            show_bytes(tunnel.bytes_out),
            *(show_bytes(max(0, moved) / seconds if seconds > 0 else 0) for moved in rates),
        )
    return table


def _link(tunnel: TunnelView) -> Text:
    if tunnel.link == "up":
        rtt = "" if tunnel.rtt_ms is None else f" {tunnel.rtt_ms:.1f} ms"
        return Text(f"up{rtt}", "green")
    return Text(tunnel.link, "yellow" if tunnel.link == "doubted" else "red")


def _visitors(shown: Iterable[tuple[int, Mapping[str, Any]]], *, with_port: bool) -> Table:
    names = ["visitor", "for", "in", "out", "in/s", "out/s", "waits for"]
    table = _table(names + (["port"] if with_port else []), ("visitor", "waits for"))
    for port, one in shown:
        cells = [
            escape(str(one["address"])),
            show_duration(one["since"]),
            show_bytes(one["bytes_in"]),
            show_bytes(one["bytes_out"]),
            show_bytes(one["rate_in"]),
            show_bytes(one["rate_out"]),
            str(one["waits_for"] or ""),
        ]
        table.add_row(*map(Text, cells + ([str(port)] if with_port else [])))
    return table
