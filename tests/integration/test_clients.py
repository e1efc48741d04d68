"""Several clients of one server, with real processes: who may what, and for how long."""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from tests.integration.test_tokens import denied, echo, family, linked, login, where_it_is
from tests.support.apps import Apps
from tests.support.ports import free_ports
from tests.support.processes import Master, run_tunneltcp, write_token
from tests.support.sockets import connect, expect_reset, receive_exactly
from tests.support.wait import wait_until
from tunneltcp.config.tokens import token_problem
from tunneltcp.protocol.preface import port_key

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator, Sequence
    from pathlib import Path

LAPTOP = "the-laptops-own-token-of-more-than-32-characters"
DESK = "the-desks-own-token-of-more-than-32-characters"
NEW = "a-newer-token-of-more-than-32-characters"
TOKENS = {"laptop": LAPTOP, "desk": DESK}


@pytest.fixture(scope="module")
def target() -> Iterator[int]:
    with Apps() as apps:
        yield apps.add("echo")


class Town:
    """A server with clients; each client is a master of its own, on this machine."""

    def __init__(self, folder: Path, target: int, ports: Sequence[int]) -> None:
        self.folder = folder
        self.target = target
        self.ports = list(ports)
        self.server = Master("server", {}, folder / "server", token=None)
        self.stack = ExitStack()

    def config(self, *clients: dict[str, Any], **values: Any) -> dict[str, Any]:
        return {"ports": self.ports, "clients": list(clients), "bind": "127.0.0.1", **values}

    def entry(self, name: str, *ports: int, token: object = None, **values: Any) -> Any:
        """One of "clients": laptop's token is in the config, desk's in a file."""
        if token is None:
            token = TOKENS[name]
            if name == "desk":
                (self.folder / "desk").mkdir(exist_ok=True)
                token = {"file": str(write_token(self.folder / "desk", DESK))}
        return {"name": name, "token": token, "ports": list(ports), **values}

    def start(self, config: dict[str, Any]) -> None:
        self.server.config = config
        self.stack.enter_context(self.server)

    def reload(self, config: dict[str, Any]) -> None:
        self.server.config_path.write_bytes(orjson.dumps(config))
        done = run_tunneltcp("reload", "--run-dir", str(self.server.run_dir))
        assert done.returncode == 0, done.stderr

    def client(self, name: str, *ports: int, token: str | None = None, **values: Any) -> Master:
        """A client of these ports, as another machine would run it. Its workers take their
        connections along when they die: no keeper has the link.
        """
        tunnels = [{"remote_port": port, "local_port": self.target} for port in ports]
        folder = self.folder / f"client-{name}"
        config = {"tunnels": tunnels, "crash_safe": False, **values}
        found = Master(
            "client", config, folder, server="127.0.0.1",
            token=token or TOKENS[name], instance=name,
        )  # fmt: skip
        return self.stack.enter_context(found)

    def visitor(self, port: int) -> socket.socket:
        """Somebody who was answered, and stays."""
        visitor = self.stack.enter_context(connect(port))
        say(visitor)
        return visitor

    def lose_link(self, client: Master, port: int) -> None:
        """The client dies without a word, and does not come back before SIGCONT."""
        pid = client.worker_pid(port)
        client.send(signal.SIGSTOP)
        self.stack.callback(client.send, signal.SIGCONT)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not self.server.link_up(port), 5)

    def holder(self, port: int) -> object:
        return self.server.tunnel(port)["link"]["client"]

    def pids(self) -> dict[int, int]:
        return {port: self.server.worker_pid(port) for port in self.ports}


def say(visitor: socket.socket) -> None:
    visitor.sendall(b"hello")
    assert receive_exactly(visitor, 5) == b"hello"


@pytest.fixture
def town(tmp_path: Path, target: int) -> Iterator[Town]:
    town = Town(tmp_path, target, free_ports(3))
    with town.stack:
        yield town


