"""A dead worker's visitors when something is scarce, or somebody changes his mind meanwhile."""

from __future__ import annotations

import os
import resource
import signal
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from tests.support.apps import Apps
from tests.support.control import ask
from tests.support.leaks import descendants, keepers
from tests.support.processes import Json, Master, TunnelPair
from tests.support.sockets import (
    accept,
    connect,
    expect_reset,
    listener,
    receive_exactly,
    reset,
)
from tests.support.storm import pause
from tests.support.wait import wait_until

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

SIDES = ["server", "client"]


@pytest.fixture
def echo() -> Iterator[int]:
    with Apps() as apps:
        yield apps.add("echo")


def serves(sock: socket.socket) -> bool:
    """Say whether a visitor of an ``echo`` app has his answer."""
    sock.settimeout(5)
    try:
        sock.sendall(b"hello")
        return receive_exactly(sock, 5) == b"hello"
    except (OSError, AssertionError):
        return False


def fill(stack: ExitStack, port: int) -> list[socket.socket]:
    """Come until one is refused."""
    here: list[socket.socket] = []
    while True:
        visitor = stack.enter_context(connect(port))
        if not serves(visitor):
            return here
        here.append(visitor)


def kill(pair: TunnelPair, master: Master) -> None:
    """Have another worker, and the link again."""
    old = master.kill_worker(pair.port)
    master.wait_for_successor(pair.port, old)
    pair.wait_links()


@pytest.mark.parametrize("side", SIDES)
def test_all_who_fitted_into_a_small_budget_fit_again(
    tmp_path: Path, echo: int, side: str
) -> None:
    """Who came late has a small window; a successor must not deal out large ones first."""
    with TunnelPair([echo], tmp_path, common={"budget": 1 << 20}) as pair, ExitStack() as stack:
        here = fill(stack, pair.port)
        here.pop(0).close()  # its window was half of all
        for master in (pair.server, pair.client):
            wait_until(lambda m=master: m.tunnel(pair.port)["visitors"] == len(here))  # type: ignore[misc]
        here += fill(stack, pair.port)
        assert len(here) == 32
        kill(pair, getattr(pair, side))
        assert all(map(serves, here))


@pytest.mark.parametrize("side", SIDES)
def test_fewer_visitors_by_a_reload_is_for_those_who_come(
    tmp_path: Path, echo: int, side: str
) -> None:
    with (
        TunnelPair([echo], tmp_path, common={"max_visitors": 20}) as pair,
        ExitStack() as stack,
    ):
        here = [stack.enter_context(connect(pair.port)) for _ in range(10)]
        assert all(map(serves, here))
        master: Master = getattr(pair, side)
        old = master.worker_pid(pair.port)
        assert isinstance(master.config, dict)
        master.config_path.write_bytes(orjson.dumps(master.config | {"max_visitors": 4}))
        assert ask(master.run_dir, {"op": "reload"})["changed"] == [pair.port]
        master.wait_for_successor(pair.port, old)
        pair.wait_links()
        assert all(map(serves, here))
        assert not serves(stack.enter_context(connect(pair.port)))


@pytest.mark.parametrize("side", SIDES)
def test_a_visitor_is_here_since_he_came_and_not_since_the_last_death(
    tmp_path: Path, echo: int, side: str
) -> None:
    tunnel = {"local_port": echo, "access_log": True}
    with TunnelPair([tunnel], tmp_path) as pair, connect(pair.port) as visitor:
        master: Master = getattr(pair, side)
        assert serves(visitor)
        came = since(master, pair.port)
        wait_until(lambda: datetime.now(UTC) - came > timedelta(seconds=1.5))
        for _ in range(2):
            kill(pair, master)
            assert serves(visitor)
            assert abs(since(master, pair.port) - came) < timedelta(seconds=0.5)
        visitor.close()
        log = master.log_dir / f"tunnel-{pair.port}.access.log"
        wait_until(lambda: log.exists() and log.read_text())
        assert float(log.read_text().partition("seconds=")[2].split()[0]) > 1


def since(master: Master, port: int) -> datetime:
    """Say when the one visitor who is here came."""
    return datetime.fromisoformat(the_one(master, port)["since"])


