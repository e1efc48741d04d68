"""What changes around this machine: it slept, or it has another way to the other side.

Both are looked up, not subscribed to: a look costs ten microseconds a second, works on each
system, and cannot be flooded by the router advertisements and containers of a busy host.
"""

from __future__ import annotations

import socket
import sys
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tunneltcp.net.address import SocketAddress

__all__ = ["Surroundings", "has_address", "slept_seconds", "source_address"]

NAP_SECONDS: Final = 1.0
"""Shorter sleeps are nobody's business: a link outlives them."""


def slept_seconds() -> float:
    """Return for how long this machine has slept since some moment in the past.

    Where no clock tells (all but Linux), the wall clock stands in for it: who sets that
    forward seems to have slept, which costs a PING.
    """
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()
    else:  # noqa: RET505 - so that a checker knows which lines are of this system
        return time.time() - time.monotonic()  # noqa: TID251 - it is meant to jump


def source_address(there: SocketAddress) -> str:
    """Return which address of this machine packets to ``there`` would bear; "" if no way."""
    family, address = there
    try:
        # Connecting a datagram socket sends nothing: the kernel looks up the route.
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except OSError:
        return ""


def has_address(family: int, address: tuple[object, ...]) -> bool:
    """Say whether ``address``, as ``getsockname`` gave it, is still one of this machine's."""
    host, _port, *rest = address
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((host, 0, *rest))
    except OSError:
        return False
    return True


class Surroundings:
    """Compares what is with what was at the last look."""

    def __init__(self, slept: Callable[[], float] = slept_seconds) -> None:
        self._slept = slept
        self._slept_before = slept()
        self._sources: dict[SocketAddress, str] = {}

    def look(self, there: Sequence[SocketAddress]) -> str:
        """Say in words what happened since the last look; "" for nothing.

        Args:
            there: Where the link may lead: those that were there the last time count.
        """
        slept = self._slept()
        nap, self._slept_before = slept - self._slept_before, slept
        before, self._sources = self._sources, {one: source_address(one) for one in there}
        if nap >= NAP_SECONDS:
            return f"this machine slept for {nap:.0f} s"
        for address, source in self._sources.items():
            if source and source != before.get(address, source):
                return f"this machine reaches the server from {source} now"
            if before.get(address, source) != source:
                return "this machine has no way to the server any more"
        return ""
