"""Logging: the only place that configures loguru.

Theory of operation
-------------------
Each process has one log file of its own, rotated by size; two processes that rotate one
file trip over each other. A line is one ``os.write``: nothing is buffered, so nothing
can be torn by a fork or lost in a crash. A line that cannot be written (disk full,
folder gone, pipe stuck) is dropped and counted; writing a log never raises, never
blocks, never prints and starts no thread.

A line is ``time LEVEL message key=value ...``. Control characters are escaped wherever
they come from, so foreign text cannot forge a line; the lines of a traceback start with
``  | ``, which no log line does. Or a line is one JSON object, its traceback included;
what is too long is cut inside, so that it stays one.
"""

from __future__ import annotations

import os
import select
import stat
import sys
import traceback
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, cast

import orjson
from loguru import logger

from tunneltcp.text import CONTROL, escape

if TYPE_CHECKING:
    from pathlib import Path

    from loguru import Message, Record

__all__ = [
    "Throttle",
    "access_path",
    "dropped_lines",
    "echo_from",
    "log_access",
    "setup_log",
    "write_if_room",
]

_MAX_LINE_BYTES: Final = 8192
"""One line, its traceback included; a long reason must not push out the others."""

_MAX_PIPE_BYTES: Final = 4096
"""PIPE_BUF: a pipe that polls writable takes this many bytes without blocking."""

_CONTROL_JSON: Final = {code: f"\\u{code:04x}" for code in CONTROL if code >= 0x7F}
"""The same for JSON, which escapes C0 by itself."""

_JSON_TEXTS: Final = (8192, 2000, 400, 60)
"""Characters of each text in a JSON line; the first number with which the line fits."""


class _Output:
    """Where this process's lines go; there is one, and a forked child changes its own."""

    def __init__(self) -> None:
        self.file: _RotatedFile | None = None
        self.access: _RotatedFile | None = None
        self.stderr = False
        self.echo_from = 0
        self.as_json = False
        self.level = ""
        self.dropped_echoes = 0

    def write_message(self, message: Message) -> None:
        """Write one line wherever it belongs, or count it; never raise, never wait."""
        line = self.render(message.record, _MAX_LINE_BYTES)
        if self.file is not None:
            self.file.write_line(line)
        if not self.stderr or message.record["level"].no < self.echo_from:
            return
        if len(line) > _MAX_PIPE_BYTES:
            line = self.render(message.record, _MAX_PIPE_BYTES)
        if not write_if_room(2, line):
            self.dropped_echoes += 1

    def render(self, record: Record, most: int) -> bytes:
        """Return the line of a record, of at most so many bytes."""
        try:
            return _json_line(record, most) if self.as_json else _line(record, most)
        except (ValueError, TypeError, MemoryError):
            return b'{"message":"?"}\n' if self.as_json else b"(a line that cannot be shown)\n"


_output = _Output()


def setup_log(
    path: Path,
    *,
    max_bytes: int,
    files: int,
    tunnel: int | None = None,
    stderr: bool = False,
    as_json: bool = False,
    access: str | None = None,
    level: str = "INFO",
) -> None:
    """Send what this process logs to ``path``, and to nowhere else but perhaps stderr.

    May be called again, also after a fork: what was before is forgotten, and a file that
    the parent has open is left alone. Never fails: a path that cannot be opened is tried
    again with each line, and the lines are counted.

    Args:
        path: The file; older ones are beside it as ``path.1``, ``path.2``.
        max_bytes: Size at which the file is rotated.
        files: How many are kept, this one included.
        tunnel: Public port that stands on each line.
        stderr: Also write to descriptor 2, never waiting for it.
        as_json: Write each line as one JSON object.
        access: Another file, for the lines of :func:`log_access`; rotated like the first.
        level: Least important level that is written.
    """
    for file in (_output.file, _output.access):
        if file is not None:
            file.close()
    _output.file = _RotatedFile(path, max_bytes, files)
    _output.access = _RotatedFile(access, max_bytes, files) if access else None
    _output.stderr = stderr
    _output.as_json = as_json
    _output.dropped_echoes = 0
    logger.configure(extra={} if tunnel is None else {"tunnel": tunnel})
    # One handler for good, which writes to what _output says now; a forked child keeps its
    # parent's: its own would cost each worker 1.4 MB of pages it shares with the others.
    if _output.level != level:
        logger.remove()
        logger.add(
            _output.write_message,
            level=level,
            format=_no_format,
            catch=False,  # loguru would print its complaints; write_message has none
            diagnose=False,
            enqueue=False,
        )
    _output.level = level


