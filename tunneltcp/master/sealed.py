"""Memory that is written once, by a child, and never again by anybody: see memfd_create(2)."""

from __future__ import annotations

import fcntl
from typing import Final

__all__ = ["write_sealed"]

_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def write_sealed(fd: int, data: bytes) -> None:
    """Write ``data`` into an empty memfd and seal it."""
    with open(fd, "wb", closefd=False) as file:
        file.write(data)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
