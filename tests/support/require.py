"""What a test needs of the machine: a skip for a developer, a failure in CI.

A missing program or missing root is something that ``.ci/run`` could have provided, so
with ``CI=true`` it fails. An ability that the kernel lacks is a skip that names it.
"""

from __future__ import annotations

import importlib
import os
import shutil
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

__all__ = ["in_ci", "is_long", "require_ability", "require_program", "require_root"]

_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"


def in_ci(environment: Mapping[str, str] = os.environ) -> bool:
    """Say whether a missing program is somebody's mistake."""
    return environment.get("CI", "").lower() in {"1", "true", "yes"}


def require_program(name: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return the path of a program, or end the test that needs it."""
    search = f"{environment.get('PATH', os.defpath)}:{_SBIN}"
    path = shutil.which(name, path=search)
    if path is None:
        _missing(f"{name} is not installed", environment)
    return path


def is_long(environment: Mapping[str, str] = os.environ) -> bool:
    """Say whether somebody has time: long tests then have their real lengths."""
    return environment.get("LONG_TESTS", "").lower() in {"1", "true", "yes"}


def require_root(environment: Mapping[str, str] = os.environ, uid: int | None = None) -> None:
    """End the test unless it runs as root."""
    if (os.geteuid() if uid is None else uid) != 0:
        _missing("needs root", environment)


def require_ability(reason_missing: str | None) -> None:
    """Skip with the reason that a probe gave; None means the kernel can do it."""
    if reason_missing is not None:
        _pytest().skip(reason_missing)


def _missing(what: str, environment: Mapping[str, str]) -> NoReturn:
    if in_ci(environment):
        _pytest().fail(f"{what}, and this is CI", pytrace=False)
    _pytest().skip(what)
    raise AssertionError("skip() raises")


def _pytest() -> ModuleType:
    """Imported when it is wanted: helper processes start in a third of the time without."""
    return importlib.import_module("pytest")
