"""Visitors in great number, in a process of their own, that check every byte.

A group of visitors is started by name and runs while the test does something else, such
as killing a worker; what the test asks about it then is in :class:`GroupStats`.
"""

from __future__ import annotations

import errno
import random
import socket
import struct
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.support.apps import request
from tests.support.pattern import PatternChecker, PatternError, pattern
from tests.support.service import READ, WRITE, Service, ServiceProcess, run_service
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["GroupStats", "Load"]

_CHUNK = 256 * 1024
_MAX_WAITS = 100_000
_LINGER_RST = struct.pack("ii", 1, 0)
_AGAIN = (BlockingIOError, InterruptedError)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupStats:
    """How a group of visitors is doing."""

    started: int
    running: int
    connected: int
    """How many were ever connected."""
    up: int
    """Bytes."""
    down: int
    """Bytes, every one checked."""
    outcomes: dict[str, int]
    """``ok``; ``refused``, ``reset``, ``short`` (a clean end too early), ``wrong`` (bytes)."""
    errors: list[str]
    """The first few that were not ``ok``."""
    max_gap: float
    """Seconds: the longest time in which a visitor with something to do got nothing done."""
    rounds: int
    """Questions answered, for probes."""
    p99: float
    """Seconds: of 100 answers to probes since the last mark, 99 took less."""
    answers: int
    """Of how many answers that is."""

    @property
    def bad(self) -> int:
        """Visitors that did not end as they should."""
        return sum(count for outcome, count in self.outcomes.items() if outcome != "ok")


class _Visitor:
    """One connection; a subclass is one behaviour."""

    def __init__(self, group: _Group, number: int) -> None:
        self.group = group
        self.number = number
        self.over = False
        self.connected = False
        self.reading = True
        self.last = time.monotonic()
        self.heard = self.last
        self.gap = 0.0
        """The longest time between two reads since the group was last asked for its gaps."""
        family = socket.AF_INET6 if ":" in group.address[0] else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.setblocking(False)
        if group.receive_buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, group.receive_buffer)
        code = self.sock.connect_ex(group.address)
        if code not in {0, errno.EINPROGRESS}:
            self.end(_failed(code), f"connect: {errno.errorcode.get(code, code)}")
            return
        group.service.watch(self.sock, WRITE, self.ready)

    def progress(self) -> None:
        now = self.group.service.now
        self.group.max_gap = max(self.group.max_gap, now - self.last)
        self.last = now

    def end(self, outcome: str, why: str = "") -> None:
        if self.over:
            return
        self.over = True
        self.progress()
        group = self.group
        group.outcomes[outcome] = group.outcomes.get(outcome, 0) + 1
        if outcome != "ok" and len(group.errors) < 5:
            group.errors.append(f"visitor {self.number}: {outcome}: {why}")
        group.service.forget(self.sock)
        self.sock.close()
        group.ended(self)

    def ready(self, events: int) -> None:
        try:
            if not self.connected:
                code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if code:
                    self.end(_failed(code), f"connect: {errno.errorcode.get(code, code)}")
                    return
                self.connected = True
                self.group.connected += 1
                self.progress()
            if events & WRITE:
                self.write()
            if events & READ and self.reading and not self.over:
                self.read()
        except PatternError as error:
            self.end("wrong", str(error))
        except OSError as error:
            self.end("reset", str(error))
        if not self.over:
            events = (READ if self.reading else 0) | (WRITE if self.wants_write() else 0)
            self.group.service.watch(self.sock, events, self.ready)

    def read(self) -> None:
        buffer = self.group.service.buffer
        try:
            size = self.sock.recv_into(buffer)
        except _AGAIN:
            return
        self.progress()
        self.gap = max(self.gap, self.last - self.heard)
        self.heard = self.last
        self.group.down += size
        if size:
            self.on_data(buffer[:size])
        else:
            self.on_eof()

    def send(self, data: bytes) -> int:
        try:
            sent = self.sock.send(data)
        except _AGAIN:
            return 0
        self.progress()
        self.group.up += sent
        return sent

    def wants_write(self) -> bool:
        raise NotImplementedError

    def write(self) -> None:
        raise NotImplementedError

    def on_data(self, data: memoryview) -> None:
        raise NotImplementedError

    def on_eof(self) -> None:
        raise NotImplementedError


