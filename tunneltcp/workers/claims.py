"""Links that are not links yet: preface and handshake, seen from the server.

Each claim is a small state machine in the loop, with one deadline from its first byte to
WELCOME. Nothing that it says changes anything before its PROOF is right.

Until its preface is whole and right, a claim is a stranger's. Those have places of their own
and crowd each other out at random; who holds the key is among them only for as long as his
44 bytes are on the way, and is never one of those who wait for a late answer.
"""

from __future__ import annotations

import contextlib
import os
import socket
from itertools import islice
from typing import TYPE_CHECKING, Final, Protocol

from loguru import logger

from tunneltcp import __version__
from tunneltcp.advice import claim_trouble
from tunneltcp.errors import RemoteProtocolError
from tunneltcp.net.address import format_address
from tunneltcp.net.loop import READ
from tunneltcp.net.sockopt import prepare_link
from tunneltcp.net.tls import TlsConnection, server_tls
from tunneltcp.protocol.handshake import (
    HANDSHAKE_SECONDS,
    MAX_HANDSHAKE_BYTES,
    NO_CERTIFICATE,
    ServerHandshake,
    Stage,
)
from tunneltcp.protocol.messages import Hello, RefusedCode, encode_refused
from tunneltcp.protocol.preface import PREFACE_BYTES, VERSION, parse_preface
from tunneltcp.workers.penalties import Penalties
from tunneltcp.workers.replays import Replays

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tunneltcp.net.loop import Loop, Timer
    from tunneltcp.net.tls import ServerTls
    from tunneltcp.net.transport import Transport
    from tunneltcp.workers.doors import Doors

__all__ = ["AGENT", "Claim", "ClaimOwner", "Claims"]

AGENT: Final = f"tunneltcp/{__version__}"
MAX_CLAIMS: Final = 16
"""Handshakes behind a right preface at the same time; a client has at most four. Beyond, the
oldest goes."""
MAX_STRANGERS: Final = 64
"""Claims without a right preface, those included whose answer is late. Beyond, a random one
goes: who floods the port cannot choose whom he throws out."""


class ClaimOwner(Protocol):
    """Who decides about a client that has proven that it holds the key."""

    def on_proven(self, claim: Claim) -> None:
        """Answer with ``claim.welcome`` or ``claim.refuse``, now or within the deadline."""

    def on_refused(self, address: str, reason: str, client: str) -> None:
        """A claim failed; for the log. ``client``: its name, if it has proven that."""


