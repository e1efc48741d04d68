"""Hosts and ports, as text and as what the socket calls want."""

from __future__ import annotations

import socket
from functools import lru_cache
from typing import Any, Final

__all__ = [
    "SocketAddress",
    "format_address",
    "is_loopback",
    "is_loopback_host",
    "literal_addresses",
    "pack_address",
    "pack_own_address",
    "peer_address",
    "unpack_address",
]

SocketAddress = tuple[int, Any]
"""An address family, and what ``connect`` or ``bind`` takes for it."""

_LOCALHOST: Final = ("::1", "127.0.0.1")


def literal_addresses(host: str, port: int) -> list[SocketAddress]:
    """Return the addresses of ``host`` if no look-up is needed for that, else nothing.

    "localhost" means both families: an app that listens on one of them is found on either.
    """
    hosts = _LOCALHOST if host.rstrip(".").lower() == "localhost" else (host.strip("[]"),)
    found: list[SocketAddress] = []
    for text in hosts:
        bare, _, scope = text.partition("%")
        if not scope and _packed(socket.AF_INET, bare):
            found.append((socket.AF_INET, (bare, port)))
        elif _packed(socket.AF_INET6, bare):
            found.append((socket.AF_INET6, (bare, port, 0, _interface_index(scope))))
    return found


def _packed(family: int, host: str) -> bytes:
    """Return the bytes of a literal address; none if it is no literal of that family."""
    try:
        return socket.inet_pton(family, host)
    except (OSError, ValueError):
        return b""


def _interface_index(scope: str) -> int:
    if not scope or scope.isdigit():
        return int(scope or 0)
    try:
        return socket.if_nametoindex(scope)
    except OSError:
        return 0


@lru_cache(maxsize=128)
def is_loopback(address: SocketAddress) -> bool:
    """Say whether an address to connect to is this very machine's own."""
    return is_loopback_host(str(address[1][0]))


def is_loopback_host(host: str) -> bool:
    """Say the same of a host as ``accept`` or ``getpeername`` tell it."""
    return host.startswith(("127.", "::ffff:127.")) or host == "::1"


def pack_address(address: object) -> bytes:
    """Return an address as OPEN carries it (PROTOCOL.md §7.1); IPv4-mapped counts as IPv4."""
    if isinstance(address, tuple) and len(address) >= 2:
        packed = _packed_host(address[0])
        if packed:
            return packed + int(address[1]).to_bytes(2, "big")
    return b"\0"


def pack_own_address(sock: socket.SocketType) -> bytes:
    """Return the address of our end as OPEN carries it; there are only a few of those."""
    try:
        return _pack_again(sock.getsockname())
    except OSError:  # the connection is gone already
        return b"\0"


_pack_again: Final = lru_cache(maxsize=128)(pack_address)


@lru_cache(maxsize=128)
def _packed_host(host: str) -> bytes:
    """Return the version and the bytes of an address; those who come, come again."""
    bare = host.partition("%")[0]
    if packed := _packed(socket.AF_INET, bare.removeprefix("::ffff:")):
        return b"\4" + packed
    if packed := _packed(socket.AF_INET6, bare):
        return b"\6" + packed
    return b""


def unpack_address(packed: bytes) -> str:
    """Return the first address in what OPEN carries, as text; "unknown" if it says none."""
    kind = packed[:1]
    size = {b"\4": 4, b"\6": 16}.get(kind)
    if size is None or len(packed) < 3 + size:
        return "unknown"
    family = socket.AF_INET if size == 4 else socket.AF_INET6
    port = int.from_bytes(packed[1 + size : 3 + size], "big")
    return format_address((socket.inet_ntop(family, packed[1 : 1 + size]), port))


def peer_address(sock: socket.SocketType) -> object:
    """Return the address of the other end, or nothing if there is no connection."""
    try:
        return sock.getpeername()
    except OSError:
        return None


def format_address(address: object) -> str:
    """Return ``host:port``, with brackets around an IPv6 host; IPv4-mapped counts as IPv4."""
    if not isinstance(address, tuple) or len(address) < 2:
        return "unknown"
    host, port = str(address[0]), address[1]
    if host.startswith("::ffff:") and "." in host:
        host = host[7:]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
