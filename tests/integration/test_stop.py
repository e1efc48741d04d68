"""TERM: no new visitors, running ones may finish, the rest gets RST, nothing is left."""

from __future__ import annotations

import os
import signal
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from tests.support.leaks import descendants
from tests.support.pattern import pattern
from tests.support.processes import Master, TunnelPair, alive
from tests.support.sockets import (
    accept,
    connect,
    expect_end,
    expect_reset,
    listener,
    receive_exactly,
    reset,
)
from tests.support.wait import wait_until

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from pathlib import Path

ROLES = ["server", "client"]


class Stage:
    """A pair, a visitor and its target, in the middle of a conversation."""

    def __init__(
        self,
        pair: TunnelPair,
        listening: socket.socket,
        visitor: socket.socket,
        target: socket.socket,
    ) -> None:
        self.pair = pair
        self.listener = listening
        self.visitor = visitor
        self.target = target
        self.family: set[int] = set()

    def master(self, role: str) -> Master:
        master = self.pair.server if role == "server" else self.pair.client
        self.family = descendants(master.pid) | {master.pid}
        return master

    def talk(self) -> None:
        self.visitor.sendall(pattern(1, 0, 5000))
        assert receive_exactly(self.target, 5000) == pattern(1, 0, 5000)
        self.target.sendall(pattern(2, 0, 5000))
        assert receive_exactly(self.visitor, 5000) == pattern(2, 0, 5000)

    def nothing_is_left(self) -> None:
        assert not [pid for pid in self.family if alive(pid)]


@contextmanager
def stage(folder: Path, drain: float) -> Iterator[Stage]:
    with listener() as listening:
        targets = [{"local_port": listening.getsockname()[1], "local_host": "127.0.0.1"}]
        with (
            TunnelPair(targets, folder, common={"drain": drain, "hold": 3}) as pair,
            connect(pair.port) as visitor,
            accept(listening) as target,
        ):
            scene = Stage(pair, listening, visitor, target)
            scene.talk()
            yield scene


@pytest.mark.parametrize("role", ROLES)
def test_running_visitors_may_finish_and_new_ones_are_refused(
    role: str, tmp_path: Path
) -> None:
    with stage(tmp_path, drain=20) as scene:
        master = scene.master(role)
        begin = time.monotonic()
        master.send(signal.SIGTERM)
        if role == "server":
            wait_until(lambda: refused(scene.pair.port), 10, "new visitors are refused")
        scene.talk()
        scene.visitor.close()
        expect_end(scene.target)
        scene.target.close()

        assert master.wait(25) == 0
        assert time.monotonic() - begin < 15, "it waited although nobody was left"
        scene.nothing_is_left()


def refused(port: int) -> bool:
    """Say whether visitors are refused; one that is not goes by RST, so that it is over."""
    try:
        reset(connect(port))
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        return False
    return False


@pytest.mark.parametrize("role", ROLES)
def test_who_does_not_finish_is_reset_when_the_drain_ends(role: str, tmp_path: Path) -> None:
    with stage(tmp_path, drain=1) as scene:
        master = scene.master(role)
        begin = time.monotonic()
        master.send(signal.SIGTERM)
        assert expect_reset(scene.visitor) == 0
        assert time.monotonic() - begin > 0.9
        assert expect_reset(scene.target) == 0

        assert master.wait(10) == 0
        scene.nothing_is_left()


@pytest.mark.parametrize("role", ROLES)
def test_a_second_term_means_now(role: str, tmp_path: Path) -> None:
    with stage(tmp_path, drain=60) as scene:
        master = scene.master(role)
        master.send(signal.SIGTERM)
        wait_until(lambda: "stopping" in master.log_text("master.log"), 10)
        master.send(signal.SIGTERM)

        assert master.wait(10) == 0, "not after 60 s"
        assert expect_reset(scene.visitor) == 0
        assert expect_reset(scene.target) == 0
        scene.nothing_is_left()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["INT", "TERM"])
def test_a_signal_to_the_whole_family_is_no_harm(number: int, tmp_path: Path) -> None:
    """Ctrl-C and systemd signal each process; the workers leave it to their master."""
    with stage(tmp_path, drain=20) as scene:
        master = scene.master("server")
        for pid in sorted(scene.family, reverse=True):
            os.kill(pid, number)
        scene.talk()
        scene.visitor.close()
        expect_end(scene.target)
        scene.target.close()

        assert master.wait(10) == 0
        scene.nothing_is_left()


@pytest.mark.parametrize("role", ROLES)
def test_workers_never_outlive_a_killed_master(role: str, tmp_path: Path) -> None:
    with stage(tmp_path, drain=5) as scene:
        gone, back = kill_and_start(scene, role)
        ends = scene.visitor, scene.target
        for one in ends:
            assert expect_reset(one) == 0
        # On a machine that is busy with other things it takes longer now and then.
        for _ in range(2):
            if gone > 0.1 or back > 5:
                again = kill_and_start(scene, role)
                gone, back = min(gone, again[0]), min(back, again[1])
        assert gone <= 0.1
        assert back <= 5


def kill_and_start(scene: Stage, role: str) -> tuple[float, float]:
    """SIGKILL to a master, and another one: return when all have gone, and when bytes flow."""
    gone = seconds_until_all_are_gone(scene, scene.master(role))
    begin = time.monotonic()
    scene.master(role).start()
    scene.pair.wait_links(15)
    with connect(scene.pair.port) as visitor, accept(scene.listener) as target:
        visitor.sendall(pattern(3, 0, 5000))
        assert receive_exactly(target, 5000) == pattern(3, 0, 5000)
    return gone, time.monotonic() - begin


def seconds_until_all_are_gone(scene: Stage, master: Master) -> float:
    """SIGKILL to a master; its workers and keepers end by the kernel, and fast."""
    family = scene.family - {master.pid}
    assert len(family) >= 2, "a worker and its keeper"
    begin = time.monotonic()
    master.process.kill()
    wait_until(lambda: not any(map(alive, family)), 10, "no worker outlives its master")
    seconds = time.monotonic() - begin
    master.process.wait()
    for pid in family:  # they have come to us
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)
    return seconds
