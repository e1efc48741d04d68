"""The errors of tunneltcp, in one place.

TunnelError                  root; str() is one sentence for a person
  ConfigError(problems)      every problem of a config: path in the file, what is wrong
  ControlChannelError        the other end of a control channel broke its rules
  HandoverError              code cannot go on with what the version before it left
  MasterRunning(pid)         another master holds this instance
  ProtocolError(code)        see tunneltcp/protocol/errors.py, re-exported here
    LocalProtocolError       we called the protocol wrongly: a bug
    RemoteProtocolError      the peer broke the rules of docs/PROTOCOL.md
      ForgedMessageError     its MAC was not made with our key, or not for this connection
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

from tunneltcp.protocol.errors import (
    ForgedMessageError,
    LocalProtocolError,
    ProtocolError,
    RemoteProtocolError,
    TunnelError,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "ConfigError",
    "ControlChannelError",
    "ExitCode",
    "ForgedMessageError",
    "HandoverError",
    "LocalProtocolError",
    "MasterRunning",
    "ProtocolError",
    "RemoteProtocolError",
    "TunnelError",
]


class ExitCode(IntEnum):
    """How a master or a worker leaves; docs/OPERATIONS.md has the table."""

    DONE = 0
    """Everything ended as asked."""
    CRASH = 1
    """A bug, or a failure that may heal: start again."""
    USAGE = 2
    """The command line or the config is wrong: nothing was started."""
    TEMPORARY = 75
    """Something this process needs is missing for now: start again later."""
    NOT_PERMITTED = 77
    """The operating system forbids what the config asks for: a person must act."""
    BAD_CONFIG = 78
    """What the master handed to the worker cannot work: a new config must heal it."""


class ConfigError(TunnelError):
    """A config that cannot be used, with every problem found in it."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(self.problems))


class ControlChannelError(TunnelError):
    """The other end of a control channel sent what no version of it sends."""


class HandoverError(TunnelError):
    """This code cannot go on with what the running master would leave to it."""


class MasterRunning(TunnelError):
    """Another master already holds this instance."""

    def __init__(self, instance: str, pid: int | None) -> None:
        self.pid = pid
        who = f"process {pid}" if pid else "another process"
        super().__init__(f'instance "{instance}" is already run by {who}')
