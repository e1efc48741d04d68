"""A worker that dies at one instruction: of this function, at this place, for the n-th time.

Theory of operation
-------------------
Run as a program this module is a master like any other, but for its workers: one that finds a
file of its name beside its log when it is born looks at each call that it makes, and in the
function that the file names at each instruction (``sys.settrace``). At the one that is meant
it takes the file away, so that its successor lives, and kills itself, stops, or loops for ever.
Whatever the test or the load does meanwhile is real, and so is the death.

An :class:`Instant` is named by bytecode, so it can lie within a line: between a call of the
kernel and the store behind it.
"""

from __future__ import annotations

import dis
import importlib
import itertools
import os
import signal
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any, Protocol

import orjson

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable
    from pathlib import Path
    from types import FrameType

    from tunneltcp.control.context import WorkerContext

__all__ = ["LOOP", "MODULE", "Instant", "arm", "disarm", "functions_of", "is_armed"]

MODULE = "tests.support.instants"
"""What a master is to be run as."""

LOOP = 0
"""Instead of a signal: loop for ever."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instant:
    """Where a worker dies, and how."""

    module: str
    function: str
    """Qualified name within the module."""
    offset: int = -1
    """Of the instruction before which it happens, in bytes; -1: of the first."""
    hit: int = 1
    """It is survived so many times less one."""
    how: int = signal.SIGKILL
    """A signal, or :data:`LOOP`."""

    def __str__(self) -> str:
        name = signal.Signals(self.how).name[3:] if self.how else "LOOP"
        return f"{name} in {self.function}, instruction {self.offset}, time {self.hit}"

    def code(self) -> CodeType:
        """Find the function."""
        found: Any = importlib.import_module(self.module)
        for name in self.function.split("."):
            found = vars(found)[name] if isinstance(found, type) else getattr(found, name)
        if isinstance(found, property):
            found = found.fget
        return _code(found)

    @classmethod
    def within(
        cls, function: str, chance: random.Random, how: int = signal.SIGKILL, hits: int = 1
    ) -> Instant:
        """Choose an instruction of ``MODULE:FUNCTION`` by chance."""
        module, _, name = function.partition(":")
        code = cls(module=f"tunneltcp.{module}", function=name).code()
        offsets = [one.offset for one in dis.get_instructions(code) if one.opname != "RESUME"]
        return cls(
            module=f"tunneltcp.{module}",
            function=name,
            offset=chance.choice(offsets),
            hit=chance.randint(1, hits),
            how=how,
        )

    @classmethod
    def behind(
        cls, function: str, call: str, how: int = signal.SIGKILL, hit: int = 1
    ) -> Instant:
        """Choose the instruction behind the first call of ``call`` within a function."""
        module, _, name = function.partition(":")
        code = cls(module=f"tunneltcp.{module}", function=name).code()
        seen = False
        found = list(dis.get_instructions(code))
        for one, after in itertools.pairwise(found):
            seen = seen or one.argval == call
            if seen and one.opname.startswith("CALL"):
                return cls(
                    module=f"tunneltcp.{module}",
                    function=name,
                    offset=after.offset,
                    hit=hit,
                    how=how,
                )
        raise ValueError(f"{function} does not call {call}")


def _code(found: object) -> CodeType:
    while hasattr(found, "__wrapped__"):
        found = found.__wrapped__
    assert isinstance(found, FunctionType), f"{found} is no function"
    return found.__code__


def functions_of(modules: Iterable[str]) -> list[str]:
    """All functions of these modules of the package, as :meth:`Instant.within` takes them."""
    found = []
    for module in modules:
        loaded = importlib.import_module(f"tunneltcp.{module}")
        for name, value in vars(loaded).items():
            if getattr(value, "__module__", "") != loaded.__name__:
                continue
            if isinstance(value, FunctionType):
                found.append(f"{module}:{name}")
            elif isinstance(value, type):
                found += [
                    f"{module}:{name}.{inner}"
                    for inner, method in vars(value).items()
                    if isinstance(method, FunctionType)
                    and method.__code__.co_filename == loaded.__file__
                ]
    return found


# ----------------------------------------------------------------------- what a test says


class _Logs(Protocol):
    """A master, as far as it matters here."""

    log_dir: Path


def _path(master: _Logs, port: int) -> Path:
    return master.log_dir / f"instant-{port}"


def arm(master: _Logs, port: int, instant: Instant) -> None:
    """Let the next worker of this tunnel die there; the one that lives is not touched."""
    path = _path(master, port)
    path.with_suffix(".new").write_bytes(orjson.dumps(asdict(instant)))
    path.with_suffix(".new").rename(path)


def is_armed(master: _Logs, port: int) -> bool:
    """Say whether that has not happened yet."""
    return _path(master, port).exists()


def disarm(master: _Logs, port: int) -> bool:
    """Let a worker that is born from now on live; whether the instant had not come."""
    try:
        _path(master, port).unlink()
    except FileNotFoundError:
        return False
    return True


# --------------------------------------------------------------------- what a worker does


def _watch(path: Path, instant: Instant) -> None:
    code = instant.code()
    left = instant.hit

    def strike() -> None:
        with suppress(FileNotFoundError):
            path.unlink()
        if instant.how:
            os.kill(os.getpid(), instant.how)
        while not instant.how:
            pass

    def look(frame: FrameType, event: str, _arg: object) -> Callable[..., Any]:
        nonlocal left
        if event == "opcode" and (instant.offset in (-1, frame.f_lasti)):
            left -= 1
            if not left:
                strike()
        return look

    def trace(frame: FrameType, _event: str, _arg: object) -> Callable[..., Any] | None:
        if frame.f_code is not code:
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return look

    sys.settrace(trace)


def _run_worker(run: Callable[[WorkerContext], int], context: WorkerContext) -> int:
    path = context.log_path.parent / f"instant-{context.port}"
    if path.exists():
        _watch(path, Instant(**orjson.loads(path.read_bytes())))
    return run(context)


def _main() -> None:
    from functools import partial

    from tunneltcp.cli.run import main
    from tunneltcp.workers import run

    run.run_worker = partial(_run_worker, run.run_worker)
    main()


if __name__ == "__main__":
    _main()
