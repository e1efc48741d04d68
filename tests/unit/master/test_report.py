"""What the log says about a tunnel, and how often."""

from __future__ import annotations

import signal
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from loguru import logger

from tunneltcp.advice import Trouble
from tunneltcp.master.messages import LinkChanged, StoodStill, TookOver
from tunneltcp.master.report import REPLACED, Reporter, describe_exit, stamp


@pytest.fixture
def said():
    lines: list[str] = []
    number = logger.add(lambda message: lines.append(str(message).strip()), format="{message}")
    yield lines
    logger.remove(number)


@pytest.fixture
def loop():
    return SimpleNamespace(now=0.0)


def link(state, reason="", seconds=None):
    return LinkChanged(state=state, peer="1.2.3.4:5", reason=reason, seconds=seconds)


def test_moments_are_rfc_3339_in_utc():
    assert stamp(1_500_000_000_123_000_000) == "2017-07-14T02:40:00.123+00:00"
    assert stamp().endswith("+00:00")


@pytest.mark.parametrize(
    ("status", "kill_reason", "expected"),
    [
        (signal.SIGKILL, "", ("SIGKILL", None, "ended by SIGKILL", False)),
        (signal.SIGSEGV | 0x80, "x", ("SIGSEGV", None, "ended by SIGSEGV", False)),
        (signal.SIGKILL, "hung", ("SIGKILL", None, "hung", False)),
        (60, "", ("signal 60", None, "ended by signal 60", False)),
        (0, "", (None, 0, "left with code 0", False)),
        (1 << 8, "", (None, 1, "left with code 1 (crashed)", False)),
        (77 << 8, "", (None, 77, "left with code 77 (not permitted)", True)),
        (78 << 8, "hung", (None, 78, "left with code 78 (bad config)", True)),
    ],
)
def test_how_a_worker_ended(status, kill_reason, expected):
    found = describe_exit(int(status), 1.23456, kill_reason)
    assert (found.signal, found.code, found.reason, found.is_permanent) == expected
    assert found.ran_seconds == 1.235


def test_the_story_of_a_link(said, loop):
    report = Reporter(60001, loop)
    report.link(link("up"))
    report.link(link("doubted"))
    report.link(link("down", "it was silent for 3 s"))
    report.link(link("up", seconds=1.5))
    assert [line for line in said if "doubted" not in line] == [
        "link up",
        "link lost: it was silent for 3 s",
        "link up again after 1.500 s",
    ]


def test_what_keeps_failing_is_one_line_each_ten_minutes(said, loop):
    report = Reporter(60001, loop)
    for _ in range(50):
        report.link(link("down", "refused"))
        report.blocked("port 60001 is busy")
    assert said == ["no link: refused", "waiting: port 60001 is busy"]
    loop.now = 601.0
    report.link(link("down", "refused"))
    assert said[2:] == ["no link: refused (49 more times in the last 10 minutes)"]


def test_a_crash_loop_is_bounded_and_a_replacement_is_no_death(said, loop):
    report = Reporter(60001, loop)
    for _ in range(100):
        report.exited(describe_exit(9, 0.1, ""), expected=False)
    assert said == ["worker died after 0.100 s: ended by SIGKILL"] * 20
    report.exited(describe_exit(9, 0.1, REPLACED), expected=False)
    report.exited(describe_exit(0, 0.1, ""), expected=True)
    assert said[20:] == [
        "worker replaced: it asked to be replaced",
        "worker stopped: left with code 0",
    ]


def test_a_port_that_opens_at_last(said, loop):
    report = Reporter(60001, loop)
    report.bound()
    assert said == []
    report.blocked("x")
    report.bound()
    report.bound()
    assert said == ["waiting: x", "port is open"]


def test_why_there_is_no_link_is_known_until_there_is_one(said, loop):
    others = False
    report = Reporter(60001, loop, lambda: others)
    failure = LinkChanged(
        state="down", peer="vps:60001", reason="?", seconds=None, trouble=Trouble.REFUSES
    )
    report.link(failure)
    assert report.trouble.startswith("vps:60001 refuses the connection: ")
    others = True
    report.link(failure)
    report.link(replace(failure, peer="vps:60001 (::1)"))
    assert "other tunnels to this server are up" in report.trouble
    assert [line.partition(",")[0] for line in said] == [
        "no link: vps:60001 refuses the connection: tunneltcp is not running there",
        "no link: vps:60001 refuses the connection",
    ]
    report.link(link("up"))
    assert report.trouble == ""
    report.link(failure)
    report.exited(describe_exit(9, 0.1, ""), expected=False)
    assert report.trouble == ""


def test_a_target_that_comes_and_goes(said, loop):
    report = Reporter(60001, loop)
    for reason in ("a visitor came, but {}", "a visitor came, but {}", ""):
        report.target(reason)
        assert report.trouble == reason
    assert said == ["a visitor came, but {}", "the target answers again"]


def test_warnings_of_a_worker_are_bounded(said, loop):
    report = Reporter(60001, loop)
    for number in range(100):
        report.warned(f"{number}: {{}}")
    assert said == [f"{number}: {{}}" for number in range(20)]


def test_what_became_of_a_dead_workers_streams(said, loop):
    report: Any = Reporter(60001, loop)
    report.said(StoodStill(seconds=9.0))
    assert not report.takeover
    report.exited(describe_exit(11, 5.0, ""), expected=False)
    report.said(TookOver(streams=7, reset=1))
    taken = report.takeover
    assert (taken.how, taken.streams, taken.reset) == ("ended by SIGSEGV", 7, 1)
    assert taken.stood_still_seconds is None
    report.said(StoodStill(seconds=0.25))
    report.said(StoodStill(seconds=9.0))
    assert report.takeover == replace(taken, stood_still_seconds=0.25)
    assert said[1:] == ["7 streams taken over, 1 reset; they stood still for 0.250 s"]
