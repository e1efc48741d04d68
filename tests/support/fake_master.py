"""What a master gives to a worker, so that the worker can run inside a test, turn by turn.

Theory of operation
-------------------
A :class:`World` has one clock, one stepper, and everything that a test puts into it: real
workers (:class:`WorkerBench`: memfds, a channel, listeners from the master's own code) and
far ends that the test plays. A worker begins as in its own process, but for signals; then
the stepper turns its loop. ``close`` takes all of it apart again.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.certificates import common_certificate
from tests.support.fake_clock import FakeClock
from tests.support.fake_link import HOST_ID, RUN_ID, RawClient, RawServer
from tests.support.fake_peer import FakeApp, FakePeer
from tests.support.loop_stepper import LoopStepper
from tunneltcp.control.codec import decode_message, encode_message
from tunneltcp.control.context import MEMORY_BYTES, Role, WorkerContext
from tunneltcp.control.counters import COUNTERS_BYTES, Counter, map_counters
from tunneltcp.errors import ExitCode
from tunneltcp.master.resources import make_memory, open_listeners
from tunneltcp.protocol.preface import port_key
from tunneltcp.workers.client import ClientWorker
from tunneltcp.workers.server import ServerWorker

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["SteppedClient", "SteppedServer", "WorkerBench", "World"]


class SteppedServer(ServerWorker):
    """A server's worker that says when it has left."""

    left: ExitCode | None = None
    """The exit code, once it has left."""

    def leave(self, code: ExitCode = ExitCode.DONE) -> None:
        """Leave, and say so."""
        super().leave(code)
        self.left = code


class SteppedClient(ClientWorker):
    """A client's worker that says when it has left."""

    left: ExitCode | None = None
    """The exit code, once it has left."""

    def leave(self, code: ExitCode = ExitCode.DONE) -> None:
        """Leave, and say so."""
        super().leave(code)
        self.left = code


class WorkerBench:
    """One worker, and the master's ends of what joins the two."""

    def __init__(self, world: World, context: WorkerContext) -> None:
        self.world = world
        counters_fd = make_memory("counters", COUNTERS_BYTES)
        memory_fd = make_memory("memory", MEMORY_BYTES)
        kind = socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, kind)
        self.context = replace(
            context,
            channel_fd=theirs.detach(),
            counters_fd=counters_fd,
            memory_fd=memory_fd,
        )
        self.counters = map_counters(counters_fd)
        self.messages: list[dict[str, Any]] = []
        self.port = context.port
        server = context.role is Role.SERVER
        self.worker: SteppedServer | SteppedClient = (
            SteppedServer(self.context) if server else SteppedClient(self.context)
        )
        os.close(counters_fd)
        os.close(memory_fd)
        self.loop = self.worker.loop
        self.loop._clock = world.clock  # a worker takes no clock: the one thing put into it
        self.loop.now = world.clock()
        self.worker.begin()
        world.stepper.loops.append(self.loop)
        world.stepper.pumps.append(self.pump)

    def say(self, **message: object) -> None:
        """Send a message, as the master."""
        self.channel.send(encode_message(message))

    def pump(self) -> None:
        """Take what the worker says; one that has left turns no more."""
        with suppress(BlockingIOError, OSError):
            while data := self.channel.recv(1 << 16):
                self.messages.append(decode_message(data))
        if self.worker.left is not None and self.loop in self.world.stepper.loops:
            self.world.stepper.loops.remove(self.loop)

    def told(self, kind: str) -> list[dict[str, Any]]:
        """Return the messages of one type that the worker sent so far."""
        return [message for message in self.messages if message["type"] == kind]

    def counter(self, which: Counter) -> int:
        """Return what the worker stored there."""
        return self.counters[which]

    def close(self) -> None:
        """End the worker, as the end of its process would."""
        self.worker.close()
        self.channel.close()


