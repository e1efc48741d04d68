"""The sockets of a dead worker: taken from its keepers, each only once.

Theory of operation
-------------------
Every keeper that is left is asked: usually one, more if a successor died on its way. What they
send lies in our table, so our own keeper has it at once; only then is a keeper told to leave.
When all have gone (their pidfds say so) we are the only owner, and a close is a close again.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from loguru import logger

from tunneltcp.net.keeper import DONE, LEAVE, PACKET_FDS
from tunneltcp.net.sockopt import cookie

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["hold_back", "inherit"]

_KEEPER_SECONDS: Final = 3.0
"""What a keeper may take to hand over 60,000 sockets, or to leave: a thousand take 10 ms."""

_HELD_BACK: Final = 8
"""Descriptors that a worker does without: its successor needs one for each keeper that is left
(``master/keepers.py``: four) and one more, when all others are taken by who is connected."""


def hold_back() -> list[int]:
    """Return descriptors to keep for as long as we serve; nobody inherits them."""
    held: list[int] = []
    with suppress(OSError):
        for _ in range(_HELD_BACK):
            held.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))  # noqa: PERF401
    return held


def inherit(keeper_fds: Sequence[int]) -> dict[int, socket.socket]:
    """Return the connections that the keepers behind these descriptors have, by SO_COOKIE.

    The descriptors are closed.
    """
    found: dict[int, socket.socket] = {}
    if sys.platform == "linux":
        for fd in keeper_fds:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fileno=fd) as pair:
                pair.settimeout(_KEEPER_SECONDS)
                try:
                    _end(pair, _take_all(pair, found))
                except (OSError, ValueError) as error:
                    logger.warning("a keeper gave nothing more: {}", error)
    return found


if sys.platform == "linux":

    def _take_all(pair: socket.socket, found: dict[int, socket.socket]) -> int:
        """Ask one keeper; return its pid.

        Raises:
            OSError: If it has gone, or takes too long.
            ValueError: If it is no keeper.
        """
        number = b"%d" % os.getpid()
        pair.send(number)
        while True:
            packet, fds, flags, _ = socket.recv_fds(
                pair, 64, PACKET_FDS, socket.MSG_CMSG_CLOEXEC
            )
            for fd in fds:
                _take(fd, found)
            if flags & socket.MSG_CTRUNC:
                logger.error("no descriptor is left: some connections were lost")
            if not packet:
                raise OSError(0, "it has gone")
            # What is left of an answer to a successor that died comes first.
            words = packet.split()
            if words[0] == DONE and words[1] == number:
                return int(words[2])

    def _take(fd: int, found: dict[int, socket.socket]) -> None:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=fd)
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN) != socket.AF_INET:
            sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM, 0, fileno=sock.detach())
        sock.setblocking(False)
        name = cookie(sock)
        if not name or name in found:
            sock.close()  # a double: that is not its end
        else:
            found[name] = sock

    def _end(pair: socket.socket, pid: int) -> None:
        """Have a keeper leave, and wait until it has let go of everything."""
        pidfd = os.pidfd_open(pid)
        try:
            pair.send(LEAVE)
            poll = select.poll()  # numbers above 1,024 are common here
            poll.register(pidfd, select.POLLIN)
            if not poll.poll(_KEEPER_SECONDS * 1000):
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                poll.poll(_KEEPER_SECONDS * 1000)
        finally:
            os.close(pidfd)
