"""The life of a worker: its loop, its host, its counters.

Theory of operation
-------------------
A worker serves one tunnel until its host says "drain" or "stop" (``host.py``: the master, at
the other end of a channel, unless the worker is a whole program). The link is written once in
each turn of the loop; counters are stored for the host ten times a second.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, Final

from loguru import logger

from tunneltcp.control.counters import Counter, LinkState
from tunneltcp.control.keys import read_keys
from tunneltcp.errors import ExitCode
from tunneltcp.log import Throttle, dropped_lines
from tunneltcp.net.loop import Loop
from tunneltcp.protocol.errors import GoawayCode, ResetCode
from tunneltcp.protocol.handshake import HANDSHAKE_SECONDS
from tunneltcp.protocol.session import Session
from tunneltcp.relay.heap import Heap
from tunneltcp.relay.memory import receive_buffer
from tunneltcp.workers.congestion import use_congestion
from tunneltcp.workers.host import MasterHost
from tunneltcp.workers.visitors import Visitors, find

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunneltcp.control.context import WorkerContext
    from tunneltcp.net.loop import Timer
    from tunneltcp.relay.link import Link
    from tunneltcp.workers.host import Host
    from tunneltcp.workers.visitors import Visitor

__all__ = ["MAX_SLEEP_SECONDS", "Worker"]

MAX_SLEEP_SECONDS: Final = 0.5
"""A worker's loop turns at least this often, so that one that hangs is soon known."""
TIDY_SECONDS: Final = 1.0
"""Memory that nobody needed for this long is given back to the system."""


