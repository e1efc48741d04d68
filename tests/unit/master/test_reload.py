"""A new config: what it changes is done, and nothing else is touched."""

from __future__ import annotations

import os
import signal
import socket
from dataclasses import replace
from functools import partial

import orjson
import pytest

from tests.support.ports import free_port, free_ports
from tests.support.wait import wait_until
from tests.unit.master.conftest import visit
from tests.unit.master.test_operating import can_bind, refuses
from tunneltcp.config.clients import ClientConfig
from tunneltcp.config.load import load_config
from tunneltcp.config.model import Config, TunnelConfig
from tunneltcp.config.tokens import TokenPlace
from tunneltcp.control.context import Role
from tunneltcp.errors import TunnelError
from tunneltcp.master.changes import compare
from tunneltcp.master.tunnel_set import TunnelSet


class File:
    """A config file and the master that was started with it."""

    def __init__(self, start_master, path, role="server"):
        self._start, self._path, self._role = start_master, path, role

    def write(self, *tunnels, **settings):
        entries = [
            {"name": f"good-{port}"} | extra | {"remote_port": port} for port, extra in tunnels
        ]
        usual: dict[str, object] = {"drain": 1, "tls": False}
        if self._role == "client":  # nobody has logged in here
            usual["auth"] = "none"
        self._path.write_bytes(orjson.dumps({**usual, **settings, "tunnels": entries}))

    def start(self, *, wait=True, role=Role.SERVER):
        load = partial(load_config, self._path, self._role)
        master = self._start(load_again=load, role=role)
        if wait:
            master.wait_ready()
        return master

    def break_it(self):
        self._path.write_text('{"tunnels": [{"remote_port": true}, {"remote_port": 0}]}')


@pytest.fixture
def file(start_master, tmp_path):
    return File(start_master, tmp_path / "config.json")


def pids(master) -> dict[int, int]:
    return {tunnel["port"]: tunnel["pid"] for tunnel in master.status()["tunnels"]}


def test_what_is_new_comes_what_is_not_there_goes_and_the_others_keep_their_pids(file):
    kept, gone, new = free_ports(3)
    file.write((kept, {}), (gone, {}))
    master = file.start()
    before = pids(master)
    file.write((new, {}), (kept, {}))
    answer = master.ask("reload")
    assert answer.pop("different")
    assert answer == {"added": [new], "removed": [gone], "changed": [], "unchanged": 1}
    assert refuses(gone)
    pid = master.wait_port(new, "running")["pid"]
    assert visit(new) == pid
    wait_until(lambda: gone not in pids(master))
    assert can_bind(gone), "the port is given back"
    assert visit(kept) == before[kept]
    assert f"config read again: added {new}; removed {gone}" in master.log()


def test_a_changed_tunnel_has_another_worker(file):
    one, other = free_ports(2)
    file.write((one, {}), (other, {}))
    master = file.start()
    before = pids(master)
    file.write((one, {"hold": 3}), (other, {}))
    assert master.ask("reload")["changed"] == [one]
    wait_until(lambda: pids(master)[one] not in (None, before[one]))
    assert visit(one) != before[one]
    assert pids(master)[other] == before[other]
    assert master.wait_port(one, "running")["last_exit"]["reason"] == "got other settings"


@pytest.mark.parametrize("settings", [{"drain": 3}, {"log_files": 5}, {"budget": 1 << 21}])
def test_settings_of_the_master_replace_no_worker(file, settings):
    one = free_port()
    file.write((one, {}))
    master = file.start()
    before = pids(master)
    file.write((one, {"name": "good-other"}), **settings)
    answer = master.ask("reload")
    assert (answer["changed"], answer["unchanged"], answer["different"]) == ([], 1, True)
    assert pids(master) == before
    assert master.at(one)["name"] == "good-other"


def test_hangup_does_the_same(file):
    one, new = free_ports(2)
    file.write((one, {}))
    master = file.start()
    file.write((one, {}), (new, {}))
    master.kill(signal.SIGHUP)
    wait_until(lambda: master.at(new) is not None)
    master.wait_port(new, "running")


