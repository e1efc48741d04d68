"""The options of the sockets we hold, in one place, each with its reason.

Those of a listener are inherited by what it accepts (tcp(7), and tried).
"""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import Final

__all__ = [
    "close_cleanly",
    "cookie",
    "is_connected_to_itself",
    "prepare_connection",
    "prepare_link",
    "prepare_listener",
]

SO_COOKIE: Final = 57
TCP_NOTSENT_LOWAT: Final = 25

UNSENT_BYTES: Final = 128 * 1024
"""Unsent bytes the kernel takes for one visitor or target: 100 visitors that never read
cost 27 MB with it and 418 MB without."""
LINK_UNSENT_BYTES: Final = 256 * 1024
"""The same for a link: what lies in the kernel cannot be overtaken by a PING."""
LINK_TIMEOUT_MS: Final = 60_000
"""Milliseconds after which the kernel gives up a link whose bytes nobody acknowledges:
a back-up, the PINGs are quicker."""

_RESET_AT_CLOSE: Final = struct.pack("ii", 1, 0)
_FINISH_AT_CLOSE: Final = struct.pack("ii", 0, 0)


def prepare_connection(sock: socket.socket) -> None:
    """Set what a visitor's or a target's socket needs; before connect, or on a listener."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # Notices peers that are gone for good. Never a short TCP_USER_TIMEOUT here: it also
    # kills peers that merely do not read.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 6)):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    # Urgent data would make the kernel's byte counters disagree with ours.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    # Whoever dies with this socket open ends it with a RST: a connection that was cut must
    # never look finished. A clean end takes this back first (close_cleanly).
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, UNSENT_BYTES)


def prepare_listener(sock: socket.socket) -> None:
    """Set what the sockets accepted from this listener are to inherit."""
    prepare_connection(sock)


def prepare_link(sock: socket.socket) -> None:
    """Set what a link's socket needs, also on one accepted as if it were a visitor."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _FINISH_AT_CLOSE)
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, LINK_UNSENT_BYTES)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, LINK_TIMEOUT_MS)


def close_cleanly(sock: socket.socket) -> None:
    """Close a socket whose both directions have finished; what it still holds is sent."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _FINISH_AT_CLOSE)
    sock.close()


def is_connected_to_itself(sock: socket.socket) -> bool:
    """Say whether this connection has only one end.

    A connect to a closed local port of the ephemeral range can come out at that very port,
    and then reaches itself (simultaneous open, RFC 9293 §3.5).
    """
    try:
        return bool(sock.getsockname() == sock.getpeername())
    except OSError:
        return False


def cookie(sock: socket.socket) -> int:
    """Return the kernel's name for this socket: unique for as long as the machine runs."""
    try:
        return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), "little")
    except OSError:
        return 0
