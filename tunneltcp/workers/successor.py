"""Workers that outlive themselves: what one carried goes on in the next.

Theory of operation
-------------------
Before it serves, a worker takes the sockets that the keepers of those before it have
(``inherit.py``) and reads the records in the tunnel's memory. Each stream found is judged
(``relay/verdict.py``), and made again (``protocol/rebuild.py``) or reset. The link died with
its worker, and is resumed as after any lost link. Both sides do the same, but for a socket
without a record: on the server it is a visitor that nobody looked at yet, or the old link; on
the client nothing that is worth keeping.
"""

from __future__ import annotations

import os
import socket
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from tunneltcp.control.counters import Counter
from tunneltcp.net.address import (
    format_address,
    pack_address,
    pack_own_address,
    peer_address,
    unpack_address,
)
from tunneltcp.net.keeper import start_keeper
from tunneltcp.net.sockopt import close_with_reset
from tunneltcp.net.tcp_counters import TcpState, read_counters
from tunneltcp.protocol.errors import ResetCode
from tunneltcp.protocol.rebuild import rebuild_reset, rebuild_stream
from tunneltcp.protocol.table import IN_HAND
from tunneltcp.relay.poison import MAX_CRASHES, find_poison, take_in_hand
from tunneltcp.relay.relay import Relay, TargetRelay
from tunneltcp.relay.verdict import Fate, Verdict, judge
from tunneltcp.workers.base import Worker
from tunneltcp.workers.client import ClientWorker
from tunneltcp.workers.inherit import hold_back, inherit
from tunneltcp.workers.known import unpack_known
from tunneltcp.workers.owner import unpack_owner
from tunneltcp.workers.server import ServerWorker
from tunneltcp.workers.visitor_relay import VisitorRelay

if TYPE_CHECKING:
    from tunneltcp.control.context import WorkerContext
    from tunneltcp.net.tcp_counters import TcpCounters
    from tunneltcp.protocol.arena import Ring
    from tunneltcp.protocol.stream import Stream
    from tunneltcp.protocol.table import Record
    from tunneltcp.relay.link import Link

    _Judged = tuple[Record, socket.socket | None, Verdict]

__all__ = ["ClientSuccessor", "ServerSuccessor"]

_KEEPER_RETRY_SECONDS: Final = 5.0
"""After the kernel had no process for us; where it never has, this costs nothing."""


