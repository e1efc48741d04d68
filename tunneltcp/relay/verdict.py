"""What becomes of a stream whose worker died: its record and the kernel's counters tell.

Theory of operation
-------------------
A worker stores what it did in the stream's record after each call on the socket, so the record
is at most one call behind. While a connection lives, the kernel's counters are the truth: how
much was read, how much was written. In state CLOSE the connection is over, and whether it ended
by two FINs or by a reset is told by the record and the counters together. What does not fit is
reset: a stream may end early, but never wrong. ``docs/decisions/0015`` has the reasons.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from tunneltcp.net.tcp_counters import TcpState
from tunneltcp.protocol.arena import ring_bytes
from tunneltcp.protocol.frames import MAX_OFFSET, MAX_PAYLOAD_BYTES
from tunneltcp.protocol.table import CONFIRMED, END_READ, ERROR_SEEN

if TYPE_CHECKING:
    from tunneltcp.net.tcp_counters import TcpCounters
    from tunneltcp.protocol.table import Record

__all__ = ["Fate", "Verdict", "judge"]

_PEER_FINISHED: Final = (TcpState.CLOSE_WAIT, TcpState.LAST_ACK, TcpState.CLOSING)
_WE_FINISHED: Final = (
    TcpState.FIN_WAIT1,
    TcpState.FIN_WAIT2,
    TcpState.CLOSING,
    TcpState.LAST_ACK,
)
_LIVING: Final = (TcpState.ESTABLISHED, *_PEER_FINISHED, *_WE_FINISHED)


class Fate(Enum):
    """What becomes of a stream."""

    GOES_ON = auto()
    RESET = auto()
    """Both ends are reset; what was read goes to the peer first, as far as it is known."""
    OVER = auto()
    """Its socket is closed already: it is forgotten."""
    CONNECT = auto()
    """Client: there was no connection to the target yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A fate, and where the stream goes on."""

    fate: Fate
    head: int = 0
    """Bytes read from the socket."""
    delivered: int = 0
    """Bytes written to it."""
    fin_delivered: bool = False
    """Whether the peer's FIN was passed on to it."""
    why: str = ""
    """For the log, where it is reset."""


def judge(record: Record, kernel: TcpCounters | None, *, connected: bool) -> Verdict:
    """Say what becomes of a stream.

    Args:
        record: What the dead worker stored.
        kernel: What the kernel says of its socket; None: there is no such socket.
        connected: Whether our side opened the connection (the client's does): its SYN counts
            as one byte written.
    """
    if record.flags & ERROR_SEEN:
        return _reset(record, "it had failed")
    if kernel is None and (record.cookie or not connected):
        return Verdict(fate=Fate.OVER)
    if kernel is None or (connected and _never_connected(kernel)):
        return _connect(record)
    if kernel.state == TcpState.CLOSE:
        return _judge_closed(record, kernel, int(connected))
    if kernel.state not in _LIVING:
        return _reset(record, f"its socket is in state {kernel.state}")
    fin_read = kernel.state in _PEER_FINISHED
    fin_sent = kernel.state in _WE_FINISHED
    return _go_on(
        record,
        head=kernel.received - kernel.unread - fin_read,
        delivered=kernel.acked + kernel.unacked - fin_sent - connected,
        fin_read=fin_read,
        fin_sent=fin_sent,
    )


def _never_connected(kernel: TcpCounters) -> bool:
    if kernel.state == TcpState.SYN_SENT:
        return True
    return kernel.state == TcpState.CLOSE and not (kernel.acked or kernel.received)


def _connect(record: Record) -> Verdict:
    """Nothing can have been read from, or written to, what was never connected."""
    if record.bytes_read or record.ring_word or record.fin_offset or record.flags & END_READ:
        return _reset(record, "it had no connection and yet moved bytes")
    return Verdict(fate=Fate.CONNECT)


def _judge_closed(record: Record, kernel: TcpCounters, syn: int) -> Verdict:
    """Two FINs, or a reset? Only if all counts right it was two FINs."""
    if kernel.error:
        return _reset(record, "its connection was reset")
    final = record.final_offset
    # The error is told only once, and a successor that died may have been told it: what tells
    # a reset as well is that not all was acknowledged.
    if final is None or kernel.unacked or kernel.acked != final + 1 + syn:
        return _reset(record, "its connection ended before ours had")
    read = kernel.received - kernel.unread
    if read <= record.bytes_read:
        return _reset(record, "its connection ended without a FIN")
    return _go_on(record, head=read - 1, delivered=final, fin_read=True, fin_sent=True)


def _go_on(
    record: Record, *, head: int, delivered: int, fin_read: bool, fin_sent: bool
) -> Verdict:
    why = _contradiction(record, head, delivered, fin_read=fin_read, fin_sent=fin_sent)
    if why:
        return _reset(record, why)
    return Verdict(fate=Fate.GOES_ON, head=head, delivered=delivered, fin_delivered=fin_sent)


def _contradiction(
    record: Record, head: int, delivered: int, *, fin_read: bool, fin_sent: bool
) -> str:
    """Say what of record and kernel does not fit together; empty if all does."""
    unrecorded = head - record.bytes_read
    room = ring_bytes(record.ring_word)
    is_known = record.flags & CONFIRMED
    impossible = {
        "its record and the kernel's counters differ": not 0 <= unrecorded <= MAX_PAYLOAD_BYTES
        or not 0 <= delivered <= MAX_OFFSET,
        "what was read lies nowhere": unrecorded > room,
        "it had been read to its end, and now there is more": record.flags & END_READ
        and (unrecorded or not fin_read),
        "it was finished, and nobody knows why": fin_sent and record.final_offset is None,
        "it was finished at another place": record.final_offset not in (None, delivered),
        "nobody answered its OPEN, and what was read is gone": not is_known and head > room,
    }
    return next((why for why, is_so in impossible.items() if is_so), "")


def _reset(record: Record, why: str) -> Verdict:
    return Verdict(fate=Fate.RESET, head=record.bytes_read, why=why)
