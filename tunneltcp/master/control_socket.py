"""The control socket: where the command line asks a master.

Who may ask: the user the master runs as, and root. Nobody who asks can disturb the
master: a few connections, a deadline for each, bounded requests, and no waiting.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from loguru import logger

from tunneltcp.control.codec import FrameDecoder, encode_frame
from tunneltcp.control.peer import peer_uid
from tunneltcp.errors import ControlChannelError
from tunneltcp.log import Throttle
from tunneltcp.master.folders import short_address
from tunneltcp.net.loop import READ, WRITE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tunneltcp.net.loop import Loop

__all__ = ["ControlSocket"]

_MAX_CONNECTIONS: Final = 16
"""People and scripts that ask at one time."""

_DEADLINE_SECONDS: Final = 5.0
"""From connecting to the last byte of the request, and for taking the answer."""

_ANSWER_SECONDS: Final = 60.0
"""For an answer that is not there at once. A reload reads the config and then the tokens, 10 s
each at most; it may have to wait for another one, and for names that are looked up."""

_MAX_REQUEST_BYTES: Final = 64 * 1024
_PAUSE_SECONDS: Final = 1.0
"""Out of descriptors: look again after this instead of spinning."""


class ControlSocket:
    """Answers requests on a socket in the run folder."""

    def __init__(
        self,
        loop: Loop,
        path: Path,
        answer: Callable[[dict[str, Any], Callable[[dict[str, Any]], None]], None],
        fd: int = -1,
    ) -> None:
        """Bind it; ``answer`` gets each request and what to call, once, with its answer.

        What an instance before us left there is removed (we hold its lock). With ``fd`` it is
        bound already, by the version of us before.

        Raises:
            OSError: If there can be no socket at that place.
        """
        self._loop = loop
        self._path = path
        self._answer = answer
        self._throttle = Throttle(max_kinds=8)
        self._connections: set[_Connection] = set()
        self._is_paused = False
        kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK
        if fd < 0:
            path.unlink(missing_ok=True)
            self._listener = socket.socket(socket.AF_UNIX, kind)
            self._bind()
        else:
            self._listener = socket.socket(socket.AF_UNIX, kind, 0, fd)
        loop.register(self._listener.fileno(), READ, self._on_readable)

    def _bind(self) -> None:
        try:
            with short_address(self._path) as address:
                self._listener.bind(address)
            self._path.chmod(0o600)
            self._listener.listen(_MAX_CONNECTIONS)
        except OSError:
            self._listener.close()
            raise

    @property
    def fd(self) -> int:
        """The listening socket."""
        return self._listener.fileno()

    @property
    def is_idle(self) -> bool:
        """Whether nobody is connected."""
        return not self._connections

    def pause(self) -> None:
        """Let who comes wait until :meth:`resume`, or until the next version of us looks."""
        if not self._is_paused:
            self._is_paused = True
            self._loop.unregister(self._listener.fileno())

    def resume(self) -> None:
        """Take connections again."""
        if self._is_paused and self._listener.fileno() >= 0:
            self._is_paused = False
            self._loop.register(self._listener.fileno(), READ, self._on_readable)

    def close(self) -> None:
        """Answer nobody any more, and remove the socket."""
        for connection in list(self._connections):
            connection.close()
        if not self._is_paused:
            self._loop.unregister(self._listener.fileno())
        self._listener.close()
        with suppress(OSError):
            self._path.unlink()

    def _on_readable(self, _events: int) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            self._complain("cannot accept: {}", error.strerror)
            self.pause()
            self._loop.call_later(_PAUSE_SECONDS, self.resume)
            return
        connection.setblocking(False)
        uid = peer_uid(connection)
        if len(self._connections) >= _MAX_CONNECTIONS or uid not in (0, os.geteuid()):
            self._complain("refused a connection of user {}", uid)
            connection.close()
            return
        self._connections.add(
            _Connection(self._loop, connection, self._answer, self._connections.discard)
        )

    def _complain(self, text: str, detail: object) -> None:
        if self._throttle.admit(text, self._loop.now) is not None:
            logger.warning("control socket: " + text, detail)


class _Connection:
    """Somebody who asks."""

    def __init__(
        self,
        loop: Loop,
        connection: socket.socket,
        answer: Callable[[dict[str, Any], Callable[[dict[str, Any]], None]], None],
        closed: Callable[[_Connection], None],
    ) -> None:
        self._loop = loop
        self._socket = connection
        self._answer = answer
        self._is_asking = False
        self._is_late = False
        """Whether the answer was not there at once."""
        self._closed = closed
        self._decoder = FrameDecoder()
        self._output = bytearray()
        self._deadline = loop.call_later(_DEADLINE_SECONDS, self.close)
        loop.register(connection.fileno(), READ, self._on_events)

    def close(self) -> None:
        """Hang up."""
        if self._socket.fileno() < 0:
            return
        self._deadline.cancel()
        self._loop.unregister(self._socket.fileno())
        self._socket.close()
        self._closed(self)

    def _set_deadline(self, seconds: float) -> None:
        self._deadline.cancel()
        self._deadline = self._loop.call_later(seconds, self.close)

    def _on_events(self, events: int) -> None:
        try:
            if events & READ:
                self._read()
            if self._output and self._socket.fileno() >= 0:
                self._write()
        except BlockingIOError:
            pass
        except (OSError, ControlChannelError):
            self.close()

    def _read(self) -> None:
        data = self._socket.recv(4096)
        if not data:
            self.close()
            return
        for request in self._decoder.feed(data):
            if self._output or self._is_asking:  # one at a time: answers must not pile up
                raise ControlChannelError("asked again before the answer was taken")
            self._is_asking = True
            self._answer(request, self._reply)
            if self._is_asking:
                self._is_late = True
                self._set_deadline(_ANSWER_SECONDS)
        if self._decoder.buffered_bytes > _MAX_REQUEST_BYTES:
            raise ControlChannelError("a request is too long")

    def _reply(self, answer: dict[str, Any]) -> None:
        """Take the answer, at once or later; who asked may have gone meanwhile."""
        self._is_asking = False
        if self._socket.fileno() < 0:
            return
        if self._is_late:
            self._is_late = False
            self._set_deadline(_DEADLINE_SECONDS)
        try:
            self._output += encode_frame(answer)
        except ControlChannelError as error:
            self._output += encode_frame({"error": str(error)})
        with suppress(OSError):  # a broken connection is closed when it is read
            self._write()

    def _write(self) -> None:
        with suppress(BlockingIOError):
            sent = self._socket.send(self._output)
            del self._output[:sent]
        wanted = WRITE if self._output else READ
        self._loop.modify(self._socket.fileno(), wanted, self._on_events)
