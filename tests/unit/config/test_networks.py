"""Networks in a config: what is one, in one form; for all tunnels or for one."""

from __future__ import annotations

import pytest

from tunneltcp.config.load import build_config
from tunneltcp.config.plain import config_from_plain, config_to_plain
from tunneltcp.errors import ConfigError

KEYS = ("allow", "deny", "visitors_allow", "visitors_deny")


def build(**values):
    return build_config({"ports": "60001-60002", **values}, "server")


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    ("value", "networks"),
    [
        (["127.0.0.1", "::1"], ("127.0.0.1/32", "::1/128")),
        ("10.0.0.0/8", ("10.0.0.0/8",)),
        (["10.0.0.0/255.0.0.0"], ("10.0.0.0/8",)),
        (["2001:DB8::/32"], ("2001:db8::/32",)),
        (["::ffff:10.0.0.0/104"], ("10.0.0.0/8",)),
        (["10.0.0.1", "10.0.0.1/32"], ("10.0.0.1/32",)),
        (["0.0.0.0/0", "::/0"], ("0.0.0.0/0", "::/0")),
    ],
)
def test_what_is_one(key, value, networks):
    for tunnel in build(**{key: value}).tunnels:
        assert getattr(tunnel, key) == networks


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    "value", [["vps"], ["10.0.0.0/33"], ["10.0.0.1:5"], [5], [""], 5, None, ["fe80::1%eth0"]]
)
def test_what_is_none(key, value):
    with pytest.raises(ConfigError, match=rf"^{key}: .*(is not an address|must be a network)"):
        build(**{key: value})


def test_bits_behind_the_length_are_a_mistake():
    with pytest.raises(ConfigError, match=r"more bits than its length; 10\.0\.0\.0/8 is meant"):
        build(allow=["10.0.0.5/8"])


def test_an_empty_list_denies_nobody_and_is_no_way_to_allow_nobody():
    assert build(deny=[], visitors_deny=[]).tunnels[0].deny == ()
    for key in ("allow", "visitors_allow"):
        with pytest.raises(ConfigError, match=r'say \["0\.0\.0\.0/0", "::/0"\] for everywhere'):
            build(**{key: []})


def test_too_many():
    with pytest.raises(ConfigError, match="101 are more than 100"):
        build(deny=[f"10.0.0.{number}" for number in range(101)])


def test_a_tunnel_may_say_otherwise():
    config = build(
        tunnels=[{"remote_port": 60002, "visitors_allow": ["10.0.0.0/8"], "deny": []}],
        visitors_allow=["127.0.0.1"], deny=["192.0.2.0/24"],
    )  # fmt: skip
    apart, other = config.tunnels
    assert (apart.remote_port, other.remote_port) == (60002, 60001)
    assert (apart.visitors_allow, apart.deny) == (("10.0.0.0/8",), ())
    assert (other.visitors_allow, other.deny) == (("127.0.0.1/32",), ("192.0.2.0/24",))
    assert config_from_plain(config_to_plain(config)) == config


def test_they_are_for_the_server():
    for key in KEYS:
        for place in ({key: ["::1"]}, {}):
            tunnel = {"remote_port": 1, "local_port": 2} | ({} if place else {key: ["::1"]})
            with pytest.raises(ConfigError, match="is for the server"):
                build_config({"tunnels": [tunnel], **place}, "client", server="vps")
