"""Paths: delay, rate, one queue for all, losses. Time is an argument."""

from __future__ import annotations

import random
from typing import Any

import pytest

from benchmark.path_packets import Queue
from benchmark.path_relay import Line

FLOW: Any = None
"""A line never looks into what it carries for whom."""
RATE = 1_000_000.0
"""Bytes per second."""


def queue(limit=10_000, loss=0.0, delay=0.05):
    return Queue(RATE, delay, limit, loss, random.Random(1))


def test_a_packet_arrives_after_its_own_time_and_the_delay():
    path = queue()
    path.put(bytes(1000), 7.0)
    path.put(bytes(1000), 7.0)
    assert [due for due, _packet in path.flying] == pytest.approx([7.051, 7.052])


def test_a_full_queue_drops_and_an_emptied_one_takes_again():
    path = queue(limit=10_500)
    for _ in range(15):
        path.put(bytes(1000), 0.0)
    assert len(path.flying) == 10
    assert path.dropped == 5
    path.put(bytes(1000), 0.005)
    assert len(path.flying) == 11, "half of it has left"


def test_losses_are_as_many_as_asked_for():
    path = queue(limit=1 << 30, loss=0.01)
    for _ in range(20_000):
        path.put(b"x", 0.0)
    assert 150 < path.dropped < 250


def test_a_line_gives_the_rate_whatever_the_pieces():
    line = Line(RATE, 0.05, 10_000)
    for size in (1000, 1, 4999):
        line.put(FLOW, bytes(size), 3.0)
    assert line.flying[-1][0] == pytest.approx(3.0 + 0.006 + 0.05)
    assert line.backlog(3.0) == pytest.approx(6000)
    assert line.backlog(3.1) == 0


def test_a_line_says_when_it_has_room_again():
    line = Line(RATE, 0.05, 10_000)
    line.put(FLOW, bytes(30_000), 0.0)
    assert line.room_at(0.0) == pytest.approx(0.020)
    assert line.room_at(0.025) == 0.025


def test_a_line_without_a_rate_only_delays():
    line = Line(0, 0.05, 10)
    line.put(FLOW, bytes(1 << 20), 1.0)
    assert line.flying[0][0] == pytest.approx(1.05)
    assert line.room_at(1.0) == 1.0
