"""The live view of the demo: a line for each tunnel, on wide terminals and narrow ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from demo import Tunnel

__all__ = ["HOST", "Row", "row", "table"]

HOST = "127.0.0.1"

WIDE_COLUMNS = 140
"""What all columns and a frame need; fewer than that show what cannot be spared."""

SPARED = ("it listens on", "in", "out")
"""Left out on a narrow terminal: 80 columns are what most have, and the pids are to be seen."""

UNKNOWN: dict[str, Any] = {
    "state": "no answer",
    "pid": None,
    "link": {"state": "down", "rtt_ms": None},
    "visitors": 0,
    "visitors_total": 0,
    "bytes_in": 0,
    "bytes_out": 0,
}
"""What is known of a tunnel while its master does not answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What the two masters say about one tunnel."""

    tunnel: Tunnel
    state: str
    """Of the server's worker, or why it is not what it should be."""
    is_up: bool
    """Both sides say so."""
    rtt_ms: float | None
    visitors: int
    visitors_total: int
    bytes_in: int
    bytes_out: int
    server_pid: int | None
    client_pid: int | None

    @property
    def link(self) -> str:
        """The link in a word or two."""
        if not self.is_up:
            return "down"
        return "up" if self.rtt_ms is None else f"up, {self.rtt_ms:.1f} ms"

    def __str__(self) -> str:
        return (
            f"{self.tunnel.app.name} at {HOST}:{self.tunnel.port}: {self.state}, "
            f"link {self.link}, "
            f"visitors {self.visitors} of {self.visitors_total}, "
            f"in {size(self.bytes_in)}, out {size(self.bytes_out)}, "
            f"workers {self.server_pid or '-'} and {self.client_pid or '-'}"
        )


def row(tunnel: Tunnel, server: dict[str, Any] | None, client: dict[str, Any] | None) -> Row:
    """Join what the two sides say about one tunnel; None is a side that does not answer."""
    server, client = server or UNKNOWN, client or UNKNOWN
    return Row(
        tunnel=tunnel,
        state=server.get("reason") or server["state"],
        is_up=server["link"]["state"] == client["link"]["state"] == "up",
        rtt_ms=client["link"]["rtt_ms"] or server["link"]["rtt_ms"],
        visitors=server["visitors"],
        visitors_total=server["visitors_total"],
        bytes_in=server["bytes_in"],
        bytes_out=server["bytes_out"],
        server_pid=server["pid"],
        client_pid=client["pid"],
    )


def table(rows: Sequence[Row], columns: int) -> Table:
    """Draw the live view for a terminal of so many columns."""
    is_narrow = columns < WIDE_COLUMNS
    drawn = Table(title="Live", caption="Ctrl-C stops everything", expand=False)
    if is_narrow:
        drawn.box, drawn.padding = None, (0, 1, 0, 0)
    spared = SPARED if is_narrow else ()
    lines = [cells(one) for one in rows]
    for heading in lines[0] if lines else ():
        if heading in spared:
            continue
        if heading in ("app", "reach it at", "it listens on", "link"):
            drawn.add_column(heading, no_wrap=True)
        else:
            drawn.add_column(heading, justify="left" if heading == "tunnel" else "right")
    for line in lines:
        drawn.add_row(*(cell for heading, cell in line.items() if heading not in spared))
    return drawn


def cells(one: Row) -> dict[str, str]:
    """Return what a line shows, by the heading above it."""
    return {
        "app": one.tunnel.app.name,
        "reach it at": f"[bold]{HOST}:{one.tunnel.port}[/]",
        "it listens on": f"{HOST}:{one.tunnel.target_port}",
        "tunnel": one.state,
        "link": f"[green]{one.link}[/]" if one.is_up else f"[red]{one.link}[/]",
        "visitors": f"{one.visitors} of {one.visitors_total}",
        "in": size(one.bytes_in),
        "out": size(one.bytes_out),
        "server pid": f"{one.server_pid or '-'}",
        "client pid": f"{one.client_pid or '-'}",
    }


def size(count: int) -> str:
    """Print a number of bytes so that people can read it."""
    if count < 1024:
        return f"{count} B"
    amount, unit = count / 1024, "KiB"
    for larger in ("MiB", "GiB", "TiB"):
        if amount < 1000:
            break
        amount, unit = amount / 1024, larger
    return f"{amount:.1f} {unit}"
