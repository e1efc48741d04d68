"""Which tunnels a person has stopped: kept in the state folder, across our restarts."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import orjson

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

__all__ = ["StoppedPorts"]

_FILE: Final = "stopped.json"
_MAX_BYTES: Final = 64 * 1024
"""500 ports take 4 kB."""


class StoppedPorts:
    """The set of public ports that a file holds."""

    def __init__(self, folder: Path) -> None:
        """Read what is there; a file that cannot be read or understood counts as empty."""
        self._path = folder / _FILE
        self.ports: frozenset[int] = frozenset()
        with suppress(OSError, ValueError, TypeError, LookupError):
            if self._path.stat().st_size <= _MAX_BYTES:
                value = orjson.loads(self._path.read_bytes())
                ports = value["ports"] if isinstance(value, dict) else []
                self.ports = frozenset(port for port in ports if type(port) is int)

    def keep(self, ports: Collection[int]) -> None:
        """Replace the set, at once and whole.

        Raises:
            OSError: If it cannot be kept; then ``ports`` says what the file still does.
        """
        temporary = self._path.with_suffix(".new")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(temporary, flags, 0o600)
        try:
            data = orjson.dumps({"ports": sorted(ports)})
            if os.write(fd, data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(fd)
        finally:
            os.close(fd)
        temporary.replace(self._path)
        self.ports = frozenset(ports)