class Worker:
    """What both sides share. A side adds how it gets its link and what it does with it.

    Args:
        host: Whom it belongs to; by default the master that the context tells of.
    """

    def __init__(self, context: WorkerContext, host: Host | None = None) -> None:
        self.context = context
        self.loop = Loop(max_sleep_seconds=MAX_SLEEP_SECONDS)
        self.host: Host = MasterHost(context) if host is None else host
        self.memory = self.host.map_memory()
        if context.forgets or not context.crash_safe:
            self.memory.clear()
        self.buffer = receive_buffer()
        self._heap = Heap()
        self.counters = self.host.map_counters()
        self.keys = context.keys
        """Keys that are good now, the preferred one first."""
        self.key_clients = context.key_clients or dict.fromkeys(context.keys, "")
        """Server: whose they are, by name."""
        self.session = Session(
            opens=self.is_server,
            arena=self.memory.arena,
            table=self.memory.table,
            max_streams=context.max_visitors,
        )
        self.session_id = ""
        """The session that may be resumed; empty if there is none."""
        self._grace_timer: Timer | None = None
        self.link: Link | None = None
        self.link_key = b""
        """The one that the link was made with."""
        self.link_client = ""
        """Server: name of the client whose it is, if it has one."""
        self.draining = False
        self.log = logger
        self.visitors = Visitors(self.loop, is_server=self.is_server)
        self._exit_code: ExitCode | None = None
        self._done_in = self._done_out = self._done_resets = self._refused = 0
        self._lost_since = 0.0
        self._away_seconds = 0.0
        self._throttle = Throttle()

    # ----------------------------------------------------------------------- life

    def run(self) -> int:
        """Serve until told otherwise; return the exit code."""
        self.host.catch_signals(self.loop)
        self.begin()
        self.loop.run()
        return self._exit_code if self._exit_code is not None else ExitCode.DONE

    def begin(self) -> None:
        """Begin to serve, and say so; the loop is the caller's to turn."""
        counters = self.counters
        for counter in (Counter.VISITORS, Counter.HELD, Counter.LINK_STATE, Counter.RTT_US):
            counters[counter] = 0
        self._done_in = counters[Counter.BYTES_IN]
        self._done_out = counters[Counter.BYTES_OUT]
        self._done_resets = counters[Counter.RESETS_TOTAL]
        self.loop.on_beat = self._beat
        self.host.open(self.loop, self._handle_message)
        self.start()
        self._tidy()
        self.tell({"type": "ready"})

    def start(self) -> None:
        """Begin to serve; called once."""
        raise NotImplementedError

    def leave(self, code: ExitCode = ExitCode.DONE) -> None:
        """Leave at the end of this turn; the other side need not wait for us."""
        is_first, self._exit_code = self._exit_code is None, code
        if is_first and self.link is not None and self.session.goaway_frame is None:
            self.session.goaway(GoawayCode.DRAINING)
            self.link.flush()
        self.loop.stop()

    def close(self) -> None:
        """Let go of everything; for who runs a worker inside another process."""
        if self.link is not None:
            self.link.close()
        self._store_counters()
        self.session.abort_all(ResetCode.STOPPING)
        self.host.close()
        self.loop.close()

    def count_visitors(self) -> int:
        """Return how many visitors there are now."""
        return int(self.counters[Counter.VISITORS])

    def _beat(self, next_beat: float) -> None:
        self.counters[Counter.BEAT_NS] = int(next_beat * 1e9)
        self._store_counters()

    def _store_counters(self) -> None:
        counters = self.counters
        from_local, to_local = self.session.count_bytes()
        if not self.is_server:
            from_local, to_local = to_local, from_local
        counters[Counter.BYTES_IN] = self._done_in + from_local
        counters[Counter.BYTES_OUT] = self._done_out + to_local

    is_server: bool = False
    """Which side this is; decides what is in and what is out."""

    def _tidy(self) -> None:
        self.loop.call_later(TIDY_SECONDS, self._tidy)
        self.memory.arena.tidy()
        self.session.feed_starved()  # in place of any that were let read and never did
        self.buffer.tidy()
        counters = self.counters
        # Also of visitors who never read: what waited for them is freed when they go.
        gone = counters[Counter.VISITORS_TOTAL] - counters[Counter.VISITORS]
        self._heap.tidy(counters[Counter.BYTES_IN] + counters[Counter.BYTES_OUT] + gone)
        self._warn_of_refused()
        counters[Counter.LOG_DROPPED] = dropped_lines()
        counters[Counter.DESCRIPTORS] = self.host.count_descriptors()
        counters[Counter.RESETS_TOTAL] = self._done_resets + self.session.resets
        if self.link is not None:
            counters[Counter.RTT_US] = int(self.link.rtt_seconds * 1e6)

    def _warn_of_refused(self) -> None:
        """The other side has more visitors than there is room for here."""
        refused = self.session.glitches.refused
        if refused != self._refused:
            self._refused = refused
            self.warn(
                "no room", "max_visitors or the budget is used up here: others were reset"
            )

    def warn(self, kind: str, text: str, throttle: Throttle | None = None) -> None:
        """Log what went wrong, here and at the host; the same kind again only now and then."""
        if self.note(text, kind, throttle):
            self.tell({"type": "warning", "text": text})

    def note(self, text: str, kind: str = "", throttle: Throttle | None = None) -> bool:
        """Log what the host is told by another message; return whether it was said."""
        missed = (throttle or self._throttle).admit(kind or text, self.loop.now)
        if missed is None:
            return False
        more = f" ({missed} more times since the last line)" if missed else ""
        self.log.warning("{}{}", text, more)
        return True

    # ----------------------------------------------------------------------- host

    def tell(self, message: dict[str, Any]) -> None:
        """Send a message to the host; if it cannot take it now, it is dropped."""
        self.host.tell(message)

    def _handle_message(self, message: dict[str, Any]) -> None:
        kind = message.get("type")
        if kind == "drain":
            if not self.draining:
                self.draining = True
                self.loop.call_later(float(message.get("seconds", 0)), self.leave)
                self.drain()
        elif kind == "stop":
            self.leave()
        elif kind == "addresses":
            self.on_addresses(message)
        elif kind == "keys" and "fd" in message:
            self._take_keys(message["fd"])
        elif kind == "certificate" and "fd" in message:
            self.on_certificate(message["fd"])
        elif kind == "who":
            self._tell_who(message)
        elif kind == "kick":
            kicked = find(self.all_visitors(), message)
            for visitor in kicked:
                self.kick(visitor)
            self._answer(message, {"kicked": len(kicked)})

    def _tell_who(self, message: dict[str, Any]) -> None:
        """Answer with a page of visitors, once their rates are known."""

        def answer() -> None:
            good = self.link is not None and not self.link.is_doubted
            page = self.visitors.page(
                self.all_visitors(), int(message.get("after", 0)), link_is_good=good
            )
            self._answer(message, page)

        self.visitors.measure(self.all_visitors, answer)

    def _answer(self, question: dict[str, Any], body: dict[str, Any]) -> None:
        self.tell({"type": "answer", "number": question.get("number"), "body": body})

    # ------------------------------------------------------------------- visitors

    def all_visitors(self) -> Sequence[Visitor]:
        """Return who is connected through this side now."""
        raise NotImplementedError

    def kick(self, visitor: Visitor) -> None:
        """Reset a visitor, and what it is connected to on the other side."""
        visitor.kicked = True
        relay = visitor.relay
        if relay is not None:
            relay.stream.reset(ResetCode.CANCELLED)
            relay.abort(ResetCode.CANCELLED)

    def log_visitor(self, visitor: Visitor) -> None:
        """A visitor has gone: say so in the access log, where there is one."""
        self.visitors.log(visitor, link_lost=self.link is None or not self.link.is_open)

    def drain(self) -> None:
        """Take no new visitors; call :meth:`leave` when the last one has gone."""
        raise NotImplementedError

    def on_addresses(self, message: dict[str, Any]) -> None:
        """The host looked up a name for us."""
        del message

    def on_certificate(self, fd: int) -> None:
        """The master has another certificate for us; the descriptor is ours."""
        os.close(fd)

    def _take_keys(self, fd: int) -> None:
        """Other keys may be good from now on; the descriptor with them is ours."""
        try:
            keys = read_keys(fd)
        except OSError as error:
            logger.error("the new keys cannot be read, the old ones stay: {}", error)
            return
        finally:
            os.close(fd)
        if list(keys.items()) != list(self.key_clients.items()):
            self.keys, self.key_clients = tuple(keys), keys
            self._show_key()
            self.on_keys()

    def on_keys(self) -> None:
        """A side does what follows from other keys."""
        raise NotImplementedError

    def _show_key(self) -> None:
        ours = (key for key in self.keys if self.key_clients.get(key, "") == self.link_client)
        self.counters[Counter.LINK_KEY] = int(self.link_key != next(ours, b""))

    def use_link(self, link: Link, key: bytes, rest: bytes, what: str) -> None:
        """A link was established: serve over it."""
        self.link = link
        self.link_key, self.link_client = key, self.key_clients.get(key, "")
        self._show_key()
        self.loop.on_turn = link.end_turn
        self.counters[Counter.LINKS_TOTAL] += 1
        self._show_link(LinkState.UP)
        seconds = self.loop.now - self._lost_since if self._lost_since else None
        self._lost_since = 0.0
        self._away_seconds = seconds or 0.0
        self.tell_link("up", link, what, seconds=seconds and round(seconds, 3))
        after = "" if seconds is None else f" after {seconds:.2f} s"
        self.log.info("link up with {}{}", self.name_of(link), after)
        self._set_grace_timer(link.session.links.is_settled)
        use_congestion(link, self.context.congestion, self.log)
        link.start(rest)
        link.ask_for_life()

    def on_resumed(self, link: Link, streams: int, again_bytes: int) -> None:
        """Both sides know how far the other is: nothing is lost."""
        self._set_grace_timer(True)
        self.counters[Counter.RESUMES_TOTAL] += 1
        self.log.info(
            "back with {} after {:.1f} s, {} streams resumed, {:.1f} MB sent again",
            self.name_of(link),
            self._away_seconds,
            streams,
            again_bytes / 1e6,
        )

    def on_lost(self, link: Link, reason: str) -> None:
        """The link is gone; its session waits for the next one, unless it is over."""
        if link is not self.link:
            return
        self.drop_link(reason)
        if link.ends_session or self.draining:
            self.end_session()
        else:
            self._set_grace_timer(False)

    def end_session(self) -> None:
        """Nobody will come back to this session: reset all that the other side knew of."""
        self._set_grace_timer(True)
        self.session_id = ""
        self.memory.table.set_session(bytes(16), 0)
        self.session.abandon(ResetCode.CANCELLED)

    def _set_grace_timer(self, is_settled: bool) -> None:
        """Without a link, or with one that is silent, a session waits only so long."""
        if self._grace_timer is not None:
            self._grace_timer.cancel()
            self._grace_timer = None
        if not is_settled:
            seconds = self.context.resume_grace_seconds
            if self.link is not None and not self.link.is_doubted:  # it has to tell first
                seconds = max(seconds, HANDSHAKE_SECONDS)
            self._grace_timer = self.loop.call_later(seconds, self._on_grace_over)

    def _on_grace_over(self) -> None:
        self._grace_timer = None
        streams = len(self.session.streams)
        if self.link is not None:
            self.link.ends_session = True
            self.link.lose("silent for too long")
        else:
            self.end_session()
        self.log.info("nobody came back: {} streams were given up", streams)

    def drop_link(self, reason: str) -> None:
        """The link is over: keep the books and tell."""
        link, self.link = self.link, None
        if link is None:
            return
        self.loop.on_turn = None
        self._store_counters()
        self._lost_since = self.loop.now
        self._show_link(LinkState.DOWN)
        self.counters[Counter.RTT_US] = 0
        self.tell_link("down", link, reason)
        self.log.info("link with {} lost: {}", self.name_of(link), reason)

    def _show_link(self, state: LinkState) -> None:
        self.counters[Counter.LINK_STATE] = state
        self.counters[Counter.LINK_SINCE_NS] = time.time_ns()

    def on_doubt(self, link: Link) -> None:
        """The link is silent for too long; a side does something about it."""
        self._set_grace_timer(False)
        self._show_link(LinkState.DOUBTED)
        self.tell_link("doubted", link, "silent")

    def on_answer(self, link: Link) -> None:
        """The link answered a PING."""

    def on_trust(self, link: Link) -> None:
        """The doubted link spoke again."""
        self._set_grace_timer(link.session.links.is_settled)
        self._show_link(LinkState.UP)
        self.tell_link("up", link, "spoke again")
        self.log.info("link with {} spoke again", self.name_of(link))

    def tell_link(self, state: str, link: Link, reason: str, **more: float | None) -> None:
        """Tell the host what became of the link."""
        who = {"peer": link.peer, "client": self.link_client, **more}
        self.tell({"type": "link", "state": state, "reason": reason, **who})

    def name_of(self, link: Link) -> str:
        """Return who is there, for the log."""
        return f"{self.link_client} at {link.peer}" if self.link_client else link.peer