class TestRights:
    def test_each_has_its_ports_and_no_other(self, town: Town) -> None:
        one, two, three = town.ports
        town.start(town.config(town.entry("laptop", one), town.entry("desk", two)))
        own = run_tunneltcp("token", "--run-dir", str(town.server.run_dir)).stdout.strip()
        laptop = town.client("laptop", one, two, three)
        desk = town.client("desk", two)
        other = town.client("other", three, one, token=own)
        linked(town.server, laptop, one)
        linked(town.server, desk, two)
        linked(town.server, other, three)
        for client, port in ((laptop, two), (laptop, three), (other, one)):
            assert 'its "clients" may give this port to another' in denied(client, port)
        for port in town.ports:
            echo(port)
        assert [town.holder(port) for port in town.ports] == ["laptop", "desk", None]
        shown = run_tunneltcp("status", "--run-dir", str(town.server.run_dir)).stdout
        assert "client" in shown.splitlines()[1]
        assert "laptop" in shown
        assert "desk" in shown
        assert "link up with laptop at 127.0.0.1:" in town.server.log_text(f"tunnel-{one}.log")
        assert "client=desk" in town.server.log_text("master.log")
        everything = town.server.log_text() + town.server.stderr()
        everything += str(town.server.status()) + shown
        for token in (LAPTOP, DESK, own):
            assert token not in everything

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root may look into their memory")
    def test_a_worker_holds_the_keys_of_its_port_and_nobody_a_token(self, town: Town) -> None:
        one, two, _ = town.ports
        town.start(town.config(
            town.entry("laptop", one, two, shared=True), town.entry("desk", two, shared=True)
        ))  # fmt: skip
        for pid in family(town.server):
            for token in (LAPTOP, DESK):
                assert where_it_is(pid, token.encode()) == []
        keys = {
            (token, port): port_key(token, port)
            for token in (LAPTOP, DESK)
            for port in (one, two)
        }
        for port, token, holder in (
            (one, LAPTOP, one), (two, LAPTOP, two), (two, DESK, two), (one, DESK, None),
        ):  # fmt: skip
            for at in (one, two):
                found = where_it_is(town.server.worker_pid(at), keys[token, port])
                assert bool(found) == (at == holder), (at, token)

    def test_of_a_shared_port_the_first_has_it_as_long_as_he_is_there(self, town: Town) -> None:
        one, _, _ = town.ports
        town.start(town.config(
            town.entry("laptop", one, shared=True), town.entry("desk", one, shared=True)
        ))  # fmt: skip
        laptop = town.client("laptop", one)
        linked(town.server, laptop, one)
        desk = town.client("desk", one)

        def refused() -> str:
            reason = str(desk.tunnel(one)["reason"])
            return reason if "another client" in reason else ""

        told = wait_until(refused, 10, desk.complaint)
        assert "127.0.0.1" not in told.partition("holds port")[0], (
            "where laptop is, is not told"
        )
        wait_until(lambda: "no link from desk at 127.0.0.1: the client laptop at 127.0.0.1:"
                   in town.server.log_text(), 5)  # fmt: skip
        # Lost, its session is not for the other: its visitors wait for laptop.
        visitor = town.visitor(one)
        town.lose_link(laptop, one)
        visitor.settimeout(1)  # some attempts of desk's
        with pytest.raises(TimeoutError):
            visitor.recv(1)
        laptop.send(signal.SIGCONT)
        linked(town.server, laptop, one)
        assert town.holder(one) == "laptop"
        laptop.stop()
        wait_until(lambda: town.server.link_up(one), 10, town.server.complaint)
        assert town.holder(one) == "desk"
        echo(one)


HOWS = ("removed", "another token", "another port", "port too")


class Street(Town):
    """A town for all ways to revoke: one client for each, with two ports, and ``desk``.

    One link of each client is up, the other one is lost and waited for.
    """

    def __init__(self, folder: Path, target: int) -> None:
        ports = free_ports(2 * len(HOWS) + 2)
        super().__init__(folder, target, ports)
        self.desks, self.spare, *others = ports
        self.pairs = dict(zip(HOWS, zip(others[::2], others[1::2], strict=True), strict=True))
        self.entries = {
            how: self.entry(how, *pair, token=self.token(how))
            for how, pair in self.pairs.items()
        }

    def token(self, how: str) -> str:
        return f"the-token-of-whom-this-meets-{how.replace(' ', '-')}"

    def now(self) -> dict[str, Any]:
        return self.config(*self.entries.values(), self.entry("desk", self.desks), drain=30)

    def strike(self, how: str) -> None:
        """Change what the next config says about a client."""
        if how == "another token":
            self.entries[how] = self.entry(how, *self.pairs[how], token=NEW)
            return
        del self.entries[how]
        if how == "another port":
            self.entries[how] = self.entry(how, self.spare, token=self.token(how))
        elif how == "port too":
            self.ports = [port for port in self.ports if port not in self.pairs[how]]


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory, target: int) -> Iterator[Street]:
    street = Street(tmp_path_factory.mktemp("street"), target)
    with street.stack:
        street.start(street.now())
        street.server.allowed.append("no link")
        linked(street.server, street.client("desk", street.desks), street.desks)
        yield street


