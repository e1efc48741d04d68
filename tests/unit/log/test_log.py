"""The log: its lines, its size, and that nothing can make it fail, block or lie."""

from __future__ import annotations

import json  # noqa: TID251 - to read lines as a stranger would
import os
import re
import subprocess
import sys
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loguru import logger

from tunneltcp import log
from tunneltcp.log import Throttle, dropped_lines, setup_log, write_if_room
from tunneltcp.text import escape

if TYPE_CHECKING:
    from pathlib import Path

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00 (INFO |WARNING|ERROR) \S.*")


@pytest.fixture(autouse=True)
def _forget_log():
    yield
    logger.remove()
    logger.configure(extra={})
    if log._output.file is not None:
        log._output.file.close()
    log._output = log._Output()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "master.log"


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_a_line_and_its_fields(path):
    setup_log(path, max_bytes=10_000, files=2, tunnel=60001)
    logger.bind(peer="1.2.3.4:5", reason="it is gone", seconds=1.25).info("link {}", "up")
    (line,) = lines(path)
    assert LINE.fullmatch(line)
    assert line.endswith(
        ' INFO  link up tunnel=60001 peer=1.2.3.4:5 reason="it is gone" seconds=1.250'
    )
    assert path.stat().st_mode & 0o777 == 0o600


def test_debug_is_not_written_unless_asked_for(path):
    setup_log(path, max_bytes=10_000, files=2)
    logger.debug("x")
    assert lines(path) == []
    setup_log(path, max_bytes=10_000, files=2, level="DEBUG")
    logger.debug("x")
    assert len(lines(path)) == 1


@given(st.text())
def test_foreign_text_stays_on_its_line(text):
    shown = escape(text)
    assert len(f"a{shown}a".splitlines()) == 1
    assert "\x1b" not in shown


def test_nobody_forges_a_line_or_a_field(path):
    setup_log(path, max_bytes=10_000, files=2)
    evil = "x\n2026-01-01T00:00:00.000+00:00 INFO  all is well\r\x1b[2J\u2028\u202e"
    logger.bind(name=evil, other='a" b="c', odd="\ud800").info("from {}", evil)
    (line,) = lines(path)
    assert LINE.fullmatch(line)
    assert 'other="a\\" b=\\"c"' in line


def test_a_traceback_is_indented_and_shows_no_values(path):
    setup_log(path, max_bytes=10_000, files=2)
    try:
        secret = "do not show"  # noqa: F841
        raise ValueError("bad\n2026-01-01T00:00:00.000+00:00 INFO  forged")
    except ValueError:
        logger.exception("it broke")
    first, *rest = lines(path)
    assert LINE.fullmatch(first)
    assert rest
    assert all(line.startswith("  | ") for line in rest)
    assert rest[-1].endswith("INFO  forged")
    assert "do not show" not in "".join(line for line in rest if "secret =" not in line)


def test_a_long_line_is_cut(path):
    setup_log(path, max_bytes=100_000, files=2)
    logger.info("x" * 50_000)
    logger.info("next")
    assert [len(line) < 8200 for line in lines(path)] == [True, True]


def test_files_are_bounded_in_size_and_number(path):
    setup_log(path, max_bytes=1000, files=3)
    for number in range(200):
        logger.info("line {}", number)
    found = sorted(p.name for p in path.parent.iterdir())
    assert found == ["master.log", "master.log.1", "master.log.2"]
    assert all(p.stat().st_size <= 1000 for p in path.parent.iterdir())
    assert lines(path)[-1].endswith("line 199")
    kept = [line for name in reversed(found) for line in lines(path.parent / name)]
    numbers = [int(line.split()[-1]) for line in kept]
    assert numbers == list(range(numbers[0], 200)), "rotation lost or doubled a line"


def test_one_file_only(path):
    setup_log(path, max_bytes=1000, files=1)
    for number in range(50):
        logger.info("line {}", number)
    assert [p.name for p in path.parent.iterdir()] == ["master.log"]
    assert path.stat().st_size <= 1000


