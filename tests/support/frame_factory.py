"""Short ways to make frames, right and wrong, and to read what a session sent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from tunneltcp.protocol.frames import (
    HEADER,
    HEADER_BYTES,
    ID_MASK,
    SIZE_SHIFT,
    TYPE_SHIFT,
    FrameType,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "Frame",
    "addresses",
    "credit",
    "data",
    "fin",
    "frame",
    "goaway",
    "open_",
    "ping",
    "pong",
    "reset",
    "split_frames",
    "state",
    "sync",
]

Buffer: TypeAlias = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame, read back from the wire."""

    type: FrameType
    stream_id: int
    value: int
    payload: bytes

    def __repr__(self) -> str:
        tail = f" {len(self.payload)} bytes" if self.payload else ""
        return f"<{self.type.name} {self.stream_id} {self.value}{tail}>"


def split_frames(wire: Buffer | Iterable[Buffer]) -> list[Frame]:
    """The frames in what a session sent; they must be whole and of known types."""
    whole = bytes(wire) if isinstance(wire, Buffer) else b"".join(wire)
    frames = []
    position = 0
    while position < len(whole):
        word, value = HEADER.unpack_from(whole, position)
        size = word >> SIZE_SHIFT & 0xFFFFF
        position += HEADER_BYTES
        assert position + size <= len(whole), "the last frame is cut"
        payload = whole[position : position + size]
        frames.append(Frame(FrameType(word >> TYPE_SHIFT), word & ID_MASK, value, payload))
        position += size
    return frames


def frame(
    frame_type: int, stream_id: int = 0, value: int = 0, payload: bytes = b"", size: int = -1
) -> bytes:
    """Any frame at all; ``size`` is what its header claims, if not the truth."""
    claimed = len(payload) if size < 0 else size
    word = frame_type << TYPE_SHIFT | claimed << SIZE_SHIFT | stream_id
    return HEADER.pack(word, value) + payload


def addresses(port: int) -> bytes:
    """The payload of OPEN: a visitor from 192.0.2.1:``port`` came to 203.0.113.9:60001."""
    visitor = bytes([4, 192, 0, 2, 1]) + port.to_bytes(2, "big")
    return visitor + bytes([4, 203, 0, 113, 9]) + (60_001).to_bytes(2, "big")


def open_(stream_id: int, limit: int = 1 << 20, port: int = 0) -> bytes:
    """OPEN of a visitor from 192.0.2.1:``port``."""
    return frame(FrameType.OPEN, stream_id, limit, addresses(port))


def data(stream_id: int, offset: int, payload: bytes) -> bytes:
    """DATA."""
    return frame(FrameType.DATA, stream_id, offset, payload)


def fin(stream_id: int, final: int) -> bytes:
    """FIN at a final offset."""
    return frame(FrameType.FIN, stream_id, final)


def reset(stream_id: int, code: int) -> bytes:
    """RESET with a code."""
    return frame(FrameType.RESET, stream_id, 0, code.to_bytes(2, "big"))


def credit(stream_id: int, delivered: int, limit: int, flags: int = 0) -> bytes:
    """CREDIT."""
    payload = limit.to_bytes(8, "big") + bytes([flags])
    return frame(FrameType.CREDIT, stream_id, delivered, payload)


def sync(last_id: int, count: int) -> bytes:
    """SYNC."""
    return frame(FrameType.SYNC, 0, last_id, count.to_bytes(4, "big"))


def state(stream_id: int, delivered: int, limit: int, flags: int = 0) -> bytes:
    """STATE."""
    payload = limit.to_bytes(8, "big") + bytes([flags])
    return frame(FrameType.STATE, stream_id, delivered, payload)


def ping(value: int) -> bytes:
    """PING."""
    return frame(FrameType.PING, 0, value)


def pong(value: int) -> bytes:
    """PONG."""
    return frame(FrameType.PONG, 0, value)


def goaway(last_id: int, code: int) -> bytes:
    """GOAWAY."""
    return frame(FrameType.GOAWAY, 0, last_id, code.to_bytes(2, "big"))