def _no_format(_record: Record) -> str:
    return ""  # write_message makes the line from the record


def echo_from(level: str) -> None:
    """Write only lines of at least this level to descriptor 2; the file gets all of them."""
    _output.echo_from = logger.level(level).no


def dropped_lines() -> int:
    """Return how many lines this process could not write since its log was set up."""
    files = (_output.file, _output.access)
    return _output.dropped_echoes + sum(file.dropped for file in files if file is not None)


def access_path(log_path: Path) -> str:
    """Return where the access log of a process lies: beside its log."""
    return os.fspath(log_path.with_suffix(".access.log"))


def log_access(message: str, **fields: object) -> None:
    """Write a line to the access log, if this process has one; it looks like all others."""
    if _output.access is None:
        return
    record = {
        "time": datetime.now(UTC),
        "level": logger.level("INFO"),
        "message": message,
        "extra": fields,
        "exception": None,
    }
    _output.access.write_line(_output.render(cast("Record", record), _MAX_LINE_BYTES))


def write_if_room(fd: int, data: bytes) -> bool:
    """Write at most 4096 bytes if that needs no waiting; return whether it was done."""
    if sys.platform == "win32":  # no master runs there
        return False
    else:  # noqa: RET505 - so that a type checker knows which lines are of which system
        poller = select.poll()
        try:
            poller.register(fd, select.POLLOUT)
            ready = poller.poll(0)
            if not ready or not ready[0][1] & select.POLLOUT:
                return False
            os.write(fd, data[:_MAX_PIPE_BYTES])
        except OSError:
            return False
        return True


def _line(record: Record, most: int) -> bytes:
    head = f"{_stamp(record)} {record['level'].name:<5} {escape(record['message'])}"
    fields = "".join(f" {key}={_value(value)}" for key, value in record["extra"].items())
    text = head + fields + "\n"
    text += "".join(f"  | {escape(line)}\n" for line in _traceback(record).splitlines())
    data = _encodable(text).encode()
    return data if len(data) <= most else data[: most - 5] + b" ...\n"


def _json_line(record: Record, most: int) -> bytes:
    """Return a record as one JSON object; texts are shortened until it fits."""
    trace = _traceback(record)
    data = b""
    for length in _JSON_TEXTS:
        value = {
            "time": _stamp(record),
            "level": record["level"].name,
            "message": _shortened(record["message"], length),
            "fields": {key: _plain(one, length) for key, one in record["extra"].items()},
        }
        if trace:  # its end says what went wrong
            value["traceback"] = _encodable(trace[-length:])
        text = orjson.dumps(value).decode().translate(_CONTROL_JSON)
        data = text.encode() + b"\n"
        if len(data) <= most:
            return data
    raise ValueError(f"{len(data)} bytes are too long, with {len(record['extra'])} fields")


def _plain(value: object, length: int) -> Any:  # noqa: ANN401 - JSON
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int) and abs(value) < 1 << 53:  # what every reader of JSON can hold
        return value
    return _shortened(str(value), length)


def _shortened(text: str, length: int) -> str:
    return _encodable(text if len(text) <= length else f"{text[: length - 3]}...")


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _stamp(record: Record) -> str:
    return record["time"].astimezone(UTC).isoformat(timespec="milliseconds")


def _traceback(record: Record) -> str:
    error = record["exception"]
    if error is None or error.type is None:
        return ""
    return "".join(traceback.format_exception(error.type, error.value, error.traceback))


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    text = escape(str(value))
    if text and not any(character in text for character in ' "='):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


