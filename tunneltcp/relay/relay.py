"""A connection and its stream: bytes both ways, half-close, reset.

Theory of operation
-------------------
The relay is the stream's endpoint. It receives straight into the stream's ring and sends
to the socket straight from the link's buffer; only what the socket would not take is
copied, and the stream's window bounds how much that can be. A socket that may not be read
now is not watched for reading, and one with nothing to watch is taken out of the loop
(epoll reports errors also of sockets nobody asks about).

FIN stays FIN and RST stays RST: input that ends becomes FIN on the stream, a failure of the
socket becomes RESET, and a RESET from the peer resets the socket. The socket is set up so
that closing it means RST; a clean end takes that back first.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from typing import TYPE_CHECKING, Final

from tunneltcp.net.address import is_loopback, peer_address
from tunneltcp.net.loop import READ, WRITE
from tunneltcp.net.sockopt import (
    CONNECT_BEGUN,
    close_cleanly,
    cookie,
    is_connected_to_itself,
    new_socket,
    prepare_connection,
)
from tunneltcp.protocol.endpoint import take_nothing
from tunneltcp.protocol.errors import ResetCode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tunneltcp.net.address import SocketAddress
    from tunneltcp.net.loop import Loop, Timer
    from tunneltcp.protocol.stream import Stream

__all__ = ["CLOSED", "CONNECT_SECONDS", "FAILED", "Relay", "TargetRelay"]

CONNECT_SECONDS: Final = 5.0
"""How long one address of a target may take to accept; it is usually this very machine."""

CLOSED: Final = -1
"""How a relay ended: both directions had finished."""
FAILED: Final = -2
"""How a relay ended: its own socket was reset, or could not be read or written."""


class Relay:
    """Joins one connected, non-blocking socket to one stream.

    Args:
        on_over: Called once, when the socket was let go of.
    """

    __slots__ = (
        "_fd",
        "_fin_waits",
        "_loop",
        "_mask",
        "_on_over",
        "_out",
        "_receive_into",
        "_send",
        "_sock",
        "ended",
        "is_connecting",
        "stream",
    )

    stream: Stream
    is_connecting: bool
    """Whether nobody has accepted yet; until then the loop is asked by who connects."""
    ended: int
    """How it ended: CLOSED, FAILED, or the code of a RESET; 0 while it has not."""

    def __init__(
        self, loop: Loop, sock: socket.SocketType, on_over: Callable[[Relay], None]
    ) -> None:
        self._loop = loop
        self._on_over = on_over
        self.ended = 0
        self.is_connecting = False
        self._mask = 0
        self._out = bytearray()
        self._fin_waits = False
        self._sock = sock
        self._fd = sock.fileno()
        self._receive_into = sock.recv_into
        self._send: Callable[[bytearray | memoryview], int] = sock.send

    def start(self, stream: Stream) -> None:
        """Begin to relay."""
        self.stream = stream
        stream.send = self._send
        self._mask = READ
        self._loop.register(self._fd, READ, self.on_events)

    def go_on(self, stream: Stream) -> None:
        """Relay a stream that another worker had begun."""
        self.stream = stream
        stream.send = self._send
        if stream.fin_at < 0:
            self._watch(READ)

    @property
    def waiting_bytes(self) -> int:
        """Bytes that came for this socket and that it would not take yet."""
        return len(self._out)

    # --------------------------------------------------------------- the loop calls

    def on_events(self, events: int) -> None:
        """The socket is ready."""
        if events != READ:
            if events & self._mask & WRITE:
                self.stream.take_in_hand()
                self._drain()
            if not events & self._mask & READ:
                return
        try:
            count = self.stream.fill(self._receive_into)
        except BlockingIOError:
            return
        except OSError:
            self._fail()
            return
        if count <= 0:
            self._watch(self._mask & ~READ)
            if not count:
                self.stream.finish()

    def _drain(self) -> None:
        """Send what the socket would not take earlier."""
        out = self._out
        if out:
            try:
                count = self._send(out)
            except BlockingIOError:
                return
            except OSError:
                self._fail()
                return
            del out[:count]
            self.stream.delivered_more(count)
        if not out:
            self.stream.send = self._send
            self._watch(self._mask & ~WRITE)
            if self._fin_waits:
                self.deliver_fin()

    def _watch(self, mask: int) -> None:
        """Ask the loop for ``mask``, and for nothing else."""
        if mask == self._mask or self.is_connecting:
            return
        if not self._mask:
            self._loop.register(self._fd, mask, self.on_events)
        elif not mask:
            self._loop.unregister(self._fd)
        else:
            self._loop.modify(self._fd, mask, self.on_events)
        self._mask = mask

    # ------------------------------------------------------------- the stream calls

    def deliver(self, data: memoryview) -> int:
        """See :class:`~tunneltcp.protocol.endpoint.Endpoint`; so for the others here."""
        if self._out:
            self._out += data
            return 0
        try:
            count = self._send(data)
        except BlockingIOError:
            count = 0
        except OSError:
            self._fail()
            return 0
        if count < len(data):
            self._out += data[count:]
            self.stream.send = take_nothing
            self._watch(self._mask | WRITE)
        return count

    def deliver_fin(self) -> None:
        """Pass the peer's FIN on, behind what waits and once there is a connection."""
        if self._out or self.is_connecting:
            self._fin_waits = True
            return
        self._fin_waits = False
        stream = self.stream
        stream.record_fin()
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._fail()
            return
        stream.fin_done()

    def resume_reading(self) -> None:
        """There is room in the ring again."""
        self._watch(self._mask | READ)

    def drop_waiting(self) -> None:
        """The link is lost: what the socket would not take comes again."""
        self._out.clear()
        self._fin_waits = False
        self.stream.send = self._send
        self._watch(self._mask & ~WRITE)

    def reset(self, code: ResetCode) -> None:
        """End it from this side: the stream is reset, and the socket."""
        self.stream.reset(code)
        self.abort(code)

    def abort(self, code: int) -> None:
        """Reset the socket: closing it does, as it was prepared."""
        self.ended = self.ended or code
        self._let_go()
        self._sock.close()
        self._on_over(self)

    def close(self) -> None:
        """Both directions have finished."""
        self.ended = CLOSED
        if self._mask:
            self._watch(0)
        close_cleanly(self._sock)
        self._on_over(self)

    def _let_go(self) -> None:
        if self._mask:
            self._mask = 0
            self._loop.unregister(self._fd)
        self._out.clear()

    def _fail(self) -> None:
        """The socket failed: pass on what it still holds, then reset the stream.

        A target that answers without reading everything, and is then reset by its own
        system, has its answer delivered that way.
        """
        stream = self.stream
        stream.record_error()
        with contextlib.suppress(OSError):
            while stream.fill(self._receive_into) > 0:
                pass
        self.ended = FAILED
        self.reset(ResetCode.CANCELLED)