class _Transfer(_Visitor):
    """Moves pattern bytes both ways with a ``pattern`` app."""

    def __init__(self, group: _Group, number: int) -> None:
        self.up, self.down = group.up_size, group.down_size
        self.flags = group.flags
        self.up_seed, self.down_seed = group.seed + 2 * number, group.seed + 2 * number + 1
        line = request(
            up_seed=self.up_seed,
            up=self.up,
            down_seed=self.down_seed,
            down=self.down,
            flags=self.flags,
        )
        self.head = group.greeting(line)
        self.sent = 0
        self.finished = False
        self.checker = PatternChecker(self.down_seed)
        self.verdict = b""
        super().__init__(group, number)

    def wants_write(self) -> bool:
        return bool(self.head) or self.up < 0 or self.sent < self.up

    def write(self) -> None:
        if self.head:
            self.head = self.head[self.send(self.head) :]
        if self.head:
            return
        size = _CHUNK if self.up < 0 else min(_CHUNK, self.up - self.sent)
        if size:
            self.sent += self.send(pattern(self.up_seed, self.sent, size))
        if self.sent == self.up and not self.finished and set(self.flags) & set("erf"):
            self.finished = True
            self.sock.shutdown(socket.SHUT_WR)
            if not self.reading:
                self.on_eof()

    def on_data(self, data: memoryview) -> None:
        left = len(data) if self.down < 0 else self.down - self.checker.offset
        self.checker.feed(data[:left])
        self.verdict += bytes(data[left:])

    def on_eof(self) -> None:
        self.reading = False
        if "f" in self.flags and not self.finished and self.checker.offset == self.down:
            return  # the app has finished first, as it should; we go on
        expected = b"" if "f" in self.flags else f"OK {self.up}\n".encode()
        if self.checker.offset == self.down and self.verdict == expected:
            self.end("ok")
        elif self.checker.offset < self.down:
            self.end("short", f"{self.checker.offset} of {self.down} bytes, then a clean end")
        else:
            self.end("wrong", f"last line {self.verdict[:200]!r}, expected {expected!r}")


class _Probe(_Visitor):
    """Asks an ``echo`` app again and again; each answer is checked by position."""

    def __init__(self, group: _Group, number: int) -> None:
        self.seed = group.seed + number
        self.checker = PatternChecker(self.seed)
        self.head = group.greeting(b"")
        self.sent = 0
        self.goal = group.size
        self.asked = time.monotonic()
        super().__init__(group, number)

    def wants_write(self) -> bool:
        return bool(self.head) or self.sent < self.goal

    def write(self) -> None:
        if self.head:
            self.head = self.head[self.send(self.head) :]
        if not self.head and self.sent < self.goal:
            self.sent += self.send(pattern(self.seed, self.sent, self.goal - self.sent))

    def on_data(self, data: memoryview) -> None:
        self.checker.feed(data)
        if self.checker.offset < self.goal:
            return
        self.group.rounds += 1
        self.group.waits.append(self.group.service.now - self.asked)
        if self.group.rounds_each and self.checker.offset >= (
            self.group.rounds_each * self.group.size
        ):
            self.end("ok")
        elif self.group.pause:
            self.group.service.call_later(self.group.pause, self._next)
        else:
            self._next()

    def _next(self) -> None:
        if self.over:
            return
        self.last = self.heard = self.asked = time.monotonic()  # the pause was ours
        self.goal += self.group.size
        self.group.service.watch(self.sock, READ | WRITE, self.ready)

    def on_eof(self) -> None:
        self.end("short", f"a clean end after {self.checker.offset} bytes")


class _Hasty(_Transfer):
    """Resets its connection in the middle of what it sends."""

    def __init__(self, group: _Group, number: int) -> None:
        chance = random.Random(group.seed + number)
        self.leaves_at = chance.randrange(1, group.up_size)
        super().__init__(group, number)

    def write(self) -> None:
        super().write()
        if self.sent >= self.leaves_at:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RST)
            self.end("ok")


class _Torn(_Visitor):
    """Asks a ``resetting`` app for bytes; a reset is the only good end."""

    def __init__(self, group: _Group, number: int) -> None:
        seed = group.seed + number
        self.head = group.greeting(f"{seed} {group.down_size}\n".encode())
        self.checker = PatternChecker(seed)
        super().__init__(group, number)

    def wants_write(self) -> bool:
        return bool(self.head)

    def write(self) -> None:
        if self.head:
            self.head = self.head[self.send(self.head) :]

    def on_data(self, data: memoryview) -> None:
        self.checker.feed(data)

    def on_eof(self) -> None:
        self.end("short", f"{self.checker.offset} bytes, then a clean end instead of a reset")

    def end(self, outcome: str, why: str = "") -> None:
        was_reset = outcome == "reset" and self.connected
        super().end("ok" if was_reset else outcome, why)


