"""The command line against real masters: restart, stop, start, reload, who, kick, logs."""

from __future__ import annotations

import os
import pty
import select
import signal
import socket
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from tests.support.apps import Apps
from tests.support.ports import free_port, free_ports
from tests.support.processes import Master, TunnelPair, run_tunneltcp
from tests.support.require import require_program
from tests.support.service import ROOT
from tests.support.sockets import connect, receive_exactly
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"}


@pytest.fixture(scope="module")
def target() -> Iterator[int]:
    with Apps() as apps:
        yield apps.add("echo")


@pytest.fixture(scope="module")
def pair(target: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TunnelPair]:
    targets = [{"local_port": target, "name": name} for name in ("web", "shop")]
    folder = tmp_path_factory.mktemp("pair")
    with TunnelPair(targets, folder, common={"drain": 1}) as running:
        yield running


def command(master: Master, *words: object, code: int = 0) -> str:
    """Run a command for this master; return what it printed."""
    done = run_tunneltcp(*map(str, words), "--run-dir", str(master.run_dir), timeout=25)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if code == 0 else done.stderr


def answer(master: Master, *words: object) -> Any:
    return orjson.loads(command(master, *words, "--json"))


def visit(pair: TunnelPair) -> socket.socket:
    visitor = connect(pair.port)
    try:
        visitor.sendall(b"hello")
        assert receive_exactly(visitor, 5) == b"hello"
    except BaseException:
        visitor.close()
        raise
    return visitor


@pytest.mark.parametrize("role", ["server", "client"])
def test_restart_brings_a_successor_and_says_who(pair: TunnelPair, role: str) -> None:
    master = pair.server if role == "server" else pair.client
    old, other = (master.worker_pid(port) for port in pair.ports)
    said = command(master, "restart", pair.port)
    new = master.worker_pid(pair.port)
    assert said.startswith(f"{pair.port}: restarted, process {old} -> {new}, in ")
    assert new != old
    assert master.worker_pid(pair.ports[1]) == other, "its neighbour is not touched"
    pair.wait_links()
    visit(pair).close()


def test_stop_closes_the_port_and_start_opens_it(pair: TunnelPair) -> None:
    said = command(pair.server, "stop", pair.port)
    assert said == f'{pair.port}: stopped; "tunneltcp start {pair.port}" opens it again\n'
    with pytest.raises(ConnectionRefusedError):
        connect(pair.port)
    assert pair.server.tunnel(pair.port)["stopped_by_user"] is True
    assert "is stopped" in command(pair.server, "restart", pair.port, code=1)

    said = command(pair.server, "start", pair.port)
    assert said == f"{pair.port}: runs, process {pair.server.worker_pid(pair.port)}\n"
    assert "runs already" in command(pair.server, "start", pair.port)
    pair.wait_links()
    visit(pair).close()


def test_a_stop_said_twice_does_no_harm(target: int, tmp_path: Path) -> None:
    with TunnelPair([target], tmp_path) as pair:
        command(pair.server, "stop", pair.port)
        said = command(pair.server, "stop", pair.port)
        assert said == f"{pair.port}: was stopped already\n"
        command(pair.server, "start", pair.port)
        pair.wait_links()
        visit(pair).close()


def test_who_and_kick(pair: TunnelPair) -> None:
    visitors = [visit(pair) for _ in range(3)]
    names = [f"127.0.0.1:{visitor.getsockname()[1]}" for visitor in visitors]
    try:
        for master in (pair.server, pair.client):
            found = answer(master, "who", pair.port)["visitors"]
            assert [one["address"] for one in found] == names
            assert {(one["bytes_in"], one["bytes_out"]) for one in found} == {(5, 5)}
            table = command(master, "who", pair.port).splitlines()
            assert [line.split()[1] for line in table[1:]] == names

        second = answer(pair.server, "who", pair.port)["visitors"][1]["id"]
        assert command(pair.server, "kick", pair.port, second) == (
            f"{pair.port}: reset 1 visitor\n"
        )
        with pytest.raises(ConnectionResetError):
            visitors[1].recv(1)
        assert "there is no visitor" in command(pair.server, "kick", pair.port, second, code=1)
        kicked = answer(pair.client, "kick", pair.port, "--address", "127.0.0.1")
        assert kicked == {"port": pair.port, "kicked": 2}
        for visitor in (visitors[0], visitors[2]):
            with pytest.raises(ConnectionResetError):
                visitor.recv(1)
        wait_until(lambda: pair.server.tunnel(pair.port)["visitors"] == 0, 5)
        assert command(pair.server, "who", pair.port) == f"{pair.port}: nobody is connected\n"
    finally:
        for visitor in visitors:
            visitor.close()


