"""The table that one version of a master writes and the next one reads."""

from __future__ import annotations

import os
import socket
from contextlib import closing, contextmanager
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from tunneltcp.config.model import TunnelConfig
from tunneltcp.errors import ExitCode, HandoverError
from tunneltcp.master import again as again_module
from tunneltcp.master.again import ATTEMPTS, Again, Legacy
from tunneltcp.master.handover import (
    VERSION,
    Descriptors,
    handover_variable,
    named_handover,
    read_handover,
    write_handover,
)
from tunneltcp.master.keepers import Keepers, _Keeper
from tunneltcp.master.listeners import Listeners
from tunneltcp.master.messages import TookOver
from tunneltcp.master.process import ProcessLife, ProcessState
from tunneltcp.master.report import Reporter, Takeover, describe_exit
from tunneltcp.master.tunnel_state import TunnelState
from tunneltcp.net.loop import Loop

LAYOUT = (2, 4096)


@pytest.fixture
def pair():
    one, other = socket.socketpair()
    with closing(one), closing(other):
        yield one, other


@contextmanager
def written(state, keep=(), /, **changes):
    """A memfd with a state; ``changes`` are made to what lies in it."""
    fd = write_handover(state, keep, LAYOUT, "0.1.0")
    try:
        if changes:
            values = orjson.loads(os.pread(fd, 1 << 20, 0)) | changes
            os.ftruncate(fd, 0)
            os.pwrite(fd, orjson.dumps(values), 0)
        yield fd
    finally:
        os.close(fd)


def test_what_was_written_is_read(pair):
    fds = Descriptors()
    state = {"lock": fds.keep(pair[0].fileno()), "control": fds.keep(pair[1].fileno())}
    assert fds.keep(-1) == -1
    with written(state, fds.numbers) as fd:
        taken = read_handover(fd, LAYOUT)
    assert taken.state == state
    assert taken.origin == "0.1.0"
    assert set(taken.fds) == {pair[0].fileno(), pair[1].fileno()}
    taken.set_inheritable(True)
    assert pair[0].get_inheritable()
    taken.set_inheritable(False)
    assert not pair[0].get_inheritable()


def test_what_a_later_version_adds_is_passed_over(pair):
    with written({"new": {"too": 1}}, [pair[0].fileno()], colour="blue") as fd:
        assert read_handover(fd, LAYOUT).state == {"new": {"too": 1}}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": VERSION + 1}, f"has version {VERSION + 1}, and this code knows {VERSION}"),
        ({"layout": [3, 4096]}, "laid out in another way"),
        ({"layout": [2, 4096, 1]}, "laid out in another way"),
        ({"fds": None}, "is broken"),
        ({"fds": {"x": [1, 2]}}, "is broken"),
        ({"fds": {"9999": [1, 2]}}, "descriptor 9999 is not what it was"),
    ],
)
def test_what_this_code_cannot_go_on_with(changes, reason):
    with written({}, **changes) as fd, pytest.raises(HandoverError, match=reason):
        read_handover(fd, LAYOUT)


def test_a_descriptor_that_is_closed_or_another_one(pair):
    one, other = pair
    number = one.fileno()
    with written({}, [number]) as fd:
        os.dup2(other.fileno(), number)
        with pytest.raises(HandoverError, match=f"descriptor {number} is not what it was"):
            read_handover(fd, LAYOUT)
        assert read_handover(fd, LAYOUT, look=False).fds == (number,)
        one.close()
        with pytest.raises(HandoverError, match=f"descriptor {number} is not what it was"):
            read_handover(fd, LAYOUT)


def test_a_descriptor_that_is_not_open_is_not_handed_over():
    with pytest.raises(OSError, match="Bad file"):
        write_handover({}, [9999], LAYOUT, "0.1.0")


@pytest.mark.parametrize("said", [b"", b"{}", b"[]", b"\xff", b'{"version": 1}'])
def test_nonsense(said):
    fd = os.memfd_create("handover")
    try:
        os.write(fd, said)
        with pytest.raises(HandoverError):
            read_handover(fd, LAYOUT)
    finally:
        os.close(fd)


