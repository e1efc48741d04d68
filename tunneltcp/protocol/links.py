"""How a session goes from one link to the next, and both ends agree on where they were.

Theory of operation
-------------------
A link that died ends with ``detach``, a new one begins with ``begin`` (its peer knows nothing
of us: a new session) or with ``resume``. On a resumed link each side first says SYNC (the
highest stream id it has used or taken) and a STATE for every stream it has not forgotten: what
was delivered here, how far the peer may go, whether the peer's FIN was delivered. All that is
written once, at ``resume``; a stream then sends again from what the peer's STATE says, and not
before that has come. So nothing of a stream overtakes its STATE, and nobody waits for anybody:
streams that are told of already go on while others are still to come.

What the peer does not list is judged when its last STATE is through::

    id above what the client took          it never came: OPEN again
    its FIN was delivered here, ours sent  it has finished there: finished here too
    we had reset it                        nobody is left to be told
    otherwise                              it was reset there: reset here too

``docs/decisions/0008`` says why it must be these rules and no simpler ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tunneltcp.protocol.errors import RemoteProtocolError, ResetCode
from tunneltcp.protocol.frames import (
    FIN_DELIVERED,
    IS_RESET,
    MAX_OFFSET,
    MAX_STREAMS,
    SIZE_SHIFT,
    SYNC_FRAME,
    TYPE_SHIFT,
    FrameType,
)

if TYPE_CHECKING:
    from tunneltcp.protocol.session import Session
    from tunneltcp.protocol.stream import Stream

__all__ = ["Links"]

_SYNC_WORD: Final = FrameType.SYNC << TYPE_SHIFT | 4 << SIZE_SHIFT
_SYNC_HEAD: Final = _SYNC_WORD.to_bytes(8, "big")


class Links:
    """The links of one session, one after the other."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.awaits_sync = False
        """Whether the peer's SYNC is still to come."""
        self._states_left = 0
        self._untold: dict[int, Stream] = {}
        """Streams of which the peer is to tell how far it is."""
        self._resumed = 0
        self._again_bytes = 0

    @property
    def is_settled(self) -> bool:
        """Whether the peer has told all."""
        return not self.awaits_sync and not self._states_left

    # ------------------------------------------------------------- the driver calls

    def begin(self, first_limit: int = 0) -> None:
        """A link is there, and its peer knows nothing of us: this is a new session.

        What the last peer knew is reset. Visitors that it never answered are opened anew.

        Args:
            first_limit: What HELLO lets us send on a new stream; for the side that opens.
        """
        session = self._session
        self.detach()
        self.abandon(ResetCode.CANCELLED)
        session.peer_leaves = False
        session.last_id = 0
        if not session.opens:
            session.table.note_id(0)
        session.receive = session.receiver.receive
        self._attach(first_limit)
        for stream in session.streams.values():
            session.last_id = stream.id
            self._open_again(stream)

    def resume(self, first_limit: int = 0) -> None:
        """A link is there, and its peer is that of the one before: both go on."""
        session = self._session
        self.detach()
        self._untold = {**session.streams, **session.resetting}
        self.awaits_sync = True
        self._resumed = self._again_bytes = 0
        session.receive = self._receive_sync
        states = [session.sender.state_frame(stream) for stream in self._untold.values()]
        sync = SYNC_FRAME.pack(_SYNC_WORD, session.last_id, len(states))
        session.sender.greet([sync, *states])
        for stream in session.streams.values():
            stream.repeats_to = stream.received
        self._attach(first_limit)

    def _attach(self, first_limit: int) -> None:
        session = self._session
        session.first_limit = first_limit
        session.sender.is_attached = True
        if session.goaway_frame is not None:
            session.sender.say(session.goaway_frame)
        session.glitches.begin()

    def detach(self) -> None:
        """The link is lost; all streams live on. Nothing that was handed out is in use."""
        session = self._session
        session.sender.is_attached = False
        for stream in (*session.streams.values(), *session.resetting.values()):
            stream.detach()
        session.owing.clear()
        session.receiver.forget_rest()
        session.sender.clear()
        session.glitches.clear()
        self._untold = {}
        self.awaits_sync = False
        self._states_left = 0

    def abandon(self, code: ResetCode) -> None:
        """Without a link: the peer will not come back. Reset all that it knew of."""
        session = self._session
        for stream in list(session.streams.values()):
            if stream.is_known or not session.opens:
                session.drop_stream(stream, code)
            else:  # nobody has to be told of its end before it is opened again
                stream.open_payload = stream.addresses
        for stream in list(session.resetting.values()):
            session.forget_reset(stream)

    def abort_all(self, code: ResetCode) -> None:
        """This side is over: reset every endpoint, free everything."""
        self.detach()
        self.abandon(code)
        for stream in list(self._session.streams.values()):
            self._session.drop_stream(stream, code)
        self._session.starved.clear()

    def _open_again(self, stream: Stream) -> None:
        """The peer does not know this stream: OPEN it, and begin with its first byte."""
        stream.rewind(0, self._session.first_limit)
        stream.fin_sent = False
        stream.granted = stream.window  # a FIN that was dropped may have taken it
        stream.open_payload = stream.addresses
        self._session.sender.enqueue(stream)

    # ------------------------------------------------------- what the peer tells

    def _receive_sync(self, view: memoryview, end: int) -> int:
        """Take the first frame of a resumed link: it must be SYNC."""
        seen = min(end, len(_SYNC_HEAD))
        if view[:seen] != _SYNC_HEAD[:seen]:
            raise RemoteProtocolError("a resumed link that does not begin with SYNC")
        if end < SYNC_FRAME.size:
            return 0
        _, last_id, count = SYNC_FRAME.unpack_from(view)
        session = self._session
        session.receive = session.receiver.receive
        self._take_sync(last_id, count)
        return SYNC_FRAME.size + session.receive(view[SYNC_FRAME.size :], end - SYNC_FRAME.size)

    def _take_sync(self, last_id: int, count: int) -> None:
        session = self._session
        # A client has taken no more than was opened; a server has opened what was taken.
        wrong = last_id > session.last_id if session.opens else last_id < session.last_id
        if wrong or count > MAX_STREAMS:
            raise RemoteProtocolError(f"SYNC with id {last_id} and {count} streams")
        self.awaits_sync = False
        self._states_left = count
        if session.opens:
            for stream in [s for s in session.streams.values() if s.id > last_id]:
                self._open_unheard(stream)
        if not count:
            self._judge_unlisted()

    def _open_unheard(self, stream: Stream) -> None:
        """The client says that it never took this OPEN."""
        self._untold.pop(stream.id, None)
        if stream.is_known:
            stream.queued = False
            self._session.fail_stream(stream)
        elif not self._session.peer_leaves:
            self._open_again(stream)

    def receive_state(self, stream_id: int, delivered: int, limit: int, flags: int) -> None:
        """STATE: how far a stream is on the other side.

        Raises:
            RemoteProtocolError: SYNC did not announce it.
        """
        if not self._states_left:
            raise RemoteProtocolError("a STATE that no SYNC announced")
        self._states_left -= 1
        session = self._session
        stream = self._untold.pop(stream_id, None)
        if stream is None:
            pass  # forgotten here, or of no interest
        elif session.resetting.get(stream_id) is stream:
            self._reset_again(stream, delivered, limit)
        elif session.streams.get(stream_id) is stream:
            if flags & IS_RESET:
                session.receive_reset(stream_id, ResetCode.CANCELLED)
            else:
                self._go_on(stream, delivered, limit, fin_delivered=bool(flags & FIN_DELIVERED))
        if not self._states_left:
            self._judge_unlisted()

    def _go_on(
        self, stream: Stream, delivered: int, limit: int, *, fin_delivered: bool
    ) -> None:
        session = self._session
        if not (limit or delivered):
            # Reset there, and its worker died: how much it had delivered nobody knows. What it
            # had read is still to come, and then its RESET; nothing more is sent to it.
            delivered = limit = stream.acked
            fin_delivered = stream.fin_acked
        if (
            not _is_possible(stream, delivered, limit)
            or stream.open_payload is not None
            or (fin_delivered and not (stream.fin_sent and delivered == stream.fin_at))
            or (stream.fin_acked and not fin_delivered)
        ):
            stream.queued = False
            session.fail_stream(stream)
            return
        self._resumed += 1
        self._again_bytes += stream.rewind(delivered, limit)
        stream.confirm()
        stream.fin_sent = fin_delivered
        if stream.sent < stream.head or (stream.fin_at >= 0 and not fin_delivered):
            session.sender.enqueue(stream)
        session.acknowledge(stream, delivered, fin_delivered=fin_delivered)

    def _reset_again(self, stream: Stream, delivered: int, limit: int) -> None:
        """The peer does not know of our RESET, or has not answered it."""
        if _is_possible(stream, delivered, limit):
            stream.rewind(delivered, limit)
        else:
            stream.rewind(stream.head, stream.head)
        stream.reset_sent = False
        self._session.sender.enqueue(stream)

    def _judge_unlisted(self) -> None:
        """The peer has told all: what it did not list is over there."""
        session = self._session
        untold, self._untold = self._untold, {}
        for stream in untold.values():
            if session.resetting.get(stream.id) is stream:
                session.forget_reset(stream)
            elif session.streams.get(stream.id) is not stream:
                pass  # over since the link began
            elif stream.fin_delivered and stream.fin_sent:
                stream.fin_acked = True
                session.forget_if_over(stream)
            else:
                session.drop_stream(stream, ResetCode.CANCELLED)
        session.handler.on_resumed(self._resumed, self._again_bytes)


def _is_possible(stream: Stream, delivered: int, limit: int) -> bool:
    """Whether a peer can have delivered so much, and can allow so much."""
    return stream.acked <= delivered <= min(stream.sent, limit) and limit <= MAX_OFFSET
