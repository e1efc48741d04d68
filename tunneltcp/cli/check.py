"""``tunneltcp check``: what is wrong with a config, or what would run with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import click
import orjson

from tunneltcp.cli.ask import fail
from tunneltcp.config.clients import CLIENT_SETTINGS
from tunneltcp.config.load import build_config, read_document, shown_path
from tunneltcp.config.model import PORTS, TOP_SETTINGS, TUNNEL_SETTINGS
from tunneltcp.config.token_files import place_warning
from tunneltcp.config.tokens import TokenPlace
from tunneltcp.errors import ConfigError, ExitCode
from tunneltcp.text import ranges

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tunneltcp.config.keys import RoleName, Setting
    from tunneltcp.config.model import Config, TunnelConfig

__all__ = ["check_command"]

_ROLES: Final[tuple[RoleName, ...]] = ("server", "client")
_TOP_KEYS: Final = (*(one.key for one in TOP_SETTINGS), PORTS)
_ANY_SERVER: Final = "localhost"
"""Stands in for a server that will be given on the command line."""
_SHOWN_APART: Final = (
    *("remote_port", "local_port", "local_host", "name", "tunnels", "server", "clients"),
)
"""Keys that have a column or a line of their own."""


@click.command("check")
@click.argument("file", type=click.Path(path_type=Path, readable=False))
@click.option("--role", type=click.Choice(_ROLES), help="Check it for this side alone.")
@click.option("--server", metavar="HOST", help="Whom the client dials; as for client.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def check_command(file: Path, role: str | None, server: str | None, as_json: bool) -> None:
    """Say what is wrong with a config, or what would run with it."""
    verdicts = _judge(file, cast("RoleName | None", role), server)
    fits = [verdict for verdict in verdicts if verdict.config is not None]
    if as_json:
        print(orjson.dumps(_as_json(file, fits, verdicts), default=str).decode())  # paths
        if not fits:
            raise SystemExit(ExitCode.USAGE)
    elif fits:
        places = [place for one in fits if one.config for place in one.config.token_places]
        has_token = any(place.kind == "config" for place in places)
        warning = place_warning(TokenPlace(kind="config", where=str(file)))
        if has_token and warning:
            click.echo(f"tunneltcp: {warning}", err=True)
        print("\n".join(_as_text(file, fits)))
    else:
        problems = _likeliest(verdicts).problems
        fail(ExitCode.USAGE, [f"{shown_path(file)}: {problem}" for problem in problems])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Verdict:
    """What becomes of a file for one role: a config, or problems."""

    role: RoleName
    config: Config | None = None
    problems: tuple[str, ...] = ()
    foreign: int = 0
    """Keys at the top that are the other role's."""
    needs_server: bool = False
    """It is right once ``--server`` is given."""


def _judge(file: Path, role: RoleName | None, server: str | None) -> list[_Verdict]:
    if role == "server" and server is not None:
        problem = "--server is for the client, and this is the server"
        return [_Verdict(role=role, problems=(problem,))]
    roles = _ROLES if role is None else (role,)
    try:
        document = read_document(file)
    except ConfigError as error:
        return [_Verdict(role=one, problems=error.problems) for one in roles]
    return [_judge_role(document, one, server, named=role is not None) for one in roles]


def _judge_role(
    document: object, role: RoleName, server: str | None, *, named: bool
) -> _Verdict:
    """Judge for one role; ``named``: it was asked for, so nothing is overlooked."""
    if role == "server":
        given, missing = None, False
    else:
        has_server = isinstance(document, dict) and "server" in document
        missing = server is None and not has_server and not named
        given = _ANY_SERVER if missing else server
    try:
        config = build_config(document, role, server=given)
    except ConfigError as error:
        keys = document if isinstance(document, dict) else {}
        foreign = sum(key.name in keys and not key.is_for(role) for key in _TOP_KEYS)
        return _Verdict(role=role, problems=error.problems, foreign=foreign)
    return _Verdict(role=role, config=config, needs_server=missing)


def _likeliest(verdicts: Sequence[_Verdict]) -> _Verdict:
    """Return the verdict for the role that the file was meant for."""
    return min(verdicts, key=lambda verdict: (verdict.foreign, len(verdict.problems)))


