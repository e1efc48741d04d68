"""Two real sessions on a fake wire, and models of the sockets at their ends.

Theory of operation
-------------------
A :class:`SessionPair` is a server's session and a client's, each with an arena and a stream
table of its own in plain memory, joined by two wires. Nothing moves by itself: the test
says which endpoint reads or takes how much, how many bytes a wire writes and how many come
out of it, in any order and any cuts. ``settle`` lets everything run until nothing moves.

An :class:`End` stands for a socket as a relay uses one: what its app writes is a pattern
with a seed of its own, and what it takes is checked against the other end's pattern byte by
byte, at the moment when "the socket" takes it (so a copy that should have been made, and
was not, is found). A wire keeps the buffers that a session handed out as they are, and
compares them with a copy when they are written: whatever changed meanwhile is an error.

``check`` asserts what must hold at each step; the state machines call it after each rule.
"""

from __future__ import annotations

import itertools
import mmap
from typing import TYPE_CHECKING, Final

from tests.support.frame_factory import addresses
from tests.support.pattern import PatternChecker, pattern
from tunneltcp.net.tcp_counters import TcpCounters, TcpState
from tunneltcp.protocol.arena import MIN_RING_BYTES, Arena
from tunneltcp.protocol.errors import ResetCode
from tunneltcp.protocol.frames import MAX_PAYLOAD_BYTES
from tunneltcp.protocol.rebuild import rebuild_reset, rebuild_stream
from tunneltcp.protocol.sender import BATCH_BYTES, MODEST_BYTES
from tunneltcp.protocol.session import Session
from tunneltcp.protocol.table import BYTES_READ as READ_WORD
from tunneltcp.protocol.table import (
    COOKIE,
    END_READ,
    ERROR_SEEN,
    FIN_OFFSET,
    FLAGS,
    HEADER_WORDS,
    RECORD_WORDS,
    RING_WORD,
    STREAM_ID,
    StreamTable,
)
from tunneltcp.protocol.windows import FIRST_WINDOW_BYTES
from tunneltcp.relay.verdict import Fate, judge

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunneltcp.protocol.arena import Ring
    from tunneltcp.protocol.stream import Endpoint, Stream
    from tunneltcp.protocol.table import Record

__all__ = ["MANY", "End", "SessionPair", "Side", "Visit", "Wire"]

MANY: Final = 1 << 40
"""More than any test moves."""

_NEXT_ID_WORD: Final = 5


