"""Taking secrets out of the environment: from there every child inherits them.

What a process was started with stays readable in /proc/PID/environ, whatever it does to its
own copy. So the variable is moved into a memfd and the process starts itself again, without
it. In the new one nothing of it is left, and only the child that needs it reads the memfd.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["as_variable", "move_out", "moved"]

_MOVED: Final = "TUNNELTCP_MOVED"
"""Tells the process that comes after us: NAME=DESCRIPTOR, one on each line."""


def moved() -> dict[str, int]:
    """Return the descriptors of what was moved, by the variable's name; once."""
    found: dict[str, int] = {}
    for line in os.environ.pop(_MOVED, "").splitlines():
        name, _, number = line.rpartition("=")
        with suppress(ValueError, OSError):
            fd = int(number)
            if str(Path(f"/proc/self/fd/{fd}").readlink()).startswith("/memfd:moved"):
                os.set_inheritable(fd, False)
                found[name] = fd
    return found


def as_variable(fds: Mapping[str, int]) -> dict[str, str]:
    """Return what tells a process of what was moved; it must inherit the descriptors."""
    return {_MOVED: "\n".join(f"{name}={fd}" for name, fd in fds.items())}


def move_out(names: Iterable[str], already: dict[str, int]) -> None:
    """Start this process again without these variables, if it has any of them.

    Args:
        names: Of the variables.
        already: What :func:`moved` returned.

    Raises:
        OSError: If it cannot be done.
    """
    present = [name for name in names if name in os.environ]
    if not present:
        return
    fds = dict(already)
    for name in present:
        fd = os.memfd_create("moved")
        os.write(fd, os.environb.pop(name.encode()))
        fds[name] = fd
    for fd in fds.values():
        os.set_inheritable(fd, True)
    os.environ |= as_variable(fds)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - ourselves
