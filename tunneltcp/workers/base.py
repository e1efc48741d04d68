"""The life of a worker: its loop, its channel to the master, its counters.

Theory of operation
-------------------
A worker serves one tunnel until its master says "drain" or "stop", or is gone (end of file
on the channel). TERM only asks the master for a successor; INT, QUIT and HUP, which reach
the whole group of processes, are ignored. Once in each turn of the loop the link is
written; ten times a second the counters are stored where the master reads them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from typing import TYPE_CHECKING, Any, Final

from loguru import logger

from tunneltcp.control.codec import decode_message, encode_message
from tunneltcp.control.context import MEMORY_BYTES, RECORDS_BYTES
from tunneltcp.control.counters import Counter, LinkState, map_counters
from tunneltcp.errors import ControlChannelError, ExitCode
from tunneltcp.log import Throttle, dropped_lines
from tunneltcp.net.loop import READ, Loop
from tunneltcp.relay.memory import TunnelMemory, receive_buffer

if TYPE_CHECKING:
    from tunneltcp.control.context import WorkerContext
    from tunneltcp.relay.link import Link

__all__ = ["MAX_SLEEP_SECONDS", "Worker"]

MAX_SLEEP_SECONDS: Final = 0.5
"""A worker's loop turns at least this often, so that one that hangs is soon known."""
TIDY_SECONDS: Final = 1.0
"""Memory that nobody needed for this long is given back to the system."""
_MESSAGE_BYTES: Final = 64 * 1024


class Worker:
    """What both sides share. A side adds how it gets its link and what it does with it."""

    def __init__(self, context: WorkerContext) -> None:
        self.context = context
        self.loop = Loop(max_sleep_seconds=MAX_SLEEP_SECONDS)
        self.memory = TunnelMemory(
            context.memory_fd, MEMORY_BYTES, RECORDS_BYTES, context.budget_bytes
        )
        self.memory.clear()
        self.buffer = receive_buffer()
        self.counters = map_counters(context.counters_fd)
        self.link: Link | None = None
        self.draining = False
        self.log = logger
        self._exit_code: ExitCode | None = None
        self._channel = socket.socket(fileno=context.channel_fd)
        self._channel.setblocking(False)
        self._done_in = 0
        self._done_out = 0
        self._done_resets = 0
        self._lost_since = 0.0
        self._own_descriptors = 0
        self._throttle = Throttle()

    # ----------------------------------------------------------------------- life

    def run(self) -> int:
        """Serve until told otherwise; return the exit code."""
        self._catch_signals()
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
        self.loop.register(self._channel.fileno(), READ, self._on_channel)
        self.loop.on_beat = self._beat
        self._own_descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - see log.py
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
            self.link.close()
        self._channel.close()
        self.loop.close()

    def count_visitors(self) -> int:
        """Return how many visitors there are now."""
        return int(self.counters[Counter.VISITORS])

    def _catch_signals(self) -> None:
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: None)
        waker, self._wake_writer = socket.socketpair()
        waker.setblocking(False)
        self._wake_writer.setblocking(False)
        signal.set_wakeup_fd(self._wake_writer.fileno(), warn_on_full_buffer=False)
        self._waker = waker
        self.loop.register(waker.fileno(), READ, self._on_signal)

    def _on_signal(self, events: int) -> None:
        del events
        with contextlib.suppress(BlockingIOError):
            if signal.SIGTERM in self._waker.recv(64):
                self.tell({"type": "replace"})

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
        """Log what went wrong; the same kind again only now and then."""
        missed = self._throttle.admit(kind, self.loop.now)
        if missed is not None:
            more = f" ({missed} more times since the last line)" if missed else ""
            self.log.warning("{}{}", text, more)

    # -------------------------------------------------------------------- channel

    def tell(self, message: dict[str, Any]) -> None:
        """Send a message to the master; if it cannot take it now, it is dropped.

        The channel holds over a hundred messages and the master empties it each turn, so
        this happens only to who talks to a master that hangs.
        """
        with contextlib.suppress(BlockingIOError, ConnectionError):
            self._channel.send(encode_message(message))

    def _on_channel(self, events: int) -> None:
        del events
        fds: list[int] = []
        try:
            packet, fds, _, _ = socket.recv_fds(
                self._channel, _MESSAGE_BYTES, 1, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        if not packet:  # the master is gone, and a worker never outlives it
            self.leave()
            return
        try:
            message = decode_message(packet)
        except ControlChannelError as error:
            self.log.error("master sent garbage: {}", error)
            return
        self._handle_message(message)
        if fds:  # only one message comes with one
            self.on_certificate(fds[0])

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

    def drain(self) -> None:
        """Take no new visitors; call :meth:`leave` when the last one has gone."""
        raise NotImplementedError

    def on_addresses(self, message: dict[str, Any]) -> None:
        """The master looked up a name for us."""
        del message

    def on_certificate(self, fd: int) -> None:
        """The master has another certificate for us; the descriptor is ours."""
        os.close(fd)

    # ----------------------------------------------------------------------- link

    def use_link(self, link: Link, rest: bytes, what: str) -> None:
        """A link was established: serve over it."""
        self.link = link
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
