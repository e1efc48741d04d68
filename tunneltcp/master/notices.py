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
    "client of any tunnel; other machines cannot",
    Role.CLIENT: '"auth" is "none": whoever listens at the server\'s ports is believed',
}


def tell_of_token(state: Path) -> None:
    """Say that a token was made, and what to do with it."""
    logger.info(
        "made a token in {}; where the apps are, say once: tunneltcp login HOST "
        "(HOST: a name or address of this machine)",
        state,
    )


def warn_of_token(config: Config) -> None:
    """Say where the token should not lie, if it does."""
    if warning := place_warning(config.token):
        logger.warning("{}", warning)


def warn_of_auth(config: Config, role: Role) -> None:
    """Say at each start who gets in without a token, if anybody does."""
    if config.auth == "none":
        logger.warning("{}", _NO_AUTH[role])
