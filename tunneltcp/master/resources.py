"""What a tunnel has in the kernel and what outlives its workers: listeners and memory.

Everything here is a plain descriptor, never a socket object: after a fork nothing in the
child may close a number by being forgotten.
"""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tunneltcp.net.sockopt import prepare_listener

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["BACKLOG", "PortBusy", "computed_budget", "make_memory", "open_listeners"]

BACKLOG: Final = 4096
"""What the kernel admits by default (somaxconn): visitors wait there for a successor."""

_MAX_BUDGET: Final = 64 << 20
_MIN_BUDGET: Final = 4 << 20


class PortBusy(Exception):
    """A public port that cannot be had for now; ``str()`` says why."""

    def __init__(self, reason: str, *, in_use: bool) -> None:
        super().__init__(reason)
        self.in_use = in_use
        """Somebody holds it: worth asking who."""


def open_listeners(port: int, addresses: Sequence[str]) -> tuple[int, ...]:
    """Bind a public port on all addresses.

    An IPv6 address on a machine without IPv6 is left out if another address is there.

    Raises:
        PortBusy: If one of them cannot be had; then none is kept.
    """
    opened: list[int] = []
    missing: list[OSError] = []
    for address in addresses:
        try:
            opened.append(_open_listener(port, address))
        except OSError as error:
            if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT) and ":" in address:
                missing.append(error)
                continue
            _close_all(opened)
            raise PortBusy(_reason(port, address, error), in_use=_in_use(error)) from error
    if not opened:
        raise PortBusy(_reason(port, addresses[0], missing[0]), in_use=False)
    return tuple(opened)


def _open_listener(port: int, address: str) -> int:
    version = ipaddress.ip_address(address).version
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as listener:
        if version == 6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        prepare_listener(listener)
        listener.bind((address, port))
        listener.listen(BACKLOG)
        return listener.detach()


def _in_use(error: OSError) -> bool:
    return error.errno == errno.EADDRINUSE


def _reason(port: int, address: str, error: OSError) -> str:
    if _in_use(error):
        return f"port {port} is busy"
    return f"cannot listen on {address} port {port}: {(error.strerror or '?').lower()}"


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


def make_memory(name: str, size: int) -> int:
    """Return a memfd of a size that nobody can change.

    Raises:
        OSError: If the kernel has none to give.
    """
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        # Unsealed, a worker could shrink it and kill whoever reads it by SIGBUS.
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    except OSError:
        os.close(fd)
        raise
    return fd


def computed_budget(tunnels: int) -> int:
    """Return the bytes of rings that each of so many tunnels may hold."""
    share = _machine_bytes() // 4 // max(1, tunnels)
    return max(_MIN_BUDGET, min(_MAX_BUDGET, share))


def _machine_bytes() -> int:
    """Return the memory of this machine, or of our cgroup if that is less."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [memory]
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, folder = line.split(":", 2)
            if controllers == "":
                base, name = Path("/sys/fs/cgroup"), "memory.max"
            elif "memory" in controllers.split(","):
                base, name = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"
            else:
                continue
            limits += _limits(base, folder, name)
    return min(limits)


def _limits(base: Path, folder: str, name: str) -> list[int]:
    """Return the limits of a cgroup and of those around it, as far as we see them."""
    inner = base / folder.lstrip("/")
    found = []
    for place in (inner, *inner.parents):
        with suppress(OSError, ValueError):
            found.append(int((place / name).read_text()))
        if place == base:
            break
    return found
