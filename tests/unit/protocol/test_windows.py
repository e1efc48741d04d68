"""Windows: who gets how much of the budget."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunneltcp.protocol.windows import (
    FIRST_WINDOW_BYTES,
    MAX_WINDOW_BYTES,
    MIN_WINDOW_BYTES,
    USUAL_WINDOW_BYTES,
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
    assert USUAL_WINDOW_BYTES == MIB
    assert MAX_WINDOW_BYTES == 32 * MIB
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


@pytest.mark.parametrize("max_streams", [1000, 10])
def test_who_had_a_window_has_one_in_the_hands_of_another_worker(max_streams):
    """However few the config allows now, and whoever had the large ones before."""
    windows = Windows(4 * MIB, max_streams, 32 * K)
    windows.heirs = 128
    taken = [windows.inherit() for _ in range(128)]
    assert taken == [32 * K] * 128
    assert windows.take() is None


def test_the_budget_wins_over_the_number_of_streams():
    taken = take_all(Windows(4 * MIB, 1000, 16 * K))
    assert taken == [MIB, MIB] + [16 * K] * 128


class Holder:
    """As much of a stream as the windows see; ``delivered`` is all that it was allowed."""

    def __init__(self, windows: Windows, window: int) -> None:
        self.windows = windows
        self.window = window
        self.window_since = -1e9
        self.grow_at = 0

    def set_window(self, window: int) -> None:
        self.window = window

    def use_up(self) -> int:
        """All of it was delivered; return what the window is then."""
        stream: Any = self
        self.windows.note_used(stream, self.grow_at)
        return self.window


def growing(budget: int, most: int, *, trip: float = 0.1, least: int = 32 * K):
    """Windows on a clock that the test moves: ``clock[0]``."""
    windows, clock = Windows(budget, most, least), [100.0]
    windows.clock = lambda: clock[0]
    windows.round_trip_seconds = trip
    return windows, clock


def holder(windows: Windows) -> Holder:
    window = windows.take()
    assert window is not None
    found = Holder(windows, window)
    found.use_up()  # its time begins with the first CREDIT
    return found


@given(
    st.integers(0, 40 * MIB),
    st.integers(0, 300),
    st.sampled_from([16 * K, 32 * K]),
    st.lists(st.tuples(st.booleans(), st.integers(0, 400)), max_size=100),
)
def test_the_books_balance(budget, most, least, choices):
    """Whatever is taken, grows and is given back; and who comes next finds the least."""
    windows, _ = growing(budget, most, least=least)
    held: list[Holder] = []
    grew = False
    for grows, choice in choices:
        total = sum(one.window for one in held)
        if grows and held:
            before = held[choice % len(held)].window
            assert before <= held[choice % len(held)].use_up() <= max(before, MAX_WINDOW_BYTES)
            grew = grew or held[choice % len(held)].window > before
        elif choice < len(held):
            windows.give(held.pop(choice).window)
        else:
            window = windows.take()
            assert (window is None) == (total + least > budget or len(held) >= most)
            if window is not None:
                assert least <= window <= USUAL_WINDOW_BYTES
                held.append(Holder(windows, window))
        total = sum(one.window for one in held)
        assert windows.granted_bytes == total <= budget
        assert len(held) <= most
        if most * least <= budget and not grew:
            assert budget - total >= (most - len(held)) * least
    for one in held:
        windows.give(one.window)
    assert windows.granted_bytes == 0


def test_a_window_used_up_within_two_round_trips_doubles():
    windows, clock = growing(256 * MIB, 8)
    stream = holder(windows)
    for expected in (2, 4, 8, 16, 32, 32):
        clock[0] += 0.19
        assert stream.use_up() == expected * MIB
    assert stream.grow_at == (1 + 2 + 4 + 8 + 16 + 32 + 32) * MIB
    windows.give(stream.window)
    assert windows.granted_bytes == 0


def test_one_that_lasts_longer_does_not_grow():
    windows, clock = growing(256 * MIB, 8)
    stream = holder(windows)
    for _ in range(5):
        clock[0] += 0.201
        assert stream.use_up() == MIB


@pytest.mark.parametrize(
    ("rtt", "window"), [(0.0003, MIB), (0.002, 4 * MIB), (0.005, 16 * MIB)]
)
def test_near_paths_need_no_long_windows(rtt, window):
    """Whatever a socket takes at once: 1 GB/s is more than a worker carries."""
    windows, _ = growing(256 * MIB, 8, trip=rtt)
    stream = holder(windows)
    for _ in range(20):
        stream.use_up()
    assert stream.window == window


def test_nothing_grows_before_the_round_trip_is_known():
    windows, clock = growing(256 * MIB, 8, trip=0.0)
    stream = holder(windows)
    clock[0] += 1e-6
    assert stream.use_up() == MIB


def test_the_default_budget_carries_a_gigabit_over_200_ms():
    """64 MiB, 1,024 visitors, and one that says little beside the one that downloads."""
    for least in (16 * K, 32 * K):
        windows, _ = growing(64 * MIB, 1024, least=least)
        holder(windows)
        stream = holder(windows)
        for _ in range(6):
            stream.use_up()
        assert stream.window > 1e9 / 8 * 0.2


@pytest.mark.parametrize(
    ("budget", "most", "least"),
    [(16 * MIB, 1024, 16 * K), (64 * MIB, 4096, 16 * K), (64 * MIB, 2048, 32 * K)],
)
def test_one_that_downloads_has_a_window_where_all_is_set_aside_for_who_may_come(
    budget, most, least
):
    """4,096 visitors of 16 KiB are all of 64 MiB: with nobody there, one had 16 KiB."""
    windows, _ = growing(budget, most, least=least)
    streams = [holder(windows) for _ in range(3)]
    for _ in range(12):
        for stream in streams:
            stream.use_up()
    assert min(stream.window for stream in streams) >= budget // 16
    assert len(take_all(windows)) > most * 3 // 8


def test_over_half_of_the_budget_no_window_grows_beyond_a_quarter_of_the_rest():
    windows, _ = growing(64 * MIB, 64)
    first, second = holder(windows), holder(windows)
    for _ in range(6):
        first.use_up()
    assert first.window == 32 * MIB
    for _ in range(4):
        second.use_up()
    assert second.window == 64 * MIB // 8 - MIB  # 31 MiB were left when it was at 4: 7.75


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
