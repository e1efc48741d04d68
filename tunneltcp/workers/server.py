"""The server's worker: a public port, its visitors, and the link of its client."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any, Final

from tunneltcp.advice import claim_trouble
from tunneltcp.control.context import AllowedNetworks
from tunneltcp.control.counters import VISITORS, VISITORS_TOTAL, Counter
from tunneltcp.log import Throttle
from tunneltcp.net.address import pack_address, pack_own_address
from tunneltcp.net.loop import READ
from tunneltcp.net.sockopt import cookie, unpace_if_near
from tunneltcp.net.tls import server_tls
from tunneltcp.protocol.errors import GoawayCode, ResetCode
from tunneltcp.protocol.messages import RefusedCode
from tunneltcp.relay.link import Link
from tunneltcp.relay.relay import Relay
from tunneltcp.workers.arrivals import SNIFF_SECONDS, Arrivals
from tunneltcp.workers.base import Worker
from tunneltcp.workers.claims import Claims
from tunneltcp.workers.doors import FAR, FOREIGN, Doors, barred_visitor
from tunneltcp.workers.owner import pack_owner
from tunneltcp.workers.visitor_relay import MIN_UNDECIDED_SECONDS, VisitorRelay

if TYPE_CHECKING:
    from tunneltcp.control.context import WorkerContext
    from tunneltcp.net.loop import Timer
    from tunneltcp.protocol.stream import Endpoint, Stream
    from tunneltcp.workers.claims import Claim
    from tunneltcp.workers.visitors import Visitor

__all__ = ["ServerWorker"]

OWNER_SECONDS: Final = 2.0
"""How long the owner of the port has to show that it lives, when another claims it."""
MAX_REFUSALS: Final = 256
"""Lines about links that were refused, in ten minutes: a stranger may have many addresses."""
JUDGE_SECONDS: Final = 0.05
"""How often it is looked whether it has."""


class ServerWorker(Worker):
    """One public port: accepts, holds, relays."""

    is_server = True

    def __init__(self, context: WorkerContext) -> None:
        super().__init__(context)
        listeners = [socket.socket(fileno=fd) for fd in context.listener_fds]
        self._doors = Doors(context.networks, near_only=context.near_links_only)
        self._arrivals = Arrivals(self.loop, listeners, self)
        self._claims = Claims(
            self.loop,
            context.port,
            self.keys,
            self,
            clients=self.key_clients,
            doors=self._doors,
            tls=server_tls(context.certificate_fd) if context.tls else None,
            nonces=self.memory.nonces,
        )
        self._relays: dict[Relay, Visitor] = {}
        """Who is here, in the order in which they came."""
        self._waiting: dict[Relay, None] = {}
        """Those of them whose OPEN waits for a link, or for its answer on a bad one."""
        self._hold_timer: Timer | None = None
        self._owner_ids = ("", "", "")
        """Name, host and run of the client that has the session."""
        self._owner = ""
        """Its address."""
        self._client_drains = False
        self._refusals = Throttle()
        self._refusals.max_new = MAX_REFUSALS

    def start(self) -> None:
        """Begin to accept: from now on, whoever comes is served or held."""
        self._arrivals.start()

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
        link = self.link
        return link is not None and not link.liveness.doubted and not self._client_drains

    def _handle_message(self, message: dict[str, Any]) -> None:
        if message.get("type") == "networks":
            self._take_networks(message)
        super()._handle_message(message)  # which knows nothing of those

    def _take_networks(self, message: dict[str, Any]) -> None:
        """Other networks are good: who is from one that is not has to go now."""
        networks = {name: tuple(found) for name, found in message["networks"].items()}
        self._doors.change(AllowedNetworks(**networks))
        self._claims.recheck()
        for visitor in self.all_visitors():
            if not self._doors.admits_visitor(visitor.address):
                self.kick(visitor)
        if self.link is not None and self._doors.link_trouble(self.link.peer):
            self.link.lose("no link is taken from its network any more")

    def on_link(self, sock: socket.SocketType, address: object) -> None:
        """Somebody claims to be the link."""
        self._claims.add(sock, address)

    def on_shed(self) -> None:
        """A visitor was reset for want of a descriptor."""
        self.warn("descriptors", "no descriptor is left for a visitor: it was reset")

    def on_visitor(self, sock: socket.SocketType, address: object, *, silent: bool) -> None:
        """A visitor: open a stream, or hold it until there is a link."""
        doors = self._doors
        if doors.bar_visitors and not doors.admits_visitor(address):
            sock.close()
            self.counters[Counter.VISITORS_REFUSED] += 1
            self.warn("visitors_allow", barred_visitor(address))
            return
        # Those whom the client has not let go of yet count: they are still its work. While
        # the link is bad it lets go of nobody.
        can_open = self._can_open()
        here = len(self._relays) + (len(self.session.resetting) if can_open else 0)
        if self.draining or here >= self.context.max_visitors:
            sock.close()
            self.warn("max_visitors", "max_visitors are here already: another was reset")
            return
        self.counters[VISITORS_TOTAL] += 1
        if not can_open and (silent or self.context.hold_seconds <= 0):
            sock.close()  # silent ones come here only after the whole time of holding
            return
        unpace_if_near(sock, address)
        over = self.on_visitor_over
        relay = VisitorRelay(self, sock, address) if silent else Relay(self.loop, sock, over)
        addresses = pack_address(address) + pack_own_address(sock)
        stream = self.session.open_stream(relay, cookie(sock), addresses)
        if stream is None:
            sock.close()
            self.warn("memory", "the tunnel's memory is used up: a visitor was reset")
            return
        self._relays[relay] = self.visitors.come(address, relay, self.memory.table, stream)
        self.counters[VISITORS] = len(self._relays)
        relay.start(stream)
        if not can_open:
            self._hold(relay)
        if self.link is not None:
            self.link.ask_for_life()
        if not silent:
            relay.on_events(READ)  # what made it a visitor goes with its OPEN

    def on_visitor_over(self, relay: Relay) -> None:
        """A visitor has gone."""
        visitor = self._relays.pop(relay, None)
        if visitor is not None and self.context.access_log:
            self.log_visitor(visitor)
        self.counters[VISITORS] = len(self._relays)
        if self._waiting:
            self._waiting.pop(relay, None)
            self._count_held()
        if self.draining:
            self._leave_if_empty()

    def all_visitors(self) -> list[Visitor]:
        """Return who is connected, those who wait for the link included."""
        return list(self._relays.values())

    def _count_held(self) -> None:
        self.counters[Counter.HELD] = len(self._waiting)

    # --------------------------------------------------------------------- holding

    def _hold(self, relay: Relay) -> None:
        """Let a visitor wait for a link; its OPEN does, in the session."""
        self._waiting[relay] = None
        self._count_held()
        if self._hold_timer is None:
            self._set_hold_timer()

    def _hold_unanswered(self) -> None:
        """The link is bad: those whom the client has not answered wait for a better one."""
        unanswered = (relay for relay in self._relays if not relay.stream.is_known)
        self._waiting = dict.fromkeys(unanswered)
        self._set_hold_timer()
        self._count_held()
        self._arrivals.recheck()

    def _set_hold_timer(self) -> None:
        if self._hold_timer is not None:
            self._hold_timer.cancel()
            self._hold_timer = None
        if self._waiting:
            since = self._relays[next(iter(self._waiting))].since
            when = since + self.context.hold_seconds
            self._hold_timer = self.loop.call_at(when, self._on_hold_timer)

    def _on_hold_timer(self) -> None:
        self._hold_timer = None
        latest = self.loop.now - self.context.hold_seconds
        for relay in list(self._waiting):
            if relay.stream.is_known:
                del self._waiting[relay]
            elif self._relays[relay].since <= latest:
                relay.reset(ResetCode.CANCELLED)
            else:
                break
        self._set_hold_timer()
        self._count_held()

    def _hold_no_more(self) -> None:
        """There is a link: those who waited are let in, in their order, by the session."""
        self._waiting.clear()
        self._set_hold_timer()
        self._count_held()
        self._arrivals.recheck()

    # ------------------------------------------------------------------------ link

    def on_keys(self) -> None:
        """Other keys are good: whose key is not loses link, session and port now."""
        self._claims.change_keys(self.keys, self.key_clients)
        if not self.session_id:
            return
        if self.link_key in self.keys:
            self._rename_client(self.key_clients[self.link_key])
            return
        self._owner_ids = ("", "", "")
        if self.link is not None:
            self.link.ends_session = True
            self.link.lose("its key is not good any more")
        else:
            self.end_session()
            who = self.link_client or "the client"
            self.log.info("{} was away, and its key is not good any more", who)

    def _rename_client(self, name: str) -> None:
        """The owner of the port has this name now; who has the key is the same."""
        if name == self.link_client:
            return
        self.link_client = name
        self._owner_ids = (name, *self._owner_ids[1:])
        if self.link is not None:
            self.tell_link("up", self.link, "its client has another name")

    def on_proven(self, claim: Claim) -> None:
        """A client holds the key. PROTOCOL.md §5 says who owns the port."""
        if self.draining:
            claim.refuse(RefusedCode.DRAINING)
            return
        hello = claim.hello
        link = self.link
        if self._owner_ids == (claim.client, hello.host_id, hello.run_id):
            if hello.attempt <= self.memory.table.attempt:
                claim.refuse(RefusedCode.STALE)
            else:
                self._take_link(claim)
        elif not self.session_id or (link is None and self._is_restarted(claim)):
            self._take_link(claim)
        elif link is None:
            self._refuse_in_use(claim)
        else:
            # The owner may be a ghost: ask it, and wait no longer than a living one needs.
            link.ping()
            self._judge(claim, link, self.loop.now)

    def _is_restarted(self, claim: Claim) -> bool:
        """Whether this is the owner's machine: its client was started anew."""
        return (claim.client, claim.hello.host_id) == self._owner_ids[:2]

    def _refuse_in_use(self, claim: Claim) -> None:
        """The log says who has the port; of another client's address nobody is told."""
        name = self._owner_ids[0]
        reason = claim_trouble("in_use", self._owner, name)
        claim.refuse(RefusedCode.IN_USE, self._owner if claim.client == name else "", reason)

    def _judge(self, claim: Claim, owner: Link, asked: float) -> None:
        """Decide about a newcomer as soon as the owner of the port spoke, or its time is up."""
        if not claim.is_open:
            return
        if self.draining:
            claim.refuse(RefusedCode.DRAINING)
        elif self.link is not owner:
            self.on_proven(claim)
        elif owner.heard > asked:
            self._refuse_in_use(claim)
        elif self.loop.now < asked + OWNER_SECONDS:
            self.loop.call_later(JUDGE_SECONDS, lambda: self._judge(claim, owner, asked))
        elif self._is_restarted(claim):
            self._take_link(claim)
        else:  # not before its grace is over, and then it has no session any more
            self._refuse_in_use(claim)

    def _take_link(self, claim: Claim) -> None:
        if self.link is not None:
            self.link.close()
            self.drop_link("replaced by a newer link of its client")
        hello, table = claim.hello, self.memory.table
        ids = (claim.client, hello.host_id, hello.run_id)
        resumed = self._owner_ids == ids and hello.session == self.session_id != ""
        if not resumed:
            self.session_id = os.urandom(16).hex()
        epoch = table.epoch + 1 if resumed else 1
        table.set_owner(pack_owner(ids[1:], claim.key, claim.address))
        table.set_session(bytes.fromhex(self.session_id), epoch)
        table.set_attempt(hello.attempt)
        self._owner_ids, self._owner = ids, claim.address
        self._client_drains = False
        key = claim.key
        rest = claim.welcome(self.session_id, epoch, resumed=resumed)
        link = Link(
            self.loop,
            claim.transport,
            self,
            self.session,
            self.buffer,
            peer=claim.address,
            idle_ping_seconds=self.context.idle_ping_seconds,
            rate=self.context.rate,
        )
        if resumed:
            self.session.resume(hello.window)
        else:
            self.session.begin(hello.window)
        self.use_link(link, key, rest, hello.agent)
        if self._can_open():
            self._hold_no_more()

    def on_refused(self, address: str, reason: str, client: str) -> None:
        """A claim came to nothing."""
        host = address.rpartition(":")[0]
        kind = f"link from {host}: {reason}"
        if reason in (FAR, FOREIGN):  # anybody can do that, from anywhere
            self.counters[Counter.LINKS_REFUSED] += 1
            kind = reason
        who = f"{client} at {host}" if client else host
        self.warn(kind, f"no link from {who}: {reason}", self._refusals)

    def on_open(self, link: Link, stream: Stream, addresses: bytes) -> Endpoint:
        """Never called: only a server opens, and its session refuses OPEN."""
        raise NotImplementedError

    def on_doubt(self, link: Link) -> None:
        """New visitors wait; the link is kept until a newer one comes, or it speaks again."""
        super().on_doubt(link)
        self._hold_unanswered()

    def on_trust(self, link: Link) -> None:
        """The link is good again."""
        super().on_trust(link)
        if self._can_open():
            self._hold_no_more()

    def on_goaway(self, link: Link, code: int) -> None:
        """The client is leaving: its streams may finish, new visitors wait for the next."""
        del code
        self._client_drains = True
        self.log.info("the client at {} is leaving", link.peer)
        self._arrivals.recheck()

    def on_lost(self, link: Link, reason: str) -> None:
        """The link is gone: visitors stay, and wait for the next one."""
        is_ours = link is self.link
        super().on_lost(link, reason)
        if is_ours and self.draining:
            self.session.abort_all(ResetCode.STOPPING)
            self._leave_if_empty()
        elif is_ours:
            self._hold_unanswered()

    # -------------------------------------------------------------------- draining

    def drain(self) -> None:
        """Take nobody new; those who are here may finish."""
        self._arrivals.close()
        self._claims.close()
        for relay in list(self._waiting):
            relay.reset(ResetCode.STOPPING)
        if self.link is not None:
            self.link.session.goaway(GoawayCode.DRAINING)
        self._leave_if_empty()

    def _leave_if_empty(self) -> None:
        if not self._relays:
            self.leave()
