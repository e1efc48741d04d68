"""A reference: a plain copying relay.

Two in a row are the least work that a tunnel with a connection for each visitor must do.

``python -m benchmark.reference_relay LISTEN_HOST:PORT TARGET_HOST:PORT``
"""

from __future__ import annotations

import selectors
import socket
import sys
from contextlib import suppress

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
BUFFER_BYTES = 256 * 1024
"""What one call moves at most."""


class Half:
    """One socket of a pair; it reads for the other."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.other: Half
        self.waiting = memoryview(b"")
        """Read from the other socket, not yet taken by this one."""
        self.is_read = False
        """Its end has been read."""
        self.events = 0


class Relay:
    """One loop for all connections."""

    def __init__(self, listen: tuple[str, int], target: tuple[str, int]) -> None:
        self.target = target
        self.selector = selectors.DefaultSelector()
        self.buffer = memoryview(bytearray(BUFFER_BYTES))
        self.listener = socket.create_server(listen, backlog=4096)
        self.listener.setblocking(False)
        self.selector.register(self.listener, READ)

    def run(self) -> None:
        """For ever."""
        while True:
            for key, events in self.selector.select():
                if key.data is None:
                    self.accept()
                else:
                    self.move(key.data, events)

    def accept(self) -> None:
        """Take visitors; each gets a connection to the target."""
        with suppress(BlockingIOError):
            while True:
                visitor, _address = self.listener.accept()
                try:
                    target = socket.create_connection(self.target)
                except OSError:
                    visitor.close()
                    continue
                near, far = Half(visitor), Half(target)
                near.other, far.other = far, near
                for half in (near, far):
                    half.sock.setblocking(False)
                    half.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    self.watch(half)

    def watch(self, half: Half) -> None:
        """Read while the other side takes it; wait for space while something waits."""
        wanted = 0 if half.is_read or half.other.waiting else READ
        wanted |= WRITE if half.waiting else 0
        if wanted == half.events:
            return
        if not half.events:
            self.selector.register(half.sock, wanted, half)
        elif wanted:
            self.selector.modify(half.sock, wanted, half)
        else:
            self.selector.unregister(half.sock)
        half.events = wanted

    def move(self, half: Half, events: int) -> None:
        """One socket is ready."""
        other = half.other
        try:
            if events & WRITE:
                half.waiting = half.waiting[half.sock.send(half.waiting) :]
                if other.is_read and not half.waiting:
                    half.sock.shutdown(socket.SHUT_WR)
            if events & READ:
                self.read(half)
        except BlockingIOError:
            pass
        except OSError:
            self.close(half)
            return
        if half.is_read and other.is_read and not half.waiting and not other.waiting:
            self.close(half)
            return
        self.watch(half)
        self.watch(other)

    def read(self, half: Half) -> None:
        """Read once, and hand it on."""
        size = half.sock.recv_into(self.buffer)
        if not size:
            half.is_read = True
            if not half.other.waiting:
                half.other.sock.shutdown(socket.SHUT_WR)
            return
        try:
            sent = half.other.sock.send(self.buffer[:size])
        except BlockingIOError:
            sent = 0
        if sent < size:
            half.other.waiting = memoryview(bytes(self.buffer[sent:size]))

    def close(self, half: Half) -> None:
        """Close both sockets of a pair."""
        for one in (half, half.other):
            if one.events:
                self.selector.unregister(one.sock)
                one.events = 0
            one.sock.close()


def address(text: str) -> tuple[str, int]:
    """``HOST:PORT``."""
    host, _, port = text.rpartition(":")
    return host, int(port)


if __name__ == "__main__":
    Relay(address(sys.argv[1]), address(sys.argv[2])).run()
