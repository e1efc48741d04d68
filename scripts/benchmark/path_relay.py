"""A path with a delay and a rate, as a relay of TCP connections that needs no root.

Each direction is *one* queue for all connections, as a line is: bytes leave it at the rate
of the path, and arrive a fixed time later. When the queue is full nothing more is read from
anybody, so a full queue shows as a sender that waits (a relay can lose nothing); kernel
buffers are kept small, or they would be a second queue for each connection.

``python -m benchmark.path_relay --delay-ms 10 --mbit 100 --queue 250000 LISTEN:TARGET``

A line ``cut`` on standard input resets all connections; its end ends the relay.
"""

from __future__ import annotations

import argparse
import os
import select
import socket
import struct
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field

__all__ = ["Line"]

READ, WRITE = select.EPOLLIN, select.EPOLLOUT
ENDS = select.EPOLLHUP | select.EPOLLERR
CHUNK_BYTES = 64 * 1024
"""Read at once from one connection: half a millisecond of 1 Gbit/s, so that the
connections share the line fairly."""

BUFFER_BYTES = 256 * 1024
"""Kernel buffers of each connection, in each direction."""

LATE_BYTES = 256 * 1024
"""What has arrived for a connection whose end does not read, before no more is read for it."""

RESET_AT_CLOSE = struct.pack("ii", 1, 0)


@dataclass
class Line:
    """One direction of the path; time is an argument."""

    bytes_per_second: float
    """0: no limit."""
    delay_seconds: float
    queue_bytes: int
    free_at: float = 0.0
    """When the last byte in the queue will have left it."""
    flying: deque[tuple[float, Flow, bytes]] = field(default_factory=deque)
    """What is on its way, with the time of its arrival."""

    def put(self, flow: Flow, data: bytes, now: float) -> None:
        """Queue bytes; none mean the end."""
        start = max(now, self.free_at)
        if self.bytes_per_second:
            start += len(data) / self.bytes_per_second
            self.free_at = start
        self.flying.append((start + self.delay_seconds, flow, data))

    def backlog(self, now: float) -> float:
        """Bytes in the queue."""
        return max(0.0, self.free_at - now) * self.bytes_per_second

    def room_at(self, now: float) -> float:
        """When the queue is no longer full."""
        if self.backlog(now) < self.queue_bytes:
            return now
        return self.free_at - self.queue_bytes / self.bytes_per_second


class Flow:
    """One direction of one connection."""

    def __init__(self, line: Line, source: End, sink: End) -> None:
        self.line = line
        self.source = source
        self.sink = sink
        self.late: deque[bytes | memoryview] = deque()
        """Arrived, not yet taken by the sink."""
        self.late_bytes = 0
        self.is_ended = False
        """The source's end was read."""


