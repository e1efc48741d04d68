"""``tunneltcp``: the command line's group."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Final

import click

from tunneltcp import __version__
from tunneltcp.cli.elsewhere import PORTABLE, linux_only

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["main"]

_COMMANDS: Final[Mapping[str, str]] = {
    "server": "run",
    "client": "run",
    "check": "check",
    "expose": "expose",
    "login": "login",
    "token": "token",
    "status": "status",
    "who": "who",
    "logs": "logs",
    "restart": "operate",
    "stop": "operate",
    "start": "operate",
    "kick": "operate",
    "reload": "operate",
    "upgrade": "upgrade",
    "completion": "completion",
    "service": "service",
}
"""Each command and the module of this package that has it, as ``NAME_command``; in the order
in which a newcomer needs them. Imported when used: asking needs no worker."""


_SECTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "Run tunnels": ("server", "client", "expose", "login", "token", "check", "service"),
    "See what goes on": ("status", "who", "logs"),
    "Act on what runs": ("restart", "stop", "start", "kick", "reload", "upgrade"),
}
"""What stands together in the help; what is not here stands behind it."""


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
        if sys.platform != "linux" and cmd_name not in PORTABLE:
            return linux_only(cmd_name)
        module = importlib.import_module(f"tunneltcp.cli.{_COMMANDS[cmd_name]}")
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that is called; suggest one if there is none of that name."""
        if args and not args[0].startswith("-") and args[0] not in _COMMANDS:
            import difflib  # only for who mistypes

            close = difflib.get_close_matches(args[0], _COMMANDS, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise click.UsageError(f"No such command {args[0]!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands in sections."""
        known = [name for names in _SECTIONS.values() for name in names]
        rest = tuple(name for name in _COMMANDS if name not in known)
        for title, names in {**_SECTIONS, "More": rest}.items():
            commands = [(n, self.get_command(ctx, n)) for n in names if n in _COMMANDS]
            width = formatter.width - 14  # an indent, the longest name, a gap
            rows = [(n, c.get_short_help_str(width)) for n, c in commands if c is not None]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="tunneltcp")
def main() -> None:
    """Carry the visitors of public ports on a server to apps beside a client."""
