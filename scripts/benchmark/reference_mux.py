"""A reference: the least that a tunnel with one link for all visitors must do.

Frames of all visitors of a loop turn go out in one system call, and each stream has a fixed
window. There is nothing else: no resuming, no crash safety, no authentication, no fairness,
no growing windows. How close the product comes to it is what safety costs.

``python -m benchmark.reference_mux server LINK_HOST:PORT PUBLIC_HOST:PORT``
``python -m benchmark.reference_mux client LINK_HOST:PORT TARGET_HOST:PORT``
"""

from __future__ import annotations

import gc
import selectors
import socket
import struct
import sys
from collections import deque
from contextlib import suppress

from benchmark.reference_relay import address

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE

HEADER = struct.Struct("!BxxxII")
"""Type, stream, and the bytes that follow (DATA) or that were delivered (CREDIT)."""
OPEN, DATA, FIN, CREDIT = range(4)

WINDOW_BYTES = 1 << 20
CHUNK_BYTES = 256 * 1024
LINK_BUFFER_BYTES = 1 << 20
MAX_PIECES = 512
"""Pieces in one sendmsg; the kernel takes 1024."""


class Stream:
    """One visitor."""

    def __init__(self, number: int, sock: socket.socket) -> None:
        self.number = number
        self.sock = sock
        self.events = 0
        self.credit = WINDOW_BYTES
        self.delivered = 0
        """Since the last CREDIT."""
        self.waiting: deque[memoryview] = deque()
        self.is_read = False
        """We have sent FIN."""
        self.is_finished = False
        """The peer has sent FIN."""


