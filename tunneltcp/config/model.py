"""The config as values: every key, its unit and its default, and nothing else.

``load.py`` makes these from a file; nobody else makes them but tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "DEFAULT_BIND",
    "DEFAULT_DRAIN_SECONDS",
    "DEFAULT_HOLD_SECONDS",
    "DEFAULT_IDLE_PING_SECONDS",
    "DEFAULT_LOG_BYTES",
    "DEFAULT_LOG_FILES",
    "DEFAULT_MAX_VISITORS",
    "MAX_TUNNELS",
    "Config",
    "RoleName",
    "TunnelConfig",
]

RoleName = Literal["server", "client"]
"""Which side a config is read for."""

DEFAULT_BIND: Final = ("127.0.0.1",)
"""Loopback only, until links carry a token: whoever reaches a port could be its client."""

DEFAULT_DRAIN_SECONDS: Final = 5.0
"""Half of what ``docker stop`` waits before it kills."""

DEFAULT_HOLD_SECONDS: Final = 10.0
"""Twice the time within which a lost link is promised to be back."""

DEFAULT_IDLE_PING_SECONDS: Final = 2.0
"""Notices a dead idle link within 4 s; 30 suits links that are paid by the byte."""

DEFAULT_MAX_VISITORS: Final = 1024
"""Far above what a browser or a small site needs, far below a process's descriptors."""

DEFAULT_LOG_BYTES: Final = 2_000_000
"""Bytes of one log file; some 20,000 lines."""

DEFAULT_LOG_FILES: Final = 3
"""Files kept of each log, the current one included."""

MAX_TUNNELS: Final = 500
"""One process each: more is a mistake in the file, not a wish."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelConfig:
    """One configured forwarding."""

    remote_port: int
    """The public port on the server."""
    local_port: int = 0
    """Port of the target, seen from the client. 0 on a server that was not told."""
    local_host: str = "localhost"
    """Host of the target, seen from the client; "localhost" means both families."""
    name: str = ""
    """For people; "tunnel-PORT" where none is given."""
    link_port: int = 0
    """Port the client dials if something forwards it; 0: the public port itself."""
    hold_seconds: float = DEFAULT_HOLD_SECONDS
    """How long a visitor waits for the link before it is reset."""
    idle_ping_seconds: float = DEFAULT_IDLE_PING_SECONDS
    """Silence on an idle link after which a PING goes out."""
    max_visitors: int = DEFAULT_MAX_VISITORS
    """Visitors at one time; one more is reset."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything one master needs to know."""

    tunnels: tuple[TunnelConfig, ...]
    """In the order of the file; public ports are unique."""
    server: str = ""
    """Host the client dials. Empty on a server."""
    bind: tuple[str, ...] = DEFAULT_BIND
    """Addresses of the public ports: IPv4 and IPv6 literals. Unused on a client."""
    tls: bool = True
    """Whether links speak TLS; both sides must say the same."""
    certificate: tuple[Path, Path] | None = None
    """Files of the server's certificate and its key; None: one is made at each start."""
    verify: bool | Path = False
    """Whether the client asks for a certificate that a CA vouches for, with the server's name
    in it: one of the system's, or one of those in this file."""
    drain_seconds: float = DEFAULT_DRAIN_SECONDS
    """How long running visitors may go on after TERM."""
    budget_bytes: int | None = None
    """Memory for the rings of each tunnel; None: the master computes it."""
    log_bytes: int = DEFAULT_LOG_BYTES
    log_files: int = DEFAULT_LOG_FILES
