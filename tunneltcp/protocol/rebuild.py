"""A session in the hands of another worker: its streams, made again from their records.

Everything here happens before there is a link. A stream that goes on is as one whose link was
lost, with two differences: what the peer has (``acked``) is only known to be within a ring's
length of what was read, until its STATE says it; and what was sent counts as all that was read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunneltcp.protocol.errors import ResetCode
from tunneltcp.protocol.stream import Stream
from tunneltcp.protocol.table import (
    BYTES_READ,
    CONFIRMED,
    END_READ,
    ERROR_SEEN,
    FIN_OFFSET,
    FLAGS,
    RING_WORD,
)

if TYPE_CHECKING:
    from tunneltcp.protocol.arena import Ring
    from tunneltcp.protocol.session import Session
    from tunneltcp.protocol.table import Record

__all__ = ["rebuild_reset", "rebuild_stream"]


def rebuild_stream(
    session: Session,
    record: Record,
    ring: Ring | None,
    *,
    head: int,
    delivered: int,
    fin_delivered: bool,
    addresses: bytes,
) -> Stream | None:
    """Make a stream that goes on; None if there is no room for its window.

    ``head`` bytes were read from its socket, and what the peer does not have of them lies in
    ``ring``; ``delivered`` bytes were written to it, and the peer's FIN behind them if
    ``fin_delivered``. ``addresses`` is the payload of its OPEN, where this side opens and may
    have to do it again.
    """
    window = session.windows.inherit()
    if window is None:
        return None
    stream = _make(session, record, ring, head, delivered, window, addresses)
    stream.confirmed = bool(record.flags & CONFIRMED)
    if stream.confirmed:
        stream.addresses = b""
    if record.flags & END_READ:
        stream.fin_at = head
        stream.fin_sent = stream.has_end = True
    if fin_delivered:
        stream.peer_fin = delivered
        stream.fin_delivered = True
    else:
        stream.words[record.index + FIN_OFFSET] = 0
    session.streams[stream.id] = stream
    return stream


def rebuild_reset(session: Session, record: Record, ring: Ring | None) -> None:
    """Make a stream that was reset: the peer gets what was read, then RESET."""
    stream = _make(session, record, ring, record.bytes_read, 0, 0, b"")
    stream.words[record.index + FLAGS] |= ERROR_SEEN
    stream.reset_code = ResetCode.CANCELLED
    stream.has_end = True
    session.resets += 1
    session.resetting[stream.id] = stream


def _make(
    session: Session,
    record: Record,
    ring: Ring | None,
    head: int,
    delivered: int,
    window: int,
    addresses: bytes,
) -> Stream:
    stream = Stream(
        session,
        record.stream_id,
        record.index,
        limit=head,
        granted=delivered + window,
        window=window,
        addresses=addresses,
    )
    stream.head = stream.sent = head
    stream.acked = head if ring is None else max(0, head - ring.size)
    stream.ring = ring
    if ring is not None:
        stream.ring_bytes = ring.size
        stream.free_to = stream.acked + ring.size
    stream.received = stream.seen = delivered
    stream.credit_at = delivered + stream.credit_step
    stream.queued = True
    stream.words[record.index + BYTES_READ] = head
    stream.words[record.index + RING_WORD] = 0 if ring is None else ring.word
    return stream
