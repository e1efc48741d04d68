"""The keepers of one tunnel, as its master sees them: pairs of sockets, and pids.

Theory of operation
-------------------
Each worker makes itself a keeper (``net/keeper.py``), which is the master's child and has one
end of a pair; the master has the other. When the worker dies, the next one gets a copy of the
master's end, takes the sockets and has the keeper leave. A successor that dies on its way
leaves one more keeper, and the next asks them all. The master itself says nothing to a keeper:
it closes the pair, or kills it.

What a worker carries may be what kills it, and would kill every successor. Usually the stream
is found that does (``relay/poison.py``). After six crashes in a row between which not one byte
moved, and no stream was blamed, the next begins with nothing.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from loguru import logger

from tunneltcp.control.counters import Counter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tunneltcp.control.context import WorkerContext
    from tunneltcp.master.children import Children
    from tunneltcp.master.handover import Descriptors
    from tunneltcp.master.report import LastExit

__all__ = ["Keepers"]

_MAX_OLD: Final = 4
"""Keepers of dead workers. More come only from successors that died one after the other before
they were done, and what those have, the older ones have too."""

_MAX_FAULTS: Final = 6
"""Crashes in a row without a byte moved that are put up with: twice what it takes a successor
to find the stream."""

_ROW_SECONDS: Final = 60.0
"""A worker that served as long is the first of a row, whatever it died of."""


@dataclass(slots=True)
class _Keeper:
    fd: int
    """Our end of its pair."""
    pid: int = 0
    """0: not known, or it has died."""
    was_gone: bool = False
    """Whether its pid was nobody's, when we were told of it."""


class Keepers:
    """The keeper of the worker that lives, and those of workers before it.

    Args:
        lost: Called when the keeper of the living worker died: the worker is to make another.
    """

    def __init__(self, children: Children, lost: Callable[[], None]) -> None:
        self._children = children
        self._lost = lost
        self._old: list[_Keeper] = []
        self._current: _Keeper | None = None
        self._given = -1
        self._died_at = 0.0
        self._faults = 0
        self._moved = 0
        self._crashed = False

    @property
    def _all(self) -> list[_Keeper]:
        """Those of dead workers, then that of the living one."""
        return [*self._old, *([self._current] if self._current else [])]

    @property
    def is_kept(self) -> bool:
        """Whether the living worker has a keeper."""
        return self._current is not None and self._current.pid > 0

    def equip(self, context: WorkerContext) -> WorkerContext:
        """Add what a worker that is about to be forked needs; then call :meth:`forked`.

        Raises:
            OSError: If there are no descriptors left.
        """
        if not context.crash_safe:
            self.end()
            return context
        forgets = self._faults >= _MAX_FAULTS
        if forgets:
            self._faults = 0
            self.end()
            logger.bind(tunnel=context.port).error(
                "{} crashes in a row without a byte moved: its visitors are reset", _MAX_FAULTS
            )
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._current, self._given = _Keeper(ours.detach()), theirs.detach()
        return replace(
            context,
            keeper_fd=self._given,
            old_keeper_fds=tuple(keeper.fd for keeper in self._old),
            died_at=self._died_at,
            crashed=self._crashed,
            forgets=forgets,
        )

    def forked(self, *, failed: bool = False) -> None:
        """Let go of the worker's end; if the fork ``failed``, of ours too."""
        if self._given >= 0:
            os.close(self._given)
            self._given = -1
        if failed and self._current is not None:
            os.close(self._current.fd)
            self._current = None

    def made(self, pid: int) -> None:
        """The worker says that this is its keeper; 0: it has none. Believed if it can be."""
        keeper = self._current
        if keeper is None or keeper.pid or pid <= 0 or pid in self._children:
            return
        try:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            if not keeper.was_gone:  # it died as it was born; once, since a worker may lie
                keeper.was_gone = True
                self._lost()
            return
        keeper.pid = pid
        self._watch(keeper)

    def hand_over(self, fds: Descriptors) -> dict[str, Any]:
        """Return what the next version of the master goes on with."""
        return {
            "all": [[fds.keep(one.fd), one.pid, one.was_gone] for one in self._all],
            "has_current": self._current is not None,
            "died_at": self._died_at,
            "faults": self._faults,
            "moved": self._moved,
            "crashed": self._crashed,
        }

    def go_on(self, before: Mapping[str, Any]) -> None:
        """Have the keepers that the version before us had; they are our children still."""
        self._old = [_Keeper(*values) for values in before["all"]]
        self._current = self._old.pop() if before["has_current"] else None
        for keeper in self._all:
            if keeper.pid:
                self._watch(keeper)
        self._died_at = before["died_at"]
        self._faults, self._moved = before["faults"], before["moved"]
        self._crashed = before["crashed"]

    def drop_old(self) -> None:
        """The successor has all that the keepers before had."""
        for keeper in list(self._old):
            self._end(keeper)
        self._died_at = 0.0

    def worker_gone(self, how: LastExit, counters: memoryview, now: float) -> None:
        """The worker died; its keeper holds what it carried. ``now``: monotonic seconds."""
        self._crashed = how.is_own_fault
        moved = counters[Counter.BYTES_IN] + counters[Counter.BYTES_OUT]
        if not how.is_own_fault:
            self._faults = 0
        elif moved == self._moved and how.ran_seconds < _ROW_SECONDS:
            self._faults += 1
        else:
            self._faults = 1
        self._moved = moved
        keeper, self._current = self._current, None
        if keeper is not None:
            self._old.append(keeper)
            self._died_at = self._died_at or _stood_since(counters, now)
        while len(self._old) > _MAX_OLD:
            self._end(self._old[-1])

    def found_poison(self) -> None:
        """What may have killed the workers is gone."""
        self._faults = 0

    def end(self) -> None:
        """Nobody will come: whatever they hold is reset."""
        for keeper in self._all:
            self._end(keeper)
        self._current = None
        self._died_at = 0.0

    def _end(self, keeper: _Keeper) -> None:
        with suppress(ValueError):
            self._old.remove(keeper)
        if keeper.fd >= 0:
            os.close(keeper.fd)
            keeper.fd = -1
        if keeper.pid:
            self._children.kill(keeper.pid)

    def _watch(self, keeper: _Keeper) -> None:
        self._children.watch(keeper.pid, lambda _status: self._on_exit(keeper))

    def _on_exit(self, keeper: _Keeper) -> None:
        keeper.pid = 0
        if keeper is self._current:
            self._lost()
        else:
            self._end(keeper)


def _stood_since(counters: memoryview, now: float) -> float:
    """Return since when a dead worker's visitors stand still: it may have hung before."""
    due = counters[Counter.BEAT_NS] / 1e9
    return float(min(due, now)) if due else now
