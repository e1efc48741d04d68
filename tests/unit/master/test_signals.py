"""Signals come in the loop, and can be held back for a while."""

from __future__ import annotations

import signal
from contextlib import closing
from functools import partial
from typing import Any

import pytest

from tunneltcp.master.signals import SignalQueue
from tunneltcp.net.loop import Loop


@pytest.fixture
def came():
    """Which signals the loop has reported; and the queue, and a turn of the loop."""
    found: list[str] = []
    with closing(Loop(max_sleep_seconds=0.0)) as loop:
        numbers: list[int] = [signal.SIGUSR1, signal.SIGUSR2]
        handlers: dict[int, Any] = {
            one: partial(found.append, signal.Signals(one).name) for one in numbers
        }
        with closing(SignalQueue(loop, handlers)) as queue:
            yield found, queue, loop.turn


def test_they_come_in_the_loop(came):
    found, _, turn = came
    signal.raise_signal(signal.SIGUSR1)
    assert found == []
    turn()
    assert found == ["SIGUSR1"]


def test_what_came_is_acted_on_and_what_comes_then_waits_in_the_kernel(came):
    found, queue, turn = came
    signal.raise_signal(signal.SIGUSR1)
    queue.hold_back()
    assert found == ["SIGUSR1"], "no turn of the loop later"
    signal.raise_signal(signal.SIGUSR2)
    turn()
    assert found == ["SIGUSR1"]
    assert signal.sigpending() == {signal.SIGUSR2}
    queue.let_through()
    turn()
    assert found == ["SIGUSR1", "SIGUSR2"]
