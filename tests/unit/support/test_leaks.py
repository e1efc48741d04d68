from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests.support.leaks import Snapshot, children, descendants, end_orphan
from tests.support.wait import wait_until


def test_nothing_new_is_fine() -> None:
    Snapshot.take().check()


def test_a_descriptor_left_open_is_found() -> None:
    before = Snapshot.take()
    reader, writer = os.pipe()
    os.close(reader)
    with pytest.raises(AssertionError, match="descriptors left open"):
        before.check()
    os.close(writer)
    before.check()


def test_a_child_left_behind_is_named_and_ended() -> None:
    before = Snapshot.take()
    child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    with pytest.raises(AssertionError, match=r"processes left behind: .*signal\.pause"):
        before.check(timeout=0)
    child.wait()
    before.check()


@pytest.mark.slow
def test_a_grandchild_whose_parent_died_comes_to_us() -> None:
    start = "subprocess.Popen(['sleep', '60'])"
    code = f"import subprocess; print({start}.pid, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        orphan = int(child.stdout.readline())
        assert orphan in descendants(os.getpid())
        assert orphan not in children(os.getpid())
        child.send_signal(signal.SIGKILL)
        child.wait()
    wait_until(lambda: orphan in children(os.getpid()))
    end_orphan(orphan)

    assert orphan not in children(os.getpid())
