"""How far the kernel is with a TCP connection, whoever read and wrote before us.

``bytes ever written = acked + unacked`` and ``bytes ever read = received - unread``, each up to
the FINs and the SYN that count as one byte (``relay/verdict.py`` takes them off).
"""

from __future__ import annotations

import socket
import struct
import sys
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final

if sys.platform == "linux":
    from fcntl import ioctl

if TYPE_CHECKING:
    from tunneltcp.net.transport import Transport

__all__ = ["TcpCounters", "TcpState", "all_acknowledged", "packets_resent", "read_counters"]

_TCP_INFO_BYTES: Final = 136
"""As far as ``tcpi_bytes_received``; in Linux since 4.1."""
_RESENT_AT: Final = 100
_ACKED_AT: Final = 120
_SIOCINQ: Final = 0x541B
_SIOCOUTQ: Final = 0x5411
_TRIES: Final = 1000
"""Looks at a connection that moves; nobody reads it and nobody writes, so it soon stands."""


class TcpState(IntEnum):
    """States of a connection, as the kernel numbers them."""

    ESTABLISHED = 1
    SYN_SENT = 2
    SYN_RECV = 3
    FIN_WAIT1 = 4
    FIN_WAIT2 = 5
    TIME_WAIT = 6
    CLOSE = 7
    CLOSE_WAIT = 8
    LAST_ACK = 9
    LISTEN = 10
    CLOSING = 11


if sys.platform == "linux":

    def _ask(fd: int, request: int) -> int:
        return int.from_bytes(ioctl(fd, request, bytes(4)), sys.byteorder)


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpCounters:
    """One look at a connection."""

    state: int
    """A :class:`TcpState`."""
    acked: int
    """Bytes that the other end acknowledged."""
    unacked: int
    """Bytes written and not acknowledged."""
    received: int
    """Bytes that came."""
    unread: int
    """Bytes that came and were not read."""
    error: int = 0
    """The error that waits to be told; asked for in CLOSE alone."""


def read_counters(sock: socket.socket) -> TcpCounters:
    """Look at a connection until two looks agree: the counters come from several calls.

    Raises:
        OSError: If the kernel does not tell, or it moves all the time.
    """
    if sys.platform == "linux":
        fd = sock.fileno()
        for _ in range(_TRIES):
            before = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
            unacked, unread = _ask(fd, _SIOCOUTQ), _ask(fd, _SIOCINQ)
            after = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
            if len(after) < _TCP_INFO_BYTES:
                break
            if before[0] == after[0] and before[_ACKED_AT:] == after[_ACKED_AT:]:
                acked, received = struct.unpack_from("QQ", after, _ACKED_AT)
                error = 0
                if after[0] == TcpState.CLOSE:
                    error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                return TcpCounters(
                    state=after[0],
                    acked=acked,
                    unacked=unacked,
                    received=received,
                    unread=unread,
                    error=error,
                )
        raise OSError(0, "the connection does not stand still")
    raise OSError(0, "this system does not tell")


def packets_resent(transport: Transport) -> int:
    """Return how many packets the kernel has sent again; 0 if it does not tell."""
    if sys.platform == "linux":
        with suppress(OSError):
            info = transport.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RESENT_AT + 4)
            return int.from_bytes(info[_RESENT_AT:], sys.byteorder)
    return 0


def all_acknowledged(transport: Transport) -> bool:
    """Return whether the other end's kernel has all that was written; False if none tells."""
    if sys.platform == "linux":
        with suppress(OSError):
            return not _ask(transport.fileno(), _SIOCOUTQ)
    return False
