"""Links and visitors from networks that are named, from another machine: two namespaces."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from tests.integration.test_tokens import denied
from tests.support.apps import Apps
from tests.support.netns import two_hosts
from tests.support.ports import free_port
from tests.support.processes import TOKEN, Master, run_tunneltcp
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.netns import Host, TwoHosts

_VISIT = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 5) as visitor:
    visitor.settimeout(5)
    try:
        visitor.sendall(b"hello")
        print(visitor.recv(5).decode() or "fin")
    except ConnectionResetError:
        print("rst")
"""


@pytest.fixture(scope="module")
def hosts() -> Iterator[TwoHosts]:
    with two_hosts() as hosts:
        yield hosts


@pytest.fixture(scope="module")
def target(hosts: TwoHosts) -> Iterator[int]:
    with Apps(prefix=hosts.client.prefix) as apps:
        yield apps.add("echo")


def visit(host: Host, address: str, port: int) -> str:
    """Say what becomes of a visitor who is on that machine."""
    return host.run(sys.executable, "-c", _VISIT, address, str(port)).strip()


class Pair:
    """A server and a client on two machines; visitors come from either."""

    def __init__(self, folder: Path, hosts: TwoHosts, target: int, **values: Any) -> None:
        self.port = free_port()
        self.base = {"tunnels": [{"remote_port": self.port, "local_port": target}]}
        auth = {"auth": values["auth"]} if "auth" in values else {}
        self.server = Master(
            "server", self.config(**values), folder / "server", prefix=hosts.server.prefix
        )
        self.client = Master(
            "client", {**self.base, **auth}, folder / "client", prefix=hosts.client.prefix,
            server=hosts.server.address, token=None if auth else TOKEN,
        )  # fmt: skip

    def config(self, **values: Any) -> dict[str, Any]:
        return {**self.base, "bind": "*", "hold": 5, **values}

    def reload(self, **values: Any) -> None:
        self.server.config_path.write_bytes(orjson.dumps(self.config(**values)))
        done = run_tunneltcp("reload", "--run-dir", str(self.server.run_dir))
        assert done.returncode == 0, done.stderr

    def linked(self) -> None:
        wait_until(lambda: self.client.link_up(self.port), 10, self.client.complaint)


def test_visitors_of_the_proxy_alone_and_links_from_elsewhere(
    tmp_path: Path, hosts: TwoHosts, target: int
) -> None:
    loopback = ["127.0.0.1", "::1"]
    pair = Pair(tmp_path, hosts, target, visitors_allow=loopback)
    port, far, near = pair.port, hosts.client, hosts.server
    with pair.server, pair.client:
        pair.linked()
        assert visit(far, near.address, port) == "rst"
        assert visit(far, near.address6, port) == "rst"
        for address in loopback:
            assert visit(near, address, port) == "hello"
        assert pair.server.tunnel(port)["visitors_refused"] == 2
        pid = pair.server.worker_pid(port)
        pair.reload(visitors_deny=f"{far.address}/32")
        wait_until(lambda: visit(far, near.address6, port) == "hello", 5)
        assert visit(far, near.address, port) == "rst"
        assert visit(near, "127.0.0.1", port) == "hello"
        assert pair.server.worker_pid(port) == pid
        told = pair.server.log_text(f"tunnel-{port}.log")
        assert told.count(f"a visitor from {far.address} was reset") == 1


def test_links_from_where_they_may_come(tmp_path: Path, hosts: TwoHosts, target: int) -> None:
    pair = Pair(tmp_path, hosts, target, allow="10.9.9.0/24")
    port, far, near = pair.port, hosts.client, hosts.server
    with pair.server, pair.client:
        denied(pair.client, port)
        sentence = "no link is taken from its network"
        wait_until(lambda: sentence in pair.server.log_text("master.log"), 5)
        pid = pair.server.worker_pid(port)
        network = far.address.rpartition(".")[0] + ".0/24"
        pair.reload(allow=["10.9.9.0/24", network])
        pair.linked()
        assert visit(far, near.address, port) == "hello", "visitors are another matter"
        pair.reload(allow=["10.9.9.0/24", network], deny=far.address)
        wait_until(lambda: not pair.server.link_up(port), 8)
        denied(pair.client, port)
        assert pair.server.worker_pid(port) == pid
        assert pair.server.tunnel(port)["links_refused"] >= 2
        assert pair.server.log_text(f"tunnel-{port}.log").count(sentence) <= 2


def test_without_a_token_from_a_network_that_is_named(
    tmp_path: Path, hosts: TwoHosts, target: int
) -> None:
    pair = Pair(tmp_path, hosts, target, auth="none", allow=[hosts.client.address])
    with pair.server, pair.client:
        pair.linked()
        warning = f'so can whoever is in {hosts.client.address}/32: "allow" says so'
        assert warning in pair.server.log_text("master.log")
        pair.reload(auth="none")
        denied(pair.client, pair.port)
