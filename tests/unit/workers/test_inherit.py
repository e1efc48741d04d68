"""A worker dies; its keeper has what it had, and gives it away, to one after the other."""

from __future__ import annotations

import gc
import os
import signal
import socket
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.leaks import adopt_orphans, end_orphan
from tests.support.wait import wait_until
from tunneltcp.net.keeper import start_keeper
from tunneltcp.net.sockopt import cookie
from tunneltcp.workers.inherit import inherit


class Worker:
    """A process that accepts and tells nobody, with a keeper of its own."""

    def __init__(self, visitors: int) -> None:
        self.pair, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        reader, writer = os.pipe()
        listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.pid = os.fork()  # noqa: TID251 - a process that can be killed
        if self.pid == 0:
            self._work(listener, theirs, writer, visitors)
        theirs.close()
        os.close(writer)
        self.visitors = [
            socket.create_connection(listener.getsockname(), 5) for _ in range(visitors)
        ]
        self.keeper = int(os.read(reader, 20))
        assert os.read(reader, 1) == b"!", "it has accepted them all"
        os.close(reader)
        listener.close()

    def _work(self, listener, theirs, writer, visitors):
        try:
            # Garbage of the tests before would close numbers that are visitors here.
            gc.disable()
            # A port that this process of tests has reserved is none of the worker's.
            close_all_but(listener.fileno(), theirs.fileno(), writer)
            os.write(writer, b"%d" % start_keeper(theirs.fileno(), "a keeper"))
            kept = [listener.accept()[0] for _ in range(visitors)]
            with socket.socket() as other:  # closed in time: nobody is to have it
                other.connect(listener.getsockname())
            os.write(writer, b"!")
            while kept:
                signal.pause()
        finally:
            os._exit(1)

    def reap_keeper(self) -> int:
        """Wait for the end of the keeper; say how it ended."""
        pid, self.keeper = self.keeper, 0
        return os.waitpid(pid, 0)[1]

    def die(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def close(self) -> None:
        for visitor in self.visitors:
            visitor.close()
        self.pair.close()
        if self.keeper:  # only then the pid is still its own
            os.kill(self.keeper, signal.SIGKILL)
            self.reap_keeper()


def close_all_but(*kept: int) -> None:
    start = 3
    for fd in [*sorted(kept), 1 << 16]:
        os.closerange(start, fd)
        start = fd + 1


@pytest.fixture
def worker():
    running = Worker(300)
    yield running
    running.close()


@pytest.fixture
def take_from():
    """Inherit, and close all that a test that fails has not closed."""
    taken: list[socket.socket] = []

    def take(worker: Worker):
        found = inherit([os.dup(worker.pair.fileno())])
        taken.extend(found.values())
        return found

    yield take
    for sock in taken:
        sock.close()


def test_all_is_there_and_ours_alone(worker, take_from):
    worker.die()
    found = take_from(worker)
    ours = {sock.getpeername() for sock in found.values()}
    assert ours == {visitor.getsockname() for visitor in worker.visitors}
    assert all(cookie(sock) == name for name, sock in found.items())
    for sock in found.values():
        sock.close()
    for visitor in worker.visitors:  # a close is a close at once: nobody else has them
        visitor.setblocking(False)
        assert visitor.recv(1) == b""
    assert worker.reap_keeper() == 0


def test_who_asks_and_dies_leaves_all_to_the_next(worker, take_from):
    worker.die()
    # What a successor asked for and did not take is still there, and so are the connections.
    worker.pair.send(b"4711")
    worker.pair.send(b"4712")
    found = take_from(worker)
    assert len(found) == 300
    for sock in found.values():
        sock.close()
    assert worker.reap_keeper() == 0


def test_without_a_keeper_there_is_nothing(worker, take_from):
    os.kill(worker.keeper, signal.SIGKILL)
    worker.reap_keeper()
    worker.die()
    assert take_from(worker) == {}
    for visitor in worker.visitors:
        with suppress(ConnectionResetError):
            assert visitor.recv(1) == b""


def test_it_ends_with_its_master(worker):
    worker.die()
    worker.pair.close()
    wait_until(lambda: os.waitid(os.P_PID, worker.keeper, os.WEXITED | os.WNOHANG | os.WNOWAIT))
    assert worker.reap_keeper() == 0


def test_a_keeper_that_is_stopped_ends_with_its_master_all_the_same():
    """It would hold the port of the next master for ever."""
    adopt_orphans()
    reader, writer = os.pipe2(os.O_CLOEXEC)
    master = os.fork()  # noqa: TID251 - a process that can be killed
    if master == 0:
        try:
            _ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            if os.fork() == 0:  # noqa: TID251 - its worker
                os.write(writer, b"%d" % start_keeper(theirs.fileno(), "a keeper of none"))
                os._exit(0)
            signal.pause()
        finally:
            os._exit(1)
    os.close(writer)
    keeper = int(os.read(reader, 20))
    wait_until(lambda: b"of none" in Path(f"/proc/{keeper}/cmdline").read_bytes())
    os.kill(keeper, signal.SIGSTOP)
    os.kill(master, signal.SIGKILL)
    os.waitpid(master, 0)
    try:
        wait_until(lambda: os.waitid(os.P_PID, keeper, os.WEXITED | os.WNOHANG | os.WNOWAIT))
    finally:
        end_orphan(keeper)
    os.close(reader)
