"""``tunneltcp service``: what starts a master with the machine, printed or put in place.

Nothing is ever started here: the file is one thing to look at, the command after it another.
"""

from __future__ import annotations

import configparser
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import click

from tunneltcp.cli import templates
from tunneltcp.cli.ask import fail
from tunneltcp.config.fields import host_problem
from tunneltcp.config.load import load_config
from tunneltcp.config.model import DEFAULT_DRAIN_SECONDS
from tunneltcp.errors import ConfigError, ExitCode
from tunneltcp.master.folders import instance_problem

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunneltcp.config.model import RoleName

__all__ = ["service_command"]

Manager: TypeAlias = Literal["supervisor", "systemd"]

_START_SECONDS: Final = 20.0
"""An interpreter says its version in a fraction of a second, also on a busy machine."""

_PATH = click.Path(path_type=Path, readable=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a service file belongs."""

    folder: Path
    suffix: str
    may_make: bool
    """Whether a missing folder is made; a system's own folders are not ours to make."""


@click.group("service")
def service_command() -> None:
    """Make a master a service: print its file for supervisord or systemd, or install it."""


def _options(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("--force", is_flag=True, help="Overwrite a file that says otherwise."),
        click.option("--destination", type=_PATH, help="Install into this folder."),
        click.option("--install", is_flag=True, help="Put it in place; starts nothing."),
        click.option("--user", is_flag=True, help="For you alone, not for the machine."),
        click.option("--instance", help="Name of the instance; the role's name by default."),
        click.option("--server", metavar="HOST", help="Whom a client dials."),
        click.option("--config", "file", type=_PATH, help="The config."),
        click.option("--role", required=True, type=click.Choice(["server", "client"])),
    ):
        command = option(command)
    return command


@service_command.command("supervisor")
@_options
def supervisor_command(**options: Any) -> None:  # noqa: ANN401 - click's
    """Print a program for supervisord, filled in for this machine."""
    _run("supervisor", **options)


@service_command.command("systemd")
@_options
def systemd_command(**options: Any) -> None:  # noqa: ANN401 - click's
    """Print a unit for systemd, filled in for this machine."""
    _run("systemd", **options)


def _run(
    manager: Manager,
    *,
    role: RoleName,
    file: Path | None,
    server: str | None,
    instance: str | None,
    user: bool,
    install: bool,
    destination: Path | None,
    force: bool,
) -> None:
    try:
        if not install and (force or destination is not None):
            raise ConfigError(["--force and --destination are for --install"])
        service = _describe(role, file, server, instance, is_users=user)
        make = templates.program if manager == "supervisor" else templates.unit
        text = make(service)
        if not install:
            print(text, end="")
            return
        _check_command(service)
        place = _place(manager, destination, is_users=user)
    except ConfigError as error:
        fail(ExitCode.USAGE, list(error.problems))
    try:
        made = _put(text, place, service.name, force=force)
    except OSError as error:
        fail(ExitCode.CRASH, [_why_not(place.folder, error)])
    print(f"{made}\n  next   {_next_command(manager, service)}")


def _describe(
    role: RoleName,
    file: Path | None,
    server: str | None,
    instance: str | None,
    *,
    is_users: bool,
) -> templates.Service:
    """Fill in what this machine and the config say."""
    instance = role if instance is None else instance
    if problem := instance_problem(instance):
        raise ConfigError([problem])
    if role == "server" and server is not None:
        raise ConfigError(["--server is for the client, and this is the server"])
    if server is not None and (problem := host_problem(server)):
        raise ConfigError([f"--server: {problem}"])
    config = (file or _default_config(instance, is_users=is_users)).absolute()
    drain, user = DEFAULT_DRAIN_SECONDS, ""
    try:
        found = load_config(config, role, server=server)
        drain, user = found.drain_seconds, found.user
    except ConfigError as error:
        # It may be written later, or readable only to who will run it: not our end.
        for problem in error.problems:
            print(f"tunneltcp: note: {problem}", file=sys.stderr)
    return templates.Service(
        role=role,
        config=str(config),
        instance=instance,
        python=str(Path(sys.executable).absolute()),
        server=server or "",
        drain_seconds=drain,
        user=user,
        is_users=is_users,
    )


def _default_config(instance: str, *, is_users: bool) -> Path:
    if not is_users:
        return Path(f"/etc/tunneltcp/{instance}.json")
    return _user_config_base() / "tunneltcp" / f"{instance}.json"


def _user_config_base() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME", "")
    if base.startswith("/"):
        return Path(base)
    with suppress(RuntimeError):
        return Path.home() / ".config"
    raise ConfigError(["there is no home folder; say XDG_CONFIG_HOME"])


def _check_command(service: templates.Service) -> None:
    """Refuse to install a service whose interpreter does not find this package.

    Raises:
        ConfigError: With what it says instead.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    try:
        done = subprocess.run(  # noqa: S603 - this very interpreter
            [service.python, "-P", "-m", "tunneltcp.master", "--version"],
            cwd="/",
            env=environment,
            capture_output=True,
            text=True,
            timeout=_START_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError([f"{service.python} does not start: {error}"]) from error
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise ConfigError(
            [f"the service would not start: {said}", "install tunneltcp first: scripts/install"]
        )


# --------------------------------------------------------------------------- where to


def _place(manager: Manager, destination: Path | None, *, is_users: bool) -> _Place:
    if destination is not None:
        suffix = ".conf" if manager == "supervisor" else ".service"
        return _Place(folder=destination.absolute(), suffix=suffix, may_make=True)
    if manager == "supervisor":
        return _supervisord_place()
    folder = Path("/etc/systemd/system")
    if is_users:
        folder = _user_config_base() / "systemd" / "user"
    return _Place(folder=folder, suffix=".service", may_make=is_users)


def _supervisord_place(candidates: tuple[Path, ...] | None = None) -> _Place:
    """Return where supervisord's configuration says that programs lie.

    Raises:
        ConfigError: If there is none, or it includes nothing.
    """
    if candidates is None:
        here = Path(sys.prefix, "etc/supervisord.conf")
        system = (Path("/etc/supervisord.conf"), Path("/etc/supervisor/supervisord.conf"))
        candidates = (here, *system)
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        names = ", ".join(map(str, candidates))
        raise ConfigError([f"supervisord has no configuration here ({names}); {_SAY_WHERE}"])
    for pattern in _included(found):
        path = found.parent / pattern.replace("%(here)s", str(found.parent))
        if "*" in path.name:
            suffix = path.name.rpartition("*")[2]
            return _Place(folder=path.parent, suffix=suffix, may_make=False)
    raise ConfigError([f"{found} includes no folder of programs; {_SAY_WHERE}"])


_SAY_WHERE: Final = (
    "say --destination FOLDER, one that its [include] names, as in files = FOLDER/*.conf"
)


def _included(path: Path) -> list[str]:
    """Return the patterns of files that a supervisord.conf includes."""
    parser = configparser.RawConfigParser(inline_comment_prefixes=(";", "#"), strict=False)
    try:
        parser.read(path)
        return parser.get("include", "files").split()
    except (configparser.NoSectionError, configparser.NoOptionError):
        return []
    except (configparser.Error, UnicodeDecodeError) as error:
        raise ConfigError([f"{path} cannot be read: {error}"]) from error


def _put(text: str, place: _Place, name: str, *, force: bool) -> str:
    """Write the file whole or not at all; return what to say.

    Raises:
        OSError: If it cannot be written.
    """
    if place.may_make:
        place.folder.mkdir(parents=True, exist_ok=True)
    path = place.folder / f"{name}{place.suffix}"
    if os.path.lexists(path) and not force:
        if _says(path, text):
            return f"{path} is in place already"
        fail(ExitCode.USAGE, [f"{path} is there and says otherwise; --force overwrites it"])
    temporary = place.folder / f".{path.name}.{os.getpid()}"
    try:
        temporary.write_text(text)
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return f"wrote {path}"


def _says(path: Path, text: str) -> bool:
    with suppress(OSError, UnicodeDecodeError):
        return path.is_file() and path.read_text() == text
    return False


def _why_not(folder: Path, error: OSError) -> str:
    text = (error.strerror or str(error)).lower()
    return f"cannot write to {folder}: {text}; run this as who owns it, or say --destination"


def _next_command(manager: Manager, service: templates.Service) -> str:
    if manager == "supervisor":
        return "supervisorctl update"
    systemctl = "systemctl --user" if service.is_users else "systemctl"
    command = f"{systemctl} daemon-reload && {systemctl} enable --now {service.name}"
    if not service.is_users:
        return command
    return f"{command}\n         loginctl enable-linger   so that it runs without a login too"
