from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.pattern import PIECE, PatternChecker, PatternError, locate, pattern

SIZES = st.integers(0, 3 * PIECE)


def check(seed: int, data: bytes, cuts: list[int] | None = None) -> int:
    """Feed in pieces; return how much was right."""
    checker = PatternChecker(seed)
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts or []), len(data)]
    for start, end in itertools.pairwise(edges):
        checker.feed(data[start:end])
    return checker.offset


@given(st.integers(0, 2**40), st.integers(0, 2**40), SIZES, SIZES)
def test_parts_make_the_whole(seed: int, offset: int, one: int, two: int) -> None:
    whole = pattern(seed, offset, one + two)

    assert len(whole) == one + two
    assert whole == pattern(seed, offset, one) + pattern(seed, offset + one, two)


@given(st.integers(0, 2**40), SIZES, st.lists(st.integers(0, 2**30), max_size=8))
def test_right_bytes_pass_however_they_are_cut(seed: int, size: int, cuts: list[int]) -> None:
    assert check(seed, pattern(seed, 0, size), cuts) == size


@given(st.integers(0, 1000), st.integers(1, 2 * PIECE), st.data())
def test_a_changed_byte_is_found_at_its_offset(
    seed: int, size: int, data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, size - 1))
    mask = data.draw(st.integers(1, 255))
    wrong = bytearray(pattern(seed, 0, size))
    wrong[at] ^= mask

    with pytest.raises(PatternError) as caught:
        check(seed, bytes(wrong), [at // 2])
    assert caught.value.offset == at


SEED, SIZE = 7, 3 * PIECE
RIGHT = pattern(SEED, 0, SIZE)


@pytest.mark.parametrize("lost", [1, 4096, 65_536, 262_144, PIECE, 1 << 20])
@pytest.mark.parametrize("at", [0, 1, PIECE - 1, PIECE, 400_000])
def test_lost_bytes_are_found_where_they_are_missing(at: int, lost: int) -> None:
    data = pattern(SEED, 0, at) + pattern(SEED, at + lost, 1000)

    with pytest.raises(PatternError) as caught:
        check(SEED, data)
    assert at <= caught.value.offset <= at + 4
    assert "no near place" not in str(caught.value)


@pytest.mark.parametrize("doubled", [1, 100, 65_536, 262_144, PIECE])
def test_doubled_bytes_are_found(doubled: int) -> None:
    at = 300_000
    data = RIGHT[:at] + RIGHT[at - doubled : at] + RIGHT[at:]

    with pytest.raises(PatternError) as caught:
        check(SEED, data)
    assert at <= caught.value.offset <= at + 4


@pytest.mark.parametrize("size", [1, 1000, 16_384, 262_144, PIECE])
def test_swapped_pieces_are_found(size: int) -> None:
    data = RIGHT[size : 2 * size] + RIGHT[:size] + RIGHT[2 * size :]

    with pytest.raises(PatternError) as caught:
        check(SEED, data)
    assert caught.value.offset <= 4


def test_bytes_of_another_stream_are_found() -> None:
    for other in [*range(SEED), *range(SEED + 1, 120)]:
        data = RIGHT[:5000] + pattern(other, 5000, 1000)
        with pytest.raises(PatternError) as caught:
            check(SEED, data)
        assert 5000 <= caught.value.offset <= 5004


def test_after_an_error_a_checker_takes_nothing_more() -> None:
    checker = PatternChecker(1)
    with pytest.raises(PatternError):
        checker.feed(pattern(2, 0, 10))

    with pytest.raises(PatternError):
        checker.feed(pattern(1, checker.offset, 10))


def test_any_buffer_can_be_checked() -> None:
    checker = PatternChecker(1, offset=5)

    checker.feed(memoryview(bytearray(pattern(1, 5, 100))))

    assert checker.offset == 105


def test_locate_names_the_nearest_place() -> None:
    assert locate(pattern(3, 1_000_000, 50), 3, near=999_000) == 1_000_000
    assert locate(pattern(3, PIECE - 3, 50), 3, near=0) == PIECE - 3
    assert locate(bytes(50), 3, near=0) is None


@pytest.mark.slow
def test_making_and_checking_is_fast_enough_for_a_full_link() -> None:
    pattern(1, 0, 1)
    checker = PatternChecker(1)
    begin = time.process_time()
    for index in range(64):
        checker.feed(pattern(1, index << 20, 1 << 20))
    seconds = time.process_time() - begin

    assert seconds < 0.64, f"{64 / seconds:.0f} MB/s"
