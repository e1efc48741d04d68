"""What a session has to say, in the order in which it is said.

Theory of operation
-------------------
What is to be sent waits in four places, served in this order: small frames (what a resumed
link begins with, PING, RESET answers, PONG), CREDIT (one per stream, made when it is written,
so it is always the latest), what was framed at once, as DATA of a packet or less is when it is
read, and OPEN and FIN if nobody waits in front of them, and streams that wait for their turn. A
stream sends at most one frame of DATA a turn; its OPEN goes before its first DATA, its FIN or
RESET behind the last.
What was handed out can't be overtaken any more, so no more is handed out at once than one
``sendmsg`` takes.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from tunneltcp.protocol.errors import RemoteProtocolError
from tunneltcp.protocol.frames import (
    CREDIT_FRAME,
    FIN_DELIVERED,
    HEADER,
    HEADER_BYTES,
    IS_RESET,
    MAX_PAYLOAD_BYTES,
    SIZE_SHIFT,
    TYPE_SHIFT,
    FrameType,
    encode_frame,
    pack_data_header,
)
from tunneltcp.protocol.stream import DISCARD

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tunneltcp.protocol.arena import Arena, Ring
    from tunneltcp.protocol.stream import Stream
    from tunneltcp.protocol.windows import Windows

__all__ = ["BATCH_BYTES", "MAX_ANSWERS", "MAX_BATCH_BUFFERS", "Sender"]

BATCH_BYTES: Final = 512 * 1024
"""Payload handed out at once, about what one ``sendmsg`` takes."""
MAX_BATCH_BUFFERS: Final = 1000
"""Buffers handed out at once; ``sendmsg`` takes at most 1,024 (IOV_MAX)."""
MODEST_BYTES: Final = 1400
"""About a packet. Who has no more does not wait in line; while the link is held back he does,
and goes first."""
MAX_ANSWERS: Final = 65_536
"""Small answers that may wait (about 6 MB): as many as a peer has streams at most."""


_OPEN_WORD: Final = FrameType.OPEN << TYPE_SHIFT
_CREDIT_TO_STATE: Final = (FrameType.STATE - FrameType.CREDIT) << TYPE_SHIFT


class Sender:
    """The queue in front of a link.

    Args:
        arena: Where rings go back to.
        windows: Who says when the window of a stream grows.
        starved: Who waits for a ring.
        feed_starved: Called when rings went back to the arena and somebody waits.
    """

    def __init__(
        self,
        arena: Arena,
        windows: Windows,
        starved: Mapping[Stream, None],
        feed_starved: Callable[[], None],
    ) -> None:
        self._arena = arena
        self._windows = windows
        self.is_attached = False
        """Whether there is a link; set by the session."""
        self._starved = starved
        self._feed_starved = feed_starved
        self.ready: deque[Stream] = deque()
        """Streams that have something to send, in their turn."""
        self.framed: list[bytes | memoryview] = []
        """Frames of streams that need not wait in line, which is twice the work. Each is two
        buffers; no more than a turn of the loop makes, as long as it ends with a batch."""
        self.small_bytes = 0
        """The most that is framed when it is read. Set by the driver: MODEST_BYTES if the next
        batch goes out at the end of this turn and has room for all, else 0."""
        self.retired: list[Ring] = []
        """Rings that buffers handed out may still point to."""
        self.is_unwritten = False
        """Whether something that was handed out may not be written yet; the driver takes this
        back once all of it is. A peer that lies may acknowledge just that."""
        self._credits: list[Stream] = []
        self._answers: list[bytes] = []
        self._pong: int | None = None
        self.has_small = False
        """Whether any of these waits: a small frame, a CREDIT, a ring to be given back."""
        self.room_bytes = BATCH_BYTES
        """How much the next batch may hold; small frames always go. Set by the driver."""
        self.frame_bytes = MAX_PAYLOAD_BYTES
        """The longest payload of DATA, so that nobody waits long for his turn. Set likewise."""
        self.batch_bytes = 0
        """Size of what :meth:`data_to_send` returned last."""

    @property
    def has_output(self) -> bool:
        """Whether :meth:`data_to_send` has something to return, or to give back."""
        return bool(self.ready or self.framed or self.has_small)

    def enqueue(self, stream: Stream) -> None:
        """Let the stream have its turn to send."""
        if not stream.queued:
            stream.queued = True
            self.ready.append(stream)

    def open(self, stream: Stream) -> None:
        """Send OPEN: at once, unless one with a lower id may wait in line."""
        payload = stream.addresses
        if self.small_bytes and not self.ready:
            word = _OPEN_WORD + (len(payload) << SIZE_SHIFT) + stream.id
            self.framed += (HEADER.pack(word, stream.granted), payload)
        else:
            stream.open_payload = payload
            self.enqueue(stream)

    def owe_credit(self, stream: Stream) -> None:
        """Send CREDIT for this stream with the next batch."""
        if not stream.credit_due:
            stream.credit_due = self.has_small = True
            self._credits.append(stream)

    def answer(self, frame: bytes) -> None:
        """Send a small frame that the peer made us send.

        Raises:
            RemoteProtocolError: If the peer makes us answer and does not read.
        """
        if len(self._answers) + len(self.framed) // 2 >= MAX_ANSWERS:
            raise RemoteProtocolError("the peer makes us answer and does not read")
        if self.framed:
            # Behind it: an answer to RESET says that no more DATA follows.
            self.framed += (frame[:HEADER_BYTES], frame[HEADER_BYTES:])
        else:
            self.say(frame)

    def greet(self, frames: list[bytes]) -> None:
        """Send these whole frames before all else: the link is new (1.6 MB at most)."""
        self.say(b"".join(frames))

    def retire(self, ring: Ring) -> None:
        """Give a ring back as soon as nothing that was handed out can point into it."""
        if self.is_unwritten or self.framed:
            self.retired.append(ring)
            self.has_small = True
        else:
            self._arena.give(ring)
            if self._starved:
                self._feed_starved()

    def say(self, frame: bytes) -> None:
        """Send a small frame of our own; those are few."""
        self._answers.append(frame)
        self.has_small = True

    def pong(self, value: int) -> bool:
        """Answer a PING; only the latest. Return whether an earlier one still waits."""
        waits = self._pong is not None
        self._pong = value
        self.has_small = True
        return waits

    def credit_now(self, stream: Stream) -> None:
        """Make the last CREDIT, which is due, of a stream that is about to be forgotten."""
        self.say(self._credit_frame(stream, stream.credit_word))
        if self._credits[-1] is stream:  # usually: it became due when the FIN was passed on
            self._credits.pop()
        else:
            self._credits.remove(stream)

    def clear(self) -> None:
        """The link is lost: nothing of this is sent any more."""
        self.ready.clear()
        self.framed = []
        self.small_bytes = 0
        self._credits.clear()
        self._answers.clear()
        self._pong = None
        self.is_unwritten = False
        self._free_retired()
        self.has_small = False

    def _free_retired(self) -> None:
        for ring in self.retired:
            self._arena.give(ring)
        self.retired.clear()
        if self._starved:
            self._feed_starved()

    def data_to_send(self) -> list[bytes | memoryview]:  # noqa: C901, PLR0912, PLR0915 - hot
        """Return the next buffers for the link, at most about ``room_bytes``.

        Everything returned by the call before must have been written by now.
        """
        out: list[bytes | memoryview] = []
        if self.has_small:
            self._append_small(out)
        if self.framed:
            if out or len(self.framed) > MAX_BATCH_BUFFERS:
                self._append_framed(out)
            else:
                out, self.framed = self.framed, out
        # What is left of the batch, 16 bytes of header for each frame included.
        left = room = self.room_bytes
        if out:
            left -= sum(map(len, out))
        # The hot path: no calls, no objects but the two buffers of each frame. Numbers are
        # added and multiplied, which is quicker than to shift and combine bits.
        ready = self.ready
        if room < BATCH_BYTES and len(ready) > 1:
            self._let_modest_first()
        longest = self.frame_bytes
        next_stream = ready.popleft
        while ready and left > 0 and len(out) < MAX_BATCH_BUFFERS:
            # All who wait, in their turn, as far as a batch has room for four buffers of each.
            turns = len(ready)
            if turns > 1:  # the bound of the loop above will do for one
                turns = min(turns, (MAX_BATCH_BUFFERS + 3 - len(out)) // 4)
            for _ in range(turns):
                stream = next_stream()
                if stream.open_payload is not None:
                    left -= self._append_open(stream, out)
                sent = stream.sent
                end = stream.head
                if end > stream.limit:
                    end = stream.limit
                if sent < end:
                    ring = stream.ring
                    assert ring is not None, "bytes that were read lie in a ring"
                    start = sent & ring.mask
                    size = end - sent
                    stop = start + size
                    if size > longest or stop > ring.size:
                        size = min(size, ring.size - start, longest)
                        stop = start + size
                    out.append(
                        pack_data_header(stream.data_word + size * 256, stream.id_word, sent)
                    )
                    out.append(ring.view[start:stop])
                    sent = stream.sent = sent + size
                    left -= size + 16
                if sent < end:
                    ready.append(stream)
                else:
                    stream.queued = False
                    if stream.has_end:
                        left -= self._append_end(stream, out)
                if left <= 0:
                    break
        self.batch_bytes = room - left
        self.is_unwritten = bool(out)
        return out

    def _let_modest_first(self) -> None:
        """A keystroke goes before the downloads; they keep half of the batch.

        Who is still to be opened stays in line: an id below one that the peer knows already
        would be an old one to it (PROTOCOL.md §7.1).
        """
        ready = self.ready
        share = self.room_bytes // 2
        modest, others = [], []
        for stream in ready:
            size = stream.head - stream.sent + HEADER_BYTES
            is_open = stream.open_payload is None
            if is_open and size <= MODEST_BYTES and size <= share:
                share -= size
                modest.append(stream)
            else:
                others.append(stream)
        if modest and others:
            ready.clear()
            ready.extend(modest)
            ready.extend(others)

    def state_frame(self, stream: Stream) -> bytes:
        """Return the STATE of a stream; it replaces a CREDIT that is due."""
        if stream.reset_code >= 0:
            # What was read in front of the RESET is still to be sent, and then the RESET.
            flags = FIN_DELIVERED if stream.fin_delivered else 0
            if stream.acked == stream.head:
                flags |= IS_RESET
            word = stream.credit_word + _CREDIT_TO_STATE
            return CREDIT_FRAME.pack(word, stream.delivered, stream.delivered, flags)
        return self._credit_frame(stream, stream.credit_word + _CREDIT_TO_STATE)

    def _credit_frame(self, stream: Stream, word: int) -> bytes:
        stream.credit_due = False
        delivered = stream.received - stream.waiting
        if delivered >= stream.grow_at:
            self._windows.note_used(stream, delivered)
        stream.credit_at = delivered + stream.credit_step
        if stream.owe_at:
            stream.owe_at = stream.credit_at
        limit = delivered + stream.window
        if stream.peer_fin < 0:
            stream.granted = limit
        flags = FIN_DELIVERED if stream.fin_delivered else 0
        return CREDIT_FRAME.pack(word, delivered, limit, flags)

    def _append_small(self, out: list[bytes | memoryview]) -> None:
        """What overtakes data: small frames, PONG, CREDIT; before that, give rings back."""
        if self.retired and not self.framed:
            self._free_retired()
        out += self._answers[: MAX_BATCH_BUFFERS - 1]
        del self._answers[: MAX_BATCH_BUFFERS - 1]
        if self._pong is not None:
            out.append(encode_frame(FrameType.PONG, 0, self._pong))
            self._pong = None
        room = max(0, MAX_BATCH_BUFFERS - len(out))
        for stream in self._credits[:room]:
            if stream.endpoint is not DISCARD:
                out.append(self._credit_frame(stream, stream.credit_word))
        del self._credits[:room]
        self.has_small = bool(self.retired or self._answers or self._credits)

    def _append_framed(self, out: list[bytes | memoryview]) -> None:
        """What was framed when it was read: whole frames. Is one left, nothing else fits in."""
        count = (MAX_BATCH_BUFFERS - len(out) + 1) // 2 * 2
        out += self.framed[:count]
        del self.framed[:count]

    def _append_open(self, stream: Stream, out: list[bytes | memoryview]) -> int:
        payload, stream.open_payload = stream.open_payload, None
        assert payload is not None, "the caller looked"
        out.append(encode_frame(FrameType.OPEN, stream.id, stream.granted, payload))
        return HEADER_BYTES + len(payload)

    def _append_end(self, stream: Stream, out: list[bytes | memoryview]) -> int:
        """FIN or RESET, behind all data that may go."""
        if stream.reset_code >= 0:
            if stream.reset_sent:
                return 0
            stream.reset_sent = True
            payload = stream.reset_code.to_bytes(2, "big")
            out.append(encode_frame(FrameType.RESET, stream.id, 0, payload))
            return HEADER_BYTES + 2
        if stream.fin_sent or stream.fin_at != stream.sent:
            return 0
        stream.fin_sent = True
        out.append(encode_frame(FrameType.FIN, stream.id, stream.fin_at))
        return HEADER_BYTES
