"""The config comes from a child: what is said when that one fails."""

from __future__ import annotations

import pytest

from tunneltcp.errors import ConfigError
from tunneltcp.master.reading import read_config


def test_a_reader_that_fails_at_once_is_not_said_to_be_slow():
    def load():
        raise RuntimeError("a mistake of ours")

    with pytest.raises(ConfigError, match="or the process that was to do it failed"):
        read_config(load)
