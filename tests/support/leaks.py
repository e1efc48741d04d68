"""Children and descriptors of the test process, before and after."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.support.wait import wait_until

__all__ = [
    "Snapshot",
    "adopt_orphans",
    "children",
    "descendants",
    "end_orphan",
    "expected_children",
    "keepers",
    "zygote_of",
]

_PR_SET_CHILD_SUBREAPER = 36

expected_children: set[int] = set()
"""Processes of longer-lived fixtures, which a test may have restarted."""


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent dies."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def _parents() -> dict[int, int]:
    """The parent of each process."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                stat = (entry / "stat").read_text()
                found[int(entry.name)] = int(stat[stat.rindex(")") + 2 :].split()[1])
    return found


def children(pid: int) -> set[int]:
    """The children of a process, zombies included."""
    return {child for child, parent in _parents().items() if parent == pid}


def descendants(pid: int) -> set[int]:
    """The children of a process, theirs, and so on."""
    parents = _parents()
    found: set[int] = set()
    wave = {pid}
    while wave:
        wave = {child for child, parent in parents.items() if parent in wave} - found
        found |= wave
    return found


def keepers(master: int, port: int | str = "") -> list[int]:
    """The pids of a master's keepers, or of those of one port."""
    return [child for child in children(master) if f"keeper of {port}" in _name(child)]


def zygote_of(master: int) -> int:
    """The pid of a master's zygote, as soon as it is called so.

    Raises:
        AssertionError: If it has none.
    """

    def zygotes() -> list[int]:
        # What it forks has its title too at first, but not its age; in the same tick, its pid.
        named = [child for child in children(master) if ": zygote (" in _name(child)]
        return sorted(named, key=lambda child: (_began(child), child))

    return wait_until(zygotes, 5, "it has a zygote")[0]


def _began(pid: int) -> int:
    """When a process began, ticks since the system did; see proc(5)."""
    with suppress(OSError):
        stat = Path(f"/proc/{pid}/stat").read_text()
        return int(stat[stat.rindex(")") + 2 :].split()[19])
    return sys.maxsize


def _name(pid: int) -> str:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return f"{pid} (gone)"
    return f"{pid} {stat[stat.rindex(')') + 2]} {words.strip() or stat.split()[1]}"


def _descriptors() -> dict[int, str]:
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found[int(entry.name)] = str(entry.readlink())
    return {fd: where for fd, where in found.items() if not where.startswith("/proc/")}


def end_orphan(pid: int) -> None:
    """Kill and reap a process that came to us from a parent that died."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    with suppress(ChildProcessError):
        os.waitpid(pid, 0)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the test process has at one moment."""

    children: frozenset[int]
    descriptors: dict[int, str]

    @classmethod
    def take(cls) -> Snapshot:
        """Look now."""
        return cls(frozenset(children(os.getpid())), _descriptors())

    def new_children(self) -> set[int]:
        """Children that came since, zombies included."""
        return children(os.getpid()) - self.children - expected_children

    def new_descriptors(self) -> dict[int, str]:
        """Descriptors that came since; one that was replaced by another counts."""
        known = self.descriptors
        return {fd: to for fd, to in _descriptors().items() if known.get(fd) != to}

    def check(self, timeout: float = 5.0) -> None:
        """Wait until nothing is left of what came since; end what stays.

        Raises:
            AssertionError: With what was left.
        """
        try:
            wait_until(lambda: not self.new_children(), timeout, "no child is left")
        except AssertionError:
            left = sorted(self.new_children())
            names = [_name(pid) for pid in left]
            for pid in left:
                end_orphan(pid)
            raise AssertionError(f"processes left behind: {names}") from None
        more = self.new_descriptors()
        assert not more, f"descriptors left open: {more}"
