"""``tunneltcp status``: found, not running, and not allowed are three answers."""

from __future__ import annotations

import os
import socket
from contextlib import contextmanager

import orjson
import pytest
from click.testing import CliRunner

from tunneltcp.cli import ask as cli_ask
from tunneltcp.cli.ask import NotAllowed, NotRunning, ask
from tunneltcp.cli.main import main
from tunneltcp.control.codec import encode_frame
from tunneltcp.errors import TunnelError
from tunneltcp.master.folders import InstanceLock

TUNNEL = {
    "port": 60001, "name": "web", "target": "localhost:8000", "state": "running",
    "reason": None,
    "link": {"state": "up", "rtt_ms": 1.25, "doubted": False}, "visitors": 2,
    "visitors_total": 30, "bytes_in": 1500, "bytes_out": 2_500_000, "restarts": 1, "cpu": 1.5,
    "rss": 20_000_000,
}  # fmt: skip
WAITING = {
    **TUNNEL, "port": 60002, "state": "backoff",
    "reason": "port 60002 is busy\x1b[2J", "cpu": None,
    "link": {"state": "down", "rtt_ms": None}, "rss": None,
}  # fmt: skip
ANSWER = {
    "role": "server", "instance": "web", "pid": 7, "since": "2026-11-22T15:04:05.123+00:00",
    "version": "0.2.0", "tunnels": [TUNNEL, WAITING],
}  # fmt: skip


@contextmanager
def answering(folder, data: bytes):
    """Be a master that says ``data`` to the first who asks."""
    folder.mkdir(exist_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "control.sock"))
        listener.listen()
        pid = os.fork()  # noqa: TID251 - somebody else has to answer
        if pid == 0:
            connection, _ = listener.accept()
            connection.recv(1000)
            connection.sendall(data)
            os._exit(0)
        yield
        os.waitpid(pid, 0)


def status(*words):
    return CliRunner().invoke(main, ["status", *map(str, words)])


def test_json_is_what_the_master_said(tmp_path):
    with answering(tmp_path / "a", encode_frame(ANSWER)):
        done = status("--json", "--run-dir", tmp_path / "a")
    assert done.exit_code == 0
    assert orjson.loads(done.stdout) == ANSWER | {"run_dir": str(tmp_path / "a")}


def test_the_table(tmp_path):
    with answering(tmp_path / "a", encode_frame(ANSWER)):
        done = status("--run-dir", tmp_path / "a")
    assert done.exit_code == 0
    first = next(line for line in done.stdout.splitlines() if line.lstrip().startswith("60001"))
    assert first.split() == [
        "60001", "localhost:8000", "running", "up", "1.2", "ms", "2/30", "1.5", "kB", "2.5",
        "MB",
        "1", "2", "20.0", "MB", "web",
    ]  # fmt: skip
    assert "server web, process 7, since 2026-11-22T15:04:05Z, version 0.2.0" in done.stdout
    assert "60002: port 60002 is busy\\x1b[2J" in done.stdout
    assert "\x1b" not in done.stdout


def test_what_a_master_says_of_itself_stays_on_its_line(tmp_path):
    with answering(tmp_path / "a", encode_frame(ANSWER | {"instance": "web\x1b]0;x\x07"})):
        done = status("--run-dir", tmp_path / "a")
    assert "server web\\x1b]0;x\\x07, process 7" in done.stdout


@pytest.mark.parametrize(
    "odd", [{}, ANSWER | {"since": 7}, ANSWER | {"tunnels": [{"port": 1}]},
            ANSWER | {"tunnels": 5}, ANSWER | {"upgrade": "x"}],
)  # fmt: skip
def test_what_a_stranger_answers_for_a_master_is_no_traceback(tmp_path, odd):
    with answering(tmp_path / "a", encode_frame(odd)):
        done = status("--run-dir", tmp_path / "a")
    assert (
        done.stdout
        == f"the master in {tmp_path / 'a'} answers what this version does not know\n"
    )


@pytest.mark.parametrize("state", ["canary", "failed", "replacing"])
def test_who_runs_older_code_is_named(tmp_path, state):
    upgrade = {"from": "0.1.0", "state": state, "left": [60001, 60002]}
    with answering(tmp_path / "a", encode_frame(ANSWER | {"upgrade": upgrade})):
        done = status("--run-dir", tmp_path / "a")
    line = '60001-60002: on version 0.1.0 as before; "tunneltcp upgrade" goes on with all'
    assert (line in done.stdout) is (state != "replacing")


