"""Where a client's names lead, in the memory that outlives it: its successor need not ask.

Looking a name up takes a process and a name server's time, and meanwhile nobody would dial, and
no connection to the target could be made again that was just being made. What is stored is
good only for the very names that it is for, and only if nothing of it was damaged.
"""

from __future__ import annotations

import socket
import struct
import zlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunneltcp.control.context import WorkerContext
    from tunneltcp.net.address import SocketAddress

__all__ = ["pack_known", "unpack_known"]

_HEAD: Final = struct.Struct("!IIBB")
"""Checksums of all behind it and of the names, how many addresses the server and the target
have."""
_ENTRY: Final = struct.Struct("!B16sI")
"""4 or 6, the address, its scope."""
_MAX: Final = 5
"""Addresses of each of the two: as many as there is room for."""


def _names_sum(context: WorkerContext) -> int:
    names = (context.server_host, context.link_port, context.target_host, context.target_port)
    return zlib.crc32(repr(names).encode())


def pack_known(
    context: WorkerContext, server: Sequence[SocketAddress], target: Sequence[SocketAddress]
) -> bytes:
    """Return the first addresses of both, for :meth:`StreamTable.set_owner`."""
    server, target = server[:_MAX], target[:_MAX]
    entries = b"".join(map(_pack, (*server, *target)))
    rest = _HEAD.pack(0, _names_sum(context), len(server), len(target))[4:] + entries
    return zlib.crc32(rest).to_bytes(4, "big") + rest


def _pack(address: SocketAddress) -> bytes:
    family, place = address
    host = str(place[0]).partition("%")[0]
    scope = place[3] if family == socket.AF_INET6 else 0
    return _ENTRY.pack(
        6 if family == socket.AF_INET6 else 4, socket.inet_pton(family, host), scope
    )


def unpack_known(
    context: WorkerContext, packed: bytes
) -> tuple[list[SocketAddress], list[SocketAddress]]:
    """Return the addresses of the server and of the target; none if these are not for us."""
    checksum, names, servers, targets = _HEAD.unpack_from(packed)
    end = _HEAD.size + _ENTRY.size * (servers + targets)
    if names != _names_sum(context) or zlib.crc32(packed[4:end]) != checksum:
        return [], []
    ports = [context.link_port] * servers + [context.target_port] * targets
    entries = _ENTRY.iter_unpack(packed[_HEAD.size : end])
    found = [_unpack(entry, port) for entry, port in zip(entries, ports, strict=True)]
    return found[:servers], found[servers:]


def _unpack(entry: tuple[int, bytes, int], port: int) -> SocketAddress:
    version, packed, scope = entry
    if version == 6:
        host = socket.inet_ntop(socket.AF_INET6, packed)
        return socket.AF_INET6, (host, port, 0, scope)
    return socket.AF_INET, (socket.inet_ntop(socket.AF_INET, packed[:4]), port)
