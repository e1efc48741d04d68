"""A small machine for one program: a cgroup with little memory, and a core to itself."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Cgroup", "Usage", "make_cgroup", "one_core"]

_PIN = """\
import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
os.execvp(sys.argv[2], sys.argv[2:])
"""
REMOVE_SECONDS = 5.0
"""A cgroup can be removed when the kernel has let the last process go."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How a version of cgroups calls what we need."""

    limits: tuple[str, ...]
    """The first one must be there."""
    swap: str
    now: tuple[str, ...]
    """Files whose values add up to what is used."""
    peak: tuple[str, ...]
    events: str
    """Where the killed are counted."""


V2 = Layout(
    ("memory.max",), "memory.swap.max", ("memory.current",), ("memory.peak",), "memory.events"
)
# Buffers of sockets are counted apart there, and only if they have a limit.
V1 = Layout(
    ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.kmem.tcp.limit_in_bytes"),
    "",
    ("memory.usage_in_bytes", "memory.kmem.tcp.usage_in_bytes"),
    ("memory.max_usage_in_bytes",),
    "memory.oom_control",
)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a cgroup says of itself."""

    now: int
    """Bytes."""
    peak: int
    """Bytes, without what is counted apart. 0: this kernel does not say."""
    killed: int


class Cgroup:
    """One that we made, with a limit; gone after the block."""

    def __init__(self, folder: Path, layout: Layout, limit_bytes: int) -> None:
        self._folder, self._layout = folder, layout
        for name in layout.limits:
            path = folder / name
            if name == layout.limits[0] or path.exists():
                path.write_text(f"{limit_bytes}\n")
        if layout.swap and (folder / layout.swap).exists():
            (folder / layout.swap).write_text("0\n")

    @property
    def prefix(self) -> list[str]:
        """Words before a command that is to run in it."""
        procs = str(self._folder / "cgroup.procs")
        return ["sh", "-c", 'echo $$ > "$1" && shift && exec "$@"', "sh", procs]

    def usage(self) -> Usage:
        """Look."""
        events = (self._folder / self._layout.events).read_text().split("\n")
        killed = [line.split()[1] for line in events if line.startswith("oom_kill ")]
        return Usage(
            self._add(self._layout.now), self._add(self._layout.peak), sum(map(int, killed))
        )

    def _add(self, names: tuple[str, ...]) -> int:
        total = 0
        for name in names:
            with suppress(FileNotFoundError):
                total += int((self._folder / name).read_text())
        return total

    def __enter__(self) -> Cgroup:
        return self

    def __exit__(self, *_exc: object) -> None:
        deadline = time.monotonic() + REMOVE_SECONDS
        while True:
            try:
                self._folder.rmdir()
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)  # noqa: TID251 - the kernel tells nobody
            else:
                return

    def __str__(self) -> str:
        return str(self._folder)


def make_cgroup(
    limit_bytes: int,
    *,
    own: Path = Path("/proc/self/cgroup"),
    base: Path = Path("/sys/fs/cgroup"),
) -> Cgroup | str:
    """Make one around or below ours; or say why that cannot be."""
    why = "this machine has none that count memory"
    for parent, layout in _parents(own.read_text(), base):
        folder = parent / f"soak-{os.getpid()}"
        try:
            folder.mkdir()
        except OSError as error:
            why = f"{error.filename}: {error.strerror}"
            continue
        try:
            return Cgroup(folder, layout, limit_bytes)
        except OSError as error:
            why = f"{error.filename}: {error.strerror}"
            folder.rmdir()
    return why


def _parents(own: str, base: Path) -> Iterator[tuple[Path, Layout]]:
    """Where one could be made, the likeliest first."""
    for line in own.splitlines():
        _number, controllers, name = line.split(":", 2)
        if "memory" in controllers.split(","):
            yield base / "memory" / name.lstrip("/"), V1
        elif not controllers:
            inner = base / name.lstrip("/")
            # Where processes are, nothing can be handed down: so it is beside ours, or higher.
            for place in (inner, *inner.parents):
                with suppress(OSError):
                    if "memory" in (place / "cgroup.subtree_control").read_text().split():
                        yield place, V2
                if place == base:
                    break


def one_core() -> list[str]:
    """Leave one core to a program; return the words before its command.

    We and whom we start from here on have the other cores, if there are any.
    """
    cores = os.sched_getaffinity(0)
    core = max(cores)
    if len(cores) > 1:
        os.sched_setaffinity(0, cores - {core})
    return [sys.executable, "-c", _PIN, str(core)]
