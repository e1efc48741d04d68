"""``tunneltcp logs``: what a tunnel's process, or the master, wrote last, and what comes."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

import click

from tunneltcp.cli.ask import ask_all, fail, instance_options
from tunneltcp.cli.log_reader import LogReader
from tunneltcp.cli.masters import complete_port
from tunneltcp.cli.pause import pause_while_read, until_interrupted
from tunneltcp.errors import ConfigError, ExitCode
from tunneltcp.master.folders import find_folders
from tunneltcp.text import escape

__all__ = ["logs_command"]

_MAX_LINES: Final = 100_000
"""Ten megabytes; for more there are the files."""

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
    reader = LogReader(path)
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
