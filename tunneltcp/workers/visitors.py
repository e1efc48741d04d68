"""Who is connected, as people ask for it: ``who``, ``kick``, and how a visitor's stay ended.

Nothing here is on the path of a byte. Rates are measured only while somebody asks: the
difference of two looks, the first one taken half a second before the first answer.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from tunneltcp.log import log_access
from tunneltcp.net.address import format_address, unpack_address
from tunneltcp.protocol.errors import ResetCode
from tunneltcp.relay.relay import CLOSED, FAILED

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from tunneltcp.net.loop import Loop
    from tunneltcp.protocol.stream import Stream
    from tunneltcp.protocol.table import StreamTable
    from tunneltcp.relay.relay import Relay

__all__ = ["Visitor", "Visitors", "describe_end", "find"]

PAGE: Final = 200
"""Visitors in one answer: at most 260 bytes each, and a message has room for 64 KiB."""

_MEASURE_SECONDS: Final = 0.5
"""Between the two looks that make a rate."""

_STALE_SECONDS: Final = 10.0
"""An earlier look that is older than this says nothing about the rate now."""


class Visitor:
    """One visitor, from its arrival to its end."""

    __slots__ = ("_came_from", "id", "kicked", "rates", "relay", "since", "totals")

    def __init__(
        self, number: int, came_from: object, since: float, relay: Relay | None = None
    ) -> None:
        """Note that somebody came.

        Args:
            number: Its id.
            came_from: An address as ``accept`` gave it, as OPEN carries it, or as text.
            since: See below.
            relay: See below.
        """
        self.id = number
        """That of its stream: the same on both sides and in the next worker, and no other's."""
        self._came_from = came_from
        self.since = since
        """When it came, on the loop's clock."""
        self.relay = relay
        """None while it waits for the link."""
        self.kicked = False
        self.totals = (0, 0)
        """Bytes in and out at the last look."""
        self.rates = (0.0, 0.0)
        """Bytes a second between the last two looks."""

    @property
    def address(self) -> str:
        """Where it comes from, as people write it; put into words only for who asks."""
        match self._came_from:
            case str(text):
                return text
            case bytes(packed):
                return unpack_address(packed)
        return format_address(self._came_from)


