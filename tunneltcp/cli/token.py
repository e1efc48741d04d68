"""``tunneltcp token``: print a server's token, and replace it by another."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tunneltcp.cli.ask import RELOAD_SECONDS, ask, ask_all, fail, instance_options
from tunneltcp.config.fields import shown
from tunneltcp.config.state import state_base
from tunneltcp.config.token_files import own_tokens, retire_token, rotate_token
from tunneltcp.config.token_reader import TokenReader
from tunneltcp.config.tokens import OWN_TOKEN, TokenPlace, new_token
from tunneltcp.control.privileges import protect_process
from tunneltcp.errors import ConfigError, ExitCode, TunnelError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["token_command"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Server:
    """Whose token it is."""

    name: str
    state: Path
    run: Path | None
    """Its run folder; None if it does not run."""


def _server_options(command: Callable[..., None]) -> Callable[..., None]:
    option = click.option(
        "--state-dir",
        type=click.Path(path_type=Path, readable=False),
        help="The server with this state folder, whether it runs or not.",
    )
    return option(instance_options(command))


@click.group("token", invoke_without_command=True)
@click.option("--client", metavar="NAME", help="Print the token of one of its clients.")
@_server_options
@click.pass_context
def token_command(
    context: click.Context,
    client: str | None,
    instance: str | None,
    run_dir: Path | None,
    state_dir: Path | None,
) -> None:
    """Print the token that a server made for itself, or that its config has for a client.

    It goes to standard output, and whose it is to standard error:

    \b
      ssh vps tunneltcp token | tunneltcp login vps.example.com
    """  # noqa: D301 - click wants the character
    protect_process()
    if context.invoked_subcommand is not None:
        if client is not None:
            text = "a client's token is replaced in the config: give it a list of two"
            raise click.UsageError(text)
        context.obj = (instance, run_dir, state_dir)
        return
    if client is not None:
        if state_dir is not None:
            raise click.UsageError("--client asks a server that runs: leave --state-dir out")
        _print_client(client, instance, run_dir)
        return
    server = _find(instance, run_dir, state_dir)
    tokens = _tokens(server)
    print(f'token of server "{server.name}", kept in {server.state}', file=sys.stderr)
    if len(tokens) > 1:
        old = "the one before it is good until: tunneltcp token retire"
        print(f"tunneltcp: {old}", file=sys.stderr)
    print(tokens[0])


@token_command.command("new")
def _new() -> None:
    """Print a fresh token, for a client in a config; nothing is kept or changed."""
    print(new_token())


@token_command.command("rotate")
@_server_options
@click.pass_obj
def _rotate(outer: tuple[Any, ...], /, **options: Any) -> None:  # noqa: ANN401 - click's
    """Make a second token; both are good until "tunneltcp token retire"."""
    server = _find(*_options(outer, options))
    _tokens(server)
    try:
        rotate_token(server.state)
    except ConfigError as error:
        fail(ExitCode.CRASH, list(error.problems))
    print(f'server "{server.name}" has a new token, and the old one is still good')
    _tell(server)
    print("  next   tunneltcp login SERVER, wherever clients are, with the new one")
    print("  look   tunneltcp status says which links still use the old one")
    print("  end    tunneltcp token retire")


@token_command.command("retire")
@_server_options
@click.pass_obj
def _retire(outer: tuple[Any, ...], /, **options: Any) -> None:  # noqa: ANN401 - click's
    """End the old token: links that use it are closed at once."""
    server = _find(*_options(outer, options))
    _tokens(server)
    try:
        was_there = retire_token(server.state)
    except ConfigError as error:
        fail(ExitCode.CRASH, list(error.problems))
    # Told in any case: the last time it may not have been.
    _tell(server)
    if was_there and server.run is None:
        print(f"the old token was removed from {server.state}")
    elif was_there:
        print(f'server "{server.name}": the old token is not good any more')
    else:
        print(f'server "{server.name}" has one token; there was no old one')


def _options(outer: tuple[Any, ...], inner: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Return the options, whether they stand before the word or behind it."""
    names = ("instance", "run_dir", "state_dir")
    instance, run_dir, state_dir = (
        inner[name] if inner[name] is not None else before
        for name, before in zip(names, outer, strict=True)
    )
    return instance, run_dir, state_dir


