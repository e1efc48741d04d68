"""Which packets a path lets through: some swallow the big ones without a word.

Where the ICMP message that a packet is too big is lost, the handshake of a link passes and
bulk never does: each new link dies as the one before. Links that went silent with something
on them, two in a row, are taken for that, and the next ones are dialled with small packets.
If it was something else, that cost a few per cent of the bandwidth; if two more die in the
same way, big packets are tried again.
"""

from __future__ import annotations

from typing import Final

__all__ = ["SMALL_SEGMENT_BYTES", "PacketSize"]

SMALL_SEGMENT_BYTES: Final = 1024
"""With all headers below 1,280 bytes, which every path of IPv6 carries."""
DEATHS: Final = 2
"""So many in a row make a pattern; one is any lost network."""


class PacketSize:
    """Learns from the deaths of links how large the next one's packets may be."""

    def __init__(self) -> None:
        self.segment_bytes = 0
        """TCP_MAXSEG of the next link; 0: what the system thinks right."""
        self._deaths = 0

    def went_silent(self, *, busy: bool) -> bool:
        """A link is silent, perhaps ``busy`` with what was lost; return if the size changes."""
        self._deaths = self._deaths + 1 if busy else 0
        if self._deaths < DEATHS:
            return False
        self._deaths = 0
        self.segment_bytes = 0 if self.segment_bytes else SMALL_SEGMENT_BYTES
        return True

    def forgive(self) -> None:
        """It spoke again, or ended in another way: that was not about packets."""
        self._deaths = 0

    def forget(self) -> None:
        """Packets go another way now."""
        self._deaths = self.segment_bytes = 0
