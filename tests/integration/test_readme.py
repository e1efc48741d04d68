"""README's first ten minutes on two hosts: each command says what README tells.

Every block ``console`` is run in its order: ``vps$`` and ``laptop$`` tell on which host. What
differs each time (process ids, addresses, times, sizes) is compared by its form. The options
that give each host its own folders are added here, and taken out of the output again.
"""

from __future__ import annotations

import os
import pty
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.leaks import expected_children
from tests.support.netns import Host, two_hosts
from tests.support.service import ROOT
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

_SECONDS = 20.0
_STAYS = ("server", "client", "expose")
"""Commands that stay in the foreground."""

_BY_SSH = "ssh vps tunneltcp token | "
"""Before a command: it is told the server's token."""

_APP = """
import http.server

class App(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"hello from the laptop\\n"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

http.server.ThreadingHTTPServer(("127.0.0.1", 8000), App).serve_forever()
"""

_BROKEN = '[{"remote_port": 70000, "local_port": 1}, {"remote_port": 60002, "local_prot": 5}]'


def _steps() -> Iterator[tuple[str, str, list[str]]]:
    """Return README's commands: host, command, what it prints."""
    text = (ROOT / "README.md").read_text()
    for block in re.findall(r"^```console\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        steps: list[tuple[str, str, list[str]]] = []
        for line in block.splitlines():
            if match := re.match(r"(vps|laptop)\$ (.*)", line):
                steps.append((match[1], match[2], []))
            else:
                steps[-1][2].append(line)
        yield from steps


def _json_of_readme() -> str:
    text = (ROOT / "README.md").read_text()
    found: list[str] = re.findall(r"^```json\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return found[0]


_KEPT = re.compile(r"\b(?:6000\d|8000|22|70000|65535|1)\b")


def _form(line: str) -> str:
    """Return a line without what differs each time: numbers, addresses, widths."""
    line = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line)
    line = re.sub(
        r"\d+\.\d+\.\d+\.\d+", lambda m: m[0] if m[0] == "0.0.0.0" else "ADDRESS", line
    )
    line = re.sub(r"\d{4}-\d\d-\d\dT[\d:]+Z", "TIME", line)
    line = re.sub(r"[\d.]+ (ms|k?B|MB)\b", "SIZE", line)
    line = re.sub(r"[\d.]+ s\b", "SECONDS", line)
    line = re.sub(r"\bup SIZE|\bup\b(?! with)", "up", line)
    line = re.sub(r"process \d+( -> \d+)?", "process PID", line)
    line = re.sub(r"\b\d+(?=/\d)|(?<=/)\d+\b", "N", line)  # visitors now/ever
    line = re.sub(r"\b\d+\b", lambda m: m[0] if _KEPT.fullmatch(m[0]) else "N", line)
    return " ".join(line.replace(" 1 ", " N ").split())


class _Machine:
    """A host with folders of its own."""

    def __init__(self, host: Host, folder: Path) -> None:
        self.host = host
        self.folder = folder
        self.home = folder / "home"
        self.home.mkdir(parents=True)
        (self.home / "tunnels.json").write_text(_json_of_readme())
        (self.home / "broken.json").write_text(_BROKEN)
        self._run = Path(tempfile.mkdtemp(prefix="tt-walk-"))
        self._foreground: tuple[int, int] | None = None

    def _words(self, command: str) -> list[str]:
        words = shlex.split(command)
        if words[0] != "tunneltcp":
            return [*self.host.prefix, *words]
        words = [sys.executable, "-m", "tunneltcp", *words[1:]]
        if words[3] in ("server", "client"):
            words.append(f"--log-dir={self.folder}/log")
        if words[3] in ("server", "client", "login", "expose"):
            words.append(f"--state-dir={self.folder}/state")
        if words[3] not in ("expose", "check", "login"):
            words.append(f"--run-dir={self._run}")
        return [*self.host.prefix, "env", f"HOME={self.home}", *words]

    def _undone(self, text: str, role: str) -> list[str]:
        """Take out of an output what :meth:`_words` put into it."""
        text = text.replace(f" --run-dir {self._run}", "")
        text = text.replace(f"{self.folder}/log", f"/var/log/tunneltcp/{role}")
        text = text.replace(f"{self.folder}/state/logins", "/var/lib/tunneltcp/logins")
        text = text.replace(f"{self.folder}/state", f"/var/lib/tunneltcp/{role}")
        text = re.sub(r"\x1b\[\d*[AK]", "\n", text)  # a live table is written over again
        return text.replace("\r", "").splitlines()

    def run(self, command: str, given: str = "") -> list[str]:
        """Run a command to its end; return its lines. ``given``: what it is told."""
        done = subprocess.run(
            self._words(command),
            input=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_SECONDS,
            cwd=self.home,
            env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"},
        )
        lines = self._undone(done.stdout, "")
        return [line for line in lines if line.strip()]

    def token(self) -> tuple[str, list[str]]:
        """Run ``tunneltcp token``, as by ssh; return what it prints and what it says."""
        done = subprocess.run(
            self._words("tunneltcp token"),
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        return done.stdout, self._undone(done.stderr, "server")

    def stay(self, command: str, expected: list[str]) -> None:
        """Start a command on a terminal; wait until it has said all that is expected."""
        self.leave()
        role = shlex.split(command)[1]
        pid, fd = pty.fork()
        if pid == 0:
            os.chdir(self.home)
            environment = {"PYTHONPATH": str(ROOT), "COLUMNS": "200", "TERM": "xterm"}
            words = self._words(command)
            os.execvpe(words[0], words, {**os.environ, **environment})
        expected_children.add(pid)
        self._foreground = (pid, fd)
        wanted = [_form(line) for line in expected]
        said = ""

        def is_said() -> bool:
            nonlocal said
            while select.select([fd], [], [], 0)[0]:
                with suppress(OSError):
                    if data := os.read(fd, 65_536):
                        said += data.decode()
                        continue
                raise AssertionError(f"{command} ended: {said}")
            lines = [_form(line) for line in self._undone(said, role)]
            return all(line in lines for line in wanted)

        wait_until(is_said, _SECONDS, lambda: f"{command} says {expected}, not {said!r}")
        if role != "expose":
            lines = [line for line in self._undone(said, role) if line.strip()]
            told = [line for line in lines if " INFO " not in line]  # what happened since
            assert len(told) <= 6, f"more than six lines: {said}"

    def leave(self) -> None:
        """Press Ctrl-C where a command stays, and wait for its end."""
        if self._foreground is None:
            return
        pid, fd = self._foreground
        os.write(fd, b"\x03")
        deadline = time.monotonic() + _SECONDS
        while os.waitpid(pid, os.WNOHANG)[0] == 0:
            assert time.monotonic() < deadline, "Ctrl-C does not end it"
            if select.select([fd], [], [], 0.1)[0]:
                with suppress(OSError):
                    os.read(fd, 65_536)
        os.close(fd)
        expected_children.discard(pid)
        self._foreground = None

    def tear_down(self) -> None:
        """End what runs."""
        try:
            self.leave()
        finally:
            if self._foreground is not None:
                os.kill(self._foreground[0], signal.SIGKILL)
                os.waitpid(self._foreground[0], 0)
            shutil.rmtree(self._run, ignore_errors=True)


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[dict[str, _Machine]]:
    with two_hosts() as hosts:
        etc = Path("/etc/netns") / hosts.client.name  # `ip netns exec` puts it over /etc
        etc.mkdir(parents=True)
        (etc / "hosts").write_text(
            f"127.0.0.1 localhost\n{hosts.server.address} vps.example.com\n"
        )
        made = {
            "vps": _Machine(hosts.server, tmp_path / "vps"),
            "laptop": _Machine(hosts.client, tmp_path / "laptop"),
        }
        app = subprocess.Popen(
            [*hosts.client.prefix, sys.executable, "-c", _APP], stderr=subprocess.DEVNULL
        )
        expected_children.add(app.pid)
        try:
            yield made
        finally:
            for machine in reversed(made.values()):
                machine.tear_down()
            app.kill()
            app.wait()
            expected_children.discard(app.pid)
            shutil.rmtree(etc)
            with suppress(OSError):
                etc.parent.rmdir()


def test_the_first_ten_minutes_are_as_readme_tells_them(machines: dict[str, _Machine]) -> None:
    steps = list(_steps())
    assert len(steps) > 10, "README has lost its walk"
    for where, command, expected in steps:
        words = shlex.split(command)
        if words[0] == "tunneltcp" and words[1] in _STAYS:
            machines[where].stay(command, expected)
            continue
        token, told = "", list[str]()
        if command.startswith(_BY_SSH):
            token, told = machines["vps"].token()
            assert len(token.strip()) >= 32
        said = told + machines[where].run(command.removeprefix(_BY_SSH), token)
        forms = [_form(line) for line in said]
        assert forms == [_form(line) for line in expected], f"{command} says {said}"
