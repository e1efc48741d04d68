"""From where a server's tunnel takes links and visitors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tunneltcp.advice import claim_trouble
from tunneltcp.net.address import format_address
from tunneltcp.net.networks import NEAR, Networks

if TYPE_CHECKING:
    from tunneltcp.control.context import AllowedNetworks

__all__ = ["FAR", "FOREIGN", "Doors", "barred_visitor"]

FAR: Final = claim_trouble("far")
FOREIGN: Final = claim_trouble("network")
"""Why no link is taken, for the log."""


class Doors:
    """Decides by address alone. An address is what ``accept`` gave, or ``host:port``.

    Args:
        near_only: Whether links come from this machine, unless ``allow`` names their network.
    """

    def __init__(self, networks: AllowedNetworks, *, near_only: bool) -> None:
        self._near_only = near_only
        self.change(networks)

    def change(self, networks: AllowedNetworks) -> None:
        """Go by these from now on."""
        allow = (*NEAR, *networks.allow) if self._near_only else networks.allow
        self._links = Networks(allow, networks.deny)
        self._visitors = Networks(networks.visitors_allow, networks.visitors_deny)
        self.bar_visitors = not self._visitors.are_all
        """Whether there is any visitor who may not come."""

    def admits_visitor(self, address: object) -> bool:
        """Say whether a visitor may come from there."""
        return self._visitors.admits(_host(address))

    def link_trouble(self, address: object) -> str:
        """Return why no link may come from there; empty if one may."""
        return "" if self._links.admits(_host(address)) else FAR if self._near_only else FOREIGN


def _host(address: object) -> str:
    if isinstance(address, tuple) and address:
        return str(address[0])
    return str(address).rpartition(":")[0].strip("[]")


def barred_visitor(address: object) -> str:
    """Say that a visitor was reset for where he came from."""
    host = _host(format_address(address))
    return f'a visitor from {host} was reset: "visitors_allow" and "visitors_deny" say so'