def _running(
    instance: str | None, run_dir: Path | None, state_dir: Path | None = None
) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the status of the server that is meant, if one runs; or what was wrong."""
    # Where none is named, nobody else's is believed: root would use what a stranger says.
    answers, problems = ask_all({"op": "status"}, instance, run_dir, own=run_dir is None)
    servers = [answer for answer in answers if answer["role"] == "server"]
    if state_dir is not None:
        folder = state_dir.resolve()
        servers = [one for one in servers if Path(one["state_dir"]).resolve() == folder]
    if len(servers) > 1:
        names = [f"  --run-dir {answer['run_dir']}" for answer in servers]
        fail(ExitCode.USAGE, ["several servers run here; say which one:", *names])
    return (servers[0] if servers else None), problems


def _print_client(name: str, instance: str | None, run_dir: Path | None) -> None:
    """Print the token of a client from where the config of a running server says it is."""
    answer, problems = _running(instance, run_dir)
    if answer is None:
        fail(ExitCode.CRASH, problems or ["no server runs here"])
    server, clients = answer["instance"], answer.get("clients") or []
    client = next((one for one in clients if one["name"] == name), None)
    if client is None:
        names = ", ".join(one["name"] for one in clients) or "none"
        problem = f'server "{server}" has no client {shown(name)}; its clients: {names}'
        fail(ExitCode.USAGE, [problem])
    place = TokenPlace(**client["tokens"][0])
    if place.kind == "variable":
        where = f'the variable {place.where}, which server "{server}" was started with'
        fail(ExitCode.CRASH, [f"the token of client {shown(name)} is in {where}"])
    try:
        token = TokenReader("server", (), {}).at(place)
    except ConfigError as error:
        fail(ExitCode.CRASH, list(error.problems))
    whose = f'token of client {shown(name)} of server "{server}", kept in {place}'
    print(f"{whose}; good for port {client['ports']}", file=sys.stderr)
    print(token)


def _find(instance: str | None, run_dir: Path | None, state_dir: Path | None) -> _Server:
    """Return the server that is meant; leave if its token is not its own."""
    answer, problems = _running(instance, run_dir, state_dir)
    if answer is not None:
        if answer["token"] != str(OWN_TOKEN):
            text = f'the token of server "{answer["instance"]}" is in {answer["token"]}'
            text += "; it is printed and replaced there"
            if answer.get("clients"):
                text += '; "tunneltcp token --client NAME" prints one'
            fail(ExitCode.CRASH, [text])
        return _Server(
            name=answer["instance"],
            state=Path(answer["state_dir"]),
            run=Path(answer["run_dir"]),
        )
    if run_dir is not None:
        fail(ExitCode.CRASH, problems or [f"no server runs in {run_dir}"])
    if state_dir is not None:
        return _at_rest(instance or "server", state_dir)
    try:
        return _at_rest(instance or "server", state_base() / (instance or "server"))
    except ConfigError as error:
        fail(ExitCode.CRASH, list(error.problems))


def _at_rest(name: str, state: Path) -> _Server:
    return _Server(name=name, state=state, run=None)


def _tokens(server: _Server) -> list[str]:
    try:
        tokens = own_tokens(server.state)
    except ConfigError as error:
        fail(ExitCode.CRASH, list(error.problems))
    if not tokens:
        text = f"there is no token in {server.state}; a server makes one when it starts"
        fail(ExitCode.CRASH, [f"{text} (as another user, or with other folders?)"])
    return tokens


def _tell(server: _Server) -> None:
    """Have the master take what lies there now."""
    if server.run is None:
        text = "no server that runs in the usual place has this folder: it takes this when it"
        text += " starts. One with a --run-dir of its own is told if you say that too"
        print(f"tunneltcp: {text}", file=sys.stderr)
        return
    try:
        ask(server.run, {"op": "reload-tokens"}, RELOAD_SECONDS)
    except TunnelError as error:
        fail(ExitCode.CRASH, [f"the server does not take it: {error}"])
