"""A config as plain values: how it comes from the process that read it to its master."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from tunneltcp.config.clients import ClientConfig
from tunneltcp.config.model import Config, TunnelConfig
from tunneltcp.config.tokens import TokenPlace

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["config_from_plain", "config_to_plain"]


def config_to_plain(config: Config) -> dict[str, Any]:
    """Return the values of a config as JSON has them."""
    values: dict[str, Any] = orjson.loads(orjson.dumps(config, default=str))
    return values


def config_from_plain(values: Mapping[str, Any]) -> Config:
    """Return the config whose plain values these are."""
    rebuilt = {
        "tunnels": tuple(_tunnel(tunnel) for tunnel in values["tunnels"]),
        "bind": tuple(values["bind"]),
        "token": TokenPlace(**values["token"]),
        "run_as": tuple(values["run_as"]) if values["run_as"] else None,
        "clients": tuple(_client(client) for client in values["clients"]),
        "cert": _path(values["cert"]),
        "key": _path(values["key"]),
        "verify": _path(values["verify"]),
    }
    return Config(**{**values, **rebuilt})


def _tunnel(values: Mapping[str, Any]) -> TunnelConfig:
    lists = {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
    return TunnelConfig(**{**values, **lists})


def _client(values: Mapping[str, Any]) -> ClientConfig:
    tokens = tuple(TokenPlace(**place) for place in values["tokens"])
    return ClientConfig(**{**values, "tokens": tokens, "ports": tuple(values["ports"])})


def _path(value: Any) -> Any:  # noqa: ANN401 - whatever is no path stays
    return Path(value) if isinstance(value, str) else value
