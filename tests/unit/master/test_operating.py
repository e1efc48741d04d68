"""What people ask a running master for: stop, start, restart, questions to workers."""

from __future__ import annotations

import errno
import os
import signal
import socket
import time
from functools import partial
from typing import Any

import orjson
import pytest

from tests.support.ports import free_port
from tests.support.wait import wait_until
from tests.unit.master.conftest import visit
from tunneltcp.config.model import TunnelConfig
from tunneltcp.errors import TunnelError
from tunneltcp.master.listeners import Listeners
from tunneltcp.master.questions import ANSWER_SECONDS, Questions
from tunneltcp.master.stopped import StoppedPorts
from tunneltcp.net.loop import Loop


def tunnel(name="good") -> TunnelConfig:
    return TunnelConfig(remote_port=free_port(), name=f"{name}-{time.monotonic_ns()}")


def refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except ConnectionRefusedError:
        return True
    return False


def can_bind(port: int) -> bool:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            other.bind(("127.0.0.1", port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return False
    return True


class TestStop:
    def test_it_refuses_at_once_keeps_the_port_and_touches_nobody_else(self, start_master):
        one, other = tunnel(), tunnel()
        master = start_master(one, other)
        master.wait_ready()
        bystander = master.at(other.remote_port)["pid"]
        answer = master.ask("stop", port=one.remote_port)
        assert answer["port"] == one.remote_port
        assert refuses(one.remote_port), "even while its worker still drains"
        stopped = master.wait_port(one.remote_port, "stopped")
        assert (stopped["pid"], stopped["reason"]) == (None, "stopped by a person")
        assert stopped["stopped_by_user"] is True
        assert refuses(one.remote_port)
        assert not can_bind(one.remote_port), "nobody else gets the port"
        assert master.at(other.remote_port)["pid"] == bystander
        assert visit(other.remote_port) == bystander

    def test_start_serves_again(self, start_master):
        one = tunnel()
        master = start_master(one)
        master.wait_ready()
        old = master.tunnel()["pid"]
        master.ask("stop", port=one.remote_port)
        master.wait_state("stopped")
        master.ask("start", port=one.remote_port)
        new = master.wait_state("running")["pid"]
        assert new != old
        assert visit(one.remote_port) == new
        assert master.tunnel()["stopped_by_user"] is False

    def test_started_while_it_drains_it_has_a_new_worker_soon(self, start_master):
        one = tunnel("keep")
        master = start_master(one)
        master.wait_ready()
        old = visit(one.remote_port)
        master.ask("stop", port=one.remote_port)
        assert master.tunnel()["state"] in ("stopping", "stopped")
        master.ask("start", port=one.remote_port)
        wait_until(lambda: master.tunnel()["pid"] not in (None, old))
        assert visit(one.remote_port) != old

    def test_it_stays_stopped_when_the_master_is_started_again(self, start_master):
        one, other = tunnel(), tunnel()
        first = start_master(one, other)
        first.wait_ready()
        first.ask("stop", port=one.remote_port)
        first.wait_port(one.remote_port, "stopped")
        first.kill()
        assert first.wait_left() == 0
        second = start_master(one, other)
        second.wait_port(other.remote_port, "running")
        assert second.at(one.remote_port)["state"] == "stopped"
        assert refuses(one.remote_port)
        assert not can_bind(one.remote_port)
        second.ask("start", port=one.remote_port)
        pid = second.wait_port(one.remote_port, "running")["pid"]
        assert visit(one.remote_port) == pid

    def test_that_cannot_be_kept_is_done_and_said(self, start_master, folders):
        one = tunnel()
        master = start_master(one)
        master.wait_ready()
        (folders.state / "stopped.new").mkdir()  # in the way, for root too
        answer = master.ask("stop", port=one.remote_port)
        assert "forget it: is a directory" in answer["warning"]
        master.wait_state("stopped")

    def test_what_could_not_be_kept_is_kept_the_next_time(self, start_master, folders):
        one = tunnel()
        master = start_master(one)
        master.wait_ready()
        (folders.state / "stopped.new").mkdir()
        assert "warning" in master.ask("stop", port=one.remote_port)
        assert "warning" in master.ask("stop", port=one.remote_port), "still not"
        (folders.state / "stopped.new").rmdir()
        assert "warning" not in master.ask("stop", port=one.remote_port)
        kept = orjson.loads((folders.state / "stopped.json").read_bytes())
        assert kept == {"ports": [one.remote_port]}

    def test_a_worker_that_dies_meanwhile_has_no_successor(self, start_master):
        one = tunnel("keep")
        master = start_master(one, drain_seconds=60.0)
        master.wait_ready()
        visit(one.remote_port)
        pid = master.tunnel()["pid"]
        master.ask("stop", port=one.remote_port)
        os.kill(pid, signal.SIGKILL)
        master.wait_state("stopped")
        assert master.tunnel()["restarts"] == 0


class TestRestart:
    def test_the_worker_is_another_one(self, start_master):
        one, other = tunnel(), tunnel()
        master = start_master(one, other)
        master.wait_ready()
        pids = {port: master.at(port)["pid"] for port in (one.remote_port, other.remote_port)}
        answer = master.ask("restart", port=one.remote_port)
        assert answer["pid"] == pids[one.remote_port]
        wait_until(lambda: master.at(one.remote_port)["pid"] not in (None, answer["pid"]))
        assert visit(one.remote_port) != pids[one.remote_port]
        now = master.wait_port(one.remote_port, "running")
        assert now["last_exit"]["reason"] == "was restarted by a person"
        assert master.at(other.remote_port)["pid"] == pids[other.remote_port]
        assert "worker replaced: it was restarted by a person" in master.log()

    def test_one_that_waits_for_its_next_try_tries_now(self, start_master):
        port = free_port()
        with socket.socket() as holder:
            holder.bind(("127.0.0.1", port))
            holder.listen()
            master = start_master(TunnelConfig(remote_port=port, name="good"))
            wait_until(lambda: master._tunnels()[0]["state"] == "backoff")
        master.ask("restart", port=port)
        assert visit(port) == master.wait_state("running")["pid"]

    def test_a_stopped_one_is_not_restarted(self, start_master):
        one = tunnel()
        master = start_master(one)
        master.wait_ready()
        master.ask("stop", port=one.remote_port)
        master.wait_state("stopped")
        with pytest.raises(TunnelError, match="is stopped; start it with"):
            master.ask("restart", port=one.remote_port)


class TestQuestions:
    def test_go_to_the_worker_and_its_answer_comes_back(self, start_master):
        one = tunnel()
        master = start_master(one)
        master.wait_ready()
        port = one.remote_port
        assert master.ask("who", port=port)["asked"] == "who"
        for whom in ({"visitor": 1}, {"address": "192.0.2.1"}, {"all": True}):
            assert master.ask("kick", port=port, **whom)["asked"] == "kick"

    @pytest.mark.parametrize(
        "words",
        [{}, {"visitor": "1"}, {"all": False}, {"address": ""}, {"address": "x" * 100}],
    )
    def test_kick_says_whom(self, start_master, words):
        one = tunnel()
        master = start_master(one)
        master.wait_ready()
        with pytest.raises(TunnelError, match="kick whom"):
            master.ask("kick", port=one.remote_port, **words)

    def test_a_worker_that_does_not_answer_is_said(self, start_master):
        one = tunnel("deaf")
        master = start_master(one)
        master.wait_ready()
        begun = time.monotonic()
        with pytest.raises(TunnelError, match="the worker does not answer"):
            master.ask("who", port=one.remote_port)
        assert time.monotonic() - begun >= ANSWER_SECONDS

    def test_a_worker_that_dies_over_it_is_said(self, start_master):
        one = tunnel("dies")
        master = start_master(one)
        master.wait_ready()
        with pytest.raises(TunnelError, match="the worker has gone"):
            master.ask("who", port=one.remote_port)

    def test_without_a_worker_nobody_is_asked(self, start_master):
        one = tunnel()
        master = start_master(one)
        master.wait_ready()
        master.ask("stop", port=one.remote_port)
        master.wait_state("stopped")
        with pytest.raises(TunnelError, match="is stopped: nobody is connected"):
            master.ask("who", port=one.remote_port)

    def test_an_unknown_port_names_those_there_are(self, start_master):
        one = tunnel()
        master = start_master(one)
        master.wait_ready()
        with pytest.raises(
            TunnelError, match=f"no tunnel has port 1; there are {one.remote_port}"
        ):
            master.ask("who", port=1)

    @pytest.mark.parametrize(
        "words",
        [{"op": "dance"}, {"op": "stop"}, {"op": "stop", "port": "1"}, {"op": 7}, {"op": None},
         {"op": "dance", "port": 0}],
    )  # fmt: skip
    def test_what_nobody_asks_is_refused(self, start_master, words):
        one = tunnel()
        master = start_master(one)
        master.wait_ready()
        if words.get("port") == 0:
            words = words | {"port": one.remote_port}
        with pytest.raises(TunnelError, match="unknown request"):
            master.ask(**words)
        assert master.tunnel()["state"] == "running"

    def test_their_number_is_bounded(self):
        loop = Loop(max_sleep_seconds=0.0)
        questions = Questions(loop)
        said: list[dict[str, Any]] = []
        numbers = [questions.add(said.append) for _ in range(65)]
        assert numbers[-1] is None
        assert said == [{"error": "too many questions to this worker are open"}]
        questions.fail_all("gone")
        assert len(said) == 65
        assert questions.add(said.append) is not None
        loop.close()


class TestStoppedPorts:
    def test_a_link_in_the_place_of_the_new_file_is_not_followed(self, tmp_path):
        victim = tmp_path / "victim"
        victim.write_text("untouched")
        (tmp_path / "stopped.new").symlink_to(victim)
        with pytest.raises(OSError, match="symbolic"):
            StoppedPorts(tmp_path).keep({60001})
        assert victim.read_text() == "untouched"

    def test_are_kept(self, tmp_path):
        StoppedPorts(tmp_path).keep({60002, 60001})
        assert StoppedPorts(tmp_path).ports == {60001, 60002}
        assert (tmp_path / "stopped.json").stat().st_mode & 0o777 == 0o600

    @pytest.mark.parametrize(
        "text",
        ["", "{", "[]", '{"ports": 7}', '{"ports": ["1", true, 1.5]}', "{}", "x" * 70_000],
    )
    def test_a_file_that_says_nothing_stops_nobody(self, tmp_path, text):
        (tmp_path / "stopped.json").write_text(text)
        assert StoppedPorts(tmp_path).ports == frozenset()


def test_a_visitor_nobody_has_accepted_yet_is_reset_when_the_port_is_shut():
    port = free_port()
    listeners = Listeners(port, ["127.0.0.1"])
    listeners.open()
    with socket.create_connection(("127.0.0.1", port)) as visitor:
        visitor.settimeout(5)
        listeners.shut()
        with pytest.raises(ConnectionResetError):
            visitor.recv(1)
    assert refuses(port)
    listeners.reopen()
    wait_until(partial(lambda: not refuses(port)))
    listeners.close()
    assert can_bind(port)
