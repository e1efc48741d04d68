"""The user that workers run as, looked up on this machine."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

from tunneltcp.config.state import is_root
from tunneltcp.errors import ConfigError

__all__ = ["find_user"]

_NEEDED: Final = {"CAP_CHOWN": 0, "CAP_KILL": 5, "CAP_SETGID": 6, "CAP_SETUID": 7}
"""What root needs to make a folder for another user, become him, and end his processes."""


def find_user(name: str) -> tuple[int, int]:
    """Return the numbers of a user and of his group. May block: names can come from a network.

    Raises:
        ConfigError: If there is no such user, he is root, or we may not become him.
    """
    if sys.platform == "win32" or not is_root():
        text = "only a master that root starts can run its workers as another user"
        raise ConfigError([f"user: {text}; start it as root, or leave user out"])
    import pwd

    if missing := _missing():
        text = f"this root may not become another user (without {', '.join(missing)})"
        raise ConfigError([f"user: {text}; allow it in the service file or the container"])
    try:
        found = pwd.getpwnam(name)
    except KeyError:
        make = f"useradd --system --no-create-home --shell /usr/sbin/nologin {name}"
        raise ConfigError([f"user: there is no user {name} here; make one: {make}"]) from None
    if found.pw_uid == 0:
        raise ConfigError([f"user: {name} is root itself; name another, or leave user out"])
    return found.pw_uid, found.pw_gid


def _missing() -> list[str]:
    """Return which of the capabilities we have not; none where that cannot be seen."""
    held = -1
    with suppress(OSError, ValueError):
        lines = Path("/proc/self/status").read_text().splitlines()
        held = next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))
    return [name for name, bit in _NEEDED.items() if not held >> bit & 1]
