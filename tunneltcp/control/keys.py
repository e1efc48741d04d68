"""The keys of one port, as they come from the process that derives them to a worker.

They lie in a sealed memfd, one behind the other, the preferred one first. The master keeps
its descriptor, for this worker and its successors, and never reads it.
"""

from __future__ import annotations

import os
import sys
from typing import Final

__all__ = ["KEY_BYTES", "MAX_KEYS", "read_keys"]

MAX_KEYS: Final = 16
"""Keys that are good for one port at one time; while one token replaces another, two."""

KEY_BYTES: Final = 32


def read_keys(fd: int) -> tuple[bytes, ...]:
    """Return the keys in a memfd; it is left open.

    Raises:
        OSError: If there are none.
    """
    if sys.platform != "win32":  # no master runs there
        data = os.pread(fd, KEY_BYTES * MAX_KEYS + 1, 0)
        if data and len(data) % KEY_BYTES == 0 and len(data) <= KEY_BYTES * MAX_KEYS:
            return tuple(data[at : at + KEY_BYTES] for at in range(0, len(data), KEY_BYTES))
    raise OSError(0, "there are no keys for this worker")