def test_a_folder_that_goes_and_comes_back(path, capfd):
    folder = path.parent / "logs"
    folder.mkdir()
    path = folder / "master.log"
    setup_log(path, max_bytes=1000, files=2)
    logger.info("one")
    path.unlink()
    folder.rmdir()
    logger.info("lost")
    logger.info("lost")
    assert dropped_lines() == 2
    folder.mkdir()
    logger.info("two")
    assert len(lines(path)) == 1
    assert dropped_lines() == 2
    assert capfd.readouterr() == ("", "")


def test_a_full_disk_is_counted_and_heals(path, capfd, monkeypatch):
    setup_log(path, max_bytes=1000, files=2)
    output = log._output
    assert output.file is not None
    full = os.open("/dev/full", os.O_WRONLY)
    kept = os.dup(output.file._fd)
    os.dup2(full, output.file._fd)
    monkeypatch.setattr(output.file, "_check", lambda: 0)
    logger.info("lost")
    os.dup2(kept, output.file._fd)
    os.close(full)
    os.close(kept)
    logger.info("kept")
    assert dropped_lines() == 1
    assert len(lines(path)) == 1
    assert capfd.readouterr() == ("", "")


def test_a_line_cut_short_by_a_full_disk_does_not_spoil_the_next(path, monkeypatch):
    setup_log(path, max_bytes=1000, files=2)
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:40]))
    logger.info("the first bytes fit")
    monkeypatch.undo()
    logger.info("whole")
    assert dropped_lines() == 1
    first, second = lines(path)
    assert len(first) == 40
    assert LINE.fullmatch(second)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda p: p.symlink_to("/etc/passwd")])
def test_what_is_no_file_of_ours_is_never_written(path, make, capfd):
    make(path)
    setup_log(path, max_bytes=1000, files=2)
    logger.info("lost")
    assert dropped_lines() == 1
    assert capfd.readouterr() == ("", "")


def test_stderr_gets_the_same_line_and_a_stuck_pipe_is_counted(path):
    setup_log(path, max_bytes=1_000_000, files=2, stderr=True)
    reader, writer = os.pipe()
    saved = os.dup(2)
    try:
        os.dup2(writer, 2)
        logger.info("hello")
        assert os.read(reader, 5000).decode().splitlines() == lines(path)
        for _ in range(100):
            logger.info("x" * 3000)
    finally:
        os.dup2(saved, 2)
        for fd in (reader, writer, saved):
            os.close(fd)
    assert 0 < dropped_lines() < 100
    assert len(lines(path)) == 101


def test_write_if_room_to_nobody():
    reader, writer = os.pipe()
    os.close(reader)
    assert not write_if_room(writer, b"x")
    os.close(writer)
    assert not write_if_room(writer, b"x")


def test_a_forked_child_has_its_own_file(path):
    setup_log(path, max_bytes=1000, files=2, stderr=True)
    child = path.with_name("child.log")
    pid = os.fork()  # noqa: TID251 - that is the test
    if pid == 0:
        try:
            setup_log(child, max_bytes=1000, files=2, tunnel=7)
            logger.info("from the child")
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    logger.info("from the parent")
    assert [line.split("INFO  ")[1] for line in lines(path)] == ["from the parent"]
    assert [line.split("INFO  ")[1] for line in lines(child)] == ["from the child tunnel=7"]


def test_importing_it_writes_nothing_and_starts_no_thread():
    code = "import threading, tunneltcp.log; print(threading.active_count())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": "."},
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("1\n", "")


def test_throttle_says_the_first_and_then_one_in_a_period():
    throttle = Throttle(every_seconds=600)
    assert throttle.admit("a", 0.0) == 0
    assert [throttle.admit("a", t) for t in (1.0, 300.0, 599.9)] == [None] * 3
    assert throttle.admit("b", 300.0) == 0
    assert throttle.admit("a", 600.0) == 3
    assert throttle.admit("a", 601.0) is None
    assert throttle.admit("a", 1200.0) == 1


def test_throttle_lets_a_burst_through():
    throttle = Throttle(burst=3)
    assert [throttle.admit("a", 0.0) for _ in range(5)] == [0, 0, 0, None, None]


def test_throttle_lets_only_so_many_new_kinds_through_in_a_period():
    """A stranger with many addresses does not fill the log."""
    throttle = Throttle(every_seconds=60)
    throttle.max_new = 3
    said = [throttle.admit(kind, 5.0) for kind in range(10)]
    assert said == [0, 0, 0] + [None] * 7
    assert throttle.admit(99, 59.0) is None
    assert throttle.admit(99, 61.0) == 0


