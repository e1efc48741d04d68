"""What children make lies side by side, and not in the gaps of what they share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.interpreters import missing_glibc
from tests.support.require import require_ability
from tunneltcp.master import holes as module

pytestmark = pytest.mark.slow

ROOT = Path(module.__file__).parents[2]

HOLES = """
import ctypes, os
from tunneltcp.master import holes

def own_kilobytes():
    with open("/proc/self/smaps_rollup") as lines:
        return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))

old = [bytes(size) for _ in range(80_000)]
some = [None] * 2000
del old[::32]
"""

CHILD = """
if os.fork() == 0:
    own_kilobytes()
    before = own_kilobytes()
    for number in range(len(some)):
        some[number] = bytes(size)
    print(own_kilobytes() - before, flush=True)
    os._exit(0)
os.wait()
"""


def run(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


@pytest.mark.parametrize("size", [0, 31, 200, 700])
def test_what_a_child_makes_goes_where_nothing_is(size: int) -> None:
    """Else each new object would copy a page of four thousand bytes that was shared."""
    if size > module._SMALL_BYTES:
        require_ability(missing_glibc())
    begin = f"size = {size}{HOLES}"
    fresh_kilobytes = 2000 * (size + 60) / 1000
    copied = int(run(f"{begin}holes.fill_holes(){CHILD}"))
    assert copied < 1.3 * fresh_kilobytes + 200
    if size == 31:  # the larger they are, the fewer lie in one page
        assert int(run(begin + CHILD)) > 2 * copied


def test_the_heap_has_no_more_left_than_its_end() -> None:
    require_ability(missing_glibc())
    program = """
libc = ctypes.PyDLL(None)
libc.mallinfo2.restype = holes._HeapInfo
def free():
    info = libc.mallinfo2()
    print(info.fordblks - info.keepcost)
free()
holes.fill_holes()
free()
"""
    before, after = map(int, run(f"size = 700{HOLES}{program}").split())
    assert before > 1_000_000
    assert after < 50_000


def test_another_c_library_is_left_alone() -> None:
    class Musl:
        pass

    module._fill_heap(Musl())  # type: ignore[arg-type]
