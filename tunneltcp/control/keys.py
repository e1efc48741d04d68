"""The keys of one port, as they come from the process that derives them to a worker.

They lie in a sealed memfd, one behind the other, those that are preferred first. The master
keeps its descriptor, for this worker and its successors, and never reads it. A key is 32
bytes, then one byte with the length of its client's name, then that name in UTF-8.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["KEY_BYTES", "MAX_KEYS", "Keys", "pack_keys", "read_keys"]

MAX_KEYS: Final = 16
"""Keys that are good for one port at one time: of eight clients that share it, two each
while one of their tokens replaces the other."""

KEY_BYTES: Final = 32

_MAX_NAME_BYTES: Final = 255
_MAX_BYTES: Final = MAX_KEYS * (KEY_BYTES + 1 + _MAX_NAME_BYTES)

Keys = dict[bytes, str]
"""Keys in their order, each with the name of its client; empty for the server's own token."""


def pack_keys(keys: Iterable[tuple[bytes, str]]) -> bytes:
    """Return keys as they lie in the memfd; a name that is too long loses its end."""
    packed = b""
    for key, client in keys:
        name = client.encode()[:_MAX_NAME_BYTES].decode(errors="ignore").encode()
        assert len(key) == KEY_BYTES, "keys are 32 bytes"
        packed += key + bytes([len(name)]) + name
    return packed


def read_keys(fd: int) -> Keys:
    """Return the keys in a memfd; it is left open.

    Raises:
        OSError: If there are none, or not what :func:`pack_keys` makes.
    """
    keys: Keys = {}
    if sys.platform != "win32":  # no master runs there
        data = os.pread(fd, _MAX_BYTES + 1, 0)
        while data:
            end = KEY_BYTES + 1 + (data[KEY_BYTES] if len(data) > KEY_BYTES else 0)
            name = data[KEY_BYTES + 1 : end].decode(errors="replace")
            keys.setdefault(data[:KEY_BYTES], name)
            if len(data) < end or len(keys) > MAX_KEYS:
                keys.clear()
                break
            data = data[end:]
    if not keys:
        raise OSError(0, "there are no keys for this worker")
    return keys
