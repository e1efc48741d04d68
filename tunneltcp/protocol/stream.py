"""One stream: a visitor's bytes in both directions, inside a session.

Theory of operation
-------------------
A stream has two halves that share nothing. The *sending* half reads from its endpoint's
socket into a ring and frames from there; bytes stay in the ring until the peer says that
they were delivered::

      0 ........ acked ........ sent ........ head
                 |<- ring: kept for the peer ->|         sent <= limit, head <= acked + ring

The *receiving* half hands what comes to the endpoint and counts what its socket took;
whatever was granted and not delivered is bounded by the window::

      0 ........ delivered ........ received ........ granted
                 |<- in the endpoint ->|<- may come ->|      granted = reported + window

All numbers are absolute offsets in their direction. A stream ends when both FINs were
delivered and both sides know it, or by RESET; the session forgets it then, never earlier.

A stream outlives its link. What was sent and not delivered is still in the ring; what came
and was not delivered is dropped, since the peer still has it. While there is no link, and
until the peer has told how far it is, ``queued`` keeps the stream out of the line of those
that send; its socket is read on, until the ring is full.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from tunneltcp.protocol.arena import MAX_RING_BYTES
from tunneltcp.protocol.endpoint import DISCARD, Endpoint, take_nothing
from tunneltcp.protocol.frames import SIZE_SHIFT, FrameType, pack_data_header
from tunneltcp.protocol.table import (
    BYTES_READ,
    CONFIRMED,
    COOKIE,
    END_READ,
    ERROR_SEEN,
    FIN_OFFSET,
    FLAGS,
    IN_HAND,
    RING_WORD,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunneltcp.protocol.arena import Ring
    from tunneltcp.protocol.errors import ResetCode
    from tunneltcp.protocol.session import Session

__all__ = ["DISCARD", "Endpoint", "Stream"]

MAX_UNREPORTED_BYTES: Final = 64 * 1024
"""CREDIT goes out at the latest when so much was delivered (PROTOCOL.md §7.5)."""

FIRST_RING_BYTES: Final = MAX_UNREPORTED_BYTES
"""Bytes of a stream's first ring: as much as a receiver may leave unreported, so a sender
never waits for a CREDIT that is not due yet."""
FIRST_LOOK_BYTES: Final = 16 * 1024
"""Where it is begun to watch whether the window holds the stream back; most end earlier."""

_FIN_WORD: Final = FrameType.FIN << 60
_pack_word: Final = struct.Struct("!Q").pack
_DATA_WORD: Final = FrameType.DATA << 28
_CREDIT_WORD: Final = FrameType.CREDIT << 60 | 9 << SIZE_SHIFT


class Stream:
    """One visitor's two-way byte flow, seen from one side."""

    __slots__ = (
        "acked",
        "addresses",
        "confirmed",
        "credit_at",
        "credit_due",
        "credit_step",
        "credit_word",
        "data_word",
        "endpoint",
        "fin_acked",
        "fin_at",
        "fin_delivered",
        "fin_sent",
        "free_to",
        "granted",
        "grow_at",
        "has_end",
        "head",
        "id",
        "id_word",
        "limit",
        "open_payload",
        "owe_at",
        "paused",
        "peer_fin",
        "queued",
        "read_word",
        "received",
        "record",
        "repeats_to",
        "reset_code",
        "reset_sent",
        "ring",
        "ring_bytes",
        "seen",
        "send",
        "sender",
        "sent",
        "session",
        "waiting",
        "window",
        "window_since",
        "words",
    )

    def __init__(
        self,
        session: Session,
        stream_id: int,
        record: int,
        *,
        limit: int,
        granted: int,
        window: int,
        addresses: bytes = b"",
    ) -> None:
        self.session = session
        self.id = stream_id
        self.sender = session.sender
        self.words = session.table.words
        self.record = record
        self.read_word = record + BYTES_READ
        self.endpoint = DISCARD
        self.send: Callable[[memoryview], int] = take_nothing
        """The endpoint's short cut, set by it: tried first with whatever comes. What it
        does not take, or fails to with an OSError, is delivered to the endpoint."""
        # Headers of DATA are packed as 32-bit words: smaller numbers, less work.
        self.data_word = _DATA_WORD | stream_id >> 32
        self.id_word = stream_id & 0xFFFFFFFF
        self.credit_word = _CREDIT_WORD | stream_id
        self.addresses = addresses
        """The payload of OPEN, until the peer has answered; empty on the other side."""
        self.open_payload: bytes | None = None
        """What OPEN will carry; None once it is out."""
        self.queued = False
        """Waits for its turn to send; or may not send at all now, and is in no line."""
        # The sending half.
        self.head = self.sent = self.acked = 0
        self.limit = limit
        self.ring: Ring | None = None
        self.free_to = 0
        """Where the ring is full: ``acked`` + its size; 0 while there is none."""
        self.ring_bytes = FIRST_RING_BYTES
        self.paused = False
        self.fin_at = -1
        self.has_end = False
        """FIN or RESET goes, or went, behind what was read."""
        self.fin_sent = self.fin_acked = False
        # The receiving half.
        self.received = self.seen = 0
        self.waiting = 0
        """How much of that the endpoint still keeps."""
        self.granted = granted
        self.window = window
        self.grow_at = FIRST_LOOK_BYTES
        """When this much is delivered, the window was used up once since ``window_since``."""
        self.window_since = -1e9
        self.credit_at = self.credit_step = min(window // 4, MAX_UNREPORTED_BYTES)
        """CREDIT is due when this much was delivered."""
        self.credit_due = False
        self.owe_at = 0
        """Where the session wants to know that more was delivered: ``credit_at`` while it has
        noted that this stream owes one, else 0."""
        self.peer_fin = -1
        self.fin_delivered = False
        self.confirmed = False
        """The peer has answered our OPEN."""
        self.repeats_to = 0
        """Bytes before this offset may come again on a resumed link; they are dropped."""
        self.reset_code = -1
        self.reset_sent = False

    def __repr__(self) -> str:
        return (
            f"<Stream {self.id} acked={self.acked} sent={self.sent} head={self.head}"
            f" limit={self.limit} delivered={self.delivered} received={self.received}"
            f" granted={self.granted} fin={self.fin_at} peer_fin={self.peer_fin}"
            f" reset={self.reset_code}>"
        )

    def set_window(self, window: int) -> None:
        """The next CREDIT grants so many bytes beyond what was delivered."""
        self.window = window
        self.credit_step = min(window // 4, MAX_UNREPORTED_BYTES)

    @property
    def delivered(self) -> int:
        """How much of what came the endpoint took; usually all, so the rest is counted."""
        return self.received - self.waiting

    @property
    def reported(self) -> int:
        """What the last CREDIT said was delivered."""
        return self.credit_at - self.credit_step

    # ---------------------------------------------------------- the endpoint reads

    def fill(self, receive_into: Callable[[memoryview], int]) -> int:
        """Receive into the ring: one call of ``receive_into`` with the room there is.

        Returns what it returned (0: the end of input), or -1 if there is no room, in the
        ring or in the tunnel's memory: stop reading until :meth:`Endpoint.resume_reading`.
        Whatever ``receive_into`` raises is passed on. At most ``MAX_PAYLOAD_BYTES``.
        """
        self.words[6] = self.id  # IN_HAND
        head = self.head
        room = self.free_to - head
        if room <= 0:
            if not (self._grow(self.ring) if self.ring else self._first_ring()):
                self.paused = True
                return -1
            room = self.free_to - head
        if room > 262144:  # MAX_PAYLOAD_BYTES
            room = 262144
        ring = self.ring
        assert ring is not None, "it has room"
        start = head & ring.mask
        view = ring.view[start : start + room]  # to the end of the ring, if that is earlier
        try:
            count = receive_into(view)
        except OSError:
            self._release_if_empty()
            raise
        if count:
            self.words[self.read_word] = self.head = end = head + count
            if not self.queued:
                sender = self.sender
                if count <= sender.small_bytes and end <= self.limit:
                    framed = sender.framed
                    word = self.data_word + count * 256
                    framed.append(pack_data_header(word, self.id_word, head))
                    framed.append(view[:count])
                    self.sent = end
                else:
                    self.queued = True
                    sender.ready.append(self)
        else:
            self._release_if_empty()
        return count

    def finish(self) -> None:
        """The endpoint's socket has no more to read: send FIN behind what was read."""
        self.fin_at = final = self.head
        self.has_end = True
        self.words[self.record + FLAGS] |= END_READ
        sender = self.sender
        if sender.small_bytes and not self.queued and self.sent == final:
            self.fin_sent = True
            sender.framed += (_pack_word(_FIN_WORD | self.id), _pack_word(final))
        else:
            sender.enqueue(self)

    def reset(self, code: ResetCode) -> None:
        """The endpoint's socket failed, and is let go of: send what may go, then RESET."""
        self.words[self.record + FLAGS] |= ERROR_SEEN
        self.session.reset_stream(self, code)

    def record_error(self) -> None:
        """Store that the socket failed: asked again, the kernel would not say so."""
        self.words[self.record + FLAGS] |= ERROR_SEEN

    def silence(self) -> None:
        """The stream is over for the peer, or never was: nothing of it is to be sent."""
        self.sent = self.limit = self.head
        self.fin_at = self.reset_code = -1
        self.has_end = False

    def confirm(self) -> None:
        """The peer knows the stream: OPEN will not be sent again."""
        self.confirmed = True
        self.addresses = b""
        self.words[self.record + FLAGS] |= CONFIRMED

    @property
    def is_known(self) -> bool:
        """Whether the peer has shown that it knows this stream."""
        return self.confirmed or self.received > 0 or self.peer_fin >= 0

    def store_cookie(self, cookie: int) -> None:
        """Store the kernel's name for the socket that this stream has now."""
        self.words[self.record + COOKIE] = cookie

    # -------------------------------------------------------- the session outlives a link

    def detach(self) -> None:
        """The link is lost: send nothing, and drop what came and was not delivered."""
        self.queued = True
        self.credit_due = False
        self.owe_at = 0
        if self.waiting or (self.peer_fin >= 0 and not self.fin_delivered):
            self.endpoint.drop_waiting()
            self.received -= self.waiting
            self.waiting = 0
            self.peer_fin = -1

    def rewind(self, delivered: int, limit: int) -> int:
        """Go on sending behind what the peer has; return how many bytes go out again."""
        again = self.sent - delivered
        self.queued = False
        self.sent = delivered
        self.limit = limit
        return again

    # ------------------------------------------------------- the endpoint delivers

    def delivered_more(self, count: int) -> None:
        """The socket took ``count`` more bytes of what :meth:`Endpoint.deliver` kept."""
        self.waiting -= count
        self.session.owe(self)

    def take_in_hand(self) -> None:
        """Store that this stream is about to be handled, otherwise than by :meth:`fill`."""
        self.words[IN_HAND] = self.id

    def record_fin(self) -> None:
        """Store that the peer's FIN is about to be relayed; call it before ``shutdown``."""
        self.words[self.record + FIN_OFFSET] = self.peer_fin + 1

    def fin_done(self) -> None:
        """The peer's FIN was passed on to the socket, behind all bytes."""
        self.fin_delivered = True
        self.sender.owe_credit(self)
        if self.fin_acked:
            self.session.forget_if_over(self)

    # -------------------------------------------------------------- memory

    def _first_ring(self) -> Ring | None:
        """Take a ring, as large as the last one if memory is plenty."""
        arena = self.session.arena
        ring = None
        if arena.used_bytes * 2 < arena.budget_bytes and arena.has_room_for(self.ring_bytes):
            ring = arena.take(self.ring_bytes)
        if ring is None:
            ring = arena.take(1)
        if ring is None:
            self.session.starved[self] = None
            return None
        self.ring = ring
        self.free_to = self.acked + ring.size
        self.words[self.record + RING_WORD] = ring.word
        return ring

    def _grow(self, ring: Ring) -> Ring | None:
        """Move on to a ring of twice the size, if the peer's limit can use it."""
        arena = self.session.arena
        size = ring.size * 2
        if self.limit - self.acked <= ring.size or size > MAX_RING_BYTES:
            return None
        if arena.used_bytes * 2 >= arena.budget_bytes and size * 4 > arena.left_bytes:
            return None
        if not arena.has_room_for(size):
            return None
        larger = arena.take(size)
        if larger is None:
            return None
        offset, head = self.acked, self.head
        while offset < head:
            source, target = offset & ring.mask, offset & larger.mask
            count = min(head - offset, ring.size - source)
            larger.view[target : target + count] = ring.view[source : source + count]
            offset += count
        self.words[self.record + RING_WORD] = larger.word
        self.ring = larger
        self.ring_bytes = size
        self.free_to = self.acked + size
        self.session.sender.retire(ring)
        return larger

    def _release_if_empty(self) -> None:
        """Nothing was read into a fresh ring: an idle stream holds none."""
        ring = self.ring
        if self.head == self.acked and ring is not None:
            self.drop_ring()
            session = self.session
            session.arena.give(ring)
            if session.starved:
                session.feed_starved()

    def drop_ring(self) -> None:
        """All that was read was delivered, or nothing was read: it holds no ring."""
        self.words[self.record + RING_WORD] = 0
        self.ring = None
        self.free_to = 0
