"""Goes where a config says that its token is; for short-lived processes alone.

What is read here must not stay in a master or in a worker, nor in what they fork.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tunneltcp.config.clients import Holder, equal_tokens
from tunneltcp.config.fields import shown
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

    from tunneltcp.config.clients import ClientConfig
    from tunneltcp.config.keys import RoleName
    from tunneltcp.config.model import Config
    from tunneltcp.config.tokens import TokenPlace

__all__ = ["Right", "TokenReader", "no_login"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Right:
    """Tokens, and what they are good for."""

    client: str
    """Name of the client whose they are; empty for those at the top."""
    tokens: Sequence[str] = field(repr=False)
    """The preferred one first."""
    ports: frozenset[int]


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

    def rights(self, config: Config) -> list[Right]:
        """Return all tokens and which of the config's ports each is good for.

        Raises:
            ConfigError: If one is missing, cannot be read, or is had by two that may not.
        """
        problems: list[str] = []
        found = [self._right(client, problems) for client in config.clients]
        named = frozenset().union(*(right.ports for right in found))
        rest = frozenset(tunnel.remote_port for tunnel in config.tunnels) - named
        try:
            found.append(Right(client="", tokens=self.read(config), ports=rest))
        except ConfigError as error:
            problems += error.problems
        shared = {"": True} | {client.name: client.shared for client in config.clients}
        problems += equal_tokens(
            Holder(name=right.client, shared=shared[right.client], token=token)
            for right in sorted(found, key=lambda right: right.client != "")  # the top first
            for token in right.tokens
        )
        if problems:
            raise ConfigError(problems)
        return found

    def _right(self, client: ClientConfig, problems: list[str]) -> Right:
        tokens = []
        for place in client.tokens:
            try:
                tokens.append(self.at(place))
            except ConfigError as error:
                problems += [f"client {shown(client.name)}: {text}" for text in error.problems]
        return Right(client=client.name, tokens=tokens, ports=frozenset(client.ports))

    def read(self, config: Config) -> list[str]:
        """Return the tokens at the top that are good, the preferred one first.

        Raises:
            ConfigError: If there is none, or it cannot be read.
        """
        place = config.token
        if place.kind == "none":
            return [""]
        if place.kind == "clients":
            return []
        if place.kind != "own":
            return [self.at(place)]
        if self._role == "server":
            return own_tokens(self._states[0])
        return [self._login(config.server)]

    def at(self, place: TokenPlace) -> str:
        """Return the token at a place that a config, or an option, names.

        Raises:
            ConfigError: If there is none, or it cannot be read.
        """
        match place.kind:
            case "config":
                return config_token(place)
            case "file":
                return read_token_file(Path(place.where))
            case "variable":
                return read_variable(place.where, self.moved)
        raise AssertionError(f"{place.kind}: a place that needs no reading")

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
