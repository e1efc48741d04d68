"""scripts/bench, with very little effort: every row is measured and reported."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from benchmark.catalogue import WAYS
from benchmark.lab import Lab
from benchmark.places import PathSpec, Place, RelayPlace, missing_packets, packets
from benchmark.results import ROWS
from benchmark.rows_paths import busy, moved, probe
from benchmark.tools import start_target
from tests.support.pattern import PatternChecker, pattern
from tests.support.require import require_ability, require_program, require_root
from tests.support.service import ROOT
from tests.support.sockets import accept, connect, listener
from tests.support.wait import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

BYTES = 3_000_000


@pytest.fixture
def lab():
    with Lab() as running:
        yield running


def test_every_row_is_measured_and_reported(tmp_path):
    for name in ("wrk", "iperf3", "nginx", "ip"):
        require_program(name)
    paths = f"{ROOT / 'scripts'}{os.pathsep}{ROOT}"
    words = ["--tiny", "--ways", "mux,ours", "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmark", *words],
        capture_output=True,
        text=True,
        timeout=230,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths},
        check=False,
    )
    # A busy machine may break a gate; nothing else may go wrong.
    assert done.returncode == 0 or "gross regression" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    for row, title in ROWS.items():
        assert f"### {row}. {title}" in done.stdout, done.stderr
    answer = orjson.loads((tmp_path / "results.json").read_bytes())
    assert {one["row"] for one in answer["metrics"]} == set(ROWS)
    assert all("ours" in one["samples"] for one in answer["metrics"] if one["row"] > 2)
    assert (tmp_path / "requests.svg").exists()
    assert answer["notes"] == [] or os.geteuid(), answer["notes"]


@pytest.mark.parametrize("key", ["relays", "mux", "ours-plain"])
def test_bytes_cross_a_way_whole_in_both_directions(lab, key):
    (way,) = [one for one in WAYS if one.key == key]
    with listener() as target:
        running = way.start(lab, Place(lab), [target.getsockname()[1]])
        with connect(running.endpoints[0][1]) as visitor:
            visitor.sendall(b"?")
            with accept(target) as app:
                assert app.recv(1) == b"?"
                for seed, source, sink in ((1, visitor, app), (2, app, visitor)):
                    move(seed, source, sink)
        running.stop()


def move(seed, source, sink):
    """Send bytes, finish, and check what came."""
    checker = PatternChecker(seed)
    source.setblocking(False)
    sent = 0
    while checker.offset < BYTES:
        if sent < BYTES:
            try:
                sent += source.send(pattern(seed, sent, min(65_536, BYTES - sent)))
            except BlockingIOError:
                pass
            else:
                if sent == BYTES:
                    source.shutdown(socket.SHUT_WR)
                continue
        data = sink.recv(65_536)
        assert data
        checker.feed(data)
    assert sink.recv(1) == b""
    source.settimeout(10)


def test_a_relayed_path_takes_its_time_and_can_be_cut(lab):
    place = RelayPlace(lab, PathSpec(rtt_ms=40, mbit=100, queue_bytes=100_000))
    _program, port = start_target(lab, place)
    with socket.create_connection(place.reach(port), timeout=10) as visitor:
        visitor.sendall(b"e!")
        assert visitor.recv(1) == b"!"
        trips = probe(place, place.reach(port), 0.3)
        assert len(trips) == 30
        assert min(trips) >= 40
        place.cut()
        with pytest.raises(ConnectionResetError):
            visitor.recv(1)


@pytest.mark.needs_root
def test_a_path_of_packets_takes_its_time_and_leaves_nothing_behind(lab):
    require_root()
    require_program("ip")
    require_ability(missing_packets())
    before = namespaces()
    path = PathSpec(rtt_ms=40, mbit=100, queue_bytes=100_000)
    with packets(lab, path, "") as place:
        made = namespaces() - before
        assert len(made) == 2
        target, port = start_target(lab, place)
        host, port = place.reach(port)
        trips = probe(place, (host, port), 0.3)
        assert len(trips) == 30
        assert min(trips) >= 40
        with busy(place, (host, port), "--down", "2") as load:
            first = wait_until(lambda: moved(load), 10)
            wait_until(lambda: moved(load)[0] > first[0] + 1_000_000, 20)
        with busy(place, (host, port), "--up", "1"):
            wait_until(lambda: moved(target)[0] > 1_000_000, 20)
        target.stop()
    assert not made & namespaces()


def namespaces():
    return {path.name for path in Path("/var/run/netns").glob("ttb*")}
