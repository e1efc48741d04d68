"""One bounded file per process, nothing per visitor, and a full disk stops nobody."""

from __future__ import annotations

import subprocess
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.apps import Apps
from tests.support.processes import TunnelPair
from tests.support.require import require_root
from tests.support.sockets import connect, expect_reset, receive_exactly
from tests.support.visitors import Load
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def target() -> Iterator[int]:
    with Apps() as apps:
        yield apps.add("echo")


def echoes(port: int) -> None:
    with connect(port) as visitor:
        visitor.sendall(b"hello")
        assert receive_exactly(visitor, 5) == b"hello"


def test_each_process_has_a_file_that_says_what_an_operator_wants(
    target: int, tmp_path: Path
) -> None:
    with TunnelPair([target, target], tmp_path, chaos=True) as pair:
        names = {"master.log", *(f"tunnel-{port}.log" for port in pair.ports)}
        for master in (pair.server, pair.client):
            assert names <= {path.name for path in master.log_dir.iterdir()}
            assert "link up" in master.log_text(f"tunnel-{pair.port}.log")

        pair.relay.reset()
        for master in (pair.server, pair.client):
            read = partial(master.log_text, f"tunnel-{pair.port}.log")
            wait_for(lambda said: "lost" in said and said.count("link up") == 2, read)

        old = pair.server.kill_worker(pair.port)
        pair.server.wait_for_successor(pair.port, old)
        assert "SIGKILL" in pair.server.log_text("master.log")


def test_nothing_is_said_about_a_visitor(target: int, tmp_path: Path) -> None:
    with TunnelPair([target], tmp_path) as pair, Load() as load:
        masters = (pair.server, pair.client)
        before = [master.log_text() for master in masters]
        load.probe("a", pair.port, count=50, rounds=2)
        assert load.finish("a").outcomes == {"ok": 50}
        for master in masters:
            wait_for(lambda tunnel: not tunnel["visitors"], partial(master.tunnel, pair.port))
        after = [master.log_text() for master in masters]

        assert after == before


def test_repeated_failures_are_one_line(tmp_path: Path) -> None:
    """Visitors of a target that is down: said once, however many come."""
    with Apps() as apps:
        target = apps.add("echo")
        with TunnelPair([target], tmp_path) as pair:
            apps.remove(target)
            names = ("master.log", f"tunnel-{pair.port}.log")
            before = {name: set(pair.client.log_text(name).splitlines()) for name in names}
            for _ in range(30):
                with connect(pair.port) as visitor:
                    visitor.sendall(b"hello")
                    expect_reset(visitor)
            for name in names:
                more = set(pair.client.log_text(name).splitlines()) - before[name]
                told = [line for line in more if "link up" not in line]
                assert len(told) == 1, told


def test_files_are_rotated_and_bounded(target: int, tmp_path: Path) -> None:
    limits = {"log_bytes": 4096, "log_files": 2}
    names = ["master.log"]
    for side in ("server", "client"):
        folder = tmp_path / side / "log"
        folder.mkdir(parents=True)
        (folder / "master.log").write_text("x" * 4000 + "\n")
        (folder / "master.log.1").write_text("older\n")
    with TunnelPair([target], tmp_path, common=limits) as pair:
        echoes(pair.port)
        for master in (pair.server, pair.client):
            for name in names:
                assert "master started" in (master.log_dir / name).read_text()
                assert "xxx" in (master.log_dir / f"{name}.1").read_text()
                assert not (master.log_dir / f"{name}.2").exists()
            for path in master.log_dir.iterdir():
                assert path.stat().st_size <= 4096, path


def wait_for(condition: Callable[[Any], bool], read: Callable[[], Any]) -> None:
    wait_until(lambda: condition(read()), 5, lambda: f"{read()}")


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    require_root()
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.needs_root
def test_a_full_disk_stops_no_traffic_and_is_counted(target: int, tmp_path: Path) -> None:
    with (
        small_disk(tmp_path / "server" / "log") as disk,
        TunnelPair([target], tmp_path, chaos=True) as pair,
        Load() as load,
    ):
        filler = disk / "filler"
        fill(filler)
        tunnel_log = disk / f"tunnel-{pair.port}.log"
        tunnel_log.unlink()  # so that not even the rest of its last page is free
        filler_more = disk / "filler2"
        fill(filler_more)

        pair.relay.reset()
        load.probe("a", pair.port, count=5, size=1000, rounds=100)
        assert load.finish("a").bad <= 5
        wait_until(lambda: pair.server.link_up(pair.port))
        load.probe("b", pair.port, count=5, size=1000, rounds=100)
        assert load.finish("b").outcomes == {"ok": 5}
        wait_until(lambda: pair.server.tunnel(pair.port)["log_dropped"] > 0, 5)

        filler.unlink()
        filler_more.unlink()
        pair.relay.reset()
        wait_until(lambda: tunnel_log.exists() and "link up" in tunnel_log.read_text(), 5)
        echoes(pair.port)
