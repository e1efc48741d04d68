"""Run a master: ``python -m tunneltcp.master``, ``tunneltcp server``, ``tunneltcp client``."""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click
from setproctitle import setproctitle

from tunneltcp import __version__
from tunneltcp.cli.announce import announce
from tunneltcp.cli.environment import as_variable, move_out, moved
from tunneltcp.cli.pause import pause
from tunneltcp.cli.servers_here import servers_here
from tunneltcp.cli.takeover import LAYOUT, answer_check
from tunneltcp.config.fields import JsonObject
from tunneltcp.config.load import build_config, load_config
from tunneltcp.config.model import DEFAULT_LOG_BYTES, DEFAULT_LOG_FILES
from tunneltcp.config.plain import config_from_plain
from tunneltcp.config.state import state_base
from tunneltcp.config.token_reader import TokenReader
from tunneltcp.config.tokens import TOKEN_VARIABLE, TokenPlace
from tunneltcp.config.users import find_user
from tunneltcp.control.context import Role
from tunneltcp.control.privileges import protect_process
from tunneltcp.errors import ConfigError, ExitCode, MasterRunning
from tunneltcp.log import setup_log
from tunneltcp.master.again import Again, Legacy
from tunneltcp.master.folders import find_folders, instance_problem
from tunneltcp.master.handover import named_handover
from tunneltcp.master.master import Master
from tunneltcp.master.reading import read_config
from tunneltcp.master.secrets import PortSecrets
from tunneltcp.protocol.preface import port_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunneltcp.config.model import Config, LogFormat
    from tunneltcp.master.folders import Folders

__all__ = [
    "client_command",
    "folder_options",
    "main",
    "run_master",
    "server_command",
    "token_states",
]

SUPERVISORD_SECONDS: Final = 5.0
"""How long a master that cannot start still lives under supervisord. That one gives up for
good on a program that leaves too early too often, but starts one that lived longer than
``startsecs`` (1 s by default) again for ever, and so finds a config that was mended."""

_FILE = click.Path(path_type=Path, readable=False)

_PORTS: Final = re.compile(r"[0-9][0-9, -]*")
"""What is a list of ports and not the name of a file ("./60001" is one)."""


