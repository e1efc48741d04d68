from __future__ import annotations

import pytest

from tests.support.least import least


@pytest.mark.parametrize(
    ("seconds", "found", "left"),
    [
        ([0.5, 9.0], 0.5, [9.0]),
        ([3.0, 0.7, 9.0], 0.7, [9.0]),
        ([3.0, 2.0, 4.0, 0.1], 2.0, [0.1]),
        ([1.0, 0.9], 0.9, []),
    ],
    ids=["at once", "at last", "never", "the bound is no less"],
)
def test_one_that_is_below_the_bound_is_enough(
    seconds: list[float], found: float, left: list[float]
) -> None:
    assert least(lambda: seconds.pop(0), 1.0) == found
    assert seconds == left
