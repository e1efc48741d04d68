"""The handshake of a link: who are you, prove it, welcome (PROTOCOL.md §4).

Theory of operation
-------------------
Both ends are fed what came and hand out what is to be sent; the driver keeps the deadline
(5 s) and decides who may own the port. Messages are JSON with a 2-byte length in front;
one that carries a MAC has its 32 bytes behind the JSON, inside the length. Each MAC covers
everything said before on this connection, so nothing can be replayed, cut out or changed,
and neither side's MAC can be played back as the other's::

    client                                   server
      | preface, HELLO ----------------------> |
      | <--------------------------- CHALLENGE |
      | PROOF (MAC) --------------------------> |   PROVEN: the driver decides
      | <---------------- WELCOME or REFUSED (MAC)
"""

from __future__ import annotations

import hmac
from enum import Enum
from typing import Any, Final

from tunneltcp.protocol.errors import (
    ForgedMessageError,
    LocalProtocolError,
    RemoteProtocolError,
)
from tunneltcp.protocol.frames import MAX_PAYLOAD_BYTES
from tunneltcp.protocol.messages import (
    Fields,
    Hello,
    Refusal,
    RefusedCode,
    Welcome,
    decode_message,
    encode_message,
    encode_refused,
)
from tunneltcp.protocol.preface import MAC_BYTES, VERSION, key_id, make_preface

__all__ = [
    "HANDSHAKE_SECONDS",
    "MAX_HANDSHAKE_BYTES",
    "NO_CERTIFICATE",
    "ClientHandshake",
    "ServerHandshake",
    "Stage",
]

HANDSHAKE_SECONDS: Final = 5.0
"""From the first byte to WELCOME: six round trips of 800 ms, and nobody needs more."""
MAX_HANDSHAKE_BYTES: Final = 4096
"""Bytes of messages one side may send in a handshake; ours are under 500."""

_CLIENT_LABEL: Final = b"tunneltcp/1 client"
_SERVER_LABEL: Final = b"tunneltcp/1 server"
NO_CERTIFICATE: Final = bytes(32)
"""Stands where TLS would put the hash of a certificate."""


class Stage(Enum):
    """How far a handshake is."""

    WAITING = "waiting"
    CHALLENGED = "challenged"
    """Client: the server's challenge is here, PROOF has not been sent."""
    PROVEN = "proven"
    """Server: the client holds the key; the driver decides."""
    WELCOMED = "welcomed"
    REFUSED = "refused"


class _Handshake:
    """What both ends share: messages in any pieces, and the record the MACs cover."""

    def __init__(self, preface: bytes) -> None:
        self.stage = Stage.WAITING
        self._preface = preface
        self._said = b""
        self._buffer = b""
        self._taken = 0
        self._out = b""

    def _bind(self, certificate_hash: bytes) -> None:
        """Begin the record: with the certificate that this connection came with."""
        self._said = certificate_hash + self._preface

    def data_to_send(self) -> bytes:
        """Return what is to be written, once."""
        out, self._out = self._out, b""
        return out

    @property
    def rest(self) -> bytes:
        """What came behind the handshake: the first frames."""
        return self._buffer

    def receive(self, data: bytes) -> None:
        """Take what came, in any pieces.

        Raises:
            RemoteProtocolError: The peer's messages are not those of a handshake.
        """
        self._buffer += data
        while self.stage in (Stage.WAITING, Stage.CHALLENGED):
            if len(self._buffer) < 2:
                return
            size = int.from_bytes(self._buffer[:2], "big")
            if size + 2 + self._taken > MAX_HANDSHAKE_BYTES:
                raise RemoteProtocolError("handshake: too much of it")
            if len(self._buffer) < size + 2:
                return
            whole, self._buffer = self._buffer[: size + 2], self._buffer[size + 2 :]
            self._taken += size + 2
            self._take(whole)

    def _take(self, whole: bytes) -> None:
        fields, json_end = decode_message(whole)
        signed = self._said + whole[:json_end]
        self._said += whole
        self._handle(fields, signed, whole[json_end:])

    def _handle(self, message: Fields, signed: bytes, mac: bytes) -> None:
        """Act on one message; ``signed`` is all that its MAC covers."""
        raise NotImplementedError

    def _send(
        self, message: dict[str, Any], key: bytes | None = None, label: bytes = b""
    ) -> None:
        whole = encode_message(message, bytes(MAC_BYTES) if key is not None else b"")
        if key is not None:
            head = whole[:-MAC_BYTES]
            whole = head + hmac.digest(key, label + self._said + head, "sha256")
        self._said += whole
        self._out += whole


