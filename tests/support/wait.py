"""Waiting for a condition, with a deadline: the one place in the tests that sleeps."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["wait_until"]

T = TypeVar("T")

_FIRST_PAUSE_SECONDS = 0.001
_LONGEST_PAUSE_SECONDS = 0.02


def wait_until(
    condition: Callable[[], T], timeout: float = 10.0, what: str | Callable[[], str] = ""
) -> T:
    """Return the first true value of ``condition``.

    Args:
        condition: Asked again and again; it may raise AssertionError for "not yet".
        timeout: Seconds.
        what: What is waited for, for the message of a failure; or a function that says it.

    Raises:
        AssertionError: If it did not come true in time; with what the condition said last.
    """
    deadline = time.monotonic() + timeout
    pause = _FIRST_PAUSE_SECONDS
    last: object = None
    while True:
        try:
            value = condition()
        except AssertionError as error:
            last = error
        else:
            if value:
                return value
            last = value
        if time.monotonic() >= deadline:
            said = what() if callable(what) else what
            name = said or getattr(condition, "__name__", "condition")
            raise AssertionError(f"not within {timeout:g} s: {name} (last: {last!s:.2000})")
        time.sleep(pause)  # noqa: TID251 - the one place that may
        pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