def test_it_is_named_by_the_environment_once(monkeypatch):
    with written({}) as fd:
        for name, value in handover_variable(fd, "take-1").items():
            monkeypatch.setenv(name, value)
        assert named_handover() == ("take-1", fd)
        assert named_handover() is None


@pytest.mark.parametrize("value", ["", "check", "check x", "check 9999", "take-1 -1"])
def test_who_was_not_started_by_a_master_takes_nothing_over(monkeypatch, value):
    monkeypatch.setenv("TUNNELTCP_HANDOVER", value)
    assert named_handover() is None


def test_another_memfd_is_none(monkeypatch):
    fd = os.memfd_create("something")
    try:
        monkeypatch.setenv("TUNNELTCP_HANDOVER", f"check {fd}")
        assert named_handover() is None
    finally:
        os.close(fd)


# ------------------------------------------------------------------- starting again


def test_the_next_program_has_what_it_needs(pair):
    started: list[tuple[object, ...]] = []

    def execute(path, command, environment):
        needed = (pair[0].fileno(), pair[1].fileno(), fd)
        started.append((path, command, environment, [os.get_inheritable(x) for x in needed]))

    again = Again(
        environment={"MOVED": "x"},
        fds=[pair[1].fileno()],
        command=["/python", "-m", "it"],
        execute=execute,
    )
    with written({}, [pair[0].fileno()]) as fd:
        again.take_over(fd, [pair[0].fileno()])
        ((path, command, environment, inheritable),) = started
        assert (path, command) == ("/python", ["/python", "-m", "it"])
        assert isinstance(environment, dict)
        assert environment["TUNNELTCP_HANDOVER"] == f"take-1 {fd}"
        assert environment["MOVED"] == "x"
        assert inheritable == [True, True, True]
        assert not pair[0].get_inheritable(), "it was not started: all is as before"


def in_a_child(work):
    """Run something that ends its process; return the exit code."""
    pid = os.fork()  # noqa: TID251 - a process to end
    if pid == 0:
        try:
            work()
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def failing(again, fd, attempt):
    taken = Legacy.named(again, (f"take-{attempt}", fd), LAYOUT)
    with taken.guarded():
        raise RuntimeError("on cue")


def test_what_cannot_be_taken_over_is_tried_once_more(monkeypatch, pair):
    monkeypatch.setattr(again_module, "PAUSE_SECONDS", 0.0)

    def execute(_path, _command, environment):
        named = environment["TUNNELTCP_HANDOVER"] == f"take-{ATTEMPTS} {fd}"
        os._exit(42 if named and pair[0].get_inheritable() else 43)

    again = Again(environment={}, execute=execute)
    with written({}, [pair[0].fileno()]) as fd:
        assert in_a_child(lambda: failing(again, fd, ATTEMPTS - 1)) == 42
        assert in_a_child(lambda: failing(again, fd, ATTEMPTS)) == ExitCode.CRASH
    with written({}, version=VERSION + 1) as fd:
        assert in_a_child(lambda: failing(again, fd, 1)) == ExitCode.CRASH


# ------------------------------------------------------------- nothing is forgotten


class Nobody:
    """Children that are noted, and nothing more."""

    def __init__(self) -> None:
        self.watched: list[int] = []

    def watch(self, pid: int, _on_exit: object) -> None:
        self.watched.append(pid)


def through_json(values):
    return orjson.loads(orjson.dumps(values))


def test_nothing_of_a_life_is_forgotten():
    life = ProcessLife(drain_seconds=5.0)
    for name in life.__slots__:
        if name not in ("_jitter", "drain_seconds", "state"):
            setattr(life, name, name)  # each another value
    life.state = ProcessState.BACKOFF
    other = ProcessLife(drain_seconds=5.0, jitter=life._jitter)
    other.go_on(through_json(life.hand_over()))
    assert {name: getattr(other, name) for name in life.__slots__} == {
        name: getattr(life, name) for name in life.__slots__
    }


