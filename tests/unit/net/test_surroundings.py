"""Whether this machine slept or moved; addresses of loopback stand for others."""

from __future__ import annotations

import socket
import time

import pytest

from tests.support.fake_clock import FakeClock
from tunneltcp.net import surroundings
from tunneltcp.net.surroundings import Surroundings, has_address, slept_seconds, source_address

V4 = socket.AF_INET
THERE = (V4, ("192.0.2.1", 60001))
ALSO = (V4, ("192.0.2.2", 60001))


@pytest.fixture
def sources(monkeypatch):
    """By address: from where it is reached."""
    table = {THERE: "198.51.100.5", ALSO: "198.51.100.5"}
    monkeypatch.setattr(surroundings, "source_address", lambda there: table[there])
    return table


@pytest.fixture
def slept():
    return FakeClock(17.0)


@pytest.fixture
def around(slept):
    return Surroundings(slept)


def test_a_machine_that_is_awake_does_not_sleep():
    passed = []
    for _ in range(5):  # two clocks are read, and the machine may stand still in between
        before = slept_seconds()
        time.sleep(0.01)  # noqa: TID251 - it measures time that passes
        passed.append(abs(slept_seconds() - before))
    assert min(passed) < 0.005


def test_the_address_that_packets_would_bear():
    assert source_address((V4, ("127.0.0.1", 9))) == "127.0.0.1"
    assert source_address((V4, ("not an address", 9))) == ""


def test_an_address_of_this_machine_and_one_that_is_not():
    assert has_address(V4, ("127.0.0.1", 60001))
    assert not has_address(V4, ("192.0.2.77", 60001))


def test_nothing_happened(around, sources):
    assert around.look([]) == ""
    assert around.look([THERE]) == ""
    assert around.look([THERE]) == ""


def test_a_sleep(around, slept, sources):
    slept.advance(0.9)
    assert around.look([THERE]) == ""
    slept.advance(3600)
    assert around.look([THERE]) == "this machine slept for 3600 s"
    assert around.look([THERE]) == ""


def test_another_way(around, sources):
    around.look([THERE, ALSO])
    sources[ALSO] = "203.0.113.9"
    assert "from 203.0.113.9" in around.look([THERE, ALSO])
    assert around.look([THERE, ALSO]) == ""


def test_no_way_and_back(around, sources):
    around.look([THERE])
    sources[THERE] = ""
    assert "no way" in around.look([THERE])
    assert around.look([THERE]) == ""
    sources[THERE] = "198.51.100.5"
    assert "from 198.51.100.5" in around.look([THERE])


def test_addresses_in_another_order_or_new_ones_are_no_change(around, sources):
    around.look([THERE])
    sources[ALSO] = "203.0.113.9"
    assert around.look([ALSO, THERE]) == ""
    assert around.look([ALSO]) == ""
