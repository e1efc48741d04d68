"""Messages between processes, as bytes. Sans-I/O.

Theory of operation
-------------------
Two kinds of control channel carry the same thing, JSON objects:

* Between a master and a worker lies a SOCK_SEQPACKET pair: one packet is one message, so
  nothing has to be cut apart.
* On the control socket, a stream, a message is a length (4 bytes, big-endian) and that
  many bytes of JSON. ``FrameDecoder`` takes them in any pieces.

Whatever the other end sends, the only thing raised is :class:`ControlChannelError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson

from tunneltcp.errors import ControlChannelError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "MAX_FRAME_BYTES",
    "MAX_PACKET_BYTES",
    "FrameDecoder",
    "decode_message",
    "encode_frame",
    "encode_message",
]

MAX_PACKET_BYTES: Final = 64 * 1024
"""A message between master and worker; fits into the default buffer of a socket pair."""

MAX_FRAME_BYTES: Final = 1 << 20
"""A message on the control socket: the status of 500 tunnels is some 350 kB."""

_LENGTH_BYTES: Final = 4


def encode_message(message: Mapping[str, object]) -> bytes:
    """Return one packet.

    Raises:
        ControlChannelError: If it would not fit; a bug on our side.
    """
    data = orjson.dumps(message)
    if len(data) > MAX_PACKET_BYTES:
        raise ControlChannelError(f"a message of {len(data)} bytes is too long")
    return data


def decode_message(data: bytes) -> dict[str, Any]:
    """Return the message in one packet.

    Raises:
        ControlChannelError: If it is not one JSON object of bounded size.
    """
    if len(data) > MAX_PACKET_BYTES:
        raise ControlChannelError("a message is too long")
    return _decode(data)


def _decode(data: bytes | bytearray | memoryview) -> dict[str, Any]:
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise ControlChannelError("a message is not JSON") from error
    if not isinstance(value, dict):
        raise ControlChannelError("a message is not a JSON object")
    return value


def encode_frame(message: Mapping[str, object]) -> bytes:
    """Return a message with its length before it, for the control socket.

    Raises:
        ControlChannelError: If it would not fit.
    """
    data = orjson.dumps(message)
    if len(data) > MAX_FRAME_BYTES:
        raise ControlChannelError(f"a message of {len(data)} bytes is too long")
    return len(data).to_bytes(_LENGTH_BYTES, "big") + data


class FrameDecoder:
    """Cuts what a control socket delivers, in any pieces, into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._broken = False

    @property
    def buffered_bytes(self) -> int:
        """Bytes of a message that is not complete yet."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """Take what arrived; return the messages that are now complete.

        Raises:
            ControlChannelError: If the other end broke the rules; from then on, always.
        """
        if self._broken:
            raise ControlChannelError("this channel is broken")
        self._buffer += data
        try:
            return self._take()
        except ControlChannelError:
            self._broken = True
            self._buffer.clear()
            raise

    def _take(self) -> list[dict[str, Any]]:
        messages = []
        while len(self._buffer) >= _LENGTH_BYTES:
            length = int.from_bytes(self._buffer[:_LENGTH_BYTES], "big")
            if length > MAX_FRAME_BYTES:
                raise ControlChannelError("a message is too long")
            end = _LENGTH_BYTES + length
            if len(self._buffer) < end:
                break
            messages.append(_decode(bytes(self._buffer[_LENGTH_BYTES:end])))
            del self._buffer[:end]
        return messages
