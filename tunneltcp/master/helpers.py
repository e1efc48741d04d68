"""Short-lived children for what can block: a name, a disk, the table of sockets.

``getaddrinfo`` has no deadline, and the others can be slow; none may ever stand in the
master's loop. A helper answers through a pipe and is killed at its deadline.
"""

from __future__ import annotations

import os
from collections import deque
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import orjson

from tunneltcp.master.spawn import MAX_ANSWER_BYTES, fork_helper
from tunneltcp.net.loop import READ
from tunneltcp.net.names import addresses_message, look_up

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tunneltcp.master.children import Children
    from tunneltcp.net.loop import Loop, Timer

__all__ = ["HELPER_SECONDS", "Helpers", "Lookups"]

HELPER_SECONDS: Final = 10.0
"""A resolver's own patience is 5 s for one server, two tries; then nobody answers."""

_MAX_RUNNING: Final = 8
"""Helpers at one time; the others wait their turn."""

_MAX_WAITING: Final = 8
"""Names that one worker may ask for at one time: its server and its target, and air."""


class _Helper:
    """One helper at work."""

    __slots__ = ("answer", "answered", "deadline", "keep", "pid", "reader", "run_as")

    def __init__(
        self,
        answered: Callable[[Any], None],
        keep: Sequence[int],
        run_as: tuple[int, int] | None,
    ) -> None:
        self.answered = answered
        self.keep = keep
        self.run_as = run_as
        self.answer = bytearray()
        self.pid = 0
        self.reader = -1
        self.deadline: Timer | None = None


class Helpers:
    """Runs functions in children and hands their answers to callbacks."""

    def __init__(self, loop: Loop, children: Children, seconds: float = HELPER_SECONDS) -> None:
        self._loop = loop
        self._children = children
        self._seconds = seconds
        self._running: set[_Helper] = set()
        self._waiting: deque[tuple[Callable[[], object], _Helper]] = deque()
        self._closed = False

    def run(
        self,
        work: Callable[[], object],
        answered: Callable[[Any], None],
        *,
        keep: Sequence[int] = (),
        run_as: tuple[int, int] | None = None,
        at_once: bool = False,
    ) -> None:
        """Call ``answered`` later, with what ``work`` returned, or None if it failed.

        Of our descriptors the helper has those in ``keep``; they must stay open until then.
        ``run_as`` is the user that it runs as; None: ours. ``at_once``: it does not wait for
        its turn, as when somebody waits for it of whom there is one at a time.
        """
        helper = _Helper(answered, keep, run_as)
        if at_once:
            self._start(work, helper)
        else:
            self._waiting.append((work, helper))
            self._start_waiting()

    @property
    def are_idle(self) -> bool:
        """Whether none is at work."""
        return not self._running and not self._waiting

    def close(self) -> None:
        """Kill those at work and forget their answers; they are reaped as ever."""
        self._closed = True
        self._waiting.clear()
        for helper in list(self._running):
            self._finish(helper)

    def _start_waiting(self) -> None:
        while self._waiting and len(self._running) < _MAX_RUNNING and not self._closed:
            self._start(*self._waiting.popleft())

    def _start(self, work: Callable[[], object], helper: _Helper) -> None:
        if self._closed:
            return
        try:
            helper.pid, helper.reader = fork_helper(
                work, int(self._seconds) + 1, helper.keep, helper.run_as
            )
        except OSError:
            self._loop.call_later(0.0, partial(helper.answered, None))
            return
        self._running.add(helper)
        self._children.watch(helper.pid, lambda _status: None)
        self._loop.register(helper.reader, READ, partial(self._on_readable, helper))
        helper.deadline = self._loop.call_later(self._seconds, partial(self._finish, helper))

    def _on_readable(self, helper: _Helper, _events: int) -> None:
        try:
            data = os.read(helper.reader, MAX_ANSWER_BYTES + 1)
        except BlockingIOError:
            return
        helper.answer += data
        if not data or len(helper.answer) > MAX_ANSWER_BYTES:
            self._finish(helper)

    def _finish(self, helper: _Helper) -> None:
        if helper not in self._running:
            return
        self._running.discard(helper)
        if helper.deadline is not None:
            helper.deadline.cancel()
        self._loop.unregister(helper.reader)
        os.close(helper.reader)
        self._children.kill(helper.pid)
        if self._closed:
            return
        value = None
        with suppress(orjson.JSONDecodeError):
            value = orjson.loads(helper.answer)
        helper.answered(value)
        self._start_waiting()


class Lookups:
    """Looks names up for workers; those who ask for the same name share the answer."""

    def __init__(self, helpers: Helpers, run_as: tuple[int, int] | None = None) -> None:
        self.run_as = run_as
        """Who reads what name servers answer; None: this master's user."""
        self._helpers = helpers
        self._asking: dict[str, dict[tuple[int, int], Callable[[dict[str, Any]], None]]] = {}

    def ask(
        self, worker_pid: int, host: str, port: int, answered: Callable[[dict[str, Any]], None]
    ) -> None:
        """Call ``answered`` with a message for that worker, once."""
        key = (worker_pid, port)
        mine = sum(
            1 for waiting in self._asking.values() for pid, _ in waiting if pid == worker_pid
        )
        if mine >= _MAX_WAITING:
            answered(addresses_message(host, port, None))
            return
        if host in self._asking:
            self._asking[host][key] = answered
            return
        self._asking[host] = {key: answered}
        self._helpers.run(
            lambda: look_up(host),
            lambda found: self._answer(host, found),
            run_as=self.run_as,
        )

    def _answer(self, host: str, found: dict[str, Any] | None) -> None:
        for (_, port), answered in self._asking.pop(host).items():
            answered(addresses_message(host, port, found))
