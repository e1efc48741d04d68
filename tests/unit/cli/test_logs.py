"""``tunneltcp logs``: the last lines, and those that come, also across rotations."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.service import ROOT
from tests.support.wait import wait_until
from tests.unit.cli.conftest import a_status, a_tunnel
from tunneltcp.cli import logs as cli_logs
from tunneltcp.cli.log_reader import LogReader
from tunneltcp.cli.main import main
from tunneltcp.log import _RotatedFile


def logs(*words):
    return CliRunner().invoke(main, ["logs", *map(str, words)])


def numbered(*numbers):
    return "".join(f"line {n}\n" for n in numbers)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "log"
    folder.mkdir()
    (folder / "master.log").write_text(numbered(*range(90, 100)))
    (folder / "master.log.1").write_text(numbered(*range(50, 90)))
    (folder / "master.log.2").write_text(numbered(*range(50)))
    (folder / "tunnel-60001.log").write_text("of the tunnel\n")
    return folder


def test_the_last_lines_come_from_older_files_too(folder, base):
    assert logs("--log-dir", folder).stdout == numbered(*range(80, 100))
    assert logs("--log-dir", folder, "-n", 3).stdout == numbered(97, 98, 99)
    assert logs("--log-dir", folder, "-n", 75).stdout == numbered(*range(25, 100))
    assert logs("--log-dir", folder, "-n", 1000).stdout == numbered(*range(100))
    assert logs("--log-dir", folder, "-n", 0).stdout == ""
    assert logs(60001, "--log-dir", folder).stdout == "of the tunnel\n"


@pytest.mark.parametrize("size", [3, 70_000, 200_000])
def test_lines_longer_than_a_block(folder, base, size):
    (folder / "master.log").write_text(f"first\n{'x' * size}\nlast\nnot yet all of")
    assert logs("--log-dir", folder, "-n", 2).stdout == f"{'x' * size}\nlast\n"


def test_where_the_logs_are_is_asked(folder, script_master):
    status = a_status(a_tunnel(60001), log_dir=str(folder))
    script_master(status=[status])
    assert logs(60001).stdout == "of the tunnel\n"
    assert logs("-n", 1).stdout == "line 99\n"
    done = logs(60002)
    assert done.exit_code == 1
    assert done.stderr == (
        f"tunneltcp: there is no log of tunnel 60002: no file {folder / 'tunnel-60002.log'}\n"
    )


def test_a_log_that_two_have_needs_a_name(folder, script_master, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "tunnel-60001.log").write_text("other\n")
    script_master("one", status=[a_status(instance="one", log_dir=str(folder))])
    script_master("two", status=[a_status(instance="two", log_dir=str(other))])
    done = logs(60001)
    assert done.exit_code == 2
    assert f"  --instance two  ({other})" in done.stderr
    assert logs(60001, "--instance", "two").stdout == "other\n"
    assert logs("-n", 1).stdout == "line 99\n", "only one has a master.log"


def test_an_instance_that_does_not_run_is_looked_for_where_it_would_be(
    folder, base, monkeypatch
):
    from tunneltcp.master.folders import Folders

    found = Folders(state=folder, run=folder, log=folder)
    monkeypatch.setattr(cli_logs, "find_folders", lambda name: {"web": found}[name])
    assert logs("-n", 1, "--instance", "web").stdout == "line 99\n"
    done = logs()
    assert done.exit_code == 1
    assert "no instance is running" in done.stderr
    assert "--log-dir FOLDER or --instance NAME" in done.stderr


def test_what_could_move_the_cursor_is_shown_and_not_done(folder, base):
    (folder / "master.log").write_bytes(b"evil \x1b[2J \xff\n")
    assert logs("--log-dir", folder, "-n", 1).stdout == "evil \\x1b[2J \ufffd\n"


def test_a_folder_in_place_of_the_log(tmp_path, base):
    (tmp_path / "master.log").mkdir()
    done = logs("--log-dir", tmp_path)
    assert done.exit_code == 1
    assert "is a directory" in done.stderr


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 12), max_size=25))
def test_nothing_is_missed_or_doubled_while_files_rotate(tmp_path_factory, bursts):
    """Our own writer rotates; it is looked at after each burst of at most two files."""
    path = tmp_path_factory.mktemp("log") / "a.log"
    writer = _RotatedFile(path, 60, 4)
    writer.write_line(b"begin\n")
    reader = LogReader(path)
    seen = reader.last_lines(1)
    number = 0
    for burst in bursts:
        for _ in range(burst):
            writer.write_line(b"line %d\n" % number)
            number += 1
        while lines := reader.new_lines():
            seen += lines
    assert seen == [b"begin", *(b"line %d" % n for n in range(number))]
    reader.close()
    writer.close()


def test_one_that_is_not_there_yet_is_read_from_its_beginning(tmp_path):
    """As that of a master which starts; it may be rotated before the first look."""
    path = tmp_path / "master.log"
    reader = LogReader(path)
    assert reader.new_lines() == []
    path.write_text("one\n")
    path.rename(tmp_path / "master.log.1")
    path.write_text("two\n")
    assert reader.new_lines() + reader.new_lines() == [b"one", b"two"]
    reader.close()


def test_half_a_line_is_not_shown_before_it_is_whole(folder):
    path = folder / "master.log"
    reader = LogReader(path)
    with path.open("ab") as file:
        file.write(b"half")
        file.flush()
        assert reader.last_lines(1) == [b"line 99"]
        assert reader.new_lines() == []
        file.write(b" and half\nnext")
        file.flush()
        assert reader.new_lines() == [b"half and half"]
    reader.close()


def test_a_log_that_was_emptied_is_read_from_its_beginning(folder):
    path = folder / "master.log"
    reader = LogReader(path)
    reader.last_lines(1)
    os.truncate(path, 0)
    path.write_text("new\n")
    assert reader.new_lines() == [b"new"]
    reader.close()


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, None])
def test_following_ends_with_a_signal_or_its_reader(folder, end):
    follower = subprocess.Popen(
        [sys.executable, "-m", "tunneltcp", "logs", "-f", "-n", "1", "--log-dir", str(folder)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, text=True,
    )  # fmt: skip
    assert follower.stdout
    assert follower.stderr
    try:
        assert follower.stdout.readline() == "line 99\n"
        with (folder / "master.log").open("a") as file:
            file.write("line 100\n")
        assert follower.stdout.readline() == "line 100\n"
        if end is None:
            follower.stdout.close()
        else:
            follower.send_signal(end)
        assert wait_until(lambda: follower.poll() is not None, 5)
        assert follower.returncode == 0
        assert follower.stderr.read() == ""
    finally:
        follower.kill()
        follower.wait()
        follower.stdout.close()
        follower.stderr.close()
