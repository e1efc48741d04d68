"""What a link runs over: a connected, non-blocking socket, or TLS over one.

A plain socket *is* a transport: nothing stands between a link without TLS and the kernel.
"""

from __future__ import annotations

from typing import Protocol

__all__ = ["Transport"]


class Transport(Protocol):
    """A connection that carries bytes both ways and never waits."""

    def fileno(self) -> int:
        """Return the descriptor to wait for: READ and WRITE mean what they always mean."""

    def recv(self, size: int, /) -> bytes:
        """Receive before the peer has proven who it is: only so much, then it fails.

        Raises:
            BlockingIOError: Nothing is there.
            OSError: The connection failed; ``strerror`` says how.
        """

    def recv_into(self, view: memoryview, /) -> int:
        """Receive into ``view``; 0 means that the other side has closed.

        Nothing that came stays hidden: if there is more, the descriptor is still readable.

        Args:
            view: At least 128 KiB long; all of it may be written to.

        Raises:
            BlockingIOError: Nothing is there.
            OSError: The connection failed; ``strerror`` says how.
        """

    def send(self, data: bytes, /) -> int:
        """Send from the front of ``data``; return how many bytes are done with.

        Where there is ``sendmsg``, it does the same with a list of buffers. What was not taken
        is to be offered again first, in the same pieces.

        Raises:
            BlockingIOError: Nothing was.
            OSError: The connection failed.
        """

    def getsockopt(self, level: int, option: int, size: int, /) -> bytes:
        """Ask the socket for one of its options.

        Raises:
            OSError: There is none such.
        """

    def close(self) -> None:
        """Close it, without a word."""
