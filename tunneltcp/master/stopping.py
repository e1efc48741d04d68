"""The end of everything: one sequence, each step with its deadline.

Listeners are closed and the workers told to drain; after ``drain`` they are told to stop; then
they are killed. A second TERM or INT skips the waiting. Nothing of ours is left behind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from loguru import logger

from tunneltcp.errors import ExitCode
from tunneltcp.master.process import START_SECONDS, Input

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunneltcp.master.children import Children
    from tunneltcp.master.helpers import Helpers
    from tunneltcp.master.tunnel import Tunnel
    from tunneltcp.net.loop import Loop

__all__ = ["Stopping"]

_STOP_LIMIT_SECONDS: Final = 5.0
"""Beyond the drain, and after a second TERM: then we leave, and the kernel kills the rest."""


class Stopping:
    """That of a master; ``tunnels`` are all it has, and may change."""

    def __init__(
        self, loop: Loop, children: Children, helpers: Helpers, tunnels: Sequence[Tunnel]
    ) -> None:
        self.is_under_way = False
        self.is_done = False
        self.exit_code = ExitCode.DONE
        self._loop = loop
        self._children = children
        self._helpers = helpers
        self._tunnels = tunnels

    def begin(self, name: str, drain_seconds: float) -> None:
        """Begin with it, or hurry; ``name`` is that of the signal."""
        if self.is_under_way:
            logger.info("{} again: stopping now", name)
            self._loop.call_later(_STOP_LIMIT_SECONDS, self._give_up)
            for tunnel in self._tunnels:
                tunnel.feed(Input.STOP_NOW)
            return
        self.is_under_way = True
        logger.info("{}: stopping, visitors have {:g} s", name, drain_seconds)
        self._helpers.close()
        limit = drain_seconds + _STOP_LIMIT_SECONDS + START_SECONDS
        self._loop.call_later(limit, self._give_up)
        for tunnel in self._tunnels:
            tunnel.close_listeners()
            tunnel.feed(Input.STOP)

    def look(self) -> None:
        """See whether all have gone."""
        if self.is_under_way and all(tunnel.is_gone for tunnel in self._tunnels):
            self.is_done = True

    def _give_up(self) -> None:
        left = [tunnel.pid for tunnel in self._tunnels if tunnel.pid is not None]
        logger.error("left while the kernel still holds processes {}", left)
        self.exit_code = ExitCode.CRASH
        self.is_done = True

    def make_sure(self) -> None:
        """Leave no process behind, whatever brought us here."""
        self._helpers.close()
        self._loop.on_turn = None
        for tunnel in self._tunnels:
            tunnel.close_listeners()
            tunnel.feed(Input.STOP_NOW)
            if tunnel.pid is not None:
                self._children.kill(tunnel.pid)
        deadline = self._loop.now + _STOP_LIMIT_SECONDS
        while len(self._children) and self._loop.now < deadline:
            self._loop.turn()