class ServerHandshake(_Handshake):
    """The server's end, after a right preface.

    Args:
        preface: The 44 bytes that came.
        keys: The keys that are good for this port.
        nonce: 32 fresh random bytes.
        stand_in_key: A random key, used where the client names one we don't have, so that
            an unknown key and a wrong proof can't be told apart.
        certificate_hash: SHA-256 of the certificate we showed, in DER; zeros without TLS.
    """

    def __init__(
        self,
        preface: bytes,
        *,
        agent: str,
        port: int,
        keys: tuple[bytes, ...],
        nonce: bytes,
        stand_in_key: bytes,
        certificate_hash: bytes = NO_CERTIFICATE,
    ) -> None:
        super().__init__(preface)
        self._bind(certificate_hash)
        self._agent = agent
        self._port = port
        self._keys = {key_id(key): key for key in keys}
        self._nonce = nonce
        self._key = stand_in_key
        self._known = False
        self.hello: Hello | None = None

    def _handle(self, message: Fields, signed: bytes, mac: bytes) -> None:
        kind = message.text("type")
        if kind == "hello" and self.hello is None and not mac:
            self._handle_hello(message)
        elif kind == "proof" and self.hello is not None and mac:
            expected = hmac.digest(self._key, _CLIENT_LABEL + signed, "sha256")
            right = hmac.compare_digest(mac, expected)
            if right and self._known and self.hello.port == self._port:
                self.stage = Stage.PROVEN
            else:
                self._out += encode_refused(RefusedCode.DENIED)
                self.stage = Stage.REFUSED
        else:
            raise RemoteProtocolError(f"handshake: {kind} out of turn")

    def _handle_hello(self, message: Fields) -> None:
        if VERSION not in message.versions():
            self._out += encode_refused(RefusedCode.VERSION)
            self.stage = Stage.REFUSED
            return
        message.hex("nonce", 32)
        found = self._keys.get(message.hex("key_id", 8))
        if found is not None:
            self._key, self._known = found, True
        self.hello = Hello(
            agent=message.text("agent"),
            host_id=message.hex("host", 16),
            run_id=message.hex("run", 16),
            port=message.number("port", 1, 65_535),
            window=message.number("window", 1, 32 << 20),
            session=message.hex("session", 16) if message.has("session") else None,
            attempt=message.number("attempt", 0, 2**53),
            probe=message.has("probe") and message.flag("probe"),
        )
        self._send({"type": "challenge", "version": VERSION, "nonce": self._nonce.hex()})

    @property
    def key(self) -> bytes:
        """The key that the client has shown to hold. Only after PROVEN."""
        return self._key

    @property
    def is_proven(self) -> bool:
        """Whether the client has shown that it holds the key, and waits for an answer."""
        return self.stage is Stage.PROVEN

    def welcome(self, session: str, epoch: int, *, resumed: bool = False) -> None:
        """Take the link. Only after PROVEN."""
        self._must_be_proven()
        message = {
            "type": "welcome",
            "agent": self._agent,
            "session": session,
            "epoch": epoch,
            "resumed": resumed,
            "limits": {"payload": MAX_PAYLOAD_BYTES},
        }
        self._send(message, self._key, _SERVER_LABEL)
        self.stage = Stage.WELCOMED

    def refuse(self, code: RefusedCode, holder: str = "") -> None:
        """Do not take the link, and vouch for the reason. Only after PROVEN."""
        self._must_be_proven()
        message = {"type": "refused", "code": code.value}
        if holder:
            message["holder"] = holder
        self._send(message, self._key, _SERVER_LABEL)
        self.stage = Stage.REFUSED

    def _must_be_proven(self) -> None:
        if not self.is_proven:
            raise LocalProtocolError(f"handshake decided while {self.stage.value}")


