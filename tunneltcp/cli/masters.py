"""Which running master is meant: the only one there is, or the one that has this port.

Where several could be meant nothing is guessed: they are named, each with the option that
picks it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tunneltcp.cli.ask import Refused, ask, ask_all, fail, find_run_folders
from tunneltcp.errors import ExitCode, TunnelError
from tunneltcp.text import ranges

if TYPE_CHECKING:
    from collections.abc import Sequence

    from click.shell_completion import CompletionItem

__all__ = [
    "RunningMaster",
    "complete_port",
    "find_master",
    "find_tunnel",
    "port_argument",
]

_COMPLETE_SECONDS = 0.5
"""Of each master when somebody presses Tab: who waits longer types the port himself."""

_COMPLETE_MASTERS = 4
"""Masters asked then: two seconds at the very worst."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningMaster:
    """A master that answered, and what it said."""

    folder: Path
    status: dict[str, Any]

    @property
    def name(self) -> str:
        """Of its instance."""
        return str(self.status["instance"])

    def ask(self, op: str, **arguments: object) -> dict[str, Any]:
        """Ask it something; leave with its reason if it will not do it."""
        try:
            return ask(self.folder, {"op": op, **arguments})
        except Refused as error:
            fail(ExitCode.CRASH, [f'instance "{self.name}" answers: {error}'])
        except TunnelError as error:
            fail(ExitCode.CRASH, [str(error)])

    def tunnel(self, port: int) -> dict[str, Any] | None:
        """Ask again how a tunnel is; None if it is not there any more.

        Raises:
            TunnelError: If the master does not answer.
        """
        return _tunnel(ask(self.folder, {"op": "status"}), port)


def _tunnel(status: dict[str, Any], port: int) -> dict[str, Any] | None:
    return next((one for one in status["tunnels"] if one["port"] == port), None)


def find_master(instance: str | None, run_dir: Path | None) -> RunningMaster:
    """Return the running master that is meant; leave if there is not exactly one."""
    masters, problems = _running(instance, run_dir)
    if not masters:
        fail(ExitCode.CRASH, problems)
    if len(masters) > 1:
        fail(ExitCode.USAGE, ["several masters run here; say which one:", *_choices(masters)])
    return masters[0]


def find_tunnel(
    port: int, instance: str | None, run_dir: Path | None
) -> tuple[RunningMaster, dict[str, Any]]:
    """Return the running master with this port, and the tunnel's status; leave if none."""
    masters, problems = _running(instance, run_dir)
    having = [master for master in masters if _tunnel(master.status, port)]
    if not having:
        fail(ExitCode.CRASH, problems + [_lacks(master, port) for master in masters])
    if len(having) > 1:
        problem = f"port {port} is a tunnel of {len(having)} masters; say which one:"
        fail(ExitCode.USAGE, [problem, *_choices(having)])
    tunnel = _tunnel(having[0].status, port)
    assert tunnel is not None, "it was just found there"
    return having[0], tunnel


def _running(
    instance: str | None, run_dir: Path | None
) -> tuple[list[RunningMaster], list[str]]:
    answers, problems = ask_all({"op": "status"}, instance, run_dir)
    return [RunningMaster(folder=Path(a["run_dir"]), status=a) for a in answers], problems


def _lacks(master: RunningMaster, port: int) -> str:
    ports = [tunnel["port"] for tunnel in master.status["tunnels"]]
    return f'instance "{master.name}" has no tunnel {port}; it has {ranges(ports)}'


def _choices(masters: Sequence[RunningMaster]) -> list[str]:
    """Return the options that pick one each; names are enough where they differ."""
    names = [master.name for master in masters]
    return [
        f"  --instance {one.name}"
        if names.count(one.name) == 1
        else f"  --run-dir {one.folder}"
        for one in masters
    ]


def complete_port(
    ctx: click.Context, _param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Return the ports of the tunnels that run here, for the shell; in bounded time."""
    from click.shell_completion import CompletionItem

    folders = find_run_folders(ctx.params.get("instance"), ctx.params.get("run_dir")).folders
    names: dict[int, str] = {}
    for folder in folders[:_COMPLETE_MASTERS]:
        try:
            answer = ask(folder, {"op": "status"}, _COMPLETE_SECONDS)
        except TunnelError:
            continue
        names |= {tunnel["port"]: tunnel["name"] for tunnel in answer["tunnels"]}
    return [
        CompletionItem(str(port), help=name)
        for port, name in sorted(names.items())
        if str(port).startswith(incomplete)
    ]


port_argument = click.argument(
    "port", type=click.IntRange(1, 65_535), metavar="PORT", shell_complete=complete_port
)
"""The public port that names a tunnel."""
