"""What the master's log says about one tunnel, and how a worker ended, in words."""

from __future__ import annotations

import os
import signal
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from loguru import logger

from tunneltcp.advice import link_trouble
from tunneltcp.config.plain import known_fields
from tunneltcp.errors import ExitCode
from tunneltcp.log import Throttle
from tunneltcp.master.messages import StoodStill, TargetChanged, TookOver, Warned

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tunneltcp.master.messages import LinkChanged
    from tunneltcp.net.loop import Loop

__all__ = [
    "CHANGED",
    "REPLACED",
    "RESTARTED",
    "UPGRADED",
    "LastExit",
    "Reporter",
    "Takeover",
    "describe_exit",
    "stamp",
]

REPLACED: Final = "asked to be replaced"
"""Reason of an exit that is nobody's failure: TERM to a worker."""

RESTARTED: Final = "was restarted by a person"
CHANGED: Final = "got other settings"

UPGRADED: Final = "made room for a new version"

_ASKED_FOR: Final = (REPLACED, RESTARTED, CHANGED, UPGRADED)
"""Reasons of exits that are no failures."""

_HANDED: Final = (
    "_link_trouble", "_target_trouble", "_link_up", "_was_blocked", "_deaths", "_died_at",
)  # fmt: skip
"""What a reporter knows and the next version of the master goes on with."""

_FAULTS: Final = ("SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE", "SIGABRT")

_EVENTS_BURST: Final = 20
"""Lines about links and workers that come and go in 10 minutes, before they are counted."""


