"""What a process gives up for good, so that who takes it over does not get it.

A child inherits all of this; ``execve`` alone gives the dump back. Where the system has no
such thing (it is Linux's), nothing happens.
"""

from __future__ import annotations

import os
import sys
from typing import Final

__all__ = ["become", "protect_process"]

_PR_SET_DUMPABLE: Final = 4
_PR_SET_NO_NEW_PRIVS: Final = 38

if sys.platform == "linux":
    import ctypes
    import resource

    # Looked up before any fork: a child must not start by loading libraries.
    _prctl = ctypes.PyDLL(None).prctl


def protect_process() -> None:
    """Have no core, no debugger of the same user, and no program with more rights than ours.

    A limit of 0 bytes alone does not keep a core from being written: where the kernel pipes
    cores to a program, as it does on many systems, it ignores the limit. What is not dumpable
    has no core at all, and its memory and descriptors are closed to other processes of the
    same user.
    """
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        _prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def become(uid: int, gid: int) -> None:
    """Be another user from now on, in no group but his own, and without a way back.

    Raises:
        OSError: If this process may not.
    """
    if sys.platform == "linux":
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        # The kernel makes who changes his user dumpable as the system's default says.
        protect_process()
