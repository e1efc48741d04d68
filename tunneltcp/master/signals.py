"""Signals, brought into the loop: the handlers record, nothing more."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

from tunneltcp.net.loop import READ

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tunneltcp.net.loop import Loop

__all__ = ["SignalQueue"]


class SignalQueue:
    """Calls back from the loop for each signal that came."""

    def __init__(self, loop: Loop, handlers: Mapping[int, Callable[[], None]]) -> None:
        self._loop = loop
        self._handlers = dict(handlers)
        self._reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._writer = writer
        # The interpreter itself writes the number there, at once, also while it waits.
        self._old_fd = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self._old = {number: signal.signal(number, _record) for number in self._handlers}
        loop.register(self._reader, READ, self._on_readable)

    def hold_back(self) -> None:
        """Let no more of them come, and act on those that did.

        What comes from now on waits in the kernel, also for another program in this process.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, self._handlers)
        self._on_readable(0)

    def let_through(self) -> None:
        """Let those come that were held back."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._handlers)

    def _on_readable(self, _events: int) -> None:
        with suppress(BlockingIOError):
            for number in os.read(self._reader, 512):
                handler = self._handlers.get(number)
                if handler is not None:
                    handler()

    def close(self) -> None:
        """Put everything back as it was."""
        for number, handler in self._old.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(self._old_fd)
        self._loop.unregister(self._reader)
        os.close(self._reader)
        os.close(self._writer)


def _record(_number: int, _frame: object) -> None:
    """Do nothing: the wake-up descriptor has it already."""
