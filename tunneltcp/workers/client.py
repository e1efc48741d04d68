"""The client's worker: gets the link, keeps it, and connects visitors to the target."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from tunneltcp.advice import Trouble, link_trouble, target_trouble
from tunneltcp.control.counters import VISITORS, VISITORS_TOTAL
from tunneltcp.net.address import format_address, literal_addresses
from tunneltcp.net.tls import ClientTls
from tunneltcp.protocol.errors import GoawayCode, ResetCode
from tunneltcp.protocol.messages import Hello, RefusedCode
from tunneltcp.protocol.stream import DISCARD
from tunneltcp.protocol.windows import FIRST_WINDOW_BYTES
from tunneltcp.relay.link import Link
from tunneltcp.relay.relay import Relay, TargetRelay
from tunneltcp.workers.base import Worker
from tunneltcp.workers.claims import AGENT
from tunneltcp.workers.dial import Attempt, prove_one
from tunneltcp.workers.known import pack_known
from tunneltcp.workers.lookups import Lookups
from tunneltcp.workers.pace import MAX_ATTEMPTS, dial_seconds, refused_seconds
from tunneltcp.workers.roaming import Roaming

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunneltcp.control.context import WorkerContext
    from tunneltcp.net.address import SocketAddress
    from tunneltcp.net.loop import Timer
    from tunneltcp.protocol.messages import Refusal, Welcome
    from tunneltcp.protocol.stream import Endpoint, Stream
    from tunneltcp.workers.host import Host
    from tunneltcp.workers.visitors import Visitor

__all__ = ["ClientWorker"]


class ClientWorker(Worker):
    """One target, and the link to the port where its visitors come."""

    def __init__(self, context: WorkerContext, host: Host | None = None) -> None:
        super().__init__(context, host)
        self._tls = ClientTls.of(context.verify, context.server_host) if context.tls else None
        self._server_addresses = literal_addresses(context.server_host, context.link_port)
        self._target_addresses = literal_addresses(context.target_host, context.target_port)
        self._lookups = Lookups(self.loop, self.tell)
        self._next_address = 0
        self._attempts: list[Attempt] = []
        self._dial_timer: Timer | None = None
        self._dialling_since = self.loop.now
        self._refusals = 0
        self._was_cut_off = False
        """Whether somebody hung up on an attempt since the last link."""
        self._target_nameless = ""
        """Why the name of the target has no address; empty if it has some."""
        self._target_down = ""
        """Why the last visitor did not get to the target; empty if it did."""
        self._relays: dict[Relay, Visitor] = {}
        self._roaming = Roaming(self.loop, self)
        self._is_answered = True
        """Whether the link, which was doubted, has answered a PING since."""

    def start(self) -> None:
        """Begin to dial."""
        # Above all attempts of this run, also if its tunnel was taken out and put back since.
        table = self.memory.table
        table.set_attempt(max(table.attempt, int(self.loop.now * 1000)))
        if not self._target_addresses:
            target = self.context.target_host, self.context.target_port
            self._lookups.ask_for_target(*target, self.dial_anew)
        self._dial_soon(0.0)
        self._roaming.look()

    def close(self) -> None:
        """Let go of everything."""
        self._cancel_attempts()
        super().close()

    # ----------------------------------------------------------------------- names

    def on_addresses(self, message: dict[str, Any]) -> None:
        """The master's answer. The old addresses stay if it has none."""
        found: list[SocketAddress] = [
            (family, (ip, port, 0, scope) if ":" in ip else (ip, port))
            for family, ip, port, scope in message.get("addresses") or ()
        ]
        name = (message.get("host"), message.get("port"))
        if not found:
            self._on_nameless(name, str(message.get("error")))
            return
        if name == (self.context.server_host, self.context.link_port):
            if not self._server_addresses and self._wants_link():
                self._dial_soon(0.0)
            self._server_addresses = found
        if name == (self.context.target_host, self.context.target_port):
            self._target_addresses, self._target_nameless = found, ""
            self._lookups.on_target()
        known = pack_known(self.context, self._server_addresses, self._target_addresses)
        self.memory.table.set_owner(known)

    def _on_nameless(self, name: tuple[object, object], why: str) -> None:
        """A name has no address now; one that had some goes on with those."""
        host, port = self.context.server_host, self.context.link_port
        if name == (host, port) and not self._server_addresses:
            self._tell_no_link(Trouble.NAMELESS, host, why)
        if name == (self.context.target_host, self.context.target_port):
            self._target_nameless = why
            self._lookups.on_target()

    def _tell_no_link(self, trouble: Trouble, where: str, detail: str) -> None:
        """Say in the log and to the master why there is no link; the master knows more."""
        reason = link_trouble(trouble, where, self.context.port, detail=detail)
        self.note(f"no link: {reason}", f"no link: {trouble.value}")
        self.tell(
            {
                "type": "link",
                "state": "down",
                "peer": where,
                "reason": reason,
                "trouble": trouble.value,
                "detail": detail,
            }
        )

    def _tell_target(self, error: str) -> None:
        """Say that a visitor came in vain; ``error`` as for ``advice.target_trouble``."""
        target = format_address((self.context.target_host, self.context.target_port))
        reason = target_trouble(target, error, detail=self._target_nameless)
        self.note(reason)
        if reason != self._target_down:
            self._target_down = reason
            self.tell({"type": "target", "reason": reason})

    # --------------------------------------------------------------------- dialling

    def _dial_soon(self, seconds: float) -> None:
        if self._dial_timer is not None:
            self._dial_timer.cancel()
        self._dial_timer = self.loop.call_later(seconds, self._dial)

    def server_addresses(self) -> list[SocketAddress]:
        """Return whom it dials, as far as it is known."""
        return self._server_addresses

    def dial_anew(self) -> None:
        """This machine has moved: what was said into the wind before does not count."""
        if self.link is None:
            self._dialling_since = self.loop.now
            self._cancel_attempts(lambda attempt: not attempt.is_connected)
            self._dial_soon(0.0)

    def _wants_link(self) -> bool:
        if self.draining:
            return False
        link = self.link
        if link is None or link.is_doubted or not self._is_answered:
            return True
        return self.link_key != self.keys[0]

    def _dial(self) -> None:
        """Start one attempt beside those that are pending, and come back."""
        self._dial_timer = None
        if not self._wants_link():
            return
        if not literal_addresses(self.context.server_host, self.context.link_port):
            self._lookups.ask(self.context.server_host, self.context.link_port)
        if self._lookups.awaits_target:
            return
        if self._server_addresses and len(self._attempts) < MAX_ATTEMPTS:
            # All addresses in turn, beginning with the one that worked last.
            address = self._server_addresses[self._next_address % len(self._server_addresses)]
            self._next_address += 1
            self._start_attempt(address)
        self._dial_later()

    def _dial_later(self) -> None:
        """Come back in a while, unless that is arranged already or not wanted any more."""
        if self._dial_timer is None and self._wants_link():
            self._dial_soon(dial_seconds(self.loop.now - self._dialling_since))

    def _start_attempt(self, address: SocketAddress) -> None:
        hello = Hello(
            agent=AGENT,
            host_id=self.context.host_id,
            run_id=self.context.run_id,
            port=self.context.port,
            window=FIRST_WINDOW_BYTES,
            session=self.session_id or None,
            attempt=self.memory.table.raise_attempt(),
        )
        try:
            attempt = Attempt(self.loop, address, hello, self.keys[0], self, tls=self._tls)
        except OSError as error:  # no descriptor, no such address family
            self._tell_no_link(Trouble.OTHER, format_address(address[1]), str(error.strerror))
            return
        self._attempts.append(attempt)
        attempt.start(self._roaming.segment_bytes)

    def on_challenged(self, attempt: Attempt) -> None:
        """Prove it, unless another attempt is just doing that."""
        del attempt
        prove_one(self._attempts)

    def on_failure(
        self, attempt: Attempt, trouble: Trouble, detail: str, refusal: Refusal | None
    ) -> None:
        """Another attempt follows in its time; only a refusal makes us slower."""
        self._attempts.remove(attempt)
        is_first_cut = attempt.was_cut_off and not self._was_cut_off
        if is_first_cut:  # its worker died with it; the next one serves at the same address
            self._was_cut_off = True
            self._next_address -= 1
        if is_first_cut or (refusal is not None and refusal.code is RefusedCode.STALE):
            self._dial_soon(0.0)
            prove_one(self._attempts)
            return
        count = len(self._server_addresses)
        untried = refusal is None and count > 0 and self._next_address % count > 0
        # One address of several is no reason for alarm, nor is a doubted link that still is.
        if not untried and self.link is None:
            named = self.context.server_host, self.context.link_port
            self._tell_no_link(trouble, attempt.where_in_words(named), detail)
        if refusal is not None:
            self._refusals += 1
            heals = refusal.code in (RefusedCode.IN_USE, RefusedCode.DRAINING)
            self._dial_soon(refused_seconds(self._refusals, heals=heals))
        elif untried:
            self._dial_soon(0.0)
        prove_one(self._attempts)

    def on_welcome(self, attempt: Attempt, welcome: Welcome, rest: bytes) -> None:
        """The first of all that speaks is the link."""
        self._attempts.remove(attempt)
        self._cancel_attempts()
        if self.link is not None:
            self.link.close()
            is_old = self.link_key != self.keys[0] and self._is_answered
            why = "its key is an old one" if is_old else "silent"
            self.drop_link(f"{why}, replaced by a new one")
        self._refusals = 0
        self._was_cut_off = False
        others = [one for one in self._server_addresses if one != attempt.address]
        self._server_addresses = [attempt.address, *others]
        self._next_address = 0
        self._roaming.on_link(attempt.address[0], attempt.local)
        self._is_answered = True
        link = Link(
            self.loop,
            attempt.transport,
            self,
            self.session,
            self.buffer,
            peer=attempt.where,
            idle_ping_seconds=self.context.idle_ping_seconds,
            rate=self.context.rate,
        )
        if welcome.resumed and welcome.session == attempt.session:
            self.session.resume()
        else:
            self.session.begin()
        self.session_id = welcome.session
        self.memory.table.set_session(bytes.fromhex(welcome.session), welcome.epoch)
        self.use_link(link, attempt.key, rest, "")

    def _cancel_attempts(self, which: Callable[[Attempt], bool] = lambda _: True) -> None:
        for attempt in filter(which, list(self._attempts)):
            self._attempts.remove(attempt)
            attempt.cancel()
        if self._dial_timer is not None:
            self._dial_timer.cancel()
            self._dial_timer = None

    # ------------------------------------------------------------------------- link

    def on_keys(self) -> None:
        """Other keys are good: dial with the preferred one, beside a link with another."""
        self._cancel_attempts()
        self._refusals = 0
        self._dialling_since = self.loop.now
        if self._wants_link():
            self._dial_soon(0.0)

    def on_doubt(self, link: Link) -> None:
        """Dial beside it: the first of the two that speaks stays."""
        super().on_doubt(link)
        self._roaming.on_doubt(link)
        self._is_answered = False
        self._dialling_since = self.loop.now
        self._dial_soon(0.0)

    def on_trust(self, link: Link) -> None:
        """It spoke again; what is dialled beside it goes on until it has answered, too.

        After silence each way waits for a retransmission of its own, seconds apart: what is
        heard says nothing of the other way, and a new link may well be sooner.
        """
        super().on_trust(link)
        self._roaming.on_trust()
        link.ping()

    def on_answer(self, link: Link) -> None:
        """It is as good as new: what is dialled beside it is not needed.

        But one that has sent PROOF may be the link already, as the server sees it.
        """
        del link
        self._is_answered = True
        if not self._wants_link():
            self._cancel_attempts(lambda attempt: not attempt.is_proving)

    def on_lost(self, link: Link, reason: str) -> None:
        """Dial again: at once, unless one link after the other dies young."""
        is_ours = link is self.link
        super().on_lost(link, reason)
        if not is_ours:
            return
        pause = self._roaming.on_lost(link)
        if self.draining:
            self.leave()
            return
        self._dialling_since = self.loop.now
        self._dial_soon(pause)

    def on_goaway(self, link: Link, code: int) -> None:
        """The server opens no more streams; its end will follow."""
        del code
        self.log.info("the server at {} is stopping", link.peer)

    def on_open(self, link: Link, stream: Stream, addresses: bytes) -> Endpoint:
        """A visitor: connect to the target for it."""
        del link
        self.counters[VISITORS_TOTAL] += 1
        if self.draining:
            stream.reset(ResetCode.STOPPING)
            return DISCARD
        if not self._target_addresses:
            self._lookups.ask(self.context.target_host, self.context.target_port)
            if self._target_nameless:
                self._tell_target("")
            stream.reset(ResetCode.TARGET_UNREACHABLE)
            return DISCARD
        try:
            relay = TargetRelay(
                self.loop, self._target_addresses, self._on_relay_over, self._on_connected
            )
        except OSError as error:
            self._tell_target(errno.errorcode.get(error.errno or 0, str(error.strerror)))
            stream.reset(ResetCode.OVER_LIMIT)
            return DISCARD
        self._relays[relay] = self.visitors.come(addresses, relay, self.memory.table, stream)
        self.counters[VISITORS] = len(self._relays)
        self.memory.table.set_address(stream.record, addresses)
        relay.start(stream)
        return relay

    def all_visitors(self) -> list[Visitor]:
        """Return whom this side has a connection to the target for."""
        return list(self._relays.values())

    def _on_connected(self, relay: TargetRelay) -> None:
        """Remember which address answered: the next visitor asks that one first."""
        if self._target_down:
            self._target_down = ""
            self.log.info("the target answers again")
            self.tell({"type": "target", "reason": ""})
        if relay.tried and relay.address in self._target_addresses:
            others = [one for one in self._target_addresses if one != relay.address]
            self._target_addresses = [relay.address, *others]

    def _on_relay_over(self, relay: Relay) -> None:
        visitor = self._relays.pop(relay, None)
        if visitor is not None and self.context.access_log:
            self.log_visitor(visitor)
        self.counters[VISITORS] = len(self._relays)
        if relay.is_connecting and isinstance(relay, TargetRelay) and relay.refused:
            self._tell_target(relay.refused)
            if not literal_addresses(self.context.target_host, self.context.target_port):
                self._lookups.ask(self.context.target_host, self.context.target_port)
        if self.draining:
            self._leave_if_empty()

    # --------------------------------------------------------------------- draining

    def drain(self) -> None:
        """Tell the server that we leave; visitors that are here may finish."""
        self._cancel_attempts()
        if self.link is not None:
            self.link.session.goaway(GoawayCode.DRAINING)
        self._leave_if_empty()

    def _leave_if_empty(self) -> None:
        if not self._relays:
            self.leave()
