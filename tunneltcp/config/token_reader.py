"""Goes where a config says that its token is; for short-lived processes alone.

What is read here must not stay in a master or in a worker, nor in what they fork.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tunneltcp.config.load import config_token
from tunneltcp.config.token_files import (
    find_login,
    make_token,
    own_tokens,
    read_token_file,
    read_variable,
)
from tunneltcp.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tunneltcp.config.keys import RoleName
    from tunneltcp.config.model import Config

__all__ = ["TokenReader", "no_login"]


class TokenReader:
    """Reads the tokens of one master.

    Args:
        states: State folders; the first is this master's own.
        moved: Descriptors of what was taken out of the environment, by the variable's name.
        servers_here: For a client: returns the state folders of this machine's servers.
    """

    def __init__(
        self,
        role: RoleName,
        states: Sequence[Path],
        moved: Mapping[str, int],
        servers_here: Callable[[], Sequence[Path]] = tuple,
    ) -> None:
        self._role = role
        self._states = states
        self._servers_here = servers_here
        self.moved = moved

    def make_missing(self, config: Config) -> bool:
        """See to it that a server has a token of its own; return whether one was made.

        Raises:
            ConfigError: If it cannot be kept.
        """
        own = config.token.kind == "own" and self._role == "server"
        return own and make_token(self._states[0])

    def read(self, config: Config) -> list[str]:
        """Return the tokens that are good, the preferred one first.

        Raises:
            ConfigError: If there is none, or it cannot be read.
        """
        place = config.token
        match place.kind:
            case "none":
                return [""]
            case "config":
                return [config_token(Path(place.where))]
            case "file":
                return [read_token_file(Path(place.where))]
            case "variable":
                return [read_variable(place.where, self.moved)]
        if self._role == "server":
            return own_tokens(self._states[0])
        return [self._login(config.server)]

    def _login(self, server: str) -> str:
        """Return what was kept for a server; one on this machine has it in its own folder."""
        path = find_login(server, self._states)
        if path is not None:
            return read_token_file(path, follow=False)
        if _is_here(server):
            for state in self._servers_here():
                if tokens := own_tokens(state):
                    return tokens[0]
        raise ConfigError([no_login(server)])


def _is_here(server: str) -> bool:
    host = server.rstrip(".").lower()
    return host in ("localhost", "::1") or host.startswith("127.")


def no_login(server: str) -> str:
    """Say what a client does that has no token for its server."""
    return (
        f"there is no token for {server}: log in once with: tunneltcp login {server} "
        f'(on the server, "tunneltcp token" prints the token)'
    )
