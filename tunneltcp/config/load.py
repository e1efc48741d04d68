"""From a config file to values: all problems at once, each with its place.

Theory of operation
-------------------
``read_document`` turns a file into plain JSON values and knows nothing of tunnels.
``build_config`` turns plain values into a :class:`Config` and knows nothing of files. It
never stops at the first problem: each wrong value is reported with its path and replaced
by a default, and at the end there is a config or a :class:`ConfigError` with them all.
"""

from __future__ import annotations

import json  # orjson keeps quiet about duplicate keys
import os
import re
import stat
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from tunneltcp.config import fields
from tunneltcp.config.clients import read_clients, read_token
from tunneltcp.config.model import (
    DEFAULT_BIND,
    MAX_TUNNELS,
    PORTS,
    TOP_SETTINGS,
    TUNNEL_SETTINGS,
    Config,
    TunnelConfig,
)
from tunneltcp.config.networks import read_networks
from tunneltcp.config.tokens import OWN_TOKEN, TokenPlace, token_problem
from tunneltcp.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunneltcp.config.clients import ClientConfig
    from tunneltcp.config.keys import Key, RoleName, Setting
    from tunneltcp.config.model import LogFormat

__all__ = [
    "MAX_FILE_BYTES",
    "build_config",
    "config_token",
    "load_config",
    "read_document",
    "shown_path",
]

MAX_FILE_BYTES: Final = 1 << 20
"""A config of 500 tunnels has 50 kB; more than 1 MiB is some other file."""

_STRING_OR_CONSTANT: Final = re.compile(r'"(?:[^"\\]|\\.)*"|(-?Infinity|NaN)', re.DOTALL)

_COMMON_SETTINGS: Final = tuple(one for one in TUNNEL_SETTINGS if one.key.for_all)
"""Settings of tunnels that may stand at the top, for all of them."""
_TOP_KEYS: Final = (*(one.key for one in (*TOP_SETTINGS, *_COMMON_SETTINGS)), PORTS)
_TUNNEL_KEYS: Final = tuple(one.key for one in TUNNEL_SETTINGS)
_SPECIAL: Final = ("tunnels", "server", "bind", "token", "clients")
"""Fields of the top that are read by functions of their own."""


def load_config(
    path: Path,
    role: RoleName,
    *,
    server: str | None = None,
    bind: Sequence[str] = (),
    log_format: LogFormat | None = None,
) -> Config:
    """Read the config for one role; ``server``, ``bind``, ``log_format`` overrule the file.

    Raises:
        ConfigError: With every problem found, each naming the file.
    """
    try:
        config = build_config(read_document(path), role, server=server, bind=bind)
    except ConfigError as error:
        name = shown_path(path)
        raise ConfigError([f"{name}: {problem}" for problem in error.problems]) from error
    clients = tuple(
        replace(client, tokens=tuple(place.beside(path) for place in client.tokens))
        for client in config.clients
    )
    config = replace(config, token=config.token.beside(path), clients=clients)
    return config if log_format is None else replace(config, log_format=log_format)


def config_token(place: TokenPlace) -> str:
    """Return the token that a config holds; for short-lived processes alone.

    Raises:
        ConfigError: If there is none in it any more.
    """
    path = Path(place.where)
    entry: Any = read_document(path)
    if place.client:  # by name: the list may be another one by now
        clients = entry.get("clients") if isinstance(entry, dict) else None
        named = (one for one in clients or [] if isinstance(one, dict))
        entry = next((one for one in named if one.get("name") == place.client), None)
    token = entry.get("token") if isinstance(entry, dict) else None
    if isinstance(token, list):
        token = token[place.index] if place.index < len(token) else None
    if not isinstance(token, str) or token_problem(token):
        whose = f"the token of client {fields.shown(place.client)}" if place.client else "token"
        raise ConfigError([f"{shown_path(path)}: {whose}: has gone meanwhile"])
    return token.strip()


def shown_path(path: Path) -> str:
    """Return a path as it may stand in a message."""
    return str(path) if str(path).isprintable() else ascii(str(path))


def read_document(path: Path) -> object:
    """Return the JSON value in a file, its objects as :class:`fields.JsonObject`.

    Raises:
        ConfigError: If there is no such file, or no such value in it.
    """
    data = _read_file(path)
    if data.startswith(b"\xef\xbb\xbf"):
        raise ConfigError(["starts with a byte order mark; save it as plain UTF-8"])
    try:
        text = data.decode()
        return json.loads(
            text,
            object_pairs_hook=fields.JsonObject,
            parse_constant=lambda name: _refuse_constant(name, text),
        )
    except UnicodeDecodeError as error:
        before = data[: error.start].decode()
        raise ConfigError([f"{_place(before)}: is not UTF-8 text"]) from error
    except json.JSONDecodeError as error:
        place = _place(error.doc[: error.pos])
        raise ConfigError([f"{place}: is not JSON: {error.msg}"]) from error
    except RecursionError as error:
        raise ConfigError(["is nested too deeply"]) from error
    except ValueError as error:  # a number of more than 4,300 digits
        raise ConfigError(["holds a number that is too long"]) from error


