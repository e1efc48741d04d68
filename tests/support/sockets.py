"""One visitor, one step at a time: blocking sockets with a deadline."""

from __future__ import annotations

import socket
import struct
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from tests.support.pattern import PatternChecker
from tests.support.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "accept",
    "connect",
    "expect_end",
    "expect_pattern",
    "expect_reset",
    "listener",
    "receive_all",
    "receive_exactly",
    "reset",
    "seconds_until_echo",
]

TIMEOUT_SECONDS = 10.0
"""Of each call on a socket of a test."""


def connect(
    port: int, host: str = "127.0.0.1", timeout: float = TIMEOUT_SECONDS
) -> socket.socket:
    """Connect; every later call on the socket has the deadline too."""
    sock = socket.create_connection((host, port), timeout)
    with suppress(OSError):  # reset already: the next call says so
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


@contextmanager
def listener(host: str = "127.0.0.1", port: int | None = None) -> Iterator[socket.socket]:
    """A listening socket that the test accepts from."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, free_port() if port is None else port))
        sock.listen(64)
        sock.settimeout(TIMEOUT_SECONDS)
        yield sock


def accept(listening: socket.socket) -> socket.socket:
    """Take the next connection."""
    sock, _peer = listening.accept()
    sock.settimeout(TIMEOUT_SECONDS)
    with suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def receive_exactly(sock: socket.socket, size: int) -> bytes:
    """Receive so many bytes.

    Raises:
        EOFError: If the end comes first.
    """
    data = bytearray()
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            raise EOFError(f"a clean end after {len(data)} of {size} bytes")
        data += piece
    return bytes(data)


def seconds_until_echo(port: int, host: str = "127.0.0.1", *, tries: bool = False) -> float:
    """How long a visitor of an ``echo`` app that comes now waits for its answer.

    Args:
        tries: Visitors that are reset are followed by others, as with a browser.

    Raises:
        ConnectionResetError: If it was reset instead.
    """
    begin = time.monotonic()
    while True:
        try:
            with connect(port, host, timeout=20) as visitor:
                visitor.sendall(b"hello")
                assert receive_exactly(visitor, 5) == b"hello"
                return time.monotonic() - begin
        except ConnectionResetError:
            if not tries or time.monotonic() - begin > 20:
                raise


def receive_all(sock: socket.socket, *, may_reset: bool = False) -> bytes:
    """Receive until the clean end."""
    data = bytearray()
    try:
        while piece := sock.recv(1 << 20):
            data += piece
    except ConnectionResetError:
        if not may_reset:
            raise
    return bytes(data)


def expect_pattern(sock: socket.socket, seed: int, size: int, offset: int = 0) -> None:
    """Receive so many bytes of a pattern, checked as they come.

    Raises:
        EOFError: If the end comes first.
    """
    checker = PatternChecker(seed, offset)
    buffer = memoryview(bytearray(1 << 18))
    left = size
    while left:
        got = sock.recv_into(buffer[: min(left, len(buffer))])
        if not got:
            raise EOFError(f"a clean end after {size - left} of {size} bytes")
        checker.feed(buffer[:got])
        left -= got


def expect_end(sock: socket.socket) -> None:
    """Receive the clean end, and nothing before it."""
    data = sock.recv(1 << 16)
    assert data == b"", f"{len(data)} bytes instead of the end: {data[:64]!r}"


def expect_reset(sock: socket.socket) -> int:
    """Receive until a reset; return how many bytes came before it.

    Raises:
        AssertionError: If a clean end came.
    """
    size = 0
    try:
        while piece := sock.recv(1 << 20):
            size += len(piece)
    except ConnectionResetError:
        return size
    raise AssertionError(f"a clean end after {size} bytes where a reset belongs")


def reset(sock: socket.socket) -> None:
    """Close with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
