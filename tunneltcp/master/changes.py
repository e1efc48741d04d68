"""What a new config changes: decided here, done by the master."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tunneltcp.control.context import AllowedNetworks

if TYPE_CHECKING:
    from tunneltcp.config.model import Config, TunnelConfig

__all__ = ["Changes", "compare"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """The difference between two configs, in tunnels; each is named by its public port."""

    added: tuple[TunnelConfig, ...]
    removed: tuple[int, ...]
    revoked: tuple[int, ...]
    """Of those that are removed: ports of which a client has lost its right too."""
    changed: tuple[TunnelConfig, ...]
    """Whose worker must be replaced to learn of it."""
    unchanged: tuple[TunnelConfig, ...]
    """Whose worker goes on; its name and its networks may be new ones."""
    rebind: bool
    """The public ports move to other addresses."""


def compare(old: Config, new: Config) -> Changes:
    """Say what has to be done to get from one config to the other.

    A tunnel is the same as long as its public port is. Whom the client dials, where ports are
    bound, how links are secured and who workers run as concerns all tunnels; other keys,
    certificates and networks are handed to workers that go on. Log sizes, the budget and the
    drain concern the master at once, and a worker when it is next replaced: they are no reason
    to replace it. How much memory and how many descriptors it may have is the master's to know.
    """
    before = {tunnel.remote_port: tunnel for tunnel in old.tunnels}
    after = {tunnel.remote_port: tunnel for tunnel in new.tunnels}
    everywhere = any(
        getattr(old, name) != getattr(new, name)
        for name in ("server", "bind", "auth", "tls", "verify", "user", "run_as")
    )
    rights = {(client.name, client.tokens) for client in new.clients}
    lost = [one for one in old.clients if (one.name, one.tokens) not in rights]
    removed = tuple(port for port in before if port not in after)
    kept = [tunnel for port, tunnel in after.items() if port in before]
    changed = [
        tunnel
        for tunnel in kept
        if everywhere or not _same_worker(before[tunnel.remote_port], tunnel)
    ]
    return Changes(
        added=tuple(tunnel for port, tunnel in after.items() if port not in before),
        removed=removed,
        revoked=tuple(port for port in removed if any(port in one.ports for one in lost)),
        changed=tuple(changed),
        unchanged=tuple(tunnel for tunnel in kept if tunnel not in changed),
        rebind=old.bind != new.bind,
    )


def _same_worker(old: TunnelConfig, new: TunnelConfig) -> bool:
    """Whether a worker of the one is right for the other, once it is told of networks."""
    told: dict[str, Any] = dict.fromkeys(AllowedNetworks.__dataclass_fields__, ())
    told |= {"name": "", "max_rss_bytes": None, "max_fds": None}
    return replace(old, **told) == replace(new, **told)
