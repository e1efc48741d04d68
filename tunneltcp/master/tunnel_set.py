"""All tunnels of a master: who is there, who comes and goes by a new config, who is stopped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loguru import logger

from tunneltcp.master.process import Input
from tunneltcp.master.surroundings import allowed_networks
from tunneltcp.master.tunnel import Tunnel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tunneltcp.config.model import TunnelConfig
    from tunneltcp.master.changes import Changes
    from tunneltcp.master.handover import Descriptors
    from tunneltcp.master.stopped import StoppedPorts
    from tunneltcp.master.surroundings import Surroundings

__all__ = ["TunnelSet"]


class TunnelSet:
    """Keeps ``tunnels``, a list that others read."""

    def __init__(
        self, tunnels: list[Tunnel], around: Surroundings, stopped: StoppedPorts
    ) -> None:
        self.around = around
        self._tunnels = tunnels
        self._stopped = stopped
        self.unstarted: list[Tunnel] = []
        """Those that run as soon as it is their turn; the last one is the next."""

    def make(self, configs: Sequence[TunnelConfig]) -> None:
        """Make the first ones and have their ports; who was stopped before stays so.

        Raises:
            OSError: If the kernel has no memory for them.
        """
        for config in configs:
            self._tunnels.append(Tunnel(config, self.around))
        for tunnel in self._tunnels:
            if tunnel.config.remote_port in self._stopped.ports:
                tunnel.stop()
            tunnel.bind()  # all ports first: nobody waits for somebody else's worker

    def hand_over(self, fds: Descriptors) -> list[dict[str, Any]]:
        """Return what the next version of the master goes on with."""
        waiting = {id(tunnel): turn for turn, tunnel in enumerate(self.unstarted)}
        return [
            tunnel.hand_over(fds) | {"turn": waiting.get(id(tunnel), -1)}
            for tunnel in self._tunnels
        ]

    def go_on(self, before: Sequence[Mapping[str, Any]]) -> None:
        """Have all tunnels that the version before us had, as they were."""
        turns = {}
        for values in before:
            tunnel = Tunnel.taken_over(values, self.around)
            self._tunnels.append(tunnel)
            if values["turn"] >= 0:
                turns[values["turn"]] = tunnel
        self.unstarted = [turns[turn] for turn in sorted(turns)]

    def make_new(self, configs: Sequence[TunnelConfig]) -> list[Tunnel]:
        """Make those that :meth:`apply` is to begin with: all of them, or none.

        Raises:
            OSError: If the kernel has no memory for them.
        """
        made: list[Tunnel] = []
        try:
            made.extend(Tunnel(config, self.around) for config in configs)
        except OSError:
            for tunnel in made:
                tunnel.close()
            raise
        return made

    def find(self, port: int) -> Tunnel | None:
        """Return the tunnel that has a public port now."""
        for tunnel in self._tunnels:
            if tunnel.config.remote_port == port and not tunnel.is_removed:
                return tunnel
        return None

    def stop(self, tunnel: Tunnel) -> str:
        """Stop a tunnel until somebody starts it; return what is not as it should be."""
        tunnel.stop()
        return self._keep_stopped()

    def start(self, tunnel: Tunnel) -> str:
        """Start a stopped tunnel; return what is not as it should be."""
        tunnel.start()
        return self._keep_stopped()

    def _keep_stopped(self) -> str:
        there = [one for one in self._tunnels if not one.is_removed]
        stopped = {one.config.remote_port for one in there if one.is_stopped}
        if stopped == self._stopped.ports:
            return ""
        try:
            self._stopped.keep(stopped)
        except OSError as error:
            reason = (error.strerror or "?").lower()
            logger.warning("cannot keep which tunnels are stopped: {}", reason)
            return f"done, but a restart of the master will forget it: {reason}"
        return ""

    def apply(self, changes: Changes, added: Sequence[Tunnel]) -> None:
        """Act on the difference between two configs; touch nothing else."""
        for port in changes.removed:
            tunnel = self.find(port)
            if tunnel is not None:
                tunnel.remove()
            if tunnel is not None and port in changes.revoked:
                tunnel.feed(Input.STOP_NOW)
        for config in changes.changed:
            tunnel = self.find(config.remote_port)
            if tunnel is not None:
                tunnel.change(config, rebind=changes.rebind)
        for config in changes.unchanged:
            tunnel = self.find(config.remote_port)
            if tunnel is not None:
                before, tunnel.config = tunnel.config, config
                if allowed_networks(before) != allowed_networks(config):
                    tunnel.give_networks()
        for tunnel in added:
            self._add(tunnel)
        self._keep_stopped()

    def _add(self, tunnel: Tunnel) -> None:
        """Begin with a new tunnel, or wait for the end of the one that had its port."""
        tunnel.take_settings()  # it was made before the new config was taken
        port = tunnel.config.remote_port
        before = [one for one in self._tunnels if one.config.remote_port == port]
        self._tunnels.append(tunnel)
        if before:  # two workers of one port would write into the same files
            tunnel.has_predecessor = True
            for one in before:
                one.feed(Input.STOP_NOW)
        else:
            tunnel.bind()
            self.unstarted.insert(0, tunnel)

    def begin(self, tunnel: Tunnel) -> None:
        """Run it for the first time, unless a person or a new config was quicker."""
        if tunnel.is_stopped and not tunnel.is_removed:
            tunnel.bind()
        elif not tunnel.is_removed:
            tunnel.feed(Input.START)

    def drop_removed(self, *, ending: bool) -> None:
        """Let go of those that are no longer in the config and have ended.

        Those that wait for their ports begin, unless everything is ``ending``.
        """
        gone = [one for one in self._tunnels if one.is_removed and one.is_gone]
        for tunnel in gone:
            tunnel.close()
            self._tunnels.remove(tunnel)
        if gone and not ending:
            self._begin_successors()

    def _begin_successors(self) -> None:
        """Begin with those whose predecessors have all gone."""
        ports = [one.config.remote_port for one in self._tunnels]
        for tunnel in self._tunnels:
            if tunnel.has_predecessor and ports.count(tunnel.config.remote_port) == 1:
                tunnel.has_predecessor = False
                self.begin(tunnel)
