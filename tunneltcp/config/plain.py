"""A config as plain values: how it comes from the process that read it to its master.

And from a master to the next version of itself: what this one does not know it leaves out,
and what the other did not know has its default.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from tunneltcp.config.clients import ClientConfig
from tunneltcp.config.model import Config, TunnelConfig
from tunneltcp.config.tokens import TokenPlace

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["config_from_plain", "config_to_plain", "known_fields", "tunnel_from_plain"]


def config_to_plain(config: Config | TunnelConfig) -> dict[str, Any]:
    """Return the values of a config, or of a tunnel in it, as JSON has them."""
    values: dict[str, Any] = orjson.loads(orjson.dumps(config, default=str))
    return values


def config_from_plain(values: Mapping[str, Any]) -> Config:
    """Return the config whose plain values these are."""
    known = known_fields(Config, values)
    rebuilt = {
        "tunnels": [tunnel_from_plain(tunnel) for tunnel in values["tunnels"]],
        "token": TokenPlace(**known_fields(TokenPlace, values["token"])),
        "clients": [_client(client) for client in values["clients"]],
    }
    paths = {name: _path(known[name]) for name in ("cert", "key", "verify") if name in known}
    return Config(**_with_tuples(known | rebuilt | paths))


def tunnel_from_plain(values: Mapping[str, Any]) -> TunnelConfig:
    """Return the tunnel whose plain values these are."""
    return TunnelConfig(**_with_tuples(known_fields(TunnelConfig, values)))


def _client(values: Mapping[str, Any]) -> ClientConfig:
    tokens = [TokenPlace(**known_fields(TokenPlace, place)) for place in values["tokens"]]
    return ClientConfig(**_with_tuples(known_fields(ClientConfig, values) | {"tokens": tokens}))


def known_fields(kind: Any, values: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ANN401 - a class
    """Return the ``values`` that a dataclass has fields for: another version wrote them."""
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in values.items() if name in names}


def _with_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


def _path(value: Any) -> Any:  # noqa: ANN401 - whatever is no path stays
    return Path(value) if isinstance(value, str) else value
