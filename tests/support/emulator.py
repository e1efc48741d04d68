"""A long, lossy or narrow-minded path between two hosts: packets carried by hand.

Theory of operation
-------------------
Each network namespace gets a TUN device, and a process in between reads packets at one and
writes them to the other: later, or never. What a kernel's own emulator (netem) would do, for
kernels without it. A TUN device without offloads carries what would be on a wire, one packet
at a time, so "no packet over 1,100 bytes" means that.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import random
import struct
from collections import deque
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tests.support.netns import two_hosts
from tests.support.require import require_ability
from tests.support.service import READ, Service, ServiceProcess, run_service

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from tests.support.netns import TwoHosts

__all__ = [
    "CLIENT_ADDRESS",
    "DEVICE",
    "SERVER_ADDRESS",
    "Emulator",
    "emulated_hosts",
    "inside",
    "missing_tun",
]

SERVER_ADDRESS, CLIENT_ADDRESS = "10.213.8.1", "10.213.8.2"
"""Of the two hosts, at the ends of the path."""

DEVICE = "ttpath"
_MTU = 1500
_TUNSETIFF = 0x400454CA
_TUN_WITHOUT_HEADER = 0x0001 | 0x1000
_CLONE_NEWNET = 0x40000000
_PACKETS_PER_TURN = 64
_QUEUE_PACKETS = 20_000
"""30 MB: beyond that the path drops, as any queue does."""


def missing_tun() -> str | None:
    """Say why there can be no such path here; None if there can."""
    try:
        with Path("/dev/net/tun").open("rb+", buffering=0):
            return None
    except OSError as error:
        return f"no TUN devices: {error}"


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """Be in a network namespace: sockets made in the block belong there for ever."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/proc/self/ns/net").open("rb") as home:
        with Path(f"/run/netns/{namespace}").open("rb") as there:
            _check(libc.setns(there.fileno(), _CLONE_NEWNET))
        try:
            yield
        finally:
            _check(libc.setns(home.fileno(), _CLONE_NEWNET))


class _Device:
    """One end."""

    def __init__(self, namespace: str) -> None:
        with inside(namespace):
            self._fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            name = struct.pack("16sH22x", DEVICE.encode(), _TUN_WITHOUT_HEADER)
            fcntl.ioctl(self._fd, _TUNSETIFF, name)

    def fileno(self) -> int:
        return self._fd

    def read(self) -> bytes:
        """Return the next packet; empty if there is none, or the device is down."""
        try:
            return os.read(self._fd, _MTU + 64)
        except OSError as error:
            if error.errno in {errno.EAGAIN, errno.EIO, errno.EBADFD}:
                return b""
            raise

    def write(self, packet: bytes) -> None:
        try:
            os.write(self._fd, packet)
        except OSError as error:
            if error.errno not in {errno.EAGAIN, errno.EIO, errno.ENOBUFS, errno.EINVAL}:
                raise


def _check(code: int) -> None:
    if code:
        raise OSError(ctypes.get_errno(), "setns")


class _Direction:
    """Packets on their way from one device to the other."""

    def __init__(self, service: Service, source: _Device, sink: _Device) -> None:
        self.service, self.source, self.sink = service, source, sink
        self.queue: deque[tuple[float, bytes]] = deque()
        self.delay = 0.0
        self.loss = 0.0
        self.max_packet = 0
        self.silent = False
        self.waiting = False
        self.passed = self.dropped = 0

    def carry(self, _events: int) -> None:
        for _ in range(_PACKETS_PER_TURN):
            packet = self.source.read()
            if not packet:
                return
            if self._is_lost(packet):
                self.dropped += 1
            elif self.delay:
                self.queue.append((self.service.now + self.delay, packet))
                self._wait()
            else:
                self.passed += 1
                self.sink.write(packet)

    def _is_lost(self, packet: bytes) -> bool:
        return (
            self.silent
            or len(self.queue) >= _QUEUE_PACKETS
            or (0 < self.max_packet < len(packet))
            or (self.loss > 0 and random.random() < self.loss)
        )

    def _wait(self) -> None:
        if self.queue and not self.waiting:
            self.waiting = True
            self.service.call_later(max(0.0, self.queue[0][0] - self.service.now), self._due)

    def _due(self) -> None:
        self.waiting = False
        while self.queue and self.queue[0][0] <= self.service.now:
            packet = self.queue.popleft()[1]
            if not self.silent:
                self.passed += 1
                self.sink.write(packet)
        self._wait()


class _Path(Service):
    """The loop between both devices."""

    def __init__(self) -> None:
        super().__init__()
        self.directions: dict[str, _Direction] = {}

    def do_start(self, server: str, client: str) -> None:
        near, far = _Device(client), _Device(server)
        for name, source, sink in (("up", near, far), ("down", far, near)):
            direction = self.directions[name] = _Direction(self, source, sink)
            self._watch(source, direction.carry)

    def _watch(self, device: _Device, call: Callable[[int], None]) -> None:
        self.watch(cast("socket.socket", device), READ, call)  # it has a fileno()

    def do_set(self, direction: str, change: dict[str, Any]) -> None:
        for name, one in self.directions.items():
            if direction in (name, "both"):
                for key, value in change.items():
                    assert hasattr(one, key), key
                    setattr(one, key, value)

    def do_counters(self) -> dict[str, list[int]]:
        return {name: [one.passed, one.dropped] for name, one in self.directions.items()}


class Emulator(ServiceProcess):
    """The path, seen from the test. ``up`` is from the client's host to the server's."""

    def __init__(self, hosts: TwoHosts) -> None:
        super().__init__("tests.support.emulator")
        try:
            self.call("start", server=hosts.server.name, client=hosts.client.name)
            for host, address in (
                (hosts.server, SERVER_ADDRESS),
                (hosts.client, CLIENT_ADDRESS),
            ):
                host.run("ip", "addr", "add", f"{address}/24", "dev", DEVICE)
                host.run("ip", "link", "set", DEVICE, "up", "mtu", str(_MTU))
        except BaseException:
            self.stop()
            raise

    def change(
        self,
        direction: str = "both",
        *,
        delay: float | None = None,
        loss: float | None = None,
        max_packet: int | None = None,
        silent: bool | None = None,
    ) -> None:
        """Change what is given, from now on.

        Args:
            direction: ``up``, ``down`` or ``both``.
            delay: Seconds each packet takes, each way.
            loss: Part of the packets that is dropped at random.
            max_packet: Longer packets are dropped without a word; 0: none is.
            silent: Whether all packets are dropped.
        """
        given = {"delay": delay, "loss": loss, "max_packet": max_packet, "silent": silent}
        change = {key: value for key, value in given.items() if value is not None}
        self.call("set", direction=direction, change=change)

    def heal(self) -> None:
        """Carry every packet at once."""
        self.change(delay=0.0, loss=0.0, max_packet=0, silent=False)

    def dropped(self, direction: str) -> int:
        """Packets that were dropped in one direction until now."""
        return int(self.call("counters")[direction][1])


@contextmanager
def emulated_hosts() -> Iterator[tuple[TwoHosts, Emulator]]:
    """Two hosts and such a path, for the time of a block; skips where they cannot be."""
    with two_hosts() as hosts:
        require_ability(missing_tun())
        with Emulator(hosts) as path:
            yield hosts, path


if __name__ == "__main__":
    run_service(_Path)
