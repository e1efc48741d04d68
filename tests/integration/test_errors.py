"""Each failure is told once, in one sentence: in the logs, on the terminal, in the status."""

from __future__ import annotations

import socket
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.apps import Apps
from tests.support.netns import two_hosts
from tests.support.ports import free_port, free_ports
from tests.support.processes import Master, TunnelPair
from tests.support.sockets import accept, connect, expect_reset, listener, receive_exactly
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NO_NAME = "a..b"
"""A name that no resolver asks anybody else about."""


@pytest.fixture(scope="module")
def target() -> Iterator[int]:
    with Apps() as apps:
        yield apps.add("echo")


def wait_reason(master: Master, port: int, *words: str, timeout: float = 10) -> str:
    """Wait for a reason in the status with all these words; it is in the logs as well."""

    def look() -> str:
        reason: str = master.tunnel(port)["reason"] or ""
        return reason if all(word in reason for word in words) else ""

    reason = wait_until(look, timeout, lambda: f"{words}: {master.tunnel(port)}")
    assert reason in master.log_text("master.log")
    assert reason in master.stderr(), "a person in front of it sees it too"
    return reason


def client_of(port: int, target: int, folder: Path, **more: Any) -> Master:
    config = [{"remote_port": port, "local_port": target}]
    return Master("client", config, folder / "client", **({"server": "127.0.0.1"} | more))


@contextmanager
def deaf_port() -> Iterator[int]:
    """A port where packets vanish: its queue is full, and nobody accepts."""
    with ExitStack() as stack:
        deaf = stack.enter_context(socket.create_server(("127.0.0.1", free_port()), backlog=0))
        for _ in range(8):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(deaf.getsockname())
        yield deaf.getsockname()[1]


def test_a_server_that_is_not_there(target: int, tmp_path: Path) -> None:
    """Whatever answers in its place, it is told what, and what to try."""
    with (
        deaf_port() as silent,
        listener() as mute,
        listener() as web,
        listener() as ssh,
        listener() as rude,
    ):
        ports = {"silent": silent, "refused": free_port()}
        taken = {"mute": mute, "web": web, "ssh": ssh, "rude": rude}
        ports |= {name: sock.getsockname()[1] for name, sock in taken.items()}
        tunnels = [{"remote_port": port, "local_port": target} for port in ports.values()]
        with Master("client", tunnels, tmp_path, server="127.0.0.1") as client:
            with accept(web) as first:
                first.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            with accept(ssh) as first:
                first.sendall(b"SSH-2.0-OpenSSH_9.2p1\r\n")
            for _ in range(2):  # once may be a worker that died just then
                accept(rude).close()
            for name, words in {
                "refused": ("refuses the connection: tunneltcp is not running there",),
                "web": ("is no tunneltcp server but speaks HTTP",),
                "ssh": ("is no tunneltcp server but speaks SSH",),
                "rude": ("hangs up in the handshake",),
                "mute": ("accepts the connection and says nothing",),
                "silent": ("nothing answers at 127.0.0.1:", "firewall", "ufw allow"),
            }.items():
                reason = wait_reason(client, ports[name], *words)
                assert str(ports[name]) in reason
                assert reason in client.log_text(f"tunnel-{ports[name]}.log")
            assert client.log_text("master.log").count("refuses the connection") == 1


def test_a_port_that_is_not_in_the_servers_list(target: int, tmp_path: Path) -> None:
    """Other tunnels to the same server are up, so it runs."""
    known, unknown = free_ports(2)
    tunnels = [{"remote_port": port, "local_port": target} for port in (known, unknown)]
    with (
        Master("server", [{"remote_port": known}], tmp_path / "server"),
        Master("client", tunnels, tmp_path / "client", server="127.0.0.1") as client,
    ):
        wait_until(lambda: client.link_up(known), 10)
        wait_reason(
            client, unknown,
            "other tunnels to this server are up", f"{unknown} is probably not among its ports",
            f"tunneltcp start {unknown}",
        )  # fmt: skip
        assert client.tunnel(known)["reason"] is None


def test_a_server_that_comes_later_takes_the_reason_away(target: int, tmp_path: Path) -> None:
    port = free_port()
    with client_of(port, target, tmp_path) as client:
        wait_reason(client, port, "refuses the connection")
        with Master("server", [{"remote_port": port}], tmp_path / "server"):
            wait_until(lambda: client.link_up(port), 10)
            assert client.tunnel(port)["reason"] is None