class World:
    """Workers, clients, servers, visitors and apps in one thread, with one clock."""

    def __init__(self) -> None:
        self.clock = FakeClock(time.monotonic(), tick=1e-6)
        self.stepper = LoopStepper(self.clock)
        self.turn = self.stepper.turn
        self.until = self.stepper.until
        self.settle = self.stepper.settle
        self.pass_time = self.stepper.pass_time
        self._closers: list[Callable[[], object]] = []

    def server(self, **settings: Any) -> WorkerBench:  # noqa: ANN401
        """Start a server's worker on a free port; ``settings`` are those of its context."""
        fds = open_listeners(0, ["127.0.0.1"])
        with socket.socket(fileno=os.dup(fds[0])) as listener:
            port: int = listener.getsockname()[1]
        if settings.get("tls") and "certificate_fd" not in settings:
            settings["certificate_fd"] = common_certificate().fd()
        context = _context(Role.SERVER, port, listener_fds=fds)
        return self._bench(replace(context, **settings))

    def client(self, server_port: int, target_port: int, **settings: Any) -> WorkerBench:  # noqa: ANN401
        """Start a client's worker; ``settings`` are those of its context."""
        context = _context(
            Role.CLIENT,
            server_port,
            server_host="127.0.0.1",
            link_port=server_port,
            target_host="127.0.0.1",
            target_port=target_port,
            host_id=HOST_ID,
            run_id=RUN_ID,
        )
        return self._bench(replace(context, **settings))

    def _bench(self, context: WorkerContext) -> WorkerBench:
        bench = WorkerBench(self, context)
        self._closers.append(bench.close)
        return bench

    def visitor(self, port: int, data: bytes = b"", *, reads: bool = True) -> FakePeer:
        """Connect to a port, and send this."""
        peer = FakePeer(socket.create_connection(("127.0.0.1", port)), reads=reads)
        self._play(peer)
        if data:
            peer.send(data)
        return peer

    def app(self, host: str = "127.0.0.1", port: int = 0, *, reads: bool = True) -> FakeApp:
        """Start a target."""
        app = FakeApp(host, port, reads=reads)
        self._play(app)
        return app

    def raw_client(self, port: int, **settings: Any) -> RawClient:  # noqa: ANN401
        """Dial a server's worker by hand; see :class:`RawClient`."""
        raw = RawClient(port, **settings)
        self._play(raw)
        return raw

    def linked_client(self, port: int, **settings: Any) -> RawClient:  # noqa: ANN401
        """The same, up to WELCOME."""
        raw = self.raw_client(port, **settings)
        self.until(lambda: raw.is_up, "WELCOME")
        return raw

    def raw_server(self, **settings: Any) -> RawServer:  # noqa: ANN401
        """Be the server that a client's worker dials."""
        raw = RawServer(**settings)
        self._play(raw)
        return raw

    def _play(self, end: FakePeer | FakeApp | RawClient | RawServer) -> None:
        self.stepper.pumps.append(end.pump)
        self._closers.append(end.close)

    def close(self) -> None:
        """Take everything apart."""
        self.stepper.pumps.clear()
        self.stepper.loops.clear()
        for closer in self._closers:
            closer()


def _context(role: Role, port: int, **settings: Any) -> WorkerContext:  # noqa: ANN401
    context = WorkerContext(
        role=role,
        instance="test",
        port=port,
        name="",
        target_host="",
        target_port=0,
        server_host="",
        link_port=0,
        keys=(port_key("", port),),
        tls=False,
        certificate_fd=-1,
        verify=False,
        host_id="",
        run_id="",
        hold_seconds=10.0,
        idle_ping_seconds=2.0,
        max_visitors=100,
        budget_bytes=64 << 20,
        log_path=Path("/dev/null"),
        log_bytes=1 << 20,
        log_files=1,
        listener_fds=(),
        channel_fd=-1,
        counters_fd=-1,
        memory_fd=-1,
        master_pid=os.getpid(),
    )
    return replace(context, **settings)