def stamp(nanoseconds: int | None = None) -> str:
    """Return a moment (wall clock; now, if none is given) as RFC 3339 in UTC."""
    if nanoseconds is None:
        moment = datetime.now(UTC)
    else:
        moment = datetime.fromtimestamp(nanoseconds / 1e9, UTC)
    return moment.isoformat(timespec="milliseconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class LastExit:
    """How the last worker of a tunnel ended."""

    at: str
    """RFC 3339."""
    signal: str | None
    """Name of the signal that ended it."""
    code: int | None
    """Exit code, if it left by itself."""
    ran_seconds: float
    reason: str
    """One clause for a person."""

    @classmethod
    def from_plain(cls, values: Mapping[str, Any] | None) -> LastExit | None:
        """Return what another version wrote by ``asdict``, if it wrote any."""
        return cls(**known_fields(cls, values)) if values else None

    @property
    def is_own_fault(self) -> bool:
        """Whether it can have been something that the worker met: nobody kills by these."""
        return self.signal in _FAULTS or self.code == ExitCode.CRASH

    @property
    def is_permanent(self) -> bool:
        """Whether only a person can help."""
        return self.code in (ExitCode.NOT_PERMITTED, ExitCode.BAD_CONFIG)


@dataclass(frozen=True, slots=True, kw_only=True)
class Takeover:
    """What became of the visitors of a worker that died."""

    at: str
    """When it was seen to be dead; RFC 3339."""
    reason: str
    """How it ended, as in :class:`LastExit`."""
    deaths: int
    """1, and one for each successor that died before it served."""
    streams: int
    """Those that go on."""
    reset: int
    """Those that could not."""
    served_seconds: float
    """From its death until the next worker served."""
    stood_still_seconds: float | None = None
    """From its death until its streams went on; None: they wait for the link."""


def describe_exit(status: int, ran_seconds: float, kill_reason: str) -> LastExit:
    """Say how a worker ended.

    Args:
        status: As ``waitpid`` gave it.
        ran_seconds: Since it was forked.
        kill_reason: Why the master killed it; empty if it did not.
    """
    name, code = None, None
    if os.WIFSIGNALED(status):
        name = _signal_name(os.WTERMSIG(status))
        reason = f"ended by {name}"
    else:
        code = os.waitstatus_to_exitcode(status)
        reason = f"left with code {code}{_CODES.get(code, '')}"
    if kill_reason and name in ("SIGKILL", "SIGABRT"):
        reason = kill_reason
    return LastExit(
        at=stamp(), signal=name, code=code, ran_seconds=round(ran_seconds, 3), reason=reason
    )


_CODES: Final[Mapping[int, str]] = {
    ExitCode.CRASH: " (crashed)",
    ExitCode.TEMPORARY: " (something it needs is missing)",
    ExitCode.NOT_PERMITTED: " (not permitted)",
    ExitCode.BAD_CONFIG: " (bad config)",
}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class Reporter:
    """Logs what happens to one tunnel; what keeps happening, only now and then."""

    def __init__(
        self, port: int, loop: Loop, others_up: Callable[[], bool] = lambda: False
    ) -> None:
        self._port = port
        self._loop = loop
        self._others_up = others_up
        self._log = logger.bind(tunnel=port)
        self._link_trouble = ""
        self._target_trouble = ""
        # Few kinds, each with a reason in it: old reasons may be forgotten.
        self._failures = Throttle(max_kinds=8)
        self._events = Throttle(burst=_EVENTS_BURST, max_kinds=8)
        self._link_up = False
        self._was_blocked = False
        self.takeover: Takeover | None = None
        """The last one."""
        self._death: LastExit | None = None
        """Of the worker that served last, until another one does."""
        self._deaths = 0
        self._died_at = 0.0
        self._taken: TookOver | None = None

    def hand_over(self) -> dict[str, Any]:
        """Return what the next version of the master goes on with."""
        return {name: getattr(self, name) for name in _HANDED} | {
            "takeover": asdict(self.takeover) if self.takeover else None,
            "death": asdict(self._death) if self._death else None,
            "taken": asdict(self._taken) if self._taken else None,
        }

    def go_on(self, before: Mapping[str, Any]) -> None:
        """Know what the version before us knew."""
        for name in _HANDED:
            setattr(self, name, before.get(name, getattr(self, name)))
        if before["takeover"]:
            self.takeover = Takeover(**known_fields(Takeover, before["takeover"]))
        self._death = LastExit.from_plain(before.get("death"))
        if before.get("taken"):
            self._taken = TookOver(**known_fields(TookOver, before["taken"]))

    @property
    def trouble(self) -> str:
        """What keeps visitors from their target although the worker runs; empty if nothing."""
        return self._link_trouble or self._target_trouble

    def blocked(self, reason: str) -> None:
        """Nothing could be started."""
        self._was_blocked = True
        self._fail("waiting: {}", reason)

    def bound(self) -> None:
        """The public port is ours."""
        if self._was_blocked:
            self._was_blocked = False
            self._log.info("port is open")

    def ready(self, pid: int | None, seconds: float) -> None:
        """The worker serves."""
        self._note_takeover()
        if self._events.admit("ready", self._loop.now) is not None:
            self._log.info("worker {} ready after {:.3f} s", pid, seconds)

    def said(self, what: TargetChanged | Warned | TookOver | StoodStill) -> None:
        """The worker said something that is only to be known."""
        match what:
            case TargetChanged():
                self.target(what.reason)
            case Warned():
                self.warned(what.text)
            case TookOver():
                self._taken = what
            case StoodStill():
                self._went_on(what.seconds)

    def _note_takeover(self) -> None:
        """The worker that serves now has what the one before it left."""
        death, self._death = self._death, None
        taken, self._taken = self._taken, None
        if death is not None and taken is not None:
            self.takeover = Takeover(
                at=death.at,
                reason=death.reason,
                deaths=self._deaths,
                streams=taken.streams,
                reset=taken.reset,
                served_seconds=round(self._loop.now - self._died_at, 4),
            )
        self._deaths = 0

    def _went_on(self, seconds: float) -> None:
        """What the worker before this one carried goes on."""
        taken = self.takeover
        if taken is None or taken.stood_still_seconds is not None:
            return
        self.takeover = replace(taken, stood_still_seconds=seconds)
        if self._events.admit("took over", self._loop.now) is not None:
            self._log.info(
                "{} streams taken over, {} reset; they stood still for {:.3f} s, the next "
                "worker served after {:.3f} s; the one before: {}",
                taken.streams,
                taken.reset,
                seconds,
                taken.served_seconds,
                taken.reason,
            )

    def exited(self, exit_: LastExit, *, expected: bool) -> None:
        """The worker is gone."""
        self._link_up = False
        self._link_trouble = self._target_trouble = ""
        self._taken = None
        if expected:
            self._log.info("worker stopped: {}", exit_.reason)
            return
        self._deaths += 1
        if self._death is None:
            self._death, self._died_at = exit_, self._loop.now
        if exit_.reason in _ASKED_FOR:
            self._log.info("worker replaced: it {}", exit_.reason)
            return
        kind = exit_.reason.partition(":")[0]  # behind it are figures that differ each time
        missed = self._events.admit(("exit", kind), self._loop.now)
        if missed is not None:
            text = "worker died after {:.3f} s: {}"
            self._log.warning(text + _times(missed), exit_.ran_seconds, exit_.reason)

    def link(self, change: LinkChanged) -> None:
        """The link came, went or became doubtful."""
        if change.state == "doubted":
            self._log.bind(peer=change.peer).debug("link doubted")
        elif change.state == "up":
            self._link(change)
        elif change.trouble is not None:
            others_up = self._others_up()
            self._link_trouble = link_trouble(
                change.trouble,
                change.peer,
                self._port,
                detail=change.detail,
                others_up=others_up,
            )
            # A server of two addresses is one trouble, not two.
            self._fail("no link: {}", self._link_trouble, (change.trouble, others_up))
        elif self._link_up:
            self._link_up = False
            if self._events.admit("lost", self._loop.now) is not None:
                client = {"client": change.client} if change.client else {}
                self._log.bind(**client).info(
                    "link lost: {}", change.reason or "no reason given"
                )
        else:
            self._fail("no link: {}", change.reason or "no reason given")

    def target(self, reason: str) -> None:
        """The target cannot be reached, or can be again: then there is no reason."""
        self._target_trouble = reason
        if reason:
            self._fail("{}", reason)
        elif self._events.admit("target", self._loop.now) is not None:
            self._log.info("the target answers again")

    def warned(self, text: str) -> None:
        """The worker warned of something; it keeps count of how often by itself."""
        if self._events.admit("warned", self._loop.now) is not None:
            self._log.warning("{}", text)

    def _link(self, change: LinkChanged) -> None:
        self._link_up = True
        self._link_trouble = ""
        missed = self._events.admit("up", self._loop.now)
        if missed is None:
            return
        client = {"client": change.client} if change.client else {}
        log = self._log.bind(peer=change.peer, **client)
        if change.seconds is None:
            log.info("link up" + _times(missed))
        else:
            log.info("link up again after {:.3f} s" + _times(missed), change.seconds)

    def _fail(self, text: str, reason: str, kind: object = None) -> None:
        missed = self._failures.admit(kind or (text, reason), self._loop.now)
        if missed is not None:
            self._log.warning(text + _times(missed), reason)


def _times(missed: int) -> str:
    return f" ({missed} more times in the last 10 minutes)" if missed else ""