def _not_connected(data: bytearray | memoryview) -> int:
    raise BlockingIOError(errno.EAGAIN, f"not connected yet, {len(data)} bytes wait")


class TargetRelay(Relay):
    """A relay that first connects, to the first of ``addresses`` that accepts."""

    __slots__ = ("_addresses", "_on_connected", "_timer", "refused", "tried")

    def __init__(
        self,
        loop: Loop,
        addresses: Sequence[SocketAddress],
        on_over: Callable[[Relay], None],
        on_connected: Callable[[TargetRelay], None],
    ) -> None:
        super().__init__(loop, _new_socket(addresses[0]), on_over)
        self._addresses = addresses
        self._on_connected = on_connected
        self.is_connecting = True
        self.tried = 0
        """How many addresses did not do."""
        self._timer: Timer | None = None
        self.refused = ""
        """Why the last address did not do, in words of the operating system."""

    @property
    def address(self) -> SocketAddress:
        """Where it connects to, or is connected."""
        return self._addresses[self.tried]

    def start(self, stream: Stream) -> None:
        """Begin to connect; what comes for the target meanwhile waits."""
        self.stream = stream
        self._send = _not_connected
        self._connect()

    def _connect(self) -> None:
        """Try the first address that is left."""
        _, address = self._addresses[self.tried]
        sock = self._sock
        self.stream.store_cookie(cookie(sock))
        error = sock.connect_ex(address)
        if error not in CONNECT_BEGUN:
            self._try_next(error)
            return
        peer = peer_address(sock)
        if peer is not None:  # on this very machine it is connected as soon as it was asked for
            self._connected(peer)
            return
        self._timer = self._loop.call_later(CONNECT_SECONDS, self._on_timeout)
        self._loop.register(self._fd, WRITE, self._on_connect)
        self._mask = WRITE

    def _on_timeout(self) -> None:
        self._try_next(errno.ETIMEDOUT)

    def _on_connect(self, events: int) -> None:
        del events
        self.stream.take_in_hand()
        error = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            self._try_next(error)
            return
        self._stop_connecting()
        self._connected(peer_address(self._sock))

    def _connected(self, peer: object) -> None:
        """The address has accepted."""
        if is_connected_to_itself(self._sock, peer):
            self._try_next(errno.ECONNREFUSED)
            return
        self.is_connecting = False
        self._send = self._sock.send
        waits = self._out or self._fin_waits
        if not waits:
            self.stream.send = self._send
        self._mask = READ | WRITE if waits else READ
        self._loop.register(self._fd, self._mask, self.on_events)
        self._on_connected(self)

    def _try_next(self, error: int) -> None:
        self._stop_connecting()
        self.stream.store_cookie(0)
        self._sock.close()
        self.refused = errno.errorcode.get(error, str(error))
        self.tried += 1
        if self.tried < len(self._addresses):
            try:
                sock = _new_socket(self._addresses[self.tried])
            except OSError as problem:  # no descriptor, no such address family
                self._try_next(problem.errno or errno.EIO)
                return
            self._sock, self._fd, self._receive_into = sock, sock.fileno(), sock.recv_into
            self._connect()
            return
        refused = error == errno.ECONNREFUSED
        code = ResetCode.TARGET_REFUSED if refused else ResetCode.TARGET_UNREACHABLE
        self.ended = code
        self.stream.reset(code)
        self._on_over(self)

    def _stop_connecting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._mask:
            self._loop.unregister(self._fd)
            self._mask = 0

    def _let_go(self) -> None:
        self._stop_connecting()
        self._out.clear()


def _new_socket(address: SocketAddress) -> socket.SocketType:
    sock = new_socket(address[0])
    prepare_connection(sock, is_near=is_loopback(address))
    return sock
