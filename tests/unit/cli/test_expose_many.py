"""Several tunnels in the foreground: what is shown of the log of their master."""

from __future__ import annotations

from contextlib import closing

import pytest

from tunneltcp.cli import expose_many


@pytest.fixture
def log(tmp_path):
    with closing(expose_many.MasterLog(tmp_path / "master.log")) as made:
        yield made


def write(path, text):
    with path.open("a") as file:
        file.write(text)


def test_lines_are_shown_once_and_whole(log, tmp_path):
    path = tmp_path / "master.log"
    assert log.new_lines() == []
    write(path, "one\ntw")
    assert log.new_lines() == [b"one"]
    write(path, "o\n")
    assert [log.new_lines(), log.new_lines()] == [[b"two"], []]


def test_nothing_is_missed_when_it_is_rotated(log, tmp_path):
    """It went on from where it was, in a file that was shorter, and so said nothing more."""
    path = tmp_path / "master.log"
    write(path, "one\n" * 100)
    assert len(log.new_lines()) == 100
    write(path, "two\n")
    path.rename(tmp_path / "master.log.1")
    assert log.new_lines() == [b"two"]
    write(path, "three\n")
    assert log.new_lines() == [b"three"]


def test_what_is_much_comes_at_several_looks(log, tmp_path, monkeypatch):
    monkeypatch.setattr(expose_many, "MAX_LOG_BYTES", 10)
    path = tmp_path / "master.log"
    write(path, "".join(f"{n:03}\n" for n in range(10)))
    lines = log.new_lines()
    assert lines == [b"000", b"001"]
    path.rename(tmp_path / "master.log.1")
    write(path, "010\n")
    while more := log.new_lines():
        lines += more
    assert lines == [b"%03d" % n for n in range(11)]
