"""An upgrade: what the new code says, and workers that are replaced one after the other."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.leaks import zygote_of
from tests.support.ports import free_port
from tests.support.wait import wait_until
from tests.unit.master.conftest import visit
from tunneltcp import __version__
from tunneltcp.config.model import TunnelConfig
from tunneltcp.control.counters import Counter, LinkState
from tunneltcp.errors import TunnelError
from tunneltcp.master import upgrade as upgrade_module
from tunneltcp.master.again import Again
from tunneltcp.master.process import ProcessState
from tunneltcp.master.progress import CANARY, DONE, FAILED, REPLACING, Progress
from tunneltcp.master.rollout import CARRIES_SECONDS, Rollout
from tunneltcp.master.upgrade import answer_of

# ------------------------------------------------------------ what the new code says


@pytest.mark.parametrize(
    ("said", "status", "version", "problem"),
    [
        (b'noise\n{"version":"2.0"}\n', 0, "2.0", ""),
        (b'{"problem":"it refuses the config: x"}\n', 1 << 8, "", "it refuses the config: x"),
        (b'{"version":"2.0"}\n', 1 << 8, "", '{"version":"2.0"}'),
        (b'{"version":2}\n', 0, "", '{"version":2}'),
        (b"", 3 << 8, "", "it ended by itself (code 3) and said nothing"),
        (b"\n \n", signal.SIGSEGV, "", "it ended by itself (signal 11) and said nothing"),
        (
            b'Traceback (most recent call last):\n  File "/a/b.py", line 3, in <module>\n'
            b"    import sockt\nModuleNotFoundError: No module named 'sockt'\n",
            1 << 8,
            "",
            "ModuleNotFoundError: No module named 'sockt' (File \"/a/b.py\", line 3)",
        ),
        (b"x" * 1000, 1 << 8, "", "x" * 300),
    ],
)
def test_its_answer(said, status, version, problem):
    assert answer_of(said, status) == (version, problem)


# ----------------------------------------------------------------- it cannot take over


def refused(master):
    """Ask for an upgrade that comes to nothing; return why."""
    before = master.status()
    master.ask("upgrade")
    wait_until(lambda: master.status()["upgrade"]["state"] == "refused", 10)
    after = master.status()
    upgrade = after["upgrade"]
    assert [t["pid"] for t in after["tunnels"]] == [t["pid"] for t in before["tunnels"]]
    assert upgrade["left"] == []
    return upgrade["reason"]


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (["/bin/sh", "-c", "exec sleep 60"], "it did not say within 1 s that it can"),
        (["/bin/sh", "-c", "echo; echo something is wrong >&2; exit 1"], "something is wrong"),
        (["/bin/sh", "-c", "exit 7"], "it ended by itself (code 7) and said nothing"),
        (["/none"], "FileNotFoundError: [Errno 2] No such file or directory"),
    ],
)
def test_a_program_that_does_not_take_over_changes_nothing(start_master, command, reason):
    seconds = 1 if "within 1 s" in reason else upgrade_module.CHECK_SECONDS
    port = free_port()
    master = start_master(
        TunnelConfig(remote_port=port, name="good"),
        again=Again(environment={}, command=command),
        prepare=lambda: setattr(upgrade_module, "CHECK_SECONDS", seconds),
    )
    master.wait_ready()
    assert reason in refused(master)
    assert visit(port) == master.tunnel()["pid"]


def test_one_that_could_and_then_cannot_be_started_changes_nothing(start_master):
    port, says = free_port(), """echo '{"version": "9"}'"""

    def gone(*_: object) -> None:
        raise FileNotFoundError(2, "No such file or directory")

    master = start_master(
        TunnelConfig(remote_port=port, name="good"),
        again=Again(environment={}, command=["/bin/sh", "-c", says], execute=gone),
    )
    master.wait_ready()
    assert refused(master) == "it cannot be started: no such file or directory"
    master.kill(signal.SIGHUP)  # it hears signals again
    wait_until(lambda: "nothing to read again" in master.log(), 5)
    first = visit(port)
    assert first == master.tunnel()["pid"]
    os.kill(first, signal.SIGKILL)  # its zygote had gone already
    wait_until(lambda: master.wait_state("running")["pid"] != first)
    assert visit(port) != first
    assert zygote_of(master.pid)


def test_a_master_that_stops_waits_for_no_new_code(start_master):
    master = start_master(
        TunnelConfig(remote_port=free_port(), name="keep"),
        again=Again(environment={}, command=["/bin/sh", "-c", "exec sleep 60"]),
        drain_seconds=0.5,
    )
    master.wait_ready()
    master.ask("upgrade")
    with pytest.raises(TunnelError, match="an upgrade is under way"):
        master.ask("upgrade")
    master.kill()
    wait_until(lambda: "upgrade refused" in master.log(), 5)
    with pytest.raises(TunnelError, match="the master is stopping"):
        master.ask("upgrade")
    assert master.wait_left(5) == 0


@pytest.mark.parametrize("canary", [1, 60001])
def test_a_canary_must_be_there(start_master, canary):
    master = start_master(
        TunnelConfig(remote_port=free_port(), name="good"), again=Again(environment={})
    )
    master.wait_ready()
    with pytest.raises(TunnelError, match=f"no tunnel has port {canary}; there are "):
        master.ask("upgrade", canary=canary)
    port = master.tunnel()["port"]
    master.ask("stop", port=port)
    master.wait_state("stopped")
    with pytest.raises(TunnelError, match=f"tunnel {port} is stopped: it has no process"):
        master.ask("upgrade", canary=port)


def test_a_master_that_was_not_started_by_a_command(start_master):
    master = start_master(TunnelConfig(remote_port=free_port(), name="good"))
    master.wait_ready()
    assert master.status()["upgrade"] is None
    assert master.tunnel()["version"] == __version__
    with pytest.raises(TunnelError, match="was not started by a command"):
        master.ask("upgrade")


# -------------------------------------------------------- one worker after the other


class FakeLoop:
    """Time that moves when told."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, Any]] = []

    def call_later(self, seconds, callback):
        self._due.append((self.now + seconds, callback))

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while self._due and min(self._due, key=lambda one: one[0])[0] <= end:
            self._due.sort(key=lambda one: one[0])
            self.now, callback = self._due.pop(0)
            callback()
        self.now = end


