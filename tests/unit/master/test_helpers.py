"""Helpers: what blocks stays in a child, and no answer is waited for too long."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.leaks import Snapshot
from tests.support.ports import free_port
from tests.support.wait import wait_until
from tunneltcp.master import holders
from tunneltcp.master.children import Children
from tunneltcp.master.helpers import Helpers, Lookups
from tunneltcp.master.holders import PortHolders, port_holders
from tunneltcp.net.loop import Loop
from tunneltcp.net.names import look_up


class Bench:
    def __init__(self):
        self.loop = Loop(max_sleep_seconds=0.05)
        self.children = Children(self.loop)
        self.helpers = Helpers(self.loop, self.children)

    def turn_until(self, condition):
        def check():
            self.loop.turn()
            return condition()

        wait_until(check)


@pytest.fixture
def bench():
    free_port()
    before = Snapshot.take()
    made = Bench()
    yield made
    made.helpers.close()
    made.turn_until(lambda: not len(made.children))
    made.loop.close()
    before.check()


def test_answers_come_back(bench):
    got: list[Any] = []
    for number in range(20):
        bench.helpers.run(lambda number=number: {"n": number, "pid": os.getpid()}, got.append)
    bench.turn_until(lambda: len(got) == 20)
    assert sorted(answer["n"] for answer in got) == list(range(20))
    assert os.getpid() not in {answer["pid"] for answer in got}


@pytest.mark.parametrize(
    "work", [lambda: 1 / 0, lambda: "x" * 100_000, lambda: object(), lambda: os._exit(3),
             lambda: os.kill(os.getpid(), signal.SIGKILL), signal.pause],
)  # fmt: skip
def test_one_that_fails_or_hangs_answers_nothing(bench, work):
    got: list[Any] = []
    helpers = Helpers(bench.loop, bench.children, seconds=0.5)
    helpers.run(work, got.append)
    bench.turn_until(lambda: got)
    helpers.close()
    assert got == [None]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_names_are_looked_up_by_the_other_user(bench, monkeypatch):
    """What name servers answer is read by who is nobody."""
    who = lambda host: {"addresses": [], "error": f"{os.getresuid()} {os.getgroups()}"}  # noqa: E731
    monkeypatch.setattr("tunneltcp.master.helpers.look_up", who)
    got: list[Any] = []
    Lookups(bench.helpers, (65_534, 65_534)).ask(1, "localhost", 7, got.append)
    Lookups(bench.helpers).ask(1, "localhost", 7, got.append)
    bench.turn_until(lambda: len(got) == 2)
    said = sorted(answer["error"].split(")")[0] for answer in got)
    assert said == ["(0, 0, 0", "(65534, 65534, 65534"]


def test_a_helper_holds_no_descriptor_of_ours(bench):
    got: list[Any] = []
    with socket.create_server(("127.0.0.1", 0)):
        bench.helpers.run(
            lambda: sorted(int(fd.name) for fd in Path("/proc/self/fd").iterdir()), got.append
        )
        bench.turn_until(lambda: got)
    assert got[0][:3] == [0, 1, 2]
    assert len(got[0]) == 5, "standard ones, the pipe, and the listing's own"


def test_one_answer_for_all_who_ask_for_the_same_name(bench):
    lookups = Lookups(bench.helpers)
    got: list[Any] = []
    for pid in (1, 2):
        lookups.ask(pid, "127.0.0.1", 80 + pid, got.append)
    bench.turn_until(lambda: len(got) == 2)
    assert [(answer["port"], answer["addresses"]) for answer in got] == [
        (81, [[socket.AF_INET, "127.0.0.1", 81, 0]]),
        (82, [[socket.AF_INET, "127.0.0.1", 82, 0]]),
    ]
    assert got[0]["error"] is None


def test_a_worker_that_asks_for_too_much_is_told(bench):
    lookups = Lookups(bench.helpers)
    got: list[Any] = []
    for number in range(9):
        lookups.ask(1, f"127.0.0.{number + 1}", 1, got.append)
    assert [answer["host"] for answer in got] == ["127.0.0.9"]
    assert got[0]["error"]
    bench.turn_until(lambda: len(got) == 9)


def test_names_that_do_not_exist():
    assert look_up("127.0.0.1") == {"addresses": [[2, "127.0.0.1", 0]], "error": None}
    assert look_up("::1")["addresses"] == [[10, "::1", 0]]
    for name in ("a..b", "x" * 300, "\0"):
        assert look_up(name)["error"]


def holder(port: int) -> dict[str, Any]:
    found = port_holders([port])
    mine: dict[str, Any] = found["ports"][str(port)]
    return mine | {"reserved": found["reserved"]}


def test_who_holds_a_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        found = holder(port)
        assert f"(process {os.getpid()}) listens on it" in found["holder"]
        assert found["listens"] is True
        reserved = Path("/proc/sys/net/ipv4/ip_local_reserved_ports").read_text().strip()
        assert found["reserved"] == reserved
        with socket.create_connection(("127.0.0.1", port)) as outgoing:
            mine = outgoing.getsockname()[1]
            found = holder(mine)
            assert found["holder"].endswith(f"to 127.0.0.1 port {port} holds it")
            assert found["listens"] is False
    assert holder(free_port())["holder"] == ""


@pytest.fixture
def looks(bench, monkeypatch):
    """Holders that look twice a second; and the ports of each look."""
    monkeypatch.setattr(holders, "LOOK_SECONDS", 0.5)
    helpers = Helpers(bench.loop, bench.children)
    run, seen = helpers.run, []

    def note(work, answered):
        seen.append(work)
        run(work, answered)

    monkeypatch.setattr(helpers, "run", note)
    yield PortHolders(bench.loop, helpers), seen
    helpers.close()


def test_one_look_serves_all_whose_port_is_busy(bench, looks):
    asked, seen = looks
    got: dict[int, Any] = {}
    with ExitStack() as stack:
        for _ in range(3):
            server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            port = server.getsockname()[1]
            asked.ask(port, partial(got.__setitem__, port))
        begun = bench.loop.now
        bench.turn_until(lambda: len(got) == 3)
        assert all("listens on it" in found["holder"] for found in got.values())
        assert len(seen) == 1
        again: list[Any] = []
        asked.ask(next(iter(got)), again.append)
        bench.turn_until(lambda: bool(again))
    assert bench.loop.now - begun >= 0.5, "nobody has it look all the time"
    assert len(seen) == 2


def test_a_look_that_fails_is_an_answer_too(bench, looks, monkeypatch):
    monkeypatch.setattr(holders, "port_holders", lambda _ports: 1 / 0)
    asked, _ = looks
    got: list[Any] = []
    asked.ask(7, got.append)
    bench.turn_until(lambda: bool(got))
    assert got == [None]


def test_what_is_at_once_does_not_wait_for_its_turn(bench):
    """A reload waited behind names that nobody looks up."""
    helpers = Helpers(bench.loop, bench.children, seconds=60)
    answers: list[object] = []
    for _ in range(20):
        helpers.run(signal.pause, answers.append)
    helpers.run(lambda: "read", answers.append, at_once=True)
    bench.turn_until(lambda: answers)
    assert answers == ["read"]
    helpers.close()
    bench.turn_until(lambda: not len(bench.children))
