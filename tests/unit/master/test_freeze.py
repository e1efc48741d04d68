"""Children share what their master has, and where the interpreter can, go on sharing it."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.support.interpreters import missing_glibc, uncounting_pythons
from tests.support.require import require_ability
from tunneltcp.master import freeze as module

pytestmark = pytest.mark.slow

ROOT = Path(module.__file__).parents[2]

LOOK = """
import ctypes, gc, json, os, select, socket, sys
from tunneltcp.master import freeze as module, holes

class Holder:
    pass

def make(number):
    def method():
        return number, f"text {number}"
    return type(f"Class{number}", (), {"method": staticmethod(method)})

many = [make(number) for number in range(3000)]

def look():
    for one in many:
        one.method()

def own_kilobytes():
    with open("/proc/self/smaps_rollup") as lines:
        return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))

look()
holder = Holder()
holder.sock = socket.socket()
holder.fd = holder.sock.fileno()
holder.poll = select.epoll()
holder.poll_fd = holder.poll.fileno()
"""

CHILD = """
reader, writer = os.pipe()
if os.fork() == 0:
    own_kilobytes()
    before = own_kilobytes()
    look()
    os.write(writer, b"%d" % (own_kilobytes() - before))
    os._exit(0)
os.wait()
print(json.dumps([count, int(os.read(reader, 20))]))
"""


def run(python: str, program: str) -> Any:
    """Run a program with another interpreter; return the JSON that it prints."""
    done = subprocess.run(
        [python, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert not done.returncode, done.stderr
    return orjson.loads(done.stdout)


@pytest.fixture
def pythons() -> list[str]:
    found = uncounting_pythons()
    require_ability(None if found else "no Python 3.12 or newer is here")
    return found


def test_a_child_that_only_looks_copies_nothing(pythons: list[str]) -> None:
    for python in pythons:
        count, copied = run(python, f"{LOOK}\ncount = module.freeze()\n{CHILD}")
        assert count > 20_000, python
        assert copied < 600, python  # kilobytes


def test_it_would_copy_all_of_it_if_that_were_counted(pythons: list[str]) -> None:
    for python in pythons:
        program = f"{LOOK}\ngc.collect()\ngc.freeze()\ncount = 0\n{CHILD}"
        assert run(python, program)[1] > 1500, python


def test_what_has_an_end_that_matters_is_counted_on(pythons: list[str]) -> None:
    program = """
module.freeze()
del holder.sock, holder.poll
ends = []
for fd in (holder.fd, holder.poll_fd):
    try:
        os.fstat(fd)
        ends.append("still open")
    except OSError:
        ends.append("closed")
print(json.dumps(ends))
"""
    for python in pythons:
        assert run(python, LOOK + program) == ["closed", "closed"], python


def test_an_interpreter_that_counts_elsewhere_is_left_alone(pythons: list[str]) -> None:
    """The first word of an object is something else, or its mark means nothing."""
    program = """
class Elsewhere(dict):
    def __missing__(self, number):
        return 7

class Meaningless(dict):
    def __missing__(self, number):
        return (ctypes.c_uint32 * module._ADDRESS_WORDS).from_address(0)[number]
    def __getitem__(self, number):
        value = self.__missing__(number)
        return value + self.get(number, 0)
    def __setitem__(self, number, value):
        super().__setitem__(number, 1)

print(json.dumps([module._immortal_count(Elsewhere()), module._immortal_count(Meaningless())]))
"""
    for python in pythons:
        assert run(python, LOOK + program) == [None, None], python


def test_before_that_nothing_is_done_but_to_freeze() -> None:
    count, frozen = run(
        sys.executable,
        "import gc\n" + LOOK + "print(json.dumps([module.freeze(), gc.get_freeze_count()]))",
    )
    assert frozen > 5000
    assert (count > 0) == (sys.version_info[:2] >= (3, 12))


def test_the_collector_is_as_it_was() -> None:
    enabled = gc.isenabled()
    program = "gc.disable(); module.freeze(); print(json.dumps(gc.isenabled()))"
    assert run(sys.executable, LOOK + program) is False
    program = "module.freeze(); print(json.dumps(gc.isenabled()))"
    assert run(sys.executable, LOOK + program) is True
    assert gc.isenabled() == enabled


def test_large_blocks_of_a_child_go_back_when_they_are_freed(pythons: list[str]) -> None:
    """Each has pages of its own; the walk itself frees larger ones, which glibc remembers."""
    program = """
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
        "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]
mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = Info
module.freeze()
before = mallinfo().hblks
block = bytearray(1_000_000)
print(json.dumps(mallinfo().hblks - before))
"""
    require_ability(missing_glibc())
    for python in [*pythons, sys.executable]:
        assert run(python, LOOK + program) == 1, python


def test_nothing_of_the_walk_itself_stays(pythons: list[str]) -> None:
    program = """
before = sys.getallocatedblocks()
module.freeze()
fillers = sum(map(len, holes._fillers))
print(json.dumps(sys.getallocatedblocks() - before - fillers))
"""
    for python in pythons:
        assert run(python, LOOK + program) < 1000, python
