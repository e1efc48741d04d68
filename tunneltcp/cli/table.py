"""The status as a table for people: the only module that imports rich."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tunneltcp.log import escape

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["print_tables"]

_STYLES = {"running": "green", "starting": "yellow", "backoff": "yellow", "fatal": "bold red"}

_WIDE_COLUMNS: Final = 110
"""From this width on there is room for what is nice to know."""

_PIPE_COLUMNS: Final = 200


def print_tables(answers: Sequence[dict[str, Any]]) -> None:
    """Print one table for each master."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_PIPE_COLUMNS)  # nobody there to wrap for
    for answer in answers:
        who = f"{answer['role']} {answer['instance']}, process {answer['pid']}"
        console.print(Text(f"{who}, since {answer['since'][:19]}Z", "bold"))
        console.print(_table(answer["tunnels"], wide=console.width >= _WIDE_COLUMNS))
        for tunnel in answer["tunnels"]:
            if tunnel["reason"] and tunnel["state"] != "running":
                console.print(Text(f"{tunnel['port']}: {escape(tunnel['reason'])}", "yellow"))


def _table(tunnels: Sequence[dict[str, Any]], *, wide: bool) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    names = ["port", "target", "state", "link", "visitors", "in", "out", "restarts"]
    for name in names + (["cpu %", "rss", "name"] if wide else []):
        text = name in ("target", "state", "link", "name")
        table.add_column(name, justify="left" if text else "right", no_wrap=True)
    for tunnel in tunnels:
        table.add_row(*_row(tunnel, wide=wide))
    return table


def _row(tunnel: dict[str, Any], *, wide: bool) -> list[Text]:
    cells = [
        (str(tunnel["port"]), ""),
        (tunnel["target"] or "", ""),
        (tunnel["state"], _STYLES.get(tunnel["state"], "")),
        _link(tunnel["link"]),
        (f"{tunnel['visitors']}/{tunnel['visitors_total']}", ""),
        (_bytes(tunnel["bytes_in"]), ""),
        (_bytes(tunnel["bytes_out"]), ""),
        (str(tunnel["restarts"]), ""),
    ]
    if wide:
        cells += [
            ("" if tunnel["cpu"] is None else f"{tunnel['cpu']:.0f}", ""),
            ("" if tunnel["rss"] is None else _bytes(tunnel["rss"]), ""),
            (tunnel["name"], ""),
        ]
    return [Text(escape(text), style) for text, style in cells]


def _link(link: dict[str, Any]) -> tuple[str, str]:
    if link["state"] != "up":
        return "down", "red"
    rtt = "" if link["rtt_ms"] is None else f" {link['rtt_ms']:.1f} ms"
    return ("doubted", "yellow") if link.get("doubted") else (f"up{rtt}", "green")


def _bytes(count: int) -> str:
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
