"""What stays the same of a master while its process lives, whatever code runs in it."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tunneltcp.config.plain import known_fields
from tunneltcp.master.report import stamp

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Identity"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """One run of a master."""

    since: str = field(default_factory=stamp)
    """When it started; RFC 3339."""
    host_id: str = ""
    """Client: which machine this is."""
    run_id: str = field(default_factory=lambda: secrets.token_hex(16))
    """Random: a server keeps a session for a client of the same run."""
    generation: int = 1
    """Which image of this process we are: each upgrade makes one more."""

    @classmethod
    def of_the_next(cls, before: Mapping[str, Any]) -> Identity:
        """Return that of the image after the one whose values these are."""
        return cls(**known_fields(cls, before) | {"generation": before["generation"] + 1})
