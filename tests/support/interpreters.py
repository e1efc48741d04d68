"""Other interpreters of this machine, for what depends on their version."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

__all__ = ["missing_glibc", "uncounting_pythons"]

_NEWEST = 20
"""Minor versions that are looked for."""


@cache
def uncounting_pythons() -> list[str]:
    """Return the interpreters here that have objects which are not counted (3.12 and later).

    One of each version: this one, those on the PATH, and those that pyenv keeps beside it.
    """
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    found = {}
    if sys.version_info[:2] >= (3, 12):
        found[sys.version_info[1]] = sys.executable
    for minor in range(12, _NEWEST):
        name = f"python3.{minor}"
        there = [path for path in [shutil.which(name)] if path]
        there += map(str, pyenv.glob(f"versions/3.{minor}.*/bin/{name}"))
        for path in there:
            if minor not in found and _runs(path):
                found[minor] = path
    return list(found.values())


def _runs(path: str) -> bool:
    """Say whether it starts; what pyenv puts on the PATH may not."""
    done = subprocess.run([path, "-c", ""], capture_output=True, timeout=20, check=False)
    return done.returncode == 0


def missing_glibc() -> str | None:
    """Say what is missing if the C library is not one that tells of its heap."""
    return None if hasattr(ctypes.PyDLL(None), "mallinfo2") else "no glibc 2.33"
