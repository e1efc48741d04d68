"""``clone(2)``: a fork that shares what it is told to share."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import signal
import sys
from typing import Final

__all__ = ["CLONE_FILES", "CLONE_PARENT", "HAS_CLONE", "clone"]

CLONE_FILES: Final = 0x400
"""The child shares our table of descriptors."""
CLONE_PARENT: Final = 0x8000
"""The child is our parent's child, and our sibling."""

_SIGCHLD: Final = int(signal.SIGCHLD)


def _number() -> int | None:
    """Return the number of this call for a program like this one; None: it is not known."""
    # A program of 32 bits on a kernel of 64 has other numbers: 220 on an arm is madvise(2).
    if sys.platform != "linux" or sys.maxsize < 1 << 32:
        return None
    return {"x86_64": 56, "aarch64": 220, "riscv64": 220}.get(platform.machine())


_SYS_CLONE: Final = _number()
HAS_CLONE: Final = _SYS_CLONE is not None
"""Whether :func:`clone` is known here."""

if sys.platform == "linux":
    # Looked up before any fork: a child must not start by loading libraries.
    _libc: Final = ctypes.PyDLL(None, use_errno=True)


def clone(flags: int) -> int:
    """Fork; return the child's pid, and 0 in the child.

    The C library is not asked, so a child there must not rely on what it remembers of itself.

    Raises:
        OSError: If the system does not do it.
    """
    if sys.platform == "linux" and _SYS_CLONE is not None:
        pid: int = _libc.syscall(_SYS_CLONE, flags | _SIGCHLD, 0, 0, 0, 0)
        if pid >= 0:
            return pid
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