class _Successor(Worker):
    """What both sides share."""

    def __init__(self, context: WorkerContext) -> None:
        super().__init__(context)
        if context.keeper_pid:
            self._tell_keeper(context.keeper_pid, "")
        else:
            self._make_keeper()
        self._died_at = context.died_at
        """When the worker before us died; 0.0: there was none, or its streams go on already."""
        self._spare_fds: list[int] = []

    def start(self) -> None:
        """Take over what there is, then serve."""
        table = self.memory.table
        in_hand = take_in_hand(table)
        sockets = inherit(self.context.old_keeper_fds)
        self.session.last_id = table.last_id
        self._take_streams(table.records(), sockets, in_hand)
        for sock in sockets.values():
            self.adopt_stranger(sock)
        self._spare_fds = hold_back()
        done_in, done_out = self.session.count_bytes()
        if not self.is_server:
            done_in, done_out = done_out, done_in
        self._done_in -= done_in  # the worker before us has counted those
        self._done_out -= done_out
        session_id = table.session_id
        if any(session_id):
            self.session_id = session_id.hex()
        self.restore()
        if self.session_id:
            self._set_grace_timer(False)
        super().start()

    def close(self) -> None:
        """Let go of everything."""
        while self._spare_fds:
            os.close(self._spare_fds.pop())
        super().close()

    def _make_keeper(self) -> None:
        title = f"tunneltcp {self.context.role.value}: keeper of {self.context.port}"
        try:
            self._tell_keeper(start_keeper(self.context.keeper_fd, title), "")
        except OSError as error:
            self._tell_keeper(0, error.strerror or "?")

    def _tell_keeper(self, pid: int, trouble: str) -> None:
        if trouble:
            self.warn("keeper", f"not crash-safe, there is no keeper: {trouble}")
            self.loop.call_later(_KEEPER_RETRY_SECONDS, self._make_keeper)
        self.tell({"type": "keeper", "pid": pid})

    def _handle_message(self, message: dict[str, Any]) -> None:
        if message.get("type") == "keeper":
            self._make_keeper()
        else:
            super()._handle_message(message)

    def on_resumed(self, link: Link, streams: int, again_bytes: int) -> None:
        """Say how long what was taken over stood still."""
        super().on_resumed(link, streams, again_bytes)
        if self._died_at:
            seconds = max(0.0, time.monotonic() - self._died_at)
            self._died_at = 0.0
            self.tell({"type": "stood_still", "seconds": round(seconds, 4)})
            self.log.info("what was taken over stood still for {:.3f} s", seconds)

    # ------------------------------------------------------------------- streams

    def _take_streams(
        self, records: list[Record], sockets: dict[int, socket.socket], in_hand: int
    ) -> None:
        """Make what goes on; ``sockets`` loses those that belong to a record."""
        judged: list[_Judged] = []
        for record in records:
            sock = sockets.pop(record.cookie, None)
            verdict = judge(record, _counters(sock), connected=not self.is_server)
            judged.append((record, sock, verdict))
        judged, is_poisoned = self._without_poison(judged, in_hand)
        rings = self.memory.arena.adopt(
            record.ring_word
            for record, _, verdict in judged
            if record.ring_word and verdict.fate in (Fate.GOES_ON, Fate.RESET)
        )
        taken = reset = 0
        windows = self.session.windows
        windows.heirs = sum(v.fate in (Fate.GOES_ON, Fate.CONNECT) for _, _, v in judged)
        for record, sock, verdict in judged:
            ring = rings.get(record.ring_word)
            goes_on = self._take_stream(record, sock, verdict, ring)
            taken += goes_on
            reset += verdict.fate is Fate.RESET or (
                verdict.fate is not Fate.OVER and not goes_on
            )
        windows.heirs = 0  # one whose ring is broken took none
        self.memory.table.words[IN_HAND] = 0
        if records or self._died_at:
            self.log.info("took over {} streams, {} were reset", taken, reset)
            self.tell(
                {
                    "type": "took_over",
                    "streams": taken,
                    "reset": reset,
                    "poisoned": is_poisoned,
                }
            )

    def _without_poison(
        self, judged: list[_Judged], in_hand: int
    ) -> tuple[list[_Judged], bool]:
        """Condemn the stream that seems to have killed those before us, if there is one."""
        moved = {
            record.stream_id: verdict.head + verdict.delivered
            for record, _, verdict in judged
            if verdict.fate in (Fate.GOES_ON, Fate.CONNECT)
        }
        table = self.memory.table
        crashed, now = self.context.crashed, time.monotonic()
        poison = find_poison(table, in_hand, moved, crashed=crashed, now=now)
        if not poison:
            return judged, False
        self.warn(
            "poison",
            f"stream {poison} is reset: {MAX_CRASHES} workers in a row crashed with it in hand",
        )
        cured = []
        for record, sock, verdict in judged:
            if record.stream_id == poison:  # without its ring: the peer gets none of it either
                record = replace(record, ring_word=0)
                verdict = Verdict(fate=Fate.RESET, why="it was in hand at each crash")
            cured.append((record, sock, verdict))
        return cured, True

    def _take_stream(
        self,
        record: Record,
        sock: socket.socket | None,
        verdict: Verdict,
        ring: Ring | None,
    ) -> bool:
        """Take one; return whether it goes on."""
        self.memory.table.words[IN_HAND] = record.stream_id
        stream = None
        if verdict.fate is Fate.OVER:
            self.memory.table.give(record.index)
        elif verdict.fate is Fate.RESET or (record.ring_word and ring is None):
            self.log.warning(
                "stream {} is reset: {}", record.stream_id, verdict.why or "its ring is broken"
            )
            rebuild_reset(self.session, record, ring)
        else:
            stream = self._rebuild(record, sock, verdict, ring)
        if sock is not None and (stream is None or verdict.fate is Fate.CONNECT):
            close_with_reset(sock)
        elif stream is not None and sock is not None:
            self.adopt(stream, sock)
        if stream is not None and verdict.fate is Fate.CONNECT:
            self.connect(stream)
        return stream is not None

    def _rebuild(
        self,
        record: Record,
        sock: socket.socket | None,
        verdict: Verdict,
        ring: Ring | None,
    ) -> Stream | None:
        addresses = b""
        if self.is_server and sock is not None:
            addresses = pack_address(peer_address(sock)) + pack_own_address(sock)
        stream = rebuild_stream(
            self.session,
            record,
            ring,
            head=verdict.head,
            delivered=verdict.delivered,
            fin_delivered=verdict.fin_delivered,
            addresses=addresses,
        )
        if stream is None:
            self.log.warning("stream {} is reset: no memory is left", record.stream_id)
            rebuild_reset(self.session, record, ring)
        elif verdict.fate is Fate.CONNECT:
            stream.store_cookie(0)
        return stream

    # ------------------------------------------------------------ what a side adds

    def restore(self) -> None:
        """Go on with what else is known of the session."""

    def adopt(self, stream: Stream, sock: socket.socket) -> None:
        """Relay between a stream and the socket that it had."""
        raise NotImplementedError

    def connect(self, stream: Stream) -> None:
        """Connect to the target: the worker before us had not done it (client)."""
        raise NotImplementedError

    def adopt_stranger(self, sock: socket.socket) -> None:
        """Do what is right with a connection that has no stream."""
        raise NotImplementedError


