"""What a new config changes: decided here, done by the master."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tunneltcp.config.model import Config, TunnelConfig

__all__ = ["Changes", "compare"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """The difference between two configs, in tunnels; each is named by its public port."""

    added: tuple[TunnelConfig, ...]
    removed: tuple[int, ...]
    changed: tuple[TunnelConfig, ...]
    """Whose worker must be replaced to learn of it."""
    unchanged: tuple[TunnelConfig, ...]
    """Whose worker goes on; its name may be a new one."""
    rebind: bool
    """The public ports move to other addresses."""


def compare(old: Config, new: Config) -> Changes:
    """Say what has to be done to get from one config to the other.

    A tunnel is the same as long as its public port is. Whom the client dials, where ports are
    bound, how links are secured and who workers run as concerns all tunnels; another
    certificate is handed to workers that go on. Log sizes, the budget and the drain concern
    the master at once, and a worker when it is next replaced: they are no reason to do it.
    """
    before = {tunnel.remote_port: tunnel for tunnel in old.tunnels}
    after = {tunnel.remote_port: tunnel for tunnel in new.tunnels}
    everywhere = any(
        getattr(old, name) != getattr(new, name)
        for name in ("server", "bind", "auth", "tls", "verify", "user", "run_as")
    )
    kept = [tunnel for port, tunnel in after.items() if port in before]
    changed = [
        tunnel
        for tunnel in kept
        if everywhere or not _same_worker(before[tunnel.remote_port], tunnel)
    ]
    return Changes(
        added=tuple(tunnel for port, tunnel in after.items() if port not in before),
        removed=tuple(port for port in before if port not in after),
        changed=tuple(changed),
        unchanged=tuple(tunnel for tunnel in kept if tunnel not in changed),
        rebind=old.bind != new.bind,
    )


def _same_worker(old: TunnelConfig, new: TunnelConfig) -> bool:
    """Whether a worker of the one is right for the other: all but the name is equal."""
    return replace(old, name="") == replace(new, name="")
