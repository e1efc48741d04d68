"""How much memory and CPU each worker takes: a few looked at in each turn.

Only what the kernel answers without asking the process: ``cmdline``, ``environ`` and
``smaps`` can hang with it, and counting descriptors takes 6 ms at 10,000 of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tunneltcp.master.tunnel import Tunnel
    from tunneltcp.net.loop import Loop

__all__ = ["Monitor", "Sample", "Sampler"]

_TURN_SECONDS: Final = 1.0
_TURNS: Final = 5
"""Each worker is looked at every 5 s; a sample takes some 100 microseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One look at a process."""

    rss: int
    """Resident bytes, shared ones included."""
    private: int
    """Resident bytes it shares with nobody (no file, no rings): what a leak shows in."""
    cpu: float
    """Percent of one core since the sample before."""
    status: str
    """What the kernel says it does: "sleeping", "running", "stopped", ..."""


class Sampler:
    """Looks at one process; made while it lives and not reaped, so it is never another."""

    __slots__ = ("_process", "sample")

    def __init__(self, pid: int) -> None:
        self.sample: Sample | None = None
        try:
            self._process: psutil.Process | None = psutil.Process(pid)
            self._process.cpu_percent(None)
        except psutil.Error:
            self._process = None

    def look(self) -> None:
        """Take a sample; keep the last one if the process is gone."""
        if self._process is None:
            return
        try:
            with self._process.oneshot():
                memory = self._process.memory_info()
                self.sample = Sample(
                    rss=memory.rss,
                    private=memory.rss - memory.shared,
                    cpu=self._process.cpu_percent(None),
                    status=self._process.status(),
                )
        except (psutil.Error, OSError):
            self._process = None


class Monitor:
    """Goes round the workers, a fifth of them each second."""

    def __init__(
        self, loop: Loop, tunnels: Sequence[Tunnel], looked: Callable[[Tunnel], None]
    ) -> None:
        """Begin; ``looked`` is called with each whose worker was looked at."""
        self._loop = loop
        self._looked = looked
        self._tunnels = tunnels
        self._next = 0
        self._timer = loop.call_later(_TURN_SECONDS, self._turn)

    def _turn(self) -> None:
        count = len(self._tunnels)
        for _ in range(-(-count // _TURNS)):
            tunnel = self._tunnels[self._next % count]
            self._next = (self._next + 1) % count
            if tunnel.sampler is not None:
                tunnel.sampler.look()
                self._looked(tunnel)
        self._timer = self._loop.call_later(_TURN_SECONDS, self._turn)

    def close(self) -> None:
        """Look no more."""
        self._timer.cancel()
