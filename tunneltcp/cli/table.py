"""Tables for people: the status, the visitors; the only module that imports rich."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tunneltcp.cli.units import show_bytes, show_duration
from tunneltcp.text import escape, ranges

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import RenderableType

    Answers = Sequence[dict[str, Any]]

__all__ = ["print_tables", "print_visitors", "watch_tables"]

_STYLES = {"running": "green", "starting": "yellow", "backoff": "yellow", "fatal": "bold red"}

_WIDE_COLUMNS: Final = 110
"""From this width on there is room for what is nice to know."""

_PIPE_COLUMNS: Final = 200


def print_tables(answers: Answers) -> None:
    """Print one table for each master."""
    console = _console()
    console.print(*_tables(answers, console.width), sep="\n")


def watch_tables(
    look: Callable[[], tuple[Answers, list[str]]], rest: Callable[[], bool]
) -> None:
    """Show the tables on the whole terminal, again after each rest, until that is False.

    Args:
        look: Returns what the masters answered, and what kept others from it.
        rest: Waits for a while.
    """
    console = Console(highlight=False)
    with Live(console=console, screen=True, auto_refresh=False) as live:
        going_on = True
        while going_on:
            answers, problems = look()
            now = datetime.now(UTC).strftime("%H:%M:%S")
            lines: list[RenderableType] = [Text(f"{now}Z, Ctrl-C ends this", "dim")]
            lines += [Text(problem, "red") for problem in problems]
            lines += _tables(answers, console.width)
            live.update(Group(*lines), refresh=True)
            going_on = rest()


def print_visitors(visitors: Answers) -> None:
    """Print the visitors of a tunnel."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    left = ("address", "waits for")
    for name in ("id", "address", "since", "in", "out", "in/s", "out/s", "waits for"):
        table.add_column(name, justify="left" if name in left else "right", no_wrap=True)
    for one in visitors:
        cells = [
            str(one["id"]),
            escape(one["address"]),
            show_duration(one["since"]),
            show_bytes(one["bytes_in"]),
            show_bytes(one["bytes_out"]),
            show_bytes(one["rate_in"]),
            show_bytes(one["rate_out"]),
            one["waits_for"] or "",
        ]
        table.add_row(*map(Text, cells))
    _console().print(table)


def _console() -> Console:
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_PIPE_COLUMNS)  # nobody there to wrap for
    return console


def _tables(answers: Answers, columns: int) -> list[RenderableType]:
    found: list[RenderableType] = []
    for answer in answers:
        try:
            found += _of_one(answer, columns)
        except (LookupError, TypeError, ValueError, AttributeError):
            # Root asks everybody's, and anybody may play a master in a folder of his own.
            text = f"the master in {answer['run_dir']} answers what this version does not know"
            found.append(Text(escape(text), "yellow"))
    return found


def _of_one(answer: dict[str, Any], columns: int) -> list[RenderableType]:
    who = f"{answer['role']} {answer['instance']}, process {answer['pid']}"
    who += f", since {answer['since'][:19]}Z, version {answer['version']}"
    return [
        Text(escape(who), "bold"),
        _table(answer["tunnels"], wide=columns >= _WIDE_COLUMNS),
        *(
            Text(f"{tunnel['port']}: {escape(tunnel['reason'])}", "yellow")
            for tunnel in answer["tunnels"]
            if tunnel["reason"]
        ),
        *(Text(line, "yellow") for line in _older(answer)),
    ]


def _older(answer: dict[str, Any]) -> list[str]:
    """Say which processes run older code than their master."""
    upgrade = answer.get("upgrade")
    if not upgrade or not upgrade["left"] or upgrade["state"] == "replacing":
        return []
    ports, was = ranges(upgrade["left"]), escape(str(upgrade["from"]))
    return [f'{ports}: on version {was} as before; "tunneltcp upgrade" goes on with all']


def _table(tunnels: Sequence[dict[str, Any]], *, wide: bool) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    named = any(tunnel["link"].get("client") for tunnel in tunnels)
    names = ["port", "target", "state", "link", *(["client"] if named else [])]
    names += ["visitors", "in", "out", "restarts", *(["cpu %", "rss", "name"] if wide else [])]
    for name in names:
        text = name in ("target", "state", "link", "client", "name")
        table.add_column(name, justify="left" if text else "right", no_wrap=True)
    for tunnel in tunnels:
        table.add_row(*_row(tunnel, wide=wide, named=named))
    return table


def _row(tunnel: dict[str, Any], *, wide: bool, named: bool) -> list[Text]:
    cells = [
        (str(tunnel["port"]), ""),
        (tunnel["target"] or "", ""),
        (tunnel["state"], _STYLES.get(tunnel["state"], "")),
        _link(tunnel["link"]),
        *([(tunnel["link"].get("client") or "", "")] if named else []),
        (f"{tunnel['visitors']}/{tunnel['visitors_total']}", ""),
        (show_bytes(tunnel["bytes_in"]), ""),
        (show_bytes(tunnel["bytes_out"]), ""),
        (str(tunnel["restarts"]), ""),
    ]
    if wide:
        cells += [
            ("" if tunnel["cpu"] is None else f"{tunnel['cpu']:.0f}", ""),
            ("" if tunnel["rss"] is None else show_bytes(tunnel["rss"]), ""),
            (tunnel["name"], ""),
        ]
    return [Text(escape(text), style) for text, style in cells]


def _link(link: dict[str, Any]) -> tuple[str, str]:
    if link["state"] != "up":
        return "down", "red"
    rtt = "" if link["rtt_ms"] is None else f" {link['rtt_ms']:.1f} ms"
    if link.get("key") == "old":
        return f"up{rtt} old key", "yellow"
    return ("doubted", "yellow") if link.get("doubted") else (f"up{rtt}", "green")
