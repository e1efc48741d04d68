"""What a worker is born with: plain values, prepared by the master before the fork."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = [
    "MEMORY_BYTES",
    "NONCES_BYTES",
    "RECORDS_BYTES",
    "AllowedNetworks",
    "Role",
    "WorkerContext",
]

RECORDS_BYTES = 4096 + 65_536 * 64
"""Bytes of the header and the stream records at the start of a tunnel's memory: a page,
and 65,536 records of 64 bytes (as many streams as one process has descriptors for)."""

NONCES_BYTES = 4096 + 65_536
"""Bytes at the end of a tunnel's memory: nonces of the last 4,096 prefaces that were taken, 16
each, and a page before them (``workers/replays.py``)."""

MEMORY_BYTES = RECORDS_BYTES + (1 << 30) + NONCES_BYTES
"""Bytes of a tunnel's memory: the records, a sparse arena of 1 GiB for the rings, the nonces.
Sized once for the most it may ever hold; pages exist only once they are touched."""


class Role(Enum):
    """Which side of the tunnel a master and its workers are."""

    SERVER = "server"
    CLIENT = "client"


@dataclass(frozen=True, slots=True, kw_only=True)
class AllowedNetworks:
    """From where a server takes links, and visitors; networks as text, none: all of them."""

    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    visitors_allow: tuple[str, ...] = ()
    visitors_deny: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerContext:
    """Everything one worker needs to serve one tunnel."""

    role: Role
    instance: str
    port: int
    """The public port of the tunnel."""
    name: str
    target_host: str
    """Where the app listens, seen from the client ("localhost" means both families)."""
    target_port: int
    """0 on a server that was not told."""
    server_host: str
    """Whom the client dials. Empty on a server."""
    link_port: int
    """The port the client dials: the public port, unless a test goes through a relay."""
    keys: tuple[bytes, ...] = ()
    """Port keys that are good for this tunnel (PROTOCOL.md §2), the preferred one first. A
    forked worker takes them from ``keys_fd``: its master has none."""
    key_clients: Mapping[bytes, str] = field(default_factory=dict)
    """Server: names of the clients whose keys these are; they come with the keys."""
    keys_fd: int = -1
    """A memfd with the keys, for a forked worker; -1: they are in ``keys``."""
    near_links_only: bool = False
    """Server: whether links are taken from this machine alone, and from networks that are
    named ("auth": "none")."""
    networks: AllowedNetworks = AllowedNetworks()
    """Server: as it begins; its master may say others later."""
    tls: bool
    """Whether links speak TLS; never decided by what the other side wants."""
    certificate_fd: int
    """A memfd with the server's certificate and key in PEM; -1 without TLS, and on a client."""
    verify: bool | Path
    """Client: whether a CA must vouch for the server's certificate; or the file of the CAs."""
    host_id: str
    """Random, kept in the client's state folder: which machine this is."""
    run_id: str
    """Random, made by the client's master at its start."""
    hold_seconds: float
    """How long a visitor waits for the link before it is reset."""
    idle_ping_seconds: float
    """Silence on an idle link after which a PING goes out."""
    max_visitors: int
    budget_bytes: int
    """Bound on the sum of the rings, and on the sum of what is granted and not delivered."""
    run_as: tuple[int, int] | None = None
    """Numbers of the user and the group that it becomes; None: its master's."""
    log_path: Path
    log_bytes: int
    """Size at which a log file is rotated."""
    log_files: int
    """Files kept, the current one included."""
    log_json: bool = False
    """Whether log lines are JSON objects."""
    access_log: bool = False
    """Whether each visitor gets a line in the log at its end."""
    listener_fds: tuple[int, ...]
    """Listening sockets of the public port; empty on a client."""
    channel_fd: int
    """This worker's end of its control channel (SOCK_SEQPACKET)."""
    counters_fd: int
    memory_fd: int
    master_pid: int
    crash_safe: bool = False
    """Whether what it carries is to outlive it, and it takes over what outlived another."""
    keeper_fd: int = -1
    """Its keeper's end of a pair of sockets (``net/keeper.py``)."""
    keeper_pid: int = 0
    """Its keeper; 0: it has none yet."""
    old_keeper_fds: tuple[int, ...] = ()
    """The master's ends of such pairs, of keepers that may hold sockets for it."""
    forgets: bool = False
    """What workers before it carried seems to have killed them: it begins with nothing."""
    crashed: bool = False
    """Whether the worker before it crashed by its own fault."""
    died_at: float = 0.0
    """When the worker before it died, or was to give the sign of life that it did not give any
    more, on the monotonic clock; 0.0: there was none."""
    resume_grace_seconds: float = 60.0
    """How long a session without a link keeps its streams, and its client the port."""
    rate: int = 0
    """Bytes a second that it sends over its link at most; 0: no limit."""
    congestion: str = "system"
    """Congestion control of the link; "system": whatever the kernel chooses."""

    @property
    def fds(self) -> tuple[int, ...]:
        """All descriptors that are named here, first ``keeper_fd`` if there is one."""
        needed = (self.channel_fd, self.counters_fd, self.memory_fd)
        given = (self.keeper_fd, self.keys_fd, self.certificate_fd)
        some = (*needed, *self.listener_fds, *self.old_keeper_fds)
        return (*(fd for fd in given if fd >= 0), *some)

    def renumbered(self, fds: Sequence[int]) -> WorkerContext:
        """Return the same with other numbers: ``fds`` in the place of :attr:`fds`."""
        new = dict(zip(self.fds, fds, strict=True))
        return replace(
            self,
            listener_fds=tuple(new[fd] for fd in self.listener_fds),
            old_keeper_fds=tuple(new[fd] for fd in self.old_keeper_fds),
            channel_fd=new[self.channel_fd],
            counters_fd=new[self.counters_fd],
            memory_fd=new[self.memory_fd],
            keys_fd=new.get(self.keys_fd, -1),
            certificate_fd=new.get(self.certificate_fd, -1),
            keeper_fd=new.get(self.keeper_fd, -1),
        )
