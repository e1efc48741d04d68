"""The system has nothing left for a while: the master lives, says so, and tries again."""

from __future__ import annotations

import ctypes
import errno
import os
import resource

import pytest

from tests.support.ports import free_port
from tests.support.wait import wait_until
from tests.unit.master.conftest import visit
from tunneltcp.config.model import TunnelConfig
from tunneltcp.master import spawn
from tunneltcp.net import clone


class _NoFork:
    """The C library, whose fork and clone fail while a file is there."""

    def __init__(self, real, path, number):
        self._real, self._path, self._number = real, path, number

    def __getattr__(self, name):
        return getattr(self._real, name)

    def fork(self):
        if not self._path.exists():
            return self._real.fork()
        ctypes.set_errno(self._number)
        return -1

    def syscall(self, *arguments):
        return self.fork() if self._path.exists() else self._real.syscall(*arguments)


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOMEM])
def test_no_process_is_to_be_had(start_master, tmp_path, monkeypatch, number):
    """For the successor of one worker, and for a helper; others serve on."""
    shortage = tmp_path / "shortage"

    def prepare():
        for module in (spawn, clone):
            library = _NoFork(module._libc, shortage, number)
            monkeypatch.setattr(module, "_libc", library)  # in the child alone

    ports = [free_port(), free_port()]
    master = start_master(
        *(TunnelConfig(remote_port=port, name=f"good-{port}") for port in ports),
        prepare=prepare,
    )
    master.wait_ready()
    other = visit(ports[1])
    shortage.touch()
    os.kill(master.tunnel(0)["pid"], 9)
    reason = f"cannot start a process: {os.strerror(number).lower()}"
    wait_until(lambda: reason in (master.tunnel(0)["reason"] or ""), 5)
    assert master.tunnel(0)["state"] == "backoff"
    assert master.tunnel(0)["restarts"] == 0
    assert visit(ports[1]) == other
    assert f"waiting: {reason}" in master.log()
    shortage.unlink()
    assert visit(ports[0]) > 0, "who came meanwhile has waited"
    assert master.wait_state("running")["restarts"] == 1


def test_no_descriptor_is_left(start_master):
    """A real limit, so low that nothing can be opened; what is open stays open."""
    ports = [free_port(), free_port()]
    master = start_master(
        *(TunnelConfig(remote_port=port, name=f"good-{port}") for port in ports)
    )
    master.wait_ready()
    killed, other = (master.tunnel(number)["pid"] for number in (0, 1))
    limits = resource.prlimit(master.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(master.pid, resource.RLIMIT_NOFILE, (4, limits[1]))
    try:
        os.kill(killed, 9)
        wait_until(lambda: "cannot start a process: too many open files" in master.log(), 5)
        assert visit(ports[1]) == other
        assert not master.has_left()
    finally:
        resource.prlimit(master.pid, resource.RLIMIT_NOFILE, limits)
    assert visit(ports[0]) not in (killed, other), "who came meanwhile has waited"
    master.wait_ready()
    assert master.tunnel(1)["pid"] == other
