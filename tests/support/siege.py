"""An honest client and its visitors while somebody attacks the same server.

Theory of operation
-------------------
One real server with TLS and a token has two ports. The first has a real client, an echo app
and visitors (in a process of their own) that ask again and again; strangers attack this very
port. The second has no client: a test that holds the token plays it, as one gone bad. During
each attack the visitors go on; afterwards :meth:`Siege.attack` looks at what they met, and at
the workers: the same processes, no more descriptors, bounded memory.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.apps import Apps
from tests.support.certificates import client_settings
from tests.support.fake_link import RawClient
from tests.support.fake_peer import FakePeer
from tests.support.ports import free_ports
from tests.support.processes import TOKEN, Master
from tests.support.visitors import Load
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Crowd", "Siege", "descriptors", "resident_bytes"]

VISITORS = 4
PAUSE_SECONDS = 0.005
FLOOR_SECONDS = 0.05
"""An answer takes a millisecond; on two cores that the attacker and five other processes share,
a tick or two of the scheduler is nobody's fault."""
MIN_ANSWERS = 100
GROWTH_BYTES = 24 << 20
"""What an attack may cost a worker: 16 TLS handshakes, 4,096 connections, 6 MB of answers."""
DESCRIPTOR_SECONDS = 12.0
"""After an attack all it took is given back: the handshakes end within 5 s."""


def descriptors(pid: int) -> int:
    """How many descriptors a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - numbers, not paths


def resident_bytes(pid: int) -> int:
    """How much memory a process has in use."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS line")


class Crowd:
    """Connections of an attacker to one port; none of them ever blocks."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.socks: list[socket.socket] = []
        self.dialled = 0

    def dial(self, first: bytes = b"", count: int = 1) -> None:
        """Connect, and say ``first``."""
        for _ in range(count):
            sock = socket.socket()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.connect(("127.0.0.1", self.port))  # completed by the kernel alone
            sock.setblocking(False)
            self.dialled += 1
            self.socks.append(sock)
            if first:
                with suppress(OSError):
                    sock.send(first)

    def say(self, data: bytes) -> None:
        """Each of them says this."""
        for sock in self.socks:
            with suppress(OSError):
                sock.send(data)

    def leave(self, count: int | None = None) -> None:
        """The oldest leave; all of them by default."""
        for sock in self.socks[:count]:
            sock.close()
        del self.socks[:count]


class Siege:
    """A server, its honest client and their visitors."""

    def __init__(self, folder: Path) -> None:
        self.port, self.other = free_ports(2)
        self.apps = Apps()
        self.load = Load()
        target = self.apps.add("echo")
        self.server = Master(
            "server",
            [{"remote_port": port} for port in (self.port, self.other)],
            folder / "server",
        )
        self.client = Master(
            "client",
            [{"remote_port": self.port, "local_port": target}],
            folder / "client",
            server="127.0.0.1",
        )
        self._stack = ExitStack()
        self._base = 0.0

    def __enter__(self) -> Siege:
        with ExitStack() as stack:
            for one in (self.apps, self.load, self.server, self.client):
                stack.enter_context(one)
            wait_until(lambda: self.client.link_up(self.port), 15, self.client.complaint)
            self.load.probe("honest", self.port, count=VISITORS, size=64, pause=PAUSE_SECONDS)
            self._wait_for_answers(5 * MIN_ANSWERS)
            self._base = self.load.stats("honest").p99
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.__exit__(*exc)  # type: ignore[arg-type]

    def _wait_for_answers(self, count: int) -> None:
        self.load.mark("honest")
        wait_until(lambda: self.load.stats("honest").answers >= count, 20, "visitors go on")

    @contextmanager
    def attack(self, *, growth_bytes: int = GROWTH_BYTES) -> Iterator[None]:
        """Attack within the block: nobody may notice, and nothing may be left of it."""
        pids = {port: self.server.worker_pid(port) for port in (self.port, self.other)}
        client_pid = self.client.worker_pid(self.port)
        watched = [*pids.values(), client_pid]
        before = {pid: (descriptors(pid), resident_bytes(pid)) for pid in watched}
        links = self.server.tunnel(self.port)["links_total"]
        self.load.mark("honest")
        yield
        stats = self.load.stats("honest")
        allowed = max(2 * self._base, FLOOR_SECONDS)
        assert stats.running == VISITORS, f"visitors were cut: {stats}"
        assert stats.bad == 0, f"visitors were cut: {stats}"
        assert stats.answers >= MIN_ANSWERS, f"too few answers to judge by: {stats}"
        assert stats.p99 <= allowed, (
            f"p99 was {stats.p99 * 1e3:.1f} ms, {self._base * 1e3:.1f} before; {stats}"
        )
        for port, pid in pids.items():
            assert self.server.worker_pid(port) == pid, "its worker died"
        assert self.client.worker_pid(self.port) == client_pid
        assert self.server.tunnel(self.port)["links_total"] == links, "the link was lost"
        for pid in watched:
            grown = resident_bytes(pid) - before[pid][1]
            assert grown <= growth_bytes, f"{pid} grew by {grown / 1e6:.1f} MB"
        for pid in watched:
            wait_until(
                lambda pid=pid: descriptors(pid) <= before[pid][0],  # type: ignore[misc]
                DESCRIPTOR_SECONDS,
                lambda pid=pid: f"{pid} had {before[pid][0]}, has {descriptors(pid)}",  # type: ignore[misc]
            )

    @contextmanager
    def crowd(self, port: int = 0) -> Iterator[Crowd]:
        """Strangers at the honest port, or another one; gone after the block."""
        crowd = Crowd(port or self.port)
        try:
            yield crowd
        finally:
            crowd.leave()

    @contextmanager
    def insider(self, port: int = 0, **settings: object) -> Iterator[RawClient]:
        """Somebody who holds the token, by default at the port without a client."""
        raw = RawClient(port or self.other, token=TOKEN, tls=client_settings(), **settings)  # type: ignore[arg-type]
        try:
            yield raw
        finally:
            raw.close()

    @contextmanager
    def linked(self, port: int = 0, **settings: object) -> Iterator[RawClient]:
        """The same, welcomed as the link."""
        with self.insider(port, **settings) as raw:
            pump_until(raw, lambda: raw.is_up, "WELCOME")
            yield raw

    @contextmanager
    def visitors(self, count: int, first: bytes = b"hello") -> Iterator[list[FakePeer]]:
        """Visitors of the port whose client the test plays."""
        peers = [
            FakePeer(socket.create_connection(("127.0.0.1", self.other))) for _ in range(count)
        ]
        try:
            for peer in peers:
                peer.send(first)
            yield peers
        finally:
            for peer in peers:
                peer.close()


def pump_until(
    raw: RawClient, condition: Callable[[], object], what: str = "", seconds: float = 10.0
) -> None:
    """Let the far end of a link live until something is so."""

    def check() -> bool:
        raw.pump()
        return bool(condition())

    wait_until(check, seconds, lambda: f"{what} ({raw.end or 'open'}, {raw.frames[-5:]})")


def during(seconds: float) -> Iterator[float]:
    """Repeat what follows for so long; give the time that has passed."""
    begin = time.monotonic()
    while (passed := time.monotonic() - begin) < seconds:
        yield passed
