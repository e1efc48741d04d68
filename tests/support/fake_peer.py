"""The far ends of sockets under test: they never block and do only what a test says."""

from __future__ import annotations

import socket
import struct
from contextlib import suppress

__all__ = ["FakeApp", "FakePeer", "tcp_pair"]

_RESET_AT_CLOSE = struct.pack("ii", 1, 0)


def _send_at_once(sock: socket.socket) -> None:
    """Or bytes wait for the other end's delayed ACK, in real time."""
    with suppress(OSError):  # it may be reset already
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Return both ends of a TCP connection over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    for sock in (one, other):
        _send_at_once(sock)
        sock.setblocking(False)
    return one, other


class FakePeer:
    """One connected socket, played by a test: :meth:`pump` moves what can be moved."""

    def __init__(self, sock: socket.socket, *, reads: bool = True) -> None:
        sock.setblocking(False)
        _send_at_once(sock)
        self.sock = sock
        self.reads = reads
        """Whether it reads at all; may be changed at any time."""
        self.received = bytearray()
        self.end = ""
        """How its input ended: "fin" or "rst"; empty while it has not."""
        self._out = bytearray()
        self._fin = False

    def __repr__(self) -> str:
        return f"<FakePeer {len(self.received)} received, {self.end or 'open'}>"

    @property
    def unsent(self) -> int:
        """Bytes the kernel did not take yet."""
        return len(self._out)

    def send(self, data: bytes) -> None:
        """Send, as soon as the kernel takes it."""
        self._out += data
        self._push()

    def finish(self) -> None:
        """Send FIN behind all that."""
        self._fin = True
        self._push()

    def reset(self) -> None:
        """End the connection by RST, now."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
        self.sock.close()

    def close(self) -> None:
        """Let go of the socket, however that ends."""
        self.sock.close()

    def pump(self) -> None:
        """Send what waits and receive what came."""
        if self.sock.fileno() < 0:
            return
        self._push()
        if self.reads and not self.end:
            self._pull()

    def _push(self) -> None:
        with suppress(BlockingIOError, ConnectionError):
            while self._out:
                del self._out[: self.sock.send(self._out)]
            if self._fin:
                self._fin = False
                self.sock.shutdown(socket.SHUT_WR)

    def _pull(self) -> None:
        try:
            while data := self.sock.recv(1 << 18):
                self.received += data
            self.end = "fin"
        except BlockingIOError:
            return
        except ConnectionError:
            self.end = "rst"


class FakeApp:
    """A listening app: whoever connects becomes a :class:`FakePeer` in ``peers``."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0, *, reads: bool = True) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            self.listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        self.listener.bind((host, port))
        self.listener.listen(512)
        self.port: int = self.listener.getsockname()[1]
        self.reads = reads
        self.peers: list[FakePeer] = []

    def pump(self) -> None:
        """Accept who came, and pump all."""
        if self.listener.fileno() >= 0:
            with suppress(OSError):  # nobody is there, or no descriptor for him
                while True:
                    sock, _ = self.listener.accept()
                    self.peers.append(FakePeer(sock, reads=self.reads))
        for peer in self.peers:
            peer.pump()

    def close(self) -> None:
        """Stop listening and let go of everybody."""
        self.listener.close()
        for peer in self.peers:
            peer.close()
