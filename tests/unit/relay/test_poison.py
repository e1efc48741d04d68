"""Three crashes in a row with one stream in hand, and not a byte of it moved: that one."""

from __future__ import annotations

import pytest

from tunneltcp.protocol.table import IN_HAND, StreamTable
from tunneltcp.relay.poison import MAX_CRASHES, ROW_SECONDS, find_poison, take_in_hand


@pytest.fixture
def table():
    return StreamTable(memoryview(bytearray(4096 + 64 * 3)))


def crash(table, in_hand, moved, *, crashed=True, now=1000.5):
    """A worker dies with this in hand; say what its successor finds."""
    table.words[IN_HAND] = in_hand
    return find_poison(table, take_in_hand(table), moved, crashed=crashed, now=now)


def test_the_third_time_it_is_reset_and_forgotten(table):
    assert [crash(table, 7, {7: 5, 8: 0}) for _ in range(MAX_CRASHES)] == [0, 0, 7]
    assert [crash(table, 7, {7: 5}) for _ in range(MAX_CRASHES)] == [0, 0, 7]


def test_what_is_in_hand_is_taken_once(table):
    table.words[IN_HAND] = 7
    assert [take_in_hand(table), take_in_hand(table)] == [7, 0]


@pytest.mark.parametrize(
    "between",
    [
        {"in_hand": 7, "moved": {7: 6, 8: 0}},  # a byte
        {"in_hand": 8, "moved": {7: 5, 8: 0}},  # another one
        {"in_hand": 0, "moved": {7: 5, 8: 0}},  # none
        {"in_hand": 7, "moved": {8: 0}},  # it was over
        {"in_hand": 7, "moved": {7: 5, 8: 0}, "crashed": False},  # somebody's SIGKILL
    ],
)
def test_whatever_else_happens_it_is_counted_anew(table, between):
    for _ in range(MAX_CRASHES - 1):
        assert crash(table, 7, {7: 5, 8: 0}) == 0
    assert crash(table, **between) == 0
    found = [crash(table, 7, {7: 5, 8: 0}) for _ in range(MAX_CRASHES - 1)]
    assert found == [0] * (MAX_CRASHES - 1)
    assert crash(table, 7, {7: 5, 8: 0}) == 7


@pytest.mark.parametrize(("pause", "found"), [(ROW_SECONDS - 1, 7), (ROW_SECONDS + 1, 0)])
def test_crashes_far_apart_are_no_row(table, pause, found):
    times = [1000.5 + number * pause for number in range(MAX_CRASHES)]
    assert [crash(table, 7, {7: 5}, now=now) for now in times] == [0, 0, found]


def test_others_that_move_are_no_excuse(table):
    assert [crash(table, 7, {7: 5, 8: number}) for number in range(3)] == [0, 0, 7]


def test_a_table_that_is_cleared_knows_nothing(table):
    for _ in range(MAX_CRASHES - 1):
        crash(table, 7, {7: 5})
    table.words[IN_HAND] = 7
    table.clear()
    assert take_in_hand(table) == 0
    assert table.blame == (0, 0, 0, 0)