def test_a_broken_file_changes_nothing_and_all_its_problems_are_told(file):
    one = free_port()
    file.write((one, {}))
    master = file.start()
    before = pids(master)
    file.break_it()
    with pytest.raises(TunnelError, match="the config was not taken"):
        master.ask("reload")
    master.kill(signal.SIGHUP)
    wait_until(lambda: master.log().count("config not taken") >= 4)
    assert "tunnels[0].remote_port" in master.log()
    assert "tunnels[1].remote_port" in master.log()
    assert pids(master) == before
    assert visit(one) == before[one]


def test_without_a_file_there_is_nothing_to_read(start_master):
    one = TunnelConfig(remote_port=free_port(), name="good")
    master = start_master(one)
    master.wait_ready()
    with pytest.raises(TunnelError, match="started with ports, not with a file"):
        master.ask("reload")
    assert master.tunnel()["state"] == "running"


def test_the_ports_move_to_another_address(file):
    one = free_port()
    file.write((one, {}), bind="127.0.0.1")
    master = file.start()
    old = pids(master)[one]
    file.write((one, {}), bind="127.0.0.2")
    assert master.ask("reload")["changed"] == [one]
    new = wait_until(lambda: pids(master)[one] not in (None, old) and pids(master)[one])
    assert visit(one, "127.0.0.2") == new
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", one), 5)


def test_one_that_comes_back_while_it_drains(file):
    """Its predecessor has a visitor and would take the whole drain."""
    one, other = free_ports(2)
    file.write((one, {"name": "keep-1"}), (other, {}), drain=30)
    master = file.start()
    old = visit(one)
    file.write((other, {}), drain=30)
    master.ask("reload")
    assert master.at(one)["reason"] == "no longer in the config"
    file.write((one, {}), (other, {}), drain=30)
    assert master.ask("reload")["added"] == [one]
    wait_until(lambda: [t["port"] for t in master.status()["tunnels"]].count(one) == 1)
    new = master.wait_port(one, "running")["pid"]
    assert new != old
    assert visit(one) == new


def test_one_that_is_stopped_stays_so_and_is_forgotten_with_its_tunnel(file, folders):
    one, other = free_ports(2)
    file.write((one, {}), (other, {}))
    master = file.start()
    master.ask("stop", port=one)
    master.wait_port(one, "stopped")
    file.write((one, {"hold": 3}), (other, {}), bind="127.0.0.2")
    master.ask("reload")
    assert master.at(one)["state"] == "stopped"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", one), 5)
    file.write((other, {}), bind="127.0.0.2")
    master.ask("reload")
    wait_until(lambda: master.at(one) is None)
    file.write((one, {}), (other, {}), bind="127.0.0.2")
    master.ask("reload")
    master.wait_port(one, "running")
    assert orjson.loads((folders.state / "stopped.json").read_bytes()) == {"ports": []}


def test_a_removed_tunnel_lets_go_of_its_own_page_and_of_no_other(file):
    """Pages of tunnels that never ran are equal: it took another, and all workers crashed."""
    one, other, third = free_ports(3)
    file.write((one, {}), (other, {}), (third, {}))
    first = file.start()
    for port in (one, other):
        first.ask("stop", port=port)
        first.wait_port(port, "stopped")
    first.kill()
    assert first.wait_left() == 0
    master = file.start(wait=False)
    master.wait_port(third, "running")
    file.write((one, {}), (third, {}))
    master.ask("reload")
    wait_until(lambda: master.at(other) is None)
    master.ask("start", port=one)
    assert visit(one) == master.wait_port(one, "running")["pid"]
    assert master.at(one)["last_exit"] is None, "no worker crashed"


def test_a_new_tunnel_has_the_new_settings_from_the_same_config(file):
    """It was made before the master took them: bound at the old address, with the old drain."""
    one, new = free_ports(2)
    file.write((one, {}), bind="127.0.0.1", drain=60)
    master = file.start()
    file.write((one, {}), (new, {"name": "keep-1"}), bind="127.0.0.2", drain=0.5)
    master.ask("reload")
    pid = master.wait_port(new, "running")["pid"]
    assert visit(new, "127.0.0.2") == pid
    assert refuses(new), "it is not open where the config says no longer"
    master.kill()
    assert master.wait_left() == 0, "its worker, which does not leave by itself, has no 60 s"


