"""Folders of an instance: where, whose, and one master in each."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from tunneltcp.config.state import host_id
from tunneltcp.errors import ConfigError, MasterRunning
from tunneltcp.master.folders import (
    Folders,
    InstanceLock,
    find_folders,
    instance_problem,
    locked_pid,
    make_folders,
    make_log_folder,
    run_base,
)

NOBODY = 65_534


@pytest.fixture
def as_user(monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 1234)
    return 1234


@pytest.mark.parametrize("name", ["server", "a", "A-1.b_c", "x" * 64])
def test_names_for_an_instance(name):
    assert instance_problem(name) == ""


@pytest.mark.parametrize("name", ["", "..", ".a", "a/b", "a\n", "x" * 65, "ä", "-a"])
def test_names_that_would_leave_the_folder(name):
    assert "is not a name" in instance_problem(name)


def test_folders_of_root(monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 0)
    found = find_folders("server")
    assert [str(f) for f in (found.state, found.run, found.log)] == [
        "/var/lib/tunneltcp/server",
        "/run/tunneltcp/server",
        "/var/log/tunneltcp/server",
    ]


def test_folders_of_a_user(as_user, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    found = find_folders("web")
    assert found.state == tmp_path / "state/tunneltcp/web"
    assert found.log == tmp_path / "state/tunneltcp/web/log"
    # The runtime folder is not that user's: after "su" it is the one of somebody else.
    assert found.run == Path(f"/tmp/tunneltcp-{as_user}/web")
    monkeypatch.setattr("os.geteuid", os.getuid)
    if os.getuid():
        assert run_base() == tmp_path / "tunneltcp"


def test_without_the_variables_it_is_the_home_folder(as_user, monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_folders("web").state == tmp_path / ".local/state/tunneltcp/web"


def test_what_is_given_wins(tmp_path):
    found = find_folders("a", state=tmp_path / "s", run=Path("r"), log=tmp_path / "l")
    assert found == Folders(state=tmp_path / "s", run=Path.cwd() / "r", log=tmp_path / "l")


def test_a_user_without_a_home_needs_none_where_all_is_given(as_user, monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)

    def homeless():
        raise RuntimeError("no home")

    monkeypatch.setattr(Path, "home", homeless)
    given = {name: tmp_path / name for name in ("state", "run", "log")}
    assert find_folders("web", **given) == Folders(**given)
    for name in ("state", "log"):
        with pytest.raises(ConfigError, match="there is no home folder"):
            find_folders("web", **given | {name: None})


def test_the_run_folder_is_ours_alone(folders):
    folders.run.mkdir(parents=True, mode=0o755)
    make_folders(folders)
    assert folders.run.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_no_answer_could_name_is_refused_before_anything_is_made(tmp_path):
    odd = tmp_path / os.fsdecode(b"a\xff")
    folders = Folders(state=odd / "s", run=odd / "r", log=odd / "l")
    with pytest.raises(ConfigError) as caught:
        make_folders(folders)
    problems = caught.value.problems
    assert [one.rpartition("--")[2] for one in problems] == ["state-dir", "run-dir", "log-dir"]
    assert all("its name is not UTF-8" in one for one in problems)
    assert all(one.isascii() for one in problems)
    assert not odd.exists()


def test_all_folders_that_cannot_be_made_are_told(tmp_path):
    (tmp_path / "file").write_text("")
    place = tmp_path / "file"
    with pytest.raises(ConfigError) as caught:
        make_folders(Folders(state=place / "s", run=place, log=place))
    assert len(caught.value.problems) == 3
    assert caught.value.problems[0].endswith("not a directory; see --state-dir")


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a folder to somebody else")
@pytest.mark.needs_root
def test_a_run_folder_of_somebody_else_is_not_used(folders):
    folders.run.mkdir(parents=True)
    os.chown(folders.run, NOBODY, NOBODY)
    with pytest.raises(ConfigError, match=f"belongs to user {NOBODY}"):
        make_folders(folders)


def test_a_run_folder_that_is_a_link_or_open_to_others_is_not_used(folders, tmp_path):
    folders.run.parent.mkdir(exist_ok=True)
    (tmp_path / "elsewhere").mkdir()
    folders.run.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="not a folder"):
        make_folders(folders)
    folders.run.unlink()
    folders.run.mkdir()
    folders.run.chmod(0o777)
    with pytest.raises(ConfigError, match="others may write to it"):
        make_folders(folders)


def test_one_master_in_each_folder(folders):
    make_folders(folders)
    lock = InstanceLock(folders.run, "web")
    assert locked_pid(folders.run) == os.getpid()
    with pytest.raises(
        MasterRunning, match=f'instance "web" is already run by process {os.getpid()}'
    ):
        InstanceLock(folders.run, "web")
    lock.release()
    assert locked_pid(folders.run) is None
    assert list(folders.run.iterdir()) == []
    InstanceLock(folders.run, "web").release()


def test_a_pid_file_left_by_a_crash_is_no_obstacle(folders):
    make_folders(folders)
    (folders.run / "master.pid").write_text("1\n")
    assert locked_pid(folders.run) is None
    InstanceLock(folders.run, "web").release()


@pytest.mark.parametrize("text", ["", "4194305\n"])  # no pid is that large
def test_who_only_asks_whether_one_runs_keeps_none_from_starting(folders, text, monkeypatch):
    make_folders(folders)
    path = folders.run / "master.pid"
    path.write_text(text)
    real, times = fcntl.flock, [0]

    def in_use_at_first(fd, how):
        """As while ``locked_pid`` of another process looks."""
        times[0] += 1
        if times[0] < 5:
            raise BlockingIOError
        real(fd, how)

    monkeypatch.setattr(fcntl, "flock", in_use_at_first)
    InstanceLock(folders.run, "web").release()
    assert times == [5]


def test_a_lock_without_a_pid_is_a_master_all_the_same(folders):
    make_folders(folders)
    with (folders.run / "master.pid").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(MasterRunning, match="already run by"):
            InstanceLock(folders.run, "web")


def test_the_host_id_is_made_once_and_kept(folders):
    make_folders(folders)
    first = host_id(folders.state)
    assert len(bytes.fromhex(first)) == 16
    assert host_id(folders.state) == first
    assert (folders.state / "host_id").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in folders.state.iterdir()] == ["host_id"]


@pytest.mark.parametrize("damage", [b"", b"xyz", b"\xff\xfe", b"a" * 31])
def test_a_damaged_host_id_is_made_anew(folders, damage):
    make_folders(folders)
    (folders.state / "host_id").write_bytes(damage)
    assert len(host_id(folders.state)) == 32


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
class TestLogFolderOfAnotherUser:
    def test_is_his_alone(self, folders):
        make_folders(folders)
        for _ in range(2):
            make_log_folder(folders, "nobody", (NOBODY, NOBODY))
        status = (folders.log / "nobody").stat()
        assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (NOBODY, NOBODY, 0o700)
        assert folders.log.stat().st_uid == 0

    @pytest.mark.parametrize("what", ["file", "link", "ours"])
    def test_what_is_in_its_place_is_not_used(self, folders, tmp_path, what):
        make_folders(folders)
        place = folders.log / "nobody"
        if what == "file":
            place.write_text("")
        elif what == "link":
            (tmp_path / "elsewhere").mkdir()
            os.chown(tmp_path / "elsewhere", NOBODY, NOBODY)
            place.symlink_to(tmp_path / "elsewhere")
        else:
            place.mkdir()
        with pytest.raises(ConfigError, match=r"^user: folder .*/nobody cannot be used: "):
            make_log_folder(folders, "nobody", (NOBODY, NOBODY))

    def test_there_is_none_without_a_user(self, folders):
        make_folders(folders)
        make_log_folder(folders, "", None)
        assert list(folders.log.iterdir()) == []
