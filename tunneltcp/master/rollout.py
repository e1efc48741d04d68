"""The new code has taken over: workers of the old one are replaced, one after the other.

Each by the ordinary way: killed, and a successor goes on with what it carried. The next one
comes when that serves and, if there was a link, has it again. If it does not, no other worker
is touched: they run on with the old code until somebody says "upgrade" again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from loguru import logger

from tunneltcp import __version__
from tunneltcp.control.counters import Counter, LinkState
from tunneltcp.master.process import ProcessState
from tunneltcp.master.progress import CANARY, DONE, FAILED, REPLACING
from tunneltcp.master.report import UPGRADED
from tunneltcp.text import ranges

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunneltcp.master.progress import Progress
    from tunneltcp.master.stopping import Stopping
    from tunneltcp.master.tunnel import Tunnel
    from tunneltcp.net.loop import Loop

__all__ = ["Rollout"]

_LOOK_SECONDS: Final = 0.01
CARRIES_SECONDS: Final = 15.0
"""A worker has 10 s to start, and a link is back in under 5 s."""
_KEEPER_SECONDS: Final = 1.0
"""For a keeper that died a moment ago: without it the visitors would be cut."""

_REPLACEABLE: Final = (ProcessState.STARTING, ProcessState.RUNNING)


class Rollout:
    """Replaces workers.

    Args:
        tunnels: Those of the master; it may change.
        stopping: Says whether everything is on its way out.
    """

    def __init__(
        self, loop: Loop, tunnels: Sequence[Tunnel], progress: Progress, stopping: Stopping
    ) -> None:
        self._loop = loop
        self._tunnels = tunnels
        self._progress = progress
        self._stopping = stopping
        progress.state, progress.version = REPLACING, __version__
        self._deadline = 0.0
        self._had_link = False

    def begin(self) -> None:
        """Begin with the first."""
        self._next()

    def _next(self) -> None:
        if self._stopping.is_under_way:
            self._end(FAILED, "the master is stopping")
            return
        canary = self._progress.canary
        for tunnel in self._tunnels:
            if canary is not None and tunnel.config.remote_port != canary:
                continue
            if tunnel.is_outdated and tunnel.life.state in _REPLACEABLE:
                self._deadline = self._loop.now + _KEEPER_SECONDS
                self._replace(tunnel)
                return
        self._end(CANARY if canary is not None else DONE)

    def _replace(self, tunnel: Tunnel) -> None:
        if not tunnel.is_outdated:  # somebody was quicker
            self._next()
            return
        unkept = tunnel.config.crash_safe and not tunnel.keepers.is_kept
        if unkept and self._loop.now < self._deadline:
            self._loop.call_later(_LOOK_SECONDS, lambda: self._replace(tunnel))
            return
        self._had_link = tunnel.counters[Counter.LINK_STATE] != LinkState.DOWN
        self._deadline = self._loop.now + CARRIES_SECONDS
        tunnel.restart(UPGRADED)
        self._loop.call_later(_LOOK_SECONDS, lambda: self._look(tunnel))

    def _look(self, tunnel: Tunnel) -> None:
        port, state = tunnel.config.remote_port, tunnel.life.state
        if tunnel not in self._tunnels or state in (
            ProcessState.STOPPING, ProcessState.STOPPED
        ):  # fmt: skip
            self._next()  # a person, a new config or a signal wanted something else with it
        elif self._carries(tunnel):
            self._progress.replaced.append(port)
            self._next()
        elif self._loop.now < self._deadline:
            self._loop.call_later(_LOOK_SECONDS, lambda: self._look(tunnel))
        elif state is ProcessState.RUNNING and not tunnel.is_outdated:
            self._end(FAILED, f"the link of {port} was not back within {CARRIES_SECONDS:g} s")
        else:
            why = f": {tunnel.reason}" if tunnel.reason else ""
            self._end(FAILED, f"{port} does not come up; it is {state.value}{why}")

    def _carries(self, tunnel: Tunnel) -> bool:
        if tunnel.is_outdated or tunnel.life.state is not ProcessState.RUNNING:
            return False
        return not self._had_link or tunnel.counters[Counter.LINK_STATE] == LinkState.UP

    def _end(self, state: str, reason: str = "") -> None:
        self._progress.end(state, reason)
        ports = ranges(self._progress.replaced) or "none"
        if state == FAILED and not self._stopping.is_under_way:
            logger.error("upgrade: {}; replaced before: {}", reason, ports)
        else:
            logger.info("upgrade: version {} runs: {}", self._progress.version, ports)
