"""What a master hands to the next version of itself: a table of descriptors, and its state.

Theory of operation
-------------------
An ``execv`` keeps the process, its children and the descriptors that are inheritable, and
nothing else. So what must not be lost is written as JSON into a memfd whose number stands in
the environment: the state, and which descriptors it names, each with the device and inode by
which the new image knows it again. Who reads it ignores keys that it does not know. ``VERSION``
is for what cannot be ignored, and ``layout`` for what workers of two versions have in common:
sizes and layout of a tunnel's memory, which a successor of another version must understand.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import orjson

from tunneltcp.errors import HandoverError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

__all__ = [
    "VERSION",
    "Descriptors",
    "Handover",
    "handover_variable",
    "named_handover",
    "read_handover",
    "write_handover",
]

VERSION: Final = 1
"""Of the state as a whole. To be raised when the version before could not go on with it; and
when the words between a master and its workers, or with keepers, change in such a way."""

_VARIABLE: Final = "TUNNELTCP_HANDOVER"
_NAME: Final = "handover"
_MAX_BYTES: Final = 16 << 20
"""500 tunnels take half a megabyte."""

State = dict[str, Any]


class Descriptors:
    """Those that the next image must have; each part of the state adds its own."""

    def __init__(self) -> None:
        self.numbers: set[int] = set()

    def keep(self, fd: int) -> int:
        """Have a descriptor handed over; return its number. Below 0 it is none."""
        if fd >= 0:
            self.numbers.add(fd)
        return fd


@dataclass(frozen=True, slots=True, kw_only=True)
class Handover:
    """What was read."""

    state: State
    origin: str
    """Version of the code that wrote it."""
    fds: tuple[int, ...]
    """All descriptors that the state names."""

    def set_inheritable(self, inheritable: bool) -> None:
        """Have the next program, or nobody but us, get the descriptors."""
        for fd in self.fds:
            os.set_inheritable(fd, inheritable)


def write_handover(
    state: Mapping[str, Any], fds: Collection[int], layout: Sequence[int], origin: str
) -> int:
    """Return a memfd with the state and the table of its descriptors.

    Raises:
        OSError: If one of them is not open, or there is no memory.
    """
    table = {str(fd): _identity(fd) for fd in sorted(fds)}
    packed = orjson.dumps(
        {"version": VERSION, "layout": layout, "from": origin, "fds": table, "state": state}
    )
    fd = os.memfd_create(_NAME, os.MFD_CLOEXEC)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(packed)
    except OSError:
        os.close(fd)
        raise
    return fd


def read_handover(fd: int, layout: Sequence[int], *, look: bool = True) -> Handover:
    """Return what lies in a memfd; nothing is changed.

    Args:
        fd: The memfd.
        layout: What this code's workers need of a tunnel's memory.
        look: Whether all descriptors must be there, and be what they were.

    Raises:
        HandoverError: If this code cannot go on with it.
    """
    try:
        values = orjson.loads(os.pread(fd, _MAX_BYTES, 0))
        if values["version"] != VERSION:
            raise HandoverError(
                f"the state of the running master has version {values['version']}, "
                f"and this code knows {VERSION}"
            )
        if values["layout"] != list(layout):
            raise HandoverError(
                "the memory of the tunnels is laid out in another way than this code knows, "
                "so it could not go on with their visitors"
            )
        table = {int(number): list(identity) for number, identity in values["fds"].items()}
        taken = Handover(state=values["state"], origin=values["from"], fds=tuple(table))
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise HandoverError(f"the state of the running master is broken: {error!r}") from error
    if look:
        for number, identity in table.items():
            with suppress(OSError):
                if _identity(number) == identity:
                    continue
            raise HandoverError(f"descriptor {number} is not what it was")
    return taken


def handover_variable(fd: int, purpose: str) -> dict[str, str]:
    """Return what tells the next program what to do with the memfd; it must inherit it.

    The purpose "check" asks it only to say whether it could take over, "take-1" to do it, and
    "take-2" too, after it could not.
    """
    return {_VARIABLE: f"{purpose} {fd}"}


def named_handover() -> tuple[str, int] | None:
    """Return purpose and descriptor if this program was started to take over; once."""
    purpose, _, number = os.environ.pop(_VARIABLE, "").partition(" ")
    with suppress(ValueError, OSError):
        fd = int(number)
        if str(Path(f"/proc/self/fd/{fd}").readlink()).startswith(f"/memfd:{_NAME}"):
            os.set_inheritable(fd, False)
            return purpose, fd
    return None


def _identity(fd: int) -> list[int]:
    status = os.fstat(fd)
    return [status.st_dev, status.st_ino]
