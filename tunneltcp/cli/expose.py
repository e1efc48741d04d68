"""``tunneltcp expose``: tunnels in the foreground, without a config and without a master.

One tunnel is a worker in this very process (``expose_one.py``), which needs nothing that only
Linux has; several are a private master and its workers (``expose_many.py``).
"""

from __future__ import annotations

import re
import secrets
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import click

from tunneltcp.cli.expose_token import find_token
from tunneltcp.config.fields import host_problem
from tunneltcp.config.state import host_id, state_base
from tunneltcp.control.privileges import protect_process
from tunneltcp.errors import ConfigError, ExitCode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunneltcp.cli.expose_token import FoundToken

__all__ = ["Exposed", "Exposure", "expose_command", "parse_exposure", "parse_server"]

_PORT: Final = re.compile(r"[0-9]{1,5}")
_FOLDER: Final = click.Path(path_type=Path, readable=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposed:
    """One app and its public port."""

    local_host: str
    local_port: int
    remote_port: int

    @property
    def target(self) -> str:
        """Where the app listens, for a person."""
        return f"{_bracketed(self.local_host)}:{self.local_port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposure:
    """What is to be reached where."""

    server: str
    tunnels: tuple[Exposed, ...]
    tls: bool = True

    def place(self, tunnel: Exposed) -> str:
        """Return where a tunnel is reached, for a person."""
        return f"{_bracketed(self.server)}:{tunnel.remote_port}"


@click.command("expose")
@click.argument("targets", nargs=-1, required=True, metavar="[HOST:]PORT[:PUBLIC]...")
@click.option("--to", required=True, metavar="SERVER[:PUBLIC]", help="Whom to dial.")
@click.option("--token-file", type=_FOLDER, help="File with the token; overrules a login.")
@click.option(
    "--auth",
    type=click.Choice(["token", "none"]),
    default="token",
    help='"none": as the server with "auth": "none" on this machine.',
)
@click.option("--no-tls", is_flag=True, help='For a server with "tls": false.')
@click.option("--plain", is_flag=True, help="Lines instead of a live display.")
@click.option("--state-dir", type=_FOLDER, help="Folder that remembers which machine this is.")
def expose_command(
    targets: tuple[str, ...],
    to: str,
    no_tls: bool,
    plain: bool,
    state_dir: Path | None,
    token_file: Path | None,
    auth: str,
) -> None:
    """Open apps of this machine to visitors of a server, until Ctrl-C.

    \b
      tunneltcp expose 8000 --to vps.example.com:60001
      tunneltcp expose 8000:60001 10.0.0.5:22:60002 --to vps.example.com

    Each target is [HOST:]PORT[:PUBLIC]: where the app listens (on localhost if there is no
    HOST), and the port of the server where visitors come. The server must be running
    "tunneltcp server" with these ports. IPv6 addresses stand in brackets.
    """  # noqa: D301 - click wants the character
    protect_process()
    try:
        exposure = replace(parse_exposure(targets, to), tls=not no_tls)
        token = find_token(exposure.server, auth, token_file, state_dir)
        sys.exit(_run(exposure, _host_id(state_dir), token, plain=plain))
    except ConfigError as error:
        _fail(ExitCode.USAGE, error.problems)
    except KeyboardInterrupt:  # before or after the time in which signals are handled
        sys.exit(ExitCode.DONE)
    except OSError as error:
        _fail(ExitCode.CRASH, [f"cannot go on: {error}"])


def _run(exposure: Exposure, host: str, token: FoundToken, *, plain: bool) -> int:
    if len(exposure.tunnels) == 1:
        from tunneltcp.cli.expose_one import run_one

        return run_one(exposure, host, token.keys(exposure.tunnels[0].remote_port), plain=plain)
    if sys.platform == "linux":
        from tunneltcp.cli.expose_many import run_many

        return run_many(exposure, host, token, plain=plain)
    else:  # noqa: RET505 - so that a type checker knows what is of which system
        text = "several tunnels at once need Linux; here, run one expose for each"
        raise ConfigError([text])


def _fail(code: int, problems: Sequence[str]) -> NoReturn:
    for problem in problems:
        print(f"tunneltcp: {problem}", file=sys.stderr)
    sys.exit(code)


def _host_id(folder: Path | None) -> str:
    """Return which machine this is; a new one each time where nothing can be kept."""
    try:
        place = folder or state_base() / "expose"
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        return host_id(place)
    except (OSError, ConfigError):
        return secrets.token_hex(16)


# ------------------------------------------------------------------------------ words


def parse_exposure(targets: Sequence[str], to: str) -> Exposure:
    """Understand the words of the command line.

    Raises:
        ConfigError: With every problem found.
    """
    problems: list[str] = []
    server, to_port = _parse_server(to, problems)
    tunnels = [_parse_target(target, to_port, problems) for target in targets]
    if to_port and len(tunnels) > 1:
        text = f"say the public port of each target instead of {to_port}: 8000:60001 8001:60002"
        problems.append(f"--to {to}: is for one target, and there are {len(tunnels)}; {text}")
    ports = [tunnel.remote_port for tunnel in tunnels if tunnel.remote_port]
    problems += [
        f"public port {port} is given twice; each target needs one of its own"
        for port in sorted({port for port in ports if ports.count(port) > 1})
    ]
    if problems:
        raise ConfigError(problems)
    return Exposure(server=server, tunnels=tuple(tunnels))


def parse_server(text: str) -> tuple[str, int]:
    """Understand SERVER[:PORT]; the port is 0 if there is none.

    Raises:
        ConfigError: With every problem found.
    """
    problems: list[str] = []
    host, rest = _split_host(text)
    if rest is None or (rest and not rest.startswith(":")):
        problems.append(f"{text!a} is neither SERVER nor SERVER:PORT")
    elif problem := host_problem(host):
        problems.append(problem)
    port = _port(rest[1:], text, problems) if rest and not problems else 0
    if problems:
        raise ConfigError(problems)
    return host, port


def _parse_server(to: str, problems: list[str]) -> tuple[str, int]:
    host, rest = _split_host(to)
    if rest is None or (rest and not rest.startswith(":")):
        problems.append(f"--to {to!a}: is neither SERVER nor SERVER:PORT")
        return "", 0
    if problem := host_problem(host):
        problems.append(f"--to: {problem}")
    return host, _port(rest[1:], f"--to {to}", problems) if rest else 0


def _parse_target(text: str, to_port: int, problems: list[str]) -> Exposed:
    host, rest = "localhost", f":{text}"
    if not _PORT.fullmatch(text.partition(":")[0]):
        host, split = _split_host(text, several=True)
        rest = split or ""
        if problem := host_problem(host):
            problems.append(f"{text!a}: {problem}")
    words = rest.split(":")
    if len(words) not in (2, 3) or words[0]:
        problems.append(f"{text!a}: is not [HOST:]PORT[:PUBLIC], such as 8000:60001")
        return Exposed(local_host=host, local_port=0, remote_port=0)
    local = _port(words[1], text, problems)
    remote = _port(words[2], text, problems) if len(words) == 3 else 0
    if not remote and not to_port and len(words) == 2:
        problems.append(
            f"{text}: has no public port; say {text}:60001, or --to SERVER:60001 if it is "
            "the only target"
        )
    elif remote and to_port and remote != to_port:
        problems.append(f"{text}: says public port {remote}, and --to says {to_port}")
    return Exposed(local_host=host, local_port=local, remote_port=remote or to_port)


def _split_host(text: str, *, several: bool = False) -> tuple[str, str | None]:
    """Cut off a host, in brackets or not; what is left begins with a colon, or is empty.

    Args:
        text: What was typed.
        several: More than one port may follow, so IPv6 must stand in brackets.

    Returns:
        The host, and the rest; None in place of the rest if a bracket is missing.
    """
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        return host, rest if bracket else None
    if not several and text.count(":") > 1:
        return text, ""
    host, colon, rest = text.partition(":")
    return host, colon + rest


def _port(text: str, where: str, problems: list[str]) -> int:
    if _PORT.fullmatch(text) and 1 <= int(text) <= 65_535:
        return int(text)
    problems.append(f"{where}: {text!a} is not a port (1-65535)")
    return 0


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
