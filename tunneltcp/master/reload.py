"""A new config, or new tokens, while all goes on.

Theory of operation
-------------------
Config, tokens and certificates come from short-lived children, so it takes some milliseconds
in which the loop turns. All that can be missing is had before anything is touched: a broken
config changes nothing. One reading at a time: who asks meanwhile is answered from the next
one, so that what was in the file when he asked is surely taken.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeGuard

from loguru import logger

from tunneltcp.errors import ConfigError
from tunneltcp.master.changes import compare
from tunneltcp.master.reading import read_config_later
from tunneltcp.text import ranges

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunneltcp.config.model import Config
    from tunneltcp.master.helpers import Helpers
    from tunneltcp.master.master import Master
    from tunneltcp.master.secrets import PortSecrets, Renewed

    Respond = Callable[[dict[str, Any]], None]
    Done = Callable[[Renewed | ConfigError], None]

__all__ = ["Reloader"]

_CONFIG: Final = "config"
_TOKENS: Final = "tokens"


_WITHOUT: Final = {True: "other settings, no new processes", False: "nothing is different"}
"""Told where no tunnel comes, goes or has a new process, by whether the config differs."""


class Reloader:
    """Does what "reload" and "reload-tokens" ask for."""

    def __init__(
        self,
        master: Master,
        helpers: Helpers,
        secrets: PortSecrets,
        load_again: Callable[[], Config] | None,
    ) -> None:
        self._master = master
        self._helpers = helpers
        self._secrets = secrets
        self._load_again = load_again
        self._asked: list[tuple[str, Respond]] = []
        """Who waits for the next reading, and of what."""
        self._reading: list[Respond] = []
        """Who waits for the one that runs."""

    @property
    def is_busy(self) -> bool:
        """Whether somebody waits for what is being read."""
        return bool(self._asked or self._reading)

    def reload(self, respond: Respond) -> None:
        """Read the config again and act on the difference; a broken one changes nothing."""
        if self._master.is_stopping:
            respond(_refused(["it is stopping: there is nothing to read again"]))
        elif self._load_again is None:
            why = "it was started with ports, not with a file"
            respond(_refused([f"{why}: there is nothing to read again"]))
        else:
            self._ask(_CONFIG, respond)

    def reload_tokens(self, respond: Respond) -> None:
        """Go for the tokens again, where they were; the config is not looked at."""
        if self._master.is_stopping:
            respond(_refused(["it is stopping: there is nothing to read again"]))
        else:
            self._ask(_TOKENS, respond)

    def _ask(self, what: str, respond: Respond) -> None:
        self._asked.append((what, respond))
        if not self._reading:
            self._begin()

    def _begin(self) -> None:
        """Read what the first of those who wait wants, for all that want the same."""
        if not self._asked:
            return
        what = self._asked[0][0]
        self._reading = [respond for one, respond in self._asked if one == what]
        self._asked = [one for one in self._asked if one[0] != what]
        try:
            if what == _CONFIG and self._load_again is not None:
                read_config_later(self._helpers, self._load_again, self._on_config)
            else:
                self._renew(self._master.config, self._on_tokens, anew=False)
        except OSError as error:
            self._end(_refused([f"out of resources: {error.strerror}"]))

    def _end(self, answer: dict[str, Any]) -> None:
        waiting, self._reading = self._reading, []
        for respond in waiting:
            respond(answer)
        self._begin()

    def _renew(self, config: Config, done: Done, *, anew: bool) -> None:
        self._secrets.renew(self._helpers, config, done, anew=anew)

    def _on_config(self, found: Config | ConfigError) -> None:
        if isinstance(found, ConfigError):
            self._end(_refused(list(found.problems)))
            return
        old = self._master.config
        # A configured certificate is read again in any case: that is how it is replaced.
        anew = old.tls != found.tls or bool(old.certificate or found.certificate)
        try:
            self._renew(found, partial(self._on_secrets, found, anew), anew=anew)
        except OSError as error:
            self._end(_refused([f"out of resources: {error.strerror}"]))

    def _on_secrets(self, config: Config, anew: bool, new: Renewed | ConfigError) -> None:
        if isinstance(new, ConfigError):
            self._end(_refused(list(new.problems)))
        elif self._master.is_stopping:
            new.close()
            self._end(_refused(["it is stopping"]))
        else:
            try:
                answer = self._take(config, new, anew=anew)
            except Exception:
                self._end(
                    _refused(['a mistake of ours: see master.log, and "tunneltcp status"'])
                )
                raise  # and the master logs it
            self._end(answer)

    def _take(self, config: Config, new: Renewed, *, anew: bool) -> dict[str, Any]:
        """Act on the difference."""
        tunnels = self._master.tunnel_set
        changes = compare(self._master.config, config)
        try:
            self._master.make_place(config)
            added = tunnels.make_new(changes.added)
        except ConfigError as error:
            new.close()
            return _refused(list(error.problems))
        except OSError as error:
            new.close()
            return _refused([f"out of resources: {error.strerror}"])
        is_other = config != self._master.config
        self._secrets.take(new)
        self._master.take_config(config)
        tunnels.apply(changes, added)
        for tunnel in self._master.tunnels:
            tunnel.give_keys()
        if anew:
            for unchanged in changes.unchanged:
                self._give_certificate(unchanged.remote_port)
        answer = {
            "added": [tunnel.remote_port for tunnel in changes.added],
            "removed": list(changes.removed),
            "changed": [tunnel.remote_port for tunnel in changes.changed],
            "unchanged": len(changes.unchanged),
            "different": is_other,
        }
        told = (f"{word} {ranges(ports)}" for word, ports in answer.items() if _some(ports))
        logger.info("config read again: {}", "; ".join(told) or _WITHOUT[is_other])
        return answer

    def _give_certificate(self, port: int) -> None:
        """Live links keep the certificate they had; the next ones see the new one."""
        tunnel = self._master.tunnel_set.find(port)
        if tunnel is not None:
            tunnel.give_certificate()

    def _on_tokens(self, new: Renewed | ConfigError) -> None:
        if isinstance(new, ConfigError):
            for problem in new.problems:
                logger.error("tokens not taken, all goes on as before: {}", problem)
            self._end({"error": f"the tokens were not taken: {new.problems[0]}"})
            return
        self._secrets.take(new)
        for tunnel in self._master.tunnels:
            tunnel.give_keys()
        logger.info("tokens read again")
        self._end({"tunnels": len(self._master.tunnels)})


def _refused(problems: list[str]) -> dict[str, Any]:
    for problem in problems:
        logger.error("config not taken, all goes on as before: {}", problem)
    return {"error": f"the config was not taken: {problems[0]}", "problems": problems}


def _some(ports: object) -> TypeGuard[list[int]]:
    return isinstance(ports, list) and bool(ports)
