"""What is known of one key of the config file, as data.

The fields of :class:`Config` and :class:`TunnelConfig` carry these; ``load.py`` validates by
them, ``tunneltcp check`` and ``docs/CONFIG.md`` tell of them. So none of the three can say
something else than the others.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Key", "Kind", "RoleName", "Setting", "described", "settings"]

RoleName = Literal["server", "client"]
"""Which side a config is read for."""

Kind = Literal[
    "seconds",
    "integer",
    "size",
    "port",
    "host",
    "name",
    "user",
    "flag",
    "path",
    "flag or path",
    "choice",
    "rate",
    "addresses",
    "ports",
    "token",
    "tunnels",
    "clients",
    "networks",
]
"""How a value is read; ``fields.py`` has a method for each."""

_KEY: Final = "key"


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key as it stands in the file."""

    name: str
    kind: Kind
    meaning: str
    """For docs/CONFIG.md: whole sentences."""
    low: float = 0
    high: float = 0
    """Bounds of a number, both included."""
    unit: str = ""
    """Of a number: "bytes", "visitors"."""
    choices: tuple[str, ...] = ()
    """What a choice may be."""
    role: RoleName | None = None
    """Whose key it is; None: both have it."""
    required: RoleName | Literal["both"] | None = None
    """Who cannot do without."""
    for_all: bool = False
    """A key of a tunnel that may also stand at the top: there it is for all tunnels."""
    default: str = ""
    """The default in words, where a plain value does not say it."""

    def is_for(self, role: RoleName) -> bool:
        """Whether that side has this key."""
        return self.role in (None, role)

    def is_required(self, role: RoleName) -> bool:
        """Whether that side cannot do without."""
        return self.required in ("both", role)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A field of the model together with its key."""

    key: Key
    field: str
    """Name of the field."""
    default: Any
    """Of the field; None where there is none."""


def described(
    name: str,
    kind: Kind,
    meaning: str,
    **more: Any,  # noqa: ANN401 - the fields of Key
) -> Mapping[str, Key]:
    """Return the metadata of a field: its key."""
    return {_KEY: Key(name=name, kind=kind, meaning=" ".join(meaning.split()), **more)}


def settings(model: type) -> tuple[Setting, ...]:
    """Return the settings of a class of the model, in the order of its fields."""
    return tuple(
        Setting(
            key=field.metadata[_KEY],
            field=field.name,
            default=None if field.default is MISSING else field.default,
        )
        for field in fields(model)
        if _KEY in field.metadata
    )
