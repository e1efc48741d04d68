"""Where an instance keeps its state, its run files and its logs; one master in each.

Theory of operation
-------------------
The run folder (0700) holds the lock, which is also the pid file, and the control socket.
The lock is a ``flock``: the kernel drops it with the process, so a crash leaves nothing
to clean up. Below ``/tmp`` anybody may have made a folder of the right name first, so
owner and mode are checked before it is used.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tunneltcp.config.fields import is_file_name
from tunneltcp.config.state import state_base
from tunneltcp.errors import ConfigError, MasterRunning

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "CONTROL_SOCKET",
    "Folders",
    "InstanceLock",
    "find_folders",
    "instance_problem",
    "locked_pid",
    "make_folders",
    "make_log_folder",
    "run_base",
    "short_address",
]

CONTROL_SOCKET: Final = "control.sock"
"""Name of the control socket in the run folder."""

_MAX_ADDRESS_BYTES: Final = 107
"""What fits into a sockaddr_un, and its zero."""

_LOCK_FILE: Final = "master.pid"
_INSTANCE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Folders:
    """The three folders of an instance."""

    state: Path
    run: Path
    log: Path

    def tunnel_logs(self, user: str) -> Path:
        """Return where workers log: beside the master, or in a folder of their own user."""
        return self.log / user if user else self.log


def instance_problem(name: str) -> str:
    """Return what is wrong with the name of an instance; empty if nothing is."""
    if _INSTANCE.fullmatch(name):
        return ""
    return f"{name!a} is not a name for an instance (letters, digits, . _ -, at most 64)"


def find_folders(
    instance: str,
    *,
    state: Path | None = None,
    run: Path | None = None,
    log: Path | None = None,
) -> Folders:
    """Return the folders of an instance, without touching any; what is given wins.

    Raises:
        ConfigError: If one is not given that lies below the home of a user who has none.
    """
    if log is None and os.geteuid() == 0:
        log = Path("/var/log/tunneltcp", instance)
    return Folders(
        state=(state or state_base() / instance).absolute(),
        run=(run or run_base() / instance).absolute(),
        log=(log or state_base() / instance / "log").absolute(),
    )


def run_base() -> Path:
    """Return the folder under which run folders lie by default."""
    if os.geteuid() == 0:
        return Path("/run/tunneltcp")
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    # After "su" it is the folder of somebody else, and of no use.
    with suppress(OSError):
        if base.startswith("/") and Path(base).stat().st_uid == os.geteuid():
            return Path(base, "tunneltcp")
    return Path(f"/tmp/tunneltcp-{os.geteuid()}")  # noqa: S108 - checked by make_folders


def make_folders(folders: Folders) -> None:
    """Make what is missing; check that the run folder is ours alone.

    Raises:
        ConfigError: If a folder cannot be made or used, all of them at once.
    """
    problems = []
    for option, path in (("state", folders.state), ("run", folders.run), ("log", folders.log)):
        if not is_file_name(str(path)):  # no answer and no line of the log could hold it
            named = f"folder {str(path)!a} cannot be used"
            problems.append(f"{named}: its name is not UTF-8; see --{option}-dir")
            continue
        try:
            if option == "run":
                _make_private(path)
            else:
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
                raise PermissionError(0, "not writable")
        except FileExistsError:
            problems.append(
                f"folder {path} cannot be used: a file is there; see --{option}-dir"
            )
        except OSError as error:
            text = (error.strerror or str(error)).lower()
            problems.append(f"folder {path} cannot be used: {text}; see --{option}-dir")
    if problems:
        raise ConfigError(problems)


def make_log_folder(folders: Folders, user: str, run_as: tuple[int, int] | None) -> None:
    """Make the folder in which another user's workers log; it is theirs.

    Raises:
        ConfigError: If that cannot be done, or somebody else has it.
    """
    if run_as is None:
        return
    path = folders.tunnel_logs(user)
    try:
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
            os.chown(path, *run_as, follow_symlinks=False)
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError(0, "not a folder")
        if status.st_uid != run_as[0]:
            raise PermissionError(0, f"belongs to user {status.st_uid}, not to {user}")
    except OSError as error:
        text = (error.strerror or str(error)).lower()
        raise ConfigError([f"user: folder {path} cannot be used: {text}"]) from error


def _make_private(path: Path) -> None:
    parent = path.parent
    mode = 0o755 if os.geteuid() == 0 else 0o700
    if not parent.exists():
        parent.mkdir(parents=True, mode=mode, exist_ok=True)
        if mode == 0o755:  # whoever may not ask a master may still see whose it is
            parent.chmod(mode)
    elif parent.parent == Path("/tmp"):  # noqa: S108 - that is why it is checked
        _check_owner(parent)
    path.mkdir(mode=0o700, exist_ok=True)
    _check_owner(path)
    path.chmod(0o700)
    _check_contents(path)


def _check_contents(run_folder: Path) -> None:
    """Refuse what is in the place of our files and not ours: it would be overwritten."""
    for name, is_ours in ((CONTROL_SOCKET, stat.S_ISSOCK), (_LOCK_FILE, stat.S_ISREG)):
        with suppress(FileNotFoundError):
            if not is_ours((run_folder / name).lstat().st_mode):
                raise OSError(0, f"{name} in it is not of tunneltcp, remove it")


def _check_owner(path: Path) -> None:
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(0, "not a folder")
    if status.st_uid != os.geteuid():
        raise PermissionError(0, f"belongs to user {status.st_uid}")
    if status.st_mode & 0o022:
        raise PermissionError(0, "others may write to it")


_LOCK_SECONDS: Final = 0.5
"""A lock that nobody's pid goes with for longer than this is another master's."""

_LOCK_PAUSE_SECONDS: Final = 0.005


class InstanceLock:
    """Holds an instance: one master each."""

    def __init__(self, run_folder: Path, instance: str, fd: int = -1) -> None:
        """Take the lock, unless ``fd`` is it already, and write our pid into it.

        Raises:
            MasterRunning: If another process holds it.
        """
        self._path = run_folder / _LOCK_FILE
        self.fd = self._take(instance) if fd < 0 else fd
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, f"{os.getpid()}\n".encode(), 0)

    def _take(self, instance: str) -> int:
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            fd = os.open(self._path, flags, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                pid = _read_pid(fd)
                os.close(fd)
                # Who only asks whether we run has the lock for an instant (locked_pid).
                if (pid is not None and _is_there(pid)) or time.monotonic() > deadline:
                    raise MasterRunning(instance, pid) from error
                time.sleep(_LOCK_PAUSE_SECONDS)  # noqa: TID251 - before there is a loop
                continue
            # The one before us unlinks the file as it leaves: ours must be the one there.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), self._path.stat()):
                    return fd
            os.close(fd)

    def release(self) -> None:
        """Give the instance back and remove the file."""
        with suppress(OSError):
            self._path.unlink()
        os.close(self.fd)


def locked_pid(run_folder: Path) -> int | None:
    """Return the pid of the master that holds a run folder; None if none does."""
    try:
        fd = os.open(run_folder / _LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read_pid(fd) or 0
    finally:
        os.close(fd)
    return None


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _read_pid(fd: int) -> int | None:
    text = os.pread(fd, 32, 0).strip()
    return int(text) if text.isdigit() else None


@contextmanager
def short_address(path: Path) -> Iterator[str]:
    """Give a name for a socket that fits into an address, however long its path is."""
    if len(os.fsencode(path)) <= _MAX_ADDRESS_BYTES:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
