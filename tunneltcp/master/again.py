"""This process as a program: how to start what lies on the disk now, with the same words.

Theory of operation
-------------------
An upgrade starts the program twice. First as a child that only says whether it could go on
with what we would hand over (:func:`check_program`). Then in our own place, by ``execv``: pid,
children, descriptors and the wish for a signal at our death stay. What fails after that can
not be undone, for the code that we were may not be on the disk any more. So the new image
then leaves everything as it is, the workers above all, which serve on, and starts once more
after a moment (:meth:`Again.once_more`): files may have been replaced just then, or memory
short. After some tries it leaves, and whoever supervises it starts it anew.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NoReturn

from loguru import logger

from tunneltcp.errors import ExitCode
from tunneltcp.master.handover import handover_variable, read_handover
from tunneltcp.master.spawn import fork_program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from tunneltcp.master.handover import Handover

__all__ = ["ATTEMPTS", "PAUSE_SECONDS", "Again", "Legacy", "check_program"]

ATTEMPTS: Final = 5
"""How often it is tried to take over, in all."""
PAUSE_SECONDS: Final = 1.0
"""Between two of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Again:
    """How to start this program again."""

    environment: Mapping[str, str]
    """What the next one finds in its environment besides ours."""
    fds: Sequence[int] = ()
    """The descriptors that are named there."""
    command: list[str] = field(default_factory=lambda: [sys.executable, *sys.orig_argv[1:]])
    """What is started: the same interpreter, the same words."""
    execute: Callable[[str, list[str], dict[str, str]], object] = os.execve

    def variables(self, handover_fd: int, purpose: str) -> dict[str, str]:
        """Return the environment of the next one."""
        named = handover_variable(handover_fd, purpose)
        return {**os.environ, **self.environment, **named}

    def take_over(self, handover_fd: int, fds: Sequence[int], attempt: int = 1) -> None:
        """Become the next one.

        Args:
            handover_fd: The memfd that says what it takes over.
            fds: All descriptors that are named there.
            attempt: Counted from 1.

        Raises:
            OSError: If it cannot be started: then all is as before.
        """
        needed = (handover_fd, *fds, *self.fds)
        for fd in needed:
            os.set_inheritable(fd, True)
        try:
            variables = self.variables(handover_fd, f"take-{attempt}")
            self.execute(self.command[0], self.command, variables)
        finally:
            for fd in needed:
                os.set_inheritable(fd, False)

    def once_more(self, handover_fd: int, taken: Handover | None, attempt: int) -> NoReturn:
        """Try again in a moment to take over what we could not, or leave at last.

        Called where an exception is handled. What was taken over in part is left as it is:
        the next program finds all of it in the memfd once more.
        """
        logger.opt(exception=True).critical(
            "cannot take over what runs (attempt {} of {}); its processes serve on",
            attempt,
            ATTEMPTS,
        )
        if attempt < ATTEMPTS and taken is not None:
            time.sleep(PAUSE_SECONDS)  # noqa: TID251 - there is no loop, and nobody to serve
            with suppress(OSError):
                self.take_over(handover_fd, taken.fds, attempt + 1)
        os._exit(ExitCode.CRASH)


class Legacy:
    """What the version before us left, in the program that goes on with it."""

    def __init__(self, again: Again, fd: int, attempt: int, layout: Sequence[int]) -> None:
        self._again = again
        self._fd = fd
        self._attempt = attempt
        self._handover: Handover | None = None
        with self.guarded():
            self._handover = read_handover(fd, layout)

    @classmethod
    def named(cls, again: Again, asked: tuple[str, int], layout: Sequence[int]) -> Legacy:
        """Return the one that our environment named ("take-1", and the memfd)."""
        purpose, fd = asked
        return cls(again, fd, int(purpose.rpartition("-")[2]), layout)

    @property
    def state(self) -> Mapping[str, Any]:
        """What ``Master.hand_over`` returned."""
        assert self._handover is not None, "guarded"
        return self._handover.state

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Do a part of it; if that fails the program is started once more, and nothing ends."""
        try:
            yield
        except Exception:  # noqa: BLE001 - logged there
            self._again.once_more(self._fd, self._handover, self._attempt)

    def done(self) -> None:
        """All is taken over: from now on we end as a master ends."""
        assert self._handover is not None, "guarded"
        self._handover.set_inheritable(False)
        os.close(self._fd)


def check_program(
    again: Again, handover_fd: int, fds: Sequence[int], output: int, seconds: int
) -> int:
    """Start the program as a child that only looks whether it could take over.

    Args:
        again: How to start it.
        handover_fd: The memfd that says what there would be to take over.
        fds: Descriptors that it may use.
        output: Where it writes what it has to say: see :func:`answer_of`.
        seconds: When the kernel ends it.

    Returns:
        Its pid.

    Raises:
        OSError: If there can be no further process now.
    """
    return fork_program(
        again.command,
        again.variables(handover_fd, "check"),
        (handover_fd, *fds, *again.fds),
        output,
        seconds,
    )
