"""``tunneltcp login``: take a server's token, prove it there, and keep it for clients."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import click

from tunneltcp.cli.expose import parse_server
from tunneltcp.cli.prove import prove
from tunneltcp.config.state import state_base
from tunneltcp.config.token_files import find_login, keep_login
from tunneltcp.config.tokens import OWN_TOKEN, token_problem
from tunneltcp.control.privileges import protect_process
from tunneltcp.errors import ConfigError, ExitCode

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["login_command"]

_DEFAULT_PORT: Final = 60_001
_MAX_MASTERS: Final = 16
_ANSWER_SECONDS: Final = 1.0
"""Of each master on this machine that may want to know."""

_MAX_INPUT: Final = 8192
"""Characters read from standard input; a token has some fifty."""


@click.command("login")
@click.argument("server", metavar="SERVER[:PORT]")
@click.option("--no-tls", is_flag=True, help='For a server with "tls": false.')
@click.option("--no-check", is_flag=True, help="Keep it although the server is not asked.")
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path, readable=False),
    help="Keep it in this folder, for clients with the same --state-dir.",
)
def login_command(server: str, no_tls: bool, no_check: bool, state_dir: Path | None) -> None:
    """Keep the token of a server, once; client and expose find it there.

    \b
      tunneltcp login vps.example.com
      ssh vps tunneltcp token | tunneltcp login vps.example.com

    It is asked for without an echo, or read from standard input. Then it is proven at PORT,
    one of the server's public ports (60001 if none is said).
    """  # noqa: D301 - click wants the character
    protect_process()
    try:
        host, port = parse_server(server)
        token = _ask(host)
        if problem := token_problem(token):
            what = problem.partition(";")[0]
            why = f'what was given {what}: "tunneltcp token" prints the right one on {host}'
            raise ConfigError([f"{why}; nothing is kept"])
        if not no_check:
            problem = prove(host, port or _DEFAULT_PORT, token, tls=not no_tls)
            if problem:
                _fail(ExitCode.CRASH, [problem, f"nothing is kept{_hint(port)}"])
        path = keep_login(host, token, state_dir)
    except ConfigError as error:
        _fail(ExitCode.USAGE, error.problems)
    how = "not checked" if no_check else "the server has the same one"
    print(f"the token for {host} is kept in {path} ({how})")
    _tell_clients(host, path)


def _hint(port: int) -> str:
    if port:
        return "; --no-check keeps it all the same"
    return "; SERVER:PORT names another port, --no-check keeps it all the same"


def _ask(host: str) -> str:
    if sys.stdin is None:  # closed by who started us
        return ""
    if not sys.stdin.isatty():
        return sys.stdin.read(_MAX_INPUT).strip()
    try:
        prompt = f'token of {host} ("tunneltcp token" prints it there)'
        answer: str = click.prompt(prompt, hide_input=True, err=True, default="")
    except click.Abort:
        _fail(ExitCode.USAGE, ["nothing is kept"])
    return answer.strip()


def _tell_clients(host: str, path: Path) -> None:
    """Have clients that run here take it; who is not ours or does not answer, does not.

    One that finds a token in its own state folder, or looks for it elsewhere, goes on as it is.
    """
    if sys.platform == "linux":
        from tunneltcp.cli.ask import RELOAD_SECONDS, ask, find_run_folders
        from tunneltcp.errors import TunnelError

        for folder in find_run_folders(None, None).folders[:_MAX_MASTERS]:
            with suppress(TunnelError, OSError):
                status = ask(folder, {"op": "status"}, _ANSWER_SECONDS, own=True)
                own = status.get("token") == str(OWN_TOKEN) and status.get("server") == host
                if status["role"] != "client" or not own:
                    continue
                name, state = status["instance"], Path(status["state_dir"])
                found = find_login(host, (state, state_base()))
                if found is not None and found.samefile(path):
                    ask(folder, {"op": "reload-tokens"}, RELOAD_SECONDS)
                    print(f'client "{name}" uses it from now on')
                elif found is not None:
                    print(f'client "{name}" goes on with the one in {found}')


def _fail(code: int, problems: Sequence[str]) -> NoReturn:
    for problem in problems:
        print(f"tunneltcp: {problem}", file=sys.stderr)
    sys.exit(code)
