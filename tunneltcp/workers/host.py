"""Whom a worker belongs to: its master, at the other end of a channel.

Theory of operation
-------------------
A worker knows its host by seven calls and a few messages, JSON objects that are the same for
each kind of host: the host says "drain", "stop", "addresses" and questions; the worker tells
"ready", "link", "resolve", "replace" and answers. There are two: :class:`MasterHost` here,
and ``alone.py`` for a worker that is a whole program.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any, Final, Protocol

from loguru import logger

from tunneltcp.control.codec import decode_message, encode_message
from tunneltcp.control.context import MEMORY_BYTES, NONCES_BYTES, RECORDS_BYTES
from tunneltcp.control.counters import map_counters
from tunneltcp.errors import ControlChannelError
from tunneltcp.net.loop import READ
from tunneltcp.relay.memory import TunnelMemory

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunneltcp.control.context import WorkerContext
    from tunneltcp.net.loop import Loop

__all__ = ["Host", "MasterHost"]

_MESSAGE_BYTES: Final = 64 * 1024
_DESCRIPTORS: Final = "/proc/self/fd"

COUNT_SECONDS: Final = 10.0
"""Before Linux 6.2 the kernel does not say how many descriptors there are; to look through
10,000 of them takes 13 ms."""


class Host(Protocol):
    """What a worker wants of whom it belongs to."""

    def map_memory(self) -> TunnelMemory:
        """Return the tunnel's memory."""

    def map_counters(self) -> memoryview:
        """Return the tunnel's page of counters."""

    def catch_signals(self, loop: Loop) -> None:
        """Take over the process's signals; before :meth:`open`, and only in an own process."""

    def open(self, loop: Loop, on_message: Callable[[dict[str, Any]], None]) -> None:
        """Begin to listen to it."""

    def count_descriptors(self) -> int:
        """Return how many descriptors this process has open; 0 if nobody wants to know."""

    def tell(self, message: dict[str, Any]) -> None:
        """Say something to it, or drop it: a worker never waits."""

    def close(self) -> None:
        """Let go of it."""


class MasterHost:
    """The master, over a SOCK_SEQPACKET pair; its end of file means "stop"."""

    def __init__(self, context: WorkerContext) -> None:
        self._context = context
        self._channel = socket.socket(fileno=context.channel_fd)
        self._channel.setblocking(False)
        self._descriptors = 0
        self._count_after = 0.0

    def map_memory(self) -> TunnelMemory:
        """Map what the master made; a worker before us may have left something in it."""
        context = self._context
        return TunnelMemory(
            context.memory_fd,
            MEMORY_BYTES,
            RECORDS_BYTES,
            context.budget_bytes,
            nonces_bytes=NONCES_BYTES,
        )

    def map_counters(self) -> memoryview:
        """Map the page that the master reads."""
        return map_counters(self._context.counters_fd)

    def catch_signals(self, loop: Loop) -> None:
        """TERM asks for a successor; what reaches the whole group of processes is ignored."""
        if sys.platform != "win32":  # no master runs there
            for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: None)
        self._waker, self._wake_writer = socket.socketpair()
        self._waker.setblocking(False)
        self._wake_writer.setblocking(False)
        signal.set_wakeup_fd(self._wake_writer.fileno(), warn_on_full_buffer=False)
        loop.register(self._waker.fileno(), READ, self._on_signal)

    def _on_signal(self, events: int) -> None:
        del events
        with contextlib.suppress(BlockingIOError):
            if signal.SIGTERM in self._waker.recv(64):
                self.tell({"type": "replace"})

    def open(self, loop: Loop, on_message: Callable[[dict[str, Any]], None]) -> None:
        """Begin to read the channel."""
        self._on_message = on_message
        self._loop = loop
        loop.register(self._channel.fileno(), READ, self._on_channel)

    def count_descriptors(self) -> int:
        """Ask the kernel: what we do not know of is what a limit is for."""
        count = os.stat(_DESCRIPTORS).st_size  # noqa: PTH116 - a Path each time costs more
        if count:
            return count
        if self._loop.now >= self._count_after:
            self._count_after = self._loop.now + COUNT_SECONDS
            self._descriptors = len(os.listdir(_DESCRIPTORS))  # noqa: PTH208 - see log.py
        return self._descriptors

    def tell(self, message: dict[str, Any]) -> None:
        """Send a message; if the master cannot take it now, it is dropped.

        The channel holds over a hundred messages and the master empties it each turn, so
        this happens only to who talks to a master that hangs.
        """
        with contextlib.suppress(BlockingIOError, ConnectionError):
            self._channel.send(encode_message(message))

    def _on_channel(self, events: int) -> None:
        del events
        fds: list[int] = []
        try:
            packet, fds = _receive(self._channel)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        if not packet:  # the master is gone, and a worker never outlives it
            self._on_message({"type": "stop"})
            return
        try:
            message = decode_message(packet)
        except ControlChannelError as error:
            logger.error("master sent garbage: {}", error)
            return
        if fds:  # beside "certificate" and "keys" alone
            message["fd"] = fds[0]
        self._on_message(message)

    def close(self) -> None:
        """Hang up."""
        self._channel.close()


def _receive(channel: socket.socket) -> tuple[bytes, list[int]]:
    """Take one packet, and the descriptor that may come beside it."""
    if sys.platform == "linux":
        flags = socket.MSG_CMSG_CLOEXEC
        packet, fds, _, _ = socket.recv_fds(channel, _MESSAGE_BYTES, 1, flags)
        return packet, fds
    raise AssertionError("no master runs elsewhere")
