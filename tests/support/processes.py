"""The real masters, started as a user starts them, and what they leave behind."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import orjson

from tests.support.chaos import Chaos
from tests.support.control import ask, ask_status
from tests.support.leaks import descendants, expected_children
from tests.support.ports import free_ports
from tests.support.service import ROOT
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

__all__ = ["TOKEN", "Json", "Master", "TunnelPair", "alive", "run_tunneltcp", "write_token"]

Json: TypeAlias = dict[str, Any]
Role: TypeAlias = Literal["server", "client"]

START_SECONDS = 15.0
"""A master is ready in well under a second; a starved machine may take longer."""

TOKEN = "tt_the-token-that-all-masters-of-the-tests-share"
"""What both sides of a pair hold."""

_COMPLAINTS = re.compile(r" (ERROR|CRITICAL) |Traceback|^  \| ", re.MULTILINE)


def write_token(folder: Path, token: str = TOKEN) -> Path:
    """Put a token into a file that only we may read."""
    path = folder / "token"
    path.touch(0o600)
    path.write_text(f"{token}\n")
    return path


def alive(pid: int) -> bool:
    """Say whether a process is there and not just waiting to be reaped."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat[stat.rindex(")") + 2] not in "ZX"


def run_tunneltcp(
    *words: str,
    module: str = "tunneltcp",
    timeout: float = 20,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end and return what came of it."""
    return subprocess.run(
        [sys.executable, "-m", module, *words],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
        check=False,
    )


def run_python(code: str) -> str:
    """Run a program of a few words in an interpreter of its own; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=20,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    return done.stdout


class Master:
    """One master process with folders of its own.

    As a context manager it is started and ready inside the block; after it the master was
    told to stop and its end was checked: exit 0, no process left, nothing in its logs that
    complains.
    """

    def __init__(
        self,
        role: Role,
        config: object,
        folder: Path,
        *,
        instance: str = "test",
        server: str = "",
        bind: Sequence[str] = (),
        prefix: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        arguments: Sequence[str] = (),
        run_dir: Path | None = None,
        token: str | None = TOKEN,
        module: str = "tunneltcp.master",
    ) -> None:
        """Prepare it; nothing is started yet.

        Args:
            server: Whom a client dials.
            bind: Where a server listens.
            prefix: Words before the command, such as ``ip netns exec NAME``.
            environment: Added to ours.
            arguments: Further options.
            run_dir: Where its run folder will be if it is to choose its folders itself.
            token: Given to it in a file; None: it finds one itself, as its config says.
            module: What is run; one that adds something to a master for a test.
        """
        self.role = role
        self.instance = instance
        self.folder = folder
        self.config = config
        self.allowed: list[str] = []
        """Regular expressions for log lines that may complain."""
        # The path of a socket may have 107 bytes, and the folder of a test has a long name.
        self._module = module
        self._chooses = run_dir is not None
        self.run_dir = run_dir or Path(tempfile.mkdtemp(prefix="tt-run-"))
        self.state_dir = folder / "state"
        self.log_dir = folder / "log"
        self.config_path = folder / "config.json"
        self.stderr_path = folder / "stderr.txt"
        self._words = ["--role", role, "--config", str(self.config_path)]
        self._words += ["--server", server] if server else []
        settings = config if isinstance(config, dict) else {}
        if role == "server" and "bind" not in settings:
            bind = bind or ("127.0.0.1",)  # no test opens a port to others
        for address in bind:
            self._words += ["--bind", address]
        self._words += [*self.folder_words(), *arguments]
        self._prefix = prefix
        self._environment = {**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        if token is not None and not settings.keys() & {"auth", "token"}:
            self._words += ["--token-file", str(write_token(folder, token))]

    def folder_words(self) -> list[str]:
        """The options that name this instance and its folders."""
        if self._chooses:
            return [f"--instance={self.instance}"]
        return [
            f"--instance={self.instance}",
            f"--run-dir={self.run_dir}",
            f"--state-dir={self.state_dir}",
            f"--log-dir={self.log_dir}",
        ]

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The master itself."""
        assert self._process is not None, "not started"
        return self._process

    @property
    def pid(self) -> int:
        """Of the master."""
        return self.process.pid

    # Starting and stopping.

    def start(self, *, ready: bool = True) -> None:
        """Start it and wait until it answers."""
        self.config_path.write_bytes(orjson.dumps(self.config))
        with self.stderr_path.open("ab") as output:
            self._process = subprocess.Popen(
                [*self._prefix, sys.executable, "-m", self._module, *self._words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.folder,
                env=self._environment,
            )
        expected_children.add(self.pid)
        if ready:
            try:
                wait_until(self._answers, START_SECONDS, lambda: f"{self} answers")
            except BaseException:
                self.kill()
                raise

    def _answers(self) -> bool:
        code = self.process.poll()
        if code is not None:
            raise RuntimeError(f"{self} ended with {code} as it started: {self.complaint()}")
        try:
            return bool(self.status())
        except OSError:
            return False

    def send(self, number: int = signal.SIGTERM) -> None:
        """Send a signal to the master alone."""
        self.process.send_signal(number)

    def wait(self, timeout: float = 20) -> int:
        """Wait for its end and return its exit code."""
        return self.process.wait(timeout)

    def stop(self, timeout: float = 20) -> None:
        """Ask it to stop; check how it ended and that nothing is left."""
        if self._process is None or self._process.poll() is not None:
            return
        family = descendants(self.pid)
        self.send()
        try:
            code = self.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(
                f"{self} did not stop within {timeout:g} s: {self.complaint()}"
            ) from None
        left = [pid for pid in family if Path(f"/proc/{pid}").exists()]
        assert code == 0, f"{self} ended with {code}: {self.complaint()}"
        assert not left, f"{self} left processes behind: {left}"

    def kill(self) -> None:
        """SIGKILL; wait until all it started is gone too, and reap what comes to us."""
        if self._process is None or self._process.poll() is not None:
            return
        family = descendants(self.pid)
        self.process.kill()
        self.process.wait()
        try:
            wait_until(lambda: not any(map(alive, family)), 5, "workers end with their master")
        finally:
            for pid in family:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                with suppress(ChildProcessError):
                    os.waitpid(pid, 0)

    def check_logs(self) -> None:
        """Fail if a log complains about what the test has not allowed."""
        allowed = [re.compile(text) for text in self.allowed]
        found = [
            line
            for line in self.log_text().splitlines() + self.stderr().splitlines()
            if _COMPLAINTS.search(line) and not any(rule.search(line) for rule in allowed)
        ]
        assert not found, f"{self} complains:\n" + "\n".join(found[:40])

    def __enter__(self) -> Master:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        try:
            if error is not None:
                error.add_note(f"--- {self}:\n{self.complaint()}")
                with suppress(AssertionError):
                    self.stop()
            else:
                self.stop()
                self.check_logs()
        finally:
            self.kill()
            expected_children.discard(self.pid)
            shutil.rmtree(self.run_dir, ignore_errors=True)

    # Looking at it.

    def status(self) -> Json:
        """Ask the master for its status.

        Raises:
            OSError: If it does not answer.
        """
        return ask_status(self.run_dir)

    def tunnel(self, port: int) -> Json:
        """The status of one tunnel."""
        found = [one for one in self.status()["tunnels"] if one["port"] == port]
        assert len(found) == 1, f"{len(found)} tunnels {port} in the status of {self}"
        tunnel: Json = found[0]
        return tunnel

    def link_up(self, port: int) -> bool:
        """Say whether a tunnel runs and its link is up."""
        tunnel = self.tunnel(port)
        return bool(tunnel["state"] == "running" and tunnel["link"]["state"] == "up")

    def worker_pid(self, port: int) -> int:
        """Of the worker that serves a tunnel now."""
        pid = self.tunnel(port)["pid"]
        assert isinstance(pid, int), f"{self} has no worker for {port}"
        assert pid > 0, f"{self} has no worker for {port}"
        return pid

    def kill_worker(self, port: int, number: int = signal.SIGKILL) -> int:
        """Send a signal to a worker; return the pid it had."""
        pid = self.worker_pid(port)
        os.kill(pid, number)
        return pid

    def restart_worker(self, port: int) -> int:
        """Have a worker replaced, as a person does; return the pid it had."""
        answer = ask(self.run_dir, {"op": "restart", "port": port})
        assert "error" not in answer, answer
        return int(answer["pid"] or 0)

    def wait_for_successor(self, port: int, old: int, timeout: float = 10) -> int:
        """Wait until another worker serves; return its pid."""

        def check() -> int:
            tunnel = self.tunnel(port)
            other = tunnel["state"] == "running" and tunnel["pid"] != old
            return int(tunnel["pid"]) if other else 0

        return wait_until(check, timeout, lambda: f"successor of {old}: {self.tunnel(port)}")

    def log_text(self, name: str = "*.log*") -> str:
        """What its logs say: all of them, or ``master.log``, ``tunnel-60001.log``."""
        paths = sorted(self.log_dir.glob(name), reverse=True)
        return "".join(path.read_text(errors="replace") for path in paths)

    def stderr(self) -> str:
        """What it wrote to its standard output and error."""
        return self.stderr_path.read_text() if self.stderr_path.exists() else ""

    def complaint(self) -> str:
        """The ends of its output and of its logs, for the message of a failure."""
        logs = [
            f"{path.name}:\n{path.read_text(errors='replace')[-3000:]}"
            for path in sorted(self.log_dir.glob("*.log"))
        ]
        return "\n".join([f"stderr: {self.stderr()[-2000:]}", *logs])

    def __repr__(self) -> str:
        pid = self._process.pid if self._process else "not started"
        return f"<Master {self.role} {self.instance} {pid}>"


class TunnelPair:
    """A server and a client with one tunnel for each target, links up.

    Args:
        targets: Local ports, or tunnels as in a config, without ``remote_port``.
        folder: For everything both masters write.
        chaos: Lead each link through a relay (``relays``, by public port): the client dials
            127.0.0.2, where the relay listens at the same port.
        common: Settings for both configs, such as ``drain``.
        server_prefix: Words before the server's command.
        environment: Added to that of both masters.
        module: As for :class:`Master`.
    """

    def __init__(
        self,
        targets: Sequence[int | Mapping[str, object]],
        folder: Path,
        *,
        chaos: bool = False,
        bind: Sequence[str] = ("127.0.0.1",),
        server_host: str = "127.0.0.1",
        instance: str = "test",
        common: Mapping[str, object] | None = None,
        server_options: Mapping[str, object] | None = None,
        client_options: Mapping[str, object] | None = None,
        server_prefix: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        module: str = "tunneltcp.master",
    ) -> None:
        self.ports = free_ports(len(targets))
        tunnels = [
            {**({"local_port": target} if isinstance(target, int) else target)}
            | {"remote_port": port}
            for target, port in zip(targets, self.ports, strict=True)
        ]
        base: Json = {"tunnels": tunnels, **(common or {})}
        self.server = Master(
            "server",
            {**base, **(server_options or {})},
            folder / "server",
            instance=instance,
            bind=bind,
            prefix=server_prefix,
            environment=environment,
            module=module,
        )
        self.client = Master(
            "client",
            {**base, **(client_options or {})},
            folder / "client",
            instance=instance,
            server="127.0.0.2" if chaos else server_host,
            environment=environment,
            module=module,
        )
        self._chaos = chaos
        self.relays: dict[int, Chaos] = {}
        self._stack = ExitStack()

    @property
    def port(self) -> int:
        """The first public port."""
        return self.ports[0]

    @property
    def relay(self) -> Chaos:
        """The relay of the first tunnel."""
        return self.relays[self.port]

    def __enter__(self) -> TunnelPair:
        with ExitStack() as stack:
            if self._chaos:
                for port in self.ports:
                    relay = Chaos(("127.0.0.2", port), ("127.0.0.1", port))
                    self.relays[port] = stack.enter_context(relay)
            stack.enter_context(self.server)
            stack.enter_context(self.client)
            self.wait_links()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def wait_links(self, timeout: float = 15) -> None:
        """Wait until every link is up, seen from both sides."""
        for port in self.ports:
            for master in (self.server, self.client):
                wait_until(
                    lambda port=port, master=master: master.link_up(port),  # type: ignore[misc]
                    timeout,
                    lambda port=port, master=master: (  # type: ignore[misc]
                        f"link of {port}: {master.tunnel(port)}\n{master.complaint()}"
                    ),
                )