def _place(before: str) -> str:
    """Return where we are in a file, in words, behind that text."""
    return f"line {before.count(chr(10)) + 1} column {len(before) - before.rfind(chr(10))}"


def _refuse_constant(name: str, text: str) -> NoReturn:
    """Refuse NaN and the infinities; the parser does not say where they are."""
    found = next((one for one in _STRING_OR_CONSTANT.finditer(text) if one[1]), None)
    place = f"{_place(text[: found.start()])}: " if found else ""
    raise ConfigError([f"{place}{name} is not JSON"])


def _read_file(path: Path) -> bytes:
    try:
        # O_NONBLOCK: opening a FIFO must not wait for its writer.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise ConfigError([f"cannot be read: {_reason(error)}"]) from error
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            raise ConfigError(["is a directory, not a file"])
        if not stat.S_ISREG(mode):
            raise ConfigError(["is not a regular file"])
        data = _read_all(fd)
    except OSError as error:
        raise ConfigError([f"cannot be read: {_reason(error)}"]) from error
    finally:
        os.close(fd)
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError([f"is larger than {MAX_FILE_BYTES} bytes"])
    if not data.strip():
        raise ConfigError(["is empty"])
    return data


def _read_all(fd: int) -> bytes:
    data = bytearray()
    while len(data) <= MAX_FILE_BYTES and (chunk := os.read(fd, 1 << 16)):
        data += chunk
    return bytes(data)


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return "its name is not a file name"


def build_config(
    document: object, role: RoleName, *, server: str | None = None, bind: Sequence[str] = ()
) -> Config:
    """Turn plain JSON values into a config.

    Raises:
        ConfigError: With every problem found.
    """
    if isinstance(document, list):
        document = fields.JsonObject([("tunnels", document)])
    if not isinstance(document, dict):
        kind = fields.kind(document)
        raise ConfigError([f"must be a list of tunnels or an object, not {kind}"])
    top = fields.Fields(document, "", [])
    _check_keys(top, _TOP_KEYS, role)
    tunnels = _tunnels(top, role)
    clients = read_clients(top) if role == "server" else ()
    config = Config(
        tunnels=tunnels,
        server=_server(top, server) if role == "client" else "",
        bind=_bind(top, bind) if role == "server" else DEFAULT_BIND,
        token=_token(top, tunnels, clients),
        clients=clients,
        **{
            one.field: _value(top, one, role, one.default)
            for one in TOP_SETTINGS
            if one.field not in _SPECIAL
        },
    )
    _check_tls(top, role)
    if top.problems:
        raise ConfigError(top.problems)
    return config


def _check_tls(top: fields.Fields, role: RoleName) -> None:
    """Report settings of TLS that are of no use alone."""
    given = {name for name in ("cert", "key", "verify") if top.values.get(name)}
    if role == "server" and len(given & {"cert", "key"}) == 1:
        name, other = ("cert", "key") if "cert" in given else ("key", "cert")
        top.problem(name, f"needs {other} beside it")
    useless = "cert" if role == "server" else "verify"
    if top.values.get("tls") is False and useless in given:
        top.problem(useless, "is of no use while tls is false")


def _check_keys(entry: fields.Fields, keys: Sequence[Key], role: RoleName) -> None:
    """Report keys that are given twice, unknown, or for the other role."""
    foreign = {
        key.name: f"is for the {key.role}, and this is the {role}"
        for key in keys
        if not key.is_for(role)
    }
    known = [key.name for key in keys if key.is_for(role)]
    entry.check_keys(known, foreign)


def _value(entry: fields.Fields, one: Setting, role: RoleName, default: Any) -> Any:  # noqa: ANN401, C901, PLR0912 - one case for each kind
    """Return the value of a setting; what the model says of it decides how it is read."""
    key = one.key
    if not key.is_for(role):
        return default
    value: Any
    match key.kind:
        case "port":
            value = entry.port(key.name, required=key.is_required(role))
        case "seconds":
            value = entry.number(key.name, default, key.low, key.high)
        case "integer" | "size" if default is None and entry.values.get(key.name) is None:
            value = None
        case "integer":
            value = entry.integer(key.name, default, int(key.low), int(key.high))
        case "size":
            value = entry.size(key.name, default, int(key.low), int(key.high))
        case "flag":
            value = entry.flag(key.name, default=default)
        case "path":
            value = entry.path(key.name)
        case "flag or path":
            value = entry.flag_or_path(key.name, default)
        case "rate":
            value = entry.rate(key.name, default)
        case "choice":
            value = entry.choice(key.name, default, key.choices)
        case "networks":
            empty = key.name.endswith("deny")
            value = read_networks(entry, key.name, default, may_be_empty=empty)
        case "host":
            value = entry.host(key.name, default)
        case "user":
            value = entry.user(key.name, default)
        case "name":
            value = entry.name(key.name, default)
        case _:
            raise AssertionError(f"{key.name}: {key.kind} has a function of its own")
    return value


