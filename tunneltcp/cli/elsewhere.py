"""The commands on systems that are not Linux: one of them works there."""

from __future__ import annotations

import sys
from typing import Final, NoReturn

import click

from tunneltcp.errors import ExitCode

__all__ = ["LINUX_ONLY", "PORTABLE", "linux_only"]

PORTABLE: Final = ("expose", "login")
"""Commands that need nothing which only Linux has."""

LINUX_ONLY: Final = (
    "needs Linux; on this system use one of these for each app: "
    "tunneltcp expose 8000 --to SERVER:60001"
)


def linux_only(name: str) -> click.Command:
    """Return a command of that name which only says so, whatever follows it."""

    def refuse(**_words: object) -> NoReturn:
        print(f"tunneltcp: {name} {LINUX_ONLY}", file=sys.stderr)
        sys.exit(ExitCode.USAGE)

    return click.Command(
        name,
        callback=refuse,
        params=[click.Argument(["words"], nargs=-1, type=click.UNPROCESSED)],
        context_settings={"ignore_unknown_options": True, "help_option_names": []},
        short_help="(only on Linux)",
    )
