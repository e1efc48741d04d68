"""Who comes to the public port: a visitor, or the link? See PROTOCOL.md §3.

Theory of operation
-------------------
The first bytes tell, and they are looked at without being taken. What does not begin like
a preface is a visitor at once. Who says nothing is a visitor after ``SNIFF_SECONDS``, for
protocols in which the server speaks first; while there is no link nothing is lost by
waiting, so it stays undecided for as long as a visitor would be held. Nothing here ever
blocks: each undecided connection is an entry with a deadline.

The worker never stops accepting, since the link comes through the same queue. When no
descriptor is left, somebody who has not spoken goes for each that comes. One descriptor is
kept in reserve: when all others are in use by who has, one connection at a time is looked at
with it, and reset unless it is the link.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Final, Protocol

from tunneltcp.net.loop import READ
from tunneltcp.net.sockopt import accept
from tunneltcp.protocol.preface import MAGIC

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunneltcp.net.loop import Loop, Timer

__all__ = ["SNIFF_SECONDS", "ArrivalOwner", "Arrivals"]

SNIFF_SECONDS: Final = 0.03
"""Silence after which a connection is a visitor. A client that means to speak has its
first bytes on the way with the end of its TCP handshake."""
MAX_UNDECIDED: Final = 4096
"""Connections that have not spoken. At the bound a random one goes: who floods the port
cannot choose whom he throws out."""
ACCEPTS_PER_TURN: Final = 8
"""Connections accepted, or taken for visitors by their silence, before the others get their
turn: each is a tenth of a millisecond of work, and a crowd must not delay who is here."""
NEXT_TURN_SECONDS: Final = 0.0001
"""What is due is called in this turn; this is not."""
RESERVE_SECONDS: Final = 0.1
"""How long one connection may be looked at with the descriptor kept in reserve. The link's
first bytes are there by then, or lost, and then it dials again; who says nothing must not
keep the queue, in which the link may stand, from moving."""
_RETRY_SECONDS: Final = 0.1
_OUT_OF_DESCRIPTORS: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class ArrivalOwner(Protocol):
    """What is done with who came."""

    def on_visitor(self, sock: socket.SocketType, address: object, *, silent: bool) -> None:
        """A visitor; ``silent``: it has not spoken, so it might yet turn out a link."""

    def on_link(self, sock: socket.SocketType, address: object) -> None:
        """Its first bytes are those of a preface."""

    def on_shed(self) -> None:
        """A connection was reset because there was no descriptor for it."""

    def silence_seconds(self) -> float:
        """How long who says nothing stays undecided now."""


class _Arrival:
    __slots__ = ("address", "came", "half", "on_reserve", "sock")

    def __init__(
        self, sock: socket.SocketType, address: object, came: float, *, on_reserve: bool
    ) -> None:
        self.sock = sock
        self.address = address
        self.came = came
        self.on_reserve = on_reserve
        self.half = False
        """Whether a beginning of the magic came, and the rest is waited for."""


class Arrivals:
    """Accepts on ``listeners`` and decides."""

    def __init__(
        self, loop: Loop, listeners: Sequence[socket.socket], owner: ArrivalOwner
    ) -> None:
        self._loop = loop
        self._listeners = list(listeners)
        self._owner = owner
        self._undecided: dict[int, _Arrival] = {}
        self._timer: Timer | None = None
        self._reserve: int | None = None
        self._accepting = False
        self._reopen()

    def __len__(self) -> int:
        return len(self._undecided)

    def start(self) -> None:
        """Begin to accept."""
        if self._accepting:
            return
        self._accepting = True
        for listener in self._listeners:
            self._loop.register(listener.fileno(), READ, partial(self._accept, listener))

    def _pause(self) -> None:
        if self._accepting:
            self._accepting = False
            for listener in self._listeners:
                self._loop.unregister(listener.fileno())

    def close(self) -> None:
        """Accept nothing more, and reset who is undecided."""
        self._pause()
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        if self._reserve is not None:
            os.close(self._reserve)
            self._reserve = None
        for arrival in list(self._undecided.values()):
            self._forget(arrival)
            arrival.sock.close()

    def recheck(self) -> None:
        """The link came or went: silence means something else now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._set_timer()

    # ------------------------------------------------------------------- accepting

    def _accept(self, listener: socket.socket, events: int) -> None:
        del events
        for _ in range(ACCEPTS_PER_TURN):
            if not self._accepting:
                return
            try:
                sock, address = accept(listener)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _OUT_OF_DESCRIPTORS:
                    self._accept_on_reserve(listener)
                    return
                continue  # that one went away before we came: not our trouble
            try:
                first = sock.recv(len(MAGIC), socket.MSG_PEEK)
            except BlockingIOError:
                first = b""
            except OSError:  # reset already; asked again, the kernel would not say so
                sock.close()
                continue
            if MAGIC.startswith(first):
                self._take(sock, address, on_reserve=False)
            else:  # a visitor, as most are: it need not be watched for that
                self._owner.on_visitor(sock, address, silent=False)

    def _accept_on_reserve(self, listener: socket.socket) -> None:
        """No descriptor is left: look at one connection with the one set aside.

        (That is said also when nobody waits in the queue.)
        """
        self._pause()
        if self._reserve is None:
            self._loop.call_later(_RETRY_SECONDS, self._go_on)
            return
        os.close(self._reserve)
        self._reserve = None
        try:
            sock, address = accept(listener)
        except OSError:
            self._reopen()
            self._loop.call_later(_RETRY_SECONDS, self._go_on)
            return
        if self._undecided:
            self._throw_out_one()
            self._owner.on_shed()
            self._take(sock, address, on_reserve=False)
            self._go_on()
            return
        arrival = self._take(sock, address, on_reserve=True)
        self._loop.call_later(RESERVE_SECONDS, lambda: self._give_up(arrival))

    def take_again(self, sock: socket.SocketType, address: object) -> None:
        """Decide about a connection that a worker before us accepted and never read."""
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        self._take(sock, address, on_reserve=False)

    def _give_up(self, arrival: _Arrival) -> None:
        """Who says nothing does not keep the last descriptor from the link."""
        if self._undecided.get(arrival.sock.fileno()) is arrival:
            self._admit(arrival, silent=True)

    def _go_on(self) -> None:
        if self._listeners:
            self._reopen()
            self.start()

    def _reopen(self) -> None:
        if self._reserve is None:
            with contextlib.suppress(OSError):
                self._reserve = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)

    def _take(self, sock: socket.SocketType, address: object, *, on_reserve: bool) -> _Arrival:
        if len(self._undecided) >= MAX_UNDECIDED:
            self._throw_out_one()
        arrival = _Arrival(sock, address, self._loop.now, on_reserve=on_reserve)
        self._undecided[sock.fileno()] = arrival
        self._loop.register(sock.fileno(), READ, partial(self._look, arrival))
        self._set_timer()
        return arrival

    def _throw_out_one(self) -> None:
        """Reset one of those who have not spoken: a random one, never the oldest."""
        number = int.from_bytes(os.urandom(4), "big") % len(self._undecided)
        victim = next(islice(self._undecided.values(), number, None))
        self._forget(victim)
        victim.sock.close()
        self._free_reserve(victim)

    # -------------------------------------------------------------------- deciding

    def _look(self, arrival: _Arrival, events: int) -> None:
        """Something came, or the end of it."""
        del events
        try:
            first = arrival.sock.recv(len(MAGIC), socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            self._forget(arrival)
            arrival.sock.close()
            self._free_reserve(arrival)
            return
        if first == MAGIC:
            self._forget(arrival)
            self._owner.on_link(arrival.sock, arrival.address)
            self._free_reserve(arrival)
        elif first and MAGIC.startswith(first) and not arrival.half:
            arrival.half = True  # woken again for less than all of it: there will be no more
            # Half a magic counts as silence; do not wake up for it again.
            arrival.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, len(MAGIC))
        else:
            self._admit(arrival, silent=False)

    def _admit(self, arrival: _Arrival, *, silent: bool) -> None:
        self._forget(arrival)
        if arrival.on_reserve:
            arrival.sock.close()
            self._owner.on_shed()
            self._free_reserve(arrival)
        else:
            self._owner.on_visitor(arrival.sock, arrival.address, silent=silent)

    def _free_reserve(self, arrival: _Arrival) -> None:
        """Set a descriptor aside again, if this arrival had it, and accept the next."""
        if arrival.on_reserve:
            self._go_on()

    def _forget(self, arrival: _Arrival) -> None:
        del self._undecided[arrival.sock.fileno()]
        self._loop.unregister(arrival.sock.fileno())

    def _set_timer(self, not_before: float = 0.0) -> None:
        if self._timer is None and self._undecided:
            oldest = next(iter(self._undecided.values()))
            when = oldest.came + self._owner.silence_seconds()
            self._timer = self._loop.call_at(max(when, not_before), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        latest = self._loop.now - self._owner.silence_seconds()
        for _ in range(min(ACCEPTS_PER_TURN, len(self._undecided))):
            arrival = next(iter(self._undecided.values()))
            if arrival.came > latest:
                break
            arrival.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
            self._admit(arrival, silent=True)
        self._set_timer(self._loop.now + NEXT_TURN_SECONDS)
