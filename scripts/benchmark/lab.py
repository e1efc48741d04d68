"""Processes, ports and folders of a run; whatever ends it, nothing is left behind."""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType

__all__ = ["ROOT", "BenchError", "Lab", "Program", "find_program", "pause", "wait_for"]

ROOT = Path(__file__).resolve().parents[2]
"""The repository."""

START_SECONDS = 20.0
"""Until a program that was started listens; usually well under one."""

STOP_SECONDS = 8.0
"""From TERM until a program is killed: longer than our drain."""

PR_SET_PDEATHSIG = 1
"""From <sys/prctl.h>: the signal to get when the parent dies."""

LISTEN = "0A"
"""The state of a listening socket in /proc/net/tcp."""

FIRST_PORT = 20_000
"""Our ports are from here up to those that the kernel takes for outgoing connections."""

T = TypeVar("T")
libc = ctypes.CDLL(None)


class BenchError(Exception):
    """Something could not be measured, in a sentence."""


def pause(seconds: float) -> None:
    """Let time pass: the one place that sleeps."""
    time.sleep(seconds)  # noqa: TID251 - a bench lets load run for a while


def wait_for(condition: Callable[[], T], seconds: float, what: str) -> T:
    """Return the first true value of ``condition``.

    Raises:
        BenchError: If it did not come true in time.
    """
    deadline = time.monotonic() + seconds
    while True:
        if value := condition():
            return value
        if time.monotonic() > deadline:
            raise BenchError(f"not within {seconds:g} s: {what}")
        pause(0.005)


def find_program(name: str, *folders: Path) -> str | None:
    """The path of a program, also where Debian keeps what only root needs."""
    search = [*map(str, folders), os.environ.get("PATH", os.defpath)]
    return shutil.which(
        name, path=os.pathsep.join([*search, "/usr/local/sbin:/usr/sbin:/sbin"])
    )


class Program:
    """A program in the foreground whose output goes to a file."""

    def __init__(
        self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str]
    ) -> None:
        self.name = name
        self.log = log
        self._family: list[psutil.Process] = []
        """When it was asked to end: what must not outlive it."""
        with log.open("ab") as output:
            # Ctrl-C is for us alone; our death is for it too.
            self.process: subprocess.Popen[bytes] = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM),
                cwd=ROOT,
                env=environment,
            )

    def tell(self, line: str) -> None:
        """Write a line to its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def family(self) -> list[psutil.Process]:
        """The program and all below it."""
        try:
            process = psutil.Process(self.process.pid)
            return [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def listens(self, port: int) -> bool:
        """Whether somebody listens at ``port`` in its network.

        Raises:
            BenchError: If the program has ended; with the end of its output.
        """
        self.check()
        wanted = f":{port:04X}"
        for table in ("tcp", "tcp6"):
            with suppress(OSError):
                for line in (
                    Path(f"/proc/{self.process.pid}/net/{table}").read_text().splitlines()
                ):
                    words = line.split()
                    if words[3] == LISTEN and words[1].endswith(wanted):
                        return True
        return False

    def check(self) -> None:
        """Raise BenchError if it has ended."""
        if (code := self.process.poll()) is not None:
            raise BenchError(f"{self.name} ended with {code}: {self.output()}")

    def wait_listening(self, port: int, where: Program | None = None) -> None:
        """Wait until somebody listens at ``port``, in our network or in that of ``where``."""
        looker = where or self

        def is_there() -> bool:
            self.check()
            return looker.listens(port)

        try:
            wait_for(is_there, START_SECONDS, f"{self.name} opens port {port}")
        except BenchError as error:
            raise BenchError(f"{error}; it said: {self.output()}") from None

    def output(self) -> str:
        """The end of what it said."""
        return self.log.read_text(errors="replace").strip()[-600:]

    def terminate(self) -> None:
        """Ask it to end."""
        if not self._family:
            self._family = self.family()
        if self.process.stdin is not None:
            with suppress(OSError):
                self.process.stdin.close()
        if self.process.poll() is None:
            self.process.terminate()

    def stop(self) -> None:
        """TERM, and after a while KILL; also for what it started."""
        self.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_SECONDS)
        for process in self._family:
            with suppress(psutil.Error):
                process.kill()
        self.process.wait(STOP_SECONDS)


class Lab:
    """Where a run takes place: a folder under the system's temporary one."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ttbench-"))
        self._taken: set[int] = set()
        self._programs: list[Program] = []
        self._numbers = 0

    def __enter__(self) -> Lab:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        for program in self._programs:
            program.terminate()
        for program in reversed(self._programs):
            program.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def new_folder(self, name: str) -> Path:
        """An empty folder."""
        self._numbers += 1
        path = self.folder / f"{self._numbers}-{name}"
        path.mkdir(mode=0o700)
        return path

    def port(self) -> int:
        """A port where nobody listens, below those of outgoing connections."""
        limits = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
        last = max(min(32_000, int(limits[0])), FIRST_PORT + 2_000)
        for _ in range(1000):
            port = random.randrange(FIRST_PORT, last)
            if port in self._taken:
                continue
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("0.0.0.0", port))  # noqa: S104 - asked, never listened at
                except OSError:
                    continue
            self._taken.add(port)
            return port
        raise BenchError("no free port")

    @contextmanager
    def undo_on_failure(self) -> Iterator[None]:
        """If the block raises, what was started inside it ends."""
        before = len(self._programs)
        try:
            yield
        except BaseException:
            for program in self._programs[before:]:
                program.stop()
            raise

    def start(
        self,
        name: str,
        command: Sequence[str],
        *,
        prefix: Sequence[str] = (),
    ) -> Program:
        """Start a program that ends with this run at the latest."""
        self._numbers += 1
        log = self.folder / f"{self._numbers}-{name.replace('/', '-')}.log"
        paths = f"{ROOT / 'scripts'}{os.pathsep}{ROOT}"
        program = Program(
            name,
            [*prefix, *command],
            log,
            {**os.environ, "PYTHONPATH": paths},
        )
        self._programs.append(program)
        return program

    def python(self, name: str, *words: str, prefix: Sequence[str] = ()) -> Program:
        """Start a module of this package."""
        return self.start(
            name, [sys.executable, "-m", f"benchmark.{name}", *words], prefix=prefix
        )
