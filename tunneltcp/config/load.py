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
import stat
from typing import TYPE_CHECKING, Final, NoReturn

from tunneltcp.config import fields
from tunneltcp.config.model import (
    DEFAULT_BIND,
    DEFAULT_DRAIN_SECONDS,
    DEFAULT_HOLD_SECONDS,
    DEFAULT_IDLE_PING_SECONDS,
    DEFAULT_LOG_BYTES,
    DEFAULT_LOG_FILES,
    DEFAULT_MAX_VISITORS,
    MAX_TUNNELS,
    Config,
    TunnelConfig,
)
from tunneltcp.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tunneltcp.config.model import RoleName

__all__ = ["MAX_FILE_BYTES", "build_config", "load_config", "read_document"]

MAX_FILE_BYTES: Final = 1 << 20
"""A config of 500 tunnels has 50 kB; more than 1 MiB is some other file."""

_TUNNEL_KEYS: Final = (
    "remote_port", "local_port", "local_host", "name", "link_port",
    "hold", "idle_ping", "max_visitors",
)  # fmt: skip
_COMMON_KEYS: Final = (
    "tunnels", "drain", "hold", "idle_ping", "max_visitors", "budget", "log_bytes", "log_files",
    "tls",
)  # fmt: skip
_SERVER_KEYS: Final = ("ports", "bind", "cert", "key")
_CLIENT_KEYS: Final = ("server", "verify")
_LATER_KEYS: Final = (
    "token",
    "clients",
    "crash_safe",
    "resume_grace",
    "max_rss",
    "max_fds",
)


def load_config(
    path: Path, role: RoleName, *, server: str | None = None, bind: Sequence[str] = ()
) -> Config:
    """Read the config for one role; ``server`` and ``bind`` overrule the file.

    Raises:
        ConfigError: With every problem found, each naming the file.
    """
    try:
        return build_config(read_document(path), role, server=server, bind=bind)
    except ConfigError as error:
        shown = str(path) if str(path).isprintable() else ascii(str(path))
        raise ConfigError([f"{shown}: {problem}" for problem in error.problems]) from error


def read_document(path: Path) -> object:
    """Return the JSON value in a file, its objects as :class:`fields.JsonObject`.

    Raises:
        ConfigError: If there is no such file, or no such value in it.
    """
    data = _read_file(path)
    if data.startswith(b"\xef\xbb\xbf"):
        raise ConfigError(["starts with a byte order mark; save it as plain UTF-8"])
    try:
        return json.loads(
            data.decode(), object_pairs_hook=fields.JsonObject, parse_constant=_refuse_constant
        )
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"line {line}: is not UTF-8 text"]) from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}"
        raise ConfigError([f"{place}: is not JSON: {error.msg}"]) from error
    except RecursionError as error:
        raise ConfigError(["is nested too deeply"]) from error
    except ValueError as error:  # a number of more than 4,300 digits
        raise ConfigError(["holds a number that is too long"]) from error


def _refuse_constant(name: str) -> NoReturn:
    raise ConfigError([f"{name} is not JSON"])


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
    _check_keys(top, role)
    config = Config(
        tunnels=_tunnels(top, role),
        server=_server(top, server) if role == "client" else "",
        bind=_bind(top, bind) if role == "server" else DEFAULT_BIND,
        tls=top.flag("tls", default=True),
        certificate=_certificate(top) if role == "server" else None,
        verify=_verify(top) if role == "client" else False,
        drain_seconds=top.number("drain", DEFAULT_DRAIN_SECONDS, 0, 3600),
        budget_bytes=top.optional_integer("budget", 1 << 20, 1 << 30),
        log_bytes=top.integer("log_bytes", DEFAULT_LOG_BYTES, 4096, 1 << 30),
        log_files=top.integer("log_files", DEFAULT_LOG_FILES, 1, 100),
    )
    if top.problems:
        raise ConfigError(top.problems)
    return config


def _check_keys(top: fields.Fields, role: RoleName) -> None:
    mine, others = (
        (_SERVER_KEYS, _CLIENT_KEYS) if role == "server" else (_CLIENT_KEYS, _SERVER_KEYS)
    )
    other_role = "client" if role == "server" else "server"
    foreign = dict.fromkeys(others, f"is for the {other_role}, and this is the {role}")
    top.check_keys(_COMMON_KEYS + mine, foreign, _LATER_KEYS)


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


