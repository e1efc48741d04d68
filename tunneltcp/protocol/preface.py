"""How a link says that it is one: keys, and the first 44 bytes (PROTOCOL.md §§2-3)."""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass
from typing import Final

__all__ = [
    "KEY_ID_BYTES",
    "MAC_BYTES",
    "MAGIC",
    "PREFACE_BYTES",
    "VERSION",
    "Preface",
    "key_id",
    "make_preface",
    "parse_preface",
    "port_key",
]

MAGIC: Final = bytes.fromhex("89545443500d0a1a")
"""No text protocol begins like this, no TLS and none that is known; a line-end conversion
on the way would break it."""
VERSION: Final = 1
PREFACE_BYTES: Final = 44
MAC_BYTES: Final = 32
KEY_ID_BYTES: Final = 8

FLAG_TLS: Final = 1

_LAYOUT: Final = struct.Struct("!8sBBH16s16s")
_SIGNED: Final = 28


def port_key(token: str, port: int) -> bytes:
    """Return the key of one port: all that a worker ever holds of a token."""
    message = f"tunneltcp/1 port {port}".encode()
    return hmac.digest(token.strip().encode(), message, "sha256")


def key_id(key: bytes) -> str:
    """Return the name of a key in HELLO, in hex; it tells nothing about the key."""
    return hmac.digest(key, b"id", "sha256")[:KEY_ID_BYTES].hex()


def _mac(key: bytes, signed: bytes) -> bytes:
    return hmac.digest(key, b"preface" + signed, hashlib.sha256)[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preface:
    """What a preface says."""

    version: int
    tls: bool
    port: int
    nonce: bytes
    key: bytes | None
    """The key its MAC was made with; None if it is none of ours."""


def make_preface(key: bytes, port: int, nonce: bytes, *, tls: bool = False) -> bytes:
    """Return the 44 bytes a link starts with; ``nonce`` is 16 fresh random bytes."""
    flags = FLAG_TLS if tls else 0
    signed = _LAYOUT.pack(MAGIC, VERSION, flags, port, nonce, bytes(16))[:_SIGNED]
    return signed + _mac(key, signed)


def parse_preface(data: bytes, keys: tuple[bytes, ...]) -> Preface:
    """Read the first 44 bytes of ``data``, which begin with ``MAGIC``."""
    _, version, flags, port, nonce, mac = _LAYOUT.unpack_from(data)
    found = None
    for key in keys:
        if hmac.compare_digest(mac, _mac(key, data[:_SIGNED])):
            found = key
    return Preface(
        version=version, tls=bool(flags & FLAG_TLS), port=port, nonce=nonce, key=found
    )
