"""All streams of one tunnel: who is there, what each frame means, how much memory they get.

Theory of operation
-------------------
The driver of a link feeds what it received to :meth:`Session.receive`, which calls the
endpoints of the streams, and writes what :meth:`Session.data_to_send` returns: a list of
buffers for one ``sendmsg``, payloads straight from the rings. No event objects: a DATA frame
costs a look-up, two comparisons and the call of its endpoint. Time is the driver's: it
calls :meth:`sweep` every 20 ms while something is owed.

A session outlives its links, and one object serves a worker for life; links.py has how it
goes from one to the next. Streams may be opened, read, finished and reset at any time, also
without a link: the peer is told when there is one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from tunneltcp.protocol.arena import MIN_RING_BYTES
from tunneltcp.protocol.endpoint import DISCARD, Endpoint, take_nothing
from tunneltcp.protocol.errors import GoawayCode, RemoteProtocolError, ResetCode
from tunneltcp.protocol.frames import (
    FIN_DELIVERED,
    MAX_OFFSET,
    MAX_STREAMS,
    FrameType,
    check_open,
    encode_frame,
)
from tunneltcp.protocol.glitches import Glitches
from tunneltcp.protocol.links import Links
from tunneltcp.protocol.receiver import Receiver
from tunneltcp.protocol.sender import Sender
from tunneltcp.protocol.stream import Stream
from tunneltcp.protocol.table import ERROR_SEEN, FLAGS
from tunneltcp.protocol.windows import FIRST_WINDOW_BYTES, MIN_WINDOW_BYTES, Windows

if TYPE_CHECKING:
    from tunneltcp.protocol.arena import Arena
    from tunneltcp.protocol.table import StreamTable

__all__ = ["SWEEP_SECONDS", "Session", "SessionHandler"]

SWEEP_SECONDS: Final = 0.02
"""How long a stream is quiet before CREDIT says that all was delivered: long against the
pauses inside an answer, short against those between two."""


class SessionHandler(Protocol):
    """What the driver of a session wants to know."""

    def on_open(self, stream: Stream, addresses: bytes) -> Endpoint:
        """A visitor is there: return the endpoint of its stream (client only)."""

    def on_pong(self, value: int) -> None:
        """The answer to a PING came back."""

    def on_goaway(self, code: int) -> None:
        """The peer opens, or takes, no new streams."""

    def on_resumed(self, streams: int, again_bytes: int) -> None:
        """The peer has told how far it is: so many streams go on, so many bytes go again."""


class Session:
    """One end of a session; without a link at first.

    Args:
        opens: Whether this side opens the streams (the server does).
        max_streams: Streams at the same time; more are reset.
    """

    handler: SessionHandler
    """The driver of the link; who makes a new link sets it."""

    def __init__(
        self,
        handler: SessionHandler | None = None,
        *,
        opens: bool,
        arena: Arena,
        table: StreamTable,
        max_streams: int,
    ) -> None:
        # What HELLO granted cannot be taken back, so a client never gives less than that.
        least = MIN_WINDOW_BYTES if opens else FIRST_WINDOW_BYTES
        self.windows = Windows(arena.budget_bytes, max_streams, least)
        if handler is not None:
            self.handler = handler
        self.opens = opens
        self.first_limit = 0
        """What the peer's HELLO lets us send on a new stream; used by the side that opens."""
        self.arena = arena
        arena.set_aside_for(max_streams)
        self.table = table
        self.streams: dict[int, Stream] = {}
        self.resetting: dict[int, Stream] = {}
        """Streams that we reset and the peer has not answered yet."""
        self.last_id = 0
        """The highest id used (by us or by the peer, whoever opens)."""
        self._over_read = self._over_delivered = 0
        self.resets = 0
        self.starved: dict[Stream, None] = {}
        """Streams that wait for a ring because the budget is used up."""
        self.owing: list[Stream] = []
        self.goaway_frame: bytes | None = None
        """What a draining side says at the beginning of each link."""
        self.peer_leaves = False
        self.sender = Sender(arena, self.windows, self.starved, self.feed_starved)
        self.glitches = Glitches(self)
        self.receiver = Receiver(self)
        self.receive = self.receiver.receive
        """See :meth:`Receiver.receive`; on a resumed link another, until SYNC came."""
        self.data_to_send = self.sender.data_to_send
        """See :meth:`Sender.data_to_send`."""
        self.links = Links(self)
        self.begin = self.links.begin
        self.resume = self.links.resume
        self.detach = self.links.detach
        self.abandon = self.links.abandon
        self.abort_all = self.links.abort_all

    # ------------------------------------------------------------------ streams

    def open_stream(self, endpoint: Endpoint, cookie: int, addresses: bytes) -> Stream | None:
        """Open a stream for a visitor; None if there is no room for another.

        While there is no link, or the peer is leaving, OPEN waits. ``cookie`` is the kernel's
        name for the visitor's socket; ``addresses`` see :func:`~.frames.check_open`.
        """
        table = self.table
        is_full = len(self.streams) + len(self.resetting) >= table.capacity
        window = None if is_full else self.windows.take()
        if window is None:
            return None
        stream_id = table.next_stream_id()
        stream = Stream(
            self,
            stream_id,
            table.take(stream_id, cookie),
            limit=self.first_limit,
            granted=window,
            window=window,
            addresses=addresses,
        )
        stream.endpoint = endpoint
        self.last_id = stream_id
        self.streams[stream_id] = stream
        if self.sender.is_attached and not (self.peer_leaves or self.links.awaits_sync):
            self.sender.open(stream)
        else:
            stream.open_payload = addresses
            stream.queued = True
        return stream

    @property
    def is_attached(self) -> bool:
        """Whether there is a link."""
        return self.sender.is_attached

    def reset_stream(self, stream: Stream, code: ResetCode) -> None:
        """End a stream by RESET from our side; its endpoint is let go of, not called."""
        if self.streams.get(stream.id) is not stream:
            return
        self.resets += 1
        del self.streams[stream.id]
        self._part(stream)
        stream.words[stream.record + FLAGS] |= ERROR_SEEN
        stream.reset_code = code
        stream.has_end = True
        if stream.open_payload is not None:  # the peer has never heard of it
            stream.open_payload = None
            stream.silence()
            self.free(stream)
            return
        self.resetting[stream.id] = stream
        self.sender.enqueue(stream)

    def _part(self, stream: Stream) -> Endpoint:
        """Part a stream that is over from its endpoint; return that, to be told."""
        self.windows.give(stream.window)
        self.starved.pop(stream, None)
        self._over_read += stream.head
        self._over_delivered += stream.received - stream.waiting
        endpoint, stream.endpoint = stream.endpoint, DISCARD
        stream.send = take_nothing
        return endpoint

    def count_bytes(self) -> tuple[int, int]:
        """Return how much was ever read from endpoints, and how much they took."""
        streams = self.streams.values()
        read = sum(stream.head for stream in streams)
        delivered = sum(stream.delivered for stream in streams)
        return self._over_read + read, self._over_delivered + delivered

    def fail_stream(self, stream: Stream) -> None:
        """The peer said what cannot be true of this stream: it ends, the session goes on."""
        endpoint = stream.endpoint
        self.reset_stream(stream, ResetCode.STREAM_ERROR)
        endpoint.abort(ResetCode.STREAM_ERROR)

    def free(self, stream: Stream) -> None:
        """Give back what a stream holds: the record, and the ring once nothing is queued."""
        ring, stream.ring, stream.free_to = stream.ring, None, 0
        self.table.give(stream.record)
        stream.record = _SPARE_RECORD
        if ring is not None:
            self.sender.retire(ring)

    def forget_if_over(self, stream: Stream) -> None:
        """Forget the stream if both FINs were delivered and we know it of ours."""
        if stream.fin_delivered and stream.fin_acked and self.streams.get(stream.id) is stream:
            if stream.credit_due:
                self.sender.credit_now(stream)
            del self.streams[stream.id]
            self._part(stream).close()
            self.free(stream)

    def drop_stream(self, stream: Stream, code: int) -> None:
        """The stream is over, and there is nobody to tell it but its endpoint."""
        self.resets += 1
        del self.streams[stream.id]
        stream.open_payload = None
        endpoint = self._part(stream)
        stream.silence()
        endpoint.abort(code)
        self.free(stream)

    # ------------------------------------------------------------------ credit

    def sweep(self) -> None:
        """Send CREDIT for streams of which all was delivered and nothing more came.

        Every ``SWEEP_SECONDS`` while any is :attr:`owing`: the idle hold no ring over there.
        """
        still = []
        for stream in self.owing:
            if stream.endpoint is DISCARD:  # it is over
                continue
            delivered = stream.received - stream.waiting
            if delivered != stream.seen:
                stream.seen = delivered
                still.append(stream)
                continue
            stream.owe_at = 0
            if not stream.waiting and delivered != stream.reported:
                self.sender.owe_credit(stream)
        self.owing = still

    def owe(self, stream: Stream) -> None:
        """More was delivered: CREDIT is due, or will be when the stream is quiet."""
        if stream.received - stream.waiting >= stream.credit_at:
            self.sender.owe_credit(stream)
        elif not stream.owe_at and not stream.credit_due:  # a CREDIT that is due says this too
            stream.owe_at = stream.credit_at
            self.owing.append(stream)

    # ---------------------------------------------------------------- own frames

    def ping(self, value: int) -> None:
        """Send a PING; its PONG carries ``value`` back."""
        self.glitches.note_ping()
        self.sender.say(encode_frame(FrameType.PING, 0, value))

    def goaway(self, code: GoawayCode) -> None:
        """Tell the peer that no new streams are opened, or taken, any more."""
        frame = encode_frame(FrameType.GOAWAY, 0, self.last_id, code.to_bytes(2, "big"))
        if code == GoawayCode.DRAINING:
            self.goaway_frame = frame  # said again on each link that follows
        if self.is_attached:
            self.sender.say(frame)

    # ------------------------------------------------------- what the peer's frames mean

    def receive_open(self, stream_id: int, limit: int, payload: bytes) -> None:
        """OPEN: a visitor is there (client only)."""
        check_open(payload)
        if self.opens:
            raise RemoteProtocolError("the peer opened a stream; only a server does")
        if limit > MAX_OFFSET or stream_id == 0:
            raise RemoteProtocolError(f"OPEN with limit {limit} for stream {stream_id}")
        if stream_id <= self.last_id:
            self.glitches.add()
            return
        self.last_id = stream_id
        table, resetting = self.table, len(self.resetting)
        if len(self.streams) + resetting >= table.capacity or resetting >= MAX_STREAMS:
            raise RemoteProtocolError("the peer opens streams and does not take their RESETs")
        window = self.windows.take()
        if window is None:
            self.glitches.note_refused(stream_id)
            self._answer_reset(stream_id, ResetCode.OVER_LIMIT)
            self.resets += 1
            return
        record = table.take(stream_id, 0)
        stream = Stream(self, stream_id, record, limit=limit, granted=window, window=window)
        table.note_id(stream_id)
        self.streams[stream_id] = stream
        self.sender.owe_credit(stream)
        endpoint = self.handler.on_open(stream, payload)
        if self.streams.get(stream_id) is stream:
            stream.endpoint = endpoint

    def receive_credit(self, stream: Stream, delivered: int, limit: int, flags: int) -> None:
        """CREDIT: what the far socket took, and how far we may go."""
        fin_delivered = bool(flags & FIN_DELIVERED)
        if (
            delivered > stream.sent
            or limit > MAX_OFFSET
            or limit < delivered
            or (fin_delivered and not (stream.fin_sent and delivered == stream.fin_at))
        ):
            self.fail_stream(stream)
            return
        if not stream.confirmed:
            stream.confirm()
        elif delivered <= stream.acked and fin_delivered == stream.fin_acked:
            self.glitches.add()  # a limit that rises alone is believed, but not for ever
        if limit > stream.limit:
            stream.limit = limit
            if stream.sent < stream.head:
                self.sender.enqueue(stream)
        self.acknowledge(stream, delivered, fin_delivered=fin_delivered)

    def acknowledge(self, stream: Stream, delivered: int, *, fin_delivered: bool) -> None:
        """The far socket took this much of the stream: room for more, or no need of a ring."""
        if delivered > stream.acked:
            stream.acked = delivered
            ring = stream.ring
            if ring is not None and delivered == stream.head:
                stream.drop_ring()
                self.sender.retire(ring)
            elif ring is not None:
                stream.free_to = delivered + ring.size
        if fin_delivered:
            stream.fin_acked = True
            if stream.fin_delivered:
                self.forget_if_over(stream)
        elif stream.paused and stream.fin_at < 0:
            stream.paused = False
            stream.endpoint.resume_reading()

    def receive_fin(self, stream: Stream, final: int) -> None:
        """FIN: the peer has no more for this stream."""
        is_wrong = final != stream.received or stream.peer_fin not in (-1, final)
        if is_wrong or stream.open_payload is not None:  # or it only guessed the id
            self.fail_stream(stream)
        elif stream.peer_fin < 0:
            stream.peer_fin = final
            stream.granted = -1  # whatever still comes is unusual
            stream.endpoint.deliver_fin()
        else:
            self.glitches.add()

    def receive_reset(self, stream_id: int, code: int) -> None:
        """RESET: the stream is over, or the peer knows that it is."""
        if code == ResetCode.ANSWER:
            stream = self.resetting.get(stream_id)
            if stream is not None and stream.reset_sent:
                self.forget_reset(stream)
            else:
                self.glitches.add_answer(stream_id)
            return
        self._answer_reset(stream_id, ResetCode.ANSWER)
        stream = self.streams.get(stream_id)
        if stream is not None:
            self.drop_stream(stream, code)
        else:
            self.glitches.add()

    def forget_reset(self, stream: Stream) -> None:
        """The peer knows that we reset this stream, or has forgotten it."""
        del self.resetting[stream.id]
        self.free(stream)

    def receive_goaway(self, code: int) -> None:
        """GOAWAY: visitors that come from now on wait for the next session."""
        self.peer_leaves = True
        if self.glitches.is_first_goaway():
            self.handler.on_goaway(code)

    def _answer_reset(self, stream_id: int, code: ResetCode) -> None:
        payload = code.to_bytes(2, "big")
        self.sender.answer(encode_frame(FrameType.RESET, stream_id, 0, payload))

    def feed_starved(self) -> None:
        """Rings came back: as many who found none may read again, who came first first."""
        starved = self.starved
        room = self.arena.left_bytes // MIN_RING_BYTES
        while starved and room > 0:
            stream = next(iter(starved))
            del starved[stream]
            room -= 1
            stream.paused = False
            stream.endpoint.resume_reading()


_SPARE_RECORD: Final = 504
"""It belongs to nobody: a stream that is over stores there, so that none has to ask."""
