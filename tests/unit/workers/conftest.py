"""A world for workers: see ``tests/support/fake_master.py``."""

from __future__ import annotations

import pytest

from tests.support.fake_master import World


@pytest.fixture
def world():
    world = World()
    yield world
    world.close()