def _as_text(file: Path, fits: Sequence[_Verdict]) -> list[str]:
    names = [f"the {one.role}{' (give --server HOST)' * one.needs_server}" for one in fits]
    lines = [f"{shown_path(file)} is right for {' and '.join(names)}"]
    for verdict in fits:
        config = verdict.config
        assert config is not None, "the caller chose"
        others = _differences(config, TOP_SETTINGS)
        if config.server and not verdict.needs_server:
            others = {"server": config.server} | others
        if others:
            lines.append(f"{verdict.role}: {_pairs(others)}")
    rows = [("port", "target", "name", "settings")]
    config = fits[-1].config  # the client's, if there is one: it knows the targets
    assert config is not None, "the caller chose"
    for tunnel in config.tunnels:
        host = f"[{tunnel.local_host}]" if ":" in tunnel.local_host else tunnel.local_host
        target = f"{host}:{tunnel.local_port}" if tunnel.local_port else "-"
        settings = _pairs(_differences(tunnel, TUNNEL_SETTINGS))
        rows.append((str(tunnel.remote_port), target, tunnel.name, settings))
    lines += _columns(rows)
    for verdict in fits:
        if verdict.config is not None and verdict.config.clients:
            lines += _columns(_client_rows(verdict.config))
    return lines


def _client_rows(config: Config) -> list[tuple[str, ...]]:
    """Return who may be the client of what, and where its token is; never the token."""
    opened = {tunnel.remote_port for tunnel in config.tunnels}
    rows: list[tuple[str, ...]] = [("client", "ports", "token", "settings")]
    for client in config.clients:
        closed = [port for port in client.ports if port not in opened]
        notes = ["shared=true"] if client.shared else []
        notes += [f"(not open: {ranges(closed)})"] if closed else []
        places = ", ".join(map(_plain, client.tokens))
        rows.append((client.name, ranges(client.ports), places, " ".join(notes)))
    named = {port for client in config.clients for port in client.ports}
    if rest := opened - named:
        rows.append(("-", ranges(list(rest)), _plain(config.token), ""))
    return rows


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return lines


def _differences(values: object, settings: Sequence[Setting]) -> dict[str, Any]:
    """Return what is not as by default, by the key in the file."""
    found = {one.key.name: (getattr(values, one.field), one.default) for one in settings}
    return {
        name: value
        for name, (value, default) in found.items()
        if value != default and name not in _SHOWN_APART
    }


def _pairs(values: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={_plain(value)}" for name, value in values.items())


def _plain(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, TokenPlace):  # of one in this very file there is nothing more to say
        return f"{value.kind}:{value.where}".rstrip(":")
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _as_json(
    file: Path, fits: Sequence[_Verdict], verdicts: Sequence[_Verdict]
) -> dict[str, Any]:
    return {
        "file": shown_path(file),
        "fits": [one.role for one in fits],
        "needs_server": any(one.needs_server for one in fits),
        "problems": [] if fits else list(_likeliest(verdicts).problems),
        "configs": {one.role: _config_as_json(one) for one in fits},
    }


def _config_as_json(verdict: _Verdict) -> dict[str, Any]:
    """Return every setting by its key, as a complete config would say it."""
    config = verdict.config
    assert config is not None, "the caller chose"
    top = {
        one.key.name: getattr(config, one.field)
        for one in TOP_SETTINGS
        if one.key.is_for(verdict.role) and one.field != "tunnels"
    }
    if verdict.needs_server:
        top["server"] = None
    if verdict.role == "server":
        top["clients"] = [
            {one.key.name: getattr(client, one.field) for one in CLIENT_SETTINGS}
            for client in config.clients
        ]
    tunnels = [
        {
            one.key.name: _json_value(tunnel, one)
            for one in TUNNEL_SETTINGS
            if one.key.is_for(verdict.role)
        }
        for tunnel in config.tunnels
    ]
    return top | {"tunnels": tunnels}


def _json_value(tunnel: TunnelConfig, setting: Setting) -> Any:  # noqa: ANN401 - JSON
    value = getattr(tunnel, setting.field)
    return None if setting.key.kind == "port" and value == 0 else value  # 0: no port
