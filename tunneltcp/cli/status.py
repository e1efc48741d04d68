"""``tunneltcp status``: what runs on this machine, as a table or as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import orjson

from tunneltcp.cli.ask import ask_all, fail, instance_options
from tunneltcp.errors import ExitCode

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["status_command"]


@click.command("status")
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each instance.")
@instance_options
def status_command(as_json: bool, instance: str | None, run_dir: Path | None) -> None:
    """Show what runs: tunnels, links, visitors, processes."""
    answers, problems = ask_all({"op": "status"}, instance, run_dir)
    if as_json:
        for answer in answers:
            print(orjson.dumps(answer).decode())
    elif answers:
        from tunneltcp.cli.table import print_tables

        print_tables(answers)
    if problems:
        fail(ExitCode.CRASH, problems)
