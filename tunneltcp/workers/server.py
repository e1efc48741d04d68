"""The server's worker: a public port, its visitors, and the link of its client."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Final

from tunneltcp.control.counters import Counter
from tunneltcp.net.address import local_address, pack_address
from tunneltcp.net.sockopt import cookie
from tunneltcp.net.tls import server_tls
from tunneltcp.protocol.errors import GoawayCode, ResetCode
from tunneltcp.protocol.messages import RefusedCode
from tunneltcp.protocol.preface import MAGIC
from tunneltcp.relay.link import Link
from tunneltcp.relay.relay import Relay
from tunneltcp.workers.arrivals import SNIFF_SECONDS, Arrivals
from tunneltcp.workers.base import Worker
from tunneltcp.workers.claims import Claims

if TYPE_CHECKING:
    from tunneltcp.control.context import WorkerContext
    from tunneltcp.net.loop import Timer
    from tunneltcp.protocol.session import Session
    from tunneltcp.protocol.stream import Endpoint, Stream
    from tunneltcp.workers.claims import Claim

__all__ = ["ServerWorker"]

OWNER_SECONDS: Final = 2.0
"""How long the owner of the port has to show that it lives, when another claims it."""
JUDGE_SECONDS: Final = 0.05
"""How often it is looked whether it has."""
MIN_UNDECIDED_SECONDS: Final = 1.0
"""Who has not spoken may be the link; so long it is waited for, even with ``hold`` 0."""


class _Held:
    """A visitor that waits for the link; with a stream if a lost link had begun with it."""

    __slots__ = ("address", "silent", "since", "sock", "stream")

    def __init__(
        self, sock: socket.socket, address: object, since: float, *, silent: bool
    ) -> None:
        self.sock = sock
        self.address = address
        self.since = since
        self.silent = silent
        self.stream: Stream | None = None


class VisitorRelay(Relay):
    """A visitor that had not spoken when it was taken for one: it may yet be the link."""

    __slots__ = ("_address", "_decided", "_half", "_worker")

    def __init__(self, worker: ServerWorker, sock: socket.socket, address: object) -> None:
        super().__init__(worker.loop, sock, worker.on_visitor_over)
        self._worker = worker
        self._address = address
        self._decided = False
        self._half = False

    def on_events(self, events: int) -> None:
        """Look at the first bytes before they are read; from then on, be a plain relay."""
        if self._decided or self._is_visitor():
            super().on_events(events)

    def _is_visitor(self) -> bool:
        try:
            first = self._sock.recv(len(MAGIC), socket.MSG_PEEK)
        except BlockingIOError:
            return True  # woken for writing only
        except OSError:
            self._fail()
            return False
        if first == MAGIC:
            self._become_link()
            return False
        if first and MAGIC.startswith(first) and not self._half:
            # Half a magic: wait for the rest, but not for ever. Woken again for less than all
            # of it: there will be no more.
            self._half = True
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, len(MAGIC))
            self._loop.call_later(MIN_UNDECIDED_SECONDS, self._decide)
            return self.waiting_bytes > 0
        self._decided = True
        return True

    def _decide(self) -> None:
        """Nothing more came behind half a magic: it was meant for the target."""
        self._decided = True
        if self._sock.fileno() >= 0:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)

    def _become_link(self) -> None:
        """A lost packet made it look silent. If nothing was written to it, no harm is done."""
        if self.stream.received:
            self.stream.reset(ResetCode.CANCELLED)
            self.abort(ResetCode.CANCELLED)  # the client dials again
            return
        sock, address, worker = self._sock, self._address, self._worker
        self._let_go()
        self.stream.reset(ResetCode.CANCELLED)
        worker.on_visitor_over(self)
        worker.on_link(sock, address)


class ServerWorker(Worker):
    """One public port: accepts, holds, relays."""

    is_server = True

    def __init__(self, context: WorkerContext) -> None:
        super().__init__(context)
        listeners = [socket.socket(fileno=fd) for fd in context.listener_fds]
        self._arrivals = Arrivals(self.loop, listeners, self)
        tls = server_tls(context.certificate_fd) if context.tls else None
        self._claims = Claims(self.loop, context.port, context.keys, self, tls=tls)
        self._held: dict[_Held, None] = {}
        """Who waits for the link, in the order in which they came."""
        self._hold_timer: Timer | None = None
        self._relays: dict[Relay, _Held] = {}
        self._owner_ids = ("", "")
        self._client_drains = False

    def start(self) -> None:
        """Begin to accept: from now on, whoever comes is served or held."""
        self._arrivals.start()

    def count_connections(self) -> int:
        """Return how many connections this worker holds now."""
        undecided = len(self._arrivals) + len(self._claims)
        return super().count_connections() + undecided + len(self._relays) + len(self._held)

    def on_certificate(self, fd: int) -> None:
        """Show another certificate to whoever comes from now on."""
        self._claims.renew_tls(fd)

    def close(self) -> None:
        """Let go of everything."""
        self._arrivals.close()
        self._claims.close()
        super().close()

    # ------------------------------------------------------------------- arrivals

    def silence_seconds(self) -> float:
        """With a link, silence soon means a visitor; without, nothing is lost by waiting."""
        if self._can_open():
            return SNIFF_SECONDS
        return max(self.context.hold_seconds, MIN_UNDECIDED_SECONDS)

    def _can_open(self) -> bool:
        return self.link is not None and not self.link.is_doubted and not self._client_drains

    def on_link(self, sock: socket.socket, address: object) -> None:
        """Somebody claims to be the link."""
        self._claims.add(sock, address)

    def on_shed(self) -> None:
        """A visitor was reset for want of a descriptor."""
        self.warn("descriptors", "no descriptor is left for a visitor: it was reset")

    def on_visitor(self, sock: socket.socket, address: object, *, silent: bool) -> None:
        """A visitor: open a stream, or hold it until there is a link."""
        if self.draining or len(self._relays) + len(self._held) >= self.context.max_visitors:
            sock.close()
            self.warn("max_visitors", "max_visitors are here already: another was reset")
            return
        self.counters[Counter.VISITORS_TOTAL] += 1
        held = _Held(sock, address, self.loop.now, silent=silent)
        if self._can_open():
            self._open(held)
        elif silent or self.context.hold_seconds <= 0:
            # Silent ones come here only after the whole time of holding.
            sock.close()
        else:
            self._held[held] = None
            self._set_hold_timer()
            if self.link is not None:
                self.link.ask_for_life()
        self._count_visitors()

    def _open(self, visitor: _Held) -> None:
        """Open a stream for a visitor, or open it again."""
        link = self.link
        assert link is not None, "the caller looked"
        sock = visitor.sock
        addresses = pack_address(visitor.address) + pack_address(local_address(sock))
        if visitor.stream is not None:
            self._open_again(visitor, visitor.stream, link.session, addresses)
            return
        if visitor.silent:
            relay: Relay = VisitorRelay(self, sock, visitor.address)
        else:
            relay = Relay(self.loop, sock, self.on_visitor_over)
        stream = link.session.open_stream(relay, cookie(sock), addresses)
        if stream is None:
            sock.close()
            self.warn("memory", "the tunnel's memory is used up: a visitor was reset")
            return
        self._relays[relay] = visitor
        relay.start(stream)
        link.ask_for_life()

    def _open_again(
        self, visitor: _Held, old: Stream, session: Session, addresses: bytes
    ) -> None:
        relay = old.endpoint
        assert isinstance(relay, Relay), "a visitor's endpoint is its relay"
        visitor.stream = None
        stream = session.reopen(old, cookie(visitor.sock), addresses)
        if stream is None:
            relay.abort(0)
            return
        self._relays[relay] = visitor
        relay.start_again(stream)

    def _hold_again(self, unanswered: list[Stream]) -> None:
        """A link was lost before its client had seen these: they wait for the next one."""
        waiting: list[_Held] = []
        for stream in unanswered:
            relay = stream.endpoint
            visitor = self._relays.pop(relay) if isinstance(relay, Relay) else None
            if visitor is not None and isinstance(relay, Relay):
                relay.pause()
                visitor.stream = stream
                waiting.append(visitor)
        self._held = dict.fromkeys([*waiting, *self._held])
        self._set_hold_timer()
        self._count_visitors()

    def _send_away(self, visitor: _Held) -> None:
        """Reset a visitor that waited in vain."""
        if visitor.stream is None:
            visitor.sock.close()  # as prepared, that is a RST
            return
        if visitor.stream.ring is not None:
            self.memory.arena.give(visitor.stream.ring)
            visitor.stream.ring = None
        visitor.stream.endpoint.abort(0)

    def on_visitor_over(self, relay: Relay) -> None:
        """A visitor has gone."""
        self._relays.pop(relay, None)
        self._count_visitors()
        if self.draining:
            self._leave_if_empty()

    def _count_visitors(self) -> None:
        self.counters[Counter.VISITORS] = len(self._relays) + len(self._held)
        self.counters[Counter.HELD] = len(self._held)

    # --------------------------------------------------------------------- holding

    def _set_hold_timer(self) -> None:
        if self._hold_timer is None and self._held:
            oldest = next(iter(self._held))
            when = oldest.since + self.context.hold_seconds
            self._hold_timer = self.loop.call_at(when, self._on_hold_timer)

    def _on_hold_timer(self) -> None:
        self._hold_timer = None
        latest = self.loop.now - self.context.hold_seconds
        while self._held:
            held = next(iter(self._held))
            if held.since > latest:
                break
            del self._held[held]
            self._send_away(held)
        self._count_visitors()
        self._set_hold_timer()

    def _open_held(self) -> None:
        """There is a link: let those in who waited, in their order."""
        held, self._held = list(self._held), {}
        if self._hold_timer is not None:
            self._hold_timer.cancel()
            self._hold_timer = None
        for one in held:
            self._open(one)
        self._count_visitors()
        self._arrivals.recheck()

    # ------------------------------------------------------------------------ link

    def on_proven(self, claim: Claim) -> None:
        """A client holds the key. PROTOCOL.md §5 says who owns the port."""
        if self.draining:
            claim.refuse(RefusedCode.DRAINING)
            return
        hello = claim.hello
        link = self.link
        if link is None or self._owner_ids == (hello.host_id, hello.run_id):
            self._take_link(claim)
            return
        # The owner may be a ghost: ask it, and wait no longer than a living one needs.
        link.ping()
        self._judge(claim, link, self.loop.now)

    def _judge(self, claim: Claim, owner: Link, asked: float) -> None:
        """Decide about a newcomer as soon as the owner of the port spoke, or its time is up."""
        if not claim.is_open:
            return
        if self.draining:
            claim.refuse(RefusedCode.DRAINING)
        elif self.link is not owner:
            self.on_proven(claim)
        elif owner.heard > asked:
            claim.refuse(RefusedCode.IN_USE, owner.peer)
            self.warn("in use", f"another client claims this port while {owner.peer} holds it")
        elif self.loop.now >= asked + OWNER_SECONDS:
            self._take_link(claim)
        else:
            self.loop.call_later(JUDGE_SECONDS, lambda: self._judge(claim, owner, asked))

    def _take_link(self, claim: Claim) -> None:
        if self.link is not None:
            unanswered = self.link.close()
            self.drop_link("replaced by a newer link of its client")
            self._hold_again(unanswered)
        session_id = os.urandom(16)
        self.memory.table.set_session(session_id, 1)
        hello = claim.hello
        self._owner_ids = (hello.host_id, hello.run_id)
        self._client_drains = False
        rest = claim.welcome(session_id.hex(), 1)
        link = Link(
            self.loop,
            claim.transport,
            self,
            self.memory,
            self.buffer,
            peer=claim.address,
            opens=True,
            first_limit=hello.window,
            max_streams=self.context.max_visitors,
            idle_ping_seconds=self.context.idle_ping_seconds,
        )
        self.use_link(link, rest, hello.agent)
        if self.link is link:
            self._open_held()

    def on_refused(self, address: str, reason: str) -> None:
        """A claim came to nothing."""
        host = address.rpartition(":")[0]
        self.warn(f"link from {host}: {reason}", f"no link from {host}: {reason}")

    def on_open(self, link: Link, stream: Stream, addresses: bytes) -> Endpoint:
        """Never called: only a server opens, and its session refuses OPEN."""
        raise NotImplementedError

    def on_doubt(self, link: Link) -> None:
        """New visitors wait; the link is kept until a newer one comes, or it speaks again."""
        super().on_doubt(link)
        self._arrivals.recheck()

    def on_trust(self, link: Link) -> None:
        """The link is good again."""
        super().on_trust(link)
        if self._can_open():
            self._open_held()

    def on_goaway(self, link: Link, code: int) -> None:
        """The client is leaving: its streams may finish, new visitors wait for the next."""
        del code
        self._client_drains = True
        self.log.info("the client at {} is leaving", link.peer)
        self._arrivals.recheck()

    def on_lost(self, link: Link, reason: str, unanswered: list[Stream]) -> None:
        """The link is gone, and with it the streams that its client knew."""
        if link is self.link:
            self.drop_link(reason)
            self._hold_again(unanswered)
            self._arrivals.recheck()
            self._count_visitors()
            if self.draining:
                self._leave_if_empty()

    # -------------------------------------------------------------------- draining

    def drain(self) -> None:
        """Take nobody new; those who are here may finish."""
        self._arrivals.close()
        self._claims.close()
        for held in self._held:
            self._send_away(held)
        self._held.clear()
        self._count_visitors()
        if self.link is not None:
            self.link.session.goaway(GoawayCode.DRAINING)
        self._leave_if_empty()

    def _leave_if_empty(self) -> None:
        if not self._relays:
            self.leave()
