"""What masters and workers have given up: cores, new rights, and with "user" being root."""

from __future__ import annotations

import os
import pwd
import signal
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from tests.support.apps import Apps
from tests.support.leaks import descendants
from tests.support.ports import free_port
from tests.support.processes import Master, TunnelPair, run_tunneltcp
from tests.support.sockets import connect, receive_exactly
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

NOBODY = pwd.getpwnam("nobody")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")


@pytest.fixture(scope="module")
def target() -> Iterator[int]:
    with Apps() as apps:
        yield apps.add("echo")


def echo(port: int) -> None:
    with connect(port) as visitor:
        visitor.sendall(b"hello")
        assert receive_exactly(visitor, 5) == b"hello"


def facts(pid: int) -> dict[str, str]:
    """What the kernel says of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def core_limit(pid: int) -> list[str]:
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    return next(line.split()[4:6] for line in lines if line.startswith("Max core file size"))


def low_port() -> int:
    """A port that only root may bind."""
    for port in range(1023, 600, -1):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("all ports below 1024 are taken")


def check_given_up(pid: int) -> None:
    assert core_limit(pid) == ["0", "0"]
    assert facts(pid)["NoNewPrivs"] == "1"


def check_is_nobody(pid: int) -> None:
    check_given_up(pid)
    found = facts(pid)
    uid, gid = str(NOBODY.pw_uid), str(NOBODY.pw_gid)
    assert found["Uid"].split() == [uid] * 4
    assert found["Gid"].split() == [gid] * 4
    assert found["Groups"] == ""
    for kind in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(found[kind], 16) == 0, kind
    # The kernel gives the files of who is not dumpable to root.
    assert Path(f"/proc/{pid}/mem").stat().st_uid == 0


def test_a_crash_leaves_no_core(tmp_path: Path, target: int) -> None:
    """Started with a core allowed, as by a shell with "ulimit -c unlimited"."""
    port = free_port()
    config = [{"remote_port": port, "local_port": target}]
    prefix = ("prlimit", "--core=unlimited") if os.geteuid() == 0 else ()
    with Master("server", config, tmp_path, prefix=prefix) as server:
        server.allowed.append("SIGSEGV")
        for pid in (server.pid, *descendants(server.pid)):
            check_given_up(pid)
        before = {path for path in Path().iterdir() if path.name.startswith("core")}
        old = server.kill_worker(port, signal.SIGSEGV)
        server.wait_for_successor(port, old)
        assert "SIGSEGV" in server.tunnel(port)["last_exit"]["reason"]
        found = {*tmp_path.rglob("core*"), *Path().glob("core*"), *Path("/").glob("core*")}
        assert not {path for path in found - before if path.is_file()}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TunnelPair]:
    folder = tmp_path_factory.mktemp("user")
    common = {"user": "nobody", "access_log": True, "log_bytes": 4096}
    with Apps() as apps:
        pair = TunnelPair([apps.add("echo")], folder, common=common, server_host="localhost")
        pair.ports = [low_port()]
        for master in (pair.server, pair.client):
            config: Any = master.config
            config["tunnels"][0]["remote_port"] = pair.port
        with pair:
            yield pair


@as_root
class TestUser:
    def test_workers_are_somebody_else_and_the_master_binds_low_ports(
        self, pair: TunnelPair
    ) -> None:
        echo(pair.port)
        for master in (pair.server, pair.client):
            check_is_nobody(master.worker_pid(pair.port))
            check_given_up(master.pid)
            assert facts(master.pid)["Uid"].split() == ["0"] * 4

    def test_a_successor_is_too(self, pair: TunnelPair) -> None:
        pair.server.allowed.append("SIGKILL")
        old = pair.server.kill_worker(pair.port)
        check_is_nobody(pair.server.wait_for_successor(pair.port, old))
        pair.wait_links()
        echo(pair.port)

    def test_each_writes_its_own_log_and_nobody_the_masters(self, pair: TunnelPair) -> None:
        server = pair.server
        folder = server.log_dir / "nobody"
        for path in (server.log_dir, server.state_dir, server.run_dir):
            status = path.stat()
            assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (0, 0o700), path
        for path in (server.log_dir / "master.log", server.run_dir / "master.pid"):
            assert path.stat().st_uid == 0
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        for _ in range(40):
            echo(pair.port)
        rotated = folder / f"tunnel-{pair.port}.access.log.1"
        wait_until(rotated.exists, 5, "they rotate their logs too")
        assert {path.stat().st_uid for path in (folder, *folder.iterdir())} == {NOBODY.pw_uid}
        shown = run_tunneltcp("logs", str(pair.port), "--run-dir", str(server.run_dir))
        assert "link up" in shown.stdout, shown.stderr
        again = run_tunneltcp("logs", str(pair.port), "--log-dir", str(server.log_dir))
        assert again.stdout == shown.stdout
        assert server.tunnel(pair.port)["log_dropped"] == 0

    def test_comes_and_goes_with_a_reload(self, tmp_path: Path, target: int) -> None:
        port = free_port()
        config: dict[str, object] = {"tunnels": [{"remote_port": port, "local_port": target}]}
        with Master("server", config, tmp_path) as server:
            reload = ("reload", "--run-dir", str(server.run_dir))
            first = server.worker_pid(port)
            server.allowed.append("config not taken")
            for user, words in (
                ("no-such-user", "there is no user no-such-user here"),
                ("root", "root is root itself"),
            ):
                server.config_path.write_bytes(orjson.dumps(config | {"user": user}))
                done = run_tunneltcp(*reload)
                assert done.returncode != 0
                assert words in done.stderr
                assert server.worker_pid(port) == first, "all goes on as before"
            server.config_path.write_bytes(orjson.dumps(config | {"user": "nobody"}))
            assert run_tunneltcp(*reload).returncode == 0
            second = server.wait_for_successor(port, first)
            check_is_nobody(second)
            server.config_path.write_bytes(orjson.dumps(config))
            assert run_tunneltcp(*reload).returncode == 0
            third = server.wait_for_successor(port, second)
            assert facts(third)["Uid"].split() == ["0"] * 4

    def test_a_link_in_the_place_of_a_log_is_not_followed(
        self, tmp_path: Path, target: int
    ) -> None:
        """Whoever is "nobody" can put one there; it must not matter."""
        port = free_port()
        folder = tmp_path / "log/nobody"
        folder.mkdir(parents=True)
        os.chown(folder, NOBODY.pw_uid, NOBODY.pw_gid)
        (folder / f"tunnel-{port}.log").symlink_to("victim")
        (folder / "tunnel-1.log").symlink_to("/etc/passwd")
        config = {"tunnels": [{"remote_port": port, "local_port": target}], "user": "nobody"}
        with Master("server", config, tmp_path) as server:
            server.allowed.append("SIGKILL")
            server.wait_for_successor(port, server.kill_worker(port))
            # What its successor says of it is lost, and counted; nothing else happens.
            assert server.tunnel(port)["log_dropped"] > 0
        assert not (folder / "victim").exists()
        shown = run_tunneltcp("logs", "1", "--log-dir", str(server.log_dir))
        assert shown.returncode == 1
        assert "symbolic" in shown.stderr
        assert "root" not in shown.stdout

    @pytest.mark.parametrize(
        ("user", "prefix", "words"),
        [
            ("no-such-user", (), "there is no user no-such-user here; make one: useradd"),
            ("nobody", ("setpriv", "--bounding-set=-setuid,-kill"), "CAP_KILL, CAP_SETUID"),
        ],
    )
    def test_that_cannot_be_is_told_at_once(
        self, user: str, prefix: tuple[str, ...], words: str, tmp_path: Path, target: int
    ) -> None:
        tunnel = {"remote_port": free_port(), "local_port": target}
        config = {"tunnels": [tunnel], "user": user}
        master = Master("server", config, tmp_path, prefix=prefix)
        master.start(ready=False)
        assert master.wait() == 2
        assert words in master.stderr()
        assert "Traceback" not in master.stderr()
        master.run_dir.rmdir()
