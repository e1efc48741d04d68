"""Workers come from a process that does nothing else, and come without it too."""

from __future__ import annotations

import errno
import os
import pickle
import resource
import signal
import socket
import ssl
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_master import _context
from tests.support.leaks import Snapshot, adopt_orphans, children, zygote_of
from tests.support.ports import free_port
from tests.support.processes import alive
from tests.support.wait import wait_until
from tests.unit.master.conftest import visit
from tunneltcp.config.model import TunnelConfig
from tunneltcp.control.context import AllowedNetworks, Role, WorkerContext
from tunneltcp.errors import ExitCode
from tunneltcp.master import children as children_module
from tunneltcp.master import zygote as module
from tunneltcp.master.children import Children
from tunneltcp.master.zygote import Zygote
from tunneltcp.net.loop import Loop


def tell(context: WorkerContext) -> int:
    """A worker that says what it was born with, and holds it until its channel ends."""
    channel = socket.socket(fileno=context.channel_fd)
    inodes = [os.fstat(fd).st_ino for fd in context.fds]
    blocked = set(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
    channel.send(pickle.dumps((os.getppid(), inodes, context, ssl.RAND_bytes(16), blocked)))
    channel.recv(1)
    return 0


@dataclass
class Nursery:
    """A zygote in a process of tests, and what its workers are given."""

    zygote: Zygote
    loop: Loop
    context: WorkerContext
    channel: socket.socket
    numbers: list[bytes] = field(default_factory=list)
    blocked: set[signal.Signals] = field(default_factory=set)
    """The signals that the last worker does not hear."""

    def turn(self) -> bool:
        self.loop.turn(wait=False)
        return True

    def bear(self, **settings: Any) -> tuple[int, list[int], WorkerContext]:
        """Have a worker; return its parent, its descriptors' inodes, and its context."""
        pid = self.zygote.fork_worker(replace(self.context, **settings))
        try:
            *told, number, self.blocked = pickle.loads(self.channel.recv(99_999))
            self.numbers.append(number)
            return tuple(told)
        finally:
            self.channel.send(b"!")
            assert os.waitpid(pid, 0)[1] == 0


@pytest.fixture
def nursery(tmp_path):
    loop = Loop()
    children_ = Children(loop)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(10)
    memories = [os.memfd_create(f"memory-{number}") for number in range(6)]
    context = _context(
        Role.SERVER,
        60001,
        log_path=tmp_path / "worker.log",
        channel_fd=theirs.fileno(),
        counters_fd=memories[0],
        memory_fd=memories[1],
        certificate_fd=memories[2],
        listener_fds=(memories[3], memories[4]),
        old_keeper_fds=(memories[5],),
        networks=AllowedNetworks(allow=("10.0.0.0/8",)),
        verify=Path("ca.pem"),
    )
    zygote = Zygote(children_, tell, [], Role.SERVER, "test")
    yield Nursery(zygote, loop, context, ours)
    zygote.end()
    loop.close()
    for fd in memories:
        os.close(fd)
    ours.close()
    theirs.close()


def test_a_worker_is_born_with_all_of_its_context_and_is_ours(nursery):
    ssl.RAND_bytes(16)  # so that there is something to inherit
    nursery.zygote.begin()
    it = zygote_of(os.getpid())
    for _ in range(3):
        parent, inodes, context = nursery.bear()
        assert parent == os.getpid()
        assert inodes == [os.fstat(fd).st_ino for fd in nursery.context.fds]
        assert context == nursery.context.renumbered(context.fds)
    assert zygote_of(os.getpid()) == it, "one for all of them"
    assert len(set(nursery.numbers)) == 3, "the secrets of one are no other's"


def test_the_zygote_itself_holds_nothing_of_ours(nursery):
    nursery.zygote.begin()
    nursery.bear()
    folder = Path(f"/proc/{zygote_of(os.getpid())}/fd")
    links = wait_until(lambda: [fd.readlink() for fd in folder.iterdir()])
    assert sorted(str(link)[:6] for link in links) == ["/dev/n"] * 3 + ["socket"]


def test_without_a_zygote_a_worker_comes_all_the_same(nursery, monkeypatch):
    monkeypatch.setattr(module, "_is_able", lambda: False)
    parent, inodes, _ = nursery.bear()
    assert parent == os.getpid()
    assert inodes == [os.fstat(fd).st_ino for fd in nursery.context.fds]
    assert not nursery.zygote._pid


def test_a_context_that_is_too_long_for_it_is_taken_by_us(nursery, monkeypatch):
    monkeypatch.setattr(module, "_MAX_CONTEXT_BYTES", 100)
    assert nursery.bear()[2].networks.allow == ("10.0.0.0/8",)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_one_that_is_lost_is_replaced(nursery, monkeypatch, number):
    """Killed, also before anybody has seen it; or stopped, and then it never forks again."""
    with monkeypatch.context() as patch:
        patch.setattr(module, "_ANSWER_SECONDS", 0.2)  # its alone
        nursery.zygote.begin()
    lost = zygote_of(os.getpid())
    os.kill(lost, number)
    assert nursery.bear()[0] == os.getpid()
    assert lost not in children(os.getpid()), "reaped"
    assert nursery.bear()[0] == os.getpid()
    assert zygote_of(os.getpid()) != lost


def test_the_master_waits_for_the_end_of_a_lost_one_no_longer_than_that(nursery, monkeypatch):
    """A process that sits in the kernel: it is reaped when it goes, and its successor stays."""
    nursery.zygote.begin()
    lost = zygote_of(os.getpid())
    os.kill(lost, signal.SIGSTOP)
    with monkeypatch.context() as patch:
        patch.setattr(children_module, "END_SECONDS", 0.1)
        patch.setattr(Children, "kill", lambda *_: None)  # it does not go
        nursery.zygote.end()
    assert nursery.bear()[0] == os.getpid()
    its_successor = nursery.zygote._pid
    assert its_successor not in (0, lost)
    os.kill(lost, signal.SIGKILL)
    wait_until(lambda: nursery.turn() and lost not in children(os.getpid()))
    nursery.bear()
    assert nursery.zygote._pid == its_successor


def test_one_whose_end_was_seen_is_replaced(nursery):
    nursery.zygote.begin()
    lost = zygote_of(os.getpid())
    os.kill(lost, signal.SIGKILL)
    wait_until(lambda: nursery.turn() and lost not in children(os.getpid()))
    nursery.bear()
    assert zygote_of(os.getpid()) != lost


def test_a_worker_whose_master_does_not_know_it_touches_nothing(nursery):
    """The zygote was lost between the fork and its answer."""
    adopt_orphans()
    nursery.zygote.begin()
    pair: Any = nursery.zygote._pair
    gate, go = os.pipe2(os.O_CLOEXEC)
    socket.send_fds(pair, [module._write(nursery.context)], (gate, *nursery.context.fds))
    os.close(gate)
    pid = int(pair.recv(32))
    assert os.waitpid(pid, os.WNOHANG) == (0, 0), "it waits"
    os.close(go)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == ExitCode.TEMPORARY
    nursery.channel.settimeout(0.0)
    with pytest.raises(BlockingIOError):
        nursery.channel.recv(1)


def test_there_can_be_no_process(nursery, monkeypatch):
    def refuse(_flags):
        raise BlockingIOError(errno.EAGAIN, "no")

    monkeypatch.setattr(module, "clone", refuse)  # in the zygote, which is yet to be made
    nursery.zygote.begin()
    it = zygote_of(os.getpid())
    with pytest.raises(BlockingIOError, match=os.strerror(errno.EAGAIN)):
        nursery.zygote.fork_worker(nursery.context)
    assert zygote_of(os.getpid()) == it, "that is no reason for another one"


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EPERM])
def test_where_a_zygote_may_not_fork_the_master_does(nursery, monkeypatch, number):
    """As in an emulator that knows no CLONE_PARENT."""

    def refuse(_flags):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(module, "clone", refuse)
    before = children(os.getpid())
    for _ in range(2):
        assert nursery.bear()[0] == os.getpid()
        assert children(os.getpid()) == before, "and has no zygote for it any more"