_KINDS: dict[str, type[_Visitor]] = {
    "transfer": _Transfer,
    "probe": _Probe,
    "hasty": _Hasty,
    "torn": _Torn,
}


class _Group:
    """Visitors of one kind at one address."""

    def __init__(self, service: _LoadService, kind: str, options: dict[str, Any]) -> None:
        self.service = service
        self.kind = _KINDS[kind]
        self.address = (str(options["host"]), int(options["port"]))
        self.seed: int = options["seed"]
        self.up_size: int = options["up"]
        self.down_size: int = options["down"]
        self.flags: str = options["flags"]
        self.size: int = options["size"]
        self.pause: float = options["pause"]
        self.rounds_each: int = options["rounds"]
        self.app: str = options["app"]
        self.repeat: bool = options["repeat"]
        self.receive_buffer: int = options["receive_buffer"]
        self.visitors: set[_Visitor] = set()
        self.started = self.connected = self.up = self.down = self.rounds = 0
        self.outcomes: dict[str, int] = {}
        self.errors: list[str] = []
        self.max_gap = 0.0
        self.waits: deque[float] = deque(maxlen=_MAX_WAITS)
        self.stopping = False
        for _ in range(options["count"]):
            self.start_one()

    def greeting(self, line: bytes) -> bytes:
        """What a visitor says first; an ``any`` app wants to know which app it is to be."""
        word = self.app.encode()
        return word + (b" " + line if line else b"\n") if word else line

    def start_one(self) -> None:
        self.started += 1
        visitor = self.kind(self, self.started - 1)
        if not visitor.over:
            self.visitors.add(visitor)

    def ended(self, visitor: _Visitor) -> None:
        self.visitors.discard(visitor)
        if self.repeat and not self.stopping:
            self.service.call_later(self.pause, self.start_again)

    def start_again(self) -> None:
        if not self.stopping:
            self.start_one()

    def stats(self) -> dict[str, Any]:
        now = time.monotonic()
        waits = sorted(self.waits)
        busy = [now - visitor.last for visitor in self.visitors if self._busy(visitor)]
        return {
            "started": self.started,
            "running": len(self.visitors),
            "connected": self.connected,
            "up": self.up,
            "down": self.down,
            "outcomes": self.outcomes,
            "errors": self.errors,
            "max_gap": max([self.max_gap, *busy]),
            "rounds": self.rounds,
            "p99": waits[int((len(waits) - 1) * 0.99)] if waits else 0.0,
            "answers": len(waits),
        }

    def gaps(self) -> list[tuple[float, float]]:
        now = time.monotonic()
        found = []
        for visitor in sorted(self.visitors, key=lambda visitor: visitor.number):
            waits = now - visitor.heard if self._busy(visitor) else 0.0
            found.append((max(visitor.gap, waits), waits))
            visitor.gap = 0.0
        return found

    @staticmethod
    def _busy(visitor: _Visitor) -> bool:
        return not isinstance(visitor, _Probe) or visitor.checker.offset < visitor.goal


class _LoadService(Service):
    """All groups of one helper process."""

    def __init__(self) -> None:
        super().__init__()
        self.buffer = memoryview(bytearray(_CHUNK))
        self.groups: dict[str, _Group] = {}

    def do_start(self, name: str, kind: str, **options: Any) -> None:  # noqa: ANN401 - JSON
        assert name not in self.groups, f"a group {name!r} is running"
        self.now = time.monotonic()
        self.groups[name] = _Group(self, kind, options)

    def do_stats(self, name: str) -> dict[str, Any]:
        return self.groups[name].stats()

    def do_gaps(self, name: str) -> list[tuple[float, float]]:
        return self.groups[name].gaps()

    def do_mark(self, name: str) -> None:
        group = self.groups[name]
        group.max_gap = 0.0
        group.waits.clear()
        for visitor in group.visitors:
            visitor.last = time.monotonic()

    def do_stop(self, name: str) -> dict[str, Any]:
        group = self.groups.pop(name)
        group.stopping = True
        answer = group.stats()
        for visitor in tuple(group.visitors):
            self.forget(visitor.sock)
            visitor.over = True
            visitor.sock.close()
        return answer


