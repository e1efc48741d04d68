"""A tunnel that lives for a moment in the master, so that workers are born warm.

Theory of operation
-------------------
A forked worker shares the master's memory until it writes to it. The interpreter writes when
code runs for the first time: it counts calls, rewrites bytecode to its special forms, fills
the cache of method look-ups. All that is done here once, by a real server worker and a real
client worker with a real link over loopback, before the first fork; each worker then finds
it done, and its first moments cost it less memory of its own (docs/decisions/0006). Nothing
of it stays open. Should it fail, workers are merely larger.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import ExitStack, closing, suppress
from typing import TYPE_CHECKING, Final, TypeVar

from tunneltcp.control.context import MEMORY_BYTES, Role, WorkerContext
from tunneltcp.control.counters import COUNTERS_BYTES
from tunneltcp.net.sockopt import prepare_listener
from tunneltcp.protocol.preface import port_key
from tunneltcp.workers.base import Worker
from tunneltcp.workers.client import ClientWorker
from tunneltcp.workers.server import ServerWorker

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["warm_up"]

W = TypeVar("W", bound=Worker)

LINKS: Final = 12
"""Links made one after the other: the interpreter looks at code again after eight calls."""
VISITORS: Final = 4
"""Visitors of each link."""
MAX_SECONDS: Final = 1.0
"""It takes about 0.1 s; whatever keeps it longer is not worth waiting for."""


def warm_up(log_path: Path, certificate_fd: int) -> None:
    """Run a tunnel to nowhere for a moment.

    Args:
        log_path: Where the two workers log.
        certificate_fd: A certificate and its key, for a link with TLS; -1: without.
    """
    deadline = time.monotonic() + MAX_SECONDS
    with suppress(OSError), ExitStack() as stack:
        tunnel = _Tunnel(stack, log_path, deadline, certificate_fd)
        for _ in range(LINKS):
            tunnel.connect()
            for number in range(VISITORS):
                tunnel.visit(number)


class _Tunnel:
    """Both workers in one process, turned by hand."""

    def __init__(
        self, stack: ExitStack, log_path: Path, deadline: float, certificate_fd: int
    ) -> None:
        self._deadline = deadline
        self._stack = stack
        listener = self._listen()
        self._target = self._listen()
        self._port = listener.getsockname()[1]
        self._log_path = log_path
        self._certificate_fd = certificate_fd
        self._server = self._begin(ServerWorker, Role.SERVER, listener.detach())
        self._client = self._begin(ClientWorker, Role.CLIENT, None)

    def _listen(self) -> socket.socket:
        listener = self._stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        listener.setblocking(False)
        prepare_listener(listener)
        return listener

    def _memory(self, size: int) -> int:
        fd = os.memfd_create("warm-up")
        self._stack.callback(os.close, fd)
        os.ftruncate(fd, size)
        return fd

    def _begin(self, side: type[W], role: Role, listener: int | None) -> W:
        tls = self._certificate_fd >= 0
        shows = tls and role is Role.SERVER
        master, channel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._stack.enter_context(master)
        worker = side(
            WorkerContext(
                role=role,
                instance="warm-up",
                port=self._port,
                name="warm-up",
                target_host="127.0.0.1",
                target_port=self._target.getsockname()[1],
                server_host="127.0.0.1",
                link_port=self._port,
                keys=(port_key("", self._port),),
                tls=tls,
                certificate_fd=os.dup(self._certificate_fd) if shows else -1,
                verify=False,
                host_id="00" * 16,
                run_id="00" * 16,
                hold_seconds=1.0,
                idle_ping_seconds=1.0,
                max_visitors=16,
                budget_bytes=1 << 22,
                log_path=self._log_path,
                log_bytes=1 << 20,
                log_files=1,
                listener_fds=() if listener is None else (listener,),
                channel_fd=channel.detach(),
                counters_fd=self._memory(COUNTERS_BYTES),
                memory_fd=self._memory(MEMORY_BYTES),
                master_pid=os.getpid(),
            )
        )
        self._stack.callback(worker.close)
        worker.begin()
        return worker

    def _turn(self) -> None:
        """One turn of each side; nothing here may take long."""
        if time.monotonic() > self._deadline:
            raise TimeoutError("warming up takes too long")
        for worker in (self._server, self._client):
            worker.loop.turn(wait=False)

    def connect(self) -> None:
        """Have a link, and then no more."""
        for worker in (self._client, self._server):
            if worker.link is not None:
                worker.link.lose("warming up")
        self._client.dial_anew()  # without the pause for links that die young one by one
        while self._server.link is None or self._client.link is None:
            self._turn()

    def visit(self, number: int) -> None:
        """One visitor: some bytes there, some back, and an end of one kind or another."""
        visitor = socket.create_connection(("127.0.0.1", self._port))
        with closing(visitor):
            visitor.setblocking(False)
            visitor.send(b"x" * 5000)
            target = self._accept()
            with closing(target):
                self._move(target, 5000)
                target.send(b"y" * 5000)
                self._move(visitor, 5000)
                if number % VISITORS:
                    visitor.shutdown(socket.SHUT_WR)
                    target.shutdown(socket.SHUT_WR)
        while self._server.count_visitors() or self._client.count_visitors():
            self._turn()

    def _accept(self) -> socket.socket:
        while True:
            try:
                return self._target.accept()[0]
            except BlockingIOError:
                self._turn()

    def _move(self, sock: socket.socket, size: int) -> None:
        sock.setblocking(False)
        while size > 0:
            try:
                size -= len(sock.recv(size)) or size
            except BlockingIOError:
                self._turn()
