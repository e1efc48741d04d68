"""``tunneltcp status``: what runs on this machine, as a table or as JSON, once or live."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

import click
import orjson

from tunneltcp.cli.ask import ask_all, fail, instance_options
from tunneltcp.cli.pause import pause_while_read, until_interrupted
from tunneltcp.errors import ExitCode

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["status_command"]

_WATCH_SECONDS: Final = 1.0
"""As often as a person can take it in."""


@click.command("status")
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each instance.")
@click.option("--watch", is_flag=True, help="Look again each second, until Ctrl-C.")
@instance_options
def status_command(
    as_json: bool, watch: bool, instance: str | None, run_dir: Path | None
) -> None:
    """Show what runs: tunnels, links, visitors, processes."""
    if watch:
        _watch(as_json, instance, run_dir)
        return
    answers, problems = ask_all({"op": "status"}, instance, run_dir)
    if as_json:
        _print_json(answers)
    elif answers:
        from tunneltcp.cli.table import print_tables

        print_tables(answers)
    if problems:
        fail(ExitCode.CRASH, problems)


def _print_json(answers: list[dict[str, object]]) -> None:
    for answer in answers:
        print(orjson.dumps(answer).decode(), flush=True)


def _watch(as_json: bool, instance: str | None, run_dir: Path | None) -> None:
    """Go on whatever masters come and go; a person who looks wants to see them come back."""
    if not as_json and not sys.stdout.isatty():
        raise click.UsageError(
            "--watch needs a terminal; for a program there is --watch --json"
        )
    with until_interrupted():
        if not as_json:
            from tunneltcp.cli.table import watch_tables

            watch_tables(
                lambda: ask_all({"op": "status"}, instance, run_dir),
                lambda: pause_while_read(_WATCH_SECONDS),
            )
        while as_json:
            _print_json(ask_all({"op": "status"}, instance, run_dir)[0])
            if not pause_while_read(_WATCH_SECONDS):
                break