class _RotatedFile:
    """A log file that never grows past its size and never raises."""

    def __init__(self, path: Path | str, max_bytes: int, files: int) -> None:
        self.dropped = 0
        # A text and calls of os: each function of pathlib that a worker runs through costs
        # it three or four pages of memory of its own.
        self._path = os.fspath(path)
        self._max_bytes = max_bytes
        self._files = files
        self._fd = -1
        self._pid = os.getpid()
        self._torn = False
        try:
            self._open()
        except OSError:
            self._fd = -1

    def write_line(self, line: bytes) -> None:
        """Write one line, or count it."""
        try:
            self._write(line)
        except OSError:
            self.dropped += 1

    def close(self) -> None:
        """Let the file go, unless it is our parent's: then the number is not ours."""
        if self._fd >= 0 and self._pid == os.getpid():
            os.close(self._fd)
        self._fd = -1

    def _write(self, line: bytes) -> None:
        size = self._check()
        if size and size + len(line) > self._max_bytes:
            self._rotate()
        data = b"\n" + line if self._torn else line
        written = os.write(self._fd, data)
        # A disk that fills up takes the first bytes of a line: the next one starts afresh.
        self._torn = written < len(data)
        self.dropped += self._torn

    def _check(self) -> int:
        """Open the file again if it is not the one at our path; return its size."""
        try:
            there = os.lstat(self._path)
        except FileNotFoundError:
            there = None
        if self._fd >= 0 and there is not None:
            here = os.fstat(self._fd)
            if (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino):
                return here.st_size
        self.close()
        self._open()
        return os.fstat(self._fd).st_size

    def _open(self) -> None:
        # O_NOFOLLOW: nobody who can write to the folder chooses another file for us.
        # O_NONBLOCK: a FIFO in our place must not stop us; it is refused below.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        if sys.platform != "win32":
            flags |= os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        fd = os.open(self._path, flags, 0o600)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(f"{self._path} is not a regular file")
        self._fd = fd
        self._pid = os.getpid()
        self._torn = False

    def _rotate(self) -> None:
        older = [f"{self._path}.{n}" for n in range(1, self._files)]
        names = [self._path, *older]
        for number in range(len(names) - 1, 0, -1):
            with suppress(FileNotFoundError):
                os.replace(names[number - 1], names[number])
        self.close()
        if not older:
            os.unlink(self._path)
        self._open()


class Throttle:
    """Says a thing that keeps happening only now and then, and how often it happened.

    Of each kind the first ``burst`` in a period are let through; then one each
    ``every_seconds``. Kinds are bounded: the one not seen for longest is forgotten. Of new
    ones at most ``max_new`` are let through in a period (a stranger may have many addresses).
    """

    def __init__(
        self, *, every_seconds: float = 600.0, burst: int = 1, max_kinds: int = 256
    ) -> None:
        self._every = every_seconds
        self._burst = burst
        self._max_kinds = max_kinds
        self.max_new = sys.maxsize
        self._kinds: dict[object, list[float]] = {}  # kind -> [period's start, said, missed]
        self._new = [0.0, 0]  # [period's start, kinds that were new in it]

    def admit(self, kind: object, now: float) -> int | None:
        """Return None if nothing is to be said, otherwise how many were kept quiet before."""
        entry = self._kinds.pop(kind, None)
        if entry is None:
            if now - self._new[0] >= self._every:
                self._new = [now, 0]
            self._new[1] += 1
            if self._new[1] > self.max_new:
                return None
            if len(self._kinds) >= self._max_kinds:
                del self._kinds[next(iter(self._kinds))]
            entry = [now, 0, 0]
        self._kinds[kind] = entry
        start, said, missed = entry
        if now - start >= self._every:
            entry[:] = [now, 1, 0]
        elif said < self._burst:
            entry[1] += 1
        else:
            entry[2] += 1
            return None
        return int(missed)
