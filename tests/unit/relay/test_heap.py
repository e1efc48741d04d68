"""Memory that was freed is given back once nothing moves any more."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.support.require import require_ability
from tunneltcp.relay.heap import _TRIM, BUSY_CALLS, Heap

HOLES = """
import os
from tunneltcp.relay.heap import Heap

def own():
    with open("/proc/self/smaps_rollup") as lines:
        return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))

heap = Heap()
many = [bytes(3000) for _ in range(20_000)]
busy = own()
many = many[::100]  # so none of it is at the end
heap.tidy(1)
kept = own()
heap.tidy(1)
print(busy, kept, own())
"""


def test_it_is_given_back_once_when_all_is_quiet() -> None:
    calls: list[int] = []
    heap = Heap(calls.append)
    seen = []
    for moved in (0, 0, 5, 9, 9, 9, 9, 10, 10, 10):
        heap.tidy(moved)
        seen.append(len(calls))
    assert seen == [1, 1, 1, 1, 2, 2, 2, 2, 3, 3]
    # The first is what the start and the handshake left.


def test_where_it_is_never_quiet_it_is_given_back_now_and_then() -> None:
    calls: list[int] = []
    heap = Heap(calls.append)
    for moved in range(1, 3 * BUSY_CALLS + 1):
        heap.tidy(moved)
    assert len(calls) == 3
    for _ in range(BUSY_CALLS):
        heap.tidy(3 * BUSY_CALLS)
    assert len(calls) == 3, "nothing has moved since"


def test_without_such_a_library_nothing_happens() -> None:
    heap = Heap(None)
    heap.tidy(1)
    heap.tidy(1)


def test_what_lies_between_objects_that_stay_goes_back_too() -> None:
    require_ability(None if _TRIM else "no malloc_trim")
    done = subprocess.run(
        [sys.executable, "-c", HOLES],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    busy, kept, left = map(int, done.stdout.split())
    assert busy > 60_000  # kilobytes
    assert kept > busy * 0.8
    assert left < busy * 0.5
