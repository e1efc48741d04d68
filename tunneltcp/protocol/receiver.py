"""Frames out of what a link delivers, and each one to where it belongs.

Theory of operation
-------------------
Bytes come in any pieces. DATA is handed on as it comes, also half a frame: what is left of
it is remembered as a number, never stored. All other frames are small and wait until they
are whole. The loop over DATA is written out in one place and allocates one memoryview a
frame; everything unusual leaves it.

A peer that breaks the rules raises RemoteProtocolError here, and the link is over; what
concerns one stream resets that stream alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tunneltcp.protocol.errors import RemoteProtocolError
from tunneltcp.protocol.frames import (
    CREDIT_PAYLOAD,
    HEADER_PARTS,
    MAX_PAYLOAD_BYTES,
    PAYLOAD_SIZES,
    FrameType,
)
from tunneltcp.protocol.stream import DISCARD
from tunneltcp.protocol.table import IN_HAND

if TYPE_CHECKING:
    from tunneltcp.protocol.session import Session
    from tunneltcp.protocol.stream import Stream

__all__ = ["Receiver"]

# Plain numbers: looking a member up in its class costs more than the comparison.
_OPEN: Final = int(FrameType.OPEN)
_DATA: Final = int(FrameType.DATA)
_FIN: Final = int(FrameType.FIN)
_RESET: Final = int(FrameType.RESET)
_CREDIT: Final = int(FrameType.CREDIT)
_SYNC: Final = int(FrameType.SYNC)
_STATE: Final = int(FrameType.STATE)


class Receiver:
    """Takes what the link of a session delivers."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._rest = 0
        self._rest_stream: Stream | None = None
        self._known = 0
        """Bytes at the front of the rest that came already."""

    def forget_rest(self) -> None:
        """The link is lost in the middle of a frame."""
        self._rest = self._known = 0
        self._rest_stream = None

    def receive(self, view: memoryview, end: int) -> int:  # noqa: C901, PLR0912, PLR0915 - hot
        """Take the first ``end`` bytes of ``view``; return how many were used up.

        What is left is the beginning of a frame (less than 64 bytes) and must stand in
        front of what comes next. DATA is handed on as it comes, also half a frame.

        Raises:
            RemoteProtocolError: The peer broke the protocol; the link is over.
        """
        pos = 0
        if self._rest:
            pos = self._receive_rest(view, end)
        unpack, unpack_credit = HEADER_PARTS.unpack_from, CREDIT_PAYLOAD.unpack_from
        find, sizes_of = self._session.streams.get, PAYLOAD_SIZES.get
        words = self._session.table.words
        last = end - 16
        # The hot path, written out: this is where a tunnel spends its own time. 0x20 is DATA
        # of less than 64 KiB; longer frames and ids above 2**32 take the other way.
        while pos <= last:
            kind, size, id_high, stream_id, value = unpack(view, pos)
            pos += 16
            stop = pos + size
            if kind == 0x20 and stop <= end and size and not id_high:
                stream = find(stream_id)
                if (
                    stream is not None
                    and value == stream.received
                    and (after := value + size) <= stream.granted
                ):
                    words[6] = stream_id  # IN_HAND
                    # Two steps: the interpreter is slow at calling what lies in a slot.
                    send = stream.send
                    try:
                        taken = send(view[pos:stop])
                    except OSError:
                        taken = 0  # the endpoint will find out
                    if taken != size:
                        taken += stream.endpoint.deliver(view[pos + taken : stop])
                        stream.waiting += size - taken
                    stream.received = after
                    pos = stop
                    if after >= stream.owe_at:
                        self._session.owe(stream)
                    continue
            size |= (kind & 0xF) << 16
            stream_id |= id_high << 32
            stop = pos + size
            kind >>= 4
            if kind == _DATA:
                stop = min(stop, end)
                self._receive_unusual(stream_id, value, size, view[pos:stop])
                pos = stop
                continue
            if size not in sizes_of(kind, ()):
                raise RemoteProtocolError(f"a frame of type {kind}, {size} bytes")
            if stop > end:
                return pos - 16
            words[6] = stream_id
            stream = find(stream_id)
            # Each visitor has some of these three, and few have another.
            if stream is not None and kind == _CREDIT:
                limit, flags = unpack_credit(view, pos)
                self._session.receive_credit(stream, value, limit, flags)
            elif stream is not None and kind == _FIN:
                self._session.receive_fin(stream, value)
            elif kind == _OPEN:
                self._session.receive_open(stream_id, value, bytes(view[pos:stop]))
            else:
                self._receive_control(kind, stream_id, value, bytes(view[pos:stop]))
            pos = stop
        return pos

    def _receive_rest(self, view: memoryview, end: int) -> int:
        """Go on with a DATA frame of which only the beginning had come."""
        part = min(self._rest, end)
        self._rest -= part
        if self._rest_stream is not None:
            self._rest_stream.take_in_hand()
            self._deliver(self._rest_stream, view[:part])
        return part

    def _deliver(self, stream: Stream, data: memoryview) -> None:
        """Hand on the next bytes of a stream, as the hot path does."""
        if self._known > 0:
            known = min(self._known, len(data))
            self._known -= known
            data = data[known:]
        if stream.endpoint is DISCARD or not data:
            return
        taken = stream.endpoint.deliver(data)
        stream.received += len(data)
        stream.waiting += len(data) - taken
        if taken:
            self._session.owe(stream)

    def _receive_unusual(
        self, stream_id: int, offset: int, size: int, data: memoryview
    ) -> None:
        """DATA of which only a part has come, or that is not the next piece of its stream."""
        if not 0 < size <= MAX_PAYLOAD_BYTES:
            raise RemoteProtocolError(f"DATA of {size} bytes")
        self._session.table.words[IN_HAND] = stream_id
        stream = self._session.streams.get(stream_id)
        if stream is None:
            self._check_known(stream_id)
            self._session.glitches.add_late(stream_id, size)
        elif not _may_come(stream, offset, offset + size):
            self._session.fail_stream(stream)
            stream = None
        self._known = stream.received - offset if stream is not None else 0
        self._rest = size - len(data)
        self._rest_stream = stream
        if stream is not None:
            self._deliver(stream, data)

    def _check_known(self, stream_id: int) -> None:
        """Frames for a stream that is over are ignored; for one that never was, an error."""
        if stream_id > self._session.last_id or stream_id == 0:
            raise RemoteProtocolError(f"stream {stream_id} was never opened")

    def _receive_control(
        self, frame_type: int, stream_id: int, value: int, payload: bytes
    ) -> None:
        session = self._session
        if frame_type in (_CREDIT, _FIN):  # of a stream that is over
            self._check_known(stream_id)
            session.glitches.add()
        elif frame_type == _RESET:
            self._check_known(stream_id)
            session.receive_reset(stream_id, int.from_bytes(payload, "big"))
        elif frame_type == _STATE:
            limit = int.from_bytes(payload[:8], "big")
            session.links.receive_state(stream_id, value, limit, payload[8])
        elif frame_type == _SYNC:
            raise RemoteProtocolError("SYNC that is not the first frame of a resumed link")
        elif stream_id:
            raise RemoteProtocolError(f"{FrameType(frame_type).name} names a stream")
        else:
            self._receive_for_session(frame_type, value, payload)

    def _receive_for_session(self, frame_type: int, value: int, payload: bytes) -> None:
        session = self._session
        if frame_type == FrameType.PING:
            if session.sender.pong(value):
                session.glitches.add()  # before the last one was answered
        elif frame_type == FrameType.PONG:
            if session.glitches.is_pong_awaited():
                session.handler.on_pong(value)
        else:
            session.receive_goaway(int.from_bytes(payload, "big"))


def _may_come(stream: Stream, offset: int, end: int) -> bool:
    """Whether DATA fits: the next bytes, or after a resume such as came already, no gap."""
    received = stream.received
    is_next = offset == received or offset < min(received, stream.repeats_to)
    return is_next and end <= max(stream.granted, received)