class End:
    """A model of a socket and of the app behind it; the endpoint of one stream.

    Args:
        seed: Of the pattern that the app writes.
        peer_seed: Of the pattern that must come.
        connected: Whether the socket takes anything yet.
    """

    stream: Stream

    def __init__(self, name: str, seed: int, peer_seed: int, *, connected: bool) -> None:
        self.name = name
        self.started = False
        """Whether it has a stream."""
        self.record = 0
        self.acked_floor = 0
        """What the peer had of it when a worker died; a successor knows that only roughly."""
        self.seed = seed
        # The app's side of the socket.
        self.written = 0
        """Bytes that the app wrote and that can be read."""
        self.ended = False
        """The app ended its output."""
        # What the relay knows.
        self.read_bytes = 0
        self.watching = True
        """Whether the relay would look at the socket for reading."""
        self.finished = False
        """The end of input was read, and FIN asked for."""
        # The other direction.
        self.checker = PatternChecker(peer_seed)
        self.connected = connected
        self.appetite = 0
        """Bytes that the socket takes before it is full."""
        self.waiting = bytearray()
        self.fin_waits = False
        self.fin_passed_on = False
        # The end.
        self.over = ""
        """"clean", "aborted" (by the session) or "reset" (by this end)."""
        self.code = -1

    def __repr__(self) -> str:
        return (
            f"<{self.name} read={self.read_bytes}/{self.written} ended={self.ended}"
            f" taken={self.taken} waiting={len(self.waiting)} over={self.over!r}>"
        )

    @property
    def is_known(self) -> bool:
        """Whether the client has answered its OPEN."""
        return self.stream.is_known

    @property
    def holds_ring(self) -> bool:
        """Whether its stream has a ring."""
        return self.stream.ring is not None

    @property
    def ring(self) -> Ring:
        """The ring of its stream, which must have one."""
        assert self.stream.ring is not None, f"{self}: no ring"
        return self.stream.ring

    @property
    def taken(self) -> int:
        """Bytes that the socket took; all of them were right."""
        return self.checker.offset

    @property
    def came(self) -> int:
        """Bytes that the session delivered."""
        return self.checker.offset + len(self.waiting)

    # -------------------------------------------------------------- what a test does

    def start(self, stream: Stream) -> None:
        """Belong to a stream."""
        self.stream = stream
        self.started = True
        self.record = stream.record

    def write(self, size: int) -> None:
        """Let the app write."""
        assert not self.ended, "the test wrote behind the end"
        self.written += size

    def end(self) -> None:
        """Let the app end its output."""
        self.ended = True

    def read(self, size: int = MANY) -> int:
        """Let the relay read once, at most ``size`` bytes; what :meth:`Stream.fill` said."""
        if self.over or not self.watching or not self.started:
            return -1
        available = min(self.written - self.read_bytes, size)
        if not available and not (self.ended and self.read_bytes == self.written):
            return -1  # nothing to read: the loop would not have called

        def receive_into(view: memoryview) -> int:
            assert len(view), "there is room, but none is offered"
            count = min(available, len(view))
            view[:count] = pattern(self.seed, self.read_bytes, count)
            return count

        count = self.stream.fill(receive_into)
        if count < 0:
            self.watching = False
        elif count == 0:
            self.watching = False
            self.finished = True
            self.stream.finish()
        else:
            self.read_bytes += count
        return count

    def take(self, size: int) -> None:
        """Let the app read: the socket has room for ``size`` bytes more."""
        self.appetite += size
        if self.over or not self.connected:
            return
        count = min(len(self.waiting), self.appetite)
        if count:
            self._swallow(self.waiting[:count])
            del self.waiting[:count]
            self.stream.delivered_more(count)
        if not self.waiting and self.fin_waits:
            self._pass_fin_on()

    def connect(self) -> None:
        """Let the socket be connected, if it was not."""
        self.connected = True
        self.take(0)

    def fail(self, code: ResetCode = ResetCode.CANCELLED) -> None:
        """Let the socket fail: the relay lets go of it and resets the stream."""
        if self.started and not self.over:
            self.over = "reset"
            self.code = code
            self.stream.reset(code)

    @property
    def is_connecting(self) -> bool:
        """Whether its socket has never moved anything and does not yet."""
        moved = self.read_bytes or self.finished or self.fin_passed_on
        return not (self.connected or moved)

    def counters(self, *, is_target: bool) -> TcpCounters:
        """What the kernel would say of this socket."""
        if self.is_connecting:
            return TcpCounters(
                state=TcpState.SYN_SENT, acked=0, unacked=0, received=0, unread=0
            )
        state = {
            (False, False): TcpState.ESTABLISHED,
            (True, False): TcpState.CLOSE_WAIT,
            (False, True): TcpState.FIN_WAIT2,
            (True, True): TcpState.CLOSE,
        }[self.ended, self.fin_passed_on]
        return TcpCounters(
            state=state,
            acked=self.taken + self.fin_passed_on + is_target,
            unacked=0,
            received=self.written + self.ended,
            unread=self.written - self.read_bytes,
        )

    def go_on(self, stream: Stream) -> None:
        """Belong to a stream that a successor made."""
        self.stream = stream
        self.record = stream.record
        self.watching = not self.finished
        self.waiting.clear()
        self.fin_waits = False
        stream.endpoint = self

    # ------------------------------------------------------------ the session calls

    def deliver(self, data: memoryview) -> int:
        """See :class:`~tunneltcp.protocol.stream.Endpoint`; so for the others here."""
        assert not self.over, f"{self}: bytes after the end"
        assert not self.fin_waits, f"{self}: bytes after FIN"
        assert not self.fin_passed_on, f"{self}: bytes after FIN"
        assert len(data), f"{self}: an empty delivery"
        count = 0
        if self.connected and not self.waiting:
            count = min(len(data), self.appetite)
            self._swallow(data[:count])
        self.waiting += data[count:]
        return count

    def _swallow(self, data: bytearray | memoryview) -> None:
        self.appetite -= len(data)
        self.checker.feed(data)

    def deliver_fin(self) -> None:
        """FIN came."""
        assert not self.over, f"{self}: FIN after the end"
        assert not self.fin_waits, f"{self}: FIN twice"
        assert not self.fin_passed_on, f"{self}: FIN twice"
        self.fin_waits = True
        if self.connected and not self.waiting:
            self._pass_fin_on()

    def _pass_fin_on(self) -> None:
        self.fin_waits = False
        self.stream.record_fin()
        self.fin_passed_on = True
        self.stream.fin_done()

    def resume_reading(self) -> None:
        """There is room."""
        assert not self.over, f"{self}: woken after the end"
        self.watching = True

    def drop_waiting(self) -> None:
        """The link is lost."""
        assert not self.over, f"{self}: told after the end"
        self.waiting.clear()
        self.fin_waits = False

    def abort(self, code: int) -> None:
        """RESET."""
        assert not self.over, f"{self}: over twice"
        self.over = "aborted"
        self.code = code

    def close(self) -> None:
        """A clean end."""
        assert not self.over, f"{self}: over twice"
        self.over = "clean"


