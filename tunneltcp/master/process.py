"""The life of one worker: what happens to it, decided without doing any of it.

Theory of operation
-------------------
``TRANSITIONS`` says for each (state, input) the next state and what has to be done; a
pair that is not in it changes nothing. ``ProcessLife`` adds what a table cannot hold:
how often the worker failed, and by when something has to have happened. It reads no
clock, starts nothing and kills nothing: the caller performs the actions and reports
back what came of them.

Three rules the table obeys:

1. SPAWN stands only where no worker can be alive. A worker that has to go is killed, and
   its successor is forked after its *exit* was seen: two readers on one socket corrupt it.
2. RUNNING is what the worker said (READY), never a guess.
3. It never stops trying. FATAL waits longer and is shown red, that is all.
"""

from __future__ import annotations

import random
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "BLOCKED_DELAYS",
    "RESTART_DELAYS",
    "START_SECONDS",
    "TRANSITIONS",
    "Action",
    "Input",
    "ProcessLife",
    "ProcessState",
]

STABLE_SECONDS: Final = 1.0
"""A worker that ran this long had no trouble starting: its successor comes at once. So even
one that dies for ever is started no more than once a second."""

EXCEED_SECONDS: Final = 60.0
"""The same for one that exceeded its budget, which is looked at only every few seconds."""

