"""Networks in the config: "127.0.0.1", "10.0.0.0/8", "2001:db8::/32"."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final

from tunneltcp.config import fields
from tunneltcp.config.keys import described

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tunneltcp.config.keys import Key

__all__ = ["ALLOW", "DENY", "VISITORS_ALLOW", "VISITORS_DENY", "read_networks"]

MAX_NETWORKS: Final = 100
"""In one list; a worker's message has room for four lists of this length."""

_MAPPED: Final = ipaddress.IPv6Network("::ffff:0:0/96")


def _key(name: str, meaning: str, default: str) -> Mapping[str, Key]:
    return described(name, "networks", meaning, role="server", for_all=True, default=default)


ALLOW: Final = _key(
    "allow",
    """From which networks links are taken. With `"auth": "none"` that is from these and from
    the server's own machine.""",
    "from everywhere",
)
DENY: Final = _key(
    "deny", "From which networks no link is taken, whatever `allow` says.", "none"
)
VISITORS_ALLOW: Final = _key(
    "visitors_allow",
    """From which networks visitors are let in; others are reset before anything is read from
    them. `["127.0.0.1", "::1"]` where a proxy on the server stands in front. Links are another
    matter (`allow`).""",
    "from everywhere",
)
VISITORS_DENY: Final = _key(
    "visitors_deny",
    "From which networks no visitor is let in, whatever `visitors_allow` says.",
    "none",
)


def read_networks(
    entry: fields.Fields, key: str, default: tuple[str, ...], *, may_be_empty: bool
) -> tuple[str, ...]:
    """Return networks in one form each; report what is none.

    An empty list may say that nobody is denied; that nobody is allowed is hardly meant.
    """
    if key not in entry.values:
        return default
    value = entry.values[key]
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list):
        entry.problem(key, f"must be a network or a list of networks, not {fields.kind(value)}")
        return default
    if len(items) > MAX_NETWORKS:
        entry.problem(key, f"{len(items)} are more than {MAX_NETWORKS}")
        return default
    if not items and not may_be_empty:
        everywhere = '["0.0.0.0/0", "::/0"]'
        entry.problem(key, f"is empty: leave it out, or say {everywhere} for everywhere")
    found: dict[str, None] = {}
    for item in items:
        network, problem = _network(item)
        if problem:
            entry.problem(key, problem)
        else:
            found[network] = None
    return tuple(found)


def _network(item: object) -> tuple[str, str]:
    """Return a network as text, or what is wrong with it."""
    wrong = 'is not an address or a network like "10.0.0.0/8"'
    if not isinstance(item, str) or "%" in item:
        return "", f"{fields.shown(item)} {wrong}"
    try:
        network = ipaddress.ip_network(item, strict=False)
    except ValueError:
        return "", f"{fields.shown(item)} {wrong}"
    address = item.partition("/")[0]
    if ipaddress.ip_address(address) != network.network_address:
        return "", f"{fields.shown(item)} has more bits than its length; {network} is meant?"
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):
        bits = network.network_address.ipv4_mapped
        return f"{bits}/{network.prefixlen - 96}", ""
    return str(network), ""