@pytest.fixture
def returning(file):
    """A master, and a port that went and came back; its old worker stays until it is killed."""
    one, other = free_ports(2)
    file.write((one, {"name": "stubborn-1"}), (other, {}))
    master = file.start()
    file.write((other, {}))
    master.ask("reload")
    file.write((one, {}), (other, {}))
    master.ask("reload")
    return master, one


def pids_of(master, port) -> list[int]:
    tunnels = master.status()["tunnels"]
    return [one["pid"] for one in tunnels if one["port"] == port and one["pid"]]


def test_stopped_while_it_waits_for_its_predecessor_it_stays_stopped(returning):
    master, one = returning
    master.ask("stop", port=one)
    wait_until(lambda: [t["port"] for t in master.status()["tunnels"]].count(one) == 1)
    master.wait_port(one, "stopped")
    assert refuses(one)
    assert not can_bind(one)
    master.ask("start", port=one)
    assert visit(one) == master.wait_port(one, "running")["pid"]


@pytest.mark.parametrize("what", ["restart", "start"])
def test_no_word_of_a_person_brings_two_workers_of_one_port(start_master, tmp_path, what):
    """On a client no busy port stands in the way of the second."""
    one, other = free_ports(2)
    file = File(start_master, tmp_path / "config.json", "client")
    stubborn = (one, {"name": "stubborn-1", "local_port": 9})
    file.write(stubborn, (other, {"local_port": 9}), server="localhost")
    master = file.start(role=Role.CLIENT)
    file.write((other, {"local_port": 9}), server="localhost")
    master.ask("reload")
    file.write((one, {"local_port": 9}), (other, {"local_port": 9}), server="localhost")
    master.ask("reload")
    master.ask(what, port=one)
    seen = []

    def alone():
        seen.append(len(pids_of(master, one)))
        return [t["port"] for t in master.status()["tunnels"]].count(one) == 1

    wait_until(alone)
    assert max(seen) <= 1
    master.wait_port(one, "running")


def test_another_drain_counts_at_once_for_those_who_run(file):
    one = free_port()
    file.write((one, {"name": "keep-1"}), drain=60)
    master = file.start()
    old = visit(one)
    file.write((one, {"name": "keep-1"}), drain=0.5)
    master.ask("reload")
    assert pids(master) == {one: old}
    master.kill()
    assert master.wait_left() == 0, "its worker, which does not leave by itself, has no 60 s"


def test_another_drain_counts_at_once_for_those_who_are_to_go(file):
    """It had the 60 s, and a master that was to leave gave up on it and left with 1."""
    one, other = free_ports(2)
    file.write((one, {"name": "keep-1"}), (other, {}), drain=60)
    master = file.start()
    visit(one)
    file.write((other, {}), drain=60)
    master.ask("reload")
    assert master.at(one)["state"] == "stopping"
    file.write((other, {}), drain=0.5)
    master.ask("reload")
    wait_until(lambda: one not in pids(master))


def test_another_log_format_counts_at_once_for_the_master(file):
    one = free_port()
    file.write((one, {}))
    master = file.start()
    file.write((one, {}), log_format="json")
    master.ask("reload")
    last = master.log().splitlines()[-1]
    assert (
        orjson.loads(last)["message"] == "config read again: other settings, no new processes"
    )
    assert not master.ask("reload")["different"]
    last = master.log().splitlines()[-1]
    assert orjson.loads(last)["message"] == "config read again: nothing is different"


