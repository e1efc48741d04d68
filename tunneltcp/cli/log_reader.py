"""Reads a log, its end and what comes, however often it is rotated meanwhile.

A log is a file and its older parts: ``path``, ``path.1``, ``path.2``... Following it means
to keep the file open that was read last: when it is rotated it still has its number, so it
is found among the older parts, and all that came after it is read in order.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, BinaryIO, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["LogReader"]

_BLOCK_BYTES: Final = 1 << 16
_READ_BYTES: Final = 1 << 20
"""Read at one look; a log that grows faster is shown later."""

_MAX_PARTS: Final = 100
"""As many files as a config may ask for."""


class LogReader:
    """Reads a log that may be rotated at any time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._begun = b""
        """The beginning of a line that is not all there yet."""

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def last_lines(self, count: int) -> list[bytes]:
        """Return the last lines, from older parts too; new ones come after these.

        Raises:
            OSError: If the log cannot be read.
        """
        self._file = _open(self._path)
        lines = _tail(self._file, count)
        end = self._file.tell()
        for part in _older(self._path):
            if len(lines) >= count:
                break
            with suppress(FileNotFoundError), _open(part) as file:
                lines = _tail(file, count - len(lines)) + lines
        self._file.seek(end)
        return lines

    def new_lines(self) -> list[bytes]:
        """Return the whole lines that came since the last call, across rotations."""
        data = self._rest()
        if len(data) < _READ_BYTES and (after := self._next_part()) is not None:
            data += self._rest()  # what came before it was rotated
            self.close()
            self._file = after
            data += self._rest()
        *lines, self._begun = (self._begun + data).split(b"\n")
        if len(self._begun) > _READ_BYTES:  # no line of ours is that long
            lines.append(self._begun)
            self._begun = b""
        return lines

    def _rest(self) -> bytes:
        """Return what is left in the file at hand; all of it if it became shorter."""
        if self._file is None:
            return b""
        if os.fstat(self._file.fileno()).st_size < self._file.tell():
            self._file.seek(0)
        return self._file.read(_READ_BYTES)

    def _next_part(self) -> BinaryIO | None:
        """Open the part that comes after the file at hand; None if that is the newest.

        Where none is at hand it is the oldest that is there.
        """
        here = None if self._file is None else os.fstat(self._file.fileno())
        after = None
        for path in (self._path, *_older(self._path)):
            try:
                file = _open(path)
            except FileNotFoundError:
                continue  # it is being rotated: the next look finds it
            if here is not None and os.path.samestat(os.fstat(file.fileno()), here):
                file.close()
                break
            if after is not None:
                after.close()
            after = file
        return after


def _open(path: Path) -> BinaryIO:
    """Open a log as those who write it do: it is no link to another file, and no pipe."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags), "rb")


def _older(path: Path) -> Iterator[Path]:
    """Name the older parts that are there, the newest of them first."""
    for number in range(1, _MAX_PARTS):
        part = path.with_name(f"{path.name}.{number}")
        if not part.exists():
            return
        yield part


def _tail(file: BinaryIO, count: int) -> list[bytes]:
    """Return the last whole lines of a file and leave it behind them."""
    file.seek(0, os.SEEK_END)
    start = end = file.tell()
    data = b""
    while start and data.count(b"\n") <= count:
        size = min(_BLOCK_BYTES, start)
        start -= size
        file.seek(start)
        data = file.read(size) + data
    whole = data[: data.rfind(b"\n") + 1]
    file.seek(end - (len(data) - len(whole)))
    return whole.split(b"\n")[:-1][-count:] if count else []
