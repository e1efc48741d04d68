"""A bandwidth limit, by the clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunneltcp.protocol.bucket import BURST_SECONDS, MIN_BURST_BYTES, Bucket


@pytest.mark.parametrize("rate", [8_000, 2_500_000, 10**9])
def test_what_goes_out_keeps_to_the_rate(rate):
    bucket = Bucket(rate, 5.0)
    written = 0
    for step in range(4001):
        written += bucket.room(written, 5.0 + step / 1000)
    assert written == pytest.approx(4 * rate, rel=0.02, abs=2 * MIN_BURST_BYTES)


def test_a_pause_earns_no_more_than_a_burst():
    bucket = Bucket(1_000_000, 0.0)
    assert bucket.room(0, 0.0) == 50_000
    assert bucket.room(50_000, 0.0) == 0
    assert bucket.room(50_000, 0.01) == 10_000
    assert bucket.room(50_000, 100.0) == 50_000


def test_what_was_too_much_is_waited_for():
    bucket = Bucket(1_000_000, 0.0)
    assert bucket.room(150_000, 0.0) == 0
    assert bucket.room(150_000, 0.1) == 0
    assert bucket.room(150_000, 0.11) == 10_000


@given(
    st.integers(8_000, 10**11),
    st.lists(st.tuples(st.floats(0, 10), st.integers(0, 10**6)), max_size=50),
)
def test_never_more_than_rate_and_burst(rate, steps):
    bucket, now, written = Bucket(rate, 0.0), 0.0, 0
    burst = max(MIN_BURST_BYTES, rate * BURST_SECONDS)
    for seconds, size in steps:
        now += seconds
        written += min(size, bucket.room(written, now))
        assert written <= burst + now * rate * (1 + 1e-9) + 1
    assert bucket.room(written, now + 1) > 0, "there is always more to come"