def the_one(master: Master, port: int) -> Any:
    """Return what a master says of the one visitor who is here."""
    (visitor,) = ask(master.run_dir, {"op": "who", "port": port})["visitors"]
    return visitor


@pytest.mark.parametrize("side", SIDES)
def test_a_visitor_has_one_number_on_both_sides_and_whoever_dies(
    tmp_path: Path, echo: int, side: str
) -> None:
    """Else "kick" with a number that was read before could hit somebody else."""
    with TunnelPair([echo], tmp_path) as pair, ExitStack() as stack:
        with connect(pair.port) as first:
            assert serves(first)
            visitor = stack.enter_context(connect(pair.port))
            assert serves(visitor)
        masters = (pair.server, pair.client)
        for master in masters:
            wait_until(lambda m=master: m.tunnel(pair.port)["visitors"] == 1)  # type: ignore[misc]
        before = the_one(pair.server, pair.port)["id"]
        kill(pair, getattr(pair, side))
        with connect(pair.port) as third:
            assert serves(third)
            assert serves(visitor)
        for master in masters:
            wait_until(lambda m=master: m.tunnel(pair.port)["visitors"] == 1)  # type: ignore[misc]
            assert the_one(master, pair.port)["id"] == before


@pytest.mark.parametrize("side", SIDES)
def test_a_full_table_of_descriptors_has_room_for_who_takes_over(
    tmp_path: Path, echo: int, side: str
) -> None:
    with TunnelPair([echo], tmp_path) as pair, ExitStack() as stack:
        master: Master = getattr(pair, side)
        for pid in (master.pid, *descendants(master.pid)):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (128, 128))
        kill(pair, master)
        here = fill(stack, pair.port)
        for _ in range(2):
            kill(pair, master)
            assert all(map(serves, here))
        assert "a keeper gave nothing more" not in master.log_text()


def test_a_tunnel_stopped_between_two_workers_lets_its_visitors_go(
    tmp_path: Path, echo: int
) -> None:
    with TunnelPair([echo], tmp_path) as pair:
        server, port = pair.server, pair.port

        def waits() -> bool:
            tunnel = server.tunnel(port)
            if tunnel["pid"]:
                with suppress(ProcessLookupError):
                    os.kill(tunnel["pid"], signal.SIGKILL)
            elif tunnel["state"] == "backoff":
                pause(0.3)  # the short waits are over before anybody could say stop
                return bool(server.tunnel(port)["state"] == "backoff")
            return False

        def was_between() -> bool:
            """Stop it; say whether no worker was there, for the next may have come just now."""
            with connect(port) as visitor:
                assert serves(visitor)
                wait_until(waits, 20, "it is waited with")
                state = ask(server.run_dir, {"op": "stop", "port": port})["state"]
                if state == "stopped":
                    expect_reset(visitor)
            wait_until(lambda: not keepers(server.pid, port), 10, "no keeper is left")
            ask(server.run_dir, {"op": "start", "port": port})
            pair.wait_links()
            return bool(state == "stopped")

        assert any(was_between() for _ in range(5))


def test_what_a_target_said_before_it_reset_comes_after_a_death_as_well(
    tmp_path: Path,
) -> None:
    def visitor_at(master: Master) -> Json:
        (found,) = ask(master.run_dir, {"op": "who", "port": pair.port})["visitors"]
        return dict(found)

    answer = b"HTTP/1.1 413 Content Too Large\r\n\r\n"
    with (
        listener() as target,
        TunnelPair([target.getsockname()[1]], tmp_path, chaos=True) as pair,
        connect(pair.port) as visitor,
    ):
        visitor.sendall(b"POST / HTTP/1.1\r\n\r\n")
        with accept(target) as sock:
            receive_exactly(sock, 19)
            wait_until(lambda: visitor_at(pair.server)["waits_for"] is None)
            pause(0.5)  # until the server knows that
            pair.relay.refuse()
            pair.relay.reset()
            sock.sendall(answer)
            wait_until(lambda: visitor_at(pair.client)["bytes_out"] == len(answer))
            reset(sock)
            pause(0.3)
        old = pair.client.kill_worker(pair.port)
        pair.client.wait_for_successor(pair.port, old)
        pair.relay.heal()
        visitor.settimeout(10)
        assert receive_exactly(visitor, len(answer)) == answer
        expect_reset(visitor)
