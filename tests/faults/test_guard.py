"""What guards a machine and its visitors from a worker that has gone wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.apps import Apps
from tests.support.processes import TunnelPair
from tests.support.sockets import connect, receive_exactly
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def apps() -> Iterator[Apps]:
    with Apps() as running:
        yield running


def test_who_is_over_budget_is_replaced_and_nobody_notices(apps: Apps, tmp_path: Path) -> None:
    """The visitors are what it has too much of, so its successor is over it as well."""
    target = apps.add("echo")
    common = {"max_fds": 64, "hold": 20}
    with TunnelPair([target], tmp_path, common=common) as pair:
        port = pair.port
        visitors = [connect(port) for _ in range(60)]
        try:
            for number, visitor in enumerate(visitors):
                visitor.sendall(b"%06d" % number)
            for number, visitor in enumerate(visitors):
                assert receive_exactly(visitor, 6) == b"%06d" % number
            for master in (pair.server, pair.client):
                wait_until(lambda m=master: m.tunnel(port)["restarts"] >= 2, 20)  # type: ignore[misc]
                last = master.tunnel(port)["last_exit"]
                assert last["signal"] == "SIGKILL"
                assert "max_fds of 64" in last["reason"]
                assert "max_fds of 64" in master.log_text("master.log")
            for number, visitor in enumerate(visitors):
                visitor.sendall(b"%07d" % number)
            for number, visitor in enumerate(visitors):
                assert receive_exactly(visitor, 7) == b"%07d" % number
        finally:
            for visitor in visitors:
                visitor.close()
        for master in (pair.server, pair.client):
            wait_until(
                lambda m=master: m.link_up(port) and m.tunnel(port)["descriptors"] < 30,  # type: ignore[misc]
                20,
                lambda m=master: m.tunnel(port),  # type: ignore[misc]
            )