def folder_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say which instance it is and where it keeps its things."""
    for option in (
        click.option("--instance", help="Name of this instance; the role's name by default."),
        click.option("--state-dir", type=_FILE, help="Folder for what must outlive it."),
        click.option("--run-dir", type=_FILE, help="Folder for its socket and pid; private."),
        click.option("--log-dir", type=_FILE, help="Folder for its log files."),
        click.option(
            "--log-format",
            type=click.Choice(["text", "json"]),
            help="How log lines look; overrules the config.",
        ),
    ):
        command = option(command)
    return command


token_option = click.option(
    "--token-file",
    type=_FILE,
    help="File with the token; overrules TUNNELTCP_TOKEN and the config.",
)
bind_option = click.option(
    "--bind",
    multiple=True,
    metavar="ADDRESS",
    help="Address of the public ports, may be repeated; overrules the config.",
)
server_option = click.option("--server", metavar="HOST", help="Whom the client dials.")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--role", required=True, type=click.Choice([role.value for role in Role]))
@click.option("--config", "file", type=_FILE, help="The config, JSON.")
@server_option
@bind_option
@token_option
@folder_options
@click.version_option(__version__, prog_name="tunneltcp")
def main(role: str, file: Path | None, **options: Any) -> None:  # noqa: ANN401 - click's
    """Run one side of the tunnels until TERM."""
    run_master(Role(role), file, **options)


@click.command("server")
@click.argument("file", required=False, type=_FILE, metavar="[FILE | PORTS]")
@bind_option
@token_option
@folder_options
def server_command(file: Path | None, **options: Any) -> None:  # noqa: ANN401 - click's
    """Run the server's side: it opens the public ports.

    FILE is the config, /etc/tunneltcp/INSTANCE.json if there is none; or say only which
    PORTS to open, such as 60001, 60001-60003 or 60001,60007.
    """
    run_master(Role.SERVER, file, **options)


@click.command("client")
@click.argument("file", required=False, type=_FILE)
@server_option
@token_option
@folder_options
def client_command(file: Path | None, **options: Any) -> None:  # noqa: ANN401 - click's
    """Run the client's side: it leads to your apps.

    FILE is the config, /etc/tunneltcp/INSTANCE.json if there is none.
    """
    run_master(Role.CLIENT, file, **options)


def run_master(
    role: Role,
    file: Path | None,
    *,
    server: str | None = None,
    bind: tuple[str, ...] = (),
    instance: str | None = None,
    state_dir: Path | None = None,
    run_dir: Path | None = None,
    log_dir: Path | None = None,
    log_format: LogFormat | None = None,
    token_file: Path | None = None,
) -> NoReturn:
    """Load the config, run the master, and leave with its exit code."""
    secrets = moved()
    move_out([TOKEN_VARIABLE], secrets)
    asked = named_handover()
    protect_process()
    instance = role.value if instance is None else instance
    try:
        if problem := _option_problem(role, instance, server, bind):
            raise ConfigError([problem])
        load, source = _config_source(role, file, instance, server, bind, log_format)
        load = partial(_with_token, load, token_file, TOKEN_VARIABLE in secrets)
        load = partial(_with_user, load)
        folders = find_folders(instance, state=state_dir, run=run_dir, log=log_dir)
        code = _run(role, instance, folders, load, source, secrets, asked)
    except ConfigError as error:
        _fail(ExitCode.USAGE, *error.problems, *_hints(role, file, error))
    except MasterRunning as error:
        _fail(ExitCode.TEMPORARY, str(error))
    except OSError as error:
        _fail(ExitCode.CRASH, str(error))
    sys.exit(code)


def _run(
    role: Role,
    instance: str,
    folders: Folders,
    load: Callable[[], Config],
    source: Path | None,
    secrets: dict[str, int],
    asked: tuple[str, int] | None,
) -> int:
    """Be a master, or a part of its upgrade if that was ``asked``; return the exit code."""
    # Here and not above: "tunneltcp status" needs no worker. Before the first fork, so that
    # all workers share it.
    from tunneltcp.workers.run import run_worker
    from tunneltcp.workers.warm import warm_up

    reader = TokenReader(role.value, token_states(role, folders.state), secrets, servers_here)
    if asked is not None and asked[0] == "check":
        empty = PortSecrets(role, port_key, reader)
        prepare = partial(_prepare_tls_of, role)
        return answer_check(asked[1], load, folders, empty, prepare, warm_up)
    again = Again(environment=as_variable(secrets), fds=tuple(secrets.values()))
    legacy = None if asked is None else _open_legacy(folders, again, asked)
    master = Master(
        _have_config(role, load, secrets, legacy),
        role=role,
        instance=instance,
        folders=folders,
        worker_main=run_worker,
        warm_up=warm_up,
        derive_key=port_key,
        reader=reader,
        announce=partial(_announce, source, legacy),
        load_again=load if source else None,
        log_to_stderr=True,
        again=again,
        layout=LAYOUT,
        legacy=legacy,
    )
    setproctitle(f"tunneltcp {role.value}: master ({instance})")
    return master.run()


def _announce(source: Path | None, legacy: Legacy | None, master: Master) -> None:
    """Say what runs; who was told when it started is not told again."""
    if legacy is None:
        announce(master, source)


def _open_legacy(folders: Folders, again: Again, asked: tuple[str, int]) -> Legacy:
    """Read what the version before us left; what is wrong with it must be in the log."""
    setup_log(
        folders.log / "master.log",
        max_bytes=DEFAULT_LOG_BYTES,
        files=DEFAULT_LOG_FILES,
        stderr=True,
    )
    return Legacy.named(again, asked, LAYOUT)


def _have_config(
    role: Role,
    load: Callable[[], Config],
    secrets: dict[str, int],
    legacy: Legacy | None,
) -> Config:
    """Read the config, or have the one with which the version before us ran."""
    if legacy is None:
        config = read_config(load)
        _prepare_tls_of(role, config)
        places = [place for place in config.token_places if place.kind == "variable"]
        move_out(dict.fromkeys(place.where for place in places), secrets)
        return config
    with legacy.guarded():
        config = config_from_plain(legacy.state["config"])
        _prepare_tls_of(role, config)
    return config


def _prepare_tls_of(role: Role, config: Config) -> None:
    if role is Role.CLIENT and config.tls:
        prepare_tls(config.verify)


def _with_token(load: Callable[[], Config], token_file: Path | None, moved: bool) -> Config:
    """Load the config; what stands beside it says better where the token is."""
    config = load()
    if token_file is not None:
        place = TokenPlace(kind="file", where=str(token_file.absolute()))
    elif moved:
        place = TokenPlace(kind="variable", where=TOKEN_VARIABLE)
    else:
        return config
    if config.auth == "none":
        raise ConfigError([f'there is a token in {place}, and "auth" is "none"'])
    return replace(config, token=place)


def _with_user(load: Callable[[], Config]) -> Config:
    """Load the config and find the user that it names: in a child, since that may block."""
    config = load()
    return replace(config, run_as=find_user(config.user)) if config.user else config


def token_states(role: Role, state: Path) -> tuple[Path, ...]:
    """Return the state folders in which a token may lie: an instance's own, then the user's."""
    if role is Role.SERVER:
        return (state,)
    with suppress(ConfigError):
        return (state, state_base())
    return (state,)


def _hints(role: Role, file: Path | None, error: ConfigError) -> list[str]:
    """Say what else to give to who gave no config and has none in the usual place."""
    if file is not None or "cannot be read" not in error.problems[0]:
        return []
    ports = ", or ports such as 60001-60003" if role is Role.SERVER else ""
    return [f"give the config as FILE{ports}"]


def _config_of_ports(ports: str, bind: tuple[str, ...], log_format: LogFormat | None) -> Config:
    config = build_config(JsonObject([("ports", ports)]), "server", bind=bind)
    return config if log_format is None else replace(config, log_format=log_format)


def _config_source(
    role: Role,
    file: Path | None,
    instance: str,
    server: str | None,
    bind: tuple[str, ...],
    log_format: LogFormat | None,
) -> tuple[Callable[[], Config], Path | None]:
    """Return what makes the config, and the file it comes from; None for a list of ports."""
    if role is Role.SERVER and file is not None and _PORTS.fullmatch(str(file)):
        return partial(_config_of_ports, str(file), bind, log_format), None
    path = file or Path(f"/etc/tunneltcp/{instance}.json")
    return partial(
        load_config, path, role.value, server=server, bind=bind, log_format=log_format
    ), path


def prepare_tls(verify: bool | Path) -> None:
    """Have the settings of TLS, and its CAs, before the first fork: workers share them."""
    from ssl import SSLError

    from tunneltcp.net.tls import client_context

    try:
        client_context(verify)
    except OSError as error:
        why = "holds no certificates in PEM" if isinstance(error, SSLError) else error.strerror
        raise ConfigError([f"verify: {verify} {why}"]) from error


def _option_problem(
    role: Role, instance: str, server: str | None, bind: tuple[str, ...]
) -> str:
    if role is Role.SERVER and server is not None:
        return "--server is for the client, and this is the server"
    if role is Role.CLIENT and bind:
        return "--bind is for the server, and this is the client"
    return instance_problem(instance)


def _fail(code: int, *problems: str) -> NoReturn:
    for problem in problems:
        print(f"tunneltcp: {problem}", file=sys.stderr)
    if "SUPERVISOR_ENABLED" in os.environ and not os.isatty(2):
        pause(SUPERVISORD_SECONDS)
    sys.exit(code)
