"""How far an upgrade is: kept across it, and what its status says."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from tunneltcp.config.plain import known_fields

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "CANARY",
    "CHECKING",
    "DONE",
    "FAILED",
    "HANDING_OVER",
    "REFUSED",
    "REPLACING",
    "Progress",
]

CHECKING: Final = "checking"
"""The new code runs beside us, to see whether it could take over."""
HANDING_OVER: Final = "handing over"
"""It can: we wait for a quiet moment, then it runs in our place."""
REPLACING: Final = "replacing"
"""It has taken over, and replaces the workers one after the other."""
CANARY: Final = "canary"
"""It has taken over, and the one worker that was to be replaced carries."""
DONE: Final = "done"
"""All workers run it."""
REFUSED: Final = "refused"
"""It cannot take over: nothing was changed."""
FAILED: Final = "failed"
"""It has taken over; a worker that it replaced does not carry, and the rest was left alone."""


@dataclass(slots=True, kw_only=True)
class Progress:
    """The last upgrade of a master."""

    number: int = 0
    """Counted from 1; 0: there was none."""
    state: str = ""
    origin: str = ""
    """Version of the code before."""
    version: str = ""
    """Version of the new code; empty until that has said so."""
    canary: int | None = None
    """The public port of the one tunnel whose worker is to be replaced; None: all."""
    reason: str = ""
    """Why it was refused or failed."""
    replaced: list[int] = field(default_factory=list)
    """Public ports whose workers were replaced."""

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Progress:
        """Return what another version wrote by ``asdict``."""
        return cls(**known_fields(cls, values))

    @property
    def is_under_way(self) -> bool:
        """Whether it goes on by itself."""
        return self.state in (CHECKING, HANDING_OVER, REPLACING)

    def end(self, state: str, reason: str = "") -> None:
        """Note how it ended."""
        self.state, self.reason = state, reason

    def status(self, left: list[int]) -> dict[str, Any] | None:
        """Return it for people; ``left``: ports whose workers run older code."""
        if not self.number:
            return None
        values = asdict(self)
        return {"from": values.pop("origin"), "to": values.pop("version") or None} | {
            **values,
            "reason": self.reason or None,
            "left": left,
        }
