"""The life of a worker: its loop, its host, its counters.

Theory of operation
-------------------
A worker serves one tunnel until its host says "drain" or "stop" (``host.py``: the master, at
the other end of a channel, unless the worker is a whole program). Once in each turn of the
loop the link is written; ten times a second the counters are stored where the host reads
them.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from loguru import logger

from tunneltcp.control.counters import Counter, LinkState
from tunneltcp.errors import ExitCode
from tunneltcp.log import Throttle, dropped_lines, log_access
from tunneltcp.net.loop import Loop
from tunneltcp.protocol.errors import ResetCode
from tunneltcp.relay.memory import receive_buffer
from tunneltcp.workers.host import MasterHost
from tunneltcp.workers.visitors import Visitors, describe_end, find

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunneltcp.control.context import WorkerContext
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
        self.memory.clear()
        self.buffer = receive_buffer()
        self.counters = self.host.map_counters()
        self.keys = context.keys
        """Keys that are good now, the preferred one first."""
        self.link: Link | None = None
        self.link_key = b""
        """The one that the link was made with."""
        self.draining = False
        self.log = logger
        self.visitors = Visitors(self.loop, is_server=self.is_server)
        self._exit_code: ExitCode | None = None
        self._done_in = 0
        self._done_out = 0
        self._done_resets = 0
        self._lost_since = 0.0
        self._own_descriptors = 0
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
        self._own_descriptors = self.host.open(self.loop, self._handle_message)
        self.start()
        self._tidy()
        self.tell({"type": "ready"})

    def start(self) -> None:
        """Begin to serve; called once."""
        raise NotImplementedError

    def leave(self, code: ExitCode = ExitCode.DONE) -> None:
        """Leave at the end of this turn."""
        self._exit_code = code
        self.loop.stop()

    def close(self) -> None:
        """Let go of everything; for who runs a worker inside another process."""
        if self.link is not None:
            self._close_books(self.link)
            self.link.close()
        self.host.close()
        self.loop.close()

    def count_visitors(self) -> int:
        """Return how many visitors there are now."""
        return int(self.counters[Counter.VISITORS])

    def _beat(self, next_beat: float) -> None:
        self.counters[Counter.BEAT_NS] = int(next_beat * 1e9)
        if self.link is not None:
            self._store_counters(self.link)

    def _store_counters(self, link: Link) -> None:
        counters = self.counters
        from_local, to_local = link.session.count_bytes()
        if not self.is_server:
            from_local, to_local = to_local, from_local
        counters[Counter.BYTES_IN] = self._done_in + from_local
        counters[Counter.BYTES_OUT] = self._done_out + to_local

    is_server: bool = False
    """Which side this is; decides what is in and what is out."""

    def _tidy(self) -> None:
        self.loop.call_later(TIDY_SECONDS, self._tidy)
        self.memory.arena.tidy()
        self.buffer.tidy()
        counters = self.counters
        counters[Counter.LOG_DROPPED] = dropped_lines()
        counters[Counter.DESCRIPTORS] = self._own_descriptors + self.count_connections()
        link = self.link
        if link is not None:
            counters[Counter.RTT_US] = int(link.rtt_seconds * 1e6)
            counters[Counter.RESETS_TOTAL] = self._done_resets + link.session.resets

    def count_connections(self) -> int:
        """Return how many connections this worker holds now."""
        return int(self.link is not None)

    def warn(self, kind: str, text: str) -> None:
        """Log what went wrong, here and at the host; the same kind again only now and then."""
        if self.note(text, kind):
            self.tell({"type": "warning", "text": text})

    def note(self, text: str, kind: str = "") -> bool:
        """Log what the host is told by another message; return whether it was said."""
        missed = self._throttle.admit(kind or text, self.loop.now)
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
        elif kind == "keys":
            self._change_keys(message["keys"])
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
        """A visitor has gone: write the line that the access log wants."""
        if not self.context.access_log:
            return
        link_lost = self.link is None or not self.link.is_open
        bytes_in, bytes_out = self.visitors.totals(visitor)
        log_access(
            "visitor left",
            address=visitor.address,
            seconds=round(self.loop.now - visitor.since, 3),
            bytes_in=bytes_in,
            bytes_out=bytes_out,
            how=describe_end(visitor, is_server=self.is_server, link_lost=link_lost),
        )

    def drain(self) -> None:
        """Take no new visitors; call :meth:`leave` when the last one has gone."""
        raise NotImplementedError

    def on_addresses(self, message: dict[str, Any]) -> None:
        """The host looked up a name for us."""
        del message

    # ----------------------------------------------------------------------- link

    def _change_keys(self, keys: tuple[bytes, ...]) -> None:
        """Other keys are good from now on."""
        if keys != self.keys:
            self.keys = keys
            self._show_key()
            self.on_keys()

    def on_keys(self) -> None:
        """A side does what follows from other keys."""
        raise NotImplementedError

    def _show_key(self) -> None:
        self.counters[Counter.LINK_KEY] = int(self.link_key != self.keys[0])

    def use_link(self, link: Link, key: bytes, rest: bytes, what: str) -> None:
        """A link was established: serve over it."""
        self.link = link
        self.link_key = key
        self._show_key()
        self.loop.on_turn = link.end_turn
        self.counters[Counter.LINKS_TOTAL] += 1
        self._show_link(LinkState.UP)
        seconds = self.loop.now - self._lost_since if self._lost_since else None
        self._lost_since = 0.0
        self.tell(
            {
                "type": "link",
                "state": "up",
                "peer": link.peer,
                "reason": what,
                "seconds": seconds if seconds is None else round(seconds, 3),
            }
        )
        if seconds is None:
            self.log.info("link up with {}", link.peer)
        else:
            self.log.info("link up with {} after {:.2f} s", link.peer, seconds)
        link.start(rest)
        link.ask_for_life()

    def drop_link(self, reason: str) -> None:
        """The link is over: keep the books and tell."""
        link, self.link = self.link, None
        if link is None:
            return
        self.loop.on_turn = None
        self._close_books(link)
        self._lost_since = self.loop.now
        self._show_link(LinkState.DOWN)
        self.counters[Counter.RTT_US] = 0
        self.tell({"type": "link", "state": "down", "peer": link.peer, "reason": reason})
        self.log.info("link with {} lost: {}", link.peer, reason)

    def _close_books(self, link: Link) -> None:
        self._store_counters(link)
        self._done_in = self.counters[Counter.BYTES_IN]
        self._done_out = self.counters[Counter.BYTES_OUT]
        self._done_resets += link.session.resets
        self.counters[Counter.RESETS_TOTAL] = self._done_resets

    def _show_link(self, state: LinkState) -> None:
        self.counters[Counter.LINK_STATE] = state
        self.counters[Counter.LINK_SINCE_NS] = time.time_ns()

    def on_doubt(self, link: Link) -> None:
        """The link is silent for too long; a side does something about it."""
        self._show_link(LinkState.DOUBTED)
        self.tell({"type": "link", "state": "doubted", "peer": link.peer, "reason": "silent"})

    def on_trust(self, link: Link) -> None:
        """The doubted link spoke again."""
        self._show_link(LinkState.UP)
        self.tell({"type": "link", "state": "up", "peer": link.peer, "reason": "spoke again"})
        self.log.info("link with {} spoke again", link.peer)
