"""Deriving the keys of all ports; for the short-lived child that has the tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from tunneltcp.control.keys import KEY_BYTES, MAX_KEYS
from tunneltcp.master.sealed import write_sealed

__all__ = ["Derive", "fill_keys"]

Derive = Callable[[str, int], bytes]
"""Returns the key of a token and a port."""


def fill_keys(fds: Mapping[int, int], tokens: Sequence[str], derive: Derive) -> None:
    """Write the keys of each port into its memfd, those of the preferred token first."""
    for port, fd in fds.items():
        keys = [derive(token, port) for token in tokens]
        assert 1 <= len(keys) <= MAX_KEYS, "a token, or two"
        assert all(len(key) == KEY_BYTES for key in keys), "keys are 32 bytes"
        write_sealed(fd, b"".join(keys))