RESTART_DELAYS: Final = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Seconds before the first, second ... restart of a worker that keeps crashing."""

BLOCKED_DELAYS: Final = (0.5, 1.0, 2.0, 5.0)
"""Seconds before another try where nothing could be started: a busy port, no memory to
fork. Short, since what holds an ephemeral port is often gone in a second."""

FATAL_SECONDS: Final = 300.0
"""Only a new config heals it; a look each 5 minutes costs nothing and may be lucky."""

START_SECONDS: Final = 10.0
"""A worker is ready in some 20 ms; on a starved machine it may take seconds."""

STOP_SECONDS: Final = 1.0
"""From "stop" to SIGKILL: a worker has nothing more to do then but to reset streams."""

STOP_NOW_SECONDS: Final = 0.25
"""The same when somebody asked twice."""

DRAIN_GRACE_SECONDS: Final = 0.25
"""What a worker that leaves by itself at the end of the drain may take to do it."""

_KILL_AGAIN_SECONDS: Final = 1.0
"""A killed worker that is not gone sits in the kernel; there is nothing else to try."""


class ProcessState(Enum):
    """Where a worker stands; the value is what people read."""

    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    BACKOFF = "backoff"
    STOPPING = "stopping"
    FATAL = "fatal"


class Input(Enum):
    """What can happen to a worker."""

    START = auto()
    """Somebody wants it to run."""
    READY = auto()
    """The worker says that it serves."""
    BLOCKED = auto()
    """What SPAWN needs is missing: the port is busy, fork failed. No worker was made."""
    EXIT = auto()
    """It is gone and reaped, and a successor may do better."""
    EXIT_PERMANENT = auto()
    """It is gone and reaped, and said that only a person can help."""
    REPLACE = auto()
    """It must go and have a successor: it asked for it, or broke the rules."""
    EXCEED = auto()
    """It takes more than its budget: it must go, and its successor may do the same."""
    TIME_UP = auto()
    """The deadline has passed."""
    STOP = auto()
    """Nobody wants it to run: running visitors may finish."""
    STOP_NOW = auto()
    """The same, and nobody waits for visitors."""


class Action(Enum):
    """What the caller has to do, in this order."""

    SPAWN = auto()
    """Fork a worker; report BLOCKED if that cannot be done."""
    DRAIN = auto()
    """Tell it to take no new visitors and to leave when the last one is gone."""
    SAY_STOP = auto()
    """Tell it to reset its visitors and leave."""
    KILL = auto()
    """SIGKILL."""


class _Wait(Enum):
    """Which deadline a transition sets."""

    NONE = auto()
    START = auto()
    RETRY = auto()
    BLOCKED = auto()
    FATAL = auto()
    DRAIN = auto()
    STOP = auto()
    STOP_NOW = auto()
    KILL = auto()


_S = ProcessState
_I = Input
_A = Action
_Row = tuple[ProcessState, tuple[Action, ...], _Wait]

_SPAWN: Final[_Row] = (_S.STARTING, (_A.SPAWN,), _Wait.START)

TRANSITIONS: Final[Mapping[tuple[ProcessState, Input], _Row]] = {
    (_S.STOPPED, _I.START): _SPAWN,
    (_S.STARTING, _I.READY): (_S.RUNNING, (), _Wait.NONE),
    (_S.STARTING, _I.BLOCKED): (_S.BACKOFF, (), _Wait.BLOCKED),
    (_S.STARTING, _I.EXIT): (_S.BACKOFF, (), _Wait.RETRY),
    (_S.STARTING, _I.EXIT_PERMANENT): (_S.FATAL, (), _Wait.FATAL),
    (_S.STARTING, _I.REPLACE): (_S.STARTING, (_A.KILL,), _Wait.KILL),
    (_S.STARTING, _I.TIME_UP): (_S.STARTING, (_A.KILL,), _Wait.KILL),
    (_S.STARTING, _I.STOP): (_S.STOPPING, (_A.SAY_STOP,), _Wait.STOP),
    (_S.STARTING, _I.STOP_NOW): (_S.STOPPING, (_A.SAY_STOP,), _Wait.STOP_NOW),
    (_S.RUNNING, _I.EXIT): (_S.BACKOFF, (), _Wait.RETRY),
    (_S.RUNNING, _I.EXIT_PERMANENT): (_S.FATAL, (), _Wait.FATAL),
    (_S.RUNNING, _I.REPLACE): (_S.RUNNING, (_A.KILL,), _Wait.KILL),
    (_S.RUNNING, _I.EXCEED): (_S.RUNNING, (_A.KILL,), _Wait.KILL),
    (_S.RUNNING, _I.TIME_UP): (_S.RUNNING, (_A.KILL,), _Wait.KILL),
    (_S.RUNNING, _I.STOP): (_S.STOPPING, (_A.DRAIN,), _Wait.DRAIN),
    (_S.RUNNING, _I.STOP_NOW): (_S.STOPPING, (_A.SAY_STOP,), _Wait.STOP_NOW),
    (_S.BACKOFF, _I.START): _SPAWN,
    (_S.BACKOFF, _I.TIME_UP): _SPAWN,
    (_S.BACKOFF, _I.STOP): (_S.STOPPED, (), _Wait.NONE),
    (_S.BACKOFF, _I.STOP_NOW): (_S.STOPPED, (), _Wait.NONE),
    (_S.FATAL, _I.START): _SPAWN,
    (_S.FATAL, _I.TIME_UP): _SPAWN,
    (_S.FATAL, _I.STOP): (_S.STOPPED, (), _Wait.NONE),
    (_S.FATAL, _I.STOP_NOW): (_S.STOPPED, (), _Wait.NONE),
    (_S.STOPPING, _I.EXIT): (_S.STOPPED, (), _Wait.NONE),
    (_S.STOPPING, _I.EXIT_PERMANENT): (_S.STOPPED, (), _Wait.NONE),
    (_S.STOPPING, _I.BLOCKED): (_S.STOPPED, (), _Wait.NONE),
    (_S.STOPPING, _I.REPLACE): (_S.STOPPING, (_A.KILL,), _Wait.KILL),
    (_S.STOPPING, _I.STOP_NOW): (_S.STOPPING, (_A.SAY_STOP,), _Wait.STOP_NOW),
    (_S.STOPPING, _I.TIME_UP): (_S.STOPPING, (_A.KILL,), _Wait.KILL),
}


_HANDED: Final = (
    "failures", "asked", "blocked", "spawned", "spawns", "wanted", "drain_said", "exceeded",
)  # fmt: skip
"""What of a life is private and goes on in the next version of the master."""


class ProcessLife:
    """One worker's state, its failures so far and its deadline."""

    __slots__ = (
        "_asked", "_blocked", "_drain_said", "_exceeded", "_failures", "_jitter", "_spawned",
        "_spawns", "_wanted", "deadline", "drain_seconds", "state",
    )  # fmt: skip

    def __init__(
        self, *, drain_seconds: float, jitter: Callable[[float, float], float] = random.uniform
    ) -> None:
        self.state = ProcessState.STOPPED
        self.deadline: float | None = None
        """When TIME_UP has to be reported; monotonic seconds."""
        self.drain_seconds = drain_seconds
        """What a worker may take to see its visitors off."""
        self._jitter = jitter
        self._failures = 0
        self._asked = False
        self._exceeded = False
        self._blocked = 0
        self._spawned = 0.0
        self._spawns = 0
        self._wanted = False
        self._drain_said = False

    def hand_over(self) -> dict[str, Any]:
        """Return all of it as plain values, for :meth:`go_on` in the next version of us."""
        values = {name: getattr(self, f"_{name}") for name in _HANDED}
        return values | {"state": self.state.value, "deadline": self.deadline}

    def go_on(self, before: Mapping[str, Any]) -> None:
        """Be where another one was; the clock is the same."""
        self.state, self.deadline = ProcessState(before["state"]), before["deadline"]
        for name in _HANDED:
            setattr(self, f"_{name}", before[name])

    def take_drain(self, seconds: float, now: float) -> None:
        """Know what a new config says; visitors who are seen off just now have no longer."""
        self.drain_seconds = seconds
        if self._drain_said and self.deadline is not None:
            self.deadline = min(self.deadline, now + seconds + DRAIN_GRACE_SECONDS)

    @property
    def restarts(self) -> int:
        """Workers spawned after the first."""
        return max(0, self._spawns - 1)

    def handle(self, happened: Input, now: float) -> tuple[Action, ...]:
        """Take one input; change the state and the deadline; return what is to be done."""
        self._note(happened, now)
        row = TRANSITIONS.get((self.state, happened))
        if row is None:
            return ()
        self.state, actions, wait = self._drained(row) if happened is Input.TIME_UP else row
        if Action.SPAWN in actions:
            self._spawns += 1
            self._spawned = now
        self._drain_said = Action.DRAIN in actions
        self.deadline = self._until(wait, now)
        if self.state is ProcessState.STOPPED and self._wanted:
            return actions + self.handle(Input.START, now)
        return actions

    def _drained(self, row: _Row) -> _Row:
        """At the end of the drain say "stop" before killing."""
        if self._drain_said:
            return ProcessState.STOPPING, (Action.SAY_STOP,), _Wait.STOP
        return row

    def _note(self, happened: Input, now: float) -> None:
        if happened is Input.START:
            self._wanted = True
        elif happened in (Input.STOP, Input.STOP_NOW):
            self._wanted = False
        elif happened is Input.READY:
            self._blocked = 0
        elif happened is Input.REPLACE:
            self._asked = self.state is ProcessState.RUNNING
        elif happened is Input.EXCEED:
            self._exceeded = self.state is ProcessState.RUNNING
        elif happened is Input.BLOCKED:
            self._blocked += 1
            self._spawns -= 1
        elif happened in (Input.EXIT, Input.EXIT_PERMANENT):
            long = EXCEED_SECONDS if self._exceeded else STABLE_SECONDS
            stable = now - self._spawned >= long
            self._failures = 0 if stable or self._asked else self._failures + 1
            self._asked = self._exceeded = False

    def _until(self, wait: _Wait, now: float) -> float | None:
        if wait is _Wait.NONE:
            return None
        seconds = {
            _Wait.START: START_SECONDS,
            _Wait.FATAL: FATAL_SECONDS,
            _Wait.DRAIN: self.drain_seconds + DRAIN_GRACE_SECONDS,
            _Wait.STOP: STOP_SECONDS,
            _Wait.STOP_NOW: STOP_NOW_SECONDS,
            _Wait.KILL: _KILL_AGAIN_SECONDS,
        }.get(wait)
        if seconds is None:
            delays, count = (
                (RESTART_DELAYS, self._failures)
                if wait is _Wait.RETRY
                else (BLOCKED_DELAYS, self._blocked)
            )
            seconds = delays[min(max(count, 1), len(delays)) - 1]
            seconds *= self._jitter(0.75, 1.0)
        return now + seconds
