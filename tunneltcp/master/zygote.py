"""The zygote: a process that does nothing but fork workers.

Theory of operation
-------------------
A forked worker shares each page of memory until somebody writes to it. The master writes to
some 400 pages between two forks, so workers forked from it would share little with each other,
and each keeper would be the only one who has what its worker and the master have both changed.
So the master forks one child once all is warm, and that child, which does next to nothing and
so writes to next to nothing, forks the workers: whatever it forks, and whenever, begins with
the same pages (docs/decisions/0006). The workers are the master's children all the same
(CLONE_PARENT).

What is said on the pair: a worker's context with its descriptors; a pid, or what is missing to
make a process, as a negative number. A worker that was forked waits for a word on a pipe before
it touches anything. If its zygote is lost at that moment, the master does not know it, and it
finds the pipe closed.

If a zygote is lost the master forks that worker itself, and a zygote for the next. Where the
system does not let a zygote do it at all (emulators and filters of system calls know no
CLONE_PARENT) there is no further one, and the master forks all workers.
"""

from __future__ import annotations

import errno
import os
import pickle
import signal
import socket
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NoReturn

from loguru import logger
from setproctitle import setproctitle

from tunneltcp.errors import ExitCode
from tunneltcp.master.spawn import (
    be_worker,
    begin_child,
    fork,
    fork_worker,
    keeper_of,
    make_keeper,
    point_at,
    unmap,
)
from tunneltcp.net.clone import CLONE_PARENT, HAS_CLONE, clone

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunneltcp.control.context import Role, WorkerContext
    from tunneltcp.master.children import Children
    from tunneltcp.master.spawn import SignalMask, WorkerMain

__all__ = ["Zygote"]

_ANSWER_SECONDS: Final = 2.0
"""A fork takes a millisecond or two, on a starved machine more. The master waits meanwhile."""

_MAX_CONTEXT_BYTES: Final = 128 * 1024
"""Of a context: usually 1 KB, and 60 with four long lists of networks."""

_MAX_FDS: Final = 250
"""Of a worker: some eight, and one for each address it listens at. The kernel takes 253."""

_FDS_SPACE: Final = socket.CMSG_SPACE(_MAX_FDS * 4)

_SHORT: Final = (errno.EAGAIN, errno.ENOMEM)
"""Errors of a fork that would hit the master too, and pass; any other is the zygote's own."""

_CTRUNC: Final = int(socket.MSG_CTRUNC)
_ANSWER_BYTES: Final = 32
_GO: Final = b"1"


