"""All children of the master: who they are, that they ended, and how.

A child is known by its pid while it is not reaped (until then nobody else can get that
number) and by a pidfd that wakes the loop when it ends. ``SIGCHLD`` is the second alarm,
and the only one for children nobody here has made (a master that is pid 1 in a container
inherits them): they are reaped and forgotten.
"""

from __future__ import annotations

import os
import select
import signal
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from tunneltcp.net.loop import READ

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunneltcp.net.loop import Loop

__all__ = ["Children"]

END_SECONDS: Final = 1.0
"""A killed process is gone in a millisecond, unless it sits in the kernel."""


class Children:
    """Watches processes until they are reaped."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._known: dict[int, tuple[int, Callable[[int], None]]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, pid: int) -> bool:
        return pid in self._known

    def watch(self, pid: int, on_exit: Callable[[int], None]) -> None:
        """Call ``on_exit(wait status)`` once when the child was reaped."""
        pidfd = -1
        with suppress(OSError):  # out of descriptors: SIGCHLD will do
            pidfd = os.pidfd_open(pid)
            self._loop.register(pidfd, READ, lambda _events: self._reap_one(pid))
        self._known[pid] = (pidfd, on_exit)

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        """End a child at once, or send it another signal; its exit is reported as ever."""
        if pid in self._known:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def end(self, pid: int) -> None:
        """Kill a child; reap it now if it goes within ``END_SECONDS``, else when it goes."""
        self.kill(pid)
        pidfd, _ = self._known.get(pid, (-1, None))
        if pidfd >= 0:
            waiting = select.poll()
            waiting.register(pidfd, select.POLLIN)
            waiting.poll(END_SECONDS * 1000)
        self._reap_one(pid)

    def abort(self, pid: int) -> None:
        """End a child that hangs: it says where it is first, if it still can."""
        self.kill(pid, signal.SIGABRT)
        self.kill(pid, signal.SIGCONT)  # a stopped process sees no other signal

    def reap(self) -> int:
        """Reap all that ended; return how many of them nobody here had made."""
        strangers = 0
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return strangers
            if ended is None:
                return strangers
            if ended.si_pid in self._known:
                self._reap_one(ended.si_pid)
            else:
                strangers += 1
                with suppress(ChildProcessError):
                    os.waitpid(ended.si_pid, os.WNOHANG)

    def _reap_one(self, pid: int) -> None:
        if pid not in self._known:
            return
        try:
            ended, status = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:  # reaped by somebody else: how it ended is lost
            ended, status = pid, 0
        if not ended:
            return
        pidfd, on_exit = self._known.pop(pid)
        if pidfd >= 0:
            self._loop.unregister(pidfd)
            os.close(pidfd)
        on_exit(status)
