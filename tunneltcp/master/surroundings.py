"""What a tunnel finds around it in its master, and what its worker is born with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tunneltcp.control.context import AllowedNetworks
from tunneltcp.control.counters import Counter, LinkState
from tunneltcp.master.holders import PortHolders

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunneltcp.config.model import TunnelConfig
    from tunneltcp.control.context import WorkerContext
    from tunneltcp.master.children import Children
    from tunneltcp.master.helpers import Helpers, Lookups
    from tunneltcp.master.secrets import PortSecrets
    from tunneltcp.net.loop import Loop

__all__ = ["Surroundings", "WorkerFds", "allowed_networks"]


def allowed_networks(config: TunnelConfig) -> AllowedNetworks:
    """Return from where a tunnel takes links and visitors."""
    names = AllowedNetworks.__dataclass_fields__
    return AllowedNetworks(**{name: getattr(config, name) for name in names})


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerFds:
    """The descriptors one worker is born with."""

    listeners: tuple[int, ...]
    channel: int
    counters: int
    memory: int
    keys: int
    certificate: int


@dataclass(slots=True, kw_only=True)
class Surroundings:
    """What all tunnels of a master have in common; a new config changes some of it."""

    loop: Loop
    children: Children
    helpers: Helpers
    lookups: Lookups
    addresses: tuple[str, ...]
    """Where public ports are bound; empty on a client."""
    drain_seconds: float
    secrets: PortSecrets
    make_context: Callable[[TunnelConfig, WorkerFds], WorkerContext]
    fork_worker: Callable[[WorkerContext], int]
    """Makes a process of it and returns its pid; raises OSError if there can be none."""
    maps: list[memoryview]
    """All mappings of counters, for a child to let go of."""
    generation: int = 1
    """Which image of this process we are: each upgrade makes one more."""
    holders: PortHolders = field(init=False)

    def __post_init__(self) -> None:
        self.holders = PortHolders(self.loop, self.helpers)

    def others_up(self, counters: memoryview) -> bool:
        """Whether a tunnel but that of ``counters`` has its link: then the server is there."""
        pages = (page for page in self.maps if page is not counters)
        return any(page[Counter.LINK_STATE] != LinkState.DOWN for page in pages)
