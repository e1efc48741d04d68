"""The sockets we hold: how they are made, and their options, each with its reason.

Those of a listener are inherited by what it accepts (tcp(7), and tried). What a system other
than Linux does not have is left out there: options by number only where the number is known.

What each visitor has is a plain ``SocketType``. What :class:`socket.socket` adds to it in
Python, checks of arguments and a count of files made of it, are three calls more for each.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import sys
from typing import TYPE_CHECKING, Any, Final

from tunneltcp.net.address import is_loopback_host
from tunneltcp.net.tcp_counters import TcpState

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunneltcp.net.transport import Transport

__all__ = [
    "CONNECT_BEGUN",
    "Buffers",
    "accept",
    "close_cleanly",
    "close_with_reset",
    "cookie",
    "error_text",
    "gather_send",
    "is_connected_to_itself",
    "limit_segments",
    "new_socket",
    "prepare_connection",
    "prepare_link",
    "prepare_listener",
    "set_congestion",
    "unpace",
    "unpace_if_near",
]

Buffers = list[bytes | memoryview]

SO_COOKIE: Final = 57
TCP_NOTSENT_LOWAT: Final = 25 if sys.platform == "linux" else 0x201
"""Linux; macOS."""
_HAS_NOTSENT_LOWAT: Final = sys.platform in ("linux", "darwin")

CONNECT_BEGUN: Final = frozenset(
    {0, errno.EINPROGRESS} | ({errno.EWOULDBLOCK} if sys.platform == "win32" else set())
)
"""What ``connect_ex`` says when all is well."""

UNSENT_BYTES: Final = 128 * 1024
"""Unsent bytes the kernel takes for one visitor or target: 100 visitors that never read
cost 27 MB with it and 418 MB without."""
LINK_UNSENT_BYTES: Final = 256 * 1024
"""The same for a link: what lies in the kernel cannot be overtaken by a PING."""
LINK_TIMEOUT_MS: Final = 60_000
"""Milliseconds after which the kernel gives up a link whose bytes nobody acknowledges:
a back-up, the PINGs are quicker."""

_UNPACED: Final = (b"reno\0", b"cubic\0")
"""Congestion controls that send what they may at once, as the kernel tells their names."""

if sys.platform == "linux":
    _STREAM_NONBLOCK: Final = int(socket.SOCK_STREAM | socket.SOCK_NONBLOCK)

_LINGER: Final = "hh" if sys.platform == "win32" else "ii"
_RESET_AT_CLOSE: Final = struct.pack(_LINGER, 1, 0)
_FINISH_AT_CLOSE: Final = struct.pack(_LINGER, 0, 0)

_OVER: Final = bytes([TcpState.CLOSE])

_KEEPALIVE: Final = tuple(
    (getattr(socket, name), value)
    for name, value in (
        ("TCP_KEEPIDLE", 60),
        ("TCP_KEEPALIVE", 60),  # the same, on macOS
        ("TCP_KEEPINTVL", 10),
        ("TCP_KEEPCNT", 6),
    )
    if hasattr(socket, name)
)

_ERROR_TEXTS: Final = {
    errno.ECONNREFUSED: "Connection refused",
    errno.ECONNRESET: "Connection reset by peer",
    errno.ETIMEDOUT: "Connection timed out",
    errno.EHOSTUNREACH: "No route to host",
    errno.ENETUNREACH: "Network is unreachable",
}
"""As Linux says it; Windows has no texts for its codes, and others have others."""


def new_socket(family: int) -> socket.SocketType:
    """Return a new non-blocking TCP socket."""
    if sys.platform == "linux":  # one call less for each visitor
        return socket.SocketType(family, _STREAM_NONBLOCK)
    else:  # noqa: RET505 - a type checker takes the lines below for unreachable otherwise
        sock = socket.SocketType(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        return sock


def accept(listener: socket.socket) -> tuple[socket.SocketType, Any]:
    """Return the next connection of a TCP listener, non-blocking, and whose it is.

    What :meth:`socket.socket.accept` does besides, turning numbers into enumerations and back,
    costs as much as the system call.
    """
    fd, address = listener._accept()  # type: ignore[attr-defined]
    family = socket.AF_INET if len(address) == 2 else socket.AF_INET6
    sock = socket.SocketType(family, socket.SOCK_STREAM, 0, fd)
    sock.setblocking(False)
    return sock, address


def error_text(code: int) -> str:
    """Return what an error of a socket means, in the same words on each system."""
    return _ERROR_TEXTS.get(code) or os.strerror(code)


def gather_send(transport: Transport) -> Callable[[Buffers], int]:
    """Return a function that sends a list of buffers and says how many bytes were taken."""
    gather: Callable[[Buffers], int] | None = getattr(transport, "sendmsg", None)
    if gather is None:  # on Windows
        return lambda buffers: transport.send(b"".join(buffers))
    return gather


def prepare_connection(sock: socket.SocketType, *, is_near: bool = False) -> None:
    """Set what a visitor's or a target's socket needs; before connect, or on a listener.

    Args:
        sock: The socket.
        is_near: Whether its peer is on this machine, so that it cannot vanish unseen.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if not is_near:
        # Notices peers that are gone for good. Never a short TCP_USER_TIMEOUT here: it also
        # kills peers that merely do not read.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
    # Urgent data would make the kernel's byte counters disagree with ours.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    # Whoever dies with this socket open ends it with a RST: a connection that was cut must
    # never look finished. A clean end takes this back first (close_cleanly).
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
    if _HAS_NOTSENT_LOWAT:
        try:  # noqa: SIM105 - suppress() is three calls more for each visitor
            sock.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, UNSENT_BYTES)
        except OSError:
            pass
    if is_near:
        unpace(sock)


