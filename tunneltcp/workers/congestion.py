"""The congestion control of a link, where the config asks for one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunneltcp.advice import congestion_trouble
from tunneltcp.net.sockopt import set_congestion

if TYPE_CHECKING:
    from loguru import Logger

    from tunneltcp.relay.link import Link

__all__ = ["use_congestion"]


def use_congestion(link: Link, name: str, log: Logger) -> None:
    """Set it before the first frame goes out; where it cannot be had, the link goes without."""
    if name == "system":
        return
    try:
        set_congestion(link.fileno(), name)
    except OSError as error:
        log.warning("{}", congestion_trouble(name, error.errno or 0, error.strerror or ""))
