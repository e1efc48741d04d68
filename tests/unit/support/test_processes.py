from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.control import ask_status
from tests.support.processes import Master, alive

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def master(tmp_path: Path) -> Master:
    """Not started, with logs as an earlier run might have left them."""
    made = Master("server", [], tmp_path)
    made.run_dir.rmdir()
    made.log_dir.mkdir()
    return made


@pytest.mark.parametrize(
    "line",
    [
        "2026-01-01T00:00:00.000+00:00 ERROR boom",
        "2026-01-01T00:00:00.000+00:00 CRITICAL boom",
        "Traceback (most recent call last):",
        "  | ValueError: boom",
    ],
)
def test_a_log_that_complains_is_a_failure_unless_it_was_allowed(
    master: Master, line: str
) -> None:
    (master.log_dir / "master.log").write_text(f"x INFO  fine\n{line}\n")
    with pytest.raises(AssertionError, match="complains"):
        master.check_logs()

    master.allowed.append("boom|Traceback")
    master.check_logs()


def test_complaints_on_standard_error_count_too(master: Master) -> None:
    master.stderr_path.write_text("Traceback (most recent call last):\n")
    with pytest.raises(AssertionError, match="complains"):
        master.check_logs()


def test_warnings_are_no_complaint(master: Master) -> None:
    (master.log_dir / "tunnel-1.log").write_text("x WARNING no link: refused\n")

    master.check_logs()


def test_a_master_that_does_not_answer_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        ask_status(tmp_path)


def test_a_zombie_is_not_alive() -> None:
    assert alive(os.getpid())
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not alive(child.pid)
    child.wait()
    assert not alive(child.pid)
