"""Real masters with fake workers: each master is a forked child, its workers are its own."""

from __future__ import annotations

import faulthandler
import gc
import hashlib
import os
import selectors
import signal
import socket
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from tests.support.leaks import Snapshot, descendants, zygote_of
from tests.support.ports import free_port
from tests.support.wait import wait_until
from tunneltcp.cli.ask import ask
from tunneltcp.config.model import Config, TunnelConfig
from tunneltcp.config.token_reader import TokenReader
from tunneltcp.config.tokens import TokenPlace
from tunneltcp.control.context import Role, WorkerContext
from tunneltcp.control.counters import Counter, map_counters
from tunneltcp.errors import TunnelError
from tunneltcp.master import budgets
from tunneltcp.master.folders import Folders
from tunneltcp.master.master import Master

if TYPE_CHECKING:
    from pathlib import Path


_HANGS_SECONDS = 8.0
"""A master that is not ready by then says where it is."""


def fake_worker(context: WorkerContext) -> int:
    """Do what the tunnel's name says; "good" serves: each visitor is told our pid."""
    kind = context.name.split("-")[0]
    say = lambda message: os.write(context.channel_fd, orjson.dumps(message))  # noqa: E731
    if kind == "raise":
        raise ValueError("on cue")
    if kind == "code":
        return int(context.name.split("-")[1])
    if kind == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    if kind in ("silent", "stopped"):
        signal.pause()
    if kind == "garbage":
        os.write(context.channel_fd, b"\xff\xfe")
        signal.pause()
    if kind == "mute":
        os.close(context.channel_fd)
        signal.pause()
    signal.signal(signal.SIGTERM, lambda *_: say({"type": "replace"}))
    counters = map_counters(context.counters_fd)
    selector = selectors.DefaultSelector()
    selector.register(context.channel_fd, selectors.EVENT_READ)
    listeners = {fd: socket.socket(fileno=fd) for fd in context.listener_fds}
    for listener in listeners.values():
        selector.register(listener, selectors.EVENT_READ)
    if kind == "leaky":
        counters[Counter.DESCRIPTORS] = 101
    taken = b"x" * 200_000_000 if kind == "greedy" else b""
    say({"type": "ready"})
    assert len(taken) in (0, 200_000_000)  # it is held on to
    if kind == "asks":
        say({"type": "resolve", "host": "localhost", "port": 7})
    return _serve(context, kind, say, counters, selector, listeners)


def _serve(context, kind, say, counters, selector, listeners) -> int:
    while True:
        counters[Counter.BEAT_NS] = time.monotonic_ns() + 500_000_000
        for key, _ in selector.select(0.5):
            if key.fd in listeners:
                try:
                    visitor, _ = listeners[key.fd].accept()
                except BlockingIOError:
                    pass
                except OSError:  # shut down by the master, and from now on always readable
                    selector.unregister(key.fd)
                else:
                    counters[Counter.VISITORS_TOTAL] += 1
                    told = context.budget_bytes if kind == "budget" else os.getpid()
                    visitor.sendall(f"{told}\n".encode())
                    if kind == "keep":
                        listeners[-visitor.fileno()] = visitor
                continue
            packet = os.read(context.channel_fd, 65_536)
            if not packet:
                return 0
            message = orjson.loads(packet)
            if message["type"] == "addresses":
                say({"type": "link", "state": "up", "peer": repr(message["addresses"])})
            if "number" in message:
                _answer(kind, say, message)
                continue
            if kind == "stubborn" or (kind == "keep" and message["type"] == "drain"):
                continue
            if message["type"] in ("drain", "stop"):
                return 0


def _answer(kind, say, question) -> None:
    if kind == "dies":
        os._exit(1)
    if kind != "deaf":
        body = {"asked": question["type"], "visitors": [], "next": None}
        say({"type": "answer", "number": question["number"], "body": body})
        say({"type": "answer", "number": question["number"], "body": {"twice": True}})


