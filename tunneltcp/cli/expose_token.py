"""The token of an ``expose``: where it is, and the keys that follow from it.

On Linux a short-lived child derives the keys, as for a master, so that the token never is in
the process that talks to strangers. Elsewhere this process reads it.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunneltcp.config.model import Config, TunnelConfig
from tunneltcp.config.state import state_base
from tunneltcp.config.token_files import find_login
from tunneltcp.config.token_reader import TokenReader
from tunneltcp.config.tokens import TOKEN_VARIABLE, TokenPlace
from tunneltcp.errors import ConfigError
from tunneltcp.protocol.preface import port_key

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["FoundToken", "find_token"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundToken:
    """Where the token is; never the token."""

    server: str
    place: TokenPlace
    reader: TokenReader
    moved: Mapping[str, int]

    def keys(self, port: int) -> tuple[bytes, ...]:
        """Return the keys of a port.

        Raises:
            ConfigError: If there is no token.
        """
        config = Config(
            tunnels=(TunnelConfig(remote_port=port),),
            server=self.server,
            token=self.place,
            tls=False,  # no certificate: a client shows none
        )
        if sys.platform != "linux":
            return tuple(port_key(token, port) for token in self.reader.read(config))
        else:  # noqa: RET505 - so that a type checker knows what is of which system
            from tunneltcp.control.context import Role
            from tunneltcp.control.keys import read_keys
            from tunneltcp.master.secrets import PortSecrets

            secrets = PortSecrets(Role.CLIENT, port_key, self.reader)
            try:
                secrets.make(config)
                return tuple(read_keys(secrets.keys_fd(port)))
            finally:
                secrets.close()

    def setting(self) -> dict[str, Any]:
        """Return what a config says to find it there."""
        match self.place.kind:
            case "none":
                return {"auth": "none"}
            case "file":
                return {"token": {"file": self.place.where}}
        return {}

    def environment(self) -> dict[str, str]:
        """Return what a master that we start finds in its environment, to have it too."""
        if not self.moved:
            return {}
        from tunneltcp.cli.environment import as_variable

        return as_variable(self.moved)


def find_token(
    server: str, auth: str, token_file: Path | None, state_dir: Path | None
) -> FoundToken:
    """Return where the token for a server is.

    Raises:
        ConfigError: If one is given although there is to be none.
        OSError: If a token cannot be taken out of the environment.
    """
    secrets = _take_variable()
    place = TokenPlace(kind="own")
    if token_file is not None:
        place = TokenPlace(kind="file", where=str(token_file.absolute()))
    elif TOKEN_VARIABLE in secrets or TOKEN_VARIABLE in os.environ:
        place = TokenPlace(kind="variable", where=TOKEN_VARIABLE)
    if auth == "none":
        if place.kind != "own":
            raise ConfigError([f"there is a token in {place}, and --auth is none"])
        place = TokenPlace(kind="none")
    folders: tuple[Path, ...] = () if state_dir is None else (state_dir,)
    with suppress(ConfigError):  # a user without a home may say where the token is
        folders = (*folders, state_base())
    if place.kind == "own" and (path := find_login(server, folders)) is not None:
        place = TokenPlace(kind="file", where=str(path))
    reader = TokenReader("client", folders, secrets, _servers_here)
    return FoundToken(server=server, place=place, reader=reader, moved=secrets)


def _take_variable() -> dict[str, int]:
    if sys.platform == "linux":
        from tunneltcp.cli.environment import move_out, moved

        secrets = moved()
        move_out([TOKEN_VARIABLE], secrets)
        return secrets
    else:  # noqa: RET505 - as above
        return {}


def _servers_here() -> list[Path]:
    if sys.platform == "linux":
        from tunneltcp.cli.servers_here import servers_here

        return servers_here()
    else:  # noqa: RET505 - as above
        return []
