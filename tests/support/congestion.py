"""Which congestion control a connection has, and which there are."""

from __future__ import annotations

import socket
from pathlib import Path

from tests.support.require import require_ability

__all__ = ["allowed_congestion", "congestion_of", "congestion_of_system", "require_congestion"]

_SYSCTL = Path("/proc/sys/net/ipv4")


def congestion_of_system() -> str:
    """Return the one that a new connection has."""
    return (_SYSCTL / "tcp_congestion_control").read_text().strip()


def allowed_congestion() -> list[str]:
    """Return those that everybody may use."""
    return (_SYSCTL / "tcp_allowed_congestion_control").read_text().split()


def require_congestion(name: str) -> None:
    """Skip where this kernel has none of that name."""
    there = name in allowed_congestion()
    require_ability(None if there else f"this kernel has no {name} for everybody")


def congestion_of(sock: socket.socket) -> str:
    """Return the one that a connection has, as the kernel tells."""
    name = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
    return name.partition(b"\0")[0].decode()
