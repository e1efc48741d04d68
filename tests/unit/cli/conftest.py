"""A master that answers what the test has written down for it."""

from __future__ import annotations

import os
import signal
import socket
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from tunneltcp.cli import ask as cli_ask
from tunneltcp.cli import expose, login, run, token
from tunneltcp.control.codec import FrameDecoder, encode_frame

if TYPE_CHECKING:
    from pathlib import Path


def a_tunnel(port=60001, **values):
    return {
        "port": port, "name": f"app-{port}", "target": None, "state": "running", "reason": None,
        "stopped_by_user": False, "pid": 100, "link": {"state": "down", "rtt_ms": None},
        "visitors": 0, "visitors_total": 0, "bytes_in": 0, "bytes_out": 0, "restarts": 0,
        "cpu": None, "rss": None, **values,
    }  # fmt: skip


def a_status(*tunnels, instance="web", **values):
    return {
        "role": "server", "instance": instance, "version": "0", "pid": 7,
        "since": "2026-11-22T15:04:05.123+00:00", "log_dir": "/none",
        "tunnels": list(tunnels or [a_tunnel()]), **values,
    }  # fmt: skip


class ScriptedMaster:
    """Answers each kind of request with the next of its answers, the last again and again."""

    def __init__(self, folder: Path, answers: dict[str, list[Any]], user: int = -1) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self._heard = folder / "heard"
        self._heard.touch()
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(folder / "control.sock"))
        if user >= 0:  # the kernel notes now who it is that answers
            os.seteuid(user)
        listener.listen()
        os.seteuid(os.getuid())
        self._pid = os.fork()  # noqa: TID251 - somebody else has to answer
        if self._pid == 0:
            try:
                signal.alarm(60)  # whatever becomes of the test
                self._serve(listener, answers)
            finally:
                os._exit(1)
        listener.close()

    def _serve(self, listener, answers) -> None:
        while True:
            connection, _ = listener.accept()
            decoder = FrameDecoder()
            requests = list(decoder.feed(connection.recv(4096)))
            if not requests:
                continue
            with self._heard.open("ab") as file:
                file.write(orjson.dumps(requests[0]) + b"\n")
            said = answers.get(requests[0]["op"], [{"error": "unknown request"}])
            connection.sendall(encode_frame(said.pop(0) if len(said) > 1 else said[0]))
            connection.close()

    def heard(self, *, status=False) -> list[Any]:
        """What was asked, without the questions for its status."""
        lines = map(orjson.loads, self._heard.read_bytes().splitlines())
        return [one for one in lines if status or one["op"] != "status"]

    def stop(self) -> None:
        """End it; harmless a second time."""
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        self._pid = 0


@pytest.fixture(autouse=True)
def _unprotected(monkeypatch):
    """A command that runs in the process of tests is not to take that one's rights for good."""
    for command in (expose, login, run, token):
        monkeypatch.setattr(command, "protect_process", lambda: None)


@pytest.fixture
def base(tmp_path, monkeypatch):
    """The only place where commands look for masters."""
    folder = tmp_path / "run"
    folder.mkdir()
    monkeypatch.setattr(cli_ask, "_bases", lambda: [folder])
    return folder


@pytest.fixture
def script_master(base):
    """Start scripted masters; the name of each is its instance."""
    running = []

    def start(name="web", user=-1, **answers):
        answers.setdefault("status", [a_status(instance=name)])
        running.append(ScriptedMaster(base / name, answers, user))
        return running[-1]

    yield start
    for master in running:
        master.stop()


@pytest.fixture
def base_of_states(tmp_path, monkeypatch):
    """Where this user keeps things."""
    folder = tmp_path / "states"
    for module in ("cli.login", "cli.servers_here", "cli.token", "config.token_files"):
        monkeypatch.setattr(f"tunneltcp.{module}.state_base", lambda: folder)
    return folder
