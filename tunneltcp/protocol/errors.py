"""What can go wrong on a link, and the codes that say so on the wire."""

from __future__ import annotations

from enum import IntEnum

__all__ = [
    "ForgedMessageError",
    "GoawayCode",
    "LocalProtocolError",
    "ProtocolError",
    "RemoteProtocolError",
    "ResetCode",
    "TunnelError",
]


class TunnelError(Exception):
    """Root of all errors of this package; ``str()`` is one sentence for a person."""


class ProtocolError(TunnelError):
    """The rules of docs/PROTOCOL.md were broken."""


class LocalProtocolError(ProtocolError):
    """We called the protocol wrongly: a bug of ours, never caused by a peer."""


class RemoteProtocolError(ProtocolError):
    """The peer sent what the protocol forbids; the link it came on is over."""


class ForgedMessageError(RemoteProtocolError):
    """Its MAC was not made with the key, or not for this connection."""


class ResetCode(IntEnum):
    """Why a stream ended by RESET (PROTOCOL.md §7.3). Unknown codes mean ``CANCELLED``."""

    ANSWER = 0
    """The answer to a RESET; itself never answered."""
    CANCELLED = 1
    """The connection on that side was reset, or reading or writing it failed."""
    TARGET_REFUSED = 2
    """Nothing listens at the target."""
    TARGET_UNREACHABLE = 3
    """The target could not be reached in time."""
    STREAM_ERROR = 4
    """Offsets or limits of this stream cannot be true."""
    OVER_LIMIT = 5
    """No room for another stream: visitors, memory or descriptors are used up."""
    STOPPING = 6
    """That side is stopping and its drain time is over."""


class GoawayCode(IntEnum):
    """Why a side opens or takes no new streams (PROTOCOL.md §7.7)."""

    DRAINING = 0
    """An orderly stop: running streams may finish."""
    PROTOCOL_ERROR = 1
    """The peer broke the protocol; the link closes behind this frame."""
