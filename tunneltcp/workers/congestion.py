"""The congestion control of a link: what the config asks for, or what suits its path."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

from tunneltcp.advice import congestion_trouble
from tunneltcp.net.sockopt import set_congestion, unpace_if_near

if TYPE_CHECKING:
    from loguru import Logger

    from tunneltcp.relay.link import Link

__all__ = ["use_congestion"]


def use_congestion(link: Link, name: str, log: Logger) -> None:
    """Set it before the first frame goes out; where it cannot be had, the link goes without.

    The system's choice is for paths: over loopback there is none.
    """
    if name == "system":
        with suppress(OSError), socket.socket(fileno=os.dup(link.fileno())) as sock:
            unpace_if_near(sock, sock.getpeername())
        return
    try:
        set_congestion(link.fileno(), name)
    except OSError as error:
        log.warning("{}", congestion_trouble(name, error.errno or 0, error.strerror or ""))