class TestRevoking:
    @pytest.mark.parametrize("how", HOWS)
    def test_it_is_over_at_once(self, street: Street, how: str) -> None:
        """For visitors of a link that is there, and for those who wait for one that was.

        In some 20 ms; nobody has the 30 s that a drain may take.
        """
        server, (one, other) = street.server, street.pairs[how]
        with ExitStack() as stack:
            street.stack, kept = stack, street.stack
            stack.callback(setattr, street, "stack", kept)
            stays = street.visitor(street.desks)
            # It has nothing to wait for when it ends: its session is over, and it cannot know.
            laptop = street.client(
                how.replace(" ", "-"), one, other, token=street.token(how), drain=0
            )
            for port in (one, other):
                linked(server, laptop, port)
            there = [street.visitor(one) for _ in range(3)]
            waiting = [street.visitor(other) for _ in range(3)]
            street.lose_link(laptop, other)
            assert server.link_up(one)
            for visitor in waiting:
                visitor.setblocking(False)
                with pytest.raises(BlockingIOError):
                    visitor.recv(1)
                visitor.settimeout(10)
            pids, links = street.pids(), server.tunnel(street.desks)["links_total"]
            street.strike(how)
            server.config_path.write_bytes(orjson.dumps(street.now()))
            asked = time.monotonic()
            server.send(signal.SIGHUP)
            for visitor in (*there, *waiting):
                expect_reset(visitor)
            assert time.monotonic() - asked < 8
            say(stays)
            assert server.tunnel(street.desks)["links_total"] == links
            assert street.pids() == {port: pids[port] for port in street.ports}
            laptop.send(signal.SIGCONT)
            if how != "port too":
                denied(laptop, one)
            if how == "another token":
                linked(server, street.client("again", one, token=NEW), one)
                assert street.holder(one) == how

    def test_another_name_cuts_nobody(self, town: Town) -> None:
        one, _, _ = town.ports
        town.start(town.config(town.entry("laptop", one)))
        linked(town.server, town.client("laptop", one), one)
        visitor = town.visitor(one)
        town.reload(town.config(town.entry("notebook", one, token=LAPTOP)))
        wait_until(lambda: town.holder(one) == "notebook", 5)
        say(visitor)

    def test_a_token_is_replaced_without_cutting_anybody(self, town: Town) -> None:
        one, _, _ = town.ports

        def config(token: object) -> dict[str, Any]:
            return town.config(town.entry("laptop", one, token=token))

        town.start(config(LAPTOP))
        laptop = town.client("laptop", one)
        linked(town.server, laptop, one)
        visitor = town.visitor(one)
        town.reload(config([NEW, LAPTOP]))
        wait_until(lambda: town.server.tunnel(one)["link"]["key"] == "old", 5)
        say(visitor)
        write_token(town.folder / "client-laptop", NEW)
        done = run_tunneltcp("reload", "--run-dir", str(laptop.run_dir))
        assert done.returncode == 0, done.stderr
        wait_until(lambda: town.server.tunnel(one)["link"]["key"] == "current", 5)
        town.reload(config(NEW))
        say(visitor)
        assert town.holder(one) == "laptop"


