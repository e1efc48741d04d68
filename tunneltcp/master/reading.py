"""Reading the config, in a short-lived child: there may be a secret in the file.

The child answers with the config as plain values, in which there is none, or with what is
wrong. The answer can be longer than a pipe holds, so it lies in a memfd.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import orjson

from tunneltcp.config.plain import config_from_plain, config_to_plain
from tunneltcp.errors import ConfigError
from tunneltcp.master.spawn import run_helper

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunneltcp.config.model import Config
    from tunneltcp.master.helpers import Helpers

__all__ = ["read_config", "read_config_later"]

_SECONDS: Final = 10
"""For reading a file; a network file system may be slow."""

_IN_VAIN: Final = (
    f"the config could not be read: it took over {_SECONDS} s, or the process that was to do "
    "it failed"
)


def read_config(load: Callable[[], Config]) -> Config:
    """Read the config and wait for it.

    Raises:
        ConfigError: With every problem found.
        OSError: If the kernel has no memory or process to give.
    """
    fd = os.memfd_create("config", os.MFD_CLOEXEC)
    try:
        return _taken(fd, run_helper(partial(_answer, fd, load), _SECONDS, (fd,)))
    finally:
        os.close(fd)


def read_config_later(
    helpers: Helpers, load: Callable[[], Config], done: Callable[[Config | ConfigError], None]
) -> None:
    """Read the config and call ``done`` with it, or with what is wrong.

    Raises:
        OSError: If the kernel has no memory to give.
    """
    fd = os.memfd_create("config", os.MFD_CLOEXEC)

    def finish(answer: Any) -> None:  # noqa: ANN401 - an answer from another process
        try:
            found: Config | ConfigError = _taken(fd, answer)
        except ConfigError as error:
            found = error
        finally:
            os.close(fd)
        done(found)

    helpers.run(partial(_answer, fd, load), finish, keep=(fd,), at_once=True)


def _answer(fd: int, load: Callable[[], Config]) -> bool:
    """In the child: read, and answer through the memfd."""
    answer: dict[str, Any]
    try:
        answer = {"config": config_to_plain(load())}
    except ConfigError as error:
        answer = {"problems": error.problems}
    os.pwrite(fd, orjson.dumps(answer), 0)
    return True


def _taken(fd: int, done: object) -> Config:
    if done is not True:
        raise ConfigError([_IN_VAIN])
    answer = orjson.loads(os.pread(fd, os.fstat(fd).st_size, 0))
    if "problems" in answer:
        raise ConfigError(answer["problems"])
    return config_from_plain(answer["config"])
