"""How much may be on its way over a link, so that the queue of the path stays short.

Theory of operation
-------------------
All visitors share one connection, so whatever stands in a queue between us and the far process
stands in front of the next keystroke. PINGs measure that: a PONG says that all in front of
its PING has arrived, and how long it took. Nothing is held back while the smallest round trip
under load is close to the smallest of all (FREE). When it is not (WATCHED), more PINGs go, and
once the rate has stopped growing, what is on its way is kept to what the path needs (BOUND)::

    rate x (smallest round trip + a little) + some packets

The kernel's congestion control works below that as ever; the bound only keeps from it what it
would put into a queue. A bound that does not help is not ours to make: where the queue stays
although less and less is sent, others fill it, or the path has become longer. Then there is no
bound for a while (FREE), and the smallest round trip is learned anew. A PING that waits for a
lost packet to come again is late without any queue: where the kernel tells how many packets it
sent again, an answer says nothing of queues if some were meanwhile. ``docs/decisions/0016``.
"""

from __future__ import annotations

from collections import deque
from enum import Enum, auto
from typing import TYPE_CHECKING, Final, NamedTuple

from tunneltcp.protocol.peak import PeakRate

if TYPE_CHECKING:
    from tunneltcp.protocol.bucket import Bucket

__all__ = ["NEVER", "Flight", "Mode"]

NEVER: Final = 1 << 62
"""More bytes than any link carries."""
_UNKNOWN: Final = 1e9
"""Seconds, more than any round trip."""

MAX_PINGS: Final = 1024
"""PINGs that are remembered until they are answered: five seconds of them under a bound."""
LITTLE_SECONDS: Final = 0.006
"""Queue that is left standing: what keeps a path busy while PONGs come unevenly."""
LITTLE_PART: Final = 8
"""On long paths the little is this part of the round trip, if that is more."""
MORE_SECONDS: Final = 0.005
"""Allowed on top in two spans of six: does the path carry more?"""
MORE_SPANS: Final = 6
PING_SECONDS: Final = 0.005
"""Time between two PINGs under a bound, and so the size of a batch, which nothing overtakes."""
QUEUE_SECONDS: Final = 0.012
"""A shorter queue is left alone: a bound leaves about as much. A home router may hold 20 ms."""
NEAR_SECONDS: Final = 0.005
"""A path whose smallest round trip is shorter than that is this machine or a data centre ..."""
NEAR_QUEUE_SECONDS: Final = 0.030
"""... and there a round trip longer than usual is mostly a lack of CPU time, below this."""
SLACK_BYTES: Final = 16 * 1024
"""Always allowed: what a new TCP connection may send, so that a small bound cannot choke it."""
MIN_SPACING_BYTES: Final = 2048
"""Never more PINGs than a peer bears (PROTOCOL.md §9)."""
WATCH_SPACING_BYTES: Final = 32 * 1024
"""A batch before the rate is known; there are no more PINGs than under a bound."""
LOOK_SECONDS: Final = 0.1
"""Time between two PINGs while nothing is held back."""
LOOK_BYTES: Final = 64 * 1024
"""How much is written between two looks at the clock."""
WATCH_SPAN_SECONDS: Final = 0.050
"""A span of a watched link, at least. A machine that is short of CPU time is late now and then
within it and not always, which tells it from a queue."""
MIN_SPAN_SECONDS: Final = 0.020
"""A rate is what arrives in a round trip, or in this time if that is longer."""
FULL_SPANS: Final = 3
"""The path is full when the rate did not grow by a quarter in so many spans: a kernel that has
just begun doubles it in each."""
PATIENCE_SECONDS: Final = 1.0
"""How long a queue may stay as it is under a bound before that is given up."""
PATIENCE_SPANS: Final = 8
FALLING: Final = 0.9
"""A round trip that came down to this part of the last one: the queue is being emptied."""
DECLINE: Final = 0.85
"""A rate that fell to this part of the first one, under a bound: it is the bound's doing."""
PAUSE_SECONDS: Final = 10.0
"""How long there is no bound after it was given up; twice as long each time."""
MAX_PAUSE_SECONDS: Final = 600.0
LOSSY_SPANS: Final = 10
"""So many more spans with lost packets than without, under a bound: the line loses them, and no
queue does. A bound that is small enough for a queue has emptied it by then."""
PROBE_SECONDS: Final = 10.0
"""A smallest round trip that was learned anew may hold a queue: so often, the bound is halved
for some spans, and what is the smallest then counts. So too when the rate has declined."""
PROBE_SPANS: Final = 4
MIN_PROBE_SECONDS: Final = 2.0
"""Between two of them because the rate declined."""
IDLE_SECONDS: Final = 5.0
"""A bound that nobody met for so long is forgotten."""


