"""``tunneltcp status``, instances side by side, and who may ask."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
import pytest

from tests.support.apps import Apps
from tests.support.ports import free_port
from tests.support.processes import Json, Master, TunnelPair, run_tunneltcp
from tests.support.require import require_root
from tests.support.service import ROOT
from tests.support.sockets import connect, receive_exactly
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def target() -> Iterator[int]:
    with Apps() as apps:
        yield apps.add("echo")


@pytest.fixture(scope="module")
def pair(target: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TunnelPair]:
    targets = [{"local_port": target, "name": "web"}]
    folder = tmp_path_factory.mktemp("one")
    with TunnelPair(targets, folder, instance="one") as running:
        yield running


def by_command(master: Master) -> Json:
    done = run_tunneltcp("status", "--json", f"--run-dir={master.run_dir}")
    assert done.returncode == 0, done.stderr
    answer: Json = orjson.loads(done.stdout)
    return answer


@pytest.mark.parametrize("role", ["server", "client"])
def test_json_has_the_promised_fields(pair: TunnelPair, target: int, role: str) -> None:
    master = pair.server if role == "server" else pair.client
    with connect(pair.port) as visitor:
        visitor.sendall(b"hello")
        assert receive_exactly(visitor, 5) == b"hello"
        wait_until(lambda: master.tunnel(pair.port)["visitors"] == 1, 8)
        wait_until(lambda: 0 < (master.tunnel(pair.port)["link"]["rtt_ms"] or 0) < 1000, 12)
        wait_until(lambda: master.tunnel(pair.port)["cpu"] is not None, 6)
        # A worker writes down what moved when it comes to rest, not byte by byte.
        wait_until(lambda: master.tunnel(pair.port)["bytes_out"] >= 5, 8)
        status = by_command(master)

    assert status["role"] == role
    assert status["instance"] == "one"
    assert status["pid"] == master.pid
    assert status["version"]
    (tunnel,) = status["tunnels"]
    assert tunnel["port"] == pair.port
    assert tunnel["name"] == "web"
    assert tunnel["target"] == f"localhost:{target}"
    assert tunnel["state"] == "running"
    assert tunnel["visitors"] == 1
    assert tunnel["visitors_total"] >= 1
    assert tunnel["bytes_in"] >= 5
    assert tunnel["bytes_out"] >= 5
    assert tunnel["restarts"] == 0
    assert tunnel["last_exit"] is None
    assert tunnel["rss"] > 1 << 20
    assert tunnel["cpu"] >= 0
    os.kill(tunnel["pid"], 0)
    link = tunnel["link"]
    assert link["state"] == "up"
    assert link["rtt_ms"] > 0
    assert link["peer"].startswith("127.0.0.1")
    for text in (status["since"], link["since"]):
        since = datetime.fromisoformat(text)
        assert since.utcoffset() == timedelta(0)
        assert datetime.now(UTC) - timedelta(minutes=5) < since <= datetime.now(UTC)


def test_the_table_is_for_people(pair: TunnelPair) -> None:
    done = run_tunneltcp("status", f"--run-dir={pair.server.run_dir}")

    assert done.returncode == 0, done.stderr
    assert str(pair.port) in done.stdout
    assert "up" in done.stdout
    assert "web" in done.stdout


def test_where_nobody_runs_it_says_so(tmp_path: Path) -> None:
    done = run_tunneltcp("status", f"--run-dir={tmp_path}")

    assert done.returncode == 1
    assert "no master is running" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_second_master_of_an_instance_says_who_runs(pair: TunnelPair) -> None:
    for master in (pair.server, pair.client):
        words = ["--role", master.role, "--config", str(master.config_path)]
        words += ["--server", "127.0.0.1"] if master.role == "client" else []
        done = run_tunneltcp(*words, *master.folder_words(), module="tunneltcp.master")

        assert done.returncode not in (0, 2), done.stderr
        assert str(master.pid) in done.stderr
        assert '"one"' in done.stderr
        assert "Traceback" not in done.stderr
        assert master.status()["pid"] == master.pid


def test_two_pairs_run_side_by_side(pair: TunnelPair, target: int, tmp_path: Path) -> None:
    with TunnelPair([target], tmp_path, instance="two") as other:
        for one in (pair, other):
            with connect(one.port) as visitor:
                visitor.sendall(b"hello")
                assert receive_exactly(visitor, 5) == b"hello"
        assert other.server.status()["instance"] == "two"
        pids = {m.pid for p in (pair, other) for m in (p.server, p.client)}
        assert len(pids) == 4
    assert pair.server.link_up(pair.port)


def test_an_instance_is_found_by_its_name(target: int, tmp_path: Path) -> None:
    """It chooses its folders itself, named after the instance, and is found there."""
    name = f"test-{os.getpid()}"
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    environment = {"XDG_RUNTIME_DIR": str(runtime), "XDG_STATE_HOME": str(tmp_path / "state")}
    root = os.geteuid() == 0
    run_dir = (Path("/run") if root else runtime) / "tunneltcp" / name
    config = [{"remote_port": free_port()}]
    server = Master(
        "server",
        config,
        tmp_path / "m",
        instance=name,
        run_dir=run_dir,
        environment=environment,
    )
    try:
        with server:
            done = run_tunneltcp(
                "status", "--json", f"--instance={name}", environment=environment
            )
            assert done.returncode == 0, done.stderr
            status = orjson.loads(done.stdout)
            assert status["pid"] == server.pid
            assert Path(status["log_dir"], "master.log").exists()
            for folder in (status["log_dir"], status["state_dir"]):
                assert name in Path(folder).parts
                if not root:
                    assert Path(folder).is_relative_to(tmp_path / "state")
    finally:
        if root:
            for base in ("/var/lib", "/var/log"):
                shutil.rmtree(Path(base, "tunneltcp", name), ignore_errors=True)
    done = run_tunneltcp("status", f"--instance={name}", environment=environment)
    assert done.returncode == 1
    assert name in done.stderr


def test_another_user_is_told_whose_master_it_is(pair: TunnelPair, tmp_path: Path) -> None:
    require_root()
    nobody = pwd.getpwnam("nobody")
    folder = pair.server.run_dir
    code = (
        "import sys; from tunneltcp.cli.main import main; "
        "sys.argv = ['tunneltcp', *sys.argv[1:]]; main()"
    )
    # The interpreter and the sources may lie where others can't read: load first, then drop.
    drop = (
        f"import os, click, orjson, psutil, loguru, encodings.idna, tunneltcp.cli.main, "
        f"tunneltcp.cli.status; os.setgroups([]); os.setgid({nobody.pw_gid}); "
        f"os.setuid({nobody.pw_uid}); "
    )
    done = subprocess.run(
        [sys.executable, "-c", drop + code, "status", f"--run-dir={folder}"],
        capture_output=True,
        text=True,
        timeout=20,
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )

    assert done.returncode == 1, done.stdout
    assert "belongs to user root" in done.stderr
    assert "not running" not in done.stderr
    assert "Traceback" not in done.stderr


def test_the_run_folder_is_private(pair: TunnelPair) -> None:
    assert pair.server.run_dir.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "config",
    ["[", "[]", '[{"remote_port": 99999999}]', '{"tunels": []}'],
    ids=["not-json", "empty", "bad-port", "unknown-key"],
)
def test_a_bad_config_starts_nothing_and_is_no_traceback(tmp_path: Path, config: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(config)
    folders = [f"--{name}-dir={tmp_path / name}" for name in ("run", "state", "log")]
    words = ["--role", "server", "--config", str(path), *folders]
    done = run_tunneltcp(*words, module="tunneltcp.master")

    assert done.returncode == 2
    assert str(path) in done.stderr
    assert "Traceback" not in done.stderr
