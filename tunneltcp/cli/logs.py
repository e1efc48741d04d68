"""``tunneltcp logs``: what a tunnel's process, or the master, wrote last, and what comes.

A log is a file and its older parts: ``path``, ``path.1``, ``path.2``... Following it means
to keep the file open that was read last: when it is rotated it still has its number, so it
is found among the older parts, and all that came after it is read in order.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

import click

from tunneltcp.cli.ask import ask_all, fail, instance_options
from tunneltcp.cli.masters import complete_port
from tunneltcp.cli.pause import pause_while_read, until_interrupted
from tunneltcp.errors import ConfigError, ExitCode
from tunneltcp.master.folders import find_folders
from tunneltcp.text import escape

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["logs_command"]

_MAX_LINES: Final = 100_000
"""Ten megabytes; for more there are the files."""

_BLOCK_BYTES: Final = 1 << 16
_READ_BYTES: Final = 1 << 20
"""Read at one look; a log that grows faster is shown later."""

_MAX_PARTS: Final = 100
"""As many files as a config may ask for."""

_LOOK_SECONDS: Final = 0.25
"""How late a line may be shown."""


@click.command("logs")
@click.argument(
    "port",
    required=False,
    type=click.IntRange(1, 65_535),
    shell_complete=complete_port,
)
@click.option("-f", "--follow", is_flag=True, help="Go on until Ctrl-C, as lines come.")
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(0, _MAX_LINES),
    default=20,
    show_default=True,
    help="How many of the last lines.",
)
@click.option(
    "--log-dir",
    type=click.Path(path_type=Path, file_okay=False, readable=False),
    help="Where the logs are; nothing needs to run then.",
)
@instance_options
def logs_command(
    port: int | None,
    follow: bool,
    lines: int,
    log_dir: Path | None,
    instance: str | None,
    run_dir: Path | None,
) -> None:
    """Show the log of a tunnel, or of the master.

    With PORT it is the tunnel's, without it the master's.
    """
    name = "master.log" if port is None else f"tunnel-{port}.log"
    path = _newest(log_dir, name) if log_dir else _log_folder(name, instance, run_dir) / name
    reader = _Reader(path)
    try:
        with until_interrupted():
            _print(reader.last_lines(lines))
            while follow and pause_while_read(_LOOK_SECONDS):
                _print(reader.new_lines())
    except FileNotFoundError:
        what = "the master" if port is None else f"tunnel {port}"
        fail(ExitCode.CRASH, [f"there is no log of {what}: no file {path}"])
    except OSError as error:
        fail(ExitCode.CRASH, [f"{path}: {(error.strerror or str(error)).lower()}"])
    finally:
        reader.close()


def _log_folder(name: str, instance: str | None, run_dir: Path | None) -> Path:
    """Return the folder that is meant: a running master's, or an instance's usual one."""
    answers, problems = ask_all({"op": "status"}, instance, run_dir)
    key = "log_dir" if name == "master.log" else "tunnel_log_dir"
    folders = {
        Path(answer.get(key, answer["log_dir"])): str(answer["instance"]) for answer in answers
    }
    having = {path: name_ for path, name_ in folders.items() if (path / name).exists()}
    if len(having) > 1:
        choices = [f"  --instance {one}  ({path})" for path, one in having.items()]
        fail(ExitCode.USAGE, [f"several masters have a {name}; say which one:", *choices])
    if folders:
        return next(iter(having or folders))
    if instance is not None and run_dir is None:
        with suppress(ConfigError):  # no home folder
            return _newest(find_folders(instance).log, name).parent
    hint = "the logs of one that does not run: --log-dir FOLDER or --instance NAME"
    return fail(ExitCode.CRASH, [*problems, hint])


def _newest(folder: Path, name: str) -> Path:
    """Return where a log lies: in the folder, or in that of the user that workers run as."""
    found = [path for path in (folder / name, *folder.glob(f"*/{name}")) if path.exists()]
    return max(found, key=lambda path: path.stat().st_mtime, default=folder / name)


def _print(lines: list[bytes]) -> None:
    if not lines:
        return
    # What a dying interpreter says goes there too, and nobody has escaped that.
    text = "".join(escape(line.decode("utf-8", "replace")) + "\n" for line in lines)
    sys.stdout.write(text)
    sys.stdout.flush()


class _Reader:
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
        """Open the part that comes after the file at hand; None if that is the newest."""
        assert self._file is not None, "it was read before"
        here = os.fstat(self._file.fileno())
        after = None
        for path in (self._path, *_older(self._path)):
            try:
                file = _open(path)
            except FileNotFoundError:
                continue  # it is being rotated: the next look finds it
            if os.path.samestat(os.fstat(file.fileno()), here):
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
