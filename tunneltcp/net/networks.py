"""Which addresses are let in: lists of networks, made ready for a quick look."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["NEAR", "Networks"]

NEAR: Final = ("127.0.0.0/8", "::1/128")
"""The networks of this machine alone."""

_MAPPED: Final = bytes(10) + b"\xff\xff"
"""How an IPv4-mapped address begins."""

_Rule = tuple[int, int, int]
"""Bytes of an address, its bits that count, and what they must be."""


class Networks:
    """Whom an allow list and a deny list let in; whom both name is denied.

    Args:
        allow: Networks; none means everywhere.
        deny: Networks.

    An IPv4-mapped address counts as IPv4. A scope ("%eth0") does not count.

    Raises:
        ValueError: If one is no network; the config's are.
    """

    def __init__(self, allow: Sequence[str] = (), deny: Sequence[str] = ()) -> None:
        self._allow = [_rule(network) for network in allow]
        self._deny = [_rule(network) for network in deny]
        self.are_all = not self._allow and not self._deny
        """Whether everybody is let in."""

    def admits(self, host: str) -> bool:
        """Say whether an address, as the kernel writes it, is let in."""
        if self.are_all:
            return True
        try:
            address = _packed(host)
        except ValueError:  # not one of an Internet socket
            return False
        if _is_in(address, self._deny):
            return False
        return not self._allow or _is_in(address, self._allow)


def _is_in(address: bytes, rules: Sequence[_Rule]) -> bool:
    size, bits = len(address), int.from_bytes(address, "big")
    return any(size == length and bits & mask == wanted for length, mask, wanted in rules)


def _rule(network: str) -> _Rule:
    host, _, length = network.partition("/")
    address, ones = _inet(host), int(length or -1)
    if _is_mapped(address) and (ones >= 96 or not length):
        address, ones = address[12:], ones - 96
    size = len(address)
    ones = ones if length else 8 * size
    if not 0 <= ones <= 8 * size:
        raise ValueError(f"{network} is no network")
    mask = ((1 << ones) - 1) << (8 * size - ones)
    return size, mask, int.from_bytes(address, "big") & mask


def _packed(host: str) -> bytes:
    address = _inet(host)
    return address[12:] if _is_mapped(address) else address


def _is_mapped(address: bytes) -> bool:
    return len(address) == 16 and address.startswith(_MAPPED)


def _inet(host: str) -> bytes:
    bare = host.partition("%")[0]
    family = socket.AF_INET6 if ":" in bare else socket.AF_INET
    try:
        return socket.inet_pton(family, bare)
    except OSError as error:
        raise ValueError(f"{host} is no address") from error
