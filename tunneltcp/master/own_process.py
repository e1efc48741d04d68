"""What a master asks of the system for its own process, and so for all it forks."""

from __future__ import annotations

import os
import resource

from loguru import logger

from tunneltcp.master.spawn import merge_memory

__all__ = ["allow_merging", "keep_standard_open", "raise_descriptor_limit"]


def allow_merging() -> None:
    """Let the kernel merge what is equal in our memory, or say that it cannot."""
    try:
        merge_memory()
    except OSError:
        logger.warning("merge_memory: this kernel cannot do it (KSM, Linux 6.4)")


def keep_standard_open() -> None:
    """Have descriptors 0, 1 and 2: otherwise a socket gets their numbers and our prints."""
    while (fd := os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)


def raise_descriptor_limit() -> None:
    """Allow ourselves, and so our workers, as many descriptors as we may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
