"""Start, ask and stop the demo's masters, with the commands that a user would type."""

from __future__ import annotations

import asyncio
import ctypes
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import psutil

__all__ = ["DemoFailed", "Master"]

STATUS_SECONDS = 10.0
"""How long one ``tunneltcp status`` may take."""

MAX_OUTPUT_CHARACTERS = 4000
"""Of what a master said before it ended, in a message."""

PR_SET_PDEATHSIG = 1
"""From <sys/prctl.h>: the signal to get when the parent dies."""

libc = ctypes.CDLL(None)


class DemoFailed(Exception):
    """Something did not come up, in one sentence."""


class Master:
    """One master process, started and asked as a user would."""

    def __init__(self, role: str, folder: Path, *options: str) -> None:
        self.role = role
        self.run_dir = folder / role / "run"
        self.log_dir = folder / role / "log"
        self._output_path = folder / role / "output"
        self._output_path.parent.mkdir()
        command = [sys.executable, "-m", "tunneltcp.master", "--role", role, *options]
        command += ["--instance", f"demo-{role}", "--run-dir", str(self.run_dir)]
        command += ["--state-dir", str(folder / role / "state")]
        command += ["--log-dir", str(self.log_dir)]
        command += ["--token-file", str(folder / "token")]
        with self._output_path.open("wb") as output:
            # Ctrl-C is for us alone (a session of its own); our death is for it too.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM),
            )
        self.command = shlex.join(["python", *command[1:]])

    @property
    def status_command(self) -> list[str]:
        """The command that asks this master."""
        program = str(Path(sys.executable).with_name("tunneltcp"))
        return [program, "status", "--json", "--run-dir", str(self.run_dir)]

    async def status(self) -> dict[int, dict[str, Any]]:
        """Ask for all tunnels, by port; empty while nobody answers.

        Raises:
            DemoFailed: If the master is gone.
        """
        if (code := self._process.poll()) is not None:
            said = self._output_path.read_text(errors="replace").strip()
            raise DemoFailed(
                f"the {self.role} ended with {code}; it said:\n{said[-MAX_OUTPUT_CHARACTERS:]}"
            )
        try:
            answer = await asyncio.to_thread(
                subprocess.run,
                self.status_command,
                capture_output=True,
                stdin=subprocess.DEVNULL,
                timeout=STATUS_SECONDS,
                check=True,
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            return {}
        return {tunnel["port"]: tunnel for tunnel in orjson.loads(answer.stdout)["tunnels"]}

    def terminate(self) -> None:
        """Ask it to stop; twice means now."""
        if self._process.poll() is None:
            self._process.terminate()

    def family(self) -> list[psutil.Process]:
        """The master and all below it."""
        try:
            process = psutil.Process(self._process.pid)
            return [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []
