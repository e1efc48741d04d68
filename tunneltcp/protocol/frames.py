"""Layout of the frames on a link (PROTOCOL.md §6).

Each frame is a 16-byte header and a payload. The header is two big-endian 64-bit words::

    63    60 59                 40 39                                  0
    +-------+---------------------+------------------------------------+
    | type  | payload size, bytes |             stream id              |
    +-------+---------------------+------------------------------------+
    |                              value                               |
    +------------------------------------------------------------------+

What *value* means depends on the type. Encoding is done where frames are made, by
``HEADER.pack`` and its like: the path of a DATA frame has no room for objects.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final

from tunneltcp.protocol.errors import RemoteProtocolError

__all__ = [
    "CREDIT_FRAME",
    "CREDIT_PAYLOAD",
    "DATA_HEADER",
    "FIN_DELIVERED",
    "HEADER",
    "HEADER_BYTES",
    "HEADER_PARTS",
    "ID_MASK",
    "IS_RESET",
    "MAX_OFFSET",
    "MAX_PAYLOAD_BYTES",
    "MAX_STREAMS",
    "PAYLOAD_SIZES",
    "SIZE_SHIFT",
    "SYNC_FRAME",
    "TYPE_SHIFT",
    "FrameType",
    "check_open",
    "encode_frame",
    "pack_data_header",
]

HEADER: Final = struct.Struct("!QQ")
HEADER_BYTES: Final = HEADER.size
DATA_HEADER: Final = struct.Struct("!IIQ")
"""The same 16 bytes with the first word in halves: type, size and the id's upper 8 bits,
then its lower 32. Small numbers are quicker to work with."""
pack_data_header: Final = DATA_HEADER.pack
"""Bound once, for the hot path."""
HEADER_PARTS: Final = struct.Struct("!BHBIQ")
"""The same in five numbers that need no taking apart, but for the first: type and the upper 4
bits of the size. Then the lower 16 of the size, the id in two parts, the value."""
CREDIT_FRAME: Final = struct.Struct("!QQQB")
"""A whole CREDIT or STATE frame: the header, the limit, the flags."""
CREDIT_PAYLOAD: Final = struct.Struct("!QB")
"""The limit and the flags alone."""
SYNC_FRAME: Final = struct.Struct("!QQI")
"""A whole SYNC frame: the header, the number of STATE frames that follow."""

TYPE_SHIFT: Final = 60
SIZE_SHIFT: Final = 40
ID_MASK: Final = (1 << 40) - 1
"""Also the highest id; a thousand visitors a second need 34 years to get there."""

MAX_PAYLOAD_BYTES: Final = 256 * 1024
"""Largest payload of DATA. Reading more from a socket at once gains nothing (measured),
and a larger frame would make everybody else wait longer."""

MAX_OFFSET: Final = 1 << 62
"""No offset or limit may pass this; keeps sums of two of them inside 64 bits."""

FIN_DELIVERED: Final = 1
"""Flag in CREDIT and STATE: your FIN was delivered to the far socket."""
IS_RESET: Final = 2
"""Flag in STATE: this stream was reset here; nothing more of it will come."""

MAX_STREAMS: Final = 65_536
"""Streams of a session at the same time, those included that wait for the answer to a RESET."""


class FrameType(IntEnum):
    """The types of frames; PROTOCOL.md §7 says what each one means."""

    OPEN = 1
    DATA = 2
    FIN = 3
    RESET = 4
    CREDIT = 5
    PING = 6
    PONG = 7
    SYNC = 8
    STATE = 9
    GOAWAY = 10


PAYLOAD_SIZES: Final[dict[int, range]] = {
    FrameType.OPEN: range(2, 39),
    FrameType.DATA: range(1, MAX_PAYLOAD_BYTES + 1),
    FrameType.FIN: range(1),
    FrameType.RESET: range(2, 3),
    FrameType.CREDIT: range(9, 10),
    FrameType.PING: range(1),
    FrameType.PONG: range(1),
    FrameType.SYNC: range(4, 5),
    FrameType.STATE: range(9, 10),
    FrameType.GOAWAY: range(2, 3),
}
"""How many bytes a frame of each type may carry; other types may not come at all."""


def encode_frame(
    frame_type: FrameType, stream_id: int, value: int, payload: bytes = b""
) -> bytes:
    """Return one whole frame; for the frames that are rare."""
    word = frame_type << TYPE_SHIFT | len(payload) << SIZE_SHIFT | stream_id
    return HEADER.pack(word, value) + payload


def check_open(payload: bytes) -> None:
    """Check the payload of OPEN: two addresses, who came and to which of ours.

    Each is one byte of IP version (4, 6, or 0 for "not known"), then the address and, in two
    bytes, the port; nothing follows a 0.

    Raises:
        RemoteProtocolError: If it is laid out otherwise.
    """
    size = len(payload)
    second = _ADDRESS_BYTES.get(payload[0], size) if size else 0
    end = second + _ADDRESS_BYTES.get(payload[second], size) if second < size else size + 1
    if end > size:
        raise RemoteProtocolError("OPEN carries an address that is cut or of unknown kind")
    if end < size:
        raise RemoteProtocolError("OPEN carries more than two addresses")


_ADDRESS_BYTES: Final = {0: 1, 4: 7, 6: 19}
