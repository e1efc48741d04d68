"""Who holds the ports that are busy: one look at the table of sockets serves all who ask.

A look reads what every process of this machine has open, 20 ms and more. With a port for each
tunnel, each asking again every few seconds, that would be half a core.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from tunneltcp.master.helpers import Helpers
    from tunneltcp.net.loop import Loop

__all__ = ["LOOK_SECONDS", "PortHolders", "port_holders"]

LOOK_SECONDS: Final = 5.0
"""At least so long from one look to the next: as often as a tunnel tries its port again."""

_GATHER_SECONDS: Final = 0.05
"""How long the first one waits for others: those of one config ask together."""

_MAX_PORTS: Final = 200
"""In one look: its answer has some hundred bytes for each, and a bound (``spawn.py``)."""

_RESERVED: Final = Path("/proc/sys/net/ipv4/ip_local_reserved_ports")
"""Ports that the kernel gives to no outgoing connection."""

Holder = dict[str, Any]
"""What ``advice.port_trouble`` wants to know of a port."""


class PortHolders:
    """Answers tunnels whose port is busy."""

    def __init__(self, loop: Loop, helpers: Helpers) -> None:
        self._loop = loop
        self._helpers = helpers
        self._asking: dict[int, Callable[[Holder | None], None]] = {}
        self._not_before = 0.0
        self._is_at_it = False
        """A look is planned, or under way: there is one at a time."""

    def ask(self, port: int, answered: Callable[[Holder | None], None]) -> None:
        """Call ``answered`` with what the next look finds, once; None if that fails.

        Who asks for the same port again before that takes the place of the first.
        """
        self._asking[port] = answered
        self._plan()

    def _plan(self) -> None:
        if self._asking and not self._is_at_it:
            self._is_at_it = True
            when = max(self._not_before, self._loop.now + _GATHER_SECONDS)
            self._loop.call_at(when, self._look)

    def _look(self) -> None:
        self._not_before = self._loop.now + LOOK_SECONDS
        ports = list(self._asking)[:_MAX_PORTS]
        asking = [(str(port), self._asking.pop(port)) for port in ports]
        self._helpers.run(lambda: port_holders(ports), partial(self._answer, asking))

    def _answer(
        self,
        asking: list[tuple[str, Callable[[Holder | None], None]]],
        found: dict[str, Any] | None,
    ) -> None:
        self._is_at_it = False
        self._plan()
        for port, answered in asking:
            answered(found["ports"][port] | {"reserved": found["reserved"]} if found else None)


def port_holders(ports: Collection[int]) -> dict[str, Any]:
    """Return who holds these local TCP ports, as far as we may know. Blocks: for a helper."""
    reserved = ""
    with suppress(OSError):
        reserved = _RESERVED.read_text().strip()
    found: dict[str, Holder] = {str(port): {"holder": "", "listens": False} for port in ports}
    _find_holders(found)
    return {"reserved": reserved, "ports": found}


def _find_holders(found: dict[str, Holder]) -> None:
    import psutil  # the child has it from the monitor

    for connection in psutil.net_connections("tcp"):
        if not connection.laddr or connection.status == psutil.CONN_TIME_WAIT:
            continue  # the latter stands in no listener's way
        holder = found.get(str(connection.laddr.port))
        if holder is None or holder["listens"]:
            continue
        who = _process_name(connection.pid)
        if connection.status == psutil.CONN_LISTEN:
            holder["holder"], holder["listens"] = f"{who} listens on it", True
        elif connection.raddr:
            there = f"{connection.raddr.ip} port {connection.raddr.port}"
            holder["holder"] = f"an outgoing connection of {who} to {there} holds it"
        else:
            holder["holder"] = holder["holder"] or f"{who} holds it"


def _process_name(pid: int | None) -> str:
    import psutil

    if pid is None:
        return "a process we may not see"
    with suppress(psutil.Error):
        return f"{psutil.Process(pid).name()[:40]} (process {pid})"
    return f"process {pid}"
