"""A server and a client with an emulated path between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.apps import Apps
from tests.support.emulator import CLIENT_ADDRESS, DEVICE, SERVER_ADDRESS, emulated_hosts
from tests.support.ports import free_ports
from tests.support.processes import Master
from tests.support.visitors import Load
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import ExitStack
    from pathlib import Path

__all__ = ["Journey"]


class Journey:
    """One tunnel for each app, all links up; ends with its stack.

    Attributes:
        host: Whom visitors connect to; they come from the server's own host.
    """

    host = SERVER_ADDRESS

    def __init__(self, stack: ExitStack, folder: Path, kinds: Sequence[str]) -> None:
        self.hosts, self.path = stack.enter_context(emulated_hosts())
        apps = stack.enter_context(Apps(prefix=self.hosts.client.prefix))
        self.load = stack.enter_context(Load(prefix=self.hosts.server.prefix))
        self.ports = free_ports(len(kinds))
        targets = {kind: apps.add(kind) for kind in set(kinds)}
        self.server = stack.enter_context(
            Master(
                "server",
                [{"remote_port": port} for port in self.ports],
                folder / "server",
                bind=[SERVER_ADDRESS],
                prefix=self.hosts.server.prefix,
            )
        )
        self.client = stack.enter_context(
            Master(
                "client",
                [
                    {"remote_port": port, "local_port": targets[kind]}
                    for port, kind in zip(self.ports, kinds, strict=True)
                ],
                folder / "client",
                server=SERVER_ADDRESS,
                prefix=self.hosts.client.prefix,
            )
        )
        self._client_address = CLIENT_ADDRESS

    def wait_links(self, timeout: float = 20.0) -> None:
        """Wait until every link is up, and neither side doubts it."""
        for port in self.ports:
            for master in (self.server, self.client):
                wait_until(
                    lambda port=port, master=master: (  # type: ignore[misc]
                        master.link_up(port) and not master.tunnel(port)["link"]["doubted"]
                    ),
                    timeout,
                    lambda master=master: master.complaint(),  # type: ignore[misc]
                )

    def move_client(self) -> str:
        """Take the client's address away and give it another; return that."""
        number = int(self._client_address.rpartition(".")[2])
        other = f"10.213.8.{number + 1 if number < 200 else 2}"
        client = self.hosts.client
        client.run("ip", "addr", "del", f"{self._client_address}/24", "dev", DEVICE)
        client.run("ip", "addr", "add", f"{other}/24", "dev", DEVICE)
        self._client_address = other
        return other