class Zygote:
    """That of a master; it makes the process as soon as it needs one.

    Args:
        worker_main: What workers do.
        maps: All mappings of counters that the master holds, for its children to let go of.
        role: The master's.
        instance: The master's.
    """

    def __init__(
        self,
        children: Children,
        worker_main: WorkerMain,
        maps: Sequence[memoryview],
        role: Role,
        instance: str,
    ) -> None:
        self._children = children
        self._worker_main = worker_main
        self._maps = maps
        self._title = f"tunneltcp {role.value}: zygote ({instance})"
        self._pair: socket.socket | None = None
        self._pid = 0
        self._is_refused = False

    def begin(self) -> None:
        """Have the process, if there can be one: what is in memory now is common to workers."""
        if self._pair is not None or self._is_refused or not _is_able():
            return
        try:  # where it fails a worker cannot be made either, which is said then
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError:
            return
        master_pid = os.getpid()
        with theirs:
            try:
                pid, mask = fork()
            except OSError:
                ours.close()
                return
            if pid == 0:
                self._be_it(theirs, master_pid, mask)
        ours.settimeout(_ANSWER_SECONDS)
        self._pair, self._pid = ours, pid
        self._children.watch(pid, lambda _status: self._forget(pid))

    def end(self) -> None:
        """End the process; the next worker needs another one."""
        pid = self._pid
        self._forget(pid)
        if pid:
            self._children.end(pid)

    def _forget(self, pid: int) -> None:
        """This one has gone, or goes; there may be another one by now."""
        if pid == self._pid and self._pair is not None:
            self._pid = 0
            self._pair.close()
            self._pair = None

    def fork_worker(self, context: WorkerContext) -> int:
        """Have a worker forked; return its pid.

        Args:
            context: What it is born with; of all descriptors it keeps those named there.

        Raises:
            OSError: If there can be no further process now.
        """
        self.begin()
        if self._pair is not None:
            words = _write(context)
            if len(words) <= _MAX_CONTEXT_BYTES and len(context.fds) < _MAX_FDS:
                answer = self._ask(self._pair, words, context.fds)
                if answer > 0:
                    return answer
                if -answer in _SHORT:
                    raise OSError(-answer, os.strerror(-answer))
                if answer < 0:
                    self._do_without(os.strerror(-answer))
        return fork_worker(context, self._worker_main, self._maps)

    def _do_without(self, reason: str) -> None:
        logger.warning("the zygote cannot fork ({}), the master does", reason.lower())
        self._is_refused = True
        self.end()

    def _ask(self, pair: socket.socket, words: bytes, fds: Sequence[int]) -> int:
        """Return the pid of a new worker, a negative error number, or 0: the zygote is lost."""
        gate, go = os.pipe2(os.O_CLOEXEC)
        try:
            try:
                socket.send_fds(pair, [words], (gate, *fds))
                answer = int(pair.recv(_ANSWER_BYTES))
            except (OSError, ValueError) as error:
                logger.warning("the zygote is lost ({}), the next worker has another", error)
                self.end()
                return 0
            finally:
                os.close(gate)
            if answer > 0:
                with suppress(BrokenPipeError):  # killed as it was born: its end will be seen
                    os.write(go, _GO)
            return answer
        finally:
            os.close(go)

    # ------------------------------------------------------------------ in the process

    def _be_it(self, pair: socket.socket, master_pid: int, mask: SignalMask) -> NoReturn:
        code = 1
        try:
            unmap(self._maps)
            # A signal to all processes of a group is not for it.
            begin_child(master_pid, (pair.fileno(),), signal.valid_signals())
            point_at(os.open(os.devnull, os.O_RDWR), (0, 1, 2))
            setproctitle(self._title)
            while self._fork_one(pair, mask):
                pass
            code = 0
        finally:
            os._exit(code)

    def _fork_one(self, pair: socket.socket, mask: SignalMask) -> bool:
        """Do as the master asks; return False if it asks no more."""
        # What is done here, and in a child before its keeper is made, touches as little as it
        # can: each page that is written to costs a keeper 4 KB.
        words, rights, flags, _ = pair.recvmsg(_MAX_CONTEXT_BYTES, _FDS_SPACE)
        if not words:
            return False
        fds = memoryview(rights[0][2]).cast("i").tolist() if rights else []
        try:
            # What came short: this process may not have so many descriptors.
            answer = -errno.EMFILE if flags & _CTRUNC else clone(CLONE_PARENT)
        except OSError as error:
            answer = -(error.errno or errno.EAGAIN)
        if answer == 0:
            be_worker(lambda: _read(words, fds), self._worker_main, mask)
        for fd in fds:
            os.close(fd)
        pair.send(b"%d" % answer)
        return True


def _write(context: WorkerContext) -> bytes:
    """Return a line about the keeper, and then all."""
    fd, title, run_as = keeper_of(context)
    uid, gid = run_as or (-1, -1)
    return b"%d %d %d %b\n" % (fd >= 0, uid, gid, title.encode()) + pickle.dumps(context)


def _read(words: bytes, fds: list[int]) -> WorkerContext:
    """Wait for the master's word, in a new worker; return what it is born with."""
    gate, *fds = fds
    if os.read(gate, 1) != _GO:
        os._exit(ExitCode.TEMPORARY)
    line, _, words = words.partition(b"\n")
    is_kept, uid, gid, title = line.split(b" ", 3)
    run_as = (int(uid), int(gid)) if int(uid) >= 0 else None
    keeper_pid = make_keeper(fds[0] if int(is_kept) else -1, title.decode(), run_as)
    context: WorkerContext = pickle.loads(words)  # noqa: S301 - our own master's
    return replace(context.renumbered(fds), keeper_pid=keeper_pid)


def _is_able() -> bool:
    """Whether workers may be made by clone(2), behind the back of the C library.

    glibc asks the kernel who it is whenever it wants to know, since 2.25. musl remembers, and
    its ``abort`` would hit the parent.
    """
    if not HAS_CLONE:
        return False
    try:
        version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")[2]
        return [int(number) for number in version.split(".")[:2]] >= [2, 25]
    except (ValueError, OSError):
        return False
