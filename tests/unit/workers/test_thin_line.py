"""Ten minutes over a line that carries 100 kB a second, in a few seconds by the fake clock."""

from __future__ import annotations

import socket
from contextlib import suppress

import pytest

from tests.support.pattern import PatternChecker, pattern
from tunneltcp.control.counters import Counter, LinkState

RATE = 100_000
"""Bytes a second, each way."""
MINUTES = 10
QUEUE_BYTES = 64 * 1024
"""What the line itself holds, as a modem does."""
MORE_BYTES = 2_000_000
"""Written at once by each end whenever less than that is left to send."""


class ThinLine:
    """A relay in the test's thread that passes so many bytes for each second of the clock."""

    def __init__(self, clock, server_port: int) -> None:
        self.clock = clock
        self.server_port = server_port
        self.listener = socket.socket()
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, QUEUE_BYTES)
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen(4)
        self.listener.setblocking(False)
        self.port: int = self.listener.getsockname()[1]
        self.ways: list[tuple[int, socket.socket, socket.socket, bytearray]] = []
        """Of all that were accepted: direction, from, to, what is on its way."""
        self.passed = [0, 0]
        self.earned = clock()

    def pump(self) -> None:
        with suppress(BlockingIOError):
            self._accept(self.listener.accept()[0])
        now = self.clock()
        if now - self.earned < 0.01:
            return
        size = int((now - self.earned) * RATE)
        self.earned = now
        left = [size, size]
        for number, source, sink, held in self.ways:
            # One that ended passes nothing more; that the other end does not hear of it is
            # what its deadline is for.
            with suppress(BlockingIOError, ConnectionError):
                if len(held) < QUEUE_BYTES:
                    held += source.recv(min(left[number], QUEUE_BYTES))
            with suppress(BlockingIOError, ConnectionError):
                sent = sink.send(held[: left[number]])
                left[number] -= sent
                self.passed[number] += sent
                del held[:sent]

    def _accept(self, near: socket.socket) -> None:
        far = socket.socket()
        far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, QUEUE_BYTES)
        far.connect(("127.0.0.1", self.server_port))
        for sock in (near, far):
            sock.setblocking(False)
        self.ways += [(0, near, far, bytearray()), (1, far, near, bytearray())]

    def close(self) -> None:
        self.listener.close()
        for _, source, _, _ in self.ways:
            source.close()


class Talker:
    """Writes one end's pattern without a pause, and checks what came from the other end."""

    def __init__(self, peer, seed: int, other_seed: int) -> None:
        self.peer, self.seed = peer, seed
        self.written = 0
        self.checker = PatternChecker(other_seed)

    def pump(self) -> None:
        if self.peer.unsent < MORE_BYTES:
            self.peer.send(pattern(self.seed, self.written, MORE_BYTES))
            self.written += MORE_BYTES
        self.checker.feed(self.peer.received)
        self.peer.received.clear()


@pytest.mark.slow
def test_a_thin_line_under_load_is_never_taken_for_dead(world):
    app = world.app()
    server = world.server()
    line = ThinLine(world.clock, server.port)
    world._play(line)
    client = world.client(server.port, app.port, link_port=line.port)
    world.until(lambda: client.worker.link or world.pass_time(0.01), "the link")
    talkers = []
    for number in range(3):
        visitor = world.visitor(server.port, b"")
        talkers.append(Talker(visitor, 2 * number, 2 * number + 1))
        talkers[-1].pump()
        world.until(lambda n=number: len(app.peers) > n or world.pass_time(0.05))
        talkers.append(Talker(app.peers[-1], 2 * number + 1, 2 * number))
    for _ in range(MINUTES * 60):
        for talker in talkers:
            talker.pump()
        world.pass_time(1.0, step=0.1)
        for side in (client, server):
            assert side.counter(Counter.LINK_STATE) == LinkState.UP
            assert not side.worker.link.is_doubted
    assert client.counter(Counter.LINKS_TOTAL) == 1
    for passed in line.passed:
        assert passed > 0.8 * MINUTES * 60 * RATE, "the line was busy"
    for talker in talkers:
        assert talker.checker.offset > 0.1 * MINUTES * 60 * RATE, "each had its share"
