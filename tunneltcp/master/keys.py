"""Deriving the keys of all ports; for the short-lived child that has the tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from tunneltcp.control.keys import MAX_KEYS, pack_keys
from tunneltcp.master.sealed import write_sealed

if TYPE_CHECKING:
    from tunneltcp.config.token_reader import Right

__all__ = ["Derive", "fill_keys"]

Derive = Callable[[str, int], bytes]
"""Returns the key of a token and a port."""


def fill_keys(fds: Mapping[int, int], rights: Sequence[Right], derive: Derive) -> None:
    """Write the keys of each port into its memfd, each client's preferred one first."""
    for port, fd in fds.items():
        keys = [
            (derive(token, port), right.client)
            for right in rights
            if port in right.ports
            for token in right.tokens
        ]
        assert 1 <= len(keys) <= MAX_KEYS, "somebody holds each port, and not too many do"
        write_sealed(fd, pack_keys(keys))
