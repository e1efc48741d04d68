"""The listening sockets of one public port: open, shut without being let go of, or closed.

A port that is shut refuses visitors at once and still belongs to us: ``shutdown`` ends the
listening and keeps the binding, ``listen`` begins again (tried on Linux). SO_REUSEADDR is
taken back meanwhile, or another program with that option could bind the port as well.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from tunneltcp.master.resources import BACKLOG, open_listeners

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from tunneltcp.master.handover import Descriptors

__all__ = ["Listeners"]


class Listeners:
    """Those of one tunnel. On a client, which binds nothing, ``addresses`` is empty."""

    def __init__(self, port: int, addresses: Sequence[str]) -> None:
        self.fds: tuple[int, ...] = ()
        """The descriptors, as workers are born with them."""
        self.addresses = tuple(addresses)
        self._port = port
        self._shut = False

    @property
    def are_missing(self) -> bool:
        """Whether there is something to bind that is not bound."""
        return bool(self.addresses) and not self.fds

    def open(self) -> None:
        """Bind, if that is not done, and listen, unless the port is shut.

        Raises:
            PortBusy: If an address cannot be had.
        """
        if self.are_missing:
            self.fds = open_listeners(self._port, self.addresses)
            if self._shut:
                self._stop_listening()

    def shut(self) -> None:
        """Refuse visitors from now on, those included whom nobody has accepted yet."""
        # Not twice: on a socket that no longer listens ``shutdown`` leaves a mark that all
        # it accepts later inherits.
        if not self._shut:
            self._shut = True
            self._stop_listening()

    def _stop_listening(self) -> None:
        for sock in self._sockets():
            with sock as listener, suppress(OSError):
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
                listener.shutdown(socket.SHUT_RDWR)

    def reopen(self) -> None:
        """Listen again after :meth:`shut`."""
        self._shut = False
        for sock in self._sockets():
            with sock as listener, suppress(OSError):
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.listen(BACKLOG)

    def hand_over(self, fds: Descriptors) -> dict[str, Any]:
        """Return what the next version of the master goes on with."""
        kept = [fds.keep(fd) for fd in self.fds]
        return {"fds": kept, "addresses": self.addresses, "shut": self._shut}

    def go_on(self, before: Mapping[str, Any]) -> None:
        """Have the ports that the version before us had."""
        self.fds, self.addresses = tuple(before["fds"]), tuple(before["addresses"])
        self._shut = before["shut"]

    def close(self) -> None:
        """Let go of the port."""
        for fd in self.fds:
            os.close(fd)
        self.fds = ()

    def _sockets(self) -> Iterator[AbstractContextManager[socket.socket]]:
        # Copies of the descriptors: an object that is forgotten closes its own.
        return (socket.socket(fileno=os.dup(fd)) for fd in self.fds)
