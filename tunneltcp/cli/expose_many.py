"""Several tunnels in the foreground: a private master, and we who show what it says.

Theory of operation
-------------------
The master is a child of ours with folders of its own below one temporary folder. It is in a
session of its own, so that Ctrl-C reaches only us: the first signal is passed on as TERM
(visitors may finish), the second too (it ends at once). Should we be killed, the kernel sends
it TERM. We read its log, its control socket, and nothing else.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

import orjson

import tunneltcp
from tunneltcp.cli.ask import ask
from tunneltcp.cli.live import (
    LOOK_SECONDS,
    Display,
    TunnelView,
    View,
    ended_line,
    ending_line,
)
from tunneltcp.cli.log_reader import LogReader
from tunneltcp.config.model import DEFAULT_DRAIN_SECONDS
from tunneltcp.errors import ExitCode, TunnelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tunneltcp.cli.expose import Exposure
    from tunneltcp.cli.expose_token import FoundToken

__all__ = ["run_many"]

STOP_SECONDS: Final = 10.0
"""Beyond the drain: then the master is killed, and its workers with it."""

SHOWN_VISITORS: Final = 50
"""No terminal shows more, and asking for more would cost the workers something."""

_ANSWER_SECONDS: Final = 2.0
_PR_SET_PDEATHSIG: Final = 1
_LOUD: Final = ("WARNING", "ERROR", "CRITICAL")


def run_many(exposure: Exposure, host_id: str, token: FoundToken, *, plain: bool) -> int:
    """Serve several tunnels until a signal; return the exit code."""
    # ignore_cleanup_errors: a worker that is just being killed may still write a line.
    with TemporaryDirectory(prefix="tunneltcp-expose-", ignore_cleanup_errors=True) as name:
        master = _Master(Path(name), exposure, host_id, token)
        with _passing_on(master.stop):
            display = Display(_title(exposure), plain=plain)  # a thread: after the start
            for tunnel in exposure.tunnels:
                place = exposure.place(tunnel)
                display.say("INFO", f"dialling {place}, which is to lead to {tunnel.target}")
            try:
                code = master.watch(display)
            finally:
                master.kill()
                display.close()
    return code


def _title(exposure: Exposure) -> str:
    return f"{len(exposure.tunnels)} tunnels to {exposure.server}  (Ctrl-C ends them)"


@contextmanager
def _passing_on(stop: Callable[[], None]) -> Iterator[None]:
    """Have each signal that ends us call ``stop``; one that was ignored stays ignored."""
    old = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            old[number] = signal.signal(number, lambda *_: stop())
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


class _Master:
    """The child, its folders, and what we learn from it."""

    def __init__(
        self, folder: Path, exposure: Exposure, host_id: str, token: FoundToken
    ) -> None:
        self._folder = folder
        self._exposure = exposure
        self._log = LogReader(folder / "log/master.log")
        self._kill_at = 0.0
        self._ending = False
        self._view = View(at=0.0, tunnels=())
        (folder / "state").mkdir()
        (folder / "state/host_id").write_text(f"{host_id}\n")
        (folder / "config.json").write_bytes(orjson.dumps(_config(exposure) | token.setting()))
        words = [f"--{name}-dir={folder / name}" for name in ("run", "state", "log")]
        words += [f"--config={folder / 'config.json'}", "--role=client", "--instance=expose"]
        with (folder / "stderr").open("wb") as output:
            self._process = subprocess.Popen(  # noqa: S603 - ourselves
                [sys.executable, "-P", "-m", "tunneltcp.master", *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=output,
                start_new_session=True,
                preexec_fn=partial(_end_with_parent, os.getpid()),  # there is no thread yet
                env={**os.environ, "PYTHONPATH": _python_path(), **token.environment()},
                pass_fds=tuple(token.moved.values()),
            )

    def stop(self) -> None:
        """Pass a signal on: the first time the visitors may finish. From a signal handler."""
        if not self._kill_at:
            self._kill_at = time.monotonic() + DEFAULT_DRAIN_SECONDS + STOP_SECONDS
            self._ending = True
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Make sure that nothing of it is left."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._log.close()

    def watch(self, display: Display) -> int:
        """Show what happens until it ends; return the exit code."""
        while True:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(LOOK_SECONDS)
            self._read_log(display)
            if self._process.poll() is not None:
                return self._end(display)
            if self._kill_at and time.monotonic() > self._kill_at:
                self._process.kill()
            with suppress(TunnelError):  # starting, leaving, or busy: next time
                self._look(display)
            self._say_ending(display)

    def _say_ending(self, display: Display) -> None:
        count = sum(tunnel.visitors for tunnel in self._view.tunnels)
        if self._ending and count:
            display.say("INFO", ending_line(count))
        self._ending = False

    def _end(self, display: Display) -> int:
        code = self._process.returncode
        if self._kill_at and code == ExitCode.DONE:
            display.say("INFO", _summary(self._view))
            return ExitCode.DONE
        with suppress(OSError):
            for line in (self._folder / "stderr").read_text().splitlines()[-5:]:
                display.say("ERROR", line.removeprefix("tunneltcp: "))
        how = f"was killed by signal {-code}" if code < 0 else f"left with exit code {code}"
        display.say("ERROR", f"the tunnels are closed: their master {how}")
        return code if code > 0 else ExitCode.CRASH

    # ------------------------------------------------------------------ looking at it

    def _look(self, display: Display) -> None:
        run = self._folder / "run"
        status = ask(run, {"op": "status"}, _ANSWER_SECONDS)
        room = SHOWN_VISITORS
        tunnels = []
        for tunnel in status["tunnels"]:
            who: list[dict[str, Any]] = []
            if display.is_live and tunnel["visitors"] and room > 0:
                with suppress(TunnelError):
                    request = {"op": "who", "port": tunnel["port"]}
                    who = ask(run, request, _ANSWER_SECONDS)["visitors"][:room]
            room -= len(who)
            tunnels.append(_tunnel_view(tunnel, who))
        self._view = View(at=time.monotonic(), tunnels=tuple(tunnels))
        display.show(self._view)

    def _read_log(self, display: Display) -> None:
        """Say what the master logged about links and targets, and whatever is wrong."""
        for line in self._log.new_lines():
            with suppress(orjson.JSONDecodeError):
                self._say_record(display, orjson.loads(line))

    def _say_record(self, display: Display, record: dict[str, Any]) -> None:
        port, text = record["fields"].get("tunnel"), record["message"]
        if record["level"] in _LOUD or (port and text.startswith(("link ", "the target "))):
            display.say(record["level"], f"{port}: {text}" if port else text)


def _config(exposure: Exposure) -> dict[str, Any]:
    tunnels = [
        {
            "remote_port": tunnel.remote_port,
            "local_host": tunnel.local_host,
            "local_port": tunnel.local_port,
        }
        for tunnel in exposure.tunnels
    ]
    return {
        "server": exposure.server,
        "tls": exposure.tls,
        "tunnels": tunnels,
        "drain": DEFAULT_DRAIN_SECONDS,
        "log_format": "json",
    }


def _python_path() -> str:
    """Return where the child finds this very package, installed or not."""
    root = str(Path(tunneltcp.__file__).parents[1])
    return os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))


def _end_with_parent(parent: int) -> None:
    """In the child: if we are killed, it stops in order."""
    ctypes.PyDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(ExitCode.DONE)


def _tunnel_view(tunnel: dict[str, Any], who: list[dict[str, Any]]) -> TunnelView:
    link = tunnel["link"]
    return TunnelView(
        port=tunnel["port"],
        target=tunnel["target"],
        link="doubted" if link["doubted"] else link["state"],
        rtt_ms=link["rtt_ms"],
        visitors=tunnel["visitors"],
        visitors_total=tunnel["visitors_total"],
        bytes_in=tunnel["bytes_in"],
        bytes_out=tunnel["bytes_out"],
        who=who,
    )


def _summary(view: View) -> str:
    total = sum(tunnel.visitors_total for tunnel in view.tunnels)
    came = sum(tunnel.bytes_in for tunnel in view.tunnels)
    went = sum(tunnel.bytes_out for tunnel in view.tunnels)
    return ended_line(total, came, went)
