"""When to send a PING, and when silence means that a link is to be doubted.

Any byte received is a sign of life. A link that carries streams is asked after one second
of silence, an idle one after ``idle_ping``; a PING that nothing at all answered for two
seconds makes the link doubted. The caller looks at the socket once more before it believes
that (PROTOCOL.md §8): a busy loop is not a dead link.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

__all__ = ["BUSY_PING_SECONDS", "DOUBT_SECONDS", "Liveness", "Verdict"]

BUSY_PING_SECONDS: Final = 1.0
"""Silence on a link that carries streams, after which a PING goes out."""
_MOMENT_SECONDS: Final = 0.1 * BUSY_PING_SECONDS
DOUBT_SECONDS: Final = 2.0
"""Time without a single byte after a PING, after which a link is doubted: twice the longest
round trip that is met in practice (800 ms over a satellite), and some."""


class Verdict(Enum):
    """What is to be done about a link."""

    NOTHING = "nothing"
    PING = "ping"
    DOUBT = "doubt"


class Liveness:
    """The life signs of one link; ``now`` is any clock that only goes forward, seconds."""

    __slots__ = ("_asked", "_idle_ping", "doubted", "heard")

    def __init__(self, idle_ping_seconds: float, now: float) -> None:
        self._idle_ping = idle_ping_seconds
        self.heard = now
        """When the last byte came."""
        self._asked: float | None = None
        self.doubted = False

    def hear(self, now: float) -> bool:
        """Bytes came; return True if that ends a doubt."""
        self.heard = now
        was_doubted, self.doubted = self.doubted, False
        return was_doubted

    def ask(self, now: float, *, whatever_came: bool = False) -> bool:
        """A life sign is wanted at once; return True if a PING is to be sent for it.

        Args:
            now: The time.
            whatever_came: What was heard a moment ago says nothing any more.
        """
        if now - self.heard < _MOMENT_SECONDS and not whatever_came:
            return False
        if self._is_asking():
            return False
        self._asked = now
        return True

    def _is_asking(self) -> bool:
        """Whether a PING is out and nothing came since."""
        return self._asked is not None and self.heard <= self._asked

    def check(self, now: float, *, busy: bool) -> Verdict:
        """Say what is due; a PING that this asks for counts as sent at ``now``."""
        if self._is_asking():
            assert self._asked is not None, "see _is_asking"
            if not self.doubted and now - self._asked >= DOUBT_SECONDS:
                self.doubted = True
                return Verdict.DOUBT
            return Verdict.NOTHING
        if now - self.heard >= (BUSY_PING_SECONDS if busy else self._idle_ping):
            self._asked = now
            return Verdict.PING
        return Verdict.NOTHING

    def next_check(self, *, busy: bool) -> float:
        """Return when :meth:`check` could next have something to say."""
        if self._is_asking():
            assert self._asked is not None, "see _is_asking"
            return self._asked + DOUBT_SECONDS
        return self.heard + (BUSY_PING_SECONDS if busy else self._idle_ping)
