"""Reading the config again, and acting on the difference.

Theory of operation
-------------------
The file is read, compared, and everything that can be missing (certificates, memory for new
tunnels) is made before anything is touched: a broken config changes nothing. Certificates
come from a child, so the answer may come a moment later; one reload at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeGuard

from loguru import logger

from tunneltcp.control.context import Role
from tunneltcp.errors import ConfigError
from tunneltcp.master.changes import compare
from tunneltcp.master.requests import ranges

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunneltcp.config.model import Config
    from tunneltcp.master.certificates import Certificates
    from tunneltcp.master.changes import Changes
    from tunneltcp.master.master import Master

__all__ = ["Reload", "secured_ports"]


def secured_ports(config: Config, role: Role) -> list[int]:
    """Return the ports whose worker shows a certificate."""
    shows = role is Role.SERVER and config.tls
    return [tunnel.remote_port for tunnel in config.tunnels] if shows else []


class Reload:
    """Does it for one master; ``load`` is None if there is no file to read again."""

    def __init__(
        self, master: Master, certificates: Certificates, load: Callable[[], Config] | None
    ) -> None:
        self._master = master
        self._certificates = certificates
        self._load = load
        self._is_busy = False

    def begin(self, respond: Callable[[dict[str, Any]], None]) -> None:
        """Read the config; call ``respond`` with what came of it, now or in a moment."""
        master = self._master
        if master.is_stopping or self._load is None:
            why = "it was started with ports, not with a file"
            why = "it is stopping" if master.is_stopping else why
            respond(_refuse([f"{why}: there is nothing to read again"]))
            return
        if self._is_busy:
            respond(_refuse(["another reload is under way"]))
            return
        old = master.config
        try:
            config = self._load()
            changes = compare(old, config)
            # A configured one is read again in any case: that is how it is replaced.
            anew = old.tls != config.tls or bool(old.certificate or config.certificate)
            self._is_busy = True
            self._certificates.prepare(
                secured_ports(config, master.role),
                config.certificate,
                lambda problem: self._go_on(config, changes, problem, respond, renewed=anew),
                anew=anew,
            )
        except ConfigError as error:
            respond(_refuse(list(error.problems)))
        except OSError as error:
            self._is_busy = False
            respond(_refuse([f"out of resources: {error.strerror}"]))

    def _go_on(
        self,
        config: Config,
        changes: Changes,
        problem: str,
        respond: Callable[[dict[str, Any]], None],
        *,
        renewed: bool,
    ) -> None:
        """The certificates are there, or not."""
        self._is_busy = False
        master = self._master
        if problem or master.is_stopping:
            respond(_refuse([problem or "it is stopping"]))
            return
        try:
            added = master.tunnel_set.make_new(changes.added)
        except OSError as error:
            respond(_refuse([f"out of resources: {error.strerror}"]))
            return
        master.take_config(config)
        master.tunnel_set.apply(changes, added)
        if renewed:
            for tunnel in changes.unchanged:
                self._give_certificate(tunnel.remote_port)
        answer = {
            "added": [tunnel.remote_port for tunnel in changes.added],
            "removed": list(changes.removed),
            "changed": [tunnel.remote_port for tunnel in changes.changed],
            "unchanged": len(changes.unchanged),
        }
        told = (f"{word} {ranges(ports)}" for word, ports in answer.items() if _some(ports))
        logger.info("config read again: {}", "; ".join(told) or "no tunnel is concerned")
        respond(answer)

    def _give_certificate(self, port: int) -> None:
        """Live links keep the certificate they had; the next ones see the new one."""
        tunnel, fd = self._master.tunnel_set.find(port), self._certificates.fd(port)
        if tunnel is not None and fd >= 0:
            tunnel.give_certificate(fd)


def _refuse(problems: list[str]) -> dict[str, Any]:
    for problem in problems:
        logger.error("config not taken, all goes on as before: {}", problem)
    return {"error": f"the config was not taken: {problems[0]}", "problems": problems}


def _some(ports: object) -> TypeGuard[list[int]]:
    return isinstance(ports, list) and bool(ports)
