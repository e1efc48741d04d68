"""What a tunnel has in the master, and what is known of it.

It outlives workers, and, by an upgrade, the code of the master itself: then all of it is
written down by one version and taken over by the next (``handover.py``).
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from tunneltcp.config.plain import config_to_plain
from tunneltcp.master.keepers import Keepers
from tunneltcp.master.listeners import Listeners
from tunneltcp.master.pages import Pages
from tunneltcp.master.process import ProcessLife, ProcessState
from tunneltcp.master.report import LastExit, Reporter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tunneltcp.config.model import TunnelConfig
    from tunneltcp.master.handover import Descriptors
    from tunneltcp.master.monitor import Sampler
    from tunneltcp.master.surroundings import Surroundings

__all__ = ["TunnelState"]

_HANDED: Final = (
    "pid", "version", "generation", "reason", "link_peer", "link_client", "is_stopped",
    "is_removed", "has_predecessor", "_started_at", "_kill_reason", "_closing", "_wants_to_go",
)  # fmt: skip
"""Plain values that go on in the next version of the master."""


class TunnelState:
    """The state of one tunnel.

    Args:
        keeper_lost: Called when the keeper of the living worker died.
        before: What :meth:`hand_over` of the version before us returned; None: it is new.

    Raises:
        OSError: If the kernel has no memory to give.
    """

    def __init__(
        self,
        config: TunnelConfig,
        around: Surroundings,
        keeper_lost: Callable[[], None],
        before: Mapping[str, Any] | None = None,
    ) -> None:
        self.config = config
        self.life = ProcessLife(drain_seconds=around.drain_seconds)
        self.pid: int | None = None
        self.version: str | None = None
        """Of the code that the worker runs."""
        self.generation = 0
        """Which of our images has forked it: see :class:`Surroundings`."""
        self.reason = ""
        """Why it does not run; empty if it does."""
        self.last_exit: LastExit | None = None
        self.link_peer = ""
        self.link_client = ""
        """Name of the client that has the link, if it has one."""
        self.sampler: Sampler | None = None
        self.is_stopped = False
        """A person has stopped it: it stays so until a person starts it."""
        self.is_removed = False
        """The config does not name it any more: it goes when its visitors have gone."""
        self.has_predecessor = False
        """A removed tunnel still has the port: two workers of one port never run."""
        self._around = around
        self.report = Reporter(
            config.remote_port, around.loop, lambda: around.others_up(self.counters)
        )
        self._listeners = Listeners(config.remote_port, around.addresses)
        pages = before["pages"] if before is not None else None
        self._pages = Pages(config.remote_port, around.maps, pages)
        self.counters = self._pages.counters
        """The page of counters, readable at any time."""
        self.keepers = Keepers(around.children, keeper_lost)
        """What holds the worker's sockets when it dies."""
        self._started_at = 0.0
        self._kill_reason = ""
        self._closing = False
        self._wants_to_go = False
        if before is not None:
            self._go_on(before)

    def hand_over(self, fds: Descriptors) -> dict[str, Any]:
        """Return what the next version of the master goes on with."""
        return {name: getattr(self, name) for name in _HANDED} | {
            "config": config_to_plain(self.config),
            "pages": self._pages.hand_over(fds),
            "listeners": self._listeners.hand_over(fds),
            "keepers": self.keepers.hand_over(fds),
            "life": self.life.hand_over(),
            "report": self.report.hand_over(),
            "last_exit": asdict(self.last_exit) if self.last_exit else None,
        }

    def _go_on(self, before: Mapping[str, Any]) -> None:
        for name in _HANDED:
            setattr(self, name, before[name])
        self.last_exit = LastExit.from_plain(before["last_exit"])
        self._listeners.go_on(before["listeners"])
        self.life.go_on(before["life"])
        self.report.go_on(before["report"])
        self.keepers.go_on(before["keepers"])

    @property
    def is_gone(self) -> bool:
        """Whether it is stopped and nothing of it runs."""
        return self.life.state is ProcessState.STOPPED and self.pid is None

    @property
    def is_outdated(self) -> bool:
        """Whether its worker runs what was there before the last upgrade."""
        return self.pid is not None and self.generation < self._around.generation

    @property
    def trouble(self) -> str:
        """What keeps visitors from their target although the worker runs; empty if nothing."""
        return self.report.trouble

    def take_settings(self) -> None:
        """Learn what a new config says for all tunnels; a port that is bound stays there."""
        self.life.take_drain(self._around.drain_seconds, self._around.loop.now)
        if not self._listeners.fds:
            self._listeners.addresses = self._around.addresses