def _certificate(top: fields.Fields) -> tuple[Path, Path] | None:
    paths = {key: top.path(key) for key in ("cert", "key")}
    cert, key = paths["cert"], paths["key"]
    if cert is None or key is None:
        for name, other in (("cert", "key"), ("key", "cert")):
            if name in top.values and other not in top.values:
                top.problem(name, f"needs {other} beside it")
        return None
    _check_needs_tls(top, "cert")
    return cert, key


def _verify(top: fields.Fields) -> bool | Path:
    value = top.values.get("verify", False)
    if value:
        _check_needs_tls(top, "verify")
    if isinstance(value, bool):
        return value
    if not isinstance(value, str):
        top.problem("verify", f"must be true, false or a path, not {fields.kind(value)}")
        return False
    return top.path("verify") or False


def _check_needs_tls(top: fields.Fields, key: str) -> None:
    if top.values.get("tls") is False:
        top.problem(key, "is of no use while tls is false")


def _tunnels(top: fields.Fields, role: RoleName) -> tuple[TunnelConfig, ...]:
    entries = top.values.get("tunnels", [])
    if not isinstance(entries, list):
        top.problem("tunnels", f"must be a list, not {fields.kind(entries)}")
        return ()
    if len(entries) > MAX_TUNNELS:
        top.problem("tunnels", f"{len(entries)} are more than {MAX_TUNNELS}")
        return ()
    defaults = _defaults(top)
    tunnels = [
        _tunnel(top, index, entry, role, defaults) for index, entry in enumerate(entries)
    ]
    _check_unique(top, tunnels)
    if role == "server":
        known = {tunnel.remote_port for tunnel in tunnels}
        ports = [port for port in fields.port_list(top, "ports") if port not in known]
        tunnels += [_with_defaults(port, defaults) for port in ports]
    if len(tunnels) > MAX_TUNNELS:
        top.problem("ports", f"makes {len(tunnels)} tunnels; {MAX_TUNNELS} is the limit")
    if not tunnels and not top.problems:
        top.problem("tunnels", "there are none")
    return tuple(tunnels)


def _defaults(top: fields.Fields) -> TunnelConfig:
    """Return what a tunnel has if it does not say: the top level's settings."""
    return _settings(
        top,
        TunnelConfig(
            remote_port=0,
            hold_seconds=DEFAULT_HOLD_SECONDS,
            idle_ping_seconds=DEFAULT_IDLE_PING_SECONDS,
            max_visitors=DEFAULT_MAX_VISITORS,
        ),
    )


def _settings(
    entry: fields.Fields,
    defaults: TunnelConfig,
    *,
    remote_port: int = 0,
    local_port: int = 0,
    local_host: str = "localhost",
    name: str = "",
    link_port: int = 0,
) -> TunnelConfig:
    return TunnelConfig(
        remote_port=remote_port,
        local_port=local_port,
        local_host=local_host,
        name=name,
        link_port=link_port,
        hold_seconds=entry.number("hold", defaults.hold_seconds, 0, 3600),
        idle_ping_seconds=entry.number("idle_ping", defaults.idle_ping_seconds, 0.5, 3600),
        max_visitors=entry.integer("max_visitors", defaults.max_visitors, 1, 60_000),
    )


def _with_defaults(port: int, defaults: TunnelConfig) -> TunnelConfig:
    nothing = fields.Fields(fields.JsonObject([]), "", [])
    return _settings(nothing, defaults, remote_port=port, name=f"tunnel-{port}")


def _tunnel(
    top: fields.Fields, index: int, value: object, role: RoleName, defaults: TunnelConfig
) -> TunnelConfig:
    path = f"tunnels[{index}]"
    if not isinstance(value, dict):
        top.problem(path, f"must be an object, not {fields.kind(value)}")
        return defaults
    entry = fields.Fields(value, f"{path}.", top.problems)
    foreign = {"link_port": "is for the client, and this is the server"}
    entry.check_keys(_TUNNEL_KEYS, foreign if role == "server" else {}, _LATER_KEYS)
    remote_port = entry.port("remote_port", required=True)
    return _settings(
        entry,
        defaults,
        remote_port=remote_port,
        local_port=entry.port("local_port", required=role == "client"),
        local_host=entry.host("local_host", "localhost"),
        name=entry.name("name", f"tunnel-{remote_port}"),
        link_port=entry.port("link_port", required=False) if role == "client" else 0,
    )


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
