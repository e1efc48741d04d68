"""Configs that go from one process to another, and from one version to the next."""

from __future__ import annotations

from pathlib import Path

from tunneltcp.config.clients import ClientConfig
from tunneltcp.config.model import Config, TunnelConfig
from tunneltcp.config.plain import config_from_plain, config_to_plain, tunnel_from_plain
from tunneltcp.config.tokens import TokenPlace

CONFIG = Config(
    tunnels=(
        TunnelConfig(remote_port=60001, allow=("10.0.0.0/8",)),
        TunnelConfig(remote_port=60002, local_port=22, name="ssh"),
    ),
    server="vps",
    cert=Path("/cert.pem"),
    key=Path("/key.pem"),
    verify=Path("/ca.pem"),
    run_as=(7, 8),
    token=TokenPlace(kind="file", where="/token"),
    clients=(
        ClientConfig(
            name="laptop", tokens=(TokenPlace(kind="variable", where="T"),), ports=(60001,)
        ),
    ),
)


def test_it_comes_back_as_it_was():
    assert config_from_plain(config_to_plain(CONFIG)) == CONFIG
    assert tunnel_from_plain(config_to_plain(CONFIG.tunnels[0])) == CONFIG.tunnels[0]


def test_what_is_not_known_is_left_out():
    values = config_to_plain(CONFIG)
    values["colour"] = values["token"]["colour"] = values["clients"][0]["colour"] = "blue"
    values["tunnels"][1]["colour"] = values["clients"][0]["tokens"][0]["colour"] = ["blue"]
    assert config_from_plain(values) == CONFIG


def test_what_is_missing_has_its_default():
    values = config_to_plain(CONFIG)
    del values["drain_seconds"], values["verify"], values["tunnels"][1]["max_visitors"]
    found = config_from_plain(values)
    assert found.verify is Config(tunnels=()).verify
    assert found.tunnels == CONFIG.tunnels