class Visit:
    """One visitor: the visitor's socket at the server, the target's at the client."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.visitor = End(f"visitor {number}", 2 * number, 2 * number + 1, connected=True)
        self.target = self.new_target()
        self.link_lost = False

    def new_target(self) -> End:
        """The target's end, of which nothing is known yet."""
        name = f"target {self.number}"
        return End(name, 2 * self.number + 1, 2 * self.number, connected=True)

    @property
    def ends(self) -> tuple[End, End]:
        """Both."""
        return self.visitor, self.target

    def check_ends(self) -> None:
        """What one end was told about the other must be true."""
        for end, far in ((self.visitor, self.target), (self.target, self.visitor)):
            assert end.came <= far.read_bytes, f"{end}: bytes from nowhere"
            if end.fin_waits or end.fin_passed_on:
                assert far.finished, f"{end}: FIN, but {far} never finished"
                assert end.came == far.read_bytes == far.written, f"{end}: FIN too early"
            if end.over == "aborted" and not self.link_lost:
                cause = far.code if far.started else ResetCode.OVER_LIMIT
                assert not far.started or far.over == "reset", f"{end}: reset by nobody"
                # A resume tells that a stream was reset, not why.
                codes = (cause, ResetCode.CANCELLED)
                assert end.code in codes, f"{end}: reset for another reason"
            if end.over == "clean":
                assert end.finished, f"{end}: a clean end without its own FIN"
                assert end.fin_passed_on, f"{end}: a clean end without the peer's FIN"
                assert end.taken == far.written, f"{end}: a clean end that lacks bytes"
                assert far.taken == end.written, f"{end}: a clean end, {far} lacks bytes"
                assert far.fin_passed_on, f"{end}: a clean end, {far} does not know"


