"""Helpers that live in a process of their own and take commands from the test.

Theory of operation
-------------------
A relay or a target that shares the test's process shares its interpreter lock too, and
then the load slows down what it measures. So each runs one :class:`Service` (a selectors
loop) in a child, and the test holds a :class:`ServiceProcess`: a socket pair on which a
command goes down and its answer comes back before the test goes on. End-of-file on that
pair ends the child, so it never outlives the test.
"""

from __future__ import annotations

import fcntl
import heapq
import os
import selectors
import signal
import socket
import subprocess
import sys
import termios
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import orjson

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "READ",
    "ROOT",
    "WRITE",
    "Service",
    "ServiceError",
    "ServiceProcess",
    "run_service",
    "unacknowledged",
]

READ = selectors.EVENT_READ
WRITE = selectors.EVENT_WRITE

ROOT = Path(__file__).resolve().parents[2]
"""The repository."""

_MESSAGE_BYTES = 1 << 18

Self = TypeVar("Self", bound="ServiceProcess")


class ServiceError(AssertionError):
    """A command failed in the service; the text is its traceback."""


def unacknowledged(sock: socket.socket) -> int:
    """Bytes sent on a connection that the other end's kernel has not confirmed."""
    answer = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
    return int.from_bytes(answer, sys.byteorder)


class Service:
    """One selectors loop with timers; methods named ``do_...`` are its commands."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._masks: dict[int, int] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timer_number = 0
        self._running = False
        self.now = time.monotonic()

    def watch(self, sock: socket.socket, events: int, call: Callable[[int], None]) -> None:
        """Call whenever ``sock`` is ready; no events means: forget it, errors included."""
        fd = sock.fileno()
        known = self._masks.get(fd, 0)
        if events == known:
            return
        if not events:
            self._selector.unregister(fd)
            del self._masks[fd]
            return
        if known:
            self._selector.modify(fd, events, call)
        else:
            self._selector.register(fd, events, call)
        self._masks[fd] = events

    def forget(self, sock: socket.socket) -> None:
        """Stop watching; before each close."""
        if self._masks.pop(sock.fileno(), 0):
            self._selector.unregister(sock)

    def call_later(self, seconds: float, call: Callable[[], None]) -> None:
        """Call once, after a while."""
        self._timer_number += 1
        heapq.heappush(self._timers, (time.monotonic() + seconds, self._timer_number, call))

    def serve(self, channel: socket.socket) -> None:
        """Turn until the other end of ``channel`` closes."""
        self._running = True
        self.watch(channel, READ, lambda _events: self._command(channel))
        while self._running:
            timeout = None
            if self._timers:
                timeout = max(0.0, self._timers[0][0] - time.monotonic())
            ready = self._selector.select(timeout)
            self.now = time.monotonic()
            for key, events in ready:
                if self._selector.get_map().get(key.fd) is key:
                    key.data(events)
            while self._timers and self._timers[0][0] <= self.now:
                heapq.heappop(self._timers)[2]()

    def _command(self, channel: socket.socket) -> None:
        message = channel.recv(_MESSAGE_BYTES)
        if not message:
            self._running = False
            return
        name, arguments = orjson.loads(message)
        try:
            answer = {"result": getattr(self, f"do_{name}")(**arguments)}
        except Exception:  # noqa: BLE001 - it is told to the caller, who raises it
            answer = {"error": traceback.format_exc()}
        channel.send(orjson.dumps(answer))


def run_service(make: Callable[[], Service]) -> None:
    """The ``__main__`` of a module with a service: the channel's descriptor is argument 1."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the test, which then ends us
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        make().serve(channel)


class ServiceProcess:
    """The test's end of a service."""

    def __init__(self, module: str, *, prefix: Sequence[str] = ()) -> None:
        """Start ``module`` as a program.

        Args:
            module: It must call :func:`run_service` when it is the main module.
            prefix: Words before the command, such as ``ip netns exec NAME``.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [*prefix, sys.executable, "-m", module, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        self._channel = ours
        self._channel.settimeout(20)

    @property
    def pid(self) -> int:
        """Of the service."""
        return self._process.pid

    def call(self, command: str, /, **arguments: object) -> Any:  # noqa: ANN401 - JSON comes back
        """Run a command in the service and return its answer.

        Raises:
            ServiceError: If it failed there.
        """
        try:
            self._channel.send(orjson.dumps([command, arguments]))
            message = self._channel.recv(_MESSAGE_BYTES)
        except ConnectionError as error:
            raise ServiceError(f"the service is gone: {error}") from error
        if not message:
            raise ServiceError(f"the service ended: exit {self._process.wait(5)}")
        answer = orjson.loads(message)
        if "error" in answer:
            raise ServiceError(answer["error"])
        return answer["result"]

    def stop(self) -> None:
        """End it and wait until it is gone; harmless a second time."""
        self._channel.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()
