from __future__ import annotations

import os

import pytest

from tests.support.apps import Apps
from tests.support.service import ServiceError


def test_a_failed_command_brings_its_traceback_and_ends_nothing() -> None:
    with Apps() as apps:
        with pytest.raises(ServiceError, match="KeyError"):
            apps.stats(1)
        assert apps.add("echo") > 0


def test_stopping_ends_the_process_and_may_be_repeated() -> None:
    apps = Apps()
    apps.stop()
    apps.stop()

    with pytest.raises(ProcessLookupError):
        os.kill(apps.pid, 0)


def test_a_service_that_died_says_so() -> None:
    with Apps() as apps:
        os.kill(apps.pid, 9)
        with pytest.raises(ServiceError):
            apps.add("echo")