class Wire:
    """One direction of a link: what was handed out, what was written, what came."""

    def __init__(self) -> None:
        self.batch: list[bytes | memoryview] = []
        self._copy = b""
        self._done = 0
        """Bytes of the batch that were written."""
        self.flying = bytearray()
        self.kept = b""
        self.carried = 0
        """Bytes ever written."""

    @property
    def is_blocked(self) -> bool:
        """Whether something handed out is still to be written."""
        return bool(self.batch)

    def offer(self, batch: list[bytes | memoryview]) -> None:
        """Take what a session handed out."""
        assert not self.batch, "more was asked for before the last was written"
        self.batch = batch
        self._copy = b"".join(batch)
        self._done = 0

    def write(self, size: int) -> int:
        """Let the kernel take ``size`` bytes of the batch; how many those were."""
        if not self.batch:
            return 0
        assert b"".join(self.batch)[self._done :] == self._copy[self._done :], (
            "buffers changed between being handed out and being written"
        )
        part = self._copy[self._done : self._done + size]
        self.flying += part
        self.carried += len(part)
        self._done += len(part)
        if self._done == len(self._copy):
            self.batch = []
        return len(part)


class Side:
    """One side: its session, its memory, and the wire that it writes to."""

    round_trip_seconds = 0.0
    """What the link is said to have shown: with time that stands still, any window grows that
    was used up."""

    def __init__(
        self, name: str, budget_bytes: int, max_streams: int, *, opens: bool, first_limit: int
    ) -> None:
        self.name = name
        self.budget_bytes = budget_bytes
        self.records = max(64, 4 * max_streams)
        self.table_memory = bytearray(8 * (HEADER_WORDS + RECORD_WORDS * self.records))
        self.arena_memory = mmap.mmap(-1, 8 * budget_bytes)
        self.discarded: list[tuple[int, int]] = []
        self._held_back: list[Ring] = []
        self.table = StreamTable(memoryview(self.table_memory))
        self.arena = Arena(memoryview(self.arena_memory), budget_bytes, self._discard)
        self.max_streams = max_streams
        self._opens = opens
        self._first_limit = first_limit
        self.out = Wire()
        self.inbox = Wire()
        self.buffer = bytearray(1 << 20)
        self.pongs: list[int] = []
        self.goaways: list[int] = []
        self.resumed: list[tuple[int, int]] = []
        """What was told at the end of each resume: streams, bytes sent again."""
        self.accept: Callable[[Stream, bytes], Endpoint] | None = None
        self.session = self._new_session()

    def __repr__(self) -> str:
        return f"<{self.name} streams={len(self.session.streams)} used={self.arena.used_bytes}>"

    def _new_session(self) -> Session:
        session = self._make_session()
        session.begin(self._first_limit)
        return session

    def _make_session(self) -> Session:
        session = Session(
            self,
            opens=self._opens,
            arena=self.arena,
            table=self.table,
            max_streams=self.max_streams,
        )
        session.windows.round_trip_seconds = self.round_trip_seconds
        return session

    def let_windows_grow(self) -> None:
        """From now on, and in the hands of other workers."""
        self.round_trip_seconds = self.session.windows.round_trip_seconds = 1.0

    def _discard(self, start: int, size: int) -> None:
        """Give the range back, as a worker does: it reads as zeros."""
        self.arena_memory.madvise(mmap.MADV_REMOVE, start, size)
        self.discarded.append((start, size))

    def detach(self) -> None:
        """The link is lost, with all that was under way."""
        self.out, self.inbox = Wire(), Wire()
        self.session.detach()

    def die(self, ends: dict[int, End]) -> None:
        """The worker dies, and another goes on with its memory and with these sockets.

        Args:
            ends: By the id of their stream; those that are not over.
        """
        left_bytes = self.arena.left_bytes if self._held_back else MANY
        for end in ends.values():
            end.acked_floor = max(end.acked_floor, end.stream.acked)
        self.out, self.inbox = Wire(), Wire()
        self._held_back = []
        self.table = StreamTable(memoryview(self.table_memory))
        self.arena = Arena(memoryview(self.arena_memory), self.budget_bytes, self._discard)
        self.session = self._make_session()
        self.session.last_id = self.table.last_id
        records = self.table.records()
        rings = self.arena.adopt(record.ring_word for record in records if record.ring_word)
        self.session.windows.heirs = len(records)
        for record in records:
            ring = rings[record.ring_word] if record.ring_word else None
            self._go_on(record, ring, ends.pop(record.stream_id, None))
        self.session.windows.heirs = 0
        assert not ends, "a socket without a record"
        self.hold_back(left_bytes)

    def _go_on(self, record: Record, ring: Ring | None, end: End | None) -> None:
        kernel = end.counters(is_target=not self._opens) if end is not None else None
        verdict = judge(record, kernel, connected=not self._opens)
        if end is None:
            assert verdict.fate is Fate.RESET, "the record of a stream that is over"
            rebuild_reset(self.session, record, ring)
            return
        fate = Fate.CONNECT if end.is_connecting else Fate.GOES_ON
        assert verdict.fate is fate, f"{end}: {record} {kernel} {verdict}"
        assert (verdict.head, verdict.delivered) == (end.read_bytes, end.taken), end
        assert verdict.fin_delivered == end.fin_passed_on
        stream = rebuild_stream(
            self.session,
            record,
            ring,
            head=verdict.head,
            delivered=verdict.delivered,
            fin_delivered=verdict.fin_delivered,
            addresses=addresses(record.cookie - 1000) if self._opens else b"",
        )
        if stream is None:
            rebuild_reset(self.session, record, ring)
            end.over = "reset"
            end.code = ResetCode.OVER_LIMIT
        else:
            end.go_on(stream)

    def attach(self, out: Wire, inbox: Wire, *, resumed: bool) -> None:
        """There is a link again."""
        self.out, self.inbox = out, inbox
        if resumed:
            self.session.resume(self._first_limit)
        else:
            self.session.begin(self._first_limit)

    def hold_back(self, left_bytes: int) -> None:
        """Leave only so much of the budget for rings, as if other streams had the rest."""
        while self.arena.left_bytes > left_bytes:
            ring = self.arena.take(1)
            assert ring is not None, "the budget is not used up"
            self._held_back.append(ring)

    def limit_batches(self, room: int) -> None:
        """Let a batch of this side hold so many bytes, as :class:`.Flight` has it."""
        sender = self.session.sender
        sender.room_bytes = room
        sender.frame_bytes = max(1024, min(MAX_PAYLOAD_BYTES, room // 2))
        self._tell_sender()

    def hold_nothing_back(self) -> None:
        """Give back what :meth:`hold_back` took; whoever waits for room is not told."""
        while self._held_back:
            self.arena.give(self._held_back.pop())

    # ---------------------------------------------------------- the session calls

    def on_open(self, stream: Stream, addresses: bytes) -> Endpoint:
        """A visitor is there."""
        assert self.accept is not None, "only a client is told of visitors"
        return self.accept(stream, addresses)

    def on_pong(self, value: int) -> None:
        """Note it."""
        self.pongs.append(value)

    def on_goaway(self, code: int) -> None:
        """Note it."""
        self.goaways.append(code)

    def on_resumed(self, streams: int, again_bytes: int) -> None:
        """Note it."""
        self.resumed.append((streams, again_bytes))

    # ------------------------------------------------------------ what a test does

    def write(self, size: int = MANY) -> int:
        """Hand out a batch if there is none, then write; how many bytes went."""
        if not self.session.is_attached:
            return 0
        if not self.out.is_blocked:
            batch = self.session.data_to_send()
            assert self.session.sender.batch_bytes == sum(map(len, batch)), "batch_bytes"
            assert len(batch) <= 1024, "more buffers than one sendmsg takes"
            assert sum(map(len, batch)) <= 2 * BATCH_BYTES, "a batch is about BATCH_BYTES"
            assert all(map(len, batch)), "an empty buffer"
            self.out.offer(batch)
        count = self.out.write(size)
        self._tell_sender()
        return count

    def _tell_sender(self) -> None:
        """Say what was written, and what may be framed when it is read, as the link does."""
        sender = self.session.sender
        if not self.out.is_blocked:
            sender.is_unwritten = False
        wanted = self.out.is_blocked or sender.has_output
        is_free = sender.room_bytes >= BATCH_BYTES and not wanted
        sender.small_bytes = MODEST_BYTES if is_free else 0

    def receive(self, wire: Wire | None = None, size: int = MANY) -> int:
        """Take what the other side's wire carries; how many bytes came."""
        wire = wire if wire is not None else self.inbox
        if not self.session.is_attached:
            return 0
        count = min(size, len(wire.flying), len(self.buffer) - len(wire.kept))
        if not count:
            return 0
        kept = len(wire.kept)
        end = kept + count
        self.buffer[:end] = wire.kept + wire.flying[:count]
        del wire.flying[:count]
        view = memoryview(self.buffer)
        used = self.session.receive(view, end)
        wire.kept = bytes(view[used:end])
        assert len(wire.kept) < 64, "more is left than the beginning of a small frame"
        self.buffer[:end] = bytes(end)  # whoever kept a view of it will see zeros
        return count

    def check(self) -> None:
        """What must hold at each step, in one session's books."""
        session = self.session
        streams = session.streams.values()
        assert len(streams) <= self.max_streams
        held = [*streams, *session.resetting.values()]
        rings = [stream.ring for stream in held if stream.ring is not None]
        rings += session.sender.retired + self._held_back
        assert self.arena.used_bytes == sum(ring.size for ring in rings), "rings leak"
        assert self.arena.used_bytes <= self.budget_bytes, "rings over the budget"
        assert session.windows.granted_bytes == sum(s.window for s in streams), "windows leak"
        assert session.windows.granted_bytes <= self.budget_bytes, "windows over the budget"
        places = sorted(((ring.word >> 8) - 1, ring.size) for ring in rings)
        for (unit, size), (after, _) in itertools.pairwise(places):
            assert unit * MIN_RING_BYTES + size <= after * MIN_RING_BYTES, "two rings overlap"
        for stream in streams:
            self._check_stream(stream)
        self._check_records({stream.record: stream.id for stream in held})

    def _check_stream(self, stream: Stream) -> None:
        ring_bytes = stream.ring.size if stream.ring is not None else 0
        assert stream.acked <= stream.sent <= stream.head, stream
        assert stream.sent <= stream.limit, stream
        assert stream.head - stream.acked <= ring_bytes, stream
        assert stream.reported <= stream.delivered <= stream.received, stream
        assert stream.received - stream.delivered <= stream.window, stream
        if stream.peer_fin < 0 and self.session.is_attached:
            assert stream.received <= stream.granted, stream
            assert stream.granted <= stream.reported + stream.window, stream

    def _check_records(self, held: dict[int, int]) -> None:
        words = self.table.words
        for index in range(self.records):
            record = HEADER_WORDS + RECORD_WORDS * index
            if record in held:
                assert words[record + STREAM_ID] == held[record], "a record of two streams"
            else:
                assert not any(words[record : record + RECORD_WORDS]), "a record leaks"
        assert len(set(held.values())) == len(held), "a stream with two records"

    def check_record(self, end: End) -> None:
        """The record says what is true of this end's socket."""
        if end.over or not end.started:
            return
        stream = end.stream
        words, record = self.table.words, end.record
        assert words[record + STREAM_ID] == stream.id
        assert words[record + READ_WORD] == end.read_bytes == stream.head
        assert words[record + RING_WORD] == (stream.ring.word if stream.ring else 0)
        assert words[record + FLAGS] & END_READ == (END_READ if end.finished else 0)
        assert not words[record + FLAGS] & ERROR_SEEN
        assert words[record + FIN_OFFSET] == (end.taken + 1 if end.fin_passed_on else 0)
        assert stream.delivered == end.taken
        assert stream.received == end.came
        if stream.ring is not None and stream.head > stream.acked:
            last = stream.head - 1  # the ring is the replay buffer: what is in it is right
            acked = max(stream.acked, end.acked_floor)
            for offset in {acked, (acked + last) // 2, last} if acked <= last else ():
                start = ((words[record + RING_WORD] >> 8) - 1) * MIN_RING_BYTES
                byte = self.arena_memory[start + offset % stream.ring.size]
                assert byte == pattern(end.seed, offset, 1)[0], f"ring of {end} at {offset}"


class SessionPair:
    """A server's session and a client's, and what joins them.

    Args:
        budget_bytes: Of each side.
        max_streams: Of each side.
        first_id: The first stream id, as if so many visitors had come before.
    """

    def __init__(
        self,
        budget_bytes: int = 4 << 20,
        *,
        client_budget_bytes: int = 0,
        max_streams: int = 16,
        client_max_streams: int = 0,
        first_id: int = 1,
        first_limit: int = FIRST_WINDOW_BYTES,
    ) -> None:
        self.server = Side(
            "server", budget_bytes, max_streams, opens=True, first_limit=first_limit
        )
        self.server.table.words[_NEXT_ID_WORD] = first_id
        self.client = Side(
            "client",
            client_budget_bytes or budget_bytes,
            client_max_streams or max_streams,
            opens=False,
            first_limit=0,
        )
        self.client.accept = self._accept
        self.server.inbox, self.client.inbox = self.client.out, self.server.out
        self.offered: tuple[Wire, Wire] | None = None
        """A link that the server has taken and the client has not: to client, to server."""
        self._offer_resumes = False
        self._server_session = self._client_session = 1
        self.visits: list[Visit] = []
        self.connects_at_once = True
        self._appetite = 0
        """Of targets still to come."""
        self.refuses = False
        """Whether targets refuse, in the very call that tells of the visitor."""

    @property
    def sides(self) -> tuple[Side, Side]:
        """Both."""
        return self.server, self.client

    def open(self) -> Visit | None:
        """Let a visitor come; None if there was no room for it."""
        visit = Visit(len(self.visits))
        end = visit.visitor
        cookie = 1000 + visit.number
        payload = addresses(visit.number)
        stream = self.server.session.open_stream(end, cookie, payload)
        if stream is None:
            return None
        end.start(stream)
        assert self.server.table.words[stream.record + COOKIE] == cookie
        self.visits.append(visit)
        return visit

    def must_open(self) -> Visit:
        """Let a visitor come for whom there is room."""
        visit = self.open()
        assert visit is not None, "no room for a visitor"
        return visit

    def _accept(self, stream: Stream, payload: bytes) -> Endpoint:
        number = int.from_bytes(payload[5:7], "big")
        assert payload == addresses(number), "OPEN carries other addresses"
        end = self.visits[number].target
        assert not end.started, "a visitor was announced twice"
        end.connected = self.connects_at_once
        end.appetite = max(end.appetite, self._appetite)
        end.start(stream)
        if self.refuses:
            end.fail(ResetCode.TARGET_REFUSED)
        return end

    def pump(self, size: int = MANY) -> int:
        """Write and receive once in each direction; how many bytes moved."""
        moved = 0
        for side, other in ((self.server, self.client), (self.client, self.server)):
            moved += side.write(size)
            moved += other.receive(size=size)
        return moved

    def settle(self, turns: int = 10_000) -> None:
        """Run until nothing moves: wires carry, endpoints read, time passes."""
        quiet = 0
        for _ in range(turns):
            moved = self.pump()
            for visit in self.visits:
                for end in visit.ends:
                    moved += max(0, end.read())
            if moved:
                quiet = 0
                continue
            for side in self.sides:
                side.session.sweep()
            quiet += 1
            if quiet > 4:
                break
        else:
            raise AssertionError("it never comes to rest")
        self.check()

    def make_willing(self) -> None:
        """From now on every socket is connected and takes all that comes."""
        self.connects_at_once = True
        self._appetite = MANY
        for side in self.sides:
            side.limit_batches(BATCH_BYTES)
        for visit in self.visits:
            for end in visit.ends:
                end.appetite = MANY
                end.connect()

    def end_all(self) -> None:
        """Let every app end its output."""
        for visit in self.visits:
            for end in visit.ends:
                end.end()

    # --------------------------------------------------------------------- links

    def cut(self) -> None:
        """The link is lost on both sides; they know it at once."""
        for side in self.sides:
            side.detach()
        self.offered = None

    def die(self, side: Side) -> None:
        """A worker dies and is replaced; the other side's link is as it was, and dead."""
        is_server = side is self.server
        ends = [visit.visitor if is_server else visit.target for visit in self.visits]
        side.die({end.stream.id: end for end in ends if end.started and not end.over})
        self.offered = None

    def offer(self, *, resumes: bool = True) -> None:
        """The server takes a new link, and lets go of an older one; WELCOME is under way.

        Args:
            resumes: Whether the client still has its session. If that is not the one that
                the server has, a new one begins all the same.
        """
        resumes = resumes and self._client_session == self._server_session
        if not resumes:
            self._server_session += 1
            for visit in self.visits:
                if visit.visitor.is_known:
                    visit.link_lost = True
        self.offered = Wire(), Wire()
        self._offer_resumes = resumes
        self.server.attach(*self.offered, resumed=resumes)

    def take_offer(self) -> None:
        """WELCOME reaches the client: it lets go of an older link, and takes the new one."""
        assert self.offered is not None, "there is no new link"
        to_client, to_server = self.offered
        self.offered = None
        self._client_session = self._server_session
        self.client.attach(to_server, to_client, resumed=self._offer_resumes)
        if not self._offer_resumes:
            for visit in self.visits:
                if visit.target.started and not visit.visitor.over:
                    visit.target = visit.new_target()
                    visit.link_lost = False

    def resume(self) -> None:
        """A new link goes on with the session."""
        self.offer()
        self.take_offer()

    def relink(self) -> None:
        """The client was started anew, and so is the session."""
        self.offer(resumes=False)
        self.take_offer()

    def abandon(self, side: Side) -> None:
        """A side without a link has waited long enough."""
        assert not side.session.is_attached, "it has a link"
        for visit in self.visits:
            known = visit.target.started if side is self.client else visit.visitor.is_known
            if known:
                visit.link_lost = True
        side.session.abandon(ResetCode.CANCELLED)

    # -------------------------------------------------------------------- checks

    def check(self) -> None:
        """What must hold at each step."""
        for side in self.sides:
            side.check()
        for visit in self.visits:
            self.server.check_record(visit.visitor)
            self.client.check_record(visit.target)
            visit.check_ends()

    def check_complete(self) -> None:
        """Nothing is under way and every socket is willing: all that was read has come."""
        for visit in self.visits:
            for end, far in (visit.ends, visit.ends[::-1]):
                if not visit.visitor.over and not visit.target.over:
                    assert end.read_bytes == end.written, f"{end}: stuck, not all was read"
                    assert far.taken == end.written, f"{end}: stuck, {far} lacks bytes"
                    assert not end.ended or end.finished, f"{end}: its end was not read"
                    assert far.fin_passed_on == end.finished, f"{end}: stuck FIN"

    def check_all_over(self) -> None:
        """Every stream is over on both sides, and nothing is held for any."""
        for visit in self.visits:
            for end in visit.ends:
                assert end.over or not end.started, f"{end}: never ended"
        for side in self.sides:
            session = side.session
            assert not session.streams
            assert not session.resetting, "a RESET without an answer"
            for _ in range(2):
                session.sweep()
            assert not session.owing
            assert not session.data_to_send(), "something is left to say"
            assert not session.sender.has_output
            side.hold_nothing_back()
            assert side.arena.used_bytes == 0, "ring memory leaks"
            assert session.windows.granted_bytes == 0, "windows leak"
            words = side.table.words
            for index in range(side.records):
                record = HEADER_WORDS + RECORD_WORDS * index
                assert not words[record + STREAM_ID], "a record leaks"
