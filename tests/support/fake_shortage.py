"""A process that has used up its descriptors, for a moment."""

from __future__ import annotations

import gc
import os
import resource
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["no_descriptors"]


@contextmanager
def no_descriptors(left: int = 0) -> Iterator[None]:
    """Take all descriptors but ``left``, for the time of a block.

    Garbage of earlier tests holds some (mappings do): it is collected before, and not within.
    """
    gc.collect()
    gc.disable()
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(fd) for fd in os.listdir("/proc/self/fd"))  # noqa: PTH208
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 8, limit[1]))
    taken = []
    try:
        with suppress(OSError):
            while True:
                taken.append(os.dup(0))
        for fd in taken[:left]:
            os.close(fd)
        del taken[:left]
        yield
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        gc.enable()
