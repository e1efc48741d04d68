"""One attempt to become the link: connect, handshake."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from typing import TYPE_CHECKING, Final, Protocol

from tunneltcp.advice import Trouble, connect_trouble, spoken
from tunneltcp.errors import RemoteProtocolError
from tunneltcp.net.address import format_address
from tunneltcp.net.loop import READ, WRITE
from tunneltcp.net.sockopt import (
    CONNECT_BEGUN,
    error_text,
    is_connected_to_itself,
    limit_segments,
    new_socket,
    prepare_link,
)
from tunneltcp.protocol.handshake import (
    HANDSHAKE_SECONDS,
    MAX_HANDSHAKE_BYTES,
    ClientHandshake,
    Stage,
)

if TYPE_CHECKING:
    from tunneltcp.net.address import SocketAddress
    from tunneltcp.net.loop import Loop
    from tunneltcp.protocol.messages import Hello, Refusal, Welcome

__all__ = ["CONNECT_SECONDS", "Attempt", "AttemptOwner", "prove_one"]

CONNECT_SECONDS: Final = 2.5
"""An attempt that nobody answered for so long makes room for a fresh one. The kernel sends
again after 1 s and 3 s only; with all four places taken for 5 s, a network that comes back
would wait for the fifth."""


class AttemptOwner(Protocol):
    """What a client wants to know of its attempts."""

    def on_challenged(self, attempt: Attempt) -> None:
        """The server answered: call ``attempt.prove`` when no other attempt is proving."""

    def on_welcome(self, attempt: Attempt, welcome: Welcome, rest: bytes) -> None:
        """There is a link; ``attempt.sock`` is handed over."""

    def on_failure(
        self, attempt: Attempt, trouble: Trouble, detail: str, refusal: Refusal | None
    ) -> None:
        """This attempt came to nothing; ``detail`` as for ``advice.link_trouble``."""


class Attempt:
    """Dials one address; over within ``HANDSHAKE_SECONDS``, one way or the other."""

    def __init__(
        self, loop: Loop, address: SocketAddress, hello: Hello, key: bytes, owner: AttemptOwner
    ) -> None:
        self._loop = loop
        self._owner = owner
        self.address = address
        self.number = hello.attempt
        self.session = hello.session
        """The session that it asks for."""
        self._handshake = ClientHandshake(hello, key, os.urandom(48))
        self.is_open = True
        self.is_proving = False
        self.is_challenged = False
        self.sock = new_socket(address[0])
        prepare_link(self.sock)
        self._deadline = loop.now + HANDSHAKE_SECONDS
        self._timer = loop.call_later(CONNECT_SECONDS, self._on_deadline)
        self._registered = False
        self.is_connected = False
        """Whether somebody answered at all."""
        self.local: tuple[object, ...] = ()
        """This end's address, once it is connected."""

    @property
    def where(self) -> str:
        """Whom it dials, for a person."""
        return format_address(self.address[1])

    def where_in_words(self, named: tuple[str, int]) -> str:
        """The same in the words of the config, the address beside it if that is another."""
        words = format_address(named)
        return words if words == self.where else f"{words} ({self.address[1][0]})"

    def start(self, segment_bytes: int = 0) -> None:
        """Begin to connect.

        Args:
            segment_bytes: The most data in a packet, both ways; 0: as the system thinks right.
        """
        if segment_bytes:
            limit_segments(self.sock, segment_bytes)
        error = self.sock.connect_ex(self.address[1])
        if error not in CONNECT_BEGUN:
            self._fail_with(error)
            return
        self._loop.register(self.sock.fileno(), WRITE, self._on_connect)
        self._registered = True

    def _on_connect(self, events: int) -> None:
        del events
        error = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            self._fail_with(error)
            return
        if is_connected_to_itself(self.sock):  # so nobody listens there
            self._fail(Trouble.REFUSES)
            return
        self.is_connected = True
        self.local = self.sock.getsockname()
        self._timer.cancel()
        self._timer = self._loop.call_at(self._deadline, self._on_deadline)
        self._loop.modify(self.sock.fileno(), READ, self._on_readable)
        self._write()

    def _write(self) -> None:
        # A few hundred bytes into an empty socket: what does not fit never will.
        with contextlib.suppress(OSError):
            self.sock.send(self._handshake.data_to_send())

    def _on_readable(self, events: int) -> None:
        del events
        try:
            data = self.sock.recv(MAX_HANDSHAKE_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail_with(error.errno or 0)
            return
        if not data:
            self._fail(Trouble.HANGS_UP)
            return
        try:
            self._handshake.receive(data)
        except RemoteProtocolError:
            self._fail(Trouble.FOREIGN, spoken(data))
            return
        self._follow()

    def _follow(self) -> None:
        stage = self._handshake.stage
        if stage is Stage.CHALLENGED and not self.is_challenged:
            self.is_challenged = True
            self._owner.on_challenged(self)
        elif stage is Stage.REFUSED:
            refusal = self._handshake.refusal
            assert refusal is not None, "REFUSED comes with a reason"
            self._fail(Trouble(refusal.code.value), refusal.holder, refusal)
        elif stage is Stage.WELCOMED:
            welcome = self._handshake.welcome
            assert welcome is not None, "WELCOMED comes with it"
            self._let_go()
            self._owner.on_welcome(self, welcome, self._handshake.rest)

    def prove(self) -> None:
        """Send PROOF: of the attempts of one client, one at a time."""
        self.is_proving = True
        self._handshake.prove()
        self._write()

    def _on_deadline(self) -> None:
        self._fail(Trouble.MUTE if self.is_connected else Trouble.SILENT)

    def _let_go(self) -> None:
        self.is_open = False
        self._timer.cancel()
        if self._registered:
            self._loop.unregister(self.sock.fileno())

    def cancel(self) -> None:
        """Another attempt won, or the worker leaves: no more calls to the owner."""
        if self.is_open:
            self._let_go()
            self.sock.close()

    def _fail_with(self, error: int) -> None:
        trouble = connect_trouble(errno.errorcode.get(error, ""))
        self._fail(trouble, error_text(error).lower())

    def _fail(self, trouble: Trouble, detail: str = "", refusal: Refusal | None = None) -> None:
        if self.is_open:
            self.cancel()
            self._owner.on_failure(self, trouble, detail, refusal)


def prove_one(attempts: list[Attempt]) -> None:
    """Send PROOF on the first attempt that was challenged, if none is at it.

    From then on the server takes none with a lower number: those are given up.
    """
    if any(attempt.is_proving for attempt in attempts):
        return
    proving = next((attempt for attempt in attempts if attempt.is_challenged), None)
    if proving is None:
        return
    proving.prove()
    for attempt in [one for one in attempts if one.number < proving.number]:
        attempts.remove(attempt)
        attempt.cancel()