class Claim:
    """One connection that says it is the link."""

    def __init__(
        self, claims: Claims, loop: Loop, sock: socket.SocketType, address: object
    ) -> None:
        prepare_link(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        self._claims = claims
        self._loop = loop
        self._sock = sock
        self._peer = address
        self.transport: Transport = sock
        self.address = format_address(address)
        self._first = b""
        self._handshake: ServerHandshake | None = None
        self._timer: Timer = loop.call_later(HANDSHAKE_SECONDS, self._on_deadline)
        loop.register(sock.fileno(), READ, self._on_preface)
        self.is_open = True
        self.is_stranger = True
        """Whether no right preface has come yet."""

    @property
    def is_proven(self) -> bool:
        """Whether the client has shown that it holds the key."""
        return self._handshake is not None and self._handshake.is_proven

    @property
    def hello(self) -> Hello:
        """What the client said; only for a proven one."""
        assert self._handshake is not None, "proven"
        assert self._handshake.hello is not None, "proven"
        return self._handshake.hello

    @property
    def key(self) -> bytes:
        """The key that the client has shown to hold; only for a proven one."""
        assert self._handshake is not None, "proven"
        return self._handshake.key

    @property
    def client(self) -> str:
        """Name of the client whose key that is, if it has one; only for a proven one."""
        return self._claims.clients.get(self.key, "")

    def _on_deadline(self) -> None:
        if self.is_stranger:
            self._claims.penalties.fail(self._peer, self._loop.now)
        self.end("it took too long over the handshake")

    def begin(self) -> None:
        """Look at what is there already: usually all of the preface."""
        self._on_preface(READ)

    def _on_preface(self, events: int) -> None:
        """Read 44 bytes and not one more: what follows may be TLS."""
        del events
        data = self._receive(PREFACE_BYTES - len(self._first))
        if data:
            self._first += data
            if len(self._first) == PREFACE_BYTES and self._check_preface(self._first):
                self._go_on()

    def _go_on(self) -> None:
        tls = self._claims.tls
        if tls is None:
            self._expect_hello(NO_CERTIFICATE)
            return
        connection = TlsConnection(self._sock, tls.context, server_side=True)
        self.transport = connection
        self._wait(lambda _events: self._on_tls(connection, tls.certificate_hash))

    def _on_tls(self, connection: TlsConnection, certificate_hash: bytes) -> None:
        """One step of the TLS handshake: at most a millisecond of our time."""
        try:
            done = connection.shake_hands()
        except OSError as error:
            self.end(f"TLS failed: {error.strerror}")
            return
        if done:
            self._expect_hello(certificate_hash)
            self._on_message(READ)  # HELLO may have come with the end of it

    def _wait(self, callback: Callable[[int], None]) -> None:
        self._loop.modify(self._sock.fileno(), READ, callback)

    def _expect_hello(self, certificate_hash: bytes) -> None:
        self._handshake = ServerHandshake(
            self._first,
            agent=AGENT,
            port=self._claims.port,
            keys=self._claims.keys,
            nonce=os.urandom(32),
            stand_in_key=os.urandom(32),
            certificate_hash=certificate_hash,
        )
        self._wait(self._on_message)

    def _on_message(self, events: int) -> None:
        del events
        handshake = self._handshake
        assert handshake is not None, "set by _expect_hello"
        data = self._receive(MAX_HANDSHAKE_BYTES)
        if not data:
            return
        decided = handshake.stage not in (Stage.WAITING, Stage.CHALLENGED)
        try:
            if decided:  # frames before WELCOME
                raise RemoteProtocolError("handshake: sent more before WELCOME")
            handshake.receive(data)
        except RemoteProtocolError as error:
            self.end(str(error))
            return
        self._write(handshake.data_to_send())
        if handshake.is_proven:
            self._claims.penalties.lift(self._peer)
        if handshake.is_proven and self.hello.probe:
            self.refuse(RefusedCode.PROBED)
        elif handshake.is_proven:
            self._claims.owner.on_proven(self)
        elif handshake.stage is Stage.REFUSED:
            self._claims.penalties.fail(self._peer, self._loop.now)
            # Its preface was made with our key.
            self.end(claim_trouble("version" if handshake.hello is None else "proof"))

    def _receive(self, size: int) -> bytes:
        """Return what came, at most ``size`` bytes; empty if nothing did, or it is over."""
        try:
            data = self.transport.recv(size)
        except BlockingIOError:
            return b""
        except OSError as error:
            self.end(f"connection failed: {error.strerror}")
            return b""
        if not data:
            self.end("closed in the handshake")
        return data

    def _check_preface(self, first: bytes) -> bool:
        preface = parse_preface(first, self._claims.keys)
        code = None
        reason = self._claims.doors.link_trouble(self._peer)
        if reason or preface.key is None or preface.port != self._claims.port:
            code = RefusedCode.DENIED
        elif not self._claims.replays.take(preface.nonce):
            code = RefusedCode.DENIED
            reason = "its preface was used before: somebody plays back what he recorded"
        elif preface.version != VERSION:
            code = RefusedCode.VERSION
        elif preface.tls != (self._claims.tls is not None):
            code = RefusedCode.TLS
        if code is RefusedCode.DENIED:
            self._deny(reason or claim_trouble(code.value))
            return False
        self._claims.trust(self)
        if code is not None:
            self._write(encode_refused(code))
            clear = code is RefusedCode.TLS and not preface.tls
            self.end(claim_trouble("clear" if clear else code.value))
        return code is None

    def _deny(self, reason: str) -> None:
        """Refuse a stranger; the answer of one who fails again and again comes late."""

        def answer() -> None:
            if self.is_open:
                self._write(encode_refused(RefusedCode.DENIED))
                self.end(reason)

        delay = self._claims.penalties.fail(self._peer, self._loop.now)
        if not delay:
            answer()
            return
        self._loop.modify(self._sock.fileno(), 0, lambda _events: self.end(reason))
        self._loop.call_later(delay, answer)

    def _write(self, data: bytes) -> None:
        # A few hundred bytes into an empty socket: what does not fit never will.
        if data and self.is_open:
            with contextlib.suppress(OSError):
                self.transport.send(data)

    def welcome(self, session: str, epoch: int, *, resumed: bool) -> bytes:
        """Take the link; return what came behind the handshake. The socket is handed over."""
        handshake = self._handshake
        assert handshake is not None, "proven"
        handshake.welcome(session, epoch, resumed=resumed)
        self._write(handshake.data_to_send())
        self._let_go()
        return handshake.rest

    def refuse(self, code: RefusedCode, holder: str = "", reason: str = "") -> None:
        """Do not take the link.

        Args:
            code: What the client is told.
            holder: Who has the port; told too.
            reason: For our log, if that is to say more.
        """
        if not self.is_open:
            return
        assert self._handshake is not None, "proven"
        self._handshake.refuse(code, holder)
        self._write(self._handshake.data_to_send())
        self.end(reason or claim_trouble(code.value, holder), self.client)

    def _let_go(self) -> None:
        self.is_open = False
        self._timer.cancel()
        self._loop.unregister(self._sock.fileno())
        self._claims.forget(self)

    def end(self, reason: str, client: str = "") -> None:
        """Close, without another word; ``reason`` is empty if nothing is wrong."""
        if self.is_open:
            self._let_go()
            # Closing a socket with unread input resets it, and could destroy our answer.
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_WR)
                self._sock.recv(MAX_HANDSHAKE_BYTES)
            self.transport.close()
            if reason:
                self._claims.owner.on_refused(self.address, reason, client)


