"""The messages of the handshake, and how they lie on the wire (PROTOCOL.md §4)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum
from typing import Any

from tunneltcp.protocol.errors import RemoteProtocolError
from tunneltcp.protocol.preface import MAC_BYTES

__all__ = [
    "Fields",
    "Hello",
    "Refusal",
    "RefusedCode",
    "Welcome",
    "decode_message",
    "encode_message",
    "encode_refused",
]


class RefusedCode(Enum):
    """Why a server does not take a link."""

    DENIED = "denied"
    """Unknown, wrong or revoked key, or a forbidden network: never said more exactly."""
    VERSION = "version"
    TLS = "tls"
    """One side wants TLS and the other does not."""
    IN_USE = "in_use"
    """Another client owns the port and answers."""
    DRAINING = "draining"
    """The server is stopping."""
    PROBED = "probed"
    """Nothing is wrong: the client only wanted to know whether its key is good."""
    STALE = "stale"
    """A newer attempt of the same run has already proven the key."""
    UNKNOWN = "unknown"
    """A code of a later version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """What a client says about itself; only the MAC of PROOF makes it believable."""

    agent: str
    host_id: str
    run_id: str
    port: int
    window: int
    """Bytes that the server may send on a new stream before the first CREDIT."""
    session: str | None
    attempt: int
    probe: bool = False
    """Only to know whether the key is good: it wants no link."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """What a server grants."""

    agent: str
    session: str
    epoch: int
    resumed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why there will be no link."""

    code: RefusedCode
    proven: bool
    """Whether the server's MAC vouches for it; without, it is a hint of a stranger."""
    holder: str = ""
    """Who owns the port, if the server told."""


def encode_message(message: dict[str, Any], mac: bytes = b"") -> bytes:
    """Return one message: its length, its JSON, and its MAC if it has one."""
    text = json.dumps(message, separators=(",", ":")).encode()
    return (len(text) + len(mac)).to_bytes(2, "big") + text + mac


def encode_refused(code: RefusedCode) -> bytes:
    """Return a REFUSED in clear: all that is said to who has proven nothing."""
    return encode_message({"type": "refused", "code": code.value})


class Fields:
    """Reads the fields of a message; a wrong one is the peer's fault."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self._fields = fields

    def text(self, name: str, limit: int = 64) -> str:
        """Return a short printable text."""
        value = self._fields.get(name)
        if not isinstance(value, str) or len(value) > limit or not value.isprintable():
            raise RemoteProtocolError(f"handshake: {name} is not a short text")
        return value

    def hex(self, name: str, size: int) -> str:
        """Return ``size`` bytes in lower-case hex, as text."""
        value = self.text(name, 2 * size)
        try:
            if len(bytes.fromhex(value)) != size or value != value.lower():
                raise ValueError
        except ValueError:
            raise RemoteProtocolError(f"handshake: {name} is not {size} bytes in hex") from None
        return value

    def number(self, name: str, low: int, high: int) -> int:
        """Return a whole number between two bounds."""
        value = self._fields.get(name)
        if type(value) is not int or not low <= value <= high:
            raise RemoteProtocolError(f"handshake: {name} is not a number from {low} to {high}")
        return value

    def flag(self, name: str) -> bool:
        """Return true or false."""
        value = self._fields.get(name)
        if type(value) is not bool:
            raise RemoteProtocolError(f"handshake: {name} is not true or false")
        return value

    def has(self, name: str) -> bool:
        """Say whether the field is there and not null."""
        return self._fields.get(name) is not None

    def versions(self) -> list[Any]:
        """Return the versions of the protocol that the peer speaks."""
        value = self._fields.get("versions")
        return value if isinstance(value, list) else []


def decode_message(whole: bytes) -> tuple[Fields, int]:
    """Return the fields of a message, and where its JSON ends: there its MAC begins.

    Args:
        whole: The message with its length.

    Raises:
        RemoteProtocolError: If it is not a JSON object, with nothing or a MAC behind it.
    """
    try:
        # A MAC is no text: its bytes must not keep the JSON in front of it from being read.
        text = whole[2:].decode("utf-8", "surrogateescape")
        fields, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        raise RemoteProtocolError("handshake: a message that is not JSON") from None
    if not isinstance(fields, dict):
        raise RemoteProtocolError("handshake: a message that is not an object")
    json_end = 2 + len(text[:end].encode("utf-8", "surrogateescape"))
    if len(whole) - json_end not in (0, MAC_BYTES):
        raise RemoteProtocolError("handshake: a message with something behind it")
    return Fields(fields), json_end
