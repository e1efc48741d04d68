"""What a worker says to its master, as values. What it does not know is an error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

from tunneltcp.errors import ControlChannelError

__all__ = ["LinkChanged", "Ready", "Replace", "Resolve", "WorkerMessage", "parse_message"]

_MAX_TEXT: Final = 300
"""Characters of a reason that are kept."""


@dataclass(frozen=True, slots=True)
class Ready:
    """Its loop turns and it serves."""


@dataclass(frozen=True, slots=True)
class Replace:
    """It wants a successor (somebody sent it TERM); it serves on until then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkChanged:
    """The link to the other side changed."""

    state: Literal["up", "down", "doubted"]
    peer: str
    reason: str
    seconds: float | None
    """How long there had been no link before this one, or how long this one had lasted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolve:
    """It needs the addresses of a name."""

    host: str
    port: int


WorkerMessage = Ready | Replace | LinkChanged | Resolve


def parse_message(message: dict[str, Any]) -> WorkerMessage:
    """Turn a decoded message into a value.

    Raises:
        ControlChannelError: If no worker says such a thing.
    """
    match message:
        case {"type": "ready"}:
            return Ready()
        case {"type": "replace"}:
            return Replace()
        case {"type": "resolve", "host": str(host), "port": int(port)}:
            if 1 <= len(host) <= 253 and 0 <= port <= 65_535:
                return Resolve(host=host, port=port)
        case {"type": "link", "state": "up" | "down" | "doubted" as state}:
            return LinkChanged(
                state=state,
                peer=_text(message.get("peer")),
                reason=_text(message.get("reason")),
                seconds=_seconds(message.get("seconds")),
            )
    raise ControlChannelError("it said what no worker says")


def _text(value: object) -> str:
    return value[:_MAX_TEXT] if isinstance(value, str) else ""


def _seconds(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
