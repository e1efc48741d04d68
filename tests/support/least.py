"""How long something takes, on a machine that stands still now and then."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["least"]


def least(measure: Callable[[], float], bound: float, tries: int = 3) -> float:
    """Return the least of some measurements, or the first that is below ``bound``.

    Where the machine stood still one of them is long; what is slow by itself makes all of
    them so.

    Args:
        measure: Does once more what is measured, and returns how long it took.
        bound: What it is held against.
        tries: As often at most.
    """
    found = measure()
    while found >= bound and (tries := tries - 1):
        found = min(found, measure())
    return found
