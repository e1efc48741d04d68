"""The relay of a visitor that was silent for too long to be waited for as a link."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

from tunneltcp.protocol.errors import ResetCode
from tunneltcp.protocol.preface import MAGIC
from tunneltcp.relay.relay import Relay

if TYPE_CHECKING:
    from tunneltcp.workers.server import ServerWorker

__all__ = ["MIN_UNDECIDED_SECONDS", "VisitorRelay"]

MIN_UNDECIDED_SECONDS: Final = 1.0
"""Who has not spoken may be the link; so long it is waited for, even with ``hold`` 0."""


class VisitorRelay(Relay):
    """A visitor that had not spoken when it was taken for one: it may yet be the link."""

    __slots__ = ("_address", "_decided", "_half", "_worker")

    def __init__(self, worker: ServerWorker, sock: socket.SocketType, address: object) -> None:
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