class FakeTunnel:
    """Its worker is outdated until it was replaced and ``came`` was said."""

    def __init__(self, port: int, *, link: bool = True, kept: bool = True) -> None:
        self.config = SimpleNamespace(remote_port=port, crash_safe=True)
        self.life = SimpleNamespace(state=ProcessState.RUNNING)
        self.keepers = SimpleNamespace(is_kept=kept)
        self.counters = {Counter.LINK_STATE: LinkState.UP if link else LinkState.DOWN}
        self.is_outdated = True
        self.reason = ""
        self.restarted = 0

    def restart(self, _reason: str) -> None:
        self.restarted += 1
        self.life.state = ProcessState.BACKOFF
        self.counters[Counter.LINK_STATE] = LinkState.DOWN
        self.is_outdated = False

    def came(self, *, link: bool = True) -> None:
        self.life.state = ProcessState.RUNNING
        self.counters[Counter.LINK_STATE] = LinkState.UP if link else LinkState.DOWN


@pytest.fixture
def rollout():
    """Begin one with these tunnels; return loop and progress."""

    def begin(*tunnels, canary=None, stopping=False):
        loop, progress = FakeLoop(), Progress(number=1, origin="1", canary=canary)
        state = SimpleNamespace(is_under_way=stopping)
        made: Any = tunnels
        any_loop: Any = loop
        any_state: Any = state
        Rollout(any_loop, made, progress, any_state).begin()
        return loop, progress, state

    return begin


