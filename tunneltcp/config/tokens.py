"""Where a token comes from, and what is one; never a token itself.

A master and its workers hold no token (docs/SECURITY.md). What they know is its place, and a
short-lived child goes there (``token_files.py``).
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "MIN_TOKEN_CHARACTERS",
    "OWN_TOKEN",
    "TOKEN_VARIABLE",
    "TokenPlace",
    "new_token",
    "token_problem",
]

MIN_TOKEN_CHARACTERS: Final = 32
"""32 hexadecimal digits, the least that somebody makes by machine, are 128 bits."""

_MAX_TOKEN_CHARACTERS: Final = 1024
"""More is some other file."""

TOKEN_VARIABLE: Final = "TUNNELTCP_TOKEN"  # noqa: S105 - its name
"""The variable of the environment that may hold a token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPlace:
    """Where the token is."""

    kind: Literal["own", "config", "variable", "file", "none", "clients"]
    """own: of a server, in its state folder, made if there is none; of a client, where
    ``tunneltcp login`` kept it. none: there is to be none ("auth": "none"). clients: none is
    needed, since each port of the server is that of a client with a token of its own."""
    where: str = ""
    """Path of the file or of the config, name of the variable."""
    client: str = ""
    """In a config: whose token; empty for the one at the top."""
    index: int = 0
    """In a config: which of the client's tokens."""

    def beside(self, config: Path) -> TokenPlace:
        """Return it so that it is found from anywhere: paths are beside the config."""
        if self.kind == "config":
            return replace(self, where=str(config.absolute()))
        if self.kind == "file":
            return replace(self, where=str(config.absolute().parent / self.where))
        return self

    def __str__(self) -> str:
        """Say it to a person."""
        return {
            "own": "its own place, as by default",
            "config": f"the config {self.where}",
            "variable": f"the variable {self.where} of its environment",
            "file": f"the file {self.where}",
            "none": 'nowhere: "auth" is "none"',
            "clients": 'its "clients", one for each',
        }[self.kind]


OWN_TOKEN: Final = TokenPlace(kind="own")


def new_token() -> str:
    """Make a token of 256 bits that no program takes for an option."""
    return f"tt_{secrets.token_urlsafe(32)}"


def token_problem(text: str) -> str:
    """Return what is wrong with a token, never with it in the words; empty if nothing is."""
    token = text.strip()
    if not token:
        return "is empty"
    if len(token) < MIN_TOKEN_CHARACTERS:
        least = MIN_TOKEN_CHARACTERS
        return f"is shorter than {least} characters; make one with: tunneltcp token new"
    if len(token) > _MAX_TOKEN_CHARACTERS or "\n" in token or not token.isprintable():
        return "is not a token: one line of at most 1024 printable characters"
    return ""