class Claims:
    """All claims of one tunnel."""

    def __init__(
        self,
        loop: Loop,
        port: int,
        keys: tuple[bytes, ...],
        owner: ClaimOwner,
        *,
        clients: Mapping[bytes, str],
        doors: Doors,
        tls: ServerTls | None = None,
        nonces: memoryview,
    ) -> None:
        self._loop = loop
        self.port = port
        self.keys = keys
        self.clients = clients
        """Whose keys these are, by name."""
        self.doors = doors
        self.tls = tls
        self.owner = owner
        self.penalties = Penalties()
        self.replays = Replays(nonces)
        self._strangers: dict[Claim, None] = {}
        self._open: dict[Claim, None] = {}
        """Those with a right preface."""

    def __len__(self) -> int:
        return len(self._strangers) + len(self._open)

    def renew_tls(self, fd: int) -> None:
        """Show another certificate from now on; handshakes that run keep theirs."""
        try:
            self.tls = server_tls(fd)
        except (OSError, ValueError) as error:
            logger.error("the new certificate cannot be used, the old one stays: {}", error)

    def add(self, sock: socket.SocketType, address: object) -> None:
        """A connection begins like a link."""
        if len(self._strangers) >= MAX_STRANGERS:
            number = int.from_bytes(os.urandom(4), "big") % MAX_STRANGERS
            next(islice(self._strangers, number, None)).end("newer ones need its place")
        claim = Claim(self, self._loop, sock, address)
        self._strangers[claim] = None
        claim.begin()

    def trust(self, claim: Claim) -> None:
        """The claim has a right preface: nobody without one can throw it out."""
        claim.is_stranger = False
        del self._strangers[claim]
        if len(self._open) >= MAX_CLAIMS:
            next(iter(self._open)).end("newer handshakes need its place")
        self._open[claim] = None

    def forget(self, claim: Claim) -> None:
        """The claim is over, either way."""
        self._strangers.pop(claim, None)
        self._open.pop(claim, None)

    def change_keys(self, keys: tuple[bytes, ...], clients: Mapping[bytes, str]) -> None:
        """Take others from now on; whose handshake began before begins again."""
        self.keys, self.clients = keys, clients
        for claim in [*self._strangers, *self._open]:
            claim.end("the keys changed meanwhile")

    def recheck(self) -> None:
        """Links come from other networks now: whose is none of them gets no link any more."""
        for claim in [*self._strangers, *self._open]:
            trouble = self.doors.link_trouble(claim.address)
            if trouble:
                claim.end(trouble)

    def close(self) -> None:
        """End all of them; who has proven that it holds the key is told why."""
        for claim in [*self._strangers, *self._open]:
            if claim.is_proven:
                claim.refuse(RefusedCode.DRAINING)
            claim.end("the worker leaves")