def prepare_listener(sock: socket.SocketType) -> None:
    """Set what the sockets accepted from this listener are to inherit."""
    prepare_connection(sock)


def limit_segments(sock: socket.SocketType, segment_bytes: int) -> None:
    """Make both sides send packets of no more than so many bytes of data; before connect."""
    with contextlib.suppress(OSError, AttributeError):  # Windows has no such option
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, segment_bytes)


def prepare_link(sock: socket.SocketType) -> None:
    """Set what a link's socket needs, also on one accepted as if it were a visitor."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _FINISH_AT_CLOSE)
    with contextlib.suppress(OSError):
        if _HAS_NOTSENT_LOWAT:
            sock.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, LINK_UNSENT_BYTES)
        if sys.platform == "linux":
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, LINK_TIMEOUT_MS)


def set_congestion(fd: int, name: str) -> None:
    """Choose how a connection finds out what its path can carry.

    Raises:
        OSError: ENOENT: the kernel has none of that name; EPERM: it is not for us;
            ENOPROTOOPT: this system offers no choice.
    """
    if sys.platform == "linux":
        with socket.socket(fileno=os.dup(fd)) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
    else:
        raise OSError(errno.ENOPROTOOPT, os.strerror(errno.ENOPROTOOPT))


def unpace(sock: socket.SocketType) -> None:
    """Let a connection to this very machine send what it may at once: there is no path.

    A congestion control that spreads packets over time (bbr) halves what one core carries
    there. Reno, which does not, is in each kernel and allowed to everybody.
    """
    if sys.platform == "linux":
        try:
            # Asked each time: a machine's choice may change, and a route may have its own.
            name = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
            if not name.startswith(_UNPACED):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
        except OSError:
            pass


def unpace_if_near(sock: socket.SocketType, address: object) -> None:
    """Do that for a connection whose peer has this address, if it is this very machine."""
    if isinstance(address, tuple) and is_loopback_host(str(address[0])):
        unpace(sock)


def close_cleanly(sock: socket.SocketType) -> None:
    """Close a socket whose both directions have finished; what it still holds is sent."""
    try:
        # Usually the other end has acknowledged all, and nothing is left to be sent. To ask
        # for that is quicker: Python takes an option in bytes only after two exceptions.
        if (
            sys.platform != "linux"
            or sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) != _OVER
        ):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _FINISH_AT_CLOSE)
    except OSError:
        pass
    sock.close()


def close_with_reset(sock: socket.SocketType) -> None:
    """Close a socket by RST, whatever it was prepared for."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
    sock.close()


def is_connected_to_itself(sock: socket.SocketType, peer: object) -> bool:
    """Say whether this connection, whose other end is at ``peer``, has only one end.

    A connect to a closed local port of the ephemeral range can come out at that very port,
    and then reaches itself (simultaneous open, RFC 9293 §3.5).
    """
    try:
        return peer is not None and bool(sock.getsockname() == peer)
    except OSError:
        return False


def cookie(sock: socket.SocketType) -> int:
    """Return the kernel's name for this socket: unique for as long as the machine runs.

    0 where there is none: nobody inherits sockets there.
    """
    if sys.platform == "linux":
        try:
            return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), "little")
        except OSError:
            pass
    return 0
