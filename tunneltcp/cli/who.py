"""``tunneltcp who``: the visitors of one tunnel, as a table or as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
import orjson

from tunneltcp.cli.ask import instance_options
from tunneltcp.cli.masters import find_tunnel, port_argument

if TYPE_CHECKING:
    from pathlib import Path

    from tunneltcp.cli.masters import RunningMaster

__all__ = ["who_command"]


@click.command("who")
@port_argument
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@instance_options
def who_command(port: int, as_json: bool, instance: str | None, run_dir: Path | None) -> None:
    """Show the visitors of a tunnel.

    "in" is what came from the visitor, "out" what went to him. "waits for" says who is
    slow: the visitor, the link or the target.
    """
    master, _ = find_tunnel(port, instance, run_dir)
    visitors = _visitors(master, port)
    if as_json:
        print(orjson.dumps({"port": port, "visitors": visitors}).decode())
    elif visitors:
        from tunneltcp.cli.table import print_visitors

        print_visitors(visitors)
    else:
        print(f"{port}: nobody is connected")


def _visitors(master: RunningMaster, port: int) -> list[dict[str, Any]]:
    """Fetch all pages."""
    visitors: list[dict[str, Any]] = []
    after = 0
    while True:
        page = master.ask("who", port=port, after=after)
        visitors += page["visitors"]
        # Ids only rise: a page that does not go on would never end.
        if page["next"] is None or page["next"] <= after:
            return visitors
        after = page["next"]