class Mux:
    """One end of a link; a server has a listener, a client a target."""

    def __init__(
        self,
        link: socket.socket,
        listener: socket.socket | None,
        target: tuple[str, int],
    ) -> None:
        self.link = link
        self.listener = listener
        self.target = target
        self.selector = selectors.DefaultSelector()
        self.streams: dict[int, Stream] = {}
        self.opened = 0
        self.out: list[bytes | memoryview] = []
        self.link_events = READ
        self.buffer = memoryview(bytearray(LINK_BUFFER_BYTES))
        self.filled = 0
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link.setblocking(False)
        self.selector.register(link, READ, self)
        if listener is not None:
            listener.setblocking(False)
            self.selector.register(listener, READ, None)

    def run(self) -> None:
        """Until the link ends."""
        while True:
            for key, events in self.selector.select():
                if type(key.data) is Stream:
                    self.on_stream(key.data, events)
                elif key.data is None:
                    self.on_visitors()
                else:
                    if events & WRITE:
                        self.flush()
                    if events & READ and not self.on_link():
                        return
            if self.out and self.link_events == READ:
                self.flush()

    # Visitors and targets.

    def on_visitors(self) -> None:
        """Take visitors."""
        assert self.listener is not None
        with suppress(BlockingIOError):
            while True:
                sock, _address = self.listener.accept()
                self.opened += 1
                self.adopt(self.opened, sock)
                self.out.append(HEADER.pack(OPEN, self.opened, 0))

    def adopt(self, number: int, sock: socket.socket) -> None:
        """Begin a stream."""
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream = self.streams[number] = Stream(number, sock)
        self.watch(stream)

    def watch(self, stream: Stream) -> None:
        """Wait for just what can be dealt with now."""
        wanted = READ if stream.credit > 0 and not stream.is_read else 0
        if stream.waiting:
            wanted |= WRITE
        if wanted == stream.events:
            return
        if not stream.events:
            self.selector.register(stream.sock, wanted, stream)
        elif wanted:
            self.selector.modify(stream.sock, wanted, stream)
        else:
            self.selector.unregister(stream.sock)
        stream.events = wanted

    def on_stream(self, stream: Stream, events: int) -> None:
        """A visitor or target is ready."""
        if events & WRITE:
            self.write_waiting(stream)
        if events & READ and not stream.is_read:
            try:
                data = stream.sock.recv(min(CHUNK_BYTES, stream.credit))
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if data:
                stream.credit -= len(data)
                self.out += (HEADER.pack(DATA, stream.number, len(data)), data)
            else:
                stream.is_read = True
                self.out.append(HEADER.pack(FIN, stream.number, 0))
        self.settle(stream)

    def write_waiting(self, stream: Stream) -> None:
        """Write what had to wait."""
        while stream.waiting:
            piece = stream.waiting[0]
            sent = self.send(stream, piece)
            if sent < len(piece):
                stream.waiting[0] = piece[sent:]
                return
            stream.waiting.popleft()

    def send(self, stream: Stream, data: memoryview) -> int:
        """Bytes taken; a stream that failed takes all, to nowhere."""
        try:
            sent = stream.sock.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            sent = len(data)
        stream.delivered += sent
        if stream.delivered >= WINDOW_BYTES // 4:
            self.out.append(HEADER.pack(CREDIT, stream.number, stream.delivered))
            stream.delivered = 0
        return sent

    def settle(self, stream: Stream) -> None:
        """Finish and close what is over; watch the rest."""
        if stream.is_finished and not stream.waiting:
            if stream.is_read:
                if stream.events:
                    self.selector.unregister(stream.sock)
                stream.sock.close()
                del self.streams[stream.number]
                return
            with suppress(OSError):
                stream.sock.shutdown(socket.SHUT_WR)
        self.watch(stream)

    # The link.

    def flush(self) -> None:
        """Write frames to the link, as far as it takes them."""
        out = self.out
        while out:
            try:
                sent = self.link.sendmsg(out[:MAX_PIECES])
            except BlockingIOError:
                break
            done = 0
            for piece in out:
                if sent < len(piece):
                    break
                sent -= len(piece)
                done += 1
            del out[:done]
            if sent:
                out[0] = memoryview(out[0])[sent:]
        wanted = READ | WRITE if out else READ
        if wanted != self.link_events:
            self.selector.modify(self.link, wanted, self)
            self.link_events = wanted

    def on_link(self) -> bool:
        """Take what came; False at the end of the link."""
        try:
            size = self.link.recv_into(self.buffer[self.filled :])
        except BlockingIOError:
            return True
        end, at = self.filled + size, 0
        while end - at >= HEADER.size:
            kind, number, length = HEADER.unpack_from(self.buffer, at)
            body = at + HEADER.size
            if kind == DATA:
                if end - body < length:
                    break
                at = body + length
                self.on_data(number, self.buffer[body:at])
            else:
                at = body
                self.on_control(kind, number, length)
        if at < end and at:
            self.buffer[: end - at] = bytes(self.buffer[at:end])
        self.filled = end - at
        return bool(size)

    def on_data(self, number: int, data: memoryview) -> None:
        """Bytes for a stream."""
        stream = self.streams.get(number)
        if stream is None:
            return
        sent = 0 if stream.waiting else self.send(stream, data)
        if sent < len(data):
            stream.waiting.append(memoryview(bytes(data[sent:])))
            self.watch(stream)

    def on_control(self, kind: int, number: int, value: int) -> None:
        """Any other frame."""
        if kind == OPEN:
            try:
                self.adopt(number, socket.create_connection(self.target))
            except OSError:
                self.out.append(HEADER.pack(FIN, number, 0))
            return
        stream = self.streams.get(number)
        if stream is None:
            return
        if kind == CREDIT:
            stream.credit += value
        else:
            stream.is_finished = True
        self.settle(stream)


def main() -> None:
    """Run one end."""
    role, link, other = sys.argv[1], address(sys.argv[2]), address(sys.argv[3])
    if role == "server":
        sock, _address = socket.create_server(link).accept()
        mux = Mux(sock, socket.create_server(other, backlog=4096), other)
    else:
        mux = Mux(socket.create_connection(link), None, other)
    gc.freeze()
    mux.run()


if __name__ == "__main__":
    main()
