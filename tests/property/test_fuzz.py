"""Whatever comes, only the documented errors come out: the targets of scripts/fuzz, always."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.fuzz_targets import MAX_INPUT_BYTES, SEEDS, TARGETS


@st.composite
def inputs(draw, name):
    """A right input, or two of them joined, with some changes; or anything."""
    if draw(st.integers(0, 4)) == 0:
        return draw(st.binary(max_size=200))
    data = bytearray(draw(st.sampled_from(SEEDS[name])))
    if draw(st.booleans()):
        data += draw(st.sampled_from(SEEDS[name]))[1:]
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        removed = draw(st.sampled_from([0, 0, 1, 2, 8]))
        data[at : at + removed] = draw(st.binary(max_size=8))
    return bytes(data)[:MAX_INPUT_BYTES]


@pytest.mark.parametrize("name", TARGETS)
@given(data=st.data())
def test_only_documented_errors_come_out(name, data):
    TARGETS[name](data.draw(inputs(name)))


@pytest.mark.parametrize("name", TARGETS)
def test_what_it_begins_with_is_no_finding(name):
    for seed in SEEDS[name]:
        TARGETS[name](seed)
        for flags in range(0, 256, 8):
            TARGETS[name](bytes([flags | seed[0] & 7]) + seed[1:])


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("unit", [b"\0", b"[", b'{"a":', b"\xff", b"\x80\0\0\0", b"9" * 64])
def test_long_rows_of_one_thing_take_neither_time_nor_memory(name, unit):
    """Nested JSON, long numbers, frames of zeros: within the deadline of the test."""
    for size in (MAX_INPUT_BYTES, 4000):  # as much as a handshake may have
        row = unit * (size // len(unit))
        for flags in (0, 6, 14, 63):
            TARGETS[name](bytes([flags]) + row)
            TARGETS[name](bytes([flags]) + len(row).to_bytes(2, "big") + row)
            TARGETS[name](bytes([flags]) + len(row).to_bytes(4, "big") + row)