class ClientHandshake(_Handshake):
    """The client's end.

    The preface is to be sent at once, and without TLS HELLO behind it. With TLS a REFUSED
    may come in clear; once TLS is there, :meth:`greet` says HELLO.

    Args:
        nonce: 16 + 32 fresh random bytes, for the preface and for HELLO.
    """

    def __init__(self, hello: Hello, key: bytes, nonce: bytes, *, tls: bool = False) -> None:
        preface = make_preface(key, hello.port, nonce[:16], tls=tls)
        super().__init__(preface)
        self._hello = hello
        self._key = key
        self._nonce = nonce[16:]
        self._greeted = False
        self._proof_sent = False
        self.welcome: Welcome | None = None
        self.refusal: Refusal | None = None
        self._out = preface
        if not tls:
            self.greet(NO_CERTIFICATE)

    def greet(self, certificate_hash: bytes) -> None:
        """Say HELLO, over TLS; once.

        Args:
            certificate_hash: SHA-256 of the certificate that the server showed, in DER. Who
                stands between the two ends with one of his own can't make the MACs.
        """
        if self._greeted:
            raise LocalProtocolError("HELLO twice")
        self._greeted = True
        self._bind(certificate_hash)
        hello = self._hello
        probe = {"probe": True} if hello.probe else {}
        self._send(
            {
                "type": "hello",
                "versions": [VERSION],
                "agent": hello.agent,
                "host": hello.host_id,
                "run": hello.run_id,
                "port": hello.port,
                "nonce": self._nonce.hex(),
                "key_id": key_id(self._key),
                "window": hello.window,
                "session": hello.session,
                "attempt": hello.attempt,
                **probe,
            }
        )

    def prove(self) -> None:
        """Send PROOF. Only once, after CHALLENGED; one attempt of a client at a time."""
        if self.stage is not Stage.CHALLENGED or self._proof_sent:
            raise LocalProtocolError("PROOF before the challenge, or twice")
        self._proof_sent = True
        self._send({"type": "proof"}, self._key, _CLIENT_LABEL)

    def _handle(self, message: Fields, signed: bytes, mac: bytes) -> None:
        kind = message.text("type")
        expected = hmac.digest(self._key, _SERVER_LABEL + signed, "sha256")
        right = bool(mac) and hmac.compare_digest(mac, expected)
        if not self._greeted and (mac or kind != "refused"):
            # Nothing but a hint is taken in clear by who wants TLS.
            raise RemoteProtocolError(f"handshake: {kind} in clear")
        if kind == "challenge" and self.stage is Stage.WAITING and not mac:
            message.hex("nonce", 32)
            self.stage = Stage.CHALLENGED
        elif kind == "refused":
            if mac and not right:
                raise ForgedMessageError("handshake: REFUSED with a wrong MAC")
            known = {code.value: code for code in RefusedCode}
            code = known.get(message.text("code"), RefusedCode.UNKNOWN)
            holder = message.text("holder", 128) if right and message.has("holder") else ""
            self.refusal = Refusal(code=code, proven=right, holder=holder)
            self.stage = Stage.REFUSED
        elif kind == "welcome" and self._proof_sent:
            if not right:
                raise ForgedMessageError("handshake: WELCOME with a wrong MAC")
            self.welcome = Welcome(
                agent=message.text("agent"),
                session=message.hex("session", 16),
                epoch=message.number("epoch", 1, 2**53),
                resumed=message.flag("resumed"),
            )
            self.stage = Stage.WELCOMED
        else:
            raise RemoteProtocolError(f"handshake: {kind} out of turn")
