"""Sources whose claims to be the link were wrong: they get their answers later.

Theory of operation
-------------------
Each failure adds ``FAILURE_SECONDS`` to what its source has to wait off; from
``ENFORCED_SECONDS`` on a REFUSED comes up to ``MAX_DELAY_SECONDS`` late. Nobody is ever locked
out: who holds the key is not asked where he comes from, and a right PROOF lifts what others
behind his address have gathered. A source is an IPv4 address or an IPv6 network of 64 bits,
which is what one customer has; those that no stranger on the Internet can have are never
counted. (The shape is that of OpenSSH's PerSourcePenalties; the token has 256 bits, so this is
not what keeps guesses from being right: it keeps guessing from being free.)
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import Final

__all__ = [
    "ENFORCED_SECONDS",
    "FAILURE_SECONDS",
    "MAX_DELAY_SECONDS",
    "MAX_PENALTY_SECONDS",
    "MAX_SOURCES",
    "Penalties",
    "source_of",
]

FAILURE_SECONDS: Final = 5.0
"""Added by each failure. A client with a wrong token dials with growing pauses, up to 30 s."""
ENFORCED_SECONDS: Final = 15.0
"""Below this nothing happens: a mistyped token is mended without waiting."""
MAX_PENALTY_SECONDS: Final = 600.0
"""Never more, so that an address that changes hands is soon clean."""
MAX_DELAY_SECONDS: Final = 2.0
"""An answer is no later than this: a client still waits for it (5 s for connect and handshake),
and says what is wrong."""
MAX_SOURCES: Final = 4096
"""Sources remembered, about 0.5 MB. Beyond, the one that failed longest ago is forgotten: who
has so many addresses is not delayed by this anyway."""

_PRIVATE: Final = tuple(
    map(
        ipaddress.ip_network,
        (
            "127.0.0.0/8",
            "10.0.0.0/8",
            "172.16.0.0/12",
            "192.168.0.0/16",
            "169.254.0.0/16",
            "100.64.0.0/10",  # carriers' own, and overlay networks
            "::1/128",
            "fc00::/7",
            "fe80::/10",
        ),
    )
)


@lru_cache(maxsize=64)
def source_of(host: str) -> bytes | None:
    """Return who is meant by the host of a peer's address; None: nobody to be counted.

    IPv4-mapped counts as IPv4.
    """
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if any(address in network for network in _PRIVATE if network.version == address.version):
        return None
    return address.packed if address.version == 4 else address.packed[:8]


class Penalties:
    """What each source has to wait off; ``now`` is any clock that only goes forward."""

    def __init__(self) -> None:
        self._until: dict[bytes, float] = {}
        """When each one is clean again; the one that failed last stands last."""

    def __len__(self) -> int:
        return len(self._until)

    def fail(self, address: object, now: float) -> float:
        """A claim of this peer was wrong; return for how long its answer has to wait."""
        source = _source(address)
        if source is None:
            return 0.0
        left = max(0.0, self._until.pop(source, now) - now)
        self._until[source] = now + min(left + FAILURE_SECONDS, MAX_PENALTY_SECONDS)
        if len(self._until) > MAX_SOURCES:
            del self._until[next(iter(self._until))]
        return min(left, MAX_DELAY_SECONDS) if left >= ENFORCED_SECONDS else 0.0

    def lift(self, address: object) -> None:
        """Somebody behind this peer's address has proven that he holds the key."""
        source = _source(address)
        if source is not None:
            self._until.pop(source, None)


def _source(address: object) -> bytes | None:
    return source_of(str(address[0])) if isinstance(address, tuple) and address else None
