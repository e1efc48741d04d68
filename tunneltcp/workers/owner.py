"""Who has the session of a port, as a server's worker leaves it to its successor.

Host and run (16 bytes each), the id of the key that the link was made with (8 bytes), then the
address in UTF-8, ended by a zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tunneltcp.protocol.preface import key_id

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Owner", "pack_owner", "unpack_owner"]

_MAX_ADDRESS_BYTES: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """What was left."""

    ids: tuple[str, str]
    """Host and run."""
    key: bytes
    """The key of its link; empty if that is not good any more."""
    address: str


def pack_owner(ids: tuple[str, str], key: bytes, address: str) -> bytes:
    """Return it as bytes."""
    host, run = (bytes.fromhex(one) for one in ids)
    return (
        host + run + bytes.fromhex(key_id(key)) + address.encode()[:_MAX_ADDRESS_BYTES] + b"\0"
    )


def unpack_owner(packed: bytes, keys: Sequence[bytes]) -> Owner:
    """Return what was left; ``keys`` are those that are good now."""
    address, _, _ = packed[40:].partition(b"\0")
    return Owner(
        ids=(packed[:16].hex(), packed[16:32].hex()),
        key=next((one for one in keys if key_id(one) == packed[32:40].hex()), b""),
        address=address.decode(errors="replace"),
    )
