"""Forking, and what a child does before it is anything.

Theory of operation
-------------------
A forked child has everything of its parent: descriptors, mappings, handlers, frames. It
keeps what it was given and lets go of the rest before it does anything else: a listener
of another tunnel would go on accepting, an end of a sibling's channel would keep that
sibling from ever seeing its end-of-file. It never returns into the master's code: it
leaves by ``os._exit``.

Signals are blocked around the fork. Otherwise one that hits the child before it has
reset its handlers would write into the master's wake-up pipe and be taken for the
master's own.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import orjson
from loguru import logger

from tunneltcp.control.keys import read_keys
from tunneltcp.control.privileges import become, protect_process
from tunneltcp.errors import ExitCode
from tunneltcp.log import access_path, setup_log
from tunneltcp.net.keeper import clone_keeper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from tunneltcp.control.context import WorkerContext

    WorkerMain = Callable[[WorkerContext], int]
    SignalMask = set[int] | set[signal.Signals]

__all__ = [
    "MAX_ANSWER_BYTES",
    "be_worker",
    "begin_child",
    "fork",
    "fork_helper",
    "fork_program",
    "fork_worker",
    "keeper_of",
    "make_keeper",
    "merge_memory",
    "point_at",
    "run_helper",
    "unmap",
]

MAX_ANSWER_BYTES: Final = 60_000
"""What a helper may answer: it has to fit into a pipe, so that it never waits there."""

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_MEMORY_MERGE: Final = 67
_RESET: Final = (signal.SIGTERM, signal.SIGCHLD)
"""What the master has a handler for, and a worker has none for at first."""

_IGNORED: Final = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
"""A signal to the whole group (Ctrl-C, systemd) does a worker no harm."""

# Looked up before any fork: a child must not start by loading libraries.
_libc = ctypes.PyDLL(None, use_errno=True)


def merge_memory() -> None:
    """Let the kernel merge our equal pages, and those of all that is forked from now on (KSM).

    Raises:
        OSError: If this kernel cannot (before Linux 6.4, or built without it).
    """
    if _libc.prctl(_PR_SET_MEMORY_MERGE, 1, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def fork_worker(
    context: WorkerContext, worker_main: WorkerMain, maps: Iterable[memoryview]
) -> int:
    """Fork a worker from this process and return its pid.

    Args:
        context: What it is born with; of all descriptors it keeps those named there.
        worker_main: What it does. Its result is the exit code.
        maps: All mappings of counters that the master holds.

    Raises:
        OSError: If there can be no further process now.
    """
    pid, mask = fork()
    if pid == 0:
        be_worker(partial(_born, context, maps), worker_main, mask)
    return pid


def be_worker(
    take: Callable[[], WorkerContext],
    worker_main: WorkerMain,
    mask: SignalMask,
) -> NoReturn:
    """Be a worker, in a child that was just forked with all signals blocked.

    Args:
        take: Makes its keeper, if it is to have one, and then returns what it is born with.
        worker_main: See :func:`fork_worker`.
        mask: The signals that stay blocked.
    """
    code: int = ExitCode.CRASH
    try:
        context = take()
        log_path = _log_path(context)
        begin_child(context.master_pid, context.fds, mask, context.run_as)
        _reopen_standard(log_path)
        setup_log(
            log_path,
            max_bytes=context.log_bytes,
            files=context.log_files,
            tunnel=context.port,
            as_json=context.log_json,
            access=access_path(log_path) if context.access_log else None,
        )
        code = int(worker_main(_with_keys(context)))
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else ExitCode.CRASH
    except BaseException:  # noqa: BLE001 - the outermost handler: log it and leave
        logger.opt(exception=True).critical("worker crashed")
    finally:
        os._exit(code & 0xFF)


def _log_path(context: WorkerContext) -> Path:
    """Return where a worker logs; as another user it may not pass the folders above."""
    path = context.log_path
    if context.run_as is not None:
        with suppress(OSError):
            os.chdir(path.parent)
            return Path(path.name)
    return path


def _born(context: WorkerContext, maps: Iterable[memoryview]) -> WorkerContext:
    unmap(maps)
    return replace(context, keeper_pid=make_keeper(*keeper_of(context)))


def keeper_of(context: WorkerContext) -> tuple[int, str, tuple[int, int] | None]:
    """Return what :func:`make_keeper` is to be given for this worker."""
    title = f"tunneltcp {context.role.value}: keeper of {context.port}"
    return context.keeper_fd, title, context.run_as


def make_keeper(fd: int, title: str, run_as: tuple[int, int] | None) -> int:
    """Have a keeper, for a worker that was just forked; return its pid, or 0.

    This comes first of all: whatever page is written to before is one more that the keeper has
    for itself.
    """
    if fd < 0:
        return 0
    try:
        return clone_keeper(fd, title, partial(become, *run_as) if run_as else None)
    except OSError:
        return 0  # the worker tries again, and says why not


def _with_keys(context: WorkerContext) -> WorkerContext:
    """Take the keys, in the child: the master never has them."""
    if context.keys_fd < 0:
        return context
    keys = read_keys(context.keys_fd)
    os.close(context.keys_fd)
    return replace(context, keys=tuple(keys), key_clients=keys, keys_fd=-1)


def run_helper(
    work: Callable[[], object],
    deadline_seconds: int,
    keep: Sequence[int] = (),
    run_as: tuple[int, int] | None = None,
) -> Any:  # noqa: ANN401 - an answer from another process
    """Do something in a helper and wait for it; None if it failed. Not from within a loop.

    Raises:
        OSError: If there can be no further process or pipe now.
    """
    pid, reader = fork_helper(work, deadline_seconds, keep, run_as)
    os.set_blocking(reader, True)
    answer = b""
    try:
        while data := os.read(reader, MAX_ANSWER_BYTES):  # its end comes at the deadline
            answer += data
    finally:
        os.close(reader)
    os.waitpid(pid, 0)
    with suppress(orjson.JSONDecodeError):
        return orjson.loads(answer)
    return None


def fork_helper(
    work: Callable[[], object],
    deadline_seconds: int,
    keep: Sequence[int] = (),
    run_as: tuple[int, int] | None = None,
) -> tuple[int, int]:
    """Fork a short-lived child for what may block; return its pid and its answer's pipe.

    The answer is the JSON of what ``work`` returns, then end-of-file; nothing at all if
    it failed. After ``deadline_seconds`` the kernel ends the child, whoever else forgets.
    Of our descriptors it has those in ``keep``; ``run_as`` is the user that it runs as.

    Raises:
        OSError: If there can be no further process or pipe now.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    master_pid = os.getpid()
    try:
        pid, mask = fork()
    except OSError:
        os.close(reader)
        os.close(writer)
        raise
    if pid == 0:
        _help(work, (writer, *keep), master_pid, deadline_seconds, mask, run_as)
    os.close(writer)
    return pid, reader