class ServerSuccessor(_Successor, ServerWorker):
    """A server's worker that takes over visitors."""

    def restore(self) -> None:
        """Know the client again; visitors that it never answered wait on."""
        self.counters[Counter.VISITORS] = len(self._relays)
        owner = unpack_owner(self.memory.table.owner, self.keys)
        self._owner_ids = (self.key_clients.get(owner.key, ""), *owner.ids)
        self._owner, self.link_key = owner.address, owner.key
        if self.session_id and not owner.key:
            self.end_session()
            self.log.info("the key of the client that was here is not good any more")
        self._hold_unanswered()

    def adopt(self, stream: Stream, sock: socket.socket) -> None:
        """A visitor goes on."""
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        peer = peer_address(sock)
        relay: Relay
        if stream.head:
            relay = Relay(self.loop, sock, self.on_visitor_over)
        else:  # it has not spoken yet
            relay = VisitorRelay(self, sock, peer)
        table = self.memory.table
        self._relays[relay] = self.visitors.go_on(format_address(peer), relay, table, stream)
        stream.endpoint = relay
        relay.go_on(stream)

    def adopt_stranger(self, sock: socket.socket) -> None:
        """Nothing was read from it: nobody has looked at it yet. Else it was the link."""
        kernel = _counters(sock)
        if kernel is not None and _is_untouched(kernel):
            self._arrivals.take_again(sock, peer_address(sock))
        else:
            sock.close()


class ClientSuccessor(_Successor, ClientWorker):
    """A client's worker that takes over connections to the target."""

    def start(self) -> None:
        """Know what the worker before us had looked up, then go on with what it had."""
        server, target = unpack_known(self.context, self.memory.table.owner)
        self._server_addresses = self._server_addresses or server
        self._target_addresses = self._target_addresses or target
        super().start()

    def restore(self) -> None:
        """Count who is here."""
        self.counters[Counter.VISITORS] = len(self._relays)

    def adopt(self, stream: Stream, sock: socket.socket) -> None:
        """A visitor goes on."""
        relay = Relay(self.loop, sock, self._on_relay_over)
        self._register(relay, stream)
        relay.go_on(stream)

    def _register(self, relay: Relay, stream: Stream) -> None:
        table = self.memory.table
        address = unpack_address(table.address(stream.record))
        self._relays[relay] = self.visitors.go_on(address, relay, table, stream)
        stream.endpoint = relay

    def connect(self, stream: Stream) -> None:
        """Connect now; where to is known, or the worker before us could not have begun."""
        addresses = self._target_addresses
        if not addresses:
            stream.reset(ResetCode.TARGET_UNREACHABLE)
            return
        try:
            relay = TargetRelay(self.loop, addresses, self._on_relay_over, self._on_connected)
        except OSError:
            stream.reset(ResetCode.OVER_LIMIT)
            return
        self._register(relay, stream)
        relay.start(stream)

    def adopt_stranger(self, sock: socket.socket) -> None:
        """The old link, an attempt to have one, or a target that nobody had written down."""
        close_with_reset(sock)


def _counters(sock: socket.socket | None) -> TcpCounters | None:
    """Look at a connection; one that cannot be looked at counts as none."""
    if sock is None:
        return None
    try:
        return read_counters(sock)
    except OSError:
        return None


def _is_untouched(kernel: TcpCounters) -> bool:
    """Whether a connection lives that nobody has read from or written to."""
    has_fin = kernel.state == TcpState.CLOSE_WAIT
    lives = has_fin or kernel.state == TcpState.ESTABLISHED
    read = kernel.received - kernel.unread - has_fin
    return lives and not read and not kernel.acked and not kernel.unacked