def test_localhost_is_two_addresses_and_one_of_them_will_do(
    target: int, tmp_path: Path
) -> None:
    """``::1`` refuses, 127.0.0.1 does not: nothing to complain about."""
    port = free_port()
    with (
        Master("server", [{"remote_port": port}], tmp_path / "server"),
        client_of(port, target, tmp_path, server="localhost") as client,
    ):
        wait_until(lambda: client.link_up(port), 10)
        assert "no link" not in client.log_text()


def test_another_client_has_the_port(target: int, tmp_path: Path) -> None:
    with TunnelPair([target], tmp_path) as pair:
        with client_of(pair.port, target, tmp_path / "other") as stranger:
            reason = wait_reason(
                stranger, pair.port, "another client", f"holds port {pair.port} and is alive"
            )
            assert "(127.0.0.1:" in reason, "who it is"
        said = pair.server.log_text("master.log")
        assert "no link from 127.0.0.1: the client at 127.0.0.1:" in said
        assert "stop one of the two" in said


def test_names_that_cannot_be_resolved(target: int, tmp_path: Path) -> None:
    port = free_port()
    with client_of(port, target, tmp_path, server=NO_NAME) as client:
        wait_reason(client, port, f"the name {NO_NAME} cannot be resolved", "--server")

    with TunnelPair([{"local_port": target, "local_host": NO_NAME}], tmp_path) as pair:
        assert pair.client.tunnel(pair.port)["reason"] is None, "nobody came yet"

        def visit() -> bool:
            with connect(pair.port) as visitor:
                visitor.sendall(b"hello")
                expect_reset(visitor)
            return "a visitor came" in pair.client.log_text("master.log")

        wait_until(visit, 10)
        wait_reason(
            pair.client, pair.port, f"a visitor came, but the name {NO_NAME} cannot be resolved"
        )


def test_a_target_that_is_down_and_comes_back(tmp_path: Path) -> None:
    target = free_port()
    with Apps() as apps, TunnelPair([target], tmp_path) as pair:
        assert "visitor" not in pair.client.log_text()
        for _ in range(5):
            with connect(pair.port) as visitor:
                visitor.sendall(b"hello")
                expect_reset(visitor)
        wait_reason(
            pair.client, pair.port,
            f"a visitor came, but nothing listens on localhost:{target}: start the app",
        )  # fmt: skip
        for name in ("master.log", f"tunnel-{pair.port}.log"):
            assert pair.client.log_text(name).count("a visitor came") == 1

        apps.add("echo", port=target)
        with connect(pair.port) as visitor:
            visitor.sendall(b"hello")
            assert receive_exactly(visitor, 5) == b"hello"
        wait_until(lambda: pair.client.tunnel(pair.port)["reason"] is None, 5)
        assert "the target answers again" in pair.client.log_text("master.log")


def test_a_port_that_somebody_listens_on(tmp_path: Path) -> None:
    with (
        listener() as holder,
        Master("server", [{"remote_port": holder.getsockname()[1]}], tmp_path) as server,
    ):
        wait_reason(
            server, holder.getsockname()[1],
            "is busy: ", "listens on it", "stop that program, or choose another port",
        )  # fmt: skip


def test_a_port_that_an_outgoing_connection_holds(tmp_path: Path) -> None:
    port = free_port()
    with listener() as far, socket.socket() as outgoing:
        outgoing.bind(("127.0.0.1", port))
        outgoing.connect(far.getsockname())
        with Master("server", [{"remote_port": port}], tmp_path) as server:
            reason = wait_reason(server, port, "an outgoing connection of ", "may leave soon")
            assert reason.endswith(f"{port}")
            assert "sysctl -w net.ipv4.ip_local_reserved_ports=" in reason


@pytest.mark.needs_root
def test_no_way_to_the_server(target: int, tmp_path: Path) -> None:
    """A host of its own with one cable, and an address that is not at its end."""
    port = free_port()
    with (
        two_hosts() as hosts,
        client_of(
            port, target, tmp_path, server="10.99.0.1", prefix=hosts.client.prefix
        ) as client,
    ):
        wait_reason(client, port, "there is no way to 10.99.0.1:", "this machine's network")
