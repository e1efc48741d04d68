"""Workers that hang: noticed by their beats, asked for their stack, and ended.

Theory of operation
-------------------
A worker writes into its page of counters by when its loop will turn again: a tenth of a second
ahead, or half of one when it is idle. Four times a second it is looked whether one is late, and
for how long is counted in the watchdog's own turns, each worth at most a quarter of a second:
who was stopped or starved together with his master has not been late for that time. Whoever
has beaten since the last look turns, however slowly, and is late anew. A worker that is late
for two seconds gets SIGABRT, upon which its interpreter writes where it is into its log, and
SIGCONT, since a stopped process sees no other signal; half a second later SIGKILL. One worker
at a time.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from tunneltcp.control.counters import Counter
from tunneltcp.master.process import ProcessState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tunneltcp.master.children import Children
    from tunneltcp.master.tunnel import Tunnel
    from tunneltcp.net.loop import Loop

__all__ = ["HANG_SECONDS", "HUNG", "TURN_SECONDS", "Watchdog"]

HANG_SECONDS: Final = 2.0
"""So late a worker's loop may be; a turn of it takes milliseconds."""
TURN_SECONDS: Final = 0.25
"""Between two looks; and the most that one counts for."""
STACK_SECONDS: Final = 0.5
"""From SIGABRT to SIGKILL: writing the stack takes a millisecond, to a busy disk longer."""

HUNG: Final = "hung, and was ended; its log says where it was"
"""Reason of such an exit."""


class Watchdog:
    """Looks after all workers of a master.

    Args:
        clock: As that by which workers beat; monotonic nanoseconds.
    """

    def __init__(
        self,
        loop: Loop,
        children: Children,
        tunnels: Sequence[Tunnel],
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._loop = loop
        self._children = children
        self._tunnels = tunnels
        self._clock = clock
        self._late: dict[tuple[int, int], float] = {}
        """By pid and beat: for how long it has been late by now, in our turns."""
        self._ending: int | None = None
        self._looked = loop.now
        self._timer = loop.call_later(TURN_SECONDS, self._turn)

    def close(self) -> None:
        """Look no more."""
        self._timer.cancel()

    def _turn(self) -> None:
        now, now_ns = self._loop.now, self._clock()
        passed = min(now - self._looked, TURN_SECONDS)
        self._looked = now
        self._timer = self._loop.call_later(TURN_SECONDS, self._turn)
        late: dict[tuple[int, int], float] = {}
        for tunnel in self._tunnels:
            pid = tunnel.pid
            if (
                pid is not None
                and tunnel.life.state in (ProcessState.RUNNING, ProcessState.STOPPING)
                and (beat := tunnel.counters[Counter.BEAT_NS]) < now_ns
            ):
                late[pid, beat] = self._late.get((pid, beat), 0.0) + passed
                if late[pid, beat] > HANG_SECONDS and self._ending is None:
                    self._end(tunnel, pid)
        self._late = late

    def _end(self, tunnel: Tunnel, pid: int) -> None:
        self._ending = pid
        tunnel.blame(HUNG)
        self._children.abort(pid)
        self._loop.call_later(STACK_SECONDS, lambda: self._make_sure(pid))

    def _make_sure(self, pid: int) -> None:
        self._ending = None
        self._children.kill(pid)