@pytest.mark.parametrize("limit", [5, 8])
def test_a_zygote_without_room_for_all_descriptors(nursery, limit):
    """None of them, or some: a worker never begins with a part."""
    nursery.zygote.begin()
    resource.prlimit(zygote_of(os.getpid()), resource.RLIMIT_NOFILE, (limit, limit))
    for _ in range(2):
        parent, inodes, _ = nursery.bear()
        assert parent == os.getpid()
        assert inodes == [os.fstat(fd).st_ino for fd in nursery.context.fds]


@pytest.mark.parametrize("is_able", [True, False])
def test_a_worker_hears_what_its_master_held_back(nursery, monkeypatch, is_able):
    """The code that an upgrade brings begins with these signals blocked."""
    monkeypatch.setattr(module, "_is_able", lambda: is_able)
    held = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*held, signal.SIGUSR2})
    try:
        nursery.bear()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert nursery.blocked == {*before, signal.SIGUSR2} - held


def test_a_thousand_workers_leave_no_descriptor_behind(nursery):
    nursery.bear()
    ours = Snapshot.take()
    folder = Path(f"/proc/{zygote_of(os.getpid())}/fd")
    wait_until(lambda: len(list(folder.iterdir())) == 4)
    for _ in range(1000 if os.environ.get("LONG_TESTS") else 20):
        nursery.bear()
    assert not ours.new_descriptors()
    assert len(list(folder.iterdir())) == 4


@pytest.mark.parametrize(
    ("libc", "is_able"),
    [("glibc 2.24", False), ("glibc 2.25", True), ("glibc 2.36.9000", True), (None, False)],
)
def test_who_remembers_his_own_pid_is_not_cloned(monkeypatch, libc, is_able):
    monkeypatch.setattr(module, "HAS_CLONE", True)
    monkeypatch.setattr(os, "confstr", lambda _name: libc)
    assert module._is_able() == is_able


def test_it_ends_with_its_master(start_master):
    port = free_port()
    master = start_master(TunnelConfig(remote_port=port, name="good"))
    master.wait_ready()
    it, first = zygote_of(master.pid), visit(port)
    os.kill(it, signal.SIGTERM)  # as to all processes of a group
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: master.wait_state("running")["pid"] != first)
    assert visit(port) != first
    assert zygote_of(master.pid) == it
    master.kill(signal.SIGKILL)
    master.wait_left()
    wait_until(lambda: not alive(it), 5)
