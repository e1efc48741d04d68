"""This program, started by a running master that wants to become it (``master/upgrade.py``)."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Final

import orjson

from tunneltcp import __version__
from tunneltcp.config.plain import config_from_plain
from tunneltcp.control.context import MEMORY_BYTES, NONCES_BYTES, RECORDS_BYTES
from tunneltcp.control.counters import COUNTERS_BYTES
from tunneltcp.errors import ConfigError, ExitCode, HandoverError
from tunneltcp.log import setup_log
from tunneltcp.master.handover import read_handover
from tunneltcp.master.rehearsal import rehearse
from tunneltcp.protocol.table import LAYOUT_VERSION

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunneltcp.config.model import Config
    from tunneltcp.master.folders import Folders
    from tunneltcp.master.secrets import PortSecrets

__all__ = ["LAYOUT", "answer_check"]

LAYOUT: Final = (LAYOUT_VERSION, MEMORY_BYTES, RECORDS_BYTES, NONCES_BYTES, COUNTERS_BYTES)
"""What workers of two versions must agree on: see ``master/handover.py``."""


def answer_check(
    fd: int,
    load: Callable[[], Config],
    folders: Folders,
    secrets: PortSecrets,
    prepare: Callable[[Config], None],
    warm_up: Callable[[Path, int], None],
) -> int:
    """Print whether we could take over what lies in ``fd``; return the exit code.

    Nothing that runs is touched.

    Args:
        fd: See ``master/handover.py``.
        load: Reads the config that the next start will read.
        folders: Those of the instance.
        secrets: Empty.
        prepare: Has what workers of a config share.
        warm_up: Runs a tunnel to nowhere.
    """
    try:
        state = read_handover(fd, LAYOUT).state
        for config in (config_from_plain(state["config"]), load()):
            prepare(config)
        certificate = rehearse(state, config, folders, secrets)
        log = folders.run / "check.log"
        setup_log(log, max_bytes=config.log_bytes, files=1)
        try:
            warm_up(log, certificate)
        finally:
            log.unlink(missing_ok=True)
    except ConfigError as error:
        return _say(problem=f"it refuses the config: {error.problems[0]}")
    except HandoverError as error:
        return _say(problem=str(error))
    except Exception as error:  # noqa: BLE001 - that is what this process is for
        first: BaseException = error
        while first.__context__ is not None:  # what came after it only hides it
            first = first.__context__
        last = traceback.extract_tb(first.__traceback__)[-1]
        place = f"{Path(last.filename).name}, line {last.lineno}"
        return _say(problem=f"{type(first).__name__}: {first} ({place})")
    return _say(version=__version__)


def _say(**answer: str) -> int:
    print(f"\n{orjson.dumps(answer).decode()}", flush=True)
    return ExitCode.CRASH if "problem" in answer else ExitCode.DONE