@dataclass
class MasterProcess:
    """A master in a child of ours."""

    pid: int
    folders: Folders
    code: int | None = None

    def status(self) -> dict[str, Any]:
        return ask(self.folders.run, {"op": "status"})

    def tunnel(self, index: int = 0) -> Any:
        return self.status()["tunnels"][index]

    def ask(self, op: str, **words: object) -> dict[str, Any]:
        return ask(self.folders.run, {"op": op, **words})

    def at(self, port: int) -> Any:
        """Return what status says of a port; None if there is no such tunnel."""
        return next((t for t in self.status()["tunnels"] if t["port"] == port), None)

    def wait_port(self, port: int, state: str) -> Any:
        def check():
            mine = (t for t in self._tunnels() if t.get("port") == port)
            return next((t for t in mine if t["state"] == state), None)

        return wait_until(check, 10, f"{port} is {state}")

    def wait_ready(self) -> None:
        wait_until(
            lambda: all(t["state"] == "running" for t in self._tunnels()), 10, self._where
        )

    def _where(self) -> str:
        """Say where a master that does not answer was after a while, or how it left."""
        if self.has_left():
            return f"ready; it left with {self.code}"
        stacks = self.folders.run.parent / "stacks.txt"
        return f"ready; it was at: {stacks.read_text() if stacks.exists() else 'nowhere'}"

    def wait_state(self, state: str, index: int = 0) -> Any:
        def check():
            tunnel = self.tunnel(index)
            return tunnel if tunnel["state"] == state else None

        return wait_until(check, 10, f"state {state}")

    def _tunnels(self) -> list[Any]:
        try:
            return self.status()["tunnels"] or [{"state": ""}]
        except TunnelError:
            return [{"state": ""}]

    def family(self) -> set[int]:
        """All its processes but the zygote."""
        return descendants(self.pid) - {zygote_of(self.pid)}

    def kill(self, number: int = signal.SIGTERM) -> None:
        os.kill(self.pid, number)

    def has_left(self) -> bool:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is not None

    def wait_left(self, timeout: float = 10.0) -> int:
        wait_until(self.has_left, timeout, "the master has left")
        assert self.code is not None
        return self.code

    def log(self, name: str = "master.log") -> str:
        return (self.folders.log / name).read_text()


def fake_key(token: str, port: int) -> bytes:
    return hashlib.sha256(f"{token} {port}".encode()).digest()


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(state=tmp_path / "state", run=tmp_path / "run", log=tmp_path / "log")


@pytest.fixture
def start_master(folders, monkeypatch):
    """Start masters; at the end no process and no descriptor of theirs is left."""
    # A worker forked from a process of tests has all of that one's memory to itself.
    monkeypatch.setattr(budgets, "_BASE_BYTES", 1 << 40)
    free_port()  # its lock file stays open
    before = Snapshot.take()
    running: list[MasterProcess] = []

    def start(
        *tunnels: TunnelConfig,
        role=Role.SERVER,
        prepare=None,
        load_again=None,
        again=None,
        **settings,
    ):
        settings = {
            "drain_seconds": 1.0,
            "server": "localhost",
            "bind": ("127.0.0.1",),
            "tls": False,
            **settings,
        }
        if load_again is None and role is Role.CLIENT:
            settings = {"token": TokenPlace(kind="none"), **settings}
        config = Config(tunnels=tunnels, **settings) if load_again is None else load_again()
        pid = os.fork()  # noqa: TID251 - a master of its own, without a second's start-up
        if pid == 0:
            _run_master(config, role, folders, prepare, load_again, again)
        running.append(MasterProcess(pid, folders))
        return running[-1]

    yield start
    for master in running:
        for _ in range(2):
            if not master.has_left():
                master.kill()
        master.wait_left()
        if master.code == -signal.SIGKILL:
            _reap_orphans(before)  # they came to us; the kernel kills them
    before.check()


def _reap_orphans(before: Snapshot) -> None:
    """Reap what the kernel kills, as soon as it has; who is not killed stays for the check."""

    def are_reaped() -> bool:
        for pid in before.new_children():
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        return not before.new_children()

    with suppress(AssertionError):
        wait_until(are_reaped, 5)


class _Master(Master):
    """Its workers are no real ones: nothing of theirs could be taken over."""

    def _make_context(self, tunnel, fds):
        return replace(super()._make_context(tunnel, fds), crash_safe=False)


def _run_master(config, role, folders, prepare, load_again, again):
    code = 99
    try:
        gc.freeze()  # garbage of the test's own process would close numbers that are ours now
        os.closerange(3, 4096)  # what the test holds (a busy port) is not ours
        stacks = (folders.run.parent / "stacks.txt").open("w")
        faulthandler.dump_traceback_later(_HANGS_SECONDS, file=stacks)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        if prepare is not None:
            prepare()
        master = _Master(
            config,
            role=role,
            instance="test",
            folders=folders,
            worker_main=fake_worker,
            derive_key=fake_key,
            reader=TokenReader(role.value, (folders.state,), {}),
            load_again=load_again,
            again=again,
        )
        code = master.run()
    except BaseException:  # noqa: BLE001 - shown, and a code that no test expects
        traceback.print_exc()
    finally:
        os._exit(code)


def visit(port: int, address: str = "127.0.0.1") -> int:
    """Connect and return the pid of the worker that served."""
    with socket.create_connection((address, port), 5) as visitor:
        return int(visitor.makefile().readline())
