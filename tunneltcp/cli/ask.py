"""Find the masters on this machine and ask them something.

Not being allowed to ask and nobody being there are different answers: who may not ask is
told whose master it is.
"""

from __future__ import annotations

import os
import pwd
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

from tunneltcp.control.codec import FrameDecoder, encode_frame
from tunneltcp.control.peer import peer_uid
from tunneltcp.errors import ControlChannelError, ExitCode, TunnelError
from tunneltcp.master.folders import (
    CONTROL_SOCKET,
    instance_problem,
    locked_pid,
    run_base,
    short_address,
)

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "RELOAD_SECONDS",
    "NotAllowed",
    "NotRunning",
    "Refused",
    "ask",
    "ask_all",
    "fail",
    "find_run_folders",
    "instance_options",
]

RELOAD_SECONDS: Final = 60.0
"""For what a master has to read first: a disk, or a name service, may be slow."""

_ANSWER_SECONDS: Final = 5.0
"""A master answers in milliseconds; one that does not in this time hangs."""


class NotRunning(TunnelError):
    """There is no master in that folder."""


class NotAllowed(TunnelError):
    """There may be a master, and only its owner and root may ask it."""


class Refused(TunnelError):
    """The master answered that it does not do that; ``answer`` is all it said."""

    def __init__(self, answer: dict[str, Any]) -> None:
        self.answer = answer
        super().__init__(str(answer["error"]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Where to look."""

    folders: tuple[Path, ...]
    closed: tuple[Path, ...]
    """Folders of other users that we cannot look into."""


def instance_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say which running master is meant."""
    for option in (
        click.option(
            "--run-dir",
            type=click.Path(path_type=Path, readable=False),
            help="The one in this folder.",
        ),
        click.option("--instance", help="Only the instance of this name."),
    ):
        command = option(command)
    return command


def ask_all(
    request: dict[str, Any], instance: str | None, run_dir: Path | None, *, own: bool = False
) -> tuple[list[dict[str, Any]], list[str]]:
    """Ask all masters that are meant; return their answers, and what kept others from it.

    With ``own`` only those of this very user are believed: see :func:`ask`.
    Leaves with :attr:`ExitCode.USAGE` where ``instance`` cannot be a name.
    """
    if instance is not None and (problem := instance_problem(instance)):
        fail(ExitCode.USAGE, [problem])
    found = find_run_folders(instance, run_dir)
    answers: list[dict[str, Any]] = []
    problems: list[str] = []
    left: list[str] = []
    for folder in found.folders:
        try:
            answers.append(ask(folder, request, own=own) | {"run_dir": str(folder)})
        except NotRunning as error:
            was_cut = run_dir is not None or (folder / CONTROL_SOCKET).exists()
            (problems if was_cut else left).append(str(error))
        except TunnelError as error:
            problems.append(str(error))
    if not answers:  # a master that stopped in order leaves its folder, and is no trouble
        problems += left
    if not answers and not problems:
        problems = _nothing_found(instance, found)
    return answers, problems


def _nothing_found(instance: str | None, found: Found) -> list[str]:
    what = f'instance "{instance}" is' if instance else "no instance is"
    not_running = f"{what} {'not ' if instance else ''}running as user {_user(os.geteuid())}"
    closed = [
        f"{folder} belongs to user {_owner(folder)}: only {_owner(folder)} and root may ask"
        for folder in found.closed
    ]
    return [not_running, *closed]


def find_run_folders(instance: str | None, run_dir: Path | None) -> Found:
    """Return the run folders to ask: the one given, or those found in the usual places.

    An instance that is in none of them is looked for at root's and at other users' too,
    so that they are told whose it is.
    """
    if run_dir is not None:
        return Found(folders=(run_dir,), closed=())
    folders: list[Path] = []
    closed: list[Path] = []
    for base in _bases():
        try:
            names = [instance] if instance else sorted(folder.name for folder in base.iterdir())
            folders += [base / name for name in names if (base / name).is_dir()]
        except PermissionError:
            closed.append(base)
        except OSError:
            continue
    mine = [folder for folder in folders if _is_mine(folder)]
    if instance is None or mine:
        folders = mine
    return Found(folders=tuple(dict.fromkeys(folders)), closed=tuple(closed))


def _bases() -> list[Path]:
    """Return where run folders may lie: ours first, then root's, then other users'."""
    others = [*Path("/run/user").glob("*/tunneltcp"), *Path("/tmp").glob("tunneltcp-*")]  # noqa: S108
    return list(dict.fromkeys([run_base(), Path("/run/tunneltcp"), *sorted(others)]))


def _is_mine(folder: Path) -> bool:
    with suppress(OSError):
        return os.geteuid() in (0, folder.stat().st_uid)
    return False


def ask(
    run_folder: Path,
    request: dict[str, Any],
    seconds: float = _ANSWER_SECONDS,
    *,
    own: bool = False,
) -> dict[str, Any]:
    """Ask the master in a run folder; ``seconds`` bounds all of it.

    Root may ask everybody's, and anybody may play a master in a folder of his own. ``own`` is
    for those whose word decides which token is used: who answers must be this very user.

    Raises:
        NotRunning: If there is none.
        NotAllowed: If we may not ask it.
        Refused: If it answers with an error.
        TunnelError: If it does not answer properly.
    """
    path = run_folder.absolute() / CONTROL_SOCKET
    try:
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection,
            short_address(path) as address,
        ):
            deadline = time.monotonic() + seconds
            connection.settimeout(seconds)
            connection.connect(address)
            if own and peer_uid(connection) != os.geteuid():
                text = "is not run by this user; --run-dir asks it all the same"
                raise NotAllowed(f"the master in {run_folder} {text}")
            connection.sendall(encode_frame(request))
            return _receive(connection, deadline)
    except PermissionError as error:
        raise _not_allowed(run_folder) from error
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError) as error:
        raise _not_there(run_folder) from error
    except ConnectionError as error:
        raise TunnelError(f"the master in {run_folder} hung up") from error
    except (OSError, ControlChannelError) as error:
        raise TunnelError(f"the master in {run_folder} does not answer: {error}") from error


def _receive(connection: socket.socket, deadline: float) -> dict[str, Any]:
    decoder = FrameDecoder()
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        connection.settimeout(left)
        data = connection.recv(1 << 16)
        if not data:
            raise ConnectionResetError
        for answer in decoder.feed(data):
            if "error" in answer:
                raise Refused(answer)
            return answer


def _not_allowed(run_folder: Path) -> NotAllowed:
    owner = _owner(run_folder)
    return NotAllowed(
        f"the master in {run_folder} belongs to user {owner}: only {owner} and root may ask it"
    )


def _not_there(run_folder: Path) -> TunnelError:
    pid = None
    with suppress(OSError):
        pid = locked_pid(run_folder)
    if pid is not None:
        return TunnelError(f"the master in {run_folder} (process {pid}) is starting or leaving")
    return NotRunning(f"no master is running in {run_folder}")


def _owner(folder: Path) -> str:
    """Return whose folder it is; of the nearest one above that we may look at."""
    for place in (folder, *folder.absolute().parents):
        with suppress(OSError):
            return _user(place.stat().st_uid)
    return "unknown"


def _user(uid: int) -> str:
    with suppress(KeyError):
        return pwd.getpwuid(uid).pw_name
    return str(uid)


def fail(code: int, problems: list[str]) -> NoReturn:
    """Say what is wrong, a line each, and leave."""
    for problem in problems:
        print(f"tunneltcp: {problem}", file=sys.stderr)
    sys.exit(code)
