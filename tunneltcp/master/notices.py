"""What a master says in its log about who can get in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from loguru import logger

from tunneltcp.config.token_files import place_warning
from tunneltcp.control.context import Role

if TYPE_CHECKING:
    from pathlib import Path

    from tunneltcp.config.model import Config

__all__ = ["tell_of_token", "warn_of_auth", "warn_of_token"]

_NO_AUTH: Final = {
    Role.SERVER: '"auth" is "none": whoever can run a program on this machine can be the '
    'client of any tunnel; other machines cannot, unless "allow" names their network',
    Role.CLIENT: '"auth" is "none": whoever listens at the server\'s ports is believed',
}

_MAX_SHOWN: Final = 10
"""Networks that are named in a line of the log."""


def tell_of_token(state: Path) -> None:
    """Say that a token was made, and what to do with it."""
    logger.info(
        "made a token in {}; where the apps are, say once: tunneltcp login HOST "
        "(HOST: a name or address of this machine)",
        state,
    )


def warn_of_token(config: Config) -> None:
    """Say where tokens should not lie, if they do."""
    warnings = dict.fromkeys(place_warning(place) for place in config.token_places)
    for warning in filter(None, warnings):
        logger.warning("{}", warning)


def warn_of_auth(config: Config, role: Role) -> None:
    """Say at each start who gets in without a token, if anybody does."""
    if config.auth == "none":
        logger.warning("{}", _NO_AUTH[role])
        allowed = sorted({network for tunnel in config.tunnels for network in tunnel.allow})
        if allowed:
            where = ", ".join(allowed[:_MAX_SHOWN]) + (" ..." if allowed[_MAX_SHOWN:] else "")
            logger.warning('and so can whoever is in {}: "allow" says so', where)