@pytest.mark.parametrize("data", [b"", b"\xff\xff\xff\xff", encode_frame({"error": "no"})])
def test_a_master_that_answers_nonsense(tmp_path, data):
    with answering(tmp_path / "a", data), pytest.raises(TunnelError):
        ask(tmp_path / "a", {"op": "status"})


def test_not_running(tmp_path):
    done = status("--run-dir", tmp_path / "none")
    assert done.exit_code == 1
    assert done.stderr == f"tunneltcp: no master is running in {tmp_path / 'none'}\n"
    with socket.socket(socket.AF_UNIX) as left:  # by a crash
        left.bind(str(tmp_path / "control.sock"))
    with pytest.raises(NotRunning):
        ask(tmp_path, {"op": "status"})


def test_one_that_is_just_starting(tmp_path):
    lock = InstanceLock(tmp_path, "x")
    with pytest.raises(TunnelError, match=rf"process {os.getpid()}\) is starting or leaving"):
        ask(tmp_path, {"op": "status"})
    lock.release()


def test_who_may_not_ask_is_told_whose_it_is(tmp_path, monkeypatch):
    folder = tmp_path / "a"

    class Refusing(socket.socket):
        def connect(self, _address):
            raise PermissionError(13, "no")

    folder.mkdir()
    monkeypatch.setattr("tunneltcp.cli.ask.socket.socket", Refusing)
    with pytest.raises(NotAllowed, match=r"belongs to user .*: only .* and root may ask it"):
        ask(folder, {"op": "status"})
    done = status("--run-dir", folder)
    assert done.exit_code == 1
    assert "not running" not in done.stderr


def test_instances_are_found_by_name_and_all_together(tmp_path, monkeypatch):
    base = tmp_path / "base"
    for name in ("one", "two"):
        (base / name).mkdir(parents=True)
    monkeypatch.setattr(cli_ask, "_bases", lambda: [base, tmp_path / "none"])
    found = cli_ask.find_run_folders(None, None)
    assert found.folders == (base / "one", base / "two")
    assert cli_ask.find_run_folders("two", None).folders == (base / "two",)
    assert cli_ask.find_run_folders("three", None).folders == ()
    done = status("--instance", "three")
    assert done.exit_code == 1
    assert 'instance "three" is not running as user' in done.stderr


@pytest.mark.parametrize("words", [(), ("--instance", "one")])
def test_one_that_stopped_in_order_is_no_trouble_beside_one_that_runs(
    tmp_path, monkeypatch, words
):
    mine, other = tmp_path / "mine", tmp_path / "other"
    for folder in (mine, other / "one"):
        folder.mkdir(parents=True)
    monkeypatch.setattr(cli_ask, "_bases", lambda: [mine, other])
    with answering(mine / "one", encode_frame(ANSWER)):
        done = status(*words)
    assert done.exit_code == 0
    assert not done.stderr
    with (
        answering(mine / "two", encode_frame(ANSWER)),
        socket.socket(socket.AF_UNIX) as left,  # by a crash
    ):
        (mine / "one" / "control.sock").unlink()
        left.bind(str(mine / "one" / "control.sock"))
        done = status()
    assert done.exit_code == 1
    assert done.stderr == f"tunneltcp: no master is running in {mine / 'one'}\n"
    (mine / "one" / "control.sock").unlink()
    (mine / "two" / "control.sock").unlink()
    done = status("--instance", "one")
    assert done.exit_code == 1
    assert f"no master is running in {mine / 'one'}" in done.stderr


def test_a_base_of_somebody_else_is_named(tmp_path, monkeypatch):
    closed = tmp_path / "tunneltcp-9"

    def no_entry(_path):
        raise PermissionError(13, "no")

    closed.mkdir()
    monkeypatch.setattr(cli_ask, "_bases", lambda: [closed])
    monkeypatch.setattr("pathlib.Path.iterdir", no_entry)
    done = status()
    assert done.exit_code == 1
    assert "may ask" in done.stderr


def test_a_wrong_name_is_a_usage_error():
    assert status("--instance", "../x").exit_code == 2


def test_clients_have_a_column_where_there_are_any(tmp_path):
    named = {**TUNNEL, "link": {**TUNNEL["link"], "client": "lap\x1btop"}}  # type: ignore[dict-item]
    answer = {**ANSWER, "tunnels": [named, WAITING]}
    with answering(tmp_path / "a", encode_frame(answer)):
        lines = status("--run-dir", tmp_path / "a").stdout.splitlines()
    assert "client" in lines[1]
    assert "lap" in lines[2]
    assert "\x1b" not in lines[2]
    with answering(tmp_path / "b", encode_frame(ANSWER)):
        assert "client" not in status("--run-dir", tmp_path / "b").stdout
