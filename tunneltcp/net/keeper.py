"""The keeper: a process that keeps a worker's sockets open when the worker is gone.

Theory of operation
-------------------
The keeper shares the worker's *table* of descriptors (``clone`` with CLONE_FILES), so it has
every socket from the instant the worker has it, and no longer than that: a close is a real
close. When the worker dies the table lives on, and whoever asks gets all its TCP connections.
Until then the keeper sleeps in one ``read`` on a pair of sockets that the master made; its end
of file ends the keeper, and so does the master's death (PDEATHSIG). It is a child of the master
(CLONE_PARENT): a worker that is dead waits for nobody. It runs no code while the worker lives,
for each page it wrote to would be memory of its own, and opens nothing, for the worker would
have that too.

What is said on the pair: a number (who asks), answered by packets with descriptors and then by
``done``, the number and the keeper's pid; ``leave``.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import signal
import socket
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NoReturn

from setproctitle import setproctitle

from tunneltcp.net.clone import CLONE_FILES, CLONE_PARENT, clone

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["DONE", "LEAVE", "PACKET_FDS", "clone_keeper", "start_keeper"]

DONE: Final = b"done"
LEAVE: Final = b"leave"
PACKET_FDS: Final = 250
"""Descriptors in one packet; the kernel takes 253."""

_COMMAND_BYTES: Final = 32
_PR_SET_PDEATHSIG: Final = 1

if sys.platform == "linux":
    _SIGKILL: Final = int(signal.SIGKILL)
    # Looked up before any fork: a child must not start by loading libraries.
    _libc: Final = ctypes.PyDLL(None, use_errno=True)
    _prctl: Final = _libc.prctl


def start_keeper(fd: int, title: str) -> int:
    """Make a keeper that listens at ``fd``, called ``title``; return its pid.

    Raises:
        OSError: If the system does not do it (then this worker's sockets die with it).
    """
    if sys.platform == "linux":
        # It never lets them through again: a signal to all processes of a group is not for it.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            return clone_keeper(fd, title)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    raise OSError(errno.ENOSYS, "this system has no keepers")


def clone_keeper(fd: int, title: str, prepare: Callable[[], None] | None = None) -> int:
    """Make a keeper where all signals are blocked; ``prepare`` is what it does first.

    Raises:
        OSError: As in :func:`start_keeper`.
    """
    if sys.platform == "linux":
        pid = clone(CLONE_FILES | CLONE_PARENT)
        if pid == 0:
            _keep(fd, title, prepare)
        return pid
    raise OSError(errno.ENOSYS, "this system has no keepers")


if sys.platform == "linux":

    def _keep(fd: int, title: str, prepare: Callable[[], None] | None) -> NoReturn:
        """Sleep until somebody asks, or the master is gone."""
        code = 1
        try:
            gc.disable()  # garbage of a time before us would close numbers of our worker
            if prepare is not None:
                prepare()
            # If its master is killed while it is stopped, it would hold the port for ever.
            _prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
            setproctitle(title)
            while (command := os.read(fd, _COMMAND_BYTES)) not in (b"", LEAVE):
                _hand_over(fd, command)
            code = 0
        finally:
            os._exit(code)

    def _hand_over(fd: int, number: bytes) -> None:
        """The worker is gone: send all its connections to who asks."""
        with suppress(OSError):
            os.close(0)  # the table may be full, and looking into it takes a descriptor
        pair = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fileno=fd)
        try:
            found = list(_connections())
            for at in range(0, len(found), PACKET_FDS):
                _send(pair, found[at : at + PACKET_FDS])
            pair.send(b"%b %b %d" % (DONE, number, os.getpid()))
        finally:
            pair.detach()

    def _send(pair: socket.socket, fds: list[int]) -> None:
        while True:
            try:
                socket.send_fds(pair, [b"fds"], fds)
            except OSError as error:
                # So many on their way that the kernel wants some taken first.
                if error.errno != errno.ETOOMANYREFS:
                    raise
                _libc.usleep(1000)
            else:
                return

    def _connections() -> Iterator[int]:
        """Find the TCP connections in our table; listeners are not ours to give."""
        for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - see log.py
            with suppress(OSError):  # no socket, or the directory that we looked into
                sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=int(name))
                try:
                    domain = sock.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN)
                    listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                finally:
                    sock.detach()
                if domain in (socket.AF_INET, socket.AF_INET6) and not listens:
                    yield int(name)