def test_one_after_the_other(rollout):
    first, second = FakeTunnel(1), FakeTunnel(2, link=False)
    loop, progress, _ = rollout(first, second)
    assert (first.restarted, second.restarted, progress.state) == (1, 0, REPLACING)
    first.came(link=False)
    loop.advance(1)
    assert second.restarted == 0, "its link is not back"
    first.came()
    loop.advance(0.1)
    assert (second.restarted, progress.replaced) == (1, [1])
    second.came(link=False)  # it had none
    loop.advance(0.1)
    assert (progress.state, progress.replaced) == (DONE, [1, 2])
    assert progress.version == __version__


def test_one_that_does_not_come_up_is_the_last_one(rollout):
    first, second = FakeTunnel(1), FakeTunnel(2)
    loop, progress, _ = rollout(first, second)
    first.reason = "left with code 1 (crashed)"
    loop.advance(CARRIES_SECONDS + 0.1)
    assert progress.state == FAILED
    assert progress.reason == ("1 does not come up; it is backoff: left with code 1 (crashed)")
    assert (second.restarted, progress.replaced) == (0, [])


def test_a_link_that_does_not_come_back_is_the_end(rollout):
    first, second = FakeTunnel(1), FakeTunnel(2)
    loop, progress, _ = rollout(first, second)
    first.came(link=False)
    loop.advance(CARRIES_SECONDS + 0.1)
    assert progress.reason == "the link of 1 was not back within 15 s"
    assert second.restarted == 0


def test_a_canary_goes_alone(rollout):
    tunnels = [FakeTunnel(1), FakeTunnel(2), FakeTunnel(3)]
    loop, progress, _ = rollout(*tunnels, canary=2)
    tunnels[1].came()
    loop.advance(0.1)
    assert [one.restarted for one in tunnels] == [0, 1, 0]
    assert (progress.state, progress.replaced) == (CANARY, [2])
    assert progress.status([1, 3]) == {
        "number": 1, "state": "canary", "from": "1", "to": __version__, "canary": 2,
        "reason": None, "replaced": [2], "left": [1, 3],
    }  # fmt: skip


def test_who_has_no_process_is_left_alone(rollout):
    stopped, draining, new = FakeTunnel(1), FakeTunnel(2), FakeTunnel(3)
    stopped.life.state, draining.life.state = ProcessState.STOPPED, ProcessState.STOPPING
    new.is_outdated = False
    _, progress, _ = rollout(stopped, draining, new)
    assert progress.state == DONE
    assert [one.restarted for one in (stopped, draining, new)] == [0, 0, 0]


def test_one_that_is_stopped_meanwhile_stays_so(rollout):
    first, second = FakeTunnel(1), FakeTunnel(2)
    loop, progress, _ = rollout(first, second)
    first.life.state = ProcessState.STOPPED
    loop.advance(0.1)
    assert (second.restarted, progress.replaced) == (1, [])


def test_a_keeper_that_died_a_moment_ago_is_waited_for(rollout):
    tunnel = FakeTunnel(1, kept=False)
    loop, _, _ = rollout(tunnel)
    loop.advance(0.5)
    assert tunnel.restarted == 0
    tunnel.keepers.is_kept = True
    loop.advance(0.1)
    assert tunnel.restarted == 1
    never = FakeTunnel(1, kept=False)
    loop, _, _ = rollout(never)
    loop.advance(2)
    assert never.restarted == 1, "this system has none"


def test_when_everything_ends_nobody_is_replaced_any_more(rollout):
    first, second = FakeTunnel(1), FakeTunnel(2)
    loop, progress, stopping = rollout(first, second)
    stopping.is_under_way = True
    first.life.state = ProcessState.STOPPING
    loop.advance(0.1)
    assert (progress.state, second.restarted) == (FAILED, 0)
    third = FakeTunnel(3)
    _, progress, _ = rollout(third, stopping=True)
    assert (progress.state, third.restarted) == (FAILED, 0)


def test_progress_of_another_version():
    values = {"number": 3, "state": DONE, "colour": "blue"}
    assert Progress.from_plain(values) == Progress(number=3, state=DONE)
    assert Progress().status([]) is None
