"""What a worker may take of the machine: who takes more is replaced, and it is said why.

Theory of operation
-------------------
A worker that leaks is better ended while there is memory for the next one than by the kernel,
which may choose another process. What counts is private memory, not the rings, which its
successor has too, and the descriptors that the worker itself has counted. The defaults are
some way above what an honest worker can need, so that nobody has to think of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tunneltcp.control.counters import Counter
from tunneltcp.master.process import Input, ProcessState

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunneltcp.config.model import TunnelConfig
    from tunneltcp.master.tunnel import Tunnel

__all__ = ["Budgets", "max_fds", "max_rss"]

_BASE_BYTES: Final = 64 << 20
"""An idle worker has 21 MB that the kernel counts as its own, most of it the master's too."""
_VISITOR_BYTES: Final = 16 << 10
"""A visitor takes 2 KB without what waits for his target."""
_BASE_FDS: Final = 8192
"""Connections that have not spoken yet are at most 4,096 (``workers/arrivals.py``)."""


def max_rss(config: TunnelConfig, ring_bytes: int) -> int:
    """Return the private bytes that the worker of a tunnel may have.

    What targets do not take yet is at most ``ring_bytes``, and a buffer that grows may for a
    moment be there twice.
    """
    computed = _BASE_BYTES + config.max_visitors * _VISITOR_BYTES + 2 * ring_bytes
    return config.max_rss_bytes or computed


def max_fds(config: TunnelConfig) -> int:
    """Return how many descriptors the worker of a tunnel may have open."""
    return config.max_fds or _BASE_FDS + 2 * config.max_visitors


class Budgets:
    """Has those replaced that take too much.

    Args:
        ring_bytes: Says how much the rings of one tunnel may hold.
    """

    def __init__(self, ring_bytes: Callable[[], int]) -> None:
        self._ring_bytes = ring_bytes

    def check(self, tunnel: Tunnel) -> None:
        """Look at one worker, of which there is a fresh sample."""
        if tunnel.life.state is not ProcessState.RUNNING:
            return
        excess = self._excess(tunnel)
        if excess:
            tunnel.blame(excess)
            tunnel.feed(Input.EXCEED)

    def _excess(self, tunnel: Tunnel) -> str:
        """Say what it takes too much of; empty if nothing."""
        sample = tunnel.sampler.sample if tunnel.sampler is not None else None
        memory = max_rss(tunnel.config, self._ring_bytes())
        if sample is not None and sample.private > memory:
            used = f"{sample.private / 1e6:.0f} MB"
            return f"took more memory than its max_rss of {memory / 1e6:.0f} MB: {used}"
        fds = max_fds(tunnel.config)
        count = tunnel.counters[Counter.DESCRIPTORS]
        if count > fds:
            return f"had more descriptors than its max_fds of {fds}: {count}"
        return ""