def _help(
    work: Callable[[], object],
    keep: Sequence[int],
    master_pid: int,
    deadline_seconds: int,
    mask: SignalMask,
    run_as: tuple[int, int] | None,
) -> NoReturn:
    code: int = ExitCode.CRASH
    try:
        signal.alarm(deadline_seconds)
        begin_child(master_pid, keep, mask, run_as)
        point_at(os.open(os.devnull, os.O_RDWR), (0, 1, 2))
        answer = orjson.dumps(work())
        if len(answer) <= MAX_ANSWER_BYTES:
            os.write(keep[0], answer)
            code = ExitCode.DONE
    finally:
        os._exit(code)


def fork_program(
    command: list[str],
    environment: Mapping[str, str],
    keep: Sequence[int],
    output: int,
    deadline_seconds: int,
) -> int:
    """Fork a short-lived child that becomes another program; return its pid.

    Args:
        command: The program's path, and its words.
        environment: Its environment.
        keep: Those of our descriptors that it gets, under the same numbers.
        output: Where it writes what it would print.
        deadline_seconds: After this the kernel ends it; an alarm outlives ``execve``.

    Raises:
        OSError: If there can be no further process now.
    """
    master_pid = os.getpid()
    pid, mask = fork()
    if pid:
        return pid
    try:
        signal.alarm(deadline_seconds)
        begin_child(master_pid, (output, *keep), mask)
        point_at(os.open(os.devnull, os.O_RDWR), (0,))
        for number in (1, 2):
            os.dup2(output, number)
        for fd in keep:
            os.set_inheritable(fd, True)
        os.execve(command[0], command, environment)  # noqa: S606 - ourselves
    except BaseException as error:  # noqa: BLE001 - the outermost handler: say it and leave
        os.write(output, f"{type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(ExitCode.CRASH)


def fork() -> tuple[int, SignalMask]:
    """Fork with all signals blocked; the parent's are let through again.

    This is fork(2) and not ``os.fork``: that one also calls what libraries want called in a
    child (locks, the seed of random), for threads that the master never has. It touches 150
    pages, 0.6 MB of each worker's own memory.
    What an upgrade holds back is not in the mask: who is forked then would never hear it.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    pid = -1
    try:
        pid = _libc.fork()
        if pid < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        if pid != 0:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return pid, mask.difference(_RESET, _IGNORED)


def begin_child(
    master_pid: int,
    keep: Sequence[int],
    mask: SignalMask,
    run_as: tuple[int, int] | None = None,
) -> None:
    """Become a process of our own; leave at once if the master is gone, or if we may not."""
    try:
        protect_process()
        if run_as is not None:
            become(*run_as)
    except OSError:
        os._exit(ExitCode.NOT_PERMITTED)
    # Behind that: who changes his user loses it.
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != master_pid:
        os._exit(ExitCode.TEMPORARY)
    # What the master had and has dropped, and no collector has seen yet, must not be collected
    # here: its sockets would close numbers that are long those of others.
    gc.freeze()
    _close_all_but(keep)
    _reset_signals(mask)


def unmap(maps: Iterable[memoryview]) -> None:
    """Let go of the master's mappings; each holds a descriptor too, so before closing."""
    for counters in maps:
        memory = counters.obj
        counters.release()
        with suppress(AttributeError, BufferError):
            memory.close()  # type: ignore[attr-defined]


def _close_all_but(keep: Sequence[int]) -> None:
    limit = os.sysconf("SC_OPEN_MAX")
    low = 3
    for fd in sorted(keep):
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, limit)


def _reset_signals(mask: SignalMask) -> None:
    signal.set_wakeup_fd(-1)
    for number in _RESET:
        signal.signal(number, signal.SIG_DFL)
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _reopen_standard(log_path: object) -> None:
    """Nothing that is printed can block, and what a dying interpreter says is kept."""
    null = os.open(os.devnull, os.O_RDWR)
    output = null
    with suppress(OSError):
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        output = os.open(str(log_path), flags, 0o600)
    os.dup2(null, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    for fd in {null, output} - {0, 1, 2}:
        os.close(fd)


def point_at(fd: int, standard: Sequence[int]) -> None:
    """Have ``fd`` under these numbers, and no other."""
    for number in standard:
        os.dup2(fd, number)
    if fd not in standard:
        os.close(fd)
