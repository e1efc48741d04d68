"""One tunnel in the master: its listeners, its memory, and the worker that serves it.

What is to be done is decided in ``process.py``; this is the thin code that does it and
reports back. Listeners and memory stay when a worker goes; its control channel is made
anew for each one.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from loguru import logger

from tunneltcp.control.codec import MAX_PACKET_BYTES, decode_message, encode_message
from tunneltcp.control.context import MEMORY_BYTES
from tunneltcp.control.counters import COUNTERS_BYTES, map_counters
from tunneltcp.errors import ControlChannelError
from tunneltcp.master.helpers import port_holder
from tunneltcp.master.messages import (
    LinkChanged,
    Ready,
    Replace,
    Resolve,
    WorkerMessage,
    parse_message,
)
from tunneltcp.master.monitor import Sampler
from tunneltcp.master.process import Action, Input, ProcessLife, ProcessState
from tunneltcp.master.report import REPLACED, LastExit, Reporter, describe_exit
from tunneltcp.master.resources import PortBusy, make_memory, open_listeners
from tunneltcp.master.spawn import fork_worker
from tunneltcp.net.loop import READ

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunneltcp.config.model import TunnelConfig
    from tunneltcp.control.context import WorkerContext
    from tunneltcp.master.children import Children
    from tunneltcp.master.helpers import Helpers, Lookups
    from tunneltcp.net.loop import Loop, Timer

__all__ = ["Surroundings", "Tunnel", "WorkerFds"]

_PACKETS_PER_TURN: Final = 16
"""A worker that talks without end gets its turn like everybody else."""

_REPLACE_SECONDS: Final = 0.2
"""Between a worker's wish and its replacement: a TERM for the whole group of processes reaches
the workers first, and then they are to be drained."""

_CHANNEL_END_SECONDS: Final = 1.0
"""A worker whose channel ended is leaving; if it is still there after this, it is broken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerFds:
    """The descriptors one worker is born with."""

    listeners: tuple[int, ...]
    channel: int
    counters: int
    memory: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What all tunnels of a master have in common."""

    loop: Loop
    children: Children
    helpers: Helpers
    lookups: Lookups
    addresses: tuple[str, ...]
    """Where public ports are bound; empty on a client."""
    drain_seconds: float
    make_context: Callable[[TunnelConfig, WorkerFds], WorkerContext]
    worker_main: Callable[[WorkerContext], int]
    maps: list[memoryview]
    """All mappings of counters, for a child to let go of."""


class Tunnel:
    """One configured forwarding and its worker, if there is one."""

    def __init__(self, config: TunnelConfig, around: Surroundings) -> None:
        """Make the tunnel's memory.

        Raises:
            OSError: If the kernel has none to give.
        """
        self.config = config
        self.life = ProcessLife(drain_seconds=around.drain_seconds)
        self.pid: int | None = None
        self.reason = ""
        """Why it does not run; empty if it does."""
        self.last_exit: LastExit | None = None
        self.link_peer = ""
        self.sampler: Sampler | None = None
        self._around = around
        self._report = Reporter(config.remote_port, around.loop)
        self._listeners: tuple[int, ...] = ()
        self._counters_fd = make_memory(f"counters-{config.remote_port}", COUNTERS_BYTES)
        self._memory_fd = make_memory(f"memory-{config.remote_port}", MEMORY_BYTES)
        self.counters = map_counters(self._counters_fd)
        """The page of counters, readable at any time."""
        around.maps.append(self.counters)
        self._channel = -1
        self._timer: Timer | None = None
        self._started_at = 0.0
        self._kill_reason = ""
        self._closing = False

    @property
    def is_gone(self) -> bool:
        """Whether it is stopped and nothing of it runs."""
        return self.life.state is ProcessState.STOPPED and self.pid is None

    def feed(self, happened: Input) -> None:
        """Report what happened and do what follows from it."""
        for action in self.life.handle(happened, self._around.loop.now):
            self._perform(action)
        self._arm()

    def give_certificate(self, fd: int) -> None:
        """Have the worker show another certificate from now on; its link is not touched."""
        if self._channel >= 0:
            with socket.socket(fileno=os.dup(self._channel)) as channel, suppress(OSError):
                socket.send_fds(channel, [encode_message({"type": "certificate"})], [fd])

    def close_listeners(self) -> None:
        """Take no new visitors; the worker is told by DRAIN to do the same."""
        self._closing = True
        for fd in self._listeners:
            os.close(fd)
        self._listeners = ()

    def bind(self) -> bool:
        """Have the listeners open; return False, and know the reason, if that fails."""
        if self._listeners or not self._around.addresses:
            return True
        port = self.config.remote_port
        try:
            self._listeners = open_listeners(port, self._around.addresses)
        except PortBusy as busy:
            self.reason = str(busy)
            if busy.in_use:
                self._around.helpers.run(lambda: port_holder(port), self._on_holder)
            else:
                self._report.blocked(self.reason)
            return False
        self._report.bound()
        return True

    def close(self) -> None:
        """Free everything; only when no worker is left."""
        self.close_listeners()
        self._close_channel()
        if self._timer is not None:
            self._timer.cancel()
        self._around.maps.remove(self.counters)
        memory = self.counters.obj
        self.counters.release()
        memory.close()  # type: ignore[attr-defined]
        os.close(self._counters_fd)
        os.close(self._memory_fd)

    def _perform(self, action: Action) -> None:
        if action is Action.SPAWN:
            self._spawn()
        elif action is Action.DRAIN:
            self._say({"type": "drain", "seconds": self._around.drain_seconds})
        elif action is Action.SAY_STOP:
            self._say({"type": "stop"})
        elif self.pid is not None:
            if self.life.state is ProcessState.STARTING and not self._kill_reason:
                self._kill_reason = "was not ready in time"
            self._around.children.kill(self.pid)

    def _arm(self) -> None:
        """Have the loop report TIME_UP when the deadline says so."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.life.deadline is not None:
            self._timer = self._around.loop.call_at(
                self.life.deadline, lambda: self.feed(Input.TIME_UP)
            )

    def _spawn(self) -> None:
        assert self.pid is None, "two workers would read from one socket"
        if not self.bind():
            self.feed(Input.BLOCKED)
            return
        try:
            ours, theirs = _channel_pair()
        except OSError as error:
            self._not_spawned(error)
            return
        fds = WorkerFds(
            listeners=self._listeners,
            channel=theirs,
            counters=self._counters_fd,
            memory=self._memory_fd,
        )
        around = self._around
        try:
            context = around.make_context(self.config, fds)
            pid = fork_worker(context, around.worker_main, around.maps)
        except OSError as error:
            os.close(ours)
            self._not_spawned(error)
            return
        finally:
            os.close(theirs)
        self._adopt(pid, ours)

    def _not_spawned(self, error: OSError) -> None:
        self.reason = f"cannot start a process: {(error.strerror or '?').lower()}"
        self._report.blocked(self.reason)
        self.feed(Input.BLOCKED)

    def _adopt(self, pid: int, channel: int) -> None:
        self.pid = pid
        self.reason = "starting"
        self._channel = channel
        self._kill_reason = ""
        self._started_at = self._around.loop.now
        self._around.loop.register(channel, READ, self._on_channel)
        self._around.children.watch(pid, self._on_exit)

    def _on_holder(self, holder: Any) -> None:  # noqa: ANN401 - an answer from another process
        if self._listeners or self._closing:
            return
        self.reason = f"port {self.config.remote_port} is busy"
        if isinstance(holder, str) and holder:
            self.reason += f": {holder[:200]}"
        self._report.blocked(self.reason)

    def _on_channel(self, _events: int) -> None:
        for _ in range(_PACKETS_PER_TURN):
            if not self._read_packet():
                return

    def _read_packet(self) -> bool:
        """Take one message of the worker; return whether there may be more."""
        if self._channel < 0:
            return False
        try:
            packet = os.read(self._channel, MAX_PACKET_BYTES + 1)
        except BlockingIOError:
            return False
        except OSError:
            packet = b""
        if not packet:
            self._close_channel()
            pid = self.pid
            self._around.loop.call_later(_CHANNEL_END_SECONDS, lambda: self._check_left(pid))
            return False
        try:
            self._take(parse_message(decode_message(packet)))
        except ControlChannelError as error:
            self._kill_reason = f"broke the rules of the control channel: {error}"
            self.feed(Input.REPLACE)
            return False
        return True

    def _check_left(self, pid: int | None) -> None:
        if pid is not None and self.pid == pid:
            self._kill_reason = "closed its control channel and stayed"
            self.feed(Input.REPLACE)

    def _take(self, message: WorkerMessage) -> None:
        match message:
            case Ready():
                self.reason = ""
                self._report.ready(self.pid, self._around.loop.now - self._started_at)
                if self.pid is not None:
                    self.sampler = Sampler(self.pid)
                    self.sampler.look()
                self.feed(Input.READY)
            case Replace():
                pid = self.pid
                self._around.loop.call_later(_REPLACE_SECONDS, lambda: self._replace(pid))
            case LinkChanged():
                self.link_peer = message.peer if message.state != "down" else ""
                self._report.link(message)
            case Resolve():
                pid = self.pid or 0
                self._around.lookups.ask(
                    pid, message.host, message.port, lambda answer: self._tell(pid, answer)
                )

    def _replace(self, pid: int | None) -> None:
        """Replace a worker that was asked to go, unless all are: then it is drained."""
        if pid is not None and self.pid == pid and self.life.state is ProcessState.RUNNING:
            self._kill_reason = REPLACED
            self.feed(Input.REPLACE)

    def _tell(self, pid: int, message: dict[str, Any]) -> None:
        """Answer a worker, unless it has been replaced meanwhile."""
        if pid == self.pid:
            self._say(message)

    def _say(self, message: dict[str, Any]) -> None:
        if self._channel < 0:
            return
        try:
            os.write(self._channel, encode_message(message))
        except OSError as error:
            # Full: it has not read for long, and deadlines deal with that. Gone: so is it.
            logger.bind(tunnel=self.config.remote_port).debug(
                "message to the worker dropped: {}", error.strerror
            )

    def _on_exit(self, status: int) -> None:
        while self._read_packet():
            pass  # what it said before it went
        self._close_channel()
        now = self._around.loop.now
        self.last_exit = describe_exit(status, now - self._started_at, self._kill_reason)
        self.reason = self.last_exit.reason
        self.pid = None
        self.sampler = None
        self._report.exited(self.last_exit, expected=self.life.state is ProcessState.STOPPING)
        self.link_peer = ""
        permanent = self.last_exit.is_permanent
        self.feed(Input.EXIT_PERMANENT if permanent else Input.EXIT)

    def _close_channel(self) -> None:
        if self._channel >= 0:
            self._around.loop.unregister(self._channel)
            os.close(self._channel)
            self._channel = -1


def _channel_pair() -> tuple[int, int]:
    kind = socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    return ours.detach(), theirs.detach()