class TestCompare:
    OLD = Config(
        tunnels=(
            TunnelConfig(remote_port=1, local_port=10, name="a"),
            TunnelConfig(remote_port=2, local_port=20, name="b"),
        ),
        server="vps",
    )

    def test_nothing(self):
        changes = compare(self.OLD, self.OLD)
        assert (changes.added, changes.removed, changes.changed) == ((), (), ())
        assert not changes.rebind
        assert changes.unchanged == self.OLD.tunnels

    def test_each_way_of_differing(self):
        first = self.OLD.tunnels[0]
        third = TunnelConfig(remote_port=3, local_port=30, name="c")
        changes = compare(
            self.OLD, replace(self.OLD, tunnels=(replace(first, local_port=11), third))
        )
        assert changes.added == (third,)
        assert changes.removed == (2,)
        assert [tunnel.remote_port for tunnel in changes.changed] == [1]
        assert changes.unchanged == ()

    def test_another_server_concerns_all(self):
        changes = compare(self.OLD, replace(self.OLD, server="other"))
        assert changes.changed == self.OLD.tunnels
        assert not changes.rebind

    def test_another_address_concerns_all(self):
        changes = compare(self.OLD, replace(self.OLD, bind=("::1",)))
        assert changes.changed == self.OLD.tunnels
        assert changes.rebind

    def test_networks_are_told_and_replace_no_worker(self):
        first, *rest = self.OLD.tunnels
        other = replace(first, name="x", allow=("::1/128",), visitors_deny=("10.0.0.0/8",))
        changes = compare(self.OLD, replace(self.OLD, tunnels=(other, *rest)))
        assert changes.changed == ()
        assert other in changes.unchanged

    def test_a_port_that_goes_together_with_its_client_is_revoked(self):
        ports = [tunnel.remote_port for tunnel in self.OLD.tunnels]
        place = TokenPlace(kind="file", where="/x")
        laptop = ClientConfig(name="laptop", tokens=(place,), ports=(ports[0], 9))
        desk = ClientConfig(name="desk", tokens=(place,), ports=tuple(ports[1:]))
        old = replace(self.OLD, clients=(laptop, desk))
        new = replace(old, tunnels=self.OLD.tunnels[1:])
        for clients, revoked in (
            ((laptop, desk), ()),
            ((desk, replace(laptop, ports=(9,))), ()),
            ((desk,), (ports[0],)),
            ((replace(laptop, tokens=()), desk), (ports[0],)),
        ):
            changes = compare(old, replace(new, clients=clients))
            assert changes.removed == (ports[0],)
            assert changes.revoked == revoked
            assert changes.changed == ()

    def test_the_order_does_not_matter(self):
        changes = compare(self.OLD, replace(self.OLD, tunnels=self.OLD.tunnels[::-1]))
        assert (changes.added, changes.removed, changes.changed) == ((), (), ())


def test_another_budget_is_that_of_the_next_worker(file):
    one = free_port()
    file.write((one, {"name": "budget-1"}), budget=1 << 21)
    master = file.start()
    assert visit(one) == 1 << 21
    file.write((one, {"name": "budget-1"}), budget=1 << 22)
    master.ask("reload")
    assert visit(one) == 1 << 21, "a worker keeps what it was born with"
    pid = master.at(one)["pid"]
    master.ask("restart", port=one)
    wait_until(lambda: master.at(one)["pid"] not in (None, pid))
    assert visit(one) == 1 << 22


def test_a_master_that_stops_reads_nothing_again(file):
    one, new = free_ports(2)
    file.write((one, {"name": "keep-1"}), drain=60)
    master = file.start()
    visit(one)
    master.kill()
    wait_until(lambda: "stopping" in master.log())
    file.write((one, {"name": "keep-1"}), (new, {}), drain=60)
    with pytest.raises(TunnelError, match="it is stopping"):
        master.ask("reload")
    assert master.at(new) is None


def test_a_mistake_of_the_master_is_logged_and_it_goes_on(start_master, tmp_path):
    def break_reload():
        def apply(*_):
            raise RuntimeError("on cue")

        TunnelSet.apply = apply  # type: ignore[method-assign]

    one = free_port()
    file = File(partial(start_master, prepare=break_reload), tmp_path / "config.json")
    file.write((one, {}))
    master = file.start()
    pid = visit(one)
    master.kill(signal.SIGHUP)
    wait_until(lambda: "a mistake in the master; it goes on" in master.log())
    with pytest.raises(TunnelError, match="a mistake of ours"):
        master.ask("reload")  # who asks again is not left waiting
    assert "RuntimeError: on cue" in master.log()
    assert visit(one) == pid
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: master.at(one)["pid"] not in (None, pid))
    assert visit(one) != pid
