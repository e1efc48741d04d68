"""The master's end of the control channel of one worker."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any, Final

from loguru import logger

from tunneltcp.control.codec import MAX_PACKET_BYTES, decode_message, encode_message
from tunneltcp.errors import ControlChannelError
from tunneltcp.master.messages import parse_message
from tunneltcp.net.loop import READ

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunneltcp.master.messages import WorkerMessage
    from tunneltcp.net.loop import Loop

__all__ = ["WorkerChannel"]

_PACKETS_PER_TURN: Final = 16
"""A worker that talks without end gets its turn like everybody else."""


class WorkerChannel:
    """A pair of sockets: one end is read here, the other is the worker's.

    Args:
        took: Called with each message.
        fd: Our end of a pair that is there already; below 0: a new pair is made.
        ended: Called once if the worker hangs up (with nothing), or says what no worker says
            (with a reason): from then on the channel is closed.

    Raises:
        OSError: If there are no descriptors left.
    """

    def __init__(
        self,
        loop: Loop,
        took: Callable[[WorkerMessage], None],
        ended: Callable[[str], None],
        fd: int = -1,
    ) -> None:
        self._loop = loop
        self._took = took
        self._ended = ended
        self._fd = fd
        self.worker_fd = -1
        """The other end; close it with :meth:`give_away` once the worker has it."""
        if fd < 0:
            kind = socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK
            ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
            self._fd, self.worker_fd = ours.detach(), theirs.detach()
        loop.register(self._fd, READ, self._on_readable)

    @property
    def fd(self) -> int:
        """Our end; -1 once it is closed."""
        return self._fd

    def give_away(self) -> None:
        """Let go of the worker's end."""
        os.close(self.worker_fd)

    def say(self, message: dict[str, Any], fd: int = -1) -> None:
        """Send a message, and a copy of a descriptor with it, or drop it."""
        if self._fd < 0:
            return
        try:
            with socket.socket(fileno=os.dup(self._fd)) as channel:
                fds = [fd] if fd >= 0 else []
                socket.send_fds(channel, [encode_message(message)], fds)
        except OSError as error:
            # Full: it has not read for long, and deadlines deal with that. Gone: so is it.
            logger.debug("message to a worker dropped: {}", error.strerror)

    def read_rest(self) -> None:
        """Take what a worker said before it went."""
        while self._read_packet():
            pass

    def close(self) -> None:
        """Hang up; nothing is called any more."""
        if self._fd >= 0:
            self._loop.unregister(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _on_readable(self, _events: int) -> None:
        for _ in range(_PACKETS_PER_TURN):
            if not self._read_packet():
                return

    def _read_packet(self) -> bool:
        """Take one message; return whether there may be more."""
        if self._fd < 0:
            return False
        try:
            packet = os.read(self._fd, MAX_PACKET_BYTES + 1)
        except BlockingIOError:
            return False
        except OSError:
            packet = b""
        if not packet:
            self.close()
            self._ended("")
            return False
        try:
            message = parse_message(decode_message(packet))
        except ControlChannelError as error:
            self.close()
            self._ended(f"broke the rules of the control channel: {error}")
            return False
        self._took(message)
        return True
