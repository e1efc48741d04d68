"""What holds for every test: Hypothesis profiles, a deadline by folder, the leak check."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from tests.support.leaks import Snapshot, adopt_orphans
from tests.support.ports import reserved_port
from tests.support.require import in_ci, is_long

if TYPE_CHECKING:
    from collections.abc import Iterator

_HERE = Path(__file__).parent

_DEADLINE_SECONDS = {"unit": 20, "property": 60, "contract": 30}
"""By folder; a mark on the test wins, and other folders have pyproject.toml's."""

_LEAK_CHECKED = {"integration", "faults", "hostile", "interop"}

# A CI machine may stop for a moment: no deadline per example, the one per test is enough.
# Fifty examples, other ones each time, find in a week of runs what a thousand find at once.
_local = settings(max_examples=50, deadline=None, print_blob=True)
_ci = settings(_local, suppress_health_check=[HealthCheck.too_slow])
for _name, _profile in (
    ("local", _local),
    ("ci", _ci),
    ("long", settings(_ci, max_examples=500)),
):
    settings.register_profile(_name, _profile)
_usual = "long" if is_long() else "ci" if in_ci() else "local"
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", _usual))


def _folder(path: Path) -> str:
    parts = path.relative_to(_HERE).parts if path.is_relative_to(_HERE) else ()
    return parts[0] if parts else ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test the deadline of its folder."""
    for item in items:
        seconds = _DEADLINE_SECONDS.get(_folder(item.path))
        if seconds is not None and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(seconds * (10 if is_long() else 1)))


@pytest.fixture(scope="session", autouse=True)
def _signals_as_in_a_terminal() -> None:
    """Who starts tests by nohup, or behind &, has them ignore what a child is to end by."""
    for number, usual in (
        (signal.SIGHUP, signal.SIG_DFL),
        (signal.SIGINT, signal.default_int_handler),
    ):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)


@pytest.fixture(scope="session", autouse=True)
def _orphans_come_to_us() -> None:
    """A child that loses its parent becomes ours, so that the leak check sees it."""
    adopt_orphans()
    with reserved_port():
        pass  # it opened the common lock file, which is no test's leak


@pytest.fixture(autouse=True)
def _no_leak(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test with processes: no child and no descriptor more than before it."""
    if _folder(request.path) not in _LEAK_CHECKED:
        yield
        return
    before = Snapshot.take()
    yield
    before.check()
