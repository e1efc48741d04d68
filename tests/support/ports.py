"""Ports for tests, also for several test runs at once.

A port that a server will bind a moment later must not be taken by an outgoing
connection meanwhile, so none of them is in the kernel's ephemeral range; and two test
processes must not choose the same, so each holds a lock on one byte of a common file
for each port that it has given out (locks that end with the process, whatever ends it).
"""

from __future__ import annotations

import errno
import fcntl
import os
import random
import socket
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Ports", "free_port", "free_ports", "reserved_port"]

_FIRST, _LAST = 20_000, 31_999
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


class Ports:
    """Gives out ports that nobody uses and no other test run will take."""

    def __init__(self, lock_file: Path, candidates: Sequence[int]) -> None:
        self._lock_file = lock_file
        self._candidates = candidates
        self._fd = -1
        self._pid = 0
        self._taken: set[int] = set()

    def take(self) -> int:
        """Return a port that can be bound on every address, IPv4 and IPv6.

        Raises:
            RuntimeError: If no candidate is left.
        """
        if (
            self._pid != os.getpid()
        ):  # never opened, or we are a forked child: locks stay behind
            self._fd = os.open(self._lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            self._pid = os.getpid()
        begin = random.randrange(len(self._candidates))
        for index in range(len(self._candidates)):
            port = self._candidates[(begin + index) % len(self._candidates)]
            if port in self._taken or not self._lock(port):
                continue
            if _can_bind(port):
                self._taken.add(port)
                return port
            self._unlock(port)
        raise RuntimeError(f"no free port in {self._candidates}")

    def give_back(self, port: int) -> None:
        """Let others have a port again."""
        self._taken.discard(port)
        self._unlock(port)

    def _lock(self, port: int) -> bool:
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
        except OSError as error:
            if error.errno in {errno.EACCES, errno.EAGAIN}:
                return False
            raise
        return True

    def _unlock(self, port: int) -> None:
        fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, port)


def _can_bind(port: int) -> bool:
    families = [(socket.AF_INET, "0.0.0.0")]
    if socket.has_ipv6 and Path("/proc/net/if_inet6").exists():
        families.append((socket.AF_INET6, "::"))
    for family, address in families:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                probe.bind((address, port))
            except OSError:
                return False
    return True


def _candidates() -> range:
    """The largest part of our range that outgoing connections never use."""
    low, high = (int(part) for part in _EPHEMERAL.read_text().split())
    below = range(_FIRST, min(_LAST + 1, low))
    above = range(max(_FIRST, high + 1), _LAST + 1)
    return max(below, above, key=len)


_shared = Ports(
    Path(tempfile.gettempdir()) / f"tunneltcp-test-ports-{os.getuid()}", _candidates()
)


def free_port() -> int:
    """Return a port for the rest of this process."""
    return _shared.take()


def free_ports(count: int) -> list[int]:
    """Return ``count`` ports for the rest of this process."""
    return [_shared.take() for _ in range(count)]


@contextmanager
def reserved_port() -> Iterator[int]:
    """Give a port for the time of a block."""
    port = _shared.take()
    try:
        yield port
    finally:
        _shared.give_back(port)
