"""Where servers on this very machine keep their tokens: for clients beside them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Final

from tunneltcp.cli.ask import ask, find_run_folders
from tunneltcp.config.state import state_base
from tunneltcp.errors import ConfigError, TunnelError

__all__ = ["servers_here"]

_MAX_MASTERS: Final = 8
_SECONDS: Final = 0.5
"""Of each master that is asked: two dozen milliseconds are usual."""


def servers_here() -> list[Path]:
    """Return the state folders of the servers that this user runs, or ran, here. May block."""
    states: list[Path] = []
    for folder in find_run_folders(None, None).folders[:_MAX_MASTERS]:
        with suppress(TunnelError, OSError):
            status = ask(folder, {"op": "status"}, _SECONDS, own=True)
            if status["role"] == "server":
                states.append(Path(status["state_dir"]))
    with suppress(ConfigError):
        states.append(state_base() / "server")
    return states
