from __future__ import annotations

import pytest

from tests.support.wait import wait_until


def test_the_first_true_value_is_returned() -> None:
    values = iter([0, None, "", "found", "more"])

    assert wait_until(lambda: next(values)) == "found"


def test_a_failed_assertion_means_not_yet() -> None:
    tries = iter(range(5))

    def condition() -> bool:
        assert next(tries) == 3
        return True

    assert wait_until(condition)


def test_the_failure_names_what_was_waited_for_and_what_it_saw() -> None:
    with pytest.raises(
        AssertionError, match=r"not within 0\.01 s: the link is up \(last: \[\]\)"
    ):
        wait_until(list, timeout=0.01, what="the link is up")
    with pytest.raises(AssertionError, match="said late"):
        wait_until(lambda: False, timeout=0.0, what=lambda: "said late")


def test_other_errors_end_the_wait_at_once() -> None:
    with pytest.raises(ZeroDivisionError):
        wait_until(lambda: 1 // 0, timeout=60)
