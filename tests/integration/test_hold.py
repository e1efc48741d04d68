"""Visitors that come before the client does."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.support.apps import BANNER, Apps
from tests.support.least import least
from tests.support.ports import free_ports
from tests.support.processes import Master
from tests.support.sockets import connect, expect_reset, receive_exactly
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LONG, SHORT, NONE = 30.0, 1.0, 0.0


@pytest.fixture(scope="module")
def ports() -> dict[float, int]:
    """A public port for each ``hold``."""
    return dict(zip((LONG, SHORT, NONE), free_ports(3), strict=True))


@pytest.fixture(scope="module")
def server(
    ports: dict[float, int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Master]:
    """A server whose client is not there."""
    tunnels = [{"remote_port": port, "hold": hold} for hold, port in ports.items()]
    with Master("server", {"tunnels": tunnels}, tmp_path_factory.mktemp("hold")) as master:
        yield master


def seconds_to_reset(port: int, said: bytes) -> float:
    """How long a visitor is held before it is reset."""
    begin = time.monotonic()
    with connect(port) as visitor:
        if said:
            visitor.sendall(said)
        assert expect_reset(visitor) == 0
    return time.monotonic() - begin


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", b""], ids=["speaks", "silent"])
def test_a_visitor_is_reset_when_nobody_came_for_it(
    server: Master, ports: dict[float, int], said: bytes
) -> None:
    seconds = least(lambda: seconds_to_reset(ports[SHORT], said), SHORT + 1)
    assert SHORT - 0.1 < seconds < SHORT + 1


def test_a_tunnel_that_holds_nobody_resets_who_speaks_at_once(
    server: Master, ports: dict[float, int]
) -> None:
    speaks = least(lambda: seconds_to_reset(ports[NONE], b"GET / HTTP/1.1\r\n\r\n"), 0.5)
    assert speaks < 0.5
    silent = least(lambda: seconds_to_reset(ports[NONE], b""), 2.5)
    assert 0.9 < silent < 2.5  # it might have been the link


def test_visitors_that_wait_are_served_when_the_client_comes(
    server: Master, ports: dict[float, int], tmp_path: Path
) -> None:
    """Who spoke, who says nothing, and who sent a lot and is done."""
    port = ports[LONG]
    before = server.tunnel(port)["visitors_total"]
    with Apps() as apps, ExitStack() as stack:
        speaks, silent = (stack.enter_context(connect(port)) for _ in range(2))
        speaks.sendall(b"hello")
        wait_until(
            lambda: server.tunnel(port)["held"] >= 1, 5, lambda: f"{server.tunnel(port)}"
        )
        assert server.tunnel(port)["link"]["state"] == "down"
        config = [{"remote_port": port, "local_port": apps.add("banner")}]
        with Master("client", config, tmp_path / "client", server="127.0.0.1"):
            for visitor in (speaks, silent):
                assert receive_exactly(visitor, len(BANNER)) == BANNER
            assert receive_exactly(speaks, 5) == b"hello"
            silent.sendall(b"late")
            assert receive_exactly(silent, 4) == b"late"
            stack.close()
            wait_until(lambda: server.tunnel(port)["visitors"] == 0)
    assert server.tunnel(port)["visitors_total"] == before + 2