def _server(top: fields.Fields, override: str | None) -> str:
    if override is not None:
        problem = fields.host_problem(override)
        if problem:
            top.problem("server", problem)
        return override
    if "server" not in top.values:
        top.problem("server", "is missing; give --server HOST or put it into the config")
        return ""
    return top.host("server", "")


def _bind(top: fields.Fields, override: Sequence[str]) -> tuple[str, ...]:
    value = list(override) if override else top.values.get("bind", list(DEFAULT_BIND))
    hosts = [value] if isinstance(value, str) else value
    if not isinstance(hosts, list) or not hosts:
        top.problem("bind", "must be an address or a list of addresses")
        return DEFAULT_BIND
    addresses: dict[str, None] = {}
    for host in hosts:
        found = fields.bind_addresses(host)
        if not found:
            text = "is not an IP address, and neither localhost nor *"
            top.problem("bind", f"{fields.shown(host)} {text}")
        addresses.update(dict.fromkeys(found))
    return tuple(addresses)


def _token(
    top: fields.Fields, tunnels: Sequence[TunnelConfig], clients: Sequence[ClientConfig]
) -> TokenPlace:
    """Return where the token at the top is, the one for ports that no client names."""
    if top.values.get("auth") == "none":
        if "token" in top.values:
            top.problem("token", 'is there, and "auth" is "none": leave one of the two out')
        return TokenPlace(kind="none")
    if "token" in top.values:
        return read_token(top, "token", top.values["token"])
    named = {port for client in clients for port in client.ports}
    if clients and all(tunnel.remote_port in named for tunnel in tunnels):
        return TokenPlace(kind="clients")
    return OWN_TOKEN


def _tunnels(top: fields.Fields, role: RoleName) -> tuple[TunnelConfig, ...]:
    entries = top.values.get("tunnels", [])
    if not isinstance(entries, list):
        top.problem("tunnels", f"must be a list, not {fields.kind(entries)}")
        return ()
    if len(entries) > MAX_TUNNELS:
        top.problem("tunnels", f"{len(entries)} are more than {MAX_TUNNELS}")
        return ()
    common = {one.field: _value(top, one, role, one.default) for one in _COMMON_SETTINGS}
    tunnels = [_tunnel(top, index, entry, role, common) for index, entry in enumerate(entries)]
    _check_unique(top, tunnels)
    if role == "server":
        known = {tunnel.remote_port for tunnel in tunnels}
        ports = [port for port in fields.port_list(top, PORTS.name) if port not in known]
        tunnels += [_named(TunnelConfig(remote_port=port, **common)) for port in ports]
    if len(tunnels) > MAX_TUNNELS:
        top.problem(PORTS.name, f"makes {len(tunnels)} tunnels; {MAX_TUNNELS} is the limit")
    if not tunnels and not top.problems:
        top.problem("tunnels", "there are none")
    return tuple(tunnels)


def _tunnel(
    top: fields.Fields, index: int, value: object, role: RoleName, common: dict[str, Any]
) -> TunnelConfig:
    """Return one tunnel; ``common`` is what it has where it does not say."""
    path = f"tunnels[{index}]"
    if not isinstance(value, dict):
        top.problem(path, f"must be an object, not {fields.kind(value)}")
        return TunnelConfig(remote_port=0)
    entry = fields.Fields(value, f"{path}.", top.problems)
    _check_keys(entry, _TUNNEL_KEYS, role)
    values = {
        one.field: _value(entry, one, role, common.get(one.field, one.default))
        for one in TUNNEL_SETTINGS
    }
    return _named(TunnelConfig(**values))


def _named(tunnel: TunnelConfig) -> TunnelConfig:
    """Return the tunnel with a name."""
    return tunnel if tunnel.name else replace(tunnel, name=f"tunnel-{tunnel.remote_port}")


def _check_unique(top: fields.Fields, tunnels: Sequence[TunnelConfig]) -> None:
    ports: dict[int, int] = {}
    names: dict[str, int] = {}
    for index, tunnel in enumerate(tunnels):
        if not tunnel.remote_port:
            continue  # already reported
        first = ports.setdefault(tunnel.remote_port, index)
        if first != index:
            text = f"{tunnel.remote_port} is already used by tunnels[{first}]"
            top.problem(f"tunnels[{index}].remote_port", text)
            continue
        first = names.setdefault(tunnel.name, index)
        if first != index:
            text = f"{fields.shown(tunnel.name)} is already used by tunnels[{first}]"
            top.problem(f"tunnels[{index}].name", text)
