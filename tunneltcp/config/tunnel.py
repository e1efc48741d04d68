"""One tunnel of a config as values; see ``model.py``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from tunneltcp.config import networks
from tunneltcp.config.keys import described

__all__ = [
    "DEFAULT_HOLD_SECONDS",
    "DEFAULT_IDLE_PING_SECONDS",
    "DEFAULT_MAX_VISITORS",
    "DEFAULT_RESUME_GRACE_SECONDS",
    "TunnelConfig",
]

DEFAULT_HOLD_SECONDS: Final = 10.0
"""Twice the time within which a lost link is promised to be back."""

DEFAULT_RESUME_GRACE_SECONDS: Final = 60.0
"""A router that redials, a laptop that is carried to another room."""

DEFAULT_IDLE_PING_SECONDS: Final = 2.0
"""Notices a dead idle link within 4 s; 30 suits links that are paid by the byte."""

DEFAULT_MAX_VISITORS: Final = 1024
"""Far above what a browser or a small site needs, far below a process's descriptors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelConfig:
    """One configured forwarding."""

    remote_port: int = field(
        metadata=described(
            "remote_port",
            "port",
            "The public port on the server; each only once.",
            required="both",
        )
    )
    local_port: int = field(
        default=0,
        metadata=described(
            "local_port",
            "port",
            "The port of the target, seen from the client. A server does not need it.",
            required="client",
        ),
    )
    """0 on a server that was not told."""
    local_host: str = field(
        default="localhost",
        metadata=described(
            "local_host",
            "host",
            """The host of the target, seen from the client. `localhost` means both `127.0.0.1`
            and `::1`. A server does not need it.""",
        ),
    )
    name: str = field(
        default="",
        metadata=described(
            "name",
            "name",
            "For people, in tables and process lists; each only once.",
            default="`tunnel-PORT`",
        ),
    )
    link_port: int = field(
        default=0,
        metadata=described(
            "link_port",
            "port",
            "The port that the client dials, if something forwards it.",
            role="client",
            default="the `remote_port`",
        ),
    )
    """0: the public port itself."""
    hold_seconds: float = field(
        default=DEFAULT_HOLD_SECONDS,
        metadata=described(
            "hold",
            "seconds",
            """How long a visitor who comes while there is no link waits for it, before it is
            reset. Matters on the server.""",
            low=0,
            high=3600,
            for_all=True,
        ),
    )
    resume_grace_seconds: float = field(
        default=DEFAULT_RESUME_GRACE_SECONDS,
        metadata=described(
            "resume_grace",
            "seconds",
            """How long visitors are kept after the link was lost, for the client to
            come back to them; then they are reset. Both sides count for themselves.""",
            low=0,
            high=3600,
            for_all=True,
        ),
    )
    idle_ping_seconds: float = field(
        default=DEFAULT_IDLE_PING_SECONDS,
        metadata=described(
            "idle_ping",
            "seconds",
            """Silence on an idle link after which a life sign goes out; a dead link is noticed
            after about twice this. 30 suits lines that are paid by the byte.""",
            low=0.5,
            high=3600,
            for_all=True,
        ),
    )
    congestion: str = field(
        default="system",
        metadata=described(
            "congestion",
            "choice",
            """How the link finds out what its path can carry, for what this side sends: by
            `"bbr"` a full queue on the way is noticed and mostly avoided, and single losses do
            not slow it. What this machine does not have or does not allow is a line in the log
            that names the sysctl, and the link uses the system's. Within one
            machine `"system"` is `"reno"` where it would be `"bbr"`, whose pacing only costs
            there; so it is for visitors and targets.""",
            choices=("system", "bbr", "cubic", "reno"),
            for_all=True,
        ),
    )
    rate: int = field(
        default=0,
        metadata=described(
            "rate",
            "rate",
            """The most that this side sends over the link, such as `"20 Mbit/s"` (kbit/s,
            Mbit/s, Gbit/s, or kB/s, MB/s, GB/s), shared evenly by the visitors. On the client
            it limits downloads, on the server uploads: for both set it on both sides.""",
            default='`"none"`',
            for_all=True,
        ),
    )
    """Bytes a second; 0: no limit."""
    max_visitors: int = field(
        default=DEFAULT_MAX_VISITORS,
        metadata=described(
            "max_visitors",
            "integer",
            "Visitors at one time; one more is reset.",
            low=1,
            high=60_000,
            unit="visitors",
            for_all=True,
        ),
    )
    max_rss_bytes: int | None = field(
        default=None,
        metadata=described(
            "max_rss",
            "size",
            """The most memory that the process of a tunnel may have to itself, what it shares
            (the buffers that `budget` bounds) not counted. One that has more is replaced, and
            `last_exit` in the status says so; with `crash_safe` its visitors go on. An idle one
            has some 21 MB.""",
            low=50_000_000,
            high=1 << 40,
            for_all=True,
            default="64 MiB, 16 KiB for each of `max_visitors` and twice the `budget`",
        ),
    )
    """None: ``master/budgets.py`` computes it; so for the next one."""
    max_fds: int | None = field(
        default=None,
        metadata=described(
            "max_fds",
            "integer",
            """The most descriptors that the process of a tunnel may have open. One that has
            more is replaced, as with `max_rss`.""",
            low=64,
            high=1_000_000,
            unit="descriptors",
            for_all=True,
            default="twice `max_visitors`, and 8192",
        ),
    )
    crash_safe: bool = field(
        default=True,
        metadata=described(
            "crash_safe",
            "flag",
            """Whether visitors survive the worker that carries them: when it dies, is restarted
            or gets other settings, its successor goes on with them. It costs one more small
            process for each worker. Each side decides for itself.""",
            for_all=True,
        ),
    )
    access_log: bool = field(
        default=False,
        metadata=described(
            "access_log",
            "flag",
            """Whether each visitor gets a line in `tunnel-PORT.access.log` at its end: address,
            duration, bytes each way, how it ended.""",
            for_all=True,
        ),
    )
    allow: tuple[str, ...] = field(default=(), metadata=networks.ALLOW)
    deny: tuple[str, ...] = field(default=(), metadata=networks.DENY)
    visitors_allow: tuple[str, ...] = field(default=(), metadata=networks.VISITORS_ALLOW)
    visitors_deny: tuple[str, ...] = field(default=(), metadata=networks.VISITORS_DENY)
