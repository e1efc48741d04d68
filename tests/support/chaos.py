"""A relay between the two ends of a link that delays, cuts, stalls and resets on command.

Theory of operation
-------------------
One loop in a process of its own. Each connection is two :class:`_Flow` s: what is read
at one end waits in a queue (empty while no fault is active: then it is sent straight
from the receive buffer) until it is due, and is written to the other end. A fault is a
:class:`_Faults` value per direction; each connection has its own copy, made when it was
accepted, so a command can mean the connections that are, those that will come, or both.

A relay cannot lose bytes that it has acknowledged, so a silent cut means here: nothing
is read any more, from either end, and nothing is closed. What lies in the kernel's
buffers then goes on when the relay is healed, as with TCP over a path that was down.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

from tests.support.service import (
    READ,
    WRITE,
    Service,
    ServiceProcess,
    run_service,
    unacknowledged,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = ["Chaos", "ChaosCounters", "Direction", "How", "Scope"]

Direction: TypeAlias = Literal["up", "down", "both"]
"""``up``: from who dialled the relay towards the target; ``down``: back."""

Scope: TypeAlias = Literal["all", "existing", "new"]
"""Which connections a command is for."""

How: TypeAlias = Literal["reset", "close", "silent"]
"""What happens at a cut."""

_CHUNK = 1 << 20
_QUEUE_BYTES = 64 << 20
_RATE_TICK_SECONDS = 0.005
_OUTQ_POLL_SECONDS = 0.001
_LINGER_RST = struct.pack("ii", 1, 0)
_AGAIN = (BlockingIOError, InterruptedError)


@dataclass(kw_only=True)
class _Faults:
    """What is wrong in one direction of one connection."""

    delay: float = 0.0
    rate: int = 0
    """Bytes per second; 0 means unlimited."""
    slice: int = 0
    """Bytes per write, one write per turn; 0 means as they come."""
    stall: bool = False
    left: int | None = None
    """Bytes until the cut."""
    how: str = "reset"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChaosCounters:
    """What a relay has seen."""

    accepted: int
    """Connections ever."""
    open: int
    """Connections now."""
    failed: int
    """Connections for which the target could not be reached."""
    cut: int
    """Connections that reached their ``cut_after``."""
    up: int
    """Bytes."""
    down: int
    """Bytes."""


class _Flow:
    """One direction of one connection."""

    __slots__ = (
        "allowance",
        "allowance_at",
        "blocked",
        "cut_started",
        "direction",
        "eof",
        "faults",
        "fin_sent",
        "queue",
        "queued",
        "sink",
        "source",
        "timer_due",
    )

    def __init__(
        self, direction: str, source: socket.socket, sink: socket.socket, faults: _Faults
    ) -> None:
        self.direction = direction
        self.source = source
        self.sink = sink
        self.faults = faults
        self.queue: deque[tuple[float, memoryview]] = deque()
        self.queued = 0
        self.eof = False
        self.fin_sent = False
        self.blocked = False
        self.allowance = 0.0
        self.allowance_at = 0.0
        self.timer_due: float | None = None
        self.cut_started = False


class _Connection:
    """Two sockets and what flows between them."""

    def __init__(
        self, relay: _Relay, near: socket.socket, far: socket.socket, faults: dict[str, _Faults]
    ) -> None:
        self.relay = relay
        self.near = near
        self.far = far
        self.connected = False
        self.silent = False
        self.over = False
        self.closing = False
        self.up = _Flow("up", near, far, faults["up"])
        self.down = _Flow("down", far, near, faults["down"])
        for sock in (near, far):
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @property
    def flows(self) -> tuple[_Flow, _Flow]:
        return self.up, self.down

    def watch(self) -> None:
        """Wait for just what can be dealt with now."""
        if self.over:
            return
        for sock, reader, writer in (
            (self.near, self.up, self.down),
            (self.far, self.down, self.up),
        ):
            events = 0
            if not self.silent:
                if self._wants_read(reader):
                    events |= READ
                if writer.blocked or (sock is self.far and not self.connected):
                    events |= WRITE
            self.relay.watch(sock, events, self._ready(sock))

    def _ready(self, sock: socket.socket) -> Callable[[int], None]:
        return lambda events: self._on_ready(sock, events)

    def _wants_read(self, flow: _Flow) -> bool:
        if self.closing:
            return not flow.eof
        faults = flow.faults
        return (
            self.connected
            and not flow.eof
            and not faults.stall
            and faults.left != 0
            and not flow.blocked
            and flow.queued < (_QUEUE_BYTES if faults.delay else _CHUNK)
            and (not faults.rate or self._allowance(flow) >= 1)
        )

    def _on_ready(self, sock: socket.socket, events: int) -> None:
        reader, writer = (self.up, self.down) if sock is self.near else (self.down, self.up)
        try:
            if sock is self.far and not self.connected:
                self._finish_connect()
            else:
                if events & WRITE:
                    writer.blocked = False
                    self.flush(writer)
                if events & READ and not self.over:
                    self._read(reader)
        except OSError as error:
            if error.errno not in {errno.ECONNRESET, errno.EPIPE, errno.ETIMEDOUT}:
                self.relay.failed += 1
            self.reset()
        self.watch()

    def _finish_connect(self) -> None:
        code = self.far.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, "connect")
        self.connected = True
        for flow in self.flows:
            if not self.over:
                self.flush(flow)  # a cut after 0 bytes may be due

    def _allowance(self, flow: _Flow) -> float:
        rate, now = flow.faults.rate, self.relay.now
        earned = (now - flow.allowance_at) * rate
        flow.allowance = min(flow.allowance + earned, max(1.0, rate * 2 * _RATE_TICK_SECONDS))
        flow.allowance_at = now
        if flow.allowance < 1:
            self._wake(flow, max(_RATE_TICK_SECONDS, 1 / rate))
        return flow.allowance

    def _wake(self, flow: _Flow, seconds: float) -> None:
        """Look at a flow again after a while; at most one timer each."""
        due = self.relay.now + seconds
        if flow.timer_due is not None and flow.timer_due <= due:
            return
        flow.timer_due = due

        def wake() -> None:
            flow.timer_due = None
            if self.over:
                return
            try:
                self.flush(flow)
            except OSError:
                self.reset()
            self.watch()

        self.relay.call_later(seconds, wake)

    def _read(self, flow: _Flow) -> None:
        if self.closing:
            if not flow.source.recv(_CHUNK):
                flow.eof = True
                self._maybe_over()
            return
        faults = flow.faults
        size = _CHUNK
        if faults.rate:
            size = min(size, int(self._allowance(flow)))
        if faults.left is not None:
            size = min(size, faults.left)
        if size == 0 or flow.eof:
            return
        view = self.relay.buffer[:size]
        try:
            size = flow.source.recv_into(view)
        except _AGAIN:
            return
        if size == 0:
            flow.eof = True
        else:
            flow.allowance -= size
            if faults.left is not None:
                faults.left -= size
            sent = 0
            if not flow.queue and not faults.delay and not faults.slice:
                sent = self._send(flow, view[:size])
            if sent < size:
                self._queue(flow, view[sent:size])
        self.flush(flow)

    def _queue(self, flow: _Flow, view: memoryview) -> None:
        flow.queue.append((self.relay.now + flow.faults.delay, memoryview(bytes(view))))
        flow.queued += len(view)

    def _send(self, flow: _Flow, view: memoryview) -> int:
        try:
            sent = flow.sink.send(view)
        except _AGAIN:
            sent = 0
        flow.blocked = sent < len(view)
        self.relay.count(flow.direction, sent)
        return sent

    def flush(self, flow: _Flow) -> None:
        """Write what is due; then the end, if it was read; then the cut, if it is due."""
        if self.silent or not self.connected:
            return
        while flow.queue and not flow.blocked:
            due, view = flow.queue[0]
            if due > self.relay.now:
                self._wake(flow, due - self.relay.now)
                return
            piece = view[: flow.faults.slice] if flow.faults.slice else view
            sent = self._send(flow, piece)
            flow.queued -= sent
            if sent == len(view):
                flow.queue.popleft()
            else:
                flow.queue[0] = (due, view[sent:])
            if flow.faults.slice and flow.queue:
                self._wake(flow, 0.0)
                return
        if flow.queue:
            return
        if flow.faults.left == 0:
            self._cut(flow)
        elif flow.eof and not flow.fin_sent:
            flow.fin_sent = True
            flow.sink.shutdown(socket.SHUT_WR)
            self._maybe_over()

    def _cut(self, flow: _Flow) -> None:
        """Cut, once the other end has acknowledged every byte before it."""
        if unacknowledged(flow.sink):
            self._wake(flow, _OUTQ_POLL_SECONDS)
            return
        if flow.cut_started:
            return
        flow.cut_started = True
        self.relay.cut += 1
        if flow.faults.how == "reset":
            self.reset()
        elif flow.faults.how == "close":
            self.close()
        else:
            self.silent = True
            self.watch()

    def _maybe_over(self) -> None:
        done = all(flow.eof if self.closing else flow.fin_sent for flow in self.flows)
        if done:
            self.drop()

    def close(self) -> None:
        """End both sides with FIN; go on reading, so that no RST follows."""
        if self.over:
            return
        self.closing = True
        self.silent = False
        for flow in self.flows:
            flow.queue.clear()
            flow.queued = 0
            flow.blocked = False
            if not flow.fin_sent:
                flow.fin_sent = True
                try:
                    flow.sink.shutdown(socket.SHUT_WR)
                except OSError:
                    self.drop()
                    return
        self._maybe_over()
        self.watch()

    def reset(self) -> None:
        """End both sides with RST."""
        for sock in (self.near, self.far):
            if sock.fileno() >= 0:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RST)
        self.drop()

    def drop(self) -> None:
        """Close both sockets."""
        if self.over:
            return
        self.over = True
        for sock in (self.near, self.far):
            self.relay.forget(sock)
            sock.close()
        self.relay.connections.discard(self)


class _Relay(Service):
    """The loop: listener, connections, commands."""

    def __init__(self) -> None:
        super().__init__()
        self.buffer = memoryview(bytearray(_CHUNK))
        self.connections: set[_Connection] = set()
        self.failed = self.cut = 0
        self._accepted = 0
        self._bytes = {"up": 0, "down": 0}
        self._listen_at = self._target = ("", 0)
        self._listener: socket.socket | None = None
        self._mode = "pass"
        self._new = {"up": _Faults(), "down": _Faults()}

    def count(self, direction: str, size: int) -> None:
        self._bytes[direction] += size

    def do_start(self, listen: Sequence[object], target: Sequence[object]) -> list[object]:
        self._listen_at = (str(listen[0]), int(str(listen[1])))
        self._target = (str(target[0]), int(str(target[1])))
        self._open_listener()
        assert self._listener is not None
        self._listen_at = self._listener.getsockname()[:2]
        return list(self._listen_at)

    def do_retarget(self, target: Sequence[object]) -> None:
        self._target = (str(target[0]), int(str(target[1])))

    def _open_listener(self) -> None:
        if self._listener is None:
            family = socket.AF_INET6 if ":" in self._listen_at[0] else socket.AF_INET
            self._listener = socket.socket(family, socket.SOCK_STREAM)
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listener.bind(self._listen_at)
            self._listener.listen(1024)
            self._listener.setblocking(False)
        self.watch(self._listener, 0 if self._mode == "backlog" else READ, self._accept)

    def _close_listener(self) -> None:
        if self._listener is not None:
            self.forget(self._listener)
            self._listener.close()
            self._listener = None

    def _accept(self, _events: int) -> None:
        assert self._listener is not None
        for _ in range(64):
            try:
                near, _peer = self._listener.accept()
            except OSError:
                return
            self._accepted += 1
            family = socket.AF_INET6 if ":" in self._target[0] else socket.AF_INET
            far = socket.socket(family, socket.SOCK_STREAM)
            faults = {name: replace(value) for name, value in self._new.items()}
            connection = _Connection(self, near, far, faults)
            self.connections.add(connection)
            connection.silent = self._mode == "silent"
            if connection.silent:
                continue  # the target is dialled when it is healed
            self._dial(connection)

    def _dial(self, connection: _Connection) -> None:
        code = connection.far.connect_ex(self._target)
        if code not in {0, errno.EINPROGRESS}:
            self.failed += 1
            connection.reset()
            return
        connection.watch()

    def do_mode(self, mode: str) -> None:
        self._mode = mode
        if mode == "refuse":
            self._close_listener()
        else:
            self._open_listener()

    def do_faults(self, direction: str, scope: str, change: dict[str, object]) -> None:
        names = ("up", "down") if direction == "both" else (direction,)
        if scope != "existing":
            for name in names:
                self._new[name] = replace(self._new[name], **change)  # type: ignore[arg-type]
        if scope != "new":
            for connection in tuple(self.connections):
                for flow in connection.flows:
                    if flow.direction in names:
                        flow.faults = replace(flow.faults, **change)  # type: ignore[arg-type]
                self._look_again((connection,))

    def _look_again(self, connections: Iterable[_Connection]) -> None:
        for connection in connections:
            try:
                for flow in connection.flows:
                    if not connection.over:
                        connection.flush(flow)
            except OSError:
                connection.reset()
            connection.watch()

    def do_silence(self, scope: str) -> None:
        if scope != "new":
            for connection in self.connections:
                connection.silent = True
                connection.watch()
        if scope != "existing":
            self.do_mode("silent")

    def do_heal(self) -> None:
        self._new = {"up": _Faults(), "down": _Faults()}
        self.do_mode("pass")
        for connection in tuple(self.connections):
            connection.silent = False
            for flow in connection.flows:
                flow.faults = _Faults()
                flow.queue = deque((0.0, view) for _due, view in flow.queue)
            if not connection.connected:
                self._dial(connection)
        self._look_again(tuple(self.connections))

    def do_end(self, how: str) -> int:
        ended = tuple(self.connections)
        for connection in ended:
            if how == "reset":
                connection.reset()
            else:
                connection.close()
        return len(ended)

    def do_counters(self) -> dict[str, int]:
        return {
            "accepted": self._accepted,
            "open": len(self.connections),
            "failed": self.failed,
            "cut": self.cut,
            **self._bytes,
        }


class Chaos(ServiceProcess):
    """A relay, seen from the test. Faults last until :meth:`heal`."""

    def __init__(
        self,
        listen: tuple[str, int],
        target: tuple[str, int],
        *,
        prefix: Sequence[str] = (),
    ) -> None:
        """Listen at one address and forward to another; port 0 means any free one."""
        super().__init__("tests.support.chaos", prefix=prefix)
        try:
            host, port = self.call("start", listen=listen, target=target)
        except BaseException:
            self.stop()
            raise
        self.address: tuple[str, int] = (host, port)

    def retarget(self, target: tuple[str, int]) -> None:
        """Lead connections that will come to another address."""
        self.call("retarget", target=target)

    def delay(
        self, seconds: float, direction: Direction = "both", scope: Scope = "all"
    ) -> None:
        """Hold every byte for a while."""
        self.call("faults", direction=direction, scope=scope, change={"delay": seconds})

    def rate(self, bytes_per_second: int, direction: Direction, scope: Scope = "all") -> None:
        """Let through no more than so much; 0 lifts it."""
        change = {"rate": bytes_per_second}
        self.call("faults", direction=direction, scope=scope, change=change)

    def slice(self, size: int = 1, direction: Direction = "both", scope: Scope = "all") -> None:
        """Write in pieces of ``size`` bytes; 0 lifts it."""
        self.call("faults", direction=direction, scope=scope, change={"slice": size})

    def stall(
        self, direction: Direction, scope: Scope = "all", *, stalled: bool = True
    ) -> None:
        """Stop reading (or go on): the sender feels back-pressure."""
        self.call("faults", direction=direction, scope=scope, change={"stall": stalled})

    def cut_after(
        self, size: int, direction: Direction, how: How = "reset", scope: Scope = "all"
    ) -> None:
        """Cut a connection when exactly ``size`` more bytes of a direction have passed.

        Each connection counts for itself; with ``new`` in the scope each one that comes
        is cut too, until :meth:`heal`.
        """
        change = {"left": size, "how": how}
        self.call("faults", direction=direction, scope=scope, change=change)

    def silence(self, scope: Scope = "all") -> None:
        """Say nothing more in either direction, and close nothing.

        With ``existing`` connections that come later pass: the old one is half-open.
        With ``new`` those that come are accepted and never answered.
        """
        self.call("silence", scope=scope)

    def refuse(self) -> None:
        """Refuse connections that come; those that are go on."""
        self.call("mode", mode="refuse")

    def backlog(self) -> None:
        """Accept none: they wait, connected by the kernel, for :meth:`heal`."""
        self.call("mode", mode="backlog")

    def heal(self) -> None:
        """End every fault, for all connections; what was held back goes on at once."""
        self.call("heal")

    def reset(self) -> int:
        """RST to both ends of every connection; say how many there were."""
        return int(self.call("end", how="reset"))

    def close(self) -> int:
        """FIN to both ends of every connection; say how many there were."""
        return int(self.call("end", how="close"))

    def counters(self) -> ChaosCounters:
        """Return what it has seen until now."""
        return ChaosCounters(**self.call("counters"))


if __name__ == "__main__":
    run_service(_Relay)
