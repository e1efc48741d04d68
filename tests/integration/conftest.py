"""One pair of masters for all tests of this folder that change nothing about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.support.apps import Apps, refused_port
from tests.support.processes import TunnelPair
from tests.support.sockets import accept, connect, listener
from tests.support.visitors import Load

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class Tunnels:
    """A running pair with a tunnel for each kind of target."""

    pair: TunnelPair
    apps: Apps
    public: dict[str, int]
    """Public port of each target."""
    local: dict[str, int]
    """Port of each target."""
    target: socket.socket
    """Listening socket of the target ``manual``: the test is the app."""

    def open(self) -> tuple[socket.socket, socket.socket]:
        """A visitor of the target ``manual``, and its connection at the target."""
        visitor = connect(self.public["manual"])
        return visitor, accept(self.target)


@pytest.fixture(scope="session")
def apps() -> Iterator[Apps]:
    with Apps() as running:
        yield running


@pytest.fixture(scope="session")
def load() -> Iterator[Load]:
    with Load() as running:
        yield running


@pytest.fixture(scope="session")
def _session_tunnels(apps: Apps, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tunnels]:
    with refused_port() as refused, listener() as target:
        local = {kind: apps.add(kind) for kind in ("echo", "pattern", "banner", "early")}
        local |= {
            "resetting": apps.add("resetting"),
            "restarted": apps.add("echo"),
            "ipv6": apps.add("pattern", "::1"),
            "only6": apps.add("pattern", "::1"),
            "refused": refused,
            "manual": target.getsockname()[1],
        }
        hosts = {"ipv6": "::1", "manual": "127.0.0.1"}
        targets = [
            {"local_port": port, "local_host": hosts.get(name, "localhost"), "name": name}
            for name, port in local.items()
        ]
        folder = tmp_path_factory.mktemp("tunnels")
        with TunnelPair(targets, folder, bind=["127.0.0.1", "::1"]) as pair:
            public = dict(zip(local, pair.ports, strict=True))
            yield Tunnels(pair, apps, public, local, target)


@pytest.fixture
def tunnels(_session_tunnels: Tunnels) -> Tunnels:
    """The common pair, without what an earlier test may have left in the target's queue."""
    target = _session_tunnels.target
    target.settimeout(0)
    try:
        while True:
            target.accept()[0].close()
    except BlockingIOError:
        pass
    target.settimeout(10)
    return _session_tunnels