class Visitors:
    """Answers questions about the visitors of one worker."""

    def __init__(self, loop: Loop, *, is_server: bool) -> None:
        self._loop = loop
        self._is_server = is_server
        self._looked = -_STALE_SECONDS
        self._measuring: list[Callable[[], None]] = []

    def come(
        self, came_from: object, relay: Relay, table: StreamTable, stream: Stream
    ) -> Visitor:
        """Return who has just come; a successor will know since when it is here."""
        table.set_came(stream.record, self._loop.now)
        return Visitor(stream.id, came_from, self._loop.now, relay)

    def go_on(
        self, came_from: object, relay: Relay, table: StreamTable, stream: Stream
    ) -> Visitor:
        """Return one whom a worker before us had; a time that cannot be is taken for now."""
        now, came = self._loop.now, table.came(stream.record)
        return Visitor(stream.id, came_from, now if came is None else min(came, now), relay)

    def totals(self, visitor: Visitor) -> tuple[int, int]:
        """Return the bytes from the visitor towards the target, and back."""
        relay = visitor.relay
        if relay is None:
            return 0, 0
        read, delivered = relay.stream.head, relay.stream.delivered
        return (read, delivered) if self._is_server else (delivered, read)

    def log(self, visitor: Visitor, *, link_lost: bool) -> None:
        """Say in the access log that a visitor has gone."""
        bytes_in, bytes_out = self.totals(visitor)
        log_access(
            "visitor left",
            address=visitor.address,
            seconds=round(self._loop.now - visitor.since, 3),
            bytes_in=bytes_in,
            bytes_out=bytes_out,
            how=describe_end(visitor, is_server=self._is_server, link_lost=link_lost),
        )

    def measure(
        self, visitors: Callable[[], Collection[Visitor]], measured: Callable[[], None]
    ) -> None:
        """Bring the rates up to date, then call ``measured``: now or in half a second."""
        age = self._loop.now - self._looked
        if self._measuring or age > _STALE_SECONDS:
            self._measuring.append(measured)
            if len(self._measuring) == 1:
                self._look(visitors())
                self._loop.call_later(_MEASURE_SECONDS, lambda: self._measured(visitors()))
            return
        if age >= _MEASURE_SECONDS:
            self._look(visitors())
        measured()

    def _measured(self, visitors: Collection[Visitor]) -> None:
        self._look(visitors)
        waiting, self._measuring = self._measuring, []
        for measured in waiting:
            measured()

    def _look(self, visitors: Collection[Visitor]) -> None:
        now, before = self._loop.now, self._looked
        self._looked = now
        for visitor in visitors:
            totals = self.totals(visitor)
            seconds = now - max(before, visitor.since)
            if seconds > 0:
                moved = zip(totals, visitor.totals, strict=True)
                rate_in, rate_out = (max(0, new - old) / seconds for new, old in moved)
                visitor.rates = rate_in, rate_out
            visitor.totals = totals

    def page(
        self, visitors: Collection[Visitor], after: int, *, link_is_good: bool
    ) -> dict[str, Any]:
        """Return the visitors whose id is above ``after``, in order, as far as fits."""
        later = sorted((one for one in visitors if one.id > after), key=lambda one: one.id)
        shown = [self._describe(one, link_is_good=link_is_good) for one in later[:PAGE]]
        return {"visitors": shown, "next": shown[-1]["id"] if len(later) > PAGE else None}

    def _describe(self, visitor: Visitor, *, link_is_good: bool) -> dict[str, Any]:
        age = self._loop.now - visitor.since
        since = datetime.now(UTC) - timedelta(seconds=age)
        bytes_in, bytes_out = self.totals(visitor)
        return {
            "id": visitor.id,
            "address": visitor.address,
            "since": since.isoformat(timespec="milliseconds"),
            "bytes_in": bytes_in,
            "bytes_out": bytes_out,
            "rate_in": round(visitor.rates[0]),
            "rate_out": round(visitor.rates[1]),
            "waits_for": self._waits_for(visitor.relay, link_is_good=link_is_good),
        }

    def _waits_for(self, relay: Relay | None, *, link_is_good: bool) -> str | None:
        """Say what keeps bytes from going on; None if nothing does."""
        near, far = ("visitor", "target") if self._is_server else ("target", "visitor")
        if relay is None or not link_is_good or (self._is_server and not relay.stream.is_known):
            return "link"
        if relay.waiting_bytes or relay.is_connecting:
            return near
        stream = relay.stream
        if stream.sent < stream.head:
            return far if stream.sent >= stream.limit else "link"
        return far if stream.paused else None


def find(visitors: Collection[Visitor], whom: dict[str, Any]) -> list[Visitor]:
    """Return those that a "kick" means: one by its id, all of one host, or all."""
    match whom:
        case {"visitor": int(number)}:
            return [one for one in visitors if one.id == number]
        case {"address": str(address)}:
            bare = address.strip("[]")
            return [one for one in visitors if _is_from(one.address, address, bare)]
        case {"all": True}:
            return list(visitors)
    return []


def _is_from(address: str, wanted: str, host: str) -> bool:
    return address == wanted or address.rpartition(":")[0].strip("[]") == host


def describe_end(visitor: Visitor, *, is_server: bool, link_lost: bool) -> str:
    """Say in a few words how a visitor's stay ended."""
    near, far = ("visitor", "target") if is_server else ("target", "visitor")
    relay = visitor.relay
    if visitor.kicked:
        return "kicked"
    if relay is None or relay.ended == CLOSED:
        return "closed"
    if relay.ended == FAILED:
        return f"reset by the {near}"
    if is_server and link_lost and not relay.stream.is_known:
        return "waited for the link in vain"
    if link_lost:
        return "the link was lost"
    words: dict[int, str] = {
        ResetCode.TARGET_REFUSED: "the target refused it",
        ResetCode.TARGET_UNREACHABLE: "the target could not be reached",
        ResetCode.STREAM_ERROR: "protocol error",
        ResetCode.OVER_LIMIT: "no room for it",
        ResetCode.STOPPING: "the tunnel was stopping",
    }
    return words.get(relay.ended, f"reset by the {far}")
