"""A worker that is a whole program: the part of a master that it needs, in its own process.

Theory of operation
-------------------
``tunneltcp expose`` runs one client's worker without fork, without memory that outlives it
and without anything that only Linux has. Its host is this object: it calls the worker with
the messages that a master would send and takes those that a master would get. Names are
looked up in a thread, since ``getaddrinfo`` blocks; a thread only puts its answer into a queue
and writes one byte to the pair of sockets that signals come through too.
"""

from __future__ import annotations

import signal
import socket
import sys
import threading  # noqa: TID251 - this process never forks
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from tunneltcp.control.context import RECORDS_BYTES
from tunneltcp.control.counters import COUNTERS_BYTES
from tunneltcp.net.loop import READ
from tunneltcp.net.names import addresses_message, look_up
from tunneltcp.protocol.arena import MAX_RING_BYTES, MIN_RING_BYTES
from tunneltcp.relay.memory import TunnelMemory

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunneltcp.net.loop import Loop, Timer

__all__ = ["LOOKUP_SECONDS", "AloneHost", "raise_descriptor_limit"]

LOOKUP_SECONDS: Final = 10.0
"""A resolver's own patience is 5 s for one server, two tries; then nobody answers."""

DESCRIPTORS: Final = 4096
"""Visitors have one each. macOS allows 256 unless asked, and never "unlimited"."""

_RING_SIZES: Final = (MAX_RING_BYTES // MIN_RING_BYTES).bit_length()

_SIGNALS: Final = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
"""What ends us, as far as this system has it. The second one ends us at once."""


class AloneHost:
    """Host of the one worker of a process; its methods are those of ``Host``.

    Args:
        budget_bytes: Bound on the rings; twelve times as much address space is reserved, so
            that no order of sizes can use it up (``protocol/arena.py``).
        drain_seconds: How long visitors may go on after the first signal.
        on_event: Called with what a master would be told: "ready", "link", "answer".
        on_signal: Called with the number of each signal, before it has its effect.
    """

    def __init__(
        self,
        *,
        budget_bytes: int,
        drain_seconds: float,
        on_event: Callable[[dict[str, Any]], None],
        on_signal: Callable[[int], None] = lambda _number: None,
        resolve: Callable[[str], dict[str, Any]] = look_up,
    ) -> None:
        self._budget = budget_bytes
        self._drain_seconds = drain_seconds
        self._on_event = on_event
        self._on_signal = on_signal
        self._resolve = resolve
        self._counters = memoryview(bytearray(COUNTERS_BYTES)).cast("Q")
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._old_handlers: dict[int, Any] = {}
        self._signalled = False
        self._looking: set[str] = set()
        self._waiting: dict[str, tuple[set[int], Timer]] = {}
        self._found: deque[tuple[str, dict[str, Any]]] = deque()

    def map_memory(self) -> TunnelMemory:
        """Return memory of this process; pages exist once they are touched."""
        size = RECORDS_BYTES + _RING_SIZES * self._budget
        return TunnelMemory(None, size, RECORDS_BYTES, self._budget)

    def map_counters(self) -> memoryview:
        """Return the counters, which whoever made this host may read."""
        return self._counters

    def catch_signals(self, loop: Loop) -> None:
        """Have signals end the worker in order; one that was ignored stays ignored."""
        del loop  # they come through the pair that :meth:`open` registers
        for name in _SIGNALS:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                self._old_handlers[number] = signal.signal(number, _record)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)

    def open(self, loop: Loop, on_message: Callable[[dict[str, Any]], None]) -> None:
        """Begin to wake the loop up."""
        self._loop = loop
        self._on_message = on_message
        loop.register(self._reader.fileno(), READ, self._on_wake)

    def count_descriptors(self) -> int:
        """Nobody asks here."""
        return 0

    def say(self, message: dict[str, Any]) -> None:
        """Say something to the worker, as a master would."""
        self._on_message(message)

    def tell(self, message: dict[str, Any]) -> None:
        """Take what the worker says."""
        if message["type"] == "resolve":
            self._look_up(message["host"], message["port"])
        else:
            self._on_event(message)

    def close(self) -> None:
        """Put the signals back; a thread that still looks something up is left to itself."""
        if self._old_handlers:
            signal.set_wakeup_fd(-1)
            for number, handler in self._old_handlers.items():
                signal.signal(number, handler)
        self._loop.unregister(self._reader.fileno())
        self._reader.close()
        self._writer.close()

    def _on_wake(self, events: int) -> None:
        del events
        with suppress(BlockingIOError):
            for number in self._reader.recv(64):
                if number:
                    self._handle_signal(number)
        while self._found:
            host, found = self._found.popleft()
            self._looking.discard(host)
            self._answer(host, found)

    def _handle_signal(self, number: int) -> None:
        self._on_signal(number)
        if self._signalled:
            self._on_message({"type": "stop"})
        else:
            self._signalled = True
            self._on_message({"type": "drain", "seconds": self._drain_seconds})

    def _look_up(self, host: str, port: int) -> None:
        """Look a name up: one thread for each name at a time, however long it takes."""
        if host in self._waiting:
            self._waiting[host][0].add(port)
            return
        timer = self._loop.call_later(LOOKUP_SECONDS, lambda: self._answer(host, None))
        self._waiting[host] = ({port}, timer)
        if host not in self._looking:
            self._looking.add(host)
            threading.Thread(target=self._run, args=(host,), daemon=True).start()

    def _run(self, host: str) -> None:
        """In the thread."""
        found = self._resolve(host)
        self._found.append((host, found))
        with suppress(OSError):  # full: it is awake anyway; closed: nobody asks any more
            self._writer.send(b"\0")

    def _answer(self, host: str, found: dict[str, Any] | None) -> None:
        if host in self._waiting:
            ports, timer = self._waiting.pop(host)
            timer.cancel()
            for port in ports:
                self._on_message(addresses_message(host, port, found))


def _record(_number: int, _frame: object) -> None:
    """Do nothing: the wake-up descriptor has it already."""


def raise_descriptor_limit() -> None:
    """Allow this process ``DESCRIPTORS``, where that is for us to say."""
    if sys.platform != "win32":
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
        if soft < wanted:
            with suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