class End:
    """One socket of a connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.inbound: Flow
        """What is read here."""
        self.outbound: Flow
        """What is written here."""
        self.events = -1
        self.is_closed = False
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class PathRelay:
    """One loop."""

    def __init__(self, settings: argparse.Namespace) -> None:
        rate = settings.mbit * 1e6 / 8
        self.lines = [
            Line(rate, settings.delay_ms / 1000, settings.queue) for _direction in range(2)
        ]
        self.poller = select.epoll()
        self.ends: dict[int, End] = {}
        self.listeners: dict[int, tuple[socket.socket, int]] = {}
        for pair in settings.pairs:
            listen, target = map(int, pair.split(":"))
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES // 2)
            sock.bind(("127.0.0.1", listen))
            sock.listen(1024)
            sock.setblocking(False)
            self.listeners[sock.fileno()] = (sock, target)
            self.poller.register(sock, READ)
        self.poller.register(sys.stdin.fileno(), READ)

    def run(self) -> None:
        """Until the standard input ends."""
        while True:
            ready = self.poller.poll(self.wait_seconds())
            for fd, events in ready:
                if fd == sys.stdin.fileno():
                    if not os.read(fd, 100):
                        return
                    self.cut()
                elif fd in self.listeners:
                    self.accept(*self.listeners[fd])
                elif (end := self.ends.get(fd)) is not None:
                    self.on_end(end, events)
            self.deliver()
            for end in list(self.ends.values()):
                self.watch(end)

    def wait_seconds(self) -> float:
        now = time.monotonic()
        due = [line.flying[0][0] for line in self.lines if line.flying]
        due += [line.room_at(now) for line in self.lines if line.room_at(now) > now]
        return max(0.0, min(due) - now) if due else 1.0

    def accept(self, listener: socket.socket, target: int) -> None:
        with suppress(BlockingIOError):
            while True:
                near, _address = listener.accept()
                far = socket.socket()
                far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES // 2)
                try:
                    far.connect(("127.0.0.1", target))
                except OSError:
                    near.close()
                    far.close()
                    continue
                one, other = End(near), End(far)
                one.inbound = other.outbound = Flow(self.lines[0], one, other)
                other.inbound = one.outbound = Flow(self.lines[1], other, one)
                for end in (one, other):
                    self.ends[end.fd] = end
                    self.watch(end)

    def watch(self, end: End) -> None:
        """Read while the queue and the other end have room; wait for space when late."""
        if end.is_closed:
            return
        flow, events = end.inbound, 0
        has_room = flow.line.backlog(time.monotonic()) < flow.line.queue_bytes
        if not flow.is_ended and flow.late_bytes < LATE_BYTES and has_room:
            events |= READ
        if end.outbound.late:
            events |= WRITE
        if events == end.events:
            return
        if end.events == -1:
            self.poller.register(end.fd, events)
        else:
            self.poller.modify(end.fd, events)
        end.events = events

    def on_end(self, end: End, events: int) -> None:
        if events & ENDS:
            self.close(end, reset=bool(events & select.EPOLLERR))
            return
        if events & WRITE:
            self.write(end.outbound)
        now = time.monotonic()
        flow = end.inbound
        if events & READ and flow.line.backlog(now) < flow.line.queue_bytes:
            try:
                data = end.sock.recv(CHUNK_BYTES)
            except BlockingIOError:
                return
            except OSError:
                self.close(end, reset=True)
                return
            flow.is_ended = not data
            flow.line.put(flow, data, now)

    def deliver(self) -> None:
        """Hand over what has arrived."""
        now = time.monotonic()
        for line in self.lines:
            while line.flying and line.flying[0][0] <= now:
                _due, flow, data = line.flying.popleft()
                flow.late.append(data)
                flow.late_bytes += len(data)
                self.write(flow)

    def write(self, flow: Flow) -> None:
        sink = flow.sink
        try:
            while flow.late and not sink.is_closed:
                data = flow.late[0]
                if not data:
                    sink.sock.shutdown(socket.SHUT_WR)
                    sent = 0
                else:
                    sent = sink.sock.send(data)
                flow.late_bytes -= sent
                if sent < len(data):
                    flow.late[0] = memoryview(data)[sent:]
                else:
                    flow.late.popleft()
        except BlockingIOError:
            pass
        except OSError:
            self.close(sink, reset=True)

    def close(self, end: End, *, reset: bool) -> None:
        """Close both ends."""
        for one in (end, end.inbound.sink):
            if one.is_closed:
                continue
            one.is_closed = True
            self.ends.pop(one.fd, None)
            if one.events != -1:
                self.poller.unregister(one.fd)
            if reset:
                one.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
            one.sock.close()

    def cut(self) -> None:
        for end in list(self.ends.values()):
            self.close(end, reset=True)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--delay-ms", type=float, default=0, help="one way")
    parser.add_argument("--mbit", type=float, default=0, help="Mbit/s, each way; 0: no limit")
    parser.add_argument("--queue", type=int, default=1 << 30, help="bytes, each way")
    parser.add_argument("pairs", nargs="+", metavar="LISTEN:TARGET")
    PathRelay(parser.parse_args()).run()


if __name__ == "__main__":
    main()
