"""Questions to a worker that are waiting for their answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunneltcp.net.loop import Loop, Timer

__all__ = ["ANSWER_SECONDS", "Questions"]

ANSWER_SECONDS: Final = 2.0
"""A worker takes up to 0.5 s to measure rates; one that is later than this is busy or hangs."""

_MAX_WAITING: Final = 64
"""Questions to one worker that may be open at the same time."""


class Questions:
    """Those to the worker of one tunnel. Each is answered once, if only by an error."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._last = 0
        self._waiting: dict[int, tuple[Callable[[dict[str, Any]], None], Timer]] = {}

    def add(self, answered: Callable[[dict[str, Any]], None]) -> int | None:
        """Return the number to ask under; None, and an error to ``answered``, if too many."""
        if len(self._waiting) >= _MAX_WAITING:
            answered({"error": "too many questions to this worker are open"})
            return None
        self._last += 1
        number = self._last
        timer = self._loop.call_later(
            ANSWER_SECONDS,
            lambda: self.answer(number, {"error": "the worker does not answer"}),
        )
        self._waiting[number] = (answered, timer)
        return number

    def answer(self, number: int, body: dict[str, Any]) -> None:
        """Pass an answer on; one that nobody waits for any more is dropped."""
        entry = self._waiting.pop(number, None)
        if entry is not None:
            answered, timer = entry
            timer.cancel()
            answered(body)

    def fail_all(self, reason: str) -> None:
        """The worker has gone."""
        for number in list(self._waiting):
            self.answer(number, {"error": reason})
