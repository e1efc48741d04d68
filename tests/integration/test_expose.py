"""``tunneltcp expose`` as it is typed: in the foreground, on a terminal and elsewhere."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.leaks import descendants
from tests.support.poor_platform import NAME
from tests.support.ports import free_ports
from tests.support.processes import Master, alive, write_token
from tests.support.service import ROOT
from tests.support.sockets import connect, expect_reset, listener, receive_exactly
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from tests.support.apps import Apps
    from tests.support.visitors import Load

PLATFORMS = ["linux", "darwin", "win32"]
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class Expose:
    """A running ``tunneltcp expose``; its output is kept and read while a test waits."""

    def __init__(
        self, folder: Path, *words: str, terminal: bool = False, platform: str = "linux"
    ) -> None:
        module = ["tunneltcp"]
        if platform != "linux":
            module = ["tests.support.poor_platform", platform]
        self.folder = folder
        self.temporary = Path(tempfile.mkdtemp(prefix="tt-"))
        self.output = b""
        self.reading = True
        self._master, slave = pty.openpty() if terminal else os.pipe()
        if terminal:
            size = struct.pack("HHHH", 30, 110, 0, 0)
            fcntl.ioctl(slave, termios.TIOCSWINSZ, size)
            self.modes = termios.tcgetattr(slave)
        self.slave = slave
        os.set_blocking(self._master, False)
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                *module,
                "expose",
                *words,
                f"--state-dir={folder / 'state'}",
                f"--token-file={write_token(folder)}",
            ],
            stdin=slave if terminal else subprocess.DEVNULL,
            stdout=slave,
            stderr=slave,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "TERM": "xterm",
                "TMPDIR": str(self.temporary),
            },
            start_new_session=True,
            preexec_fn=(lambda: fcntl.ioctl(slave, termios.TIOCSCTTY, 0)) if terminal else None,
        )

    def read(self) -> str:
        """What it has written so far."""
        with suppress(BlockingIOError, OSError):
            while self.reading and (data := os.read(self._master, 1 << 16)):
                self.output += data
        return self.output.decode()

    def wait_for(self, text: str, timeout: float = 10) -> None:
        wait_until(lambda: text in self.read(), timeout, lambda: f"{text!r} in {self.read()}")

    def press(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def end(self, number: int = signal.SIGINT, timeout: float = 10) -> int:
        """Send a signal to it alone, wait, and return the exit code."""
        self.process.send_signal(number)
        return self.wait(timeout)

    def wait(self, timeout: float = 10) -> int:
        wait_until(
            lambda: (self.read(), self.process.poll() is not None)[1],
            timeout,
            lambda: f"it ends: {self.read()}",
        )
        self.read()
        return self.process.returncode

    def left_over(self) -> list[str]:
        """What it left in the folder for temporary files."""
        return [path.name for path in self.temporary.iterdir()]

    def __enter__(self) -> Expose:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        if error is not None:
            error.add_note(f"--- it wrote:\n{self.read()}")
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)
        os.close(self.slave)
        shutil.rmtree(self.temporary)


@pytest.fixture(scope="module")
def ports() -> list[int]:
    return free_ports(2)


@pytest.fixture(scope="module")
def server(ports: list[int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Master]:
    config = {
        "tunnels": [{"remote_port": port} for port in ports],
        "hold": 10,
        "resume_grace": 0,
    }
    with Master("server", config, tmp_path_factory.mktemp("server")) as running:
        # The tests break links and cut visitors on purpose.
        running.allowed.append("link lost|lost:")
        yield running


@pytest.fixture(autouse=True)
def _link_gone_before(server: Master, ports: list[int]) -> None:
    """Each test begins without the one before, and without visitors of that who still wait."""

    def is_alone(port: int) -> bool:
        tunnel = server.tunnel(port)
        return tunnel["link"]["state"] == "down" and not tunnel["visitors"]

    wait_until(lambda: all(map(is_alone, ports)), 15)


def echo(port: int, data: bytes = b"hello") -> None:
    with connect(port) as visitor:
        visitor.sendall(data)
        assert receive_exactly(visitor, len(data)) == data


class TestOneTunnel:
    def test_carries_visitors_in_plain_lines_and_ends_with_0(
        self, server: Master, ports: list[int], apps: Apps, load: Load, tmp_path: Path
    ) -> None:
        target = apps.add("pattern")
        with Expose(tmp_path, str(target), "--to", f"127.0.0.1:{ports[0]}") as it:
            it.wait_for("link up")
            load.transfer("expose", ports[0], count=20, up=300_000, down=400_000)
            assert load.finish("expose").outcomes == {"ok": 20}
            assert descendants(it.process.pid) == set(), "it needs no other process"
            assert it.end() == 0
            assert it.read().splitlines() == [
                f"tunneltcp: dialling 127.0.0.1:{ports[0]}",
                f"tunneltcp: link up with 127.0.0.1:{ports[0]}: 127.0.0.1:{ports[0]} leads to "
                f"localhost:{target}",
                it.read().splitlines()[-1],
            ]
            assert re.search(r"ended: 20 visitors, 6\.\d MB in, 8\.\d MB out", it.read())
            assert it.left_over() == []

    def test_is_this_machine_again_the_next_time(
        self, server: Master, ports: list[int], apps: Apps, tmp_path: Path
    ) -> None:
        """The kept id: who was killed and comes back gets the port at once."""
        target = str(apps.add("echo"))
        for _ in range(2):
            with Expose(tmp_path, target, "--to", f"127.0.0.1:{ports[0]}") as it:
                it.wait_for("link up")
                assert "another client" not in it.read()
                it.process.kill()
                it.process.wait()

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
    def test_other_signals_end_it_too(
        self, server: Master, ports: list[int], tmp_path: Path, number: int
    ) -> None:
        with Expose(tmp_path, "9", "--to", f"127.0.0.1:{ports[0]}") as it:
            it.wait_for("link up")
            assert it.end(number) == 0

    def test_the_first_signal_lets_visitors_finish_and_the_second_does_not(
        self, server: Master, ports: list[int], apps: Apps, tmp_path: Path
    ) -> None:
        target = str(apps.add("echo"))
        with (
            Expose(tmp_path, target, "--to", f"127.0.0.1:{ports[0]}") as it,
            connect(ports[0]) as visitor,
        ):
            visitor.sendall(b"a")
            assert receive_exactly(visitor, 1) == b"a"
            it.process.send_signal(signal.SIGINT)
            it.wait_for("ending: 1 visitor may finish within 5 s")
            visitor.sendall(b"b")
            assert receive_exactly(visitor, 1) == b"b"
            assert it.end(timeout=4) == 0, "and not after 5 s"
            expect_reset(visitor)

    def test_a_visitor_who_finishes_ends_it(
        self, server: Master, ports: list[int], apps: Apps, tmp_path: Path
    ) -> None:
        target = str(apps.add("echo"))
        with Expose(tmp_path, target, "--to", f"127.0.0.1:{ports[0]}") as it:
            with connect(ports[0]) as visitor:
                visitor.sendall(b"a")
                assert receive_exactly(visitor, 1) == b"a"
                it.process.send_signal(signal.SIGINT)
                it.wait_for("ending")
            assert it.wait(4) == 0, "and not after 5 s"

    def test_a_reader_that_has_gone_stops_nothing(
        self, server: Master, ports: list[int], apps: Apps, tmp_path: Path
    ) -> None:
        command = [sys.executable, "-m", "tunneltcp", "expose", str(apps.add("echo"))]
        command += ["--to", f"127.0.0.1:{ports[0]}", f"--state-dir={tmp_path}"]
        command += [f"--token-file={write_token(tmp_path)}"]
        reader, writer = os.pipe()
        process = subprocess.Popen(
            command, stdout=writer, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        os.close(writer)
        os.close(reader)
        try:
            wait_until(lambda: server.link_up(ports[0]), 10)
            echo(ports[0])
            process.send_signal(signal.SIGINT)
            assert process.wait(5) == 0
        finally:
            process.kill()
            process.wait()


class TestTerminal:
    def test_shows_who_is_connected_and_changes_nothing(
        self, server: Master, ports: list[int], apps: Apps, tmp_path: Path
    ) -> None:
        words = (str(apps.add("echo")), "--to", f"127.0.0.1:{ports[0]}")
        with Expose(tmp_path, *words, terminal=True) as it, connect(ports[0]) as visitor:
            visitor.sendall(b"x" * 5000)
            assert receive_exactly(visitor, 5000)
            address = "{}:{}".format(*visitor.getsockname())
            it.wait_for(address)
            wait_until(lambda: re.search(r"5\.0 kB +5\.0 kB", ANSI.sub("", it.read())), 5)
            it.press(b"\x03")
            it.wait_for("ending: 1 visitor ")
            it.press(b"\x03")
            assert it.wait(4) == 0, "and not after 5 s"
            after = it.read().rpartition("\x1b[2K")[2]
            assert "ended: 1 visitor, 5.0 kB in, 5.0 kB out\r\n" in it.read()
            assert after.endswith("\r\n") or after == "", "the next prompt has its own line"
            assert "\x1b[?" not in it.read(), "neither the cursor nor the screen was touched"
            assert termios.tcgetattr(it.slave) == it.modes

    def test_refreshes_about_twice_a_second(
        self, server: Master, ports: list[int], tmp_path: Path
    ) -> None:
        words = ("9", "--to", f"127.0.0.1:{ports[0]}")
        with Expose(tmp_path, *words, terminal=True) as it:
            it.wait_for("link up")
            before = it.read().count("leads to localhost:9  (")
            wait_until(lambda: it.read().count("leads to localhost:9  (") >= before + 4, 8)
            assert it.end() == 0

    def test_one_that_does_not_read_holds_nobody_up(
        self, server: Master, ports: list[int], apps: Apps, load: Load, tmp_path: Path
    ) -> None:
        """As after Ctrl-S."""
        words = (str(apps.add("pattern")), "--to", f"127.0.0.1:{ports[0]}")
        with Expose(tmp_path, *words, terminal=True) as it:
            it.wait_for("link up")
            it.press(b"\x13")
            load.transfer("deaf", ports[0], count=4, up=100_000, down=100_000, repeat=True)
            wait_until(lambda: load.stats("deaf").started > 200, 20)
            assert load.end("deaf").bad == 0
            it.process.send_signal(signal.SIGINT)
            assert it.wait(8) == 0

    def test_plain_is_plain_there_too(
        self, server: Master, ports: list[int], tmp_path: Path
    ) -> None:
        words = ("9", "--to", f"127.0.0.1:{ports[0]}", "--plain")
        with Expose(tmp_path, *words, terminal=True) as it:
            it.wait_for("link up")
            assert it.end() == 0
            assert "\x1b" not in it.read()


class TestFirstFailures:
    """One sentence: what happened, likely causes, what to try."""

    def test_nothing_listens_at_the_server(self, server: Master, tmp_path: Path) -> None:
        (port,) = free_ports(1)
        with Expose(tmp_path, "9", "--to", f"127.0.0.1:{port}") as it:
            it.wait_for("refuses the connection", 5)
            assert "tunneltcp status" in it.read()
            wait_until(lambda: it.read().count("\n") >= 2, 5)
            assert it.end() == 0
            assert it.read().count("refuses") == 1, "said once, not with each attempt"

    def test_nothing_listens_at_the_target(
        self, server: Master, ports: list[int], tmp_path: Path
    ) -> None:
        (target,) = free_ports(1)
        with Expose(tmp_path, str(target), "--to", f"127.0.0.1:{ports[0]}") as it:
            it.wait_for("link up")
            with connect(ports[0]) as visitor, suppress(ConnectionError):
                visitor.sendall(b"x")
                visitor.recv(1)
            it.wait_for(f"a visitor came, but nothing listens on localhost:{target}")
            assert it.end() == 0

    def test_something_else_answers(self, server: Master, tmp_path: Path) -> None:
        with listener() as other:
            port = other.getsockname()[1]
            with Expose(tmp_path, "9", "--to", f"127.0.0.1:{port}") as it:
                found, _ = other.accept()
                with found:
                    found.sendall(b"SSH-2.0-OpenSSH_9.2\r\n" + bytes(100))
                    it.wait_for("speaks SSH")
                assert it.end() == 0

    def test_a_name_that_does_not_exist(self, server: Master, tmp_path: Path) -> None:
        with Expose(tmp_path, "9", "--to", "no.such.host.invalid:60001") as it:
            it.wait_for("the name no.such.host.invalid cannot be resolved", 15)
            assert it.end() == 0


@pytest.mark.parametrize("platform", PLATFORMS[1:])
class TestElsewhere:
    """Everything that only Linux has is taken away (tests/support/poor_platform.py)."""

    def test_one_tunnel_works_from_a_name_that_is_looked_up(
        self,
        server: Master,
        ports: list[int],
        apps: Apps,
        load: Load,
        tmp_path: Path,
        platform: str,
    ) -> None:
        words = (str(apps.add("pattern")), "--to", f"{NAME}:{ports[0]}")
        with Expose(tmp_path, *words, platform=platform) as it:
            it.wait_for("link up")
            load.transfer("small", ports[0], count=40, up=20_000, down=30_000)
            assert load.finish("small").outcomes == {"ok": 40}
            load.transfer("large", ports[0], count=3, up=8 << 20, down=8 << 20, flags="e")
            assert load.finish("large").outcomes == {"ok": 3}
            assert it.end() == 0

    def test_visitors_resets_and_refused_targets(
        self,
        server: Master,
        ports: list[int],
        apps: Apps,
        tmp_path: Path,
        platform: str,
    ) -> None:
        target = apps.add("echo")
        words = (str(target), "--to", f"127.0.0.1:{ports[0]}")
        with Expose(tmp_path, *words, platform=platform) as it:
            it.wait_for("link up")
            with connect(ports[0]) as visitor:
                visitor.sendall(b"hello")
                assert receive_exactly(visitor, 5) == b"hello"
                assert apps.reset_all(target) == 1
                expect_reset(visitor)
            apps.remove(target)
            with connect(ports[0]) as visitor:
                with suppress(ConnectionError):
                    visitor.sendall(b"x")
                expect_reset(visitor)
            it.wait_for("nothing listens on")
            assert it.end() == 0

    def test_the_terminal_is_served_there_too(
        self, server: Master, ports: list[int], apps: Apps, tmp_path: Path, platform: str
    ) -> None:
        words = (str(apps.add("echo")), "--to", f"127.0.0.1:{ports[0]}")
        with (
            Expose(tmp_path, *words, terminal=True, platform=platform) as it,
            connect(ports[0]) as visitor,
        ):
            visitor.sendall(b"x")
            assert receive_exactly(visitor, 1)
            it.wait_for("{}:{}".format(*visitor.getsockname()))
            it.press(b"\x03")
            it.wait_for("ending: 1 visitor ")
            it.press(b"\x03")
            assert it.wait(4) == 0, "and not after 5 s"

    @pytest.mark.parametrize("words", [["client", "x.json"], ["server"], ["status", "--json"]])
    def test_other_commands_say_what_to_use(
        self, server: Master, tmp_path: Path, platform: str, words: list[str]
    ) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "tests.support.poor_platform", platform, *words],
            capture_output=True,
            text=True,
            timeout=20,
            cwd=ROOT,
            check=False,
        )
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert f"tunneltcp: {words[0]} needs Linux" in done.stderr
        assert "expose 8000" in done.stderr

    def test_several_tunnels_are_refused(
        self, server: Master, tmp_path: Path, platform: str
    ) -> None:
        with Expose(tmp_path, "8000:1", "8001:2", "--to", "vps", platform=platform) as it:
            assert it.wait() == 2
            assert "run one expose for each" in it.read()


class TestSeveralTunnels:
    def test_work_and_leave_nothing_behind(
        self, server: Master, ports: list[int], apps: Apps, tmp_path: Path
    ) -> None:
        words = [f"{apps.add('echo')}:{port}" for port in ports]
        with Expose(tmp_path, *words, "--to", "127.0.0.1", terminal=True) as it:
            for port in ports:
                it.wait_for(f"{port}: link up")
                echo(port)
            with connect(ports[1]) as visitor:
                visitor.sendall(b"x")
                assert receive_exactly(visitor, 1)
                it.wait_for("{}:{}".format(*visitor.getsockname()))
            family = descendants(it.process.pid)
            assert len(family) == 6, "a master, its zygote, two workers, and a keeper for each"
            folder = next(it.temporary.iterdir())
            assert folder.stat().st_mode & 0o777 == 0o700
            it.press(b"\x03")
            assert it.wait() == 0
            assert "ended: 3 visitors" in it.read()
            assert not any(map(alive, family))
            assert it.left_over() == []
            assert termios.tcgetattr(it.slave) == it.modes

    def test_a_second_signal_ends_them_at_once(
        self, server: Master, ports: list[int], apps: Apps, tmp_path: Path
    ) -> None:
        words = [f"{apps.add('echo')}:{port}" for port in ports]
        with (
            Expose(tmp_path, *words, "--to", "127.0.0.1") as it,
            connect(ports[0]) as visitor,
        ):
            visitor.sendall(b"x")
            assert receive_exactly(visitor, 1)
            wait_until(lambda: server.link_up(ports[1]))
            it.process.send_signal(signal.SIGINT)
            it.wait_for("ending: 1 visitor ")
            assert it.end(timeout=4) == 0, "and not after 5 s"
            expect_reset(visitor)

    def test_what_goes_wrong_is_said_with_the_port(
        self, server: Master, ports: list[int], tmp_path: Path
    ) -> None:
        (nobody,) = free_ports(1)
        words = [f"9:{ports[0]}", f"9:{nobody}", "--to", "127.0.0.1"]
        with Expose(tmp_path, *words) as it:
            it.wait_for(f"{nobody}: no link: 127.0.0.1:{nobody} refuses the connection")
            with connect(ports[0]) as visitor, suppress(ConnectionError):
                visitor.sendall(b"x")
                visitor.recv(1)
            it.wait_for(f"{ports[0]}: a visitor came, but nothing listens on localhost:9")
            assert it.end() == 0

    def test_none_outlives_who_was_killed(
        self, server: Master, ports: list[int], tmp_path: Path
    ) -> None:
        words = [f"9:{port}" for port in ports]
        with Expose(tmp_path, *words, "--to", "127.0.0.1") as it:
            for port in ports:
                it.wait_for(f"{port}: link up")
            family = descendants(it.process.pid)
            it.process.kill()
            it.process.wait()
            try:
                wait_until(lambda: not any(map(alive, family)), 5, "they end by themselves")
            finally:
                for pid in family:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                    with suppress(ChildProcessError):
                        os.waitpid(pid, 0)

    def test_a_master_that_dies_is_said(
        self, server: Master, ports: list[int], tmp_path: Path
    ) -> None:
        words = [f"9:{port}" for port in ports]
        with Expose(tmp_path, *words, "--to", "127.0.0.1") as it:
            it.wait_for("link up")
            family = descendants(it.process.pid)
            os.kill(min(family), signal.SIGKILL)
            assert it.wait() == 1
            assert "was killed by signal 9" in it.read()
            wait_until(lambda: not any(map(alive, family)), 5)
            for pid in family:
                with suppress(ChildProcessError):
                    os.waitpid(pid, 0)


def test_sockets_are_ipv6_where_they_are_said_to_be(
    server: Master, apps: Apps, tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    target = apps.add("echo", "::1")
    config = [{"remote_port": port}]
    with (
        Master("server", config, tmp_path / "s6", instance="six", bind=["::1"]) as other,
        Expose(tmp_path, f"[::1]:{target}", "--to", f"[::1]:{port}") as it,
    ):
        other.allowed.append("lost")
        it.wait_for(f"[::1]:{port} leads to [::1]:{target}")
        with socket.create_connection(("::1", port), 5) as visitor:
            visitor.sendall(b"hello")
            assert receive_exactly(visitor, 5) == b"hello"
        assert it.end() == 0
