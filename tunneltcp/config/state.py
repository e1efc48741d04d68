"""Where a user's state lies, and which machine this is."""

from __future__ import annotations

import os
import re
import secrets
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

from tunneltcp.errors import ConfigError

__all__ = ["host_id", "is_root", "state_base"]

_HOST_FILE: Final = "host_id"
_HOST_ID: Final = re.compile(r"[0-9a-f]{32}")


def is_root() -> bool:
    """Say whether this is the user root; there is none on Windows."""
    return sys.platform != "win32" and os.geteuid() == 0


def state_base() -> Path:
    """Return the folder under which each instance keeps what must outlive it.

    Raises:
        ConfigError: If this user has no home.
    """
    if is_root():
        return Path("/var/lib/tunneltcp")
    variable = "LOCALAPPDATA" if sys.platform == "win32" else "XDG_STATE_HOME"
    base = Path(os.environ.get(variable, ""))
    if base.is_absolute():
        return base / "tunneltcp"
    with suppress(RuntimeError):
        return Path.home() / ".local/state/tunneltcp"
    raise ConfigError(["there is no home folder; give --state-dir, --run-dir and --log-dir"])


def host_id(state_folder: Path) -> str:
    """Return which machine this is: random, made once, kept in the state folder.

    Raises:
        OSError: If it can neither be read nor written.
    """
    path = state_folder / _HOST_FILE
    with suppress(FileNotFoundError, UnicodeDecodeError):
        known = path.read_text().strip()
        if _HOST_ID.fullmatch(known):
            return known
    made = secrets.token_hex(16)
    temporary = state_folder / f".{_HOST_FILE}.{os.getpid()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    if sys.platform != "win32":
        flags |= os.O_NOFOLLOW
    fd = os.open(temporary, flags, 0o600)
    try:
        os.write(fd, f"{made}\n".encode())
        os.fsync(fd)
    finally:
        os.close(fd)
    temporary.replace(path)
    return made