def test_throttle_forgets_the_kind_not_seen_for_longest():
    throttle = Throttle(max_kinds=2)
    for kind in "ab":
        throttle.admit(kind, 0.0)
    assert throttle.admit("a", 1.0) is None
    throttle.admit("c", 2.0)  # b goes
    assert throttle.admit("a", 3.0) is None
    assert throttle.admit("b", 3.0) == 0


class TestJson:
    """The same lines for programs: one object each, whatever is in it."""

    @pytest.fixture
    def begin(self, path):
        def begin(**options):
            setup_log(path, max_bytes=1_000_000, files=2, as_json=True, **options)

        return begin

    def objects(self, path):
        return [json.loads(line) for line in path.read_bytes().splitlines()]

    def test_a_line_and_its_fields(self, path, begin):
        begin(tunnel=60001)
        logger.bind(peer="1.2.3.4:5", seconds=1.25, ok=True, none=None).warning("link {}", "up")
        (line,) = self.objects(path)
        assert datetime.fromisoformat(line.pop("time")).utcoffset() == timedelta(0)
        fields = {
            "tunnel": 60001,
            "peer": "1.2.3.4:5",
            "seconds": 1.25,
            "ok": True,
            "none": None,
        }
        assert line == {"level": "WARNING", "message": "link up", "fields": fields}

    def test_a_traceback_is_a_text_without_values(self, path, begin):
        begin()
        try:
            secret = "do not show"  # noqa: F841
            raise ValueError("bad\n{}")
        except ValueError:
            logger.exception("it broke")
        (line,) = self.objects(path)
        assert line["message"] == "it broke"
        assert line["traceback"].endswith("ValueError: bad\n{}\n")
        assert "Traceback (most recent call last)" in line["traceback"]
        assert "do not show" not in line["traceback"]

    @given(
        text=st.text() | st.text(st.characters(max_codepoint=0xA0)),
        value=st.text() | st.integers() | st.floats() | st.binary(),
    )
    def test_foreign_text_stays_in_its_line(self, tmp_path_factory, text, value):
        path = tmp_path_factory.mktemp("log") / "x.log"
        setup_log(path, max_bytes=1_000_000, files=1, as_json=True)
        logger.bind(value=value).info("{}", text)
        assert dropped_lines() == 0
        raw = path.read_text()
        assert len(raw.splitlines()) == 1
        assert raw[:-1] == escape(raw[:-1]), "nothing that a terminal obeys"
        (line,) = self.objects(path)
        plain = text.encode("utf-8", "backslashreplace").decode()
        assert line["message"] == plain or len(plain) > 300

    @pytest.mark.parametrize("character", ["x", "\x01", "\u202e", "\U0001f600", '"'])
    def test_a_long_line_is_cut_and_still_an_object(self, path, begin, character):
        begin()
        logger.bind(a=character * 20_000, b=character * 20_000).info(character * 20_000)
        logger.info("next")
        first, second = self.objects(path)
        assert first["message"].startswith(character)
        assert first["message"].endswith("...")
        assert second["message"] == "next"
        assert all(len(line) <= 8192 for line in path.read_bytes().splitlines(keepends=True))

    def test_too_much_of_everything_is_still_an_object(self, path, begin):
        begin()
        logger.bind(**{f"field{n}": n for n in range(2000)}).info("x")
        assert len(self.objects(path)) == 1

    def test_standard_error_gets_an_object_too(self, path, begin):
        reader, writer = os.pipe()
        saved = os.dup(2)
        try:
            os.dup2(writer, 2)
            begin(stderr=True)
            logger.info("x" * 7000)
            said = os.read(reader, 10_000)
        finally:
            os.dup2(saved, 2)
            for fd in (reader, writer, saved):
                os.close(fd)
        assert len(said) <= 4096
        assert json.loads(said)["message"].startswith("xxx")
        assert self.objects(path)[0]["message"] == "x" * 7000

    def test_it_can_be_switched_back(self, path, begin):
        begin()
        logger.info("one")
        setup_log(path, max_bytes=1_000_000, files=2)
        logger.info("two")
        first, second = lines(path)
        assert json.loads(first)["message"] == "one"
        assert LINE.fullmatch(second)
