"""Hosts and ports, as text and as what the socket calls want."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any, Final

__all__ = ["SocketAddress", "format_address", "literal_addresses"]

SocketAddress = tuple[int, Any]
"""An address family, and what ``connect`` or ``bind`` takes for it."""

_LOCALHOST: Final = ("::1", "127.0.0.1")


def literal_addresses(host: str, port: int) -> list[SocketAddress]:
    """Return the addresses of ``host`` if no look-up is needed for that, else nothing.

    "localhost" means both families: an app that listens on one of them is found on either.
    """
    hosts = _LOCALHOST if host.rstrip(".").lower() == "localhost" else (host,)
    found: list[SocketAddress] = []
    for text in hosts:
        bare = text.strip("[]")
        try:
            ip = ipaddress.ip_address(bare)
        except ValueError:
            return []
        if ip.version == 4:
            found.append((socket.AF_INET, (str(ip), port)))
        else:
            scope = getattr(ip, "scope_id", None)
            index = _interface_index(scope) if scope else 0
            found.append((socket.AF_INET6, (bare.partition("%")[0], port, 0, index)))
    return found


def _interface_index(scope: str) -> int:
    if scope.isdigit():
        return int(scope)
    try:
        return socket.if_nametoindex(scope)
    except OSError:
        return 0


def format_address(address: object) -> str:
    """Return ``host:port``, with brackets around an IPv6 host; IPv4-mapped counts as IPv4."""
    if not isinstance(address, tuple) or len(address) < 2:
        return "unknown"
    host, port = str(address[0]), address[1]
    if host.startswith("::ffff:") and "." in host:
        host = host[7:]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
