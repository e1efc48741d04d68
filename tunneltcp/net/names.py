"""Looking a name up. It blocks, so it is done beside the loop: in a child or in a thread."""

from __future__ import annotations

import socket
from typing import Any, Final

__all__ = ["addresses_message", "look_up"]

_MAX_ADDRESSES: Final = 64
"""Addresses of one name that are told; a name with more is a mistake."""


def look_up(host: str) -> dict[str, Any]:
    """Return the addresses of a name, or why there are none, as JSON. Blocks."""
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        text = getattr(error, "strerror", None) or "not a host name"
        return {"addresses": [], "error": str(text).lower()}
    addresses: list[list[object]] = []
    for family, _, _, _, address in found[:_MAX_ADDRESSES]:
        if family in (socket.AF_INET, socket.AF_INET6):
            scope = address[-1] if family == socket.AF_INET6 else 0
            addresses.append([int(family), address[0], scope])
    return {"addresses": addresses, "error": None}


def addresses_message(host: str, port: int, found: dict[str, Any] | None) -> dict[str, Any]:
    """Return what a worker is told that asked for a name; ``found`` None: nobody answered."""
    found = found or {"addresses": [], "error": "the look-up gave no answer in time"}
    addresses = [[family, ip, port, scope] for family, ip, scope in found["addresses"]]
    return {
        "type": "addresses",
        "host": host,
        "port": port,
        "addresses": addresses,
        "error": found["error"],
    }
