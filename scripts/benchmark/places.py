"""Where the two sides of a way are: on loopback, or at the two ends of a path."""

from __future__ import annotations

import itertools
import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.lab import BenchError, find_program, wait_for
from benchmark.path_packets import ADDRESSES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmark.lab import Lab, Program

__all__ = [
    "Endpoint",
    "PacketPlace",
    "PathSpec",
    "Place",
    "RelayPlace",
    "congestion_controls",
    "missing_packets",
    "packets",
]

Endpoint = tuple[str, int]

_numbers = itertools.count()


@dataclass(frozen=True, slots=True, kw_only=True)
class PathSpec:
    """What lies between the two sides."""

    rtt_ms: float = 0
    mbit: float = 0
    """Each way; 0: no limit."""
    queue_bytes: int = 1 << 30
    """Each way."""
    loss_percent: float = 0

    def words(self) -> list[str]:
        """The options of the programs that make it."""
        words = ["--delay-ms", str(self.rtt_ms / 2), "--mbit", str(self.mbit)]
        words += ["--queue", str(self.queue_bytes)]
        return words + (["--loss", str(self.loss_percent)] if self.loss_percent else [])


class Place:
    """Loopback, both sides beside each other."""

    server_prefix: tuple[str, ...] = ()
    """Words before a command on the server's side; visitors are there too."""
    client_prefix: tuple[str, ...] = ()
    """The same on the client's side; targets are there too."""
    server_address = "127.0.0.1"
    """Where the server's side listens."""
    target_address = "127.0.0.1"
    """Where targets listen, so that the client's side reaches them at 127.0.0.1."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    def dial(self, port: int) -> Endpoint:
        """What the client's side dials to reach a port of the server's side."""
        return ("127.0.0.1", port)

    def reach(self, port: int) -> Endpoint:
        """What the server's side dials to reach a port of the client's side."""
        return ("127.0.0.1", port)


class RelayPlace(Place):
    """Loopback, with a relay between the two sides; needs no root."""

    def __init__(self, lab: Lab, path: PathSpec) -> None:
        super().__init__(lab)
        if path.loss_percent:
            raise BenchError("a relay can lose nothing")
        self.path = path
        self.relays: list[Program] = []

    def dial(self, port: int) -> Endpoint:
        """Lead a new port to ``port``, over the path."""
        listen = self.lab.port()
        relay = self.lab.python("path_relay", *self.path.words(), f"{listen}:{port}")
        self.relays.append(relay)
        relay.wait_listening(listen)
        return ("127.0.0.1", listen)

    reach = dial

    def cut(self) -> None:
        """Reset everything that crosses the path now."""
        for relay in self.relays:
            relay.tell("cut")

    def close(self) -> None:
        """Remove the path."""
        for relay in self.relays:
            relay.stop()
        self.relays.clear()


class PacketPlace(Place):
    """Two network namespaces with a path that carries packets."""

    target_address = "0.0.0.0"  # noqa: S104 - of a namespace that nobody else can reach

    def __init__(self, lab: Lab, path: PathSpec, congestion: str) -> None:
        super().__init__(lab)
        tag = f"{os.getpid() % 100_000}x{next(_numbers)}"
        names = (f"ttba{tag}", f"ttbb{tag}")
        self.program = lab.python(
            "path_packets", *path.words(), "--congestion", congestion, *names
        )
        wait_for(self._is_ready, 10, "the path of packets is there")
        self.server_prefix = ("ip", "netns", "exec", names[0])
        self.client_prefix = ("ip", "netns", "exec", names[1])
        self.server_address = ADDRESSES[0]

    def _is_ready(self) -> bool:
        self.program.check()
        return self.program.output().endswith("ready")

    def dial(self, port: int) -> Endpoint:
        """The other end of the path."""
        return (ADDRESSES[0], port)

    def reach(self, port: int) -> Endpoint:
        """The other end of the path."""
        return (ADDRESSES[1], port)

    def close(self) -> None:
        """Remove the path; what runs inside must have ended."""
        self.program.stop()


def missing_packets() -> str | None:
    """Why no path of packets can be made here; None if it can."""
    if os.geteuid():
        return "needs root"
    if find_program("ip") is None:
        return "ip is not installed"
    if not Path("/dev/net/tun").exists():
        return "there is no /dev/net/tun"
    return None


def congestion_controls() -> list[str]:
    """Those that the kernel has loaded."""
    return Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split()


@contextmanager
def packets(lab: Lab, path: PathSpec, congestion: str) -> Iterator[PacketPlace]:
    """A path of packets for the time of a block."""
    place = PacketPlace(lab, path, congestion)
    try:
        yield place
    finally:
        place.close()