@pytest.mark.parametrize("has_current", [True, False])
def test_nothing_of_keepers_is_forgotten(has_current):
    children: Any = Nobody()
    keepers = Keepers(children, lambda: None)
    keepers._old = [_Keeper(fd=500, pid=0), _Keeper(fd=501, pid=7)]
    keepers._current = _Keeper(fd=502, pid=8, was_gone=True) if has_current else None
    keepers._died_at, keepers._faults, keepers._moved = 1.5, 2, 3
    fds = Descriptors()
    other = Keepers(children, keepers._lost)
    other.go_on(through_json(keepers.hand_over(fds)))
    assert vars(other) == vars(keepers)
    assert fds.numbers == ({500, 501, 502} if has_current else {500, 501})
    assert children.watched == ([7, 8] if has_current else [7])


def test_nothing_of_listeners_is_forgotten():
    listeners = Listeners(60001, ["0.0.0.0", "::"])
    listeners.fds, listeners._shut = (500, 501), True
    fds = Descriptors()
    other = Listeners(60001, [])
    other.go_on(through_json(listeners.hand_over(fds)))
    assert vars(other) == vars(listeners)
    assert fds.numbers == {500, 501}


def test_nothing_of_a_report_is_forgotten(loop):
    """The next version tells of a takeover that began under the one before."""
    report = Reporter(60001, loop)
    report.exited(describe_exit(9, 1.0, ""), expected=False)
    report.exited(describe_exit(11, 1.0, ""), expected=False)
    report.said(TookOver(streams=3, reset=1))
    report.takeover = Takeover(
        at="x", reason="y", deaths=1, streams=2, reset=0, served_seconds=0.5
    )
    report._link_up = report._was_blocked = True
    report._link_trouble, report._target_trouble = "one", "two"
    other = Reporter(60001, loop)
    other.go_on(through_json(report.hand_over()))
    made_anew = {"_events", "_failures", "_log", "_others_up"}
    assert {name: value for name, value in vars(other).items() if name not in made_anew} == {
        name: value for name, value in vars(report).items() if name not in made_anew
    }


def test_words_of_a_newer_version_are_left_out(loop):
    report = Reporter(60001, loop)
    report.exited(describe_exit(9, 1.0, ""), expected=False)
    values = through_json(report.hand_over())
    values["death"]["weather"] = "rain"
    del values["taken"]
    other = Reporter(60001, loop)
    other.go_on(values)
    assert other._death == report._death


def test_nothing_of_a_tunnel_is_forgotten(loop):
    """Who gives a tunnel one more thing hands it over, or says here why not."""
    nobody: Any = None
    around: Any = SimpleNamespace(
        loop=loop, children=nobody, drain_seconds=1.0, addresses=(), maps=[], generation=3
    )
    tunnel = TunnelState(TunnelConfig(remote_port=60001, name="web"), around, nobody)
    tunnel.version, tunnel.generation, tunnel.reason, tunnel.is_stopped = "1", 2, "why", True
    tunnel.last_exit = describe_exit(9, 1.0, "")
    tunnel.link_peer, tunnel.link_client, tunnel._kill_reason = "a:1", "laptop", "because"
    tunnel.is_removed = tunnel.has_predecessor = tunnel._closing = tunnel._wants_to_go = True
    tunnel._started_at = 4.5
    values = through_json(tunnel.hand_over(Descriptors()))
    values["pages"] = {name: os.dup(fd) for name, fd in values["pages"].items()}
    other = TunnelState(tunnel.config, around, nobody, values)
    parts = {"life", "keepers", "counters", "_pages", "_listeners", "report"}
    given = {"config", "_around"}
    made_anew = {"sampler"}
    names = set(vars(tunnel)) - parts - given - made_anew
    assert {name: getattr(other, name) for name in names} == {
        name: getattr(tunnel, name) for name in names
    }
    for one in (tunnel, other):
        one._pages.close()


@pytest.fixture
def loop():
    with closing(Loop()) as made:
        yield made
