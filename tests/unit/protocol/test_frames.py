"""Frames, byte by byte."""

from __future__ import annotations

import pytest

from tests.support import frame_factory as make
from tests.support.frame_factory import split_frames
from tunneltcp.protocol import frames
from tunneltcp.protocol.errors import RemoteProtocolError
from tunneltcp.protocol.frames import (
    CREDIT_FRAME,
    DATA_HEADER,
    PAYLOAD_SIZES,
    FrameType,
    check_open,
    encode_frame,
)

# In hex digits: 1 of type, 5 of size, 10 of stream id, 16 of value, then the payload.
OPEN = "1 0000e 0000000001 0000000000040000 04c0000201d431 04cb007109ea61"
DATA = "2 00005 0000000001 0000000000000010 68656c6c6f"
FIN = "3 00000 0000000001 0000000000000015"
RESET = "4 00002 0000000001 0000000000000000 0001"
CREDIT = "5 00009 0000000001 0000000000000015 0000000000100015 01"
PING = "6 00000 0000000000 00000000000f4240"
PONG = "7 00000 0000000000 00000000000f4240"
SYNC = "8 00004 0000000000 0000000000000007 00000002"
STATE = "9 00009 ffffffffff 4000000000000000 ffffffffffffffff 03"
GOAWAY = "a 00002 0000000000 0000000000000009 0001"

EXAMPLES = [
    (OPEN, FrameType.OPEN, 1, 262_144, make.addresses(54_321)),
    (DATA, FrameType.DATA, 1, 16, b"hello"),
    (FIN, FrameType.FIN, 1, 21, b""),
    (RESET, FrameType.RESET, 1, 0, b"\0\1"),
    (CREDIT, FrameType.CREDIT, 1, 21, bytes.fromhex("000000000010001501")),
    (PING, FrameType.PING, 0, 1_000_000, b""),
    (PONG, FrameType.PONG, 0, 1_000_000, b""),
    (SYNC, FrameType.SYNC, 0, 7, b"\0\0\0\2"),
    (STATE, FrameType.STATE, 2**40 - 1, 2**62, b"\xff" * 8 + b"\3"),
    (GOAWAY, FrameType.GOAWAY, 0, 9, b"\0\1"),
]


def is_valid_size(kind, size):
    return size in PAYLOAD_SIZES.get(kind, ())


@pytest.mark.parametrize(("text", "kind", "stream_id", "value", "payload"), EXAMPLES)
def test_each_frame_in_hex(text, kind, stream_id, value, payload):
    whole = bytes.fromhex(text.replace(" ", ""))

    assert encode_frame(kind, stream_id, value, payload) == whole
    [frame] = split_frames(whole)
    assert (frame.type, frame.stream_id) == (kind, stream_id)
    assert (frame.value, frame.payload) == (value, payload)
    assert is_valid_size(kind, len(payload))


def test_every_type_has_an_example():
    assert [kind for _, kind, *_ in EXAMPLES] == list(FrameType)


def test_the_halves_of_a_data_header_are_the_same_bytes():
    """What the quick path packs: type, size and the id's upper 8 bits; its lower 32; value."""
    stream_id, size, offset = 0xAB_01234567, 0x3FFFF, 2**61 + 5
    first = FrameType.DATA << 28 | size << 8 | stream_id >> 32

    assert DATA_HEADER.pack(first, stream_id & 0xFFFFFFFF, offset) == make.frame(
        FrameType.DATA, stream_id, offset, size=size
    )


def test_credit_is_packed_as_a_whole():
    word = FrameType.CREDIT << 60 | 9 << 40 | 1

    assert CREDIT_FRAME.pack(word, 21, 0x100015, 1).hex() == CREDIT.replace(" ", "")


SIZES = [
    (FrameType.OPEN, 2, 38),
    (FrameType.DATA, 1, 262_144),
    (FrameType.FIN, 0, 0),
    (FrameType.RESET, 2, 2),
    (FrameType.CREDIT, 9, 9),
    (FrameType.PING, 0, 0),
    (FrameType.PONG, 0, 0),
    (FrameType.SYNC, 4, 4),
    (FrameType.STATE, 9, 9),
    (FrameType.GOAWAY, 2, 2),
]


@pytest.mark.parametrize(("kind", "least", "most"), SIZES)
def test_sizes(kind, least, most):
    assert is_valid_size(kind, least)
    assert is_valid_size(kind, most)
    assert not is_valid_size(kind, least - 1)
    assert not is_valid_size(kind, most + 1)


@pytest.mark.parametrize("kind", [0, 11, 12, 13, 14, 15])
def test_unknown_types_have_no_valid_size(kind):
    assert not any(is_valid_size(kind, size) for size in range(64))


def test_limits():
    assert frames.MAX_PAYLOAD_BYTES == 262_144
    assert frames.ID_MASK == 2**40 - 1
    assert frames.MAX_OFFSET == 2**62
    assert frames.HEADER_BYTES == DATA_HEADER.size == 16


FOUR = bytes([4, 192, 0, 2, 1, 0xD4, 0x31])
SIX = bytes([6, 0x20, 1, 0xD, 0xB8]) + bytes(11) + bytes([1, 0xD4, 0x31])
NONE = b"\0"


@pytest.mark.parametrize("visitor", [FOUR, SIX, NONE])
@pytest.mark.parametrize("local", [FOUR, SIX, NONE])
def test_open_carries_two_addresses(visitor, local):
    check_open(visitor + local)
    assert is_valid_size(FrameType.OPEN, len(visitor + local))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        FOUR,
        NONE,
        FOUR + FOUR[:-1],
        SIX[:-1],
        FOUR + b"\5",
        b"\4",
        b"\xff" * 14,
        FOUR + b"\6",
    ],
)
def test_addresses_that_are_cut_or_unknown(payload):
    with pytest.raises(RemoteProtocolError, match="cut or of unknown kind"):
        check_open(payload)


@pytest.mark.parametrize("payload", [FOUR * 3, NONE * 3, FOUR + NONE + b"x"])
def test_more_than_two_addresses(payload):
    with pytest.raises(RemoteProtocolError, match="more than two"):
        check_open(payload)
