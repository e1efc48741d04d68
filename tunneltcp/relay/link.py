"""The link: one connection that carries a session, until the next one does.

Theory of operation
-------------------
What comes is received into one large buffer, which the session works through in place.
What is to go is asked from the session once per turn of the loop and written with one
``sendmsg``; what the kernel would not take waits here, and nothing more is asked for until
it is gone, so the queue in front of a new frame stays short. How much may be on its way is
``protocol/flight.py``'s to say: at its bound no DATA is asked for, and the next PONG, or its
absence, goes on. Reading never waits for
writing. The session is the owner's and outlives the link: who makes a link calls
``session.begin`` or ``session.resume`` before :meth:`Link.start`; a link that ends detaches it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from tunneltcp.net.loop import READ, WRITE
from tunneltcp.net.sockopt import gather_send
from tunneltcp.net.tcp_counters import all_acknowledged, packets_resent
from tunneltcp.protocol.bucket import Bucket
from tunneltcp.protocol.errors import GoawayCode, RemoteProtocolError
from tunneltcp.protocol.flight import PING_SECONDS, Flight
from tunneltcp.protocol.frames import MAX_PAYLOAD_BYTES
from tunneltcp.protocol.liveness import Liveness, Verdict
from tunneltcp.protocol.sender import BATCH_BYTES, MODEST_BYTES
from tunneltcp.protocol.session import SWEEP_SECONDS

if TYPE_CHECKING:
    from tunneltcp.net.loop import Loop, Timer
    from tunneltcp.net.transport import Transport
    from tunneltcp.protocol.session import Session
    from tunneltcp.protocol.stream import Endpoint, Stream
    from tunneltcp.relay.memory import ReceiveBuffer

__all__ = ["Link", "LinkOwner"]

BATCHES_PER_TURN: Final = 4
"""Batches written before the others get their turn."""
JOIN_BYTES: Final = 64 * 1024
"""Batches up to this size are written as one piece: copying it costs less than handing the
kernel a hundred small ones (3 % of a request)."""
MIN_FRAME_BYTES: Final = 1024
FRAMES_PER_BATCH: Final = 4
"""On a link that is held back, so that as many streams as that get a turn in each batch."""
RTT_SECONDS: Final = 10.0
"""A link that is never silent gets a PING this often all the same: its round trip is shown."""
_NOTHING: Final[list[bytes | memoryview]] = []
_WARM_BYTES: Final = 64 * 1024
"""A receive that touches more than this makes the buffer worth giving back when idle."""


class LinkOwner(Protocol):
    """What a worker wants to know of its link."""

    def on_open(self, link: Link, stream: Stream, addresses: bytes) -> Endpoint:
        """A visitor is there (client only)."""

    def on_doubt(self, link: Link) -> None:
        """The link is silent for too long."""

    def on_trust(self, link: Link) -> None:
        """A doubted link spoke again."""

    def on_answer(self, link: Link) -> None:
        """The link answered the latest PING: both of its ways are open."""

    def on_goaway(self, link: Link, code: int) -> None:
        """The peer opens, or takes, no new streams."""

    def on_resumed(self, link: Link, streams: int, again_bytes: int) -> None:
        """The session goes on over this link: so many streams, so many bytes sent again."""

    def on_lost(self, link: Link, reason: str) -> None:
        """The link is over, its socket closed; the session waits for the next one."""


class Link:
    """Runs a session over a connection, from WELCOME to its end."""

    def __init__(
        self,
        loop: Loop,
        transport: Transport,
        owner: LinkOwner,
        session: Session,
        buffer: ReceiveBuffer,
        *,
        peer: str,
        idle_ping_seconds: float,
        rate: int = 0,
    ) -> None:
        self._loop = loop
        self._transport = transport
        self._fd = transport.fileno()
        self._owner = owner
        self._buffer = buffer
        self._receive_into = transport.recv_into
        self._send = transport.send
        self._sendmsg = gather_send(transport)
        self._pending = _NOTHING
        self._kept = b""
        self._writing = False
        self.is_open = True
        self.peer = peer
        self.rtt_seconds = 0.0
        self.session = session
        session.handler = self
        session.windows.clock = lambda: loop.now
        session.windows.round_trip_seconds = 0.0
        self.ends_session = False
        """Whether the session is over with this link: it broke, or a side said GOAWAY."""
        self.liveness = Liveness(idle_ping_seconds, loop.now)
        self._life_timer: Timer | None = None
        self._sweeping = False
        self._measured = loop.now
        self._last_ping = 0
        self._asked = 0
        """The PING that the owner waits for; 0: none."""
        self._flight = Flight(loop.now, Bucket(rate, loop.now) if rate else None)
        self._waits = False
        """Whether it is waited until the limit has room again."""

    def fileno(self) -> int:
        """The descriptor of its connection."""
        return self._fd

    @property
    def is_doubted(self) -> bool:
        """Whether the peer is silent for too long."""
        return self.liveness.doubted

    @property
    def heard(self) -> float:
        """When the last byte came, on the loop's clock."""
        return self.liveness.heard

    @property
    def is_acknowledged(self) -> bool:
        """Whether all that was sent has come to the peer's machine, so far as it is known."""
        return not self._pending and all_acknowledged(self._transport)

    def start(self, rest: bytes) -> None:
        """Begin; ``rest`` is what came behind the handshake."""
        self._loop.register(self._fd, READ, self.on_events)
        self.ping()  # for its round trip; whether it is answered is not judged
        self._set_life_timer()
        if rest:
            self._take(memoryview(rest), len(rest))

    # ------------------------------------------------------------------ receiving

    def on_events(self, events: int) -> None:
        """The socket is ready."""
        if events & READ:
            self._read()
        if events & WRITE and self.is_open:
            self.flush()

    def _read(self) -> bool:
        """Receive once; return whether anything came."""
        view = self._buffer.view
        kept = len(self._kept)
        if kept:
            view[:kept] = self._kept
            view = view[kept:]
        try:
            receive_into = self._receive_into
            count = receive_into(view)
        except BlockingIOError:
            return False
        except OSError as error:
            self.lose(f"connection failed: {error.strerror}")
            return True
        if not count:
            self.lose("closed by the other side")
            return True
        if count > _WARM_BYTES:
            self._buffer.used = True
        if self.liveness.doubted:
            self.liveness.hear(self._loop.now)
            self._set_life_timer()
            self._owner.on_trust(self)
        self.liveness.heard = self._loop.now
        self._take(self._buffer.view, kept + count)
        return True

    def _take(self, view: memoryview, end: int) -> None:
        try:
            used = self.session.receive(view, end)
        except RemoteProtocolError as error:
            self.ends_session = True
            self.session.goaway(GoawayCode.PROTOCOL_ERROR)
            self.flush()
            self.lose(f"protocol error: {error}")
            return
        self._kept = bytes(view[used:end]) if used < end else b""

    # -------------------------------------------------------------------- sending

    def flush(self) -> None:  # noqa: C901, PLR0912 - the hot path
        """Write what the session has, as far as the kernel takes it."""
        session = self.session
        sender = session.sender
        flight = self._flight
        batches = BATCHES_PER_TURN
        wanted = True
        while batches:
            batches -= 1
            pending = self._pending
            if pending:
                size = sum(map(len, pending))
            else:
                if flight.written >= flight.look_at:
                    self._look()
                pending = session.data_to_send()
                size = sender.batch_bytes
                if not size:
                    wanted = sender.has_output and sender.room_bytes > 0
                    if not wanted and flight.bucket is not None:
                        self._wait_for_room()
                    break
                flight.written += size
            try:
                if size <= JOIN_BYTES:
                    send, whole = self._send, b"".join(pending)
                    pending = [whole]
                    count = send(whole)
                else:
                    sendmsg = self._sendmsg
                    count = sendmsg(pending)
            except BlockingIOError:
                count = 0
            except OSError as error:
                self.lose(f"connection failed: {error.strerror}")
                return
            if count < size:
                _drop_sent(pending, count)
                self._pending = pending
                break
            self._pending = _NOTHING
            sender.is_unwritten = False
            if not (sender.ready or sender.framed or sender.has_small):
                wanted = False
                break
        if wanted != self._writing:
            self._writing = wanted
            self._loop.modify(self._fd, READ | WRITE if wanted else READ, self.on_events)
        sender.small_bytes = 0 if wanted or sender.room_bytes < BATCH_BYTES else MODEST_BYTES

    def _look(self) -> None:
        """How much may go out now, and is a PING due in front of it?"""
        flight, sender = self._flight, self.session.sender
        if flight.look(self._loop.now):
            self._send_ping()
        spacing = flight.spacing
        sender.room_bytes = min(BATCH_BYTES, flight.room, spacing)
        frame_bytes = max(MIN_FRAME_BYTES, spacing // FRAMES_PER_BATCH)
        sender.frame_bytes = min(MAX_PAYLOAD_BYTES, frame_bytes)

    def _wait_for_room(self) -> None:
        if not self._waits:
            self._waits = True
            self._loop.call_later(PING_SECONDS, self._on_room)

    def _on_room(self) -> None:
        self._waits = False
        if self.is_open and not self._writing:
            self.flush()

    def end_turn(self) -> None:
        """At the end of each turn of the loop: write once for all that happened."""
        session = self.session
        sender = session.sender
        # Not by has_output: a property costs as much as ten plain look-ups.
        if not self._writing and (sender.framed or sender.ready or sender.has_small):
            self.flush()
        if session.owing and not self._sweeping:
            self._sweeping = True
            self._loop.call_later(SWEEP_SECONDS, self._on_sweep)

    def _on_sweep(self) -> None:
        self._sweeping = False
        if self.is_open:
            self.session.sweep()

    # ------------------------------------------------------------------ life signs

    def ask_for_life(self, *, whatever_came: bool = False) -> None:
        """Send a PING at once, if the link was silent for a moment, or in any case."""
        if self.liveness.ask(self._loop.now, whatever_came=whatever_came):
            self.ping()
            self._set_life_timer()
        elif len(self.session.streams) == 1:
            self._set_life_timer()  # no longer idle: it is asked earlier

    def ping(self) -> None:
        """Send a PING, whatever came lately."""
        self._measured = self._loop.now
        self._asked = self._send_ping()

    def _send_ping(self) -> int:
        now = self._loop.now
        value = self._last_ping = max(self._last_ping + 1, int(now * 1e6))
        self._flight.note_ping(value, now, packets_resent(self._transport))
        self.session.ping(value)
        return value

    def _set_life_timer(self) -> None:
        if self._life_timer is not None:
            self._life_timer.cancel()
        if not self.liveness.doubted:
            when = self.liveness.next_check(busy=bool(self.session.streams))
            self._life_timer = self._loop.call_at(
                max(when, self._loop.now + 0.05), self._on_life_timer
            )

    def _on_life_timer(self) -> None:
        """Silence is judged only after a read that found nothing."""
        if self.is_open:
            self._read()
        if not self.is_open:
            return
        verdict = self.liveness.check(self._loop.now, busy=bool(self.session.streams))
        if verdict is Verdict.PING or self._loop.now - self._measured > RTT_SECONDS:
            self.ping()
        if verdict is Verdict.DOUBT:
            self._owner.on_doubt(self)
        self._set_life_timer()

    # ------------------------------------------------------------ the session calls

    def on_open(self, stream: Stream, addresses: bytes) -> Endpoint:
        """Pass it on."""
        if len(self.session.streams) == 1:
            self._set_life_timer()
        return self._owner.on_open(self, stream, addresses)

    def on_pong(self, value: int) -> None:
        """Measure the round trip, and pass it on."""
        resent = packets_resent(self._transport)
        trip = self._flight.note_pong(value, self._loop.now, resent)
        if trip is None:
            return
        self.session.windows.round_trip_seconds = self._flight.round_trip
        if 0 < self._asked <= value:  # of several PINGs that wait, only the last is answered
            self._asked = 0
            self.rtt_seconds = trip
            self._owner.on_answer(self)

    def on_goaway(self, code: int) -> None:
        """Pass it on."""
        self.ends_session = True
        self._owner.on_goaway(self, code)

    def on_resumed(self, streams: int, again_bytes: int) -> None:
        """Pass it on."""
        self._owner.on_resumed(self, streams, again_bytes)

    # ------------------------------------------------------------------------- end

    def close(self) -> None:
        """End the link: its session waits for the next one, its owner is not called."""
        if not self.is_open:
            return
        self.is_open = False
        if self._life_timer is not None:
            self._life_timer.cancel()
        self._loop.unregister(self._fd)
        self._transport.close()
        self._pending = _NOTHING
        self.session.detach()

    def lose(self, reason: str) -> None:
        """End the link as if it had failed: its owner is told."""
        if self.is_open:
            self.close()
            self._owner.on_lost(self, reason)


def _drop_sent(buffers: list[bytes | memoryview], count: int) -> None:
    """Take the first ``count`` bytes out of ``buffers``."""
    done = 0
    for buffer in buffers:
        if count < len(buffer):
            break
        count -= len(buffer)
        done += 1
    del buffers[:done]
    if count:
        buffers[0] = memoryview(buffers[0])[count:]
