"""A tunnel's memory, as its master has it: two memfds, of which it maps the counters."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from tunneltcp.control.context import MEMORY_BYTES
from tunneltcp.control.counters import COUNTERS_BYTES, map_counters
from tunneltcp.master.resources import make_memory

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tunneltcp.master.handover import Descriptors

__all__ = ["Pages"]


class Pages:
    """The page of counters, and the memory that only workers map.

    Args:
        maps: All mappings of counters that the master has; ours is added.
        before: What :meth:`hand_over` of the version before us returned; None: they are made.

    Raises:
        OSError: If the kernel has none to give.
    """

    def __init__(
        self, port: int, maps: list[memoryview], before: Mapping[str, Any] | None = None
    ) -> None:
        if before is None:
            self.counters_fd = make_memory(f"counters-{port}", COUNTERS_BYTES)
            self.memory_fd = make_memory(f"memory-{port}", MEMORY_BYTES)
        else:
            self.counters_fd, self.memory_fd = before["counters"], before["memory"]
        self.counters = map_counters(self.counters_fd)
        """Readable at any time."""
        self._maps = maps
        maps.append(self.counters)

    def hand_over(self, fds: Descriptors) -> dict[str, Any]:
        """Return what the next version of the master goes on with."""
        return {"counters": fds.keep(self.counters_fd), "memory": fds.keep(self.memory_fd)}

    def close(self) -> None:
        """Free both; only when no worker is left."""
        # Not ``remove``: pages of equal content are equal, and it would take another's.
        self._maps[:] = [one for one in self._maps if one is not self.counters]
        memory = self.counters.obj
        self.counters.release()
        memory.close()  # type: ignore[attr-defined]
        os.close(self.counters_fd)
        os.close(self.memory_fd)
