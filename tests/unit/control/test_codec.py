"""Messages between processes: any cut, any garbage."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunneltcp.control.codec import (
    MAX_FRAME_BYTES,
    MAX_PACKET_BYTES,
    FrameDecoder,
    decode_message,
    encode_frame,
    encode_message,
)
from tunneltcp.errors import ControlChannelError

messages = st.dictionaries(
    st.text(), st.none() | st.booleans() | st.text() | st.integers(0, 2**53)
)


@given(messages)
def test_a_packet_comes_back_as_it_went(message):
    assert decode_message(encode_message(message)) == message


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff", b"{}x", b" " * (1 << 17)])
def test_garbage_in_a_packet(data):
    with pytest.raises(ControlChannelError):
        decode_message(data)


@given(st.binary())
def test_any_bytes_are_a_message_or_an_error(data):
    with suppress(ControlChannelError):
        assert isinstance(decode_message(data), dict)


def test_what_we_send_is_bounded_too():
    with pytest.raises(ControlChannelError):
        encode_message({"a": "x" * MAX_PACKET_BYTES})
    with pytest.raises(ControlChannelError):
        encode_frame({"a": "x" * MAX_FRAME_BYTES})


@given(st.lists(messages, max_size=5), st.data())
def test_frames_come_whole_however_they_are_cut(sent, data):
    wire = b"".join(encode_frame(message) for message in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=6)))
    decoder = FrameDecoder()
    got = []
    for start, end in zip([0, *cuts], [*cuts, len(wire)], strict=True):
        got += decoder.feed(wire[start:end])
    assert got == sent
    assert decoder.buffered_bytes == 0


def test_byte_by_byte():
    wire = encode_frame({"op": "status"}) * 2
    decoder = FrameDecoder()
    got = [message for byte in wire for message in decoder.feed(bytes([byte]))]
    assert got == [{"op": "status"}] * 2


def test_a_length_beyond_the_bound_is_refused_before_its_bytes_come():
    decoder = FrameDecoder()
    with pytest.raises(ControlChannelError, match="too long"):
        decoder.feed((MAX_FRAME_BYTES + 1).to_bytes(4, "big"))


def test_a_broken_channel_stays_broken():
    decoder = FrameDecoder()
    with pytest.raises(ControlChannelError):
        decoder.feed(b"\0\0\0\1x")
    with pytest.raises(ControlChannelError, match="broken"):
        decoder.feed(encode_frame({}))
    assert decoder.buffered_bytes == 0
