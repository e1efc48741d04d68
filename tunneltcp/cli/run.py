"""Run a master: ``python -m tunneltcp.master``, ``tunneltcp server``, ``tunneltcp client``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from tunneltcp import __version__
from tunneltcp.config.load import load_config
from tunneltcp.control.context import Role
from tunneltcp.errors import ConfigError, ExitCode, MasterRunning
from tunneltcp.log import write_if_room
from tunneltcp.master.folders import find_folders, instance_problem
from tunneltcp.master.master import Master
from tunneltcp.master.process import ProcessState
from tunneltcp.protocol.preface import port_key

if TYPE_CHECKING:
    from collections.abc import Callable


__all__ = ["client_command", "folder_options", "main", "run_master", "server_command"]

_FILE = click.Path(path_type=Path, readable=False)


def folder_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say which instance it is and where it keeps its things."""
    for option in (
        click.option("--instance", help="Name of this instance; the role's name by default."),
        click.option("--state-dir", type=_FILE, help="Folder for what must outlive it."),
        click.option("--run-dir", type=_FILE, help="Folder for its socket and pid; private."),
        click.option("--log-dir", type=_FILE, help="Folder for its log files."),
    ):
        command = option(command)
    return command


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
@folder_options
@click.version_option(__version__, prog_name="tunneltcp")
def main(role: str, file: Path | None, **options: Any) -> None:  # noqa: ANN401 - click's
    """Run one side of the tunnels until TERM."""
    run_master(Role(role), file, **options)


@click.command("server")
@click.argument("file", required=False, type=_FILE)
@bind_option
@folder_options
def server_command(file: Path | None, **options: Any) -> None:  # noqa: ANN401 - click's
    """Run the server's side (config: FILE, or /etc/tunneltcp/INSTANCE.json)."""
    run_master(Role.SERVER, file, **options)


@click.command("client")
@click.argument("file", required=False, type=_FILE)
@server_option
@folder_options
def client_command(file: Path | None, **options: Any) -> None:  # noqa: ANN401 - click's
    """Run the client's side (config: FILE, or /etc/tunneltcp/INSTANCE.json)."""
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
) -> NoReturn:
    """Load the config, run the master, and leave with its exit code."""
    # Here and not above: "tunneltcp status" needs no worker. Before the first fork, so that
    # all workers share it.
    from tunneltcp.workers import run_worker, warm_up

    instance = role.value if instance is None else instance
    try:
        if problem := _option_problem(role, instance, server, bind):
            raise ConfigError([problem])
        path = file or Path(f"/etc/tunneltcp/{instance}.json")
        config = load_config(path, role.value, server=server, bind=bind)
        if role is Role.CLIENT and config.tls:
            _prepare_tls(config.verify)
        folders = find_folders(instance, state=state_dir, run=run_dir, log=log_dir)
        master = Master(
            config,
            role=role,
            instance=instance,
            folders=folders,
            worker_main=run_worker,
            warm_up=warm_up,
            port_keys=port_keys,
            announce=announce,
            log_to_stderr=True,
        )
        code = master.run()
    except ConfigError as error:
        _fail(ExitCode.USAGE, *error.problems)
    except MasterRunning as error:
        _fail(ExitCode.TEMPORARY, str(error))
    except OSError as error:
        _fail(ExitCode.CRASH, str(error))
    sys.exit(code)


def _prepare_tls(verify: bool | Path) -> None:
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
    sys.exit(code)


def port_keys(port: int) -> tuple[bytes, ...]:
    """Return the keys that are good for a port: until tokens land, that of an empty one."""
    return (port_key("", port),)


def announce(master: Master) -> None:
    """Say on standard output what runs; never wait for whoever reads it."""
    lines = _announcement(master)
    text = "\n".join(lines) if os.isatty(1) else lines[0]
    write_if_room(1, f"{text}\n".encode())


def _announcement(master: Master) -> list[str]:
    running = [t for t in master.tunnels if t.life.state is ProcessState.RUNNING]
    waiting = len(master.tunnels) - len(running)
    ports = _ranges([tunnel.config.remote_port for tunnel in running])
    role = master.role.value
    where = ", ".join(master.config.bind) if master.role is Role.SERVER else ""
    what = f"listening on {where} port" if where else f"linking to {master.config.server} port"
    first = f"tunneltcp {role} ready: {what} {ports or 'none'}"
    if waiting:
        first += f" ({waiting} waiting, see status)"
    return [
        first,
        f"  logs   {master.folders.log}",
        f"  state  {master.folders.state}",
        f"  next   tunneltcp status --instance {master.instance}",
    ]


def _ranges(ports: list[int]) -> str:
    """Return sorted ports with runs shortened: 60001-60003, 60007."""
    runs: list[list[int]] = []
    for port in sorted(ports):
        if runs and port == runs[-1][1] + 1:
            runs[-1][1] = port
        else:
            runs.append([port, port])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
