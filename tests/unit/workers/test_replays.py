"""Nonces of the prefaces that were taken."""

from __future__ import annotations

import pytest

from tunneltcp.control.context import NONCES_BYTES
from tunneltcp.workers.replays import NONCES, Replays


def nonce(number):
    return number.to_bytes(16, "big")


@pytest.fixture
def memory():
    return memoryview(bytearray(NONCES_BYTES))


def test_each_is_taken_once(memory):
    replays = Replays(memory)
    assert [replays.take(nonce(1)), replays.take(nonce(2))] == [True, True]
    assert [replays.take(nonce(1)), replays.take(nonce(2))] == [False, False]


def test_zeros_are_a_nonce_like_others(memory):
    replays = Replays(memory)
    assert replays.take(bytes(16))
    assert not replays.take(bytes(16))


def test_what_lies_across_two_nonces_is_none(memory):
    replays = Replays(memory)
    replays.take(b"a" * 8 + b"b" * 8)
    replays.take(b"c" * 8 + b"d" * 8)
    assert replays.take(b"b" * 8 + b"c" * 8)
    assert not replays.take(b"c" * 8 + b"d" * 8)


def test_a_successor_knows_them_too(memory):
    Replays(memory).take(nonce(7))
    assert not Replays(memory).take(nonce(7))
    assert Replays(memory).take(nonce(8))


def test_the_last_4096_are_remembered(memory):
    replays = Replays(memory)
    for number in range(NONCES + 10):
        assert replays.take(nonce(number))
    assert not any(replays.take(nonce(number)) for number in range(10, NONCES + 10))
    assert replays.take(nonce(3)), "the oldest are forgotten"
    assert replays.take(nonce(3)) is False
    assert NONCES == 4096
