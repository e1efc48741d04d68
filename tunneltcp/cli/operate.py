"""``tunneltcp restart``, ``stop``, ``start``, ``reload``, ``kick``: a master is told to act.

A master answers at once that it began. What came of it is in its status; these commands
look there until it is done, and say so.
"""

from __future__ import annotations

import ipaddress
import time
from typing import TYPE_CHECKING, Any, Final

import click
import orjson

from tunneltcp.cli.ask import RELOAD_SECONDS, Refused, ask, fail, instance_options
from tunneltcp.cli.masters import find_master, find_tunnel, port_argument
from tunneltcp.cli.pause import pause
from tunneltcp.errors import ExitCode, TunnelError
from tunneltcp.text import escape, ranges

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tunneltcp.cli.masters import RunningMaster

    Tunnel = dict[str, Any]

__all__ = [
    "kick_command",
    "reload_command",
    "restart_command",
    "start_command",
    "stop_command",
]

_START_SECONDS: Final = 15.0
"""A worker has 10 s to start before its master kills it, and the next one comes at once."""

_STOP_SECONDS: Final = 3610.0
"""The longest ``drain`` a config may have, and some seconds to end what is left."""

_MAX_ID: Final = (1 << 63) - 1
"""Of a visitor; larger numbers are none, and do not fit into a message."""

_LOOK_SECONDS: Final = 0.05
"""A worker is there after some 20 ms."""

_HOPE_SECONDS: Final = 1.0
"""A tunnel that is fatal for so long waits for a person, and not for us."""

_json_option = click.option("--json", "as_json", is_flag=True, help="Answer as JSON.")


@click.command("restart")
@port_argument
@_json_option
@instance_options
def restart_command(
    port: int, as_json: bool, instance: str | None, run_dir: Path | None
) -> None:
    """Give a tunnel a new process.

    The port refuses nobody meanwhile: new visitors wait for the successor.
    """
    master, _ = find_tunnel(port, instance, run_dir)
    begun = time.monotonic()
    old = master.ask("restart", port=port)["pid"]
    tunnel = _wait(
        master,
        port,
        lambda now: now["state"] == "running" and now["pid"] != old,
        _START_SECONDS,
        f"no successor of process {old} runs" if old else "it does not run",
    )
    seconds = time.monotonic() - begun
    if as_json:
        _print_json(port=port, old_pid=old, pid=tunnel["pid"], seconds=round(seconds, 3))
    else:
        was = f"process {old} -> {tunnel['pid']}" if old else f"process {tunnel['pid']}"
        print(f"{port}: restarted, {was}, in {seconds:.2f} s")


@click.command("stop")
@port_argument
@_json_option
@instance_options
def stop_command(port: int, as_json: bool, instance: str | None, run_dir: Path | None) -> None:
    """Stop a tunnel: refuse new visitors, let the others finish.

    They have as long as "drain" in the config says. The port stays ours, and closed, also
    when the master is restarted, until "tunneltcp start PORT".
    """
    master, before = find_tunnel(port, instance, run_dir)
    begun = time.monotonic()
    _warn(master.ask("stop", port=port))
    visitors = before["visitors"]
    if visitors and not as_json:
        click.echo(f"{port}: stopping; {_people(visitors)} may finish first", err=True)
    tunnel = _wait(
        master, port, lambda now: now["state"] == "stopped", _STOP_SECONDS, "it is not stopped"
    )
    seconds = time.monotonic() - begun
    if as_json:
        _print_json(port=port, state=tunnel["state"], seconds=round(seconds, 3))
    elif before["state"] == "stopped":
        print(f"{port}: was stopped already")
    else:
        print(f'{port}: stopped; "tunneltcp start {port}" opens it again')


@click.command("start")
@port_argument
@_json_option
@instance_options
def start_command(port: int, as_json: bool, instance: str | None, run_dir: Path | None) -> None:
    """Start a tunnel that was stopped."""
    master, before = find_tunnel(port, instance, run_dir)
    begun = time.monotonic()
    _warn(master.ask("start", port=port))
    tunnel = _wait(
        master, port, lambda now: now["state"] == "running", _START_SECONDS, "it does not run"
    )
    seconds = time.monotonic() - begun
    if as_json:
        _print_json(
            port=port, state=tunnel["state"], pid=tunnel["pid"], seconds=round(seconds, 3)
        )
    else:
        already = before["state"] == "running" and before["pid"] == tunnel["pid"]
        print(f"{port}: {'runs already' if already else 'runs'}, process {tunnel['pid']}")


