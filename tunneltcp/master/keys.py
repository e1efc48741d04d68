"""The keys of all ports, in memory that the master never reads.

Theory of operation
-------------------
A short-lived child goes where the tokens are, derives the keys of each port, and writes them
into that port's memfd, which is then sealed for ever. The master keeps the descriptors: a
worker is born with the one of its own port, and so is its successor, at once and without a
further process. When the tokens change there are new memfds, and each worker that runs is
given the one of its port over its channel (SCM_RIGHTS). So no token is ever in the master or
in a worker, nor is there any way from a worker to another port's keys.
"""

from __future__ import annotations

import fcntl
import os
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from tunneltcp.control.keys import KEY_BYTES, MAX_KEYS
from tunneltcp.errors import ConfigError
from tunneltcp.master.spawn import run_helper

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tunneltcp.config.model import Config
    from tunneltcp.config.token_reader import TokenReader
    from tunneltcp.master.helpers import Helpers

    Derive = Callable[[str, int], bytes]

__all__ = ["PortKeys"]

_SECONDS: Final = 10
"""For reading some small files; a network file system may be slow."""


class PortKeys:
    """Has one memfd for each port; all are replaced, or none is.

    Args:
        derive: Returns the key of a token and a port.
        reader: Goes for the tokens, in a child.
    """

    def __init__(self, derive: Derive, reader: TokenReader) -> None:
        self._derive = derive
        self._reader = reader
        self._fds: dict[int, int] = {}

    def fd(self, port: int) -> int:
        """Return the descriptor of a port's keys; -1 if there are none."""
        return self._fds.get(port, -1)

    def make(self, config: Config) -> bool:
        """Have the keys for a config, and wait; return whether a token was made for it.

        Raises:
            ConfigError: If there is no token.
            OSError: If the kernel has no memory or process to give.
        """
        fds = self._fresh(config)
        keep = (*fds.values(), *self._reader.moved.values())
        try:
            answer = run_helper(partial(self._fill, fds, config), _SECONDS, keep)
            made = self._take(fds, answer)
        except BaseException:
            _close_all(fds)
            raise
        return made

    def renew(
        self, helpers: Helpers, config: Config, done: Callable[[ConfigError | None], None]
    ) -> None:
        """Have the keys for a config; call ``done`` later with what is wrong, if anything.

        Raises:
            OSError: If the kernel has no memory to give.
        """
        fds = self._fresh(config)

        def finish(answer: Any) -> None:  # noqa: ANN401 - an answer from another process
            try:
                self._take(fds, answer)
            except ConfigError as error:
                _close_all(fds)
                done(error)
            else:
                done(None)

        keep = (*fds.values(), *self._reader.moved.values())
        helpers.run(partial(self._fill, fds, config), finish, keep=keep)

    def close(self) -> None:
        """Let go of all of them."""
        _close_all(self._fds)
        self._fds = {}

    def _fresh(self, config: Config) -> dict[int, int]:
        fds: dict[int, int] = {}
        try:
            for tunnel in config.tunnels:
                port = tunnel.remote_port
                flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
                fds[port] = os.memfd_create(f"keys-{port}", flags)
        except OSError:
            _close_all(fds)
            raise
        return fds

    def _take(self, fds: dict[int, int], answer: Any) -> bool:  # noqa: ANN401
        if not isinstance(answer, dict):
            raise ConfigError(["the token could not be read in time"])
        if answer["problems"]:
            raise ConfigError(answer["problems"])
        old, self._fds = self._fds, fds
        _close_all(old)
        return bool(answer["made"])

    def _fill(self, fds: Mapping[int, int], config: Config) -> dict[str, Any]:
        """In the child: derive the keys."""
        try:
            made = self._reader.make_missing(config)
            tokens = self._reader.read(config)
        except ConfigError as error:
            return {"problems": error.problems, "made": False}
        for port, fd in fds.items():
            _write(fd, [self._derive(token, port) for token in tokens])
        return {"problems": [], "made": made}


def _write(fd: int, keys: Sequence[bytes]) -> None:
    assert 1 <= len(keys) <= MAX_KEYS, "a token, or two"
    assert all(len(key) == KEY_BYTES for key in keys), "keys are 32 bytes"
    os.write(fd, b"".join(keys))
    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)


def _close_all(fds: Mapping[int, int]) -> None:
    for fd in fds.values():
        os.close(fd)
