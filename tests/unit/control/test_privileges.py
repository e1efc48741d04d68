"""What a process gives up, seen from inside and by how it ends."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import pytest

CHILD = """
import ctypes, os, resource, signal, sys
from tunneltcp.control.privileges import become, protect_process

resource.setrlimit(resource.RLIMIT_CORE, (resource.getrlimit(resource.RLIMIT_CORE)[1],) * 2)
if "unlimited" in sys.argv:  # as good as none: where cores go to a program it does not count
    resource.setrlimit = lambda *_: None
if "protect" in sys.argv:
    protect_process()
if "become" in sys.argv:
    os.setgroups([4, 6])
    become(65534, 65534)
    for back in (os.setuid, os.setgid, lambda _: os.setgroups([0])):
        try:
            back(0)
        except PermissionError:
            continue
        sys.exit("there is a way back")
libc = ctypes.CDLL(None)
print(libc.prctl(3, 0, 0, 0, 0), libc.prctl(39, 0, 0, 0, 0),
      *resource.getrlimit(resource.RLIMIT_CORE), os.getuid(), os.getgroups(), flush=True)
if "crash" in sys.argv:
    os.kill(os.getpid(), signal.SIGSEGV)
"""

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may")


def run(folder, *words) -> tuple[str, int]:
    """What a child says, and how it ended."""
    reader, writer = os.pipe()
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, "-c", CHILD, *words],
        {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        file_actions=[(os.POSIX_SPAWN_DUP2, writer, 1)],
    )
    os.close(writer)
    with open(reader) as said:  # noqa: PTH123 - a descriptor
        text = said.read().strip()
    return text, os.waitpid(pid, 0)[1]


@pytest.fixture(autouse=True)
def _cores_go_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_no_core_no_debugger_no_new_rights(tmp_path):
    said, status = run(tmp_path, "protect", "crash")
    assert said.startswith("0 1 0 0 ")
    assert os.WTERMSIG(status) == 11
    assert not os.WCOREDUMP(status)


def test_no_core_where_the_limit_does_not_count(tmp_path):
    said, status = run(tmp_path, "protect", "unlimited", "crash")
    assert said.startswith("0 1 ")
    assert not said.startswith("0 1 0 ") or resource.getrlimit(resource.RLIMIT_CORE)[1] == 0
    assert not os.WCOREDUMP(status)
    assert list(tmp_path.iterdir()) == []


@as_root
def test_another_user_has_no_way_back_and_is_not_dumpable_either(tmp_path):
    said, status = run(tmp_path, "become", "crash")
    assert said == "0 1 0 0 65534 []", "changing the user had made it dumpable again"
    assert not os.WCOREDUMP(status)


def test_become_says_that_it_may_not():
    code = """
import os
from tunneltcp.control.privileges import become
if os.getuid() == 0:
    become(65534, 65534)
try:
    become(65533, 65533)
except PermissionError:
    print("told")
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.stdout == "told\n", done.stderr