@click.command("reload")
@_json_option
@instance_options
def reload_command(as_json: bool, instance: str | None, run_dir: Path | None) -> None:
    """Read the config again, act on what is different.

    Tunnels that are the same in it are not touched. A config with a mistake in it
    changes nothing: all its problems are told.
    """
    master = find_master(instance, run_dir)
    try:
        answer = ask(master.folder, {"op": "reload"}, RELOAD_SECONDS)
    except Refused as error:
        if as_json:
            _print_json(**error.answer)
        kept = f"{master.name}: the config was not taken, all goes on as before"
        fail(ExitCode.USAGE, [kept, *error.answer.get("problems", [str(error)])])
    except TunnelError as error:
        fail(ExitCode.CRASH, [str(error)])
    if as_json:
        _print_json(**answer)
        return
    parts = [
        f"{what} {ranges(answer[what])}"
        for what in ("added", "removed", "changed")
        if answer[what]
    ]
    count = answer["unchanged"]
    if not parts:
        # A master of the version before does not say whether there is something else.
        what = "other settings" if answer.get("different", True) else "nothing is different"
        print(f"{master.name}: reloaded: {what}; all tunnels keep their processes")
        return
    print(f"{master.name}: reloaded: {'; '.join(parts)}; {count} unchanged")


@click.command("kick")
@port_argument
@click.argument("visitor", required=False, type=click.IntRange(1, _MAX_ID))
@click.option("--address", metavar="ADDRESS", help="All visitors from this address.")
@click.option("--all", "everybody", is_flag=True, help="All visitors of the tunnel.")
@_json_option
@instance_options
def kick_command(
    port: int,
    visitor: int | None,
    address: str | None,
    everybody: bool,
    as_json: bool,
    instance: str | None,
    run_dir: Path | None,
) -> None:
    """Reset visitors of a tunnel.

    VISITOR is the number that "tunneltcp who PORT" shows.
    """
    if [visitor is not None, address is not None, everybody].count(True) != 1:
        raise click.UsageError("say whom: either VISITOR, or --address ADDRESS, or --all")
    master, _ = find_tunnel(port, instance, run_dir)
    whom: dict[str, Any] = {"all": True}
    if visitor is not None:
        whom = {"visitor": visitor}
    elif address is not None:
        whom = {"address": _address(address)}
    answer = master.ask("kick", port=port, **whom)
    kicked = answer["kicked"]
    if as_json:
        _print_json(**answer)
    elif kicked or everybody:
        print(f"{port}: reset {_people(kicked)}")
    if not kicked and not everybody:
        missing = f"visitor {visitor}" if visitor is not None else f"visitor from {address}"
        fail(ExitCode.CRASH, [f'{port}: there is no {missing}; see "tunneltcp who {port}"'])


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text.strip("[]")))
    except ValueError:
        raise click.UsageError(f"{text!a} is not an IP address") from None


def _wait(
    master: RunningMaster,
    port: int,
    is_done: Callable[[Tunnel], bool],
    seconds: float,
    otherwise: str,
) -> Tunnel:
    """Look at a tunnel until ``is_done``; leave with what it does instead."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            tunnel = master.tunnel(port)
        except TunnelError as error:
            fail(ExitCode.CRASH, [str(error)])
        if tunnel is None:
            fail(ExitCode.CRASH, [f"{port}: was removed meanwhile"])
        if is_done(tunnel):
            return tunnel
        left = deadline - time.monotonic()
        hopeless = tunnel["state"] == "fatal" and left < seconds - _HOPE_SECONDS
        if hopeless or left <= 0:
            break
        pause(_LOOK_SECONDS)
    waited = f"{otherwise} after {seconds - left:.0f} s"
    reason = f": {escape(tunnel['reason'])}" if tunnel["reason"] else ""
    problem = f"{port}: {waited}; it is {tunnel['state']}{reason}"
    return fail(ExitCode.CRASH, [problem, f'"tunneltcp logs {port}" says more'])


def _warn(answer: dict[str, Any]) -> None:
    """Say what did not work although the rest did."""
    if "warning" in answer:
        click.echo(f"tunneltcp: {answer['warning']}", err=True)


def _people(count: int) -> str:
    return f"{count} visitor" if count == 1 else f"{count} visitors"


def _print_json(**values: object) -> None:
    print(orjson.dumps(values).decode())