class TestMistakes:
    def test_a_config_that_gives_too_much_is_refused_and_changes_nothing(
        self, town: Town
    ) -> None:
        one, two, _ = town.ports
        town.start(town.config(town.entry("laptop", one), town.entry("desk", two)))
        linked(town.server, town.client("laptop", one), one)
        visitor = town.visitor(one)
        pids = town.pids()
        same = str(write_token(town.folder, LAPTOP))
        for config, problem in (
            (town.config(town.entry("laptop", one), town.entry("desk", one, two)),
             f"clients[1].ports: {one} is already in clients[0]"),
            (town.config(town.entry("laptop", one), town.entry("desk", two, token=LAPTOP)),
             "'laptop' and 'desk' have the same token"),
            (town.config(town.entry("laptop", one),
                         town.entry("desk", two, token={"file": same})),
             "'laptop' and 'desk' have the same token"),
            (town.config(town.entry("laptop", one, token={"file": "/none"})),
             "client 'laptop': token file /none cannot be read"),
        ):  # fmt: skip
            town.server.config_path.write_bytes(orjson.dumps(config))
            done = run_tunneltcp("reload", "--run-dir", str(town.server.run_dir))
            assert done.returncode == 2
            assert problem in done.stderr
            assert LAPTOP not in done.stderr
            folders = [f"--{name}-dir={town.folder}/{name}" for name in ("state", "run", "log")]
            started = run_tunneltcp("server", str(town.server.config_path), *folders)
            assert started.returncode == 2
            assert problem in started.stderr
            assert LAPTOP not in started.stderr
        say(visitor)
        assert town.pids() == pids
        town.server.allowed.append("config not taken")

    def test_a_token_that_changes_into_anothers_is_not_taken(self, town: Town) -> None:
        one, two, _ = town.ports
        town.start(town.config(town.entry("laptop", one), town.entry("desk", two)))
        linked(town.server, town.client("laptop", one), one)
        write_token(town.folder / "desk", LAPTOP)
        done = run_tunneltcp("token", "rotate", "--run-dir", str(town.server.run_dir))
        assert done.returncode == 1
        assert "'laptop' and 'desk' have the same token" in done.stderr
        assert town.server.link_up(one)
        town.server.allowed.append("tokens not taken")


class TestCommands:
    def test_token_new_prints_one_that_will_do(self) -> None:
        made = [run_tunneltcp("token", "new").stdout for _ in range(2)]
        assert made[0] != made[1]
        assert all(token_problem(token) == "" for token in made)

    def test_token_prints_that_of_a_client_and_login_takes_it(self, town: Town) -> None:
        one, two, _ = town.ports
        town.ports.pop()
        town.start(town.config(
            town.entry("laptop", one, token=[NEW, LAPTOP]), town.entry("desk", two)
        ))  # fmt: skip
        where = ("--run-dir", str(town.server.run_dir))
        done = run_tunneltcp("token", "--client", "laptop", *where)
        assert done.stdout == f"{NEW}\n"
        assert f"good for port {one}" in done.stderr
        assert run_tunneltcp("token", "--client", "desk", *where).stdout == f"{DESK}\n"
        state = ("--state-dir", str(town.folder / "client"))
        assert login(f"127.0.0.1:{one}", *state, token=done.stdout).returncode == 0
        wrong = login(f"127.0.0.1:{two}", *state, token=done.stdout)
        assert wrong.returncode == 1
        assert "does not accept our token" in wrong.stderr
        unknown = run_tunneltcp("token", "--client", "nobody", *where)
        assert unknown.returncode == 2
        assert "its clients: laptop, desk" in unknown.stderr
        # It has none of its own, since its clients have all ports.
        own = run_tunneltcp("token", *where)
        assert own.returncode == 1
        assert '"tunneltcp token --client NAME" prints one' in own.stderr
        assert not (town.server.state_dir / "token").exists()
        checked = run_tunneltcp("check", str(town.server.config_path)).stdout
        assert f"laptop  {one}" in checked
        for token in (NEW, LAPTOP, DESK):
            assert token not in checked + own.stderr + unknown.stderr

    def test_tokens_in_the_environment_leave_it(self, town: Town) -> None:
        one, two, _ = town.ports
        town.server._environment |= {"LAPTOP_SECRET": LAPTOP, "DESK_SECRET": DESK}
        town.start(town.config(
            town.entry("laptop", one, token={"env": "LAPTOP_SECRET"}),
            town.entry("desk", two, token={"env": "DESK_SECRET"}),
        ))  # fmt: skip
        linked(town.server, town.client("desk", two), two)
        linked(town.server, town.client("laptop", one), one)
        if os.geteuid() == 0:
            for pid in family(town.server):
                for token in (LAPTOP, DESK):
                    assert where_it_is(pid, token.encode()) == []
        where = ("--run-dir", str(town.server.run_dir))
        done = run_tunneltcp("token", "--client", "desk", *where)
        assert done.returncode == 1
        assert "the variable DESK_SECRET" in done.stderr
