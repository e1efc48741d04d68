"""Frames that say nothing: how many a peer may send before its session is over.

Theory of operation
-------------------
A frame that changes nothing costs its sender 16 bytes and us some microseconds. An honest
peer sends a few, because its frames cross ours: for a stream that has just ended, or a PING
before the last one was answered. So they are counted, and what is useful earns more of them:
bytes that were carried, streams that were opened. There is no clock in it: a budget that
refills with time would be one that a patient peer lives on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tunneltcp.protocol.errors import RemoteProtocolError
from tunneltcp.protocol.frames import MAX_STREAMS
from tunneltcp.protocol.windows import FIRST_WINDOW_BYTES

if TYPE_CHECKING:
    from tunneltcp.protocol.session import Session

__all__ = ["FREE_GLITCHES", "Glitches"]

FREE_GLITCHES: Final = 1000
"""Useless frames that every link may bring: 5 milliseconds of work."""
GLITCHES_PER_STREAM: Final = 32
"""CREDIT that is on its way when its stream ends: one for each 20 ms of a long round trip, or
for each 64 KiB of a large window; and some."""
BYTES_PER_GLITCH: Final = 1024
"""Useful bytes that pay for one: then the useless part is no more than some percent."""


class Glitches:
    """Counts what the peer of one session sends for nothing, on one link."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._earned_before = 0
        self.refused = 0
        """Streams for which there was no room here, on all links."""
        self._refused: dict[int, int] = {}
        """Streams that we refused and the peer has not answered: bytes that may still come."""
        self.clear()

    def clear(self) -> None:
        """Another link begins: what was earned on the last one does not count on it."""
        self._earned_before += self._earned()
        self._allowed = FREE_GLITCHES
        self._count = self._pings = 0
        self._said_goaway = False
        self._refused.clear()

    def begin(self) -> None:
        """A link is there: each stream that it begins with counts as opened on it."""
        session = self._session
        here = len(session.streams) + len(session.resetting)
        self._earned_before -= GLITCHES_PER_STREAM * here

    def _earned(self) -> int:
        """How many more this link may bring, for what was of use on it."""
        useful_bytes = sum(self._session.count_bytes())
        streams = self._session.windows.dealt
        earned = useful_bytes // BYTES_PER_GLITCH + GLITCHES_PER_STREAM * streams
        return earned - self._earned_before

    def add(self) -> None:
        """A frame came that says nothing.

        Raises:
            RemoteProtocolError: They were too many.
        """
        self._count += 1
        if self._count <= self._allowed:
            return
        self._allowed = FREE_GLITCHES + self._earned()
        if self._count > self._allowed:
            raise RemoteProtocolError(f"{self._count} frames that say nothing")

    def add_late(self, stream_id: int, size: int) -> None:
        """DATA came for a stream that is over.

        Until the peer knows that we reset it, it may send as far as it was allowed to.
        """
        stream = self._session.resetting.get(stream_id)
        if stream is not None and stream.received + size <= stream.granted:
            stream.received += size
        elif size <= self._refused.get(stream_id, 0):
            self._refused[stream_id] -= size
        else:
            self.add()

    def note_refused(self, stream_id: int) -> None:
        """We refused a stream; what the peer sends before it hears of that is in good faith."""
        self.refused += 1
        self._earned_before -= GLITCHES_PER_STREAM
        if len(self._refused) < MAX_STREAMS:
            self._refused[stream_id] = FIRST_WINDOW_BYTES

    def add_answer(self, stream_id: int) -> None:
        """An answer to RESET came for a stream that is not there; one to a refusal is due."""
        if self._refused.pop(stream_id, None) is None:
            self.add()

    def note_ping(self) -> None:
        """We send a PING, which will be answered."""
        self._pings += 1

    def is_pong_awaited(self) -> bool:
        """Whether a PONG that came now can be the answer to a PING; else it is counted."""
        if self._pings:
            self._pings -= 1
            return True
        self.add()
        return False

    def is_first_goaway(self) -> bool:
        """Whether a GOAWAY that came now is the first on this link; else it is counted."""
        if self._said_goaway:
            self.add()
            return False
        self._said_goaway = True
        return True
