"""An honest client and its visitors while somebody attacks the same server.

Theory of operation
-------------------
One real server with TLS and a token has three ports. The first has a real client, an echo app
and visitors (in a process of their own) that ask again and again; strangers attack this very
port. The second has no client: a test that holds the token plays it, as one gone bad. During
each attack the visitors go on; afterwards :meth:`Siege.attack` looks at what they met, and at
the workers: the same processes, no more descriptors, bounded memory.

Other visitors ask the same app through a third port that nobody attacks, with workers of its
own: what they meet is the machine's doing.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import psutil

from tests.support.apps import Apps
from tests.support.certificates import client_settings
from tests.support.fake_link import RawClient
from tests.support.fake_peer import FakePeer
from tests.support.ports import free_ports
from tests.support.processes import TOKEN, Master
from tests.support.visitors import Load
from tests.support.wait import wait_until
from tunneltcp.protocol.frames import FrameType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "Crowd",
    "Honest",
    "Siege",
    "descriptors",
    "during",
    "message_from",
    "pump_until",
    "resident_bytes",
]

HONEST = "honest"
CONTROL = "control"
VISITORS = 4
PAUSE_SECONDS = 0.005
FLOOR_SECONDS = 0.05
"""An answer takes a few milliseconds; this much is nobody's fault on two cores that the
attacker and six other processes share."""
STARVED = 3
"""How much longer than those of the other tunnel the visitors may wait on a machine that is
short of processors: the attacked workers have more to do, and need more of them."""
MIN_ANSWERS = 200
"""So that the slowest two do not count."""
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
            sock.settimeout(5)
            sock.connect(("127.0.0.1", self.port))  # completed by the kernel alone
            sock.setblocking(False)
            self.dialled += 1
            self.socks.append(sock)
            if first:
                with suppress(OSError):
                    sock.send(first)

    def say(self, data: bytes, turn: int = 0, turns: int = 1) -> None:
        """Each of them says this; or only those whose turn it is, of so many."""
        for sock in self.socks[turn % turns :: turns]:
            with suppress(OSError):
                sock.send(data)

    def expect(self, text: bytes) -> None:
        """Wait until each of them was told this."""
        left = list(self.socks)

        def all_told() -> bool:
            for sock in tuple(left):
                with suppress(BlockingIOError):
                    said = sock.recv(1 << 16)
                    assert text in said, said
                    left.remove(sock)
            return not left

        wait_until(all_told, 5, lambda: f"{text!r} for {len(left)} more")

    def leave(self, count: int | None = None) -> None:
        """The oldest leave; all of them by default."""
        for sock in self.socks[:count]:
            sock.close()
        del self.socks[:count]


class Honest:
    """The visitors of the honest client, during one attack."""

    def __init__(self, load: Load) -> None:
        self._load = load

    def answers(self) -> int:
        """How many answers they had since it began."""
        return self._load.stats(HONEST).answers

    def settle(self, count: int = MIN_ANSWERS) -> None:
        """Wait until they have had that many, with the attack still on."""
        wait_until(lambda: self.answers() >= count, 20, "visitors go on")


class Siege:
    """A server, its honest client and their visitors."""

    def __init__(self, folder: Path) -> None:
        self.port, self.other, self.control = free_ports(3)
        self.apps = Apps()
        self.load = Load()
        target = self.apps.add("echo")
        self.server = Master(
            "server",
            [{"remote_port": port} for port in (self.port, self.other, self.control)],
            folder / "server",
        )
        self.client = Master(
            "client",
            {
                "tunnels": [
                    {"remote_port": port, "local_port": target}
                    for port in (self.port, self.control)
                ],
                "crash_safe": False,  # who dies is to take his link along
            },
            folder / "client",
            server="127.0.0.1",
        )
        self._stack = ExitStack()
        self._base = 0.0
        self._visited = False

    def __enter__(self) -> Siege:
        with ExitStack() as stack:
            for one in (self.apps, self.load, self.server, self.client):
                stack.enter_context(one)
            for port in (self.port, self.control):
                wait_until(
                    lambda port=port: self.client.link_up(port),  # type: ignore[misc]
                    15,
                    self.client.complaint,
                )
            self.renew_visitors()
            self._base = self.load.stats(HONEST).p99
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        with suppress(AssertionError):  # or both masters would wait for them as they stop
            self.stop_visitors()
        self._stack.__exit__(*exc)  # type: ignore[arg-type]

    # -------------------------------------------------------------------- visitors

    def stop_visitors(self) -> None:
        """For attacks in which honest visitors must be cut too."""
        if self._visited:
            self.load.end(HONEST)
            self.load.end(CONTROL)
            self._visited = False

    def renew_visitors(self) -> None:
        """Let others come, and wait until they are served."""
        self.stop_visitors()
        wait_until(lambda: self.server.tunnel(self.port)["visitors"] == 0, 10)
        self.load.probe(HONEST, self.port, count=VISITORS, pause=PAUSE_SECONDS)
        self.load.probe(CONTROL, self.control, count=VISITORS, pause=PAUSE_SECONDS)
        self._visited = True
        Honest(self.load).settle(2 * MIN_ANSWERS)

    @contextmanager
    def attack(self, *, growth_bytes: int = GROWTH_BYTES) -> Iterator[Honest]:
        """Attack within the block: nobody may notice, and nothing may be left of it."""
        pids = {port: self.server.worker_pid(port) for port in (self.port, self.other)}
        client_pid = self.client.worker_pid(self.port)
        watched = [*pids.values(), client_pid]
        before = {pid: (descriptors(pid), resident_bytes(pid)) for pid in watched}
        links = self.server.tunnel(self.port)["links_total"]
        honest = Honest(self.load)
        self.load.mark(HONEST)
        self.load.mark(CONTROL)
        yield honest
        honest.settle()
        self._check_visitors()
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

    def _check_visitors(self) -> None:
        stats, control = self.load.stats(HONEST), self.load.stats(CONTROL)
        assert stats.running == VISITORS, f"visitors were cut: {stats}"
        assert stats.bad == 0, f"visitors were cut: {stats}"
        allowed = max(2 * self._base, FLOOR_SECONDS) + STARVED * control.p99
        assert stats.p99 <= allowed, (
            f"p99 was {stats.p99 * 1e3:.1f} ms, {self._base * 1e3:.1f} before, "
            f"{control.p99 * 1e3:.1f} in the other tunnel; {stats}"
        )

    # ------------------------------------------------------------------- attackers

    def pause(self) -> None:
        """Leave the machine to others for a moment: what is tested is not its scheduler."""
        begin = time.monotonic()
        wait_until(lambda: time.monotonic() - begin >= 0.01)

    def cpu_seconds(self, pid: int) -> float:
        """What a process has used so far."""
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)

    @contextmanager
    def crowd(self) -> Iterator[Crowd]:
        """Strangers at the honest port; gone after the block."""
        crowd = Crowd(self.port)
        try:
            yield crowd
        finally:
            crowd.leave()

    @contextmanager
    def insider(self, port: int = 0, **settings: Any) -> Iterator[RawClient]:  # noqa: ANN401
        """Somebody who holds the token, by default at the port without a client."""
        raw = RawClient(port or self.other, token=TOKEN, tls=client_settings(), **settings)
        try:
            yield raw
        finally:
            raw.close()

    @contextmanager
    def linked(self, port: int = 0, **settings: Any) -> Iterator[RawClient]:  # noqa: ANN401
        """The same, welcomed as the link."""
        with self.insider(port, **settings) as raw:
            pump_until(raw, lambda: raw.is_up, "WELCOME")
            yield raw
            if not raw.end:  # or its session would wait for the next one
                raw.send(FrameType.GOAWAY, payload=b"\0\0")

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


def message_from(raw: RawClient) -> dict[str, Any]:
    """Take one message of a handshake that the test itself plays, without its MAC."""
    peer = raw.peer

    def whole() -> int:
        peer.pump()
        size = 2 + int.from_bytes(peer.received[:2], "big")
        return size if 2 < size <= len(peer.received) else 0

    size = wait_until(whole, 5, "a message")
    text = bytes(peer.received[2:size])
    del peer.received[:size]
    message: dict[str, Any] = orjson.loads(text[: text.rindex(b"}") + 1])
    return message


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
