"""One attempt to become the link: connect, handshake."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from typing import TYPE_CHECKING, Final, Protocol

from tunneltcp.advice import Trouble, connect_trouble, spoken
from tunneltcp.errors import ForgedMessageError, RemoteProtocolError
from tunneltcp.net.address import format_address, peer_address
from tunneltcp.net.loop import READ, WRITE
from tunneltcp.net.sockopt import (
    CONNECT_BEGUN,
    error_text,
    is_connected_to_itself,
    limit_segments,
    new_socket,
    prepare_link,
)
from tunneltcp.net.tls import TlsConnection
from tunneltcp.protocol.handshake import (
    HANDSHAKE_SECONDS,
    MAX_HANDSHAKE_BYTES,
    ClientHandshake,
    Stage,
)
from tunneltcp.protocol.messages import RefusedCode

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunneltcp.net.address import SocketAddress
    from tunneltcp.net.loop import Loop
    from tunneltcp.net.tls import ClientTls
    from tunneltcp.net.transport import Transport
    from tunneltcp.protocol.messages import Hello, Refusal, Welcome

__all__ = ["CONNECT_SECONDS", "Attempt", "AttemptOwner", "prove_one"]

CONNECT_SECONDS: Final = 2.5
"""An attempt that nobody answered for so long makes room for a fresh one. The kernel sends
again after 1 s and 3 s only; with all four places taken for 5 s, a network that comes back
would wait for the fifth."""

TLS_FIRST_BYTE: Final = 20
"""TLS begins with 20 to 23 (RFC 8446 §5.1), a message in clear with the upper half of its
length, which is at most 16."""
_TLS_LAST_BYTE: Final = 0x17
"""The last of the record types that may come first, or at all (RFC 8446 §5.1)."""
_SPOKEN_BYTES: Final = 64
"""As much as is looked at to tell what a stranger speaks."""


class AttemptOwner(Protocol):
    """What a client wants to know of its attempts."""

    def on_challenged(self, attempt: Attempt) -> None:
        """The server answered: call ``attempt.prove`` when no other attempt is proving."""

    def on_welcome(self, attempt: Attempt, welcome: Welcome, rest: bytes) -> None:
        """There is a link; ``attempt.transport`` is handed over."""

    def on_failure(
        self, attempt: Attempt, trouble: Trouble, detail: str, refusal: Refusal | None
    ) -> None:
        """This attempt came to nothing; ``detail`` as for ``advice.link_trouble``."""


class Attempt:
    """Dials one address; over within ``HANDSHAKE_SECONDS``, one way or the other."""

    def __init__(
        self,
        loop: Loop,
        address: SocketAddress,
        hello: Hello,
        key: bytes,
        owner: AttemptOwner,
        *,
        tls: ClientTls | None = None,
    ) -> None:
        self._loop = loop
        self._owner = owner
        self.address = address
        self.number = hello.attempt
        self.session = hello.session
        """The session that it asks for."""
        self.key = key
        self._handshake = ClientHandshake(hello, key, os.urandom(48), tls=tls is not None)
        self._tls = tls
        self.is_open = True
        self.is_proving = False
        self.is_challenged = False
        self._sock = new_socket(address[0])
        self.transport: Transport = self._sock
        prepare_link(self._sock)
        self._deadline = loop.now + HANDSHAKE_SECONDS
        self._timer = loop.call_later(CONNECT_SECONDS, self._on_deadline)
        self._registered = False
        self.is_connected = False
        """Whether somebody answered at all."""
        self.was_cut_off = False
        """Whether somebody answered, and then ended the connection."""
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
            limit_segments(self._sock, segment_bytes)
        error = self._sock.connect_ex(self.address[1])
        if error not in CONNECT_BEGUN:
            self._fail_with(error)
            return
        self._loop.register(self._sock.fileno(), WRITE, self._on_connect)
        self._registered = True

    def _on_connect(self, events: int) -> None:
        del events
        error = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            self._fail_with(error)
            return
        if is_connected_to_itself(
            self._sock, peer_address(self._sock)
        ):  # so nobody listens there
            self._fail(Trouble.REFUSES)
            return
        self.is_connected = True
        self.local = self._sock.getsockname()
        self._timer.cancel()
        self._timer = self._loop.call_at(self._deadline, self._on_deadline)
        self._write()
        if self._tls is None:
            self._wait(self._on_message)
            return
        connection = TlsConnection(
            self._sock, self._tls.context, server_side=False, server_name=self._tls.server_name
        )
        self._wait(lambda _events: self._on_first(connection))
        connection.say_hello()

    def _wait(self, callback: Callable[[int], None]) -> None:
        self._loop.modify(self._sock.fileno(), READ, callback)

    def _on_first(self, connection: TlsConnection) -> None:
        """The server's first bytes: TLS, a refusal of ours in clear, or something foreign?"""
        try:
            first = self._sock.recv(_SPOKEN_BYTES, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail_with(error.errno or 0)
            return
        if not first:
            self._fail(Trouble.HANGS_UP)
            return
        if first[0] < TLS_FIRST_BYTE:
            self._wait(self._on_message)
            self._on_message(READ)
            return
        if first[0] > _TLS_LAST_BYTE:
            self._fail(Trouble.FOREIGN, spoken(first))
            return
        self.transport = connection
        self._wait(lambda _events: self._on_tls(connection))
        self._on_tls(connection)

    def _on_tls(self, connection: TlsConnection) -> None:
        """One step of the TLS handshake: at most a millisecond of our time."""
        try:
            done = connection.shake_hands()
        except OSError as error:
            self.was_cut_off = isinstance(error, ConnectionError)
            self._fail(Trouble.TLS_FAILED, str(error.strerror).lower())
            return
        if done:
            self._handshake.greet(connection.certificate_hash)
            self._wait(self._on_message)
            self._write()
            self._on_message(READ)  # something may have come with the end of it

    def _write(self) -> None:
        # A few hundred bytes into an empty socket: what does not fit never will.
        with contextlib.suppress(OSError):
            self.transport.send(self._handshake.data_to_send())

    def _on_message(self, events: int) -> None:
        del events
        try:
            data = self.transport.recv(MAX_HANDSHAKE_BYTES)
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
        except ForgedMessageError:
            self._fail(Trouble.FORGED, "its proof is wrong")
            return
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
            self._fail(*self._refused(refusal), refusal)
        elif stage is Stage.WELCOMED:
            welcome = self._handshake.welcome
            assert welcome is not None, "WELCOMED comes with it"
            self._let_go()
            self._owner.on_welcome(self, welcome, self._handshake.rest)

    def _refused(self, refusal: Refusal) -> tuple[Trouble, str]:
        """Return what it means, and the detail."""
        if refusal.code is RefusedCode.DENIED and self.is_proving:
            # Our preface was taken, so our key is good: what was not is this connection.
            return Trouble.FORGED, "our proof was not taken there, though our token was"
        return Trouble(refusal.code.value), refusal.holder

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
            self._loop.unregister(self._sock.fileno())

    def cancel(self) -> None:
        """Another attempt won, or the worker leaves: no more calls to the owner."""
        if self.is_open:
            self._let_go()
            self.transport.close()

    def _fail_with(self, error: int) -> None:
        trouble = connect_trouble(errno.errorcode.get(error, ""))
        self._fail(trouble, error_text(error).lower())

    def _fail(self, trouble: Trouble, detail: str = "", refusal: Refusal | None = None) -> None:
        if self.is_open:
            self.cancel()
            self.was_cut_off |= self.is_connected and trouble is Trouble.HANGS_UP
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
