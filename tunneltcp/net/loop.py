"""One thread's loop: descriptors, timers, turns.

Theory of operation
-------------------
A turn waits for descriptors, calls what they woke, then what is due, then ``on_turn``
(where a worker writes to its link once for all that happened). Time is read once in a
turn and handed on as ``now``; nothing below reads a clock. The loop never sleeps longer
than ``max_sleep_seconds`` and says through ``on_beat`` by when it will do so again, so a
watcher can tell a busy loop from one that hangs.
"""

from __future__ import annotations

import heapq
import time
from typing import TYPE_CHECKING, Final

from tunneltcp.net.poller import READ, WRITE, new_poller

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunneltcp.net.poller import Poller

__all__ = ["READ", "WRITE", "Loop", "Timer"]

_BOTH: Final = READ | WRITE

BEAT_SECONDS: Final = 0.1
"""How often ``on_beat`` is called while the loop is busy: never on the path of a frame."""


class Timer:
    """One call in the future; ``cancel`` it if it is no longer wanted."""

    __slots__ = ("callback", "when")

    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        self.when = when
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Make sure the call does not happen; harmless if it already did."""
        self.callback = None


class Loop:
    """Waits for descriptors and for time, and calls back."""

    def __init__(
        self,
        *,
        max_sleep_seconds: float = 0.5,
        clock: Callable[[], float] = time.monotonic,
        poller: Poller | None = None,
    ) -> None:
        self._poller = new_poller() if poller is None else poller
        self._poll = self._poller.poll
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._fresh: set[int] = set()
        self._clock = clock
        self._timers: list[tuple[float, int, Timer]] = []
        """A heap; numbered, so that no two are equal and the timers are never compared."""
        self._timer_number = 0
        self._max_sleep = max_sleep_seconds
        self._running = False
        self._next_beat = 0.0
        self.now = clock()
        """Seconds, read once in each turn."""
        self.on_beat: Callable[[float], None] | None = None
        """Called every ``BEAT_SECONDS``, or later if nothing happens, with the time by which it
        will be called again: an interval from now, or at the end of the sleep that follows."""
        self.on_turn: Callable[[], None] | None = None
        """Called at the end of each turn, after descriptors and timers."""

    def register(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Call ``callback(events)`` whenever ``fd`` is ready for one of ``events``.

        An error or a hang-up counts as what was asked for; on Linux always as both.
        """
        self._poller.register(fd, events)
        self._callbacks[fd] = callback
        self._fresh.add(fd)

    def modify(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Change what is waited for on a registered ``fd``."""
        self._poller.modify(fd, events)
        self._callbacks[fd] = callback

    def unregister(self, fd: int) -> None:
        """Forget ``fd``. Do this before closing it: epoll is about files, not numbers."""
        del self._callbacks[fd]
        self._poller.unregister(fd)

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Call once at ``when`` (the loop's clock, seconds)."""
        timer = Timer(when, callback)
        self._timer_number += 1
        heapq.heappush(self._timers, (when, self._timer_number, timer))
        return timer

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call once, ``seconds`` after the present turn began."""
        return self.call_at(self.now + seconds, callback)

    def run(self) -> None:
        """Turn until :meth:`stop` is called."""
        self._running = True
        while self._running:
            self.turn()

    def stop(self) -> None:
        """Leave :meth:`run` at the end of this turn."""
        self._running = False

    def turn(self, *, wait: bool = True) -> None:  # noqa: C901 - the hot path
        """Wait once, or only look, then call everything that is due."""
        # Into locals first: the interpreter is slow at calling what lies in an instance.
        clock, poll = self._clock, self._poll
        now = clock()
        sleep = self._max_sleep if wait else 0.0
        timers = self._timers
        if timers:
            first = timers[0][0] - now
            if first < sleep:
                sleep = first if first > 0.0 else 0.0  # noqa: FURB136 - a call, each turn
        on_beat = self.on_beat
        if on_beat is not None:
            if now >= self._next_beat:
                self._next_beat = now + BEAT_SECONDS
                on_beat(now + max(sleep, BEAT_SECONDS))
            elif now + sleep > self._next_beat:
                sleep = self._next_beat - now  # a long sleep begins with a beat
        fresh = self._fresh
        if fresh:
            fresh.clear()
        ready = poll(sleep)
        self.now = clock()
        callbacks = self._callbacks
        for fd, events in ready:
            # A callback before this one may have let go of the descriptor, and its number
            # may already belong to somebody else.
            try:
                callback = callbacks[fd]
            except KeyError:
                continue
            if fresh and fd in fresh:
                continue
            callback(events if events <= 5 else events | _BOTH)
        if timers and timers[0][0] <= self.now:
            self._call_due()
        on_turn = self.on_turn
        if on_turn is not None:
            on_turn()

    def _call_due(self) -> None:
        timers = self._timers
        while timers and timers[0][0] <= self.now:
            callback = heapq.heappop(timers)[2].callback
            if callback is not None:
                callback()

    def close(self) -> None:
        """Free the loop's own descriptor."""
        self._poller.close()