class Mode(Enum):
    """What is done about the queue of the path."""

    FREE = auto()
    """Nothing is held back."""
    WATCHED = auto()
    """There is a queue; whether the path is full is being found out."""
    BOUND = auto()
    """What is on its way is kept to what the path needs."""


class _Ping(NamedTuple):
    value: int
    position: int
    """How much was written in front of it."""
    sent_at: float
    resent: int = 0
    """How many packets the kernel had sent again."""


class Flight:
    """What one link has on its way; ``now`` is any clock that only goes forward, seconds.

    Whoever writes adds what it hands to the link to :attr:`written`, and asks :meth:`look`
    before it goes on at :attr:`look_at`.
    """

    def __init__(self, now: float, bucket: Bucket | None = None) -> None:
        self.bucket = bucket
        """The limit that the config sets, if it does."""
        self.written = 0
        """Bytes that were handed to the link, ever."""
        self.look_at = 0
        """How much may be written before :meth:`look` is to be asked."""
        self.mode = Mode.FREE
        self.bound = NEVER
        """How much may be on its way."""
        self.spacing = NEVER
        """Bytes between two PINGs, and of a batch."""
        self.round_trip = 0.0
        """The smallest, or the one that was learned anew; 0: not known."""
        self._smallest = 0.0
        self._pings: deque[_Ping] = deque(maxlen=MAX_PINGS)
        self._last = _Ping(0, 0, now - LOOK_SECONDS)
        """The last PING that was sent."""
        self._limited_room = NEVER
        """What the bucket has left."""
        self._arrived = 0
        self._heard_at = now
        self._before = 0
        """How much was written before the bound began."""
        self._bound_spans = 0
        self._mark = self._last
        """The PING whose answer began the span."""
        self._mark_at = now
        self._lowest = _UNKNOWN
        """Smallest round trip of the span, of those that no lost packet has made longer."""
        self._lossy_spans = 0
        self._peak = PeakRate()
        self._best = self._first_rate = 0.0
        self._still = 0
        """Spans in which the rate did not grow."""
        self._held_back = False
        """Whether the bound was met in this span."""
        self._full_at = now
        self._good_at = now
        self._falling_from = 0.0
        self._pause = PAUSE_SECONDS
        self._paused_to = now
        self._probe_at = now
        self._probe_spans = 0
        self._probe_low = 0.0

    @property
    def rate(self) -> float:
        """Bytes a second that arrived lately, at best."""
        return self._peak.rate

    @property
    def room(self) -> int:
        """How much may be written now."""
        return min(self._bound_room, self._limited_room)

    @property
    def _bound_room(self) -> int:
        if self.mode is Mode.BOUND:
            return max(0, self._arrived + self.bound - self.written)
        return NEVER

    # ------------------------------------------------------------------ writing

    def look(self, now: float) -> bool:
        """Say whether a PING is to go out in front of what is written next."""
        bucket = self.bucket
        if bucket is not None:
            self._limited_room = bucket.room(self.written, now)
        if self.mode is Mode.FREE:
            self.look_at = self.written + (LOOK_BYTES if bucket is None else 0)
            if bucket is not None:
                self.spacing = max(MIN_SPACING_BYTES, int(bucket.rate * PING_SECONDS))
            return not self._pings and now - self._last.sent_at >= LOOK_SECONDS
        self.look_at = self.written
        is_far = self.written - self._last.position >= self.spacing
        if self.mode is Mode.WATCHED:
            return is_far and now - self._last.sent_at >= PING_SECONDS
        self._look_at_bound(now)
        return is_far

    def _look_at_bound(self, now: float) -> None:
        if self._bound_room:
            if now - self._full_at > IDLE_SECONDS:
                self._free()
            return
        self._held_back = True
        self._full_at = now
        asked_at = self._pings[0].sent_at if self._pings else now
        if now - max(self._heard_at, asked_at) > PATIENCE_SECONDS + 4 * self.round_trip:
            self._give_up(now)

    def note_ping(self, value: int, now: float, resent: int = 0) -> None:
        """A PING goes out; values only rise. ``resent``: packets sent again so far."""
        self._last = _Ping(value, self.written, now, resent)
        self._pings.append(self._last)

    # ------------------------------------------------------------------ answers

    def note_pong(self, value: int, now: float, resent: int = 0) -> float | None:
        """A PONG came: return the round trip of its PING, or None if there was none such."""
        pings = self._pings
        if not pings or not pings[0].value <= value <= pings[-1].value:
            return None
        ping = pings.popleft()
        while ping.value < value:
            ping = pings.popleft()
        if ping.value != value:
            return None
        trip = now - ping.sent_at
        if not self.round_trip or trip < self.round_trip:
            self.round_trip = trip
            self._smallest = min(trip, self._smallest or trip)
        if resent == ping.resent:
            self._lowest = min(self._lowest, trip)
        self._arrived = ping.position
        self._heard_at = now
        if self.mode is Mode.FREE:
            is_late = trip > self.round_trip + self._queue_seconds
            if is_late and resent == ping.resent and now >= self._paused_to:
                self._watch(ping, now)
        elif now - self._mark_at >= self._span_seconds:
            self._end_span(ping, now)
        return trip

    @property
    def _little_seconds(self) -> float:
        return max(LITTLE_SECONDS, self.round_trip / LITTLE_PART) + PING_SECONDS

    @property
    def _queue_seconds(self) -> float:
        if self._smallest < NEAR_SECONDS:
            return NEAR_QUEUE_SECONDS
        return max(QUEUE_SECONDS, self.round_trip / LITTLE_PART)

    @property
    def _span_seconds(self) -> float:
        watched = self.mode is Mode.WATCHED
        return max(WATCH_SPAN_SECONDS if watched else MIN_SPAN_SECONDS, self.round_trip)

    @property
    def _patience(self) -> float:
        return max(PATIENCE_SECONDS, PATIENCE_SPANS * self._span_seconds)

    def _begin_span(self, ping: _Ping, now: float) -> None:
        self._mark, self._mark_at = ping, now
        self._lowest = _UNKNOWN
        self._held_back = False

    def _end_span(self, ping: _Ping, now: float) -> None:
        """A round trip is over: how much arrived in it, and how long did it stand in queues?"""
        # What arrives in a heap was sent over a longer time, and the other way round.
        seconds = max(now - self._mark_at, ping.sent_at - self._mark.sent_at)
        rate = (ping.position - self._mark.position) / seconds
        lowest, held_back = self._lowest, self._held_back
        is_lossy = ping.resent > self._mark.resent
        self._lossy_spans = max(0, self._lossy_spans + (1 if is_lossy else -1))
        self._begin_span(ping, now)
        if self._lossy_spans > LOSSY_SPANS:
            self._free(now + PAUSE_SECONDS)
            return
        if self.mode is Mode.WATCHED:
            if lowest < _UNKNOWN:
                self._watch_on(rate, lowest, now)
            return
        self._bound_spans += 1
        self._peak.note(rate, ages=held_back)  # what nobody asked for says nothing of the path
        if self._probe_spans:
            self._probe_on(lowest, now)
        elif lowest < _UNKNOWN:
            self._judge(lowest, now)
        elif self._arrived >= self._before and now - self._good_at > self._patience:
            # The way is so long that each answer meets a lost packet, though few spans do.
            self._free(now + PAUSE_SECONDS)
        if self.mode is Mode.BOUND:
            self._set_bound()

    # ------------------------------------------------------------------ modes

    def _free(self, paused_to: float = 0.0) -> None:
        self.mode = Mode.FREE
        self._paused_to = paused_to
        self.bound = self.spacing = NEVER
        self.look_at = self.written

    def _watch(self, ping: _Ping, now: float) -> None:
        self.mode = Mode.WATCHED
        self.spacing = WATCH_SPACING_BYTES
        self.look_at = self.written
        self._peak = PeakRate()
        self._best = 0.0
        self._still = self._lossy_spans = 0
        self._begin_span(ping, now)

    def _watch_on(self, rate: float, lowest: float, now: float) -> None:
        """Go on as long as the path carries more with each round trip."""
        # It has to be well below what it began with: a queue that is often full empties
        # now and then, when packets were dropped.
        if lowest <= self.round_trip + self._queue_seconds / 2:
            self._free()
            return
        self._peak.note(rate, ages=False)
        if rate > 1.25 * self._best:
            self._best = rate
            self._still = 0
            return
        self._still += 1
        if self._still >= FULL_SPANS:
            self.mode = Mode.BOUND
            self._good_at = self._full_at = now
            self._falling_from = lowest
            self._first_rate = max(1.0, self.rate)
            self._before = self.written
            self._bound_spans = self._probe_spans = self._lossy_spans = 0
            self._probe_at = now
            self._set_bound()

    def _probe(self) -> None:
        """Empty the queue, if it is ours: out comes what the smallest round trip is now."""
        self._probe_spans = PROBE_SPANS
        self._probe_low = _UNKNOWN
        self._falling_from = self.round_trip

    def _probe_on(self, lowest: float, now: float) -> None:
        self._probe_spans -= 1
        if self._probe_spans < PROBE_SPANS - 1:
            self._probe_low = min(self._probe_low, lowest)
        if not self._probe_spans:
            is_smaller = self._probe_low < FALLING * self._falling_from
            self._probe_at = now + (0 if is_smaller else PROBE_SECONDS)
            most = self._falling_from + self._little_seconds + MORE_SECONDS
            if self._probe_low < _UNKNOWN:
                self.round_trip = min(self._probe_low, most)
            self._first_rate = max(1.0, self.rate)
            self._good_at = now

    def _set_bound(self) -> None:
        seconds = self.round_trip + self._little_seconds
        if self._probe_spans:
            seconds /= 2
        elif self._bound_spans % MORE_SPANS < 2:
            seconds += MORE_SECONDS
        self.bound = int(self.rate * seconds) + SLACK_BYTES
        self.spacing = max(MIN_SPACING_BYTES, int(self.rate * PING_SECONDS))

    def _judge(self, lowest: float, now: float) -> None:
        """Does the bound help?"""
        queue = lowest - self.round_trip
        kept = self._little_seconds + MORE_SECONDS + SLACK_BYTES / self._first_rate
        # Each side of a link leaves a little standing, and a PONG meets both.
        if queue <= kept:
            self._good_at = now
            self._falling_from = lowest
        elif queue <= 2 * kept and self.rate >= DECLINE * self._first_rate:
            self._good_at = now
        elif lowest <= FALLING * self._falling_from or self._arrived < self._before:
            self._falling_from = lowest
            self._good_at = now
        elif now - self._good_at > self._patience:
            self._give_up(now)
            self.round_trip = lowest
            return
        self._first_rate = max(self._first_rate, self.rate)
        if self._arrived < self._before:
            return
        if queue <= kept and self.rate < DECLINE * self._first_rate:
            probes_at = self._probe_at - PROBE_SECONDS + MIN_PROBE_SECONDS
        elif self.round_trip > self._smallest + self._little_seconds:
            probes_at = self._probe_at
        else:
            return
        if now >= probes_at:
            self._probe()

    def _give_up(self, now: float) -> None:
        self._free(now + self._pause)
        self._pause = min(2 * self._pause, MAX_PAUSE_SECONDS)
