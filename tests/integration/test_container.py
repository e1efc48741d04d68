"""A master as process 1 of a container: no engine, but the kernel's own parts of one.

New process and mount namespaces, a read-only root, a user without any right: what an engine
would give it. The image itself is not built here; ``test_dockerfile.py`` reads how.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
import pytest

from tests.support.control import ask_status
from tests.support.leaks import children
from tests.support.ports import free_port
from tests.support.require import require_program, require_root
from tests.support.service import ROOT
from tests.support.sockets import connect
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.slow, pytest.mark.needs_root]

USER = "10001"
"""As in the Dockerfile."""

START = f"""\
mount --bind "$1" "$1" && mount -o remount,bind,ro / && cd / &&
exec setpriv --reuid {USER} --regid {USER} --clear-groups --no-new-privs --bounding-set=-all \
  "$2" -m tunneltcp.master --role server --config "$1/server.json" --run-dir "$1/run/master" \
  --state-dir "$1/state" --log-dir "$1/log"
"""


class Container:
    """A running one; its volumes are in one folder."""

    def __init__(self, folder: Path, port: int, process: subprocess.Popen[bytes]) -> None:
        self.folder = folder
        self.port = port
        self.process = process

    @property
    def pid(self) -> int:
        """Of the master, seen from here."""
        (pid,) = children(self.process.pid)
        return pid

    def answers(self) -> bool:
        if self.process.poll() is not None:
            raise RuntimeError(f"it ended: {self.said()}")
        try:
            return bool(ask_status(self.folder / "run/master"))
        except OSError:
            return False

    def said(self) -> str:
        return (self.folder / "output.txt").read_text()

    def log(self) -> str:
        return (self.folder / "log/master.log").read_text()


@contextmanager
def container() -> Iterator[Container]:
    require_root()
    unshare = require_program("unshare")
    require_program("setpriv")
    # The path of a socket may have 107 bytes, and the folder of a test has a long name.
    folder = Path(tempfile.mkdtemp(prefix="tt-container-"))
    port = free_port()
    (folder / "server.json").write_bytes(orjson.dumps([{"remote_port": port}]))
    (folder / "run").mkdir()
    (folder / "output.txt").touch()
    for path in (folder, *folder.iterdir()):
        os.chown(path, int(USER), int(USER))
    words = ["--pid", "--fork", "--mount", "--mount-proc"]
    with (folder / "output.txt").open("ab") as output:
        process = subprocess.Popen(
            [unshare, *words, "sh", "-c", START, "sh", folder, sys.executable],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        )
    try:
        running = Container(folder, port, process)
        wait_until(running.answers, 15, running.said)
        yield running
    finally:
        for pid in children(process.pid):  # with process 1 all in there is over
            os.kill(pid, signal.SIGKILL)
        process.wait(10)
        shutil.rmtree(folder)


def test_it_runs_as_nobody_with_a_read_only_root() -> None:
    with container() as running:
        status = Path(f"/proc/{running.pid}/status").read_text()
        assert "\nNSpid:\t" in status
        assert status.partition("\nNSpid:\t")[2].split("\n")[0].split()[-1] == "1"
        assert f"\nUid:\t{USER}\t" in status
        assert "\nCapEff:\t0000000000000000\n" in status
        connect(running.port).close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_process_1_handles_the_signals_that_stop_it(number: int) -> None:
    """The kernel drops signals to process 1 that it has no handler for."""
    with container() as running:
        os.kill(running.pid, number)
        assert running.process.wait(10) == 0
        assert "stopping" in running.log()


def test_process_1_survives_a_hangup() -> None:
    with container() as running:
        os.kill(running.pid, signal.SIGHUP)
        wait_until(lambda: running.log().count("\n") > 2, 5)
        assert running.answers()


def test_process_1_reaps_what_is_orphaned() -> None:
    with container() as running:
        master = running.pid
        mine = children(master)
        enter = [require_program("nsenter"), "-t", str(master), "-p"]
        subprocess.run(
            [*enter, "sh", "-c", "(sleep 0.2 & sleep 0.2 &)"], check=True, timeout=10
        )
        wait_until(lambda: "not ours" in running.log(), 10, running.log)
        wait_until(lambda: children(master) == mine, 5, "orphans are reaped")


def test_with_process_1_all_is_over() -> None:
    with container() as running:
        family = children(running.pid)
        assert family
        os.kill(running.pid, signal.SIGKILL)
        running.process.wait(5)
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in family), 5)