def test_hundreds_of_visitors_are_all_shown(pair: TunnelPair) -> None:
    visitors = [connect(pair.port) for _ in range(450)]
    try:
        for visitor in visitors:
            visitor.sendall(b"x")
        for visitor in visitors:
            assert receive_exactly(visitor, 1) == b"x"
        found = answer(pair.server, "who", pair.port)["visitors"]
        assert len({one["id"] for one in found}) == len(found) == 450
        assert answer(pair.server, "kick", pair.port, "--all")["kicked"] == 450
    finally:
        for visitor in visitors:
            visitor.close()


def test_reload_acts_on_the_difference(target: int, tmp_path: Path) -> None:
    first, second, third = free_ports(3)
    with Master(
        "server", [{"remote_port": first}, {"remote_port": second}], tmp_path
    ) as master:
        pid = master.worker_pid(first)
        master.config_path.write_text(
            f'[{{"remote_port": {first}}}, {{"remote_port": {third}}}]'
        )
        said = command(master, "reload")
        assert said == f"test: reloaded: added {third}; removed {second}; 1 unchanged\n"
        wait_until(lambda: master.tunnel(third)["state"] == "running", 5)
        assert master.worker_pid(first) == pid

        master.allowed.append("config not taken")
        master.config_path.write_text('[{"remote_port": 0}, {"remote_prot": 1}]')
        said = command(master, "reload", code=2)
        assert "all goes on as before" in said
        assert "tunnels[0].remote_port" in said
        assert "tunnels[1].remote_prot" in said
        assert master.worker_pid(first) == pid


def test_logs_of_a_master_and_of_a_tunnel(pair: TunnelPair, tmp_path: Path) -> None:
    assert "master started" in command(pair.server, "logs", "-n", 10_000)
    said = command(pair.server, "logs", pair.port, "-n", 10_000)
    assert f"tunnel={pair.port}" in said
    done = run_tunneltcp("logs", "--log-dir", str(pair.server.log_dir), "-n", "1")
    assert len(done.stdout.splitlines()) == 1


# ------------------------------------------------------------------ ports and terminals


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, *words: str, environment: dict[str, str] | None = None) -> None:
        self.fd, theirs = pty.openpty()
        self.before = termios.tcgetattr(theirs)
        self._theirs = theirs
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tunneltcp", *words],
            stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
            env=ENVIRONMENT | (environment or {}),
        )  # fmt: skip
        self.said = b""

    def read(self) -> str:
        """All that it has said so far."""
        while select.select([self.fd], [], [], 0)[0]:
            self.said += os.read(self.fd, 65_536)
        return self.said.decode(errors="replace")

    def wait_for(self, text: str) -> None:
        wait_until(lambda: text in self.read(), 15, lambda: f"{text} in {self.read()!r}")

    def wait(self) -> int:
        """Its exit code; what it says at its end is read."""
        wait_until(lambda: (self.read(), self.process.poll())[1] is not None, 15)
        self.read()
        return self.process.returncode

    def settings_are_restored(self) -> bool:
        return termios.tcgetattr(self._theirs) == self.before

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_exc: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.fd)
        os.close(self._theirs)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_live_table_ends_cleanly(pair: TunnelPair, number: int) -> None:
    with Terminal("status", "--watch", "--run-dir", str(pair.server.run_dir)) as terminal:
        terminal.wait_for(str(pair.port))
        with visit(pair):
            wait_until(lambda: "1/" in terminal.read(), 10)
        terminal.process.send_signal(number)
        assert terminal.wait() == 0
        assert "Traceback" not in terminal.read()
        assert "\x1b[?1049l" in terminal.read(), "the screen from before is back"
        assert terminal.read().rindex("\x1b[?25h") > terminal.read().rindex("\x1b[?25l")
        assert terminal.settings_are_restored()


def test_watching_without_a_terminal(pair: TunnelPair) -> None:
    done = run_tunneltcp("status", "--watch", f"--run-dir={pair.server.run_dir}")
    assert done.returncode == 2
    assert "--watch needs a terminal" in done.stderr
    watching = subprocess.Popen(
        [sys.executable, "-m", "tunneltcp", "status", "--watch", "--json",
         f"--run-dir={pair.server.run_dir}"],
        stdout=subprocess.PIPE, env=ENVIRONMENT,
    )  # fmt: skip
    assert watching.stdout
    try:
        times = []
        for _ in range(5):  # two lines may have waited for us while the machine stood still
            assert orjson.loads(watching.stdout.readline())["pid"] == pair.server.pid
            times.append(time.monotonic())
            if len(times) > 1 and times[-1] - times[-2] > 0.9:
                break
        else:
            pytest.fail(f"about once a second, but {times}")
        watching.stdout.close()
        assert watching.wait(5) == 0, "nobody reads it any more"
    finally:
        watching.kill()
        watching.wait()


