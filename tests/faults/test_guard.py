"""What guards a machine and its visitors from a worker that has gone wrong."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.support.apps import Apps
from tests.support.pattern import pattern
from tests.support.processes import TunnelPair, run_tunneltcp
from tests.support.service import ROOT
from tests.support.sockets import connect, receive_exactly
from tests.support.visitors import Load
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


SABOTAGE = """
import os, signal
from tunneltcp.relay import relay

def checking(send):
    def checked(data):
        if b"poison" in bytes(data):
            if os.environ["POISON"] == "raise":
                raise ValueError("that was poison")
            os.kill(os.getpid(), signal.SIGSEGV)
        return send(data)
    return checked

class Socket:
    def __init__(self, sock):
        self._sock = sock
        self.send = checking(sock.send)
    def __getattr__(self, name):
        return getattr(self._sock, name)

init = relay.Relay.__init__
relay.Relay.__init__ = lambda self, loop, sock, on_over: init(self, loop, Socket(sock), on_over)
"""
"""What a client's worker dies of: certain bytes on their way to the target."""


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
                lambda m=master: m.link_up(port) and (m.tunnel(port)["descriptors"] or 99) < 30,  # type: ignore[misc]
                20,
                lambda m=master: m.tunnel(port),  # type: ignore[misc]
            )


@pytest.mark.parametrize("how", ["crash", "raise"])
def test_a_stream_that_kills_who_touches_it_is_reset_and_the_others_live(
    apps: Apps, tmp_path: Path, how: str
) -> None:
    """Others move bytes all the while: what counts is the stream's own progress."""
    target = apps.add("echo")
    sabotage = tmp_path / "sabotage"
    sabotage.mkdir()
    (sabotage / "sitecustomize.py").write_text(SABOTAGE)
    with TunnelPair([target], tmp_path) as pair, Load() as load:
        client, port = pair.client, pair.port
        client.stop()
        paths = f"{sabotage}:{ROOT}"
        client._environment |= {"PYTHONPATH": paths, "POISON": how}
        client.allowed += ["Segmentation fault", "worker crashed", "Traceback", r"^  \| "]
        client.start()
        pair.wait_links()
        load.probe("others", port, count=5, pause=0.002)
        with connect(port) as idle, connect(port) as bad:
            for visitor in (idle, bad):
                visitor.sendall(b"hello")
                assert receive_exactly(visitor, 5) == b"hello"
            bad.sendall(b"poison")
            with pytest.raises(ConnectionResetError):
                bad.recv(1)
            pair.wait_links()
            assert client.tunnel(port)["restarts"] == 3
            last = client.tunnel(port)["last_exit"]
            ended = (last["signal"], last["code"])
            assert ended == (("SIGSEGV", None) if how == "crash" else (None, 1))
            idle.sendall(b"there")
            assert receive_exactly(idle, 5) == b"there"
            rounds = load.stats("others").rounds
            wait_until(lambda: load.stats("others").rounds > rounds + 50)
            stats = load.end("others")
            assert stats.bad == 0, stats.errors
        said = r"stream \d+ is reset: 3 workers in a row crashed with it in hand"
        assert re.search(said, client.log_text("master.log"))
        log = client.log_text(f"tunnel-{port}.log")
        assert ("that was poison" if how == "raise" else "Fatal Python error") in log
        assert "checked" in log, "where it was"


def test_ipv6_through_kills_of_both_sides(apps: Apps, tmp_path: Path) -> None:
    """Public port, link and target; whoever asks is still told where visitors come from."""
    target = apps.add("echo", "::1")
    with TunnelPair(
        [{"local_port": target, "local_host": "::1"}], tmp_path, bind=["::1"], server_host="::1"
    ) as pair:
        port = pair.port
        with connect(port, "::1") as visitor:
            host, number = visitor.getsockname()[:2]
            for round_ in range(3):
                for master in (pair.server, pair.client):
                    if round_:
                        old = master.kill_worker(port)
                        master.wait_for_successor(port, old)
                data = pattern(round_, 0, 100_000)
                visitor.sendall(data)
                assert receive_exactly(visitor, len(data)) == data
            for master in (pair.server, pair.client):
                words = ("who", str(port), "--json", f"--run-dir={master.run_dir}")
                found = run_tunneltcp(*words).stdout
                assert f"[{host}]:{number}" in found
                last = master.tunnel(port)["last_takeover"]
                assert (last["reason"], last["streams"], last["reset"]) == (
                    "ended by SIGKILL",
                    1,
                    0,
                )
                assert 0 < last["stood_still_seconds"] < 10
