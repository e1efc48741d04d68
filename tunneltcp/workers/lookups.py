"""Addresses that a client's worker asks its master for: to look one up can block.

A worker that starts without its target's address waits for that before it dials: with the
first link come those who wait at the server, and without an address they would be reset.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunneltcp.net.loop import Loop

__all__ = ["FIRST_NAME_SECONDS", "RESOLVE_SECONDS", "Lookups"]

RESOLVE_SECONDS: Final = 5.0
"""A name is asked for again no more often than this."""
FIRST_NAME_SECONDS: Final = 2.0
"""How long the first link waits for the address of the target."""


class Lookups:
    """Asks, by ``tell``; the answers come to the worker."""

    def __init__(self, loop: Loop, tell: Callable[[dict[str, Any]], None]) -> None:
        self._loop = loop
        self._tell = tell
        self._ask_after: dict[tuple[str, int], float] = {}
        self._go_on: Callable[[], None] | None = None

    @property
    def awaits_target(self) -> bool:
        """Whether nothing is to be dialled yet, for want of the target's address."""
        return self._go_on is not None

    def ask(self, host: str, port: int) -> None:
        """Ask for a name's addresses, unless that was done a moment ago."""
        if self._loop.now >= self._ask_after.get((host, port), 0.0):
            self._ask_after[host, port] = self._loop.now + RESOLVE_SECONDS
            self._tell({"type": "resolve", "host": host, "port": port})

    def ask_for_target(self, host: str, port: int, go_on: Callable[[], None]) -> None:
        """Ask for the target's; call ``go_on`` once there is an answer, or none in time."""
        self._go_on = go_on
        self.ask(host, port)
        self._loop.call_later(FIRST_NAME_SECONDS, self.on_target)

    def on_target(self) -> None:
        """The target's address is known, or will not be for a while."""
        go_on, self._go_on = self._go_on, None
        if go_on is not None:
            go_on()
