"""What a worker says to its master, as values. What it does not know is an error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

from tunneltcp.advice import Trouble
from tunneltcp.errors import ControlChannelError

__all__ = [
    "Answer",
    "KeeperMade",
    "LinkChanged",
    "Ready",
    "Replace",
    "Resolve",
    "StoodStill",
    "TargetChanged",
    "TookOver",
    "Warned",
    "WorkerMessage",
    "parse_message",
]

_MAX_TEXT: Final = 400
"""Characters of a reason that are kept; our own are shorter, with a long name in them too."""

_TROUBLES: Final = tuple(trouble.value for trouble in Trouble)


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
    client: str = ""
    """Server: name of the client whose it is, if it has one."""
    trouble: Trouble | None = None
    """Why an attempt to have one failed; None if none was made."""
    detail: str = ""
    """More about the trouble, as for ``advice.link_trouble``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetChanged:
    """The target could not be reached, or can be again."""

    reason: str
    """A sentence; empty if all is well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Warned:
    """It logged something that a person should see."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolve:
    """It needs the addresses of a name."""

    host: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What it says to a question of ours."""

    number: int
    body: dict[str, Any]
    """As it goes on to whoever asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeeperMade:
    """It has a keeper now."""

    pid: int
    """0: it could not make one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TookOver:
    """It has what the worker before it carried."""

    streams: int
    reset: int
    """Those that it could not go on with."""
    poisoned: bool = False
    """Whether one of those is said to have crashed the workers before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoodStill:
    """What it took over goes on."""

    seconds: float
    """Since the worker before it died."""


WorkerMessage = (
    Answer
    | KeeperMade
    | LinkChanged
    | Ready
    | Replace
    | Resolve
    | StoodStill
    | TargetChanged
    | TookOver
    | Warned
)


def parse_message(message: dict[str, Any]) -> WorkerMessage:
    """Turn a decoded message into a value.

    Raises:
        ControlChannelError: If no worker says such a thing.
    """
    found: WorkerMessage | None = _parse_succession(message)
    match message:
        case {"type": "ready"}:
            found = Ready()
        case {"type": "replace"}:
            found = Replace()
        case {"type": "resolve", "host": str(host), "port": int(port)}:
            if 1 <= len(host) <= 253 and 0 <= port <= 65_535:
                found = Resolve(host=host, port=port)
        case {"type": "answer", "number": int(number), "body": dict(body)}:
            found = Answer(number=number, body=body)
        case {"type": "link", "state": "up" | "down" | "doubted" as state}:
            found = LinkChanged(
                state=state,
                peer=_text(message.get("peer")),
                reason=_text(message.get("reason")),
                seconds=_seconds(message.get("seconds")),
                client=_text(message.get("client")),
                trouble=_trouble(message.get("trouble")),
                detail=_text(message.get("detail")),
            )
        case {"type": "target", "reason": str(reason)}:
            found = TargetChanged(reason=_text(reason))
        case {"type": "warning", "text": str(text)}:
            found = Warned(text=_text(text))
    if found is None:
        raise ControlChannelError("it said what no worker says")
    return found


def _parse_succession(message: dict[str, Any]) -> KeeperMade | TookOver | StoodStill | None:
    match message:
        case {"type": "keeper", "pid": int(pid)}:
            return KeeperMade(pid=pid)
        case {"type": "took_over", "streams": int(streams), "reset": int(reset)}:
            poisoned = message.get("poisoned") is True
            return TookOver(streams=streams, reset=reset, poisoned=poisoned)
        case {"type": "stood_still", "seconds": float(seconds)}:
            return StoodStill(seconds=seconds)
    return None


def _text(value: object) -> str:
    return value[:_MAX_TEXT] if isinstance(value, str) else ""


def _trouble(value: object) -> Trouble | None:
    return Trouble(value) if value in _TROUBLES else None


def _seconds(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
