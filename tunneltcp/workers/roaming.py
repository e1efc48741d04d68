"""A client's machine sleeps, roams, and meets paths that swallow packets.

All of it ends in silence on the link, and silence is noticed in three seconds; who looks
around notices the first two at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from loguru import logger

from tunneltcp.net.surroundings import Surroundings, has_address
from tunneltcp.workers.pace import jittered
from tunneltcp.workers.packets import PacketSize

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunneltcp.net.address import SocketAddress
    from tunneltcp.net.loop import Loop
    from tunneltcp.relay.link import Link

__all__ = ["Roaming", "RoamingOwner"]

LOOK_SECONDS: Final = 1.0
"""How often it is looked whether this machine slept or moved."""
SHORT_LIFE_SECONDS: Final = 1.0
"""A link that ended sooner was hardly one."""
LONG_LIFE_SECONDS: Final = 60.0
"""One that lived as long is the first of a row: what it died of, it did not inherit."""
QUICK_REDIALS: Final = 5
"""So many of them in a row are followed at once; then it looks as if something cut each."""
BREATH_SECONDS: Final = 0.1
"""The pause from then on: quick for who waits, and no load for either machine."""


class RoamingOwner(Protocol):
    """A client's worker."""

    link: Link | None
    draining: bool

    def server_addresses(self) -> Sequence[SocketAddress]:
        """Return whom it dials; nobody if it does not know yet."""

    def dial_anew(self) -> None:
        """Dial at once if there is no link: what was tried till now was tried elsewhere."""


class Roaming:
    """Looks around once a second, and remembers what links died of."""

    def __init__(self, loop: Loop, owner: RoamingOwner) -> None:
        self._loop = loop
        self._owner = owner
        self._surroundings = Surroundings()
        self._packets = PacketSize()
        self._family = 0
        self._local: tuple[object, ...] = ()
        self._up_since = loop.now
        self._short_lives = 0

    @property
    def segment_bytes(self) -> int:
        """The most data in a packet of the next link; 0: what the system thinks right."""
        return self._packets.segment_bytes

    def look(self) -> None:
        """See what happened since the last time, and come back."""
        self._loop.call_later(LOOK_SECONDS, self.look)
        happened = self._surroundings.look(self._owner.server_addresses())
        if happened and not self._owner.draining:
            logger.info("{}", happened)
            self._on_moved()

    def _on_moved(self) -> None:
        self._packets.forget()
        link = self._owner.link
        if link is not None and has_address(self._family, self._local):
            link.ask_for_life(whatever_came=True)
        elif link is not None:
            link.lose("its address is not this machine's any more")
        self._owner.dial_anew()

    def on_link(self, family: int, local: tuple[object, ...]) -> None:
        """There is a link; ``local`` is the address of its end here."""
        self._family, self._local = family, local
        self._up_since = self._loop.now

    def on_doubt(self, link: Link) -> None:
        """It went silent.

        Where the PING was acknowledged, the path carries small packets. Streams may be on the
        link all the same, at the server alone: OPEN was in the first packet that is lost.
        """
        if self._loop.now - self._up_since > LONG_LIFE_SECONDS:
            self._packets.forgive()
        is_busy = bool(link.session.streams) or link.is_acknowledged
        if self._packets.went_silent(busy=is_busy):
            size = "small" if self.segment_bytes else "big"
            logger.info("links go silent under load: the next ones use {} packets", size)

    def on_trust(self) -> None:
        """It spoke again."""
        self._packets.forgive()

    def on_lost(self, link: Link) -> float:
        """It is over; return the pause before the next is dialled, seconds."""
        if not link.is_doubted:
            self._packets.forgive()
        is_short = self._loop.now - self._up_since < SHORT_LIFE_SECONDS
        self._short_lives = self._short_lives + 1 if is_short else 0
        return 0.0 if self._short_lives <= QUICK_REDIALS else jittered(BREATH_SECONDS)
