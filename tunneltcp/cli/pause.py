"""Waiting at a terminal: for a while, until the reader is gone, or until Ctrl-C."""

from __future__ import annotations

import select
import signal
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["pause", "pause_while_read", "until_interrupted"]


def pause(seconds: float) -> None:
    """Wait."""
    select.poll().poll(seconds * 1000)


def pause_while_read(seconds: float) -> bool:
    """Wait, but not longer than somebody reads our standard output; return if one does."""
    poller = select.poll()
    poller.register(1, 0)  # hang-ups and errors are told unasked
    return not poller.poll(seconds * 1000)


@contextmanager
def until_interrupted() -> Iterator[None]:
    """Let Ctrl-C, or TERM, end what is inside; whatever it opened is put back as it was."""
    old = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with suppress(KeyboardInterrupt):
            yield
    finally:
        signal.signal(signal.SIGTERM, old)
