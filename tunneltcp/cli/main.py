"""``tunneltcp``: the command line's group."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

import click

from tunneltcp import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["main"]

_COMMANDS: Final[Mapping[str, str]] = {
    "server": "run",
    "client": "run",
    "status": "status",
}
"""Each command and the module of this package that has it, as ``NAME_command``; in the order
in which a newcomer needs them. Imported when used: asking needs no worker."""


class _Commands(click.Group):
    """Commands that are imported when somebody wants them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return all names."""
        del ctx
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return one command; None if there is none of that name."""
        del ctx
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"tunneltcp.cli.{_COMMANDS[cmd_name]}")
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="tunneltcp")
def main() -> None:
    """Carry the visitors of public ports on a server to apps beside a client."""
