"""Windows: who gets how much of the budget."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunneltcp.protocol.windows import (
    FIRST_WINDOW_BYTES,
    MAX_WINDOW_BYTES,
    MIN_WINDOW_BYTES,
    Windows,
)

K = 1024
MIB = 1 << 20


def take_all(windows):
    taken = []
    while (window := windows.take()) is not None:
        taken.append(window)
    return taken


def test_sizes():
    assert MAX_WINDOW_BYTES == MIB
    assert MIN_WINDOW_BYTES == 16 * K
    assert FIRST_WINDOW_BYTES == 32 * K


@pytest.mark.parametrize("least", [16 * K, 32 * K])
def test_the_decline_is_gentle_and_everybody_fits(least):
    windows = Windows(8 * MIB, 100, least)
    taken = take_all(windows)

    assert len(taken) == 100
    assert taken[:4] == [MIB] * 4
    assert taken[4] == (4 * MIB - 96 * least) // 16
    assert all(one >= two for one, two in itertools.pairwise(taken))
    assert min(taken) >= least
    assert windows.granted_bytes == sum(taken) <= 8 * MIB


def test_no_more_streams_than_may_be():
    windows = Windows(64 * MIB, 3, 16 * K)
    assert take_all(windows) == [MIB] * 3
    windows.give(MIB)
    assert take_all(windows) == [MIB]


def test_the_budget_wins_over_the_number_of_streams():
    taken = take_all(Windows(4 * MIB, 1000, 16 * K))
    assert taken == [MIB, MIB] + [16 * K] * 128


@given(
    st.integers(0, 8 * MIB),
    st.integers(0, 300),
    st.sampled_from([16 * K, 32 * K]),
    st.lists(st.integers(0, 400), max_size=100),
)
def test_the_books_balance(budget, most, least, choices):
    windows = Windows(budget, most, least)
    held: list[int] = []
    for choice in choices:
        if choice < len(held):
            windows.give(held.pop(choice))
        else:
            window = windows.take()
            assert (window is None) == (sum(held) + least > budget or len(held) >= most)
            if window is not None:
                assert least <= window <= MAX_WINDOW_BYTES
                held.append(window)
        assert windows.granted_bytes == sum(held) <= budget
        assert len(held) <= most


@pytest.mark.parametrize(
    ("budget", "most", "least"),
    [(MIB, 10, 16 * K), (4 * MIB, 200, 16 * K), (64 * MIB, 1500, 32 * K)],
)
def test_everybody_fits_if_the_budget_can_hold_them_at_all(budget, most, least):
    assert most * least < budget
    assert len(take_all(Windows(budget, most, least))) == most


def test_where_not_everybody_can_fit_one_does_not_take_all():
    """1 MiB is the least that the config takes, 1,000 visitors what it has by default."""
    assert len(take_all(Windows(MIB, 1000, 16 * K))) > 16