class Load(ServiceProcess):
    """A process with any number of groups of visitors."""

    def __init__(self, *, prefix: Sequence[str] = ()) -> None:
        super().__init__("tests.support.visitors", prefix=prefix)

    def transfer(
        self,
        name: str,
        port: int,
        *,
        host: str = "127.0.0.1",
        count: int = 1,
        seed: int = 1,
        up: int = 0,
        down: int = 0,
        flags: str = "",
        repeat: bool = False,
        pause: float = 0.0,
        receive_buffer: int = 0,
        app: str = "",
    ) -> None:
        """Start visitors of a ``pattern`` app, each with two seeds of its own.

        Args:
            up: Bytes towards the app; -1: for ever.
            down: Bytes back; -1: for ever.
            flags: As for :func:`tests.support.apps.request`.
            repeat: Start another for each that ends, ``pause`` seconds later.
            app: What an ``any`` app is to be; so for the others here.
        """
        self._start(
            name,
            "transfer",
            host=host,
            port=port,
            count=count,
            seed=seed,
            up=up,
            down=down,
            flags=flags,
            repeat=repeat,
            pause=pause,
            receive_buffer=receive_buffer,
            app=app,
        )

    def probe(
        self,
        name: str,
        port: int,
        *,
        host: str = "127.0.0.1",
        count: int = 1,
        seed: int = 1,
        size: int = 64,
        pause: float = 0.0,
        rounds: int = 0,
        repeat: bool = False,
        app: str = "",
    ) -> None:
        """Start visitors of an ``echo`` app that wait for each answer.

        Args:
            rounds: Questions before a visitor ends; 0: it goes on until it is stopped.
        """
        self._start(
            name,
            "probe",
            host=host,
            port=port,
            count=count,
            seed=seed,
            size=size,
            pause=pause,
            rounds=rounds,
            repeat=repeat,
            app=app,
        )

    def hasty(
        self,
        name: str,
        port: int,
        *,
        host: str = "127.0.0.1",
        count: int,
        seed: int,
        up: int,
        pause: float = 0.02,
        app: str = "",
    ) -> None:
        """Start visitors of a ``pattern`` app that reset before they have sent ``up`` bytes.

        For each that has gone another one comes, ``pause`` seconds later.
        """
        self._start(
            name,
            "hasty",
            host=host,
            port=port,
            count=count,
            seed=seed,
            up=up,
            down=-1,
            pause=pause,
            repeat=True,
            app=app,
        )

    def torn(
        self,
        name: str,
        port: int,
        *,
        host: str = "127.0.0.1",
        count: int,
        seed: int,
        down: int,
        pause: float = 0.02,
        app: str = "",
    ) -> None:
        """Start visitors of a ``resetting`` app; all must be reset.

        For each that has gone another one comes, ``pause`` seconds later.
        """
        self._start(
            name,
            "torn",
            host=host,
            port=port,
            count=count,
            seed=seed,
            down=down,
            pause=pause,
            repeat=True,
            app=app,
        )

    def _start(self, name: str, kind: str, **options: object) -> None:
        defaults = {
            "up": 0,
            "down": 0,
            "flags": "",
            "size": 0,
            "rounds": 0,
            "receive_buffer": 0,
            "app": "",
        }
        self.call("start", name=name, kind=kind, **{**defaults, **options})

    def stats(self, name: str) -> GroupStats:
        """Return how a group is doing."""
        return GroupStats(**self.call("stats", name=name))

    def gaps(self, name: str) -> list[tuple[float, float]]:
        """Return for each visitor, in their order, how long it heard nothing; seconds.

        The longest time since the last call, and the one that it is in now.
        """
        return [(longest, now) for longest, now in self.call("gaps", name=name)]

    def mark(self, name: str) -> None:
        """Measure the longest gap, and how long answers take, from here."""
        self.call("mark", name=name)

    def end(self, name: str) -> GroupStats:
        """End a group where it is and return how it did."""
        return GroupStats(**self.call("stop", name=name))

    def finish(self, name: str, timeout: float = 30.0) -> GroupStats:
        """Wait until every visitor of a group has ended; return how they did."""
        wait_until(
            lambda: self.stats(name).running == 0,
            timeout,
            lambda: f"visitors {name!r} end: {self.stats(name)}",
        )
        return GroupStats(**self.call("stop", name=name))


def _failed(code: int) -> str:
    """Name what ended a connect: only a port that nobody holds refuses."""
    return "reset" if code == errno.ECONNRESET else "refused"


if __name__ == "__main__":
    run_service(_LoadService)
