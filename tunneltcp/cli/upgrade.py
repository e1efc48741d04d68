"""``tunneltcp upgrade``: a running master goes on as the code that is installed now."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click
import orjson

from tunneltcp.cli.ask import NotRunning, Refused, ask, fail, instance_options
from tunneltcp.cli.masters import complete_port, find_master, find_tunnel
from tunneltcp.cli.pause import pause
from tunneltcp.errors import ExitCode, TunnelError
from tunneltcp.text import escape, ranges

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tunneltcp.cli.masters import RunningMaster

__all__ = ["upgrade_command"]

_LOOK_SECONDS: Final = 0.1
_STEPS: Final = {
    "checking": "looking whether the new code can take over",
    "handing over": "it can; the master waits for a quiet moment to go on as the new code",
    "replacing": "the new code has taken over; the tunnels' processes follow one by one",
}
_STANDSTILL_SECONDS: Final = 60.0
"""Without the least progress. Each step has a deadline in the master that is shorter."""


@click.command("upgrade")
@click.option(
    "--canary",
    type=click.IntRange(1, 65_535),
    metavar="PORT",
    shell_complete=complete_port,
    help="Replace the process of this tunnel alone, and leave the others as they are.",
)
@click.option("--json", "as_json", is_flag=True, help="Answer as JSON.")
@instance_options
def upgrade_command(
    canary: int | None, as_json: bool, instance: str | None, run_dir: Path | None
) -> None:
    """Go on as the version that is installed now.

    Install it first. The new code is tried beside the old; if it cannot take over nothing
    is changed. Then the master goes on as the new code, in the same process, and replaces the
    processes of its tunnels one after the other: their visitors stay.
    """
    if canary is None:
        master = find_master(instance, run_dir)
    else:
        master, _ = find_tunnel(canary, instance, run_dir)
    begun = time.monotonic()
    number = master.ask("upgrade", **({} if canary is None else {"canary": canary}))["number"]
    status = _wait(master, number, _say if not as_json and sys.stderr.isatty() else None)
    upgrade = status["upgrade"]
    if as_json:
        seconds = round(time.monotonic() - begun, 3)
        print(orjson.dumps({"instance": master.name, **upgrade, "seconds": seconds}).decode())
    if upgrade["state"] == "refused":
        _fail(as_json, f"{master.name}: nothing was changed: {escape(upgrade['reason'])}")
    if upgrade["state"] == "failed":
        _fail(as_json, *_failure(master, upgrade))
    if not as_json:
        print(*_success(master, status), sep="\n")


def _say(name: str, upgrade: dict[str, Any]) -> None:
    """Tell a person who waits what is being done."""
    what = _STEPS.get(upgrade["state"])
    if what is not None:
        print(f"{name}: {what}", file=sys.stderr, flush=True)


def _wait(
    master: RunningMaster, number: int, say: Callable[[str, dict[str, Any]], None] | None
) -> dict[str, Any]:
    """Look at the master until its upgrade has ended; leave if there is nothing to see.

    Each step that begins is given to ``say``.
    """
    last, step, deadline = "", "", time.monotonic() + _STANDSTILL_SECONDS
    while time.monotonic() < deadline:
        try:
            status = ask(master.folder, {"op": "status"})
        except (NotRunning, Refused) as error:
            fail(ExitCode.CRASH, [str(error), _GONE])
        except TunnelError:  # it hangs up, or is slow, as one program becomes the other
            pause(_LOOK_SECONDS)
            continue
        upgrade = status["upgrade"]
        if upgrade is None or upgrade["number"] != number:
            fail(ExitCode.CRASH, [f"{master.name}: the master was started anew", _GONE])
        if upgrade["state"] in ("done", "canary", "refused", "failed"):
            return status
        if say is not None and upgrade["state"] != step:
            say(master.name, upgrade)
        step = upgrade["state"]
        if (now := repr(upgrade)) != last:
            last, deadline = now, time.monotonic() + _STANDSTILL_SECONDS
        pause(_LOOK_SECONDS)
    return fail(ExitCode.CRASH, [f"{master.name}: not done after {_STANDSTILL_SECONDS:g} s"])


_GONE: Final = 'the new code did not take over; "tunneltcp logs" says why, if anybody knows'


def _failure(master: RunningMaster, upgrade: dict[str, Any]) -> list[str]:
    said = [f"{master.name}: the master runs {upgrade['to']}, but {escape(upgrade['reason'])}"]
    if upgrade["left"]:
        said.append(f"{ranges(upgrade['left'])} run on as they were, with {upgrade['from']}")
    said.append('"tunneltcp upgrade" tries again; to go back, install the version before it')
    return said


def _success(master: RunningMaster, status: dict[str, Any]) -> list[str]:
    upgrade = status["upgrade"]
    was, now, left = upgrade["from"], upgrade["to"], ranges(upgrade["left"])
    tunnels = [one for one in status["tunnels"] if one["port"] in upgrade["replaced"]]
    said = [f"{one['port']}: runs {now}{_taken(one['last_takeover'])}" for one in tunnels]
    if upgrade["state"] == "canary":
        if left:
            said.append(f"{master.name}: the master runs {now}; {left} run on with {was}")
        said.append('"tunneltcp upgrade" goes on with all; to go back, install the version')
        said.append('from before again, and "tunneltcp upgrade"')
    else:
        said.append(f"{master.name}: upgraded, {was} -> {now}, process {status['pid']}")
    return said


def _taken(taken: dict[str, Any] | None) -> str:
    """Say what a worker took over from the one before it."""
    if not taken or not (taken["streams"] or taken["reset"]):
        return ""
    people = "visitor" if taken["streams"] == 1 else "visitors"
    reset = f", {taken['reset']} reset" if taken["reset"] else ""
    still = taken["stood_still_seconds"]
    after = "" if still is None else f" after {still:.2f} s"
    return f"; {taken['streams']} {people} went on{after}{reset}"


def _fail(as_json: bool, *problems: str) -> NoReturn:
    fail(ExitCode.CRASH, [] if as_json else [*problems])
