"""The prefaces that were taken lately, so that a recorded one is of no use.

Their nonces stand in the tunnel's memory, which outlives the worker: a successor knows them.
Layout: how many were ever taken (64 bits), 8 bytes not used, then the nonces in a circle.
"""

from __future__ import annotations

from typing import Final

__all__ = ["NONCES", "Replays"]

NONCES: Final = 4096
"""Nonces remembered. Who makes more right prefaces than that holds the key himself, and who
replays one that was forgotten still has neither proof nor certificate."""
_NONCE_BYTES: Final = 16
_HEAD_BYTES: Final = 16


class Replays:
    """Nonces in ``memory``; zeros are an empty one."""

    def __init__(self, memory: memoryview) -> None:
        self._count = memory[:8].cast("Q")
        self._nonces = memory[_HEAD_BYTES : _HEAD_BYTES + NONCES * _NONCE_BYTES]
        self._slots = len(self._nonces) // _NONCE_BYTES

    def take(self, nonce: bytes) -> bool:
        """Remember the nonce of a right preface; return whether it is new."""
        count = self._count[0]
        used = min(count, self._slots) * _NONCE_BYTES
        known = bytes(self._nonces[:used])  # 64 KiB at most: a few microseconds
        found = known.find(nonce)
        while found >= 0 and found % _NONCE_BYTES:
            found = known.find(nonce, found + 1)
        if found >= 0:
            return False
        start = count % self._slots * _NONCE_BYTES
        self._nonces[start : start + _NONCE_BYTES] = nonce
        self._count[0] = count + 1
        return True
