"""Who sits on the way of a link: one that writes all of it down, and one that opens TLS."""

from __future__ import annotations

import select
import socket
from contextlib import suppress
from threading import Lock, Thread  # noqa: TID251 - blocking calls are simpler here
from typing import TYPE_CHECKING

from tests.support.certificates import client_settings, make_certificate
from tunneltcp.protocol.messages import encode_message
from tunneltcp.protocol.preface import MAC_BYTES, PREFACE_BYTES

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence
    from types import TracebackType

__all__ = ["Middleman", "Player", "Recorder"]

_SECONDS = 10.0
"""Of each wait; a test that needs longer has failed."""


class _Eavesdropper:
    """Listens, and deals with each connection in a thread of its own."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._listener = socket.create_server(address)
        self.port: int = self._listener.getsockname()[1]
        self._threads = [Thread(target=self._accept)]
        self._open: set[socket.socket] = set()
        self._lock = Lock()
        self._closed = False

    def __enter__(self) -> None:
        self._threads[0].start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            self._closed = True
            for sock in (self._listener, *self._open):
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
        for thread in list(self._threads):
            thread.join(_SECONDS)
            assert not thread.is_alive(), "an eavesdropper does not let go"
        self._listener.close()

    def _keep(self, sock: socket.socket) -> None:
        """Have this socket be shut when all is over."""
        with self._lock:
            self._open.add(sock)
            if self._closed:
                sock.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self._keep(sock)
                thread = Thread(target=self._run, args=(sock,))
                self._threads.append(thread)
                thread.start()

    def _run(self, sock: socket.socket) -> None:
        with sock, suppress(OSError):
            sock.settimeout(_SECONDS)
            self._deal_with(sock)
        with self._lock:
            self._open.discard(sock)

    def _deal_with(self, sock: socket.socket) -> None:
        raise NotImplementedError


class Recorder(_Eavesdropper):
    """Passes on all that is said, and keeps it.

    Args:
        address: Where it listens.
        server: Whom it dials.
    """

    def __init__(self, address: tuple[str, int], server: tuple[str, int]) -> None:
        super().__init__(address)
        self._server = server
        self.said: list[list[tuple[str, bytes]]] = []
        """Of each connection, what came: ("up" or "down", bytes), in turn."""

    def whole(self, direction: str = "up down") -> bytes:
        """All that was said, on all connections."""
        return b"".join(
            data for said in self.said for way, data in list(said) if way in direction.split()
        )

    def _deal_with(self, sock: socket.socket) -> None:
        said: list[tuple[str, bytes]] = []
        self.said.append(said)
        with socket.create_connection(self._server, _SECONDS) as far:
            self._keep(far)
            others = {sock: ("up", far), far: ("down", sock)}
            while True:
                for one in select.select(list(others), [], [])[0]:
                    way, other = others[one]
                    data = one.recv(1 << 16)
                    if not data:
                        return
                    said.append((way, data))
                    other.sendall(data)


class Player(_Eavesdropper):
    """Says to a client what a server has once said, each time when the client has spoken."""

    def __init__(self, said: Sequence[tuple[str, bytes]]) -> None:
        super().__init__(("127.0.0.1", 0))
        self._said = said
        self.heard: list[bytes] = []
        """What clients said, piece by piece."""

    def _deal_with(self, sock: socket.socket) -> None:
        spoken = True
        for way, data in self._said:
            if way == "up":
                spoken = False
                continue
            if not spoken:
                self.heard.append(sock.recv(1 << 16))
                spoken = True
            sock.sendall(data)
        while sock.recv(1 << 16):
            pass


class Middleman(_Eavesdropper):
    """Ends TLS on both sides, with a certificate of his own, and passes on what he reads.

    Args:
        server: Whom he dials.
        forges: He answers PROOF himself, with a MAC that he makes up.
    """

    def __init__(self, server: tuple[str, int], *, forges: bool = False) -> None:
        super().__init__(("127.0.0.1", 0))
        self._server = server
        self._forges = forges
        self.read: list[bytes] = []
        """The messages that he could read."""
        self._certificate = make_certificate("Mallory").settings()

    def _deal_with(self, sock: socket.socket) -> None:
        preface = b""
        while len(preface) < PREFACE_BYTES:
            preface += sock.recv(PREFACE_BYTES - len(preface))
        near = self._certificate.wrap_socket(sock, server_side=True)
        far = socket.create_connection(self._server, _SECONDS)
        far.sendall(preface)
        settings = client_settings()
        with near, settings.wrap_socket(far) as there:
            self._keep(there)
            self._pass_on(near, there)  # HELLO
            self._pass_on(there, near)  # CHALLENGE
            if not self._forges:
                self._pass_on(near, there)  # PROOF
                self._pass_on(there, near)  # what comes of it
            else:
                self.read.append(near.recv(1 << 16))
                near.sendall(_forged_welcome())
            near.recv(1 << 16)

    def _pass_on(self, one: ssl.SSLSocket, other: ssl.SSLSocket) -> None:
        data = one.recv(1 << 16)
        self.read.append(data)
        other.sendall(data)


def _forged_welcome() -> bytes:
    welcome = {
        "type": "welcome",
        "agent": "tunneltcp/1.0",
        "session": "cc" * 16,
        "epoch": 1,
        "resumed": False,
        "limits": {"payload": 262_144},
    }
    return encode_message(welcome, bytes(range(MAC_BYTES)))