def folders(tmp_path: Path) -> list[str]:
    return [f"--{name}-dir={tmp_path / name}" for name in ("run", "state", "log")]


PATIENT = """
from tunneltcp.master import master
master._ANNOUNCE_SECONDS = 30.0
"""
"""A machine that is busy is no reason to speak before the workers are there."""


def test_a_server_of_ports_alone_says_what_to_do_next(tmp_path: Path) -> None:
    first, busy = free_ports(2)
    (tmp_path / "sitecustomize.py").write_text(PATIENT)
    with (
        socket.create_server(("127.0.0.1", busy)),
        Terminal(
            "server", f"{first},{busy}", "--bind=127.0.0.1", *folders(tmp_path),
            environment={"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        ) as terminal,
    ):  # fmt: skip
        terminal.wait_for("  next ")
        terminal.wait_for("\n")
        lines = [line for line in terminal.read().splitlines() if not line.startswith("20")]
        assert len(lines) <= 6, lines
        assert lines[0].startswith(
            f"tunneltcp server ready: listening on 127.0.0.1 port {first} ({busy} waits: "
        )
        assert f"  logs   {tmp_path / 'log'}" in lines
        assert f"  look   tunneltcp status --run-dir {tmp_path / 'run'}" in lines
        assert f"--to 127.0.0.1:{first}" in lines[-1]
        done = run_tunneltcp("reload", f"--run-dir={tmp_path / 'run'}")
        assert done.returncode == 2
        assert "nothing to read again" in done.stderr
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.wait() == 0


@pytest.mark.parametrize("ports", ["0", "70000", "60003-60001", "60001,,60002", "60001,60001"])
def test_a_wrong_list_of_ports_is_told(tmp_path: Path, ports: str) -> None:
    done = run_tunneltcp("server", ports, *folders(tmp_path))
    assert done.returncode == 2
    assert "ports: " in done.stderr


def test_processes_have_telling_titles(pair: TunnelPair) -> None:
    def title(pid: int) -> str:
        return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode()

    assert title(pair.server.pid) == "tunneltcp server: master (test)"
    assert title(pair.server.worker_pid(pair.port)) == f"tunneltcp server: {pair.port} (web)"
    assert title(pair.client.worker_pid(pair.ports[1])) == (
        f"tunneltcp client: {pair.ports[1]} (shop)"
    )


# ------------------------------------------------------------------------- completion


def complete(tmp_path: Path, *words: str) -> list[str]:
    """Let a real bash complete the last word."""
    program = tmp_path / "tunneltcp"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from tunneltcp.cli.main import main\nmain()\n"
    )
    program.chmod(0o755)
    script = (
        'source <(tunneltcp completion bash); COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); '
        '_tunneltcp_completion tunneltcp; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", script, "bash", "tunneltcp", *words],
        capture_output=True, text=True, timeout=20, check=True,
        env={**ENVIRONMENT, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )  # fmt: skip
    return done.stdout.split()


def test_bash_completes_commands_and_ports(pair: TunnelPair, tmp_path: Path) -> None:
    require_program("bash")
    assert complete(tmp_path, "rest") == ["restart"]
    assert {"server", "client", "status", "who", "logs"} <= set(complete(tmp_path, ""))
    run_dir = ("--run-dir", str(pair.server.run_dir))
    for name in ("restart", "stop", "start", "who", "kick", "logs"):
        found = complete(tmp_path, name, *run_dir, "")
        assert found == [*map(str, sorted(pair.ports))], name
    port = str(pair.port)
    assert port in complete(tmp_path, "who", *run_dir, port[:3])


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_needs_no_shell_to_be_printed(shell: str) -> None:
    done = run_tunneltcp("completion", shell, environment={"PATH": "/none"})
    assert done.returncode == 0, done.stderr
    assert f"_TUNNELTCP_COMPLETE={shell}_complete" in done.stdout
    assert done.stderr == ""


def test_a_misspelt_command_gets_a_suggestion() -> None:
    done = run_tunneltcp("restrat", str(free_port()))
    assert done.returncode == 2
    assert "Did you mean restart?" in done.stderr
