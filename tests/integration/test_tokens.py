"""Tokens with real processes: who holds them, who does not, and how one replaces another."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.support.apps import Apps
from tests.support.control import ask_status
from tests.support.netns import two_hosts
from tests.support.ports import free_port
from tests.support.processes import TOKEN, Master, run_tunneltcp, write_token
from tests.support.service import ROOT
from tests.support.sockets import connect
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

NEEDLE = TOKEN.encode()
OTHER = "another-token-of-at-least-32-characters"


@pytest.fixture(scope="module")
def target() -> Iterator[int]:
    with Apps() as apps:
        yield apps.add("echo")


def memory_of(pid: int) -> Iterator[bytes]:
    """Every mapping of a process that can be read, in pieces."""
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            match = re.match(r"([0-9a-f]+)-([0-9a-f]+) r.*", line)
            if match is None or "[v" in line or "memfd:memory" in line:
                continue  # the kernel's own; the tunnel's arena of 1 GiB of nothing
            with suppress(OSError, ValueError):
                memory.seek(int(match[1], 16))
                yield memory.read(int(match[2], 16) - int(match[1], 16))


def where_it_is(pid: int, needle: bytes = NEEDLE) -> list[str]:
    """Where a secret stands that should stand nowhere."""
    found = [
        name
        for name in ("environ", "cmdline")
        if needle in Path(f"/proc/{pid}/{name}").read_bytes()
    ]
    found += ["memory"] if any(needle in piece for piece in memory_of(pid)) else []
    return found


def family(master: Master) -> list[int]:
    return [
        master.pid,
        *(one.pid for one in psutil.Process(master.pid).children(recursive=True)),
    ]


def echo(port: int) -> None:
    with connect(port) as visitor:
        visitor.sendall(b"hello")
        assert visitor.recv(5) == b"hello"


def linked(server: Master, client: Master, port: int) -> None:
    for one in (server, client):
        wait_until(lambda one=one: one.link_up(port), 10, lambda one=one: one.complaint())  # type: ignore[misc]


def denied(client: Master, port: int) -> str:
    """Wait until a client says that its token is not accepted; return its words."""

    def check() -> str:
        reason = str(client.tunnel(port)["reason"])
        return reason if "does not accept our token" in reason else ""

    return wait_until(check, 10, client.complaint)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may look into their memory")
class TestNobodyHoldsIt:
    def check(self, *masters: Master) -> None:
        for master in masters:
            pids = family(master)
            assert len(pids) == 4, "a master, its zygote and worker, and the keeper of that"
            for pid in pids:
                assert where_it_is(pid) == [], f"{master}: process {pid}"
            text = master.log_text() + master.stderr() + str(master.status())
            assert TOKEN not in text

    def test_the_search_finds_what_is_there(self) -> None:
        code = (
            f"import sys; kept = '{TOKEN[:20]}' + '{TOKEN[20:]}'; print(1, flush=True); input()"
        )
        with subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={"SECRET": TOKEN},
        ) as process:  # fmt: skip
            assert process.stdout is not None
            process.stdout.readline()
            assert where_it_is(process.pid) == ["environ", "memory"]
            process.kill()

    def pair(self, tmp_path: Path, target: int, kind: str) -> tuple[Master, Master, int]:
        port = free_port()
        config: dict[str, object] = {"tunnels": [{"remote_port": port, "local_port": target}]}
        environment, arguments = {}, []
        if kind == "config":
            config["token"] = TOKEN
        elif kind == "env":
            config["token"] = {"env": "MY_SECRET"}
            environment = {"MY_SECRET": f" {TOKEN}\n"}
        elif kind == "variable":
            environment = {"TUNNELTCP_TOKEN": TOKEN}
        elif kind == "login":
            logins = tmp_path / "client/state/logins"
            logins.mkdir(parents=True)
            write_token(logins).rename(logins / "127.0.0.1")
            own = tmp_path / "server/state"
            own.mkdir(parents=True)
            write_token(own)
        elif kind == "file":
            config["token"] = {"file": str(write_token(tmp_path))}
        else:
            arguments = [f"--token-file={write_token(tmp_path)}"]
        server, client = (
            Master(
                role, config, tmp_path / role, server="127.0.0.1" if role == "client" else "",
                environment=environment, arguments=arguments, token=None,
            )
            for role in ("server", "client")
        )  # fmt: skip
        return server, client, port

    @pytest.mark.parametrize("kind", ["config", "env", "variable", "file", "option", "login"])
    def test_wherever_it_comes_from(self, kind: str, tmp_path: Path, target: int) -> None:
        server, client, port = self.pair(tmp_path, target, kind)
        with server, client:
            warned = "there is a token in it" in server.log_text("master.log")
            assert warned == (kind == "config"), "others may read these configs"
            linked(server, client, port)
            echo(port)
            self.check(server, client)
            # A successor is born like the first, and so is what a reload makes.
            server.wait_for_successor(port, server.kill_worker(port))
            done = run_tunneltcp("reload", "--run-dir", str(client.run_dir))
            assert done.returncode == 0, done.stderr
            linked(server, client, port)
            echo(port)
            self.check(server, client)

    def test_one_that_the_server_made(self, tmp_path: Path, target: int) -> None:
        port = free_port()
        with Master("server", {"ports": port}, tmp_path / "server", token=None) as server:
            path = server.state_dir / "token"
            token = path.read_text().strip()
            assert path.stat().st_mode & 0o777 == 0o600
            assert len(token) >= 43
            assert not token.startswith("-")
            for pid in family(server):
                assert where_it_is(pid, token.encode()) == []
            assert token not in server.log_text() + server.stderr()
            assert "tunneltcp login HOST" in server.log_text("master.log")
            printed = run_tunneltcp("token", "--run-dir", str(server.run_dir))
            assert printed.stdout == f"{token}\n"
            assert str(server.state_dir) in printed.stderr
        with Master("server", {"ports": port}, tmp_path / "server", token=None):
            assert path.read_text().strip() == token, "it is made once"


class TestWithoutTheRightOne:
    def test_a_client_with_another_is_denied(self, tmp_path: Path, target: int) -> None:
        port = free_port()
        config = [{"remote_port": port, "local_port": target}]
        with (
            Master("server", config, tmp_path / "server") as server,
            Master(
                "client", config, tmp_path / "client", server="127.0.0.1", token=OTHER
            ) as client,
        ):
            reason = denied(client, port)
            assert "tunneltcp login" in reason
            wait_until(lambda: "does not hold our token" in server.log_text("master.log") or
                       "does not hold our token" in server.log_text(), 5)  # fmt: skip
            assert not server.link_up(port)

    def test_a_client_without_any_says_what_to_do(self, tmp_path: Path, target: int) -> None:
        config = [{"remote_port": free_port(), "local_port": target}]
        client = Master(
            "client", config, tmp_path, server="vps.invalid", token=None,
            environment={"SUPERVISOR_ENABLED": ""},
        )  # fmt: skip
        client._environment.pop("SUPERVISOR_ENABLED")
        client.start(ready=False)
        assert client.wait() == 2
        assert "log in once with: tunneltcp login vps.invalid" in client.stderr()

    @pytest.mark.parametrize(
        ("mode", "text", "problem"),
        [
            (0o604, TOKEN, "chmod 600"),
            (0o600, "hush-hush", "is shorter than 32 characters"),
            (0o600, " \n", "is empty"),
            (None, "", "cannot be read"),
        ],
    )
    def test_a_file_that_will_not_do(
        self, mode: int | None, text: str, problem: str, tmp_path: Path
    ) -> None:
        path = tmp_path / "secret"
        if mode is not None:
            path.write_text(text)
            path.chmod(mode)
        done = run_tunneltcp("server", "60001", "--token-file", str(path),
                             "--state-dir", str(tmp_path), "--run-dir", str(tmp_path / "run"),
                             "--log-dir", str(tmp_path))  # fmt: skip
        assert done.returncode == 2
        assert problem in done.stderr
        assert str(path) in done.stderr
        assert text.strip() == "" or text.strip() not in done.stderr
        assert "Traceback" not in done.stderr


class TestRotation:
    def test_both_are_good_until_the_old_one_is_retired(
        self, tmp_path: Path, target: int
    ) -> None:
        port = free_port()
        config = {"tunnels": [{"remote_port": port, "local_port": target}], "hold": 0}
        with Master("server", config, tmp_path / "server", token=None) as server:
            token_words = ("--run-dir", str(server.run_dir))
            first = run_tunneltcp("token", *token_words).stdout.strip()
            old = Master("client", config, tmp_path / "old", server="127.0.0.1", token=first)
            with old:
                linked(server, old, port)
                pid = server.worker_pid(port)
                with connect(port) as visitor:
                    visitor.sendall(b"before")
                    assert visitor.recv(6) == b"before"
                    assert server.tunnel(port)["link"]["key"] == "current"
                    done = run_tunneltcp("token", "rotate", *token_words)
                    assert done.returncode == 0, done.stderr
                    wait_until(lambda: server.tunnel(port)["link"]["key"] == "old", 5)
                    assert "old key" in run_tunneltcp("status", *token_words).stdout
                    visitor.sendall(b"after")
                    assert visitor.recv(5) == b"after", "nobody is thrown out by a rotation"
                    assert server.worker_pid(port) == pid
                    second = run_tunneltcp("token", *token_words).stdout.strip()
                    assert second != first
                    again = run_tunneltcp("token", "rotate", *token_words)
                    assert again.returncode == 1
                    assert "tunneltcp token retire" in again.stderr
                    done = run_tunneltcp("token", "retire", *token_words)
                    assert done.returncode == 0, done.stderr
                    wait_until(lambda: not server.link_up(port), 8, "the old key's link ends")
                    with pytest.raises(ConnectionResetError):
                        visitor.recv(1)
                denied(old, port)
                assert server.worker_pid(port) == pid
            with Master(
                "client", config, tmp_path / "new", server="127.0.0.1", token=second
            ) as new:
                linked(server, new, port)
                assert server.tunnel(port)["link"]["key"] == "current"
            for secret in (first, second):
                assert secret not in server.log_text() + server.stderr()

    def test_a_client_that_logs_in_anew_has_a_link_with_the_new_one(
        self, tmp_path: Path, target: int
    ) -> None:
        port = free_port()
        config = [{"remote_port": port, "local_port": target}]
        with Master("server", config, tmp_path / "server", token=None) as server:
            words = ("--run-dir", str(server.run_dir))
            first = run_tunneltcp("token", *words).stdout.strip()
            client = Master(
                "client", config, tmp_path / "client", server="127.0.0.1", token=first
            )
            with client:
                linked(server, client, port)
                run_tunneltcp("token", "rotate", *words)
                wait_until(lambda: server.tunnel(port)["link"]["key"] == "old", 5)
                new = run_tunneltcp("token", *words).stdout.strip()
                pid = client.worker_pid(port)
                write_token(tmp_path / "client", new)
                assert run_tunneltcp("reload", "--run-dir", str(client.run_dir)).returncode == 0
                wait_until(lambda: server.tunnel(port)["link"]["key"] == "current", 5)
                assert client.worker_pid(port) == pid
                done = run_tunneltcp("token", "retire", *words)
                assert done.returncode == 0, done.stderr
                echo(port)
                assert server.link_up(port)

    def test_a_token_from_elsewhere_is_named_and_not_printed(self, tmp_path: Path) -> None:
        with Master("server", {"ports": free_port()}, tmp_path) as server:
            for words in (("token",), ("token", "rotate"), ("token", "retire")):
                done = run_tunneltcp(*words, "--run-dir", str(server.run_dir))
                assert done.returncode == 1
                assert str(tmp_path / "token") in done.stderr
                assert TOKEN not in done.stdout + done.stderr

    def test_asking_never_makes_one(self, tmp_path: Path) -> None:
        done = run_tunneltcp("token", "--state-dir", str(tmp_path))
        assert done.returncode == 1
        assert list(tmp_path.iterdir()) == []


def login(*words: str, token: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tunneltcp", "login", *words],
        input=token, capture_output=True, text=True, timeout=20, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


class TestLogin:
    def test_it_is_proven_kept_and_found(self, tmp_path: Path, target: int) -> None:
        port = free_port()
        config = [{"remote_port": port, "local_port": target}]
        state = tmp_path / "client/state"
        with Master("server", config, tmp_path / "server") as server:
            where = (f"127.0.0.1:{port}", "--state-dir", str(state))
            wrong = login(*where, token=OTHER)
            assert wrong.returncode == 1
            assert "does not accept our token" in wrong.stderr
            assert not state.exists()
            done = login(*where, token=f"  {TOKEN}\n")
            assert done.returncode == 0, done.stderr
            kept = state / "logins/127.0.0.1"
            assert kept.stat().st_mode & 0o777 == 0o600
            assert kept.read_text() == f"{TOKEN}\n"
            assert TOKEN not in done.stdout + done.stderr
            client = Master(
                "client", config, tmp_path / "client", server="127.0.0.1", token=None
            )
            with client:
                linked(server, client, port)
                links = server.tunnel(port)["links_total"]
                assert login(*where, token=TOKEN).returncode == 0
                echo(port)
                assert server.tunnel(port)["links_total"] == links, "it takes nobody's place"

    def test_where_nobody_answers_it_is_kept_only_unchecked(self, tmp_path: Path) -> None:
        where = (f"127.0.0.1:{free_port()}", "--state-dir", str(tmp_path))
        done = login(*where, token=TOKEN)
        assert done.returncode == 1
        assert "refuses the connection" in done.stderr
        assert "--no-check" in done.stderr
        assert list(tmp_path.iterdir()) == []
        assert login(*where, "--no-check", token=TOKEN).returncode == 0
        cut = login(*where, token=TOKEN[:9])
        assert cut.returncode == 2
        assert "shorter than 32 characters" in cut.stderr
        assert '"tunneltcp token" prints the right one on 127.0.0.1' in cut.stderr
        assert "make one" not in cut.stderr
        assert (tmp_path / "logins/127.0.0.1").read_text() == f"{TOKEN}\n"

    def test_who_does_not_know_the_token_is_not_believed(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as impostor:
            port = impostor.getsockname()[1]
            with subprocess.Popen(
                [sys.executable, "-m", "tunneltcp", "login", f"127.0.0.1:{port}",
                 "--state-dir", str(tmp_path)],
                stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL, text=True,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            ) as process:  # fmt: skip
                assert process.stdin is not None
                process.stdin.write(TOKEN)
                process.stdin.close()
                impostor.settimeout(10)
                sock, _ = impostor.accept()
                said = sock.recv(4096)
                text = b'{"type":"refused","code":"probed"}'
                sock.sendall(len(text).to_bytes(2, "big") + text)
                assert process.wait(10) == 1
                sock.close()
            assert TOKEN.encode() not in said
        assert list(tmp_path.iterdir()) == []


class TestAuthNone:
    def test_both_sides_warn_and_work_over_loopback(self, tmp_path: Path, target: int) -> None:
        port = free_port()
        config = {"tunnels": [{"remote_port": port, "local_port": target}], "auth": "none"}
        with (
            Master("server", config, tmp_path / "server") as server,
            Master("client", config, tmp_path / "client", server="127.0.0.1") as client,
        ):
            linked(server, client, port)
            echo(port)
            for one in (server, client):
                assert 'WARNING "auth" is "none"' in one.log_text("master.log")
            assert not (server.state_dir / "token").exists()

    def test_a_link_from_another_machine_is_denied(self, tmp_path: Path, target: int) -> None:
        port = free_port()
        config = {"tunnels": [{"remote_port": port, "local_port": target}], "auth": "none"}
        with (
            two_hosts() as hosts,
            Master("server", {**config, "bind": "*"}, tmp_path / "server",
                   prefix=hosts.server.prefix) as server,
            Master("client", config, tmp_path / "client", server=hosts.server.address,
                   prefix=hosts.client.prefix) as client,
        ):  # fmt: skip
            reason = denied(client, port)
            assert "tunneltcp login" in reason
            wait_until(lambda: "links are only taken from this machine" in server.log_text(), 5)
            assert not server.link_up(port)

    def test_it_is_never_a_fallback(self, tmp_path: Path, target: int) -> None:
        """One side alone: no link, either way round."""
        for one, other in (({}, {"auth": "none"}), ({"auth": "none"}, {})):
            port = free_port()
            config = {"tunnels": [{"remote_port": port, "local_port": target}]}
            folder = tmp_path / (f"{len(one)}")
            with (
                Master("server", config | one, folder / "server") as server,
                Master(
                    "client", config | other, folder / "client", server="127.0.0.1"
                ) as client,
            ):
                reason = denied(client, port)
                assert "tunneltcp login" in reason
                assert not server.link_up(port)


def test_a_client_beside_its_server_needs_no_login(tmp_path: Path, target: int) -> None:
    """The user's own server on this machine is asked where its token lies."""
    port = free_port()
    config = [{"remote_port": port, "local_port": target}]
    instance = f"near-{os.getpid()}"
    base = Path("/run/tunneltcp") if os.geteuid() == 0 else None
    if base is None:
        pytest.skip("the usual run folder of root")
    with (
        Master("server", config, tmp_path / "server", instance=instance, token=None,
               run_dir=base / instance,
               arguments=[f"--state-dir={tmp_path}/s", f"--log-dir={tmp_path}/l"]) as server,
        Master("client", config, tmp_path / "client", server="localhost", token=None) as client,
    ):  # fmt: skip
        wait_until(lambda: client.link_up(port), 10, client.complaint)
        assert ask_status(server.run_dir)["token"].startswith("its own")
        echo(port)
