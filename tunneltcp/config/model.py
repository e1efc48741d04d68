"""The config as values: every key with its meaning, unit, bounds and default.

``load.py`` makes these from a file, ``docs/CONFIG.md`` is written from them by
``scripts/docs``; nobody else makes them but tests and ``tunneltcp expose``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from tunneltcp.config.keys import Key, RoleName, Setting, described, settings
from tunneltcp.config.tokens import OWN_TOKEN, TokenPlace
from tunneltcp.config.tunnel import (
    DEFAULT_HOLD_SECONDS,
    DEFAULT_IDLE_PING_SECONDS,
    DEFAULT_MAX_VISITORS,
    DEFAULT_RESUME_GRACE_SECONDS,
    TunnelConfig,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tunneltcp.config.clients import ClientConfig

__all__ = [
    "DEFAULT_BIND",
    "DEFAULT_DRAIN_SECONDS",
    "DEFAULT_HOLD_SECONDS",
    "DEFAULT_IDLE_PING_SECONDS",
    "DEFAULT_LOG_BYTES",
    "DEFAULT_LOG_FILES",
    "DEFAULT_MAX_VISITORS",
    "DEFAULT_RESUME_GRACE_SECONDS",
    "MAX_TUNNELS",
    "PORTS",
    "TOP_SETTINGS",
    "TUNNEL_SETTINGS",
    "Auth",
    "Config",
    "LogFormat",
    "RoleName",
    "TunnelConfig",
]

LogFormat = Literal["text", "json"]
Auth = Literal["token", "none"]

DEFAULT_BIND: Final = ("0.0.0.0", "::")  # noqa: S104 - public ports are there to be reached
"""Everywhere. Who may be the client is a matter of the token, and not of the address."""

DEFAULT_DRAIN_SECONDS: Final = 5.0
"""Half of what ``docker stop`` waits before it kills."""

DEFAULT_LOG_BYTES: Final = 2_000_000
"""Bytes of one log file; some 20,000 lines."""

DEFAULT_LOG_FILES: Final = 3
"""Files kept of each log, the current one included."""

MAX_TUNNELS: Final = 500
"""One process each: more is a mistake in the file, not a wish."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything one master needs to know."""

    tunnels: tuple[TunnelConfig, ...] = field(
        metadata=described(
            "tunnels",
            "tunnels",
            f"""The tunnels, as objects with the keys below; at most {MAX_TUNNELS}. A file that
            is a bare list is this list.""",
            required="client",
        )
    )
    """In the order of the file; public ports are unique."""
    server: str = field(
        default="",
        metadata=described(
            "server",
            "host",
            "Whom the client dials. `--server` overrules it.",
            role="client",
            required="client",
        ),
    )
    """Empty on a server."""
    bind: tuple[str, ...] = field(
        default=DEFAULT_BIND,
        metadata=described(
            "bind",
            "addresses",
            """Where the public ports are open: IP addresses, `localhost` (both families) or `*`
            (everywhere). Whoever reaches a port can visit the app; only who has the token can
            be its client. `--bind` overrules it.""",
            role="server",
            default='`"*"`',
        ),
    )
    """IPv4 and IPv6 literals. Unused on a client."""
    auth: Auth = field(
        default="token",
        metadata=described(
            "auth",
            "choice",
            """Whether the two sides prove to each other that they hold the same token. With
            `"none"` they do not, on both sides alike: the server then takes links from its own
            machine only, and warns at each start.""",
            choices=("token", "none"),
        ),
    )
    token: TokenPlace = field(
        default=OWN_TOKEN,
        metadata=described(
            "token",
            "token",
            """The secret that both sides share, at least 32 characters; white space around it
            does not count. As it is, or where to find it: `{"file": "/path"}` (a regular file
            that others may not read) or `{"env": "NAME"}` (taken out of the environment at the
            start). `--token-file`, then `TUNNELTCP_TOKEN`, overrule it. On a server with
            `clients` it is good for the ports that none of them names.""",
            default="a server makes one in its state folder; a client has what "
            "`tunneltcp login` kept for its server",
        ),
    )
    """Where it is; a config never holds the token itself."""
    clients: tuple[ClientConfig, ...] = field(
        default=(),
        metadata=described(
            "clients",
            "clients",
            """Clients with a name, a token and ports of their own, as objects with the keys
            below. Without them whoever has the `token` can be the client of all ports.""",
            role="server",
            default="none",
        ),
    )
    tls: bool = field(
        default=True,
        metadata=described(
            "tls",
            "flag",
            """Whether links speak TLS 1.3. Both sides must say the same; neither ever falls
            back to the other.""",
        ),
    )
    cert: Path | None = field(
        default=None,
        metadata=described(
            "cert",
            "path",
            """A file with the server's certificate, and those that vouch for it, in PEM; read
            again by a reload. Without it the server makes one at each start, in memory, and
            nobody has to know it.""",
            role="server",
            default="one is made at each start",
        ),
    )
    key: Path | None = field(
        default=None,
        metadata=described(
            "key",
            "path",
            "The file with the private key of `cert`, in PEM, without a password.",
            role="server",
            default="none",
        ),
    )
    verify: bool | Path = field(
        default=False,
        metadata=described(
            "verify",
            "flag or path",
            """Whether the client, besides all else, wants a certificate with the server's name
            that a CA vouches for: one of the system's (`true`), or one in this file.""",
            role="client",
        ),
    )

    user: str = field(
        default="",
        metadata=described(
            "user",
            "user",
            """Whom the processes of the tunnels run as, if root starts the master; ports below
            1024 are open to them all the same. Their logs then lie in a folder of that name,
            beside the master's.""",
            default="whoever starts it",
        ),
    )
    run_as: tuple[int, int] | None = None
    """The numbers of that user and of his group, once they were looked up; None: as we are."""

    drain_seconds: float = field(
        default=DEFAULT_DRAIN_SECONDS,
        metadata=described(
            "drain",
            "seconds",
            "How long visitors that are there may go on after TERM.",
            low=0,
            high=3600,
        ),
    )
    budget_bytes: int | None = field(
        default=None,
        metadata=described(
            "budget",
            "integer",
            "The most that the buffers of one tunnel may hold on this side.",
            low=1 << 20,
            high=1 << 30,
            unit="bytes",
            default="a quarter of the memory divided by the tunnels, from 4 to 64 MiB",
        ),
    )
    """None: the master computes it."""
    merge_memory: bool = field(
        default=False,
        metadata=described(
            "merge_memory",
            "flag",
            """Let the kernel keep one copy of what is equal in the memory of a master and its
            workers: half the memory for many tunnels. Needs Linux 6.4, and `1` in
            `/sys/kernel/mm/ksm/run`. Somebody who sends traffic through one tunnel and times it
            very exactly could learn whether another worker holds the same page.""",
        ),
    )
    log_bytes: int = field(
        default=DEFAULT_LOG_BYTES,
        metadata=described(
            "log_bytes",
            "integer",
            "The size at which a log file is rotated.",
            low=4096,
            high=1 << 30,
            unit="bytes",
        ),
    )
    log_files: int = field(
        default=DEFAULT_LOG_FILES,
        metadata=described(
            "log_files",
            "integer",
            "Files kept of each log, the current one included.",
            low=1,
            high=100,
            unit="files",
        ),
    )
    log_format: LogFormat = field(
        default="text",
        metadata=described(
            "log_format",
            "choice",
            """How log lines look: for people, or one JSON object on each line. `--log-format`
            overrules it.""",
            choices=("text", "json"),
        ),
    )

    @property
    def certificate(self) -> tuple[Path, Path] | None:
        """Where the configured certificate and its key lie, if there is one."""
        return (self.cert, self.key) if self.cert is not None and self.key is not None else None

    @property
    def token_places(self) -> Iterator[TokenPlace]:
        """Wherever tokens are, those of the clients included."""
        yield self.token
        for client in self.clients:
            yield from client.tokens

    @property
    def log_settings(self) -> tuple[int, int, str]:
        """What a log is opened with."""
        return self.log_bytes, self.log_files, self.log_format


PORTS: Final = Key(
    name="ports",
    kind="ports",
    meaning='Further tunnels that have nothing but a public port: `"60001-60010"`, '
    '`"60001,60005"`, a number, or a list of such.',
    role="server",
    default="none",
)
"""Has no field: what it says becomes tunnels."""

TOP_SETTINGS: Final[tuple[Setting, ...]] = settings(Config)
TUNNEL_SETTINGS: Final[tuple[Setting, ...]] = settings(TunnelConfig)
