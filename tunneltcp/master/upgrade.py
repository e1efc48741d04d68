"""An upgrade, up to the moment in which the new code is us.

Theory of operation
-------------------
What lies on the disk now is started as a child that loads the config and what we would hand
over (it has copies of all descriptors), and runs a tunnel to nowhere. Whatever becomes of it
changes nothing. If it says that it can, we wait for a quiet moment (nobody asks us anything,
nothing is being read), hold signals back (they wait in the kernel, and our next image gets
them), write down what there is, and ``execv``. Workers and keepers stay our children, and
serve on. ``rollout.py`` has the rest.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import orjson
from loguru import logger

from tunneltcp import __version__
from tunneltcp.master.again import check_program
from tunneltcp.master.handover import Descriptors, write_handover
from tunneltcp.master.progress import CHECKING, HANDING_OVER, REFUSED, Progress
from tunneltcp.text import ranges

if TYPE_CHECKING:
    from tunneltcp.master.again import Again
    from tunneltcp.master.children import Children
    from tunneltcp.master.control_socket import ControlSocket
    from tunneltcp.master.helpers import Helpers
    from tunneltcp.master.master import Master
    from tunneltcp.master.signals import SignalQueue
    from tunneltcp.master.zygote import Zygote
    from tunneltcp.net.loop import Loop, Timer

__all__ = ["Upgrader", "answer_of"]

CHECK_SECONDS: Final = 30
"""For the check: 0.6 s here, some seconds on a small machine that is busy."""

QUIET_SECONDS: Final = 5.0
"""As long as who asks something has for it; then he is cut off."""

_LOOK_SECONDS: Final = 0.02

_MAX_SAID: Final = 64 * 1024
_MAX_REASON: Final = 300
"""Characters of what the new code says."""


class Upgrader:
    """Does what "upgrade" asks for.

    Args:
        again: How to start this program again; None: it cannot be.
        layout: See ``handover.py``.
    """

    _signals: SignalQueue
    _control: ControlSocket
    _helpers: Helpers
    _zygote: Zygote

    def __init__(
        self,
        master: Master,
        loop: Loop,
        children: Children,
        again: Again | None,
        layout: tuple[int, ...],
    ) -> None:
        self.progress = Progress()
        self._master = master
        self._loop = loop
        self._children = children
        self._again = again
        self._layout = layout
        self._check = 0
        self._said = -1
        self._began = 0.0
        self._timer: Timer | None = None

    def surround(
        self,
        signals: SignalQueue,
        control: ControlSocket,
        helpers: Helpers,
        zygote: Zygote,
    ) -> None:
        """Know what must be quiet, or gone, before another program can go on; first of all."""
        self._signals, self._control, self._helpers = signals, control, helpers
        self._zygote = zygote

    def begin(self, canary: int | None) -> dict[str, Any]:
        """Begin; return the answer to who wants it."""
        problem = self._problem(canary)
        if problem:
            return {"error": problem}
        number = self.progress.number + 1
        self.progress = Progress(
            number=number, state=CHECKING, origin=__version__, canary=canary
        )
        logger.info("upgrade: the new code is looked at")
        self._began = self._loop.now
        try:
            self._start_check()
        except OSError as error:
            self._refuse(f"out of resources: {error.strerror}")
        return {"number": number, "from": __version__}

    def _problem(self, canary: int | None) -> str:
        if self._master.is_stopping:
            return "the master is stopping"
        if self.progress.is_under_way:
            return "an upgrade is under way"
        if self._again is None:
            return "this master was not started by a command that could be started again"
        return "" if canary is None else self._canary_problem(canary)

    def _canary_problem(self, canary: int) -> str:
        tunnel = self._master.tunnel_set.find(canary)
        if tunnel is None:
            ports = ranges([one.config.remote_port for one in self._master.tunnels])
            return f"no tunnel has port {canary}; there are {ports}"
        if tunnel.pid is None:
            return f"tunnel {canary} is {tunnel.life.state.value}: it has no process to replace"
        return ""

    def cancel(self) -> None:
        """All is to end: no code is looked at any more."""
        if self.progress.state in (CHECKING, HANDING_OVER):
            self._refuse("the master is stopping")

    # -------------------------------------------------------------------- the check

    def _start_check(self) -> None:
        assert self._again is not None, "looked at before"
        fd, numbers = self._written()
        self._said = os.memfd_create("said", os.MFD_CLOEXEC)
        try:
            self._check = check_program(self._again, fd, numbers, self._said, CHECK_SECONDS)
        except OSError:
            os.close(self._said)
            raise
        finally:
            os.close(fd)
        self._children.watch(self._check, self._on_checked)

    def _written(self) -> tuple[int, tuple[int, ...]]:
        """Write down what there is; return the memfd, and the descriptors it names.

        Raises:
            OSError: If there is no memory.
        """
        fds = Descriptors()
        state = self._master.hand_over(fds)
        numbers = tuple(fds.numbers)
        return write_handover(state, numbers, self._layout, __version__), numbers

    def _on_checked(self, status: int) -> None:
        said = os.pread(self._said, _MAX_SAID, max(0, os.fstat(self._said).st_size - _MAX_SAID))
        os.close(self._said)
        self._check = 0
        if self.progress.state != CHECKING:  # nobody wants it any more
            return
        late = self._loop.now - self._began >= CHECK_SECONDS - 1
        version, problem = answer_of(said, status)
        if problem:
            if os.WIFSIGNALED(status) and late:
                problem = f"it did not say within {CHECK_SECONDS} s that it can"
            self._refuse(problem)
            return
        self.progress.version, self.progress.state = version, HANDING_OVER
        logger.info("upgrade: version {} can take over", version)
        self._began = self._loop.now
        self._go_on()

    def _refuse(self, reason: str) -> None:
        logger.error("upgrade refused, all goes on as before: {}", reason)
        self.progress.end(REFUSED, reason)
        if self._timer is not None:
            self._timer.cancel()
        self._children.kill(self._check)
        self._control.resume()

    # ----------------------------------------------------------------- the hand-over

    def _go_on(self) -> None:
        """Become the new code as soon as that disturbs nobody."""
        self._control.pause()
        quiet = self._control.is_idle and self._helpers.are_idle
        if (quiet or self._loop.now - self._began > QUIET_SECONDS) and self._become():
            return
        if self.progress.state == HANDING_OVER:
            self._timer = self._loop.call_later(_LOOK_SECONDS, self._go_on)

    def _become(self) -> bool:
        """Become the new code; return False if a signal came that must be acted on first."""
        assert self._again is not None, "looked at before"
        self._signals.hold_back()
        try:
            if self._master.is_stopping or self._master.reloader.is_busy:
                return False
            self._zygote.end()  # it forks the old code; without a successor another is made
            fd, numbers = self._written()
            try:
                self._again.take_over(fd, numbers)
            finally:
                os.close(fd)
        except OSError as error:
            self._refuse(f"it cannot be started: {(error.strerror or '?').lower()}")
        finally:
            self._signals.let_through()
        return True


def answer_of(said: bytes, status: int) -> tuple[str, str]:
    """Return the version of the new code, or why it cannot take over.

    Args:
        said: All that it printed. The last line is its answer, as JSON; if it came so far.
        status: How it ended, as ``waitpid`` gave it.
    """
    lines = [line.strip() for line in said.decode(errors="replace").splitlines()]
    lines = [line for line in lines if line]
    with suppress(ValueError, LookupError):
        answer = orjson.loads(lines[-1])
        if isinstance(answer, dict):
            if os.waitstatus_to_exitcode(status) == 0 and isinstance(answer["version"], str):
                return answer["version"], ""
            return "", str(answer["problem"])[:_MAX_REASON]
    if not lines:
        return "", f"it ended by itself ({_how(status)}) and said nothing"
    where = [line for line in lines if line.startswith("File ")]
    place = f" ({where[-1].split(', in ')[0]})" if where else ""
    return "", lines[-1][:_MAX_REASON] + place


def _how(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"signal {os.WTERMSIG(status)}"
    return f"code {os.waitstatus_to_exitcode(status)}"
