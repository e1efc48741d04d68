"""What is secret about each port, in memory that the master never reads.

Theory of operation
-------------------
A short-lived child goes where the tokens are, derives the keys of each port, makes or reads
the certificates, and writes all that into memfds, one for each port and purpose, which are
then sealed for ever. The master keeps the descriptors: a worker is born with those of its own
port, and so is its successor, at once and without a further process. When tokens or
certificates change there are new memfds, and each worker that runs is given those of its port
over its channel (SCM_RIGHTS). So no secret is ever in the master, and there is no way from a
worker to those of another port.
"""

from __future__ import annotations

import errno
import os
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from tunneltcp.control.context import Role
from tunneltcp.errors import ConfigError
from tunneltcp.master.certificates import fill_certificates
from tunneltcp.master.keys import fill_keys
from tunneltcp.master.spawn import run_helper

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tunneltcp.config.model import Config
    from tunneltcp.config.token_reader import TokenReader
    from tunneltcp.master.handover import Descriptors
    from tunneltcp.master.helpers import Helpers
    from tunneltcp.master.keys import Derive

__all__ = ["SPARE", "PortSecrets", "Renewed"]

SPARE: Final = 0
"""Instead of a port: a certificate that no client ever sees, for who wants to try TLS."""

_SECONDS: Final = 10
"""For reading some small files and making 500 certificates; a disk may be slow."""

_IN_VAIN: Final = (
    f"tokens and certificates could not be had: it took over {_SECONDS} s, or the process that "
    "was to fetch them failed"
)

Fds = dict[int, int]
"""Descriptors of memfds by port."""


class Renewed:
    """Secrets that are ready to be taken; or not to be."""

    def __init__(self, keys: Fds, certificates: Fds) -> None:
        self.keys = keys
        self.certificates = certificates

    @property
    def fds(self) -> tuple[int, ...]:
        """All descriptors."""
        return (*self.keys.values(), *self.certificates.values())

    def close(self) -> None:
        """They are not wanted."""
        _close_all(self.fds)


class PortSecrets:
    """Has the keys of each port, and its certificate where it shows one.

    Args:
        derive: Returns the key of a token and a port.
        reader: Goes for the tokens, in a child.
    """

    def __init__(self, role: Role, derive: Derive, reader: TokenReader) -> None:
        self._role = role
        self._derive = derive
        self._reader = reader
        self._keys: Fds = {}
        self._certificates: Fds = {}

    def keys_fd(self, port: int) -> int:
        """Return the descriptor of a port's keys; -1 if there are none."""
        return self._keys.get(port, -1)

    def certificate_fd(self, port: int) -> int:
        """Return the descriptor of a port's certificate; -1 if there is none."""
        return self._certificates.get(port, -1)

    def make(self, config: Config) -> bool:
        """Have the secrets for a config, and wait; return whether a token was made for it.

        Raises:
            ConfigError: If a token or a configured certificate is missing or bad.
            OSError: If the kernel has no memory or process to give, or it took too long.
        """
        new = self._prepare(config, anew=True)
        try:
            work = partial(self._fill, new, config)
            answer = run_helper(work, _SECONDS, self._kept(new))
            if not isinstance(answer, dict):
                raise OSError(errno.ETIMEDOUT, _IN_VAIN)
            if answer["problems"]:
                raise ConfigError(answer["problems"])
        except BaseException:
            new.close()
            raise
        self.take(new)
        return bool(answer["made"])

    def renew(
        self,
        helpers: Helpers,
        config: Config,
        done: Callable[[Renewed | ConfigError], None],
        *,
        anew: bool,
    ) -> None:
        """Prepare the secrets for a config; call ``done`` later with them, or what is wrong.

        With ``anew``, certificates that are there are replaced too.

        Raises:
            OSError: If the kernel has no memory to give.
        """
        new = self._prepare(config, anew=anew)

        def finish(answer: Any) -> None:  # noqa: ANN401 - an answer from another process
            problems = answer["problems"] if isinstance(answer, dict) else [_IN_VAIN]
            if problems:
                new.close()
                done(ConfigError(problems))
            else:
                done(new)

        work = partial(self._fill, new, config)
        helpers.run(work, finish, keep=self._kept(new), at_once=True)

    def take(self, new: Renewed) -> None:
        """Have these from now on, and of ports that are not among them nothing."""
        old = {*self._keys.values(), *self._certificates.values()}
        certificates = {**self._certificates, **new.certificates}
        self._keys = new.keys
        self._certificates = {
            port: fd for port, fd in certificates.items() if port in new.keys or port == SPARE
        }
        _close_all(old - {*self._keys.values(), *self._certificates.values()})

    def hand_over(self, fds: Descriptors) -> dict[str, Any]:
        """Return what the next version of the master goes on with."""
        return {
            "keys": [[port, fds.keep(fd)] for port, fd in self._keys.items()],
            "certificates": [[port, fds.keep(fd)] for port, fd in self._certificates.items()],
        }

    def go_on(self, before: Mapping[str, Any]) -> None:
        """Have the secrets that the version before us had: nobody sees another certificate."""
        self._keys = dict(before["keys"])
        self._certificates = dict(before["certificates"])

    def close(self) -> None:
        """Let go of all of them."""
        _close_all((*self._keys.values(), *self._certificates.values()))
        self._keys, self._certificates = {}, {}

    def _prepare(self, config: Config, *, anew: bool) -> Renewed:
        ports = [tunnel.remote_port for tunnel in config.tunnels]
        shown = [SPARE, *(ports if self._role is Role.SERVER else [])] if config.tls else []
        new = Renewed({}, {})
        try:
            for port in ports:
                new.keys[port] = _memory(f"keys-{port}")
            for port in shown:
                if anew or port not in self._certificates:
                    new.certificates[port] = _memory(f"certificate-{port}")
        except OSError:
            new.close()
            raise
        return new

    def _kept(self, new: Renewed) -> tuple[int, ...]:
        return (*new.fds, *self._reader.moved.values())

    def _fill(self, new: Renewed, config: Config) -> dict[str, Any]:
        """In the child: write all of them."""
        made = False
        try:
            made = self._reader.make_missing(config)
            fill_keys(new.keys, self._reader.rights(config), self._derive)
            fill_certificates(_without(new.certificates, SPARE), config.certificate)
            fill_certificates(_only(new.certificates, SPARE), None)
        except ConfigError as error:
            return {"problems": error.problems, "made": made}
        return {"problems": [], "made": made}


def _memory(name: str) -> int:
    return os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def _only(fds: Mapping[int, int], port: int) -> Sequence[int]:
    return [fds[port]] if port in fds else []


def _without(fds: Mapping[int, int], port: int) -> Sequence[int]:
    return [fd for one, fd in fds.items() if one != port]


def _close_all(fds: Sequence[int] | set[int]) -> None:
    for fd in fds:
        os.close(fd)
