"""How large the next link's packets may be."""

from __future__ import annotations

from tunneltcp.workers.packets import SMALL_SEGMENT_BYTES, PacketSize


def test_two_deaths_in_a_row_make_packets_small_and_two_more_big_again():
    size = PacketSize()
    sizes = []
    for _ in range(6):
        size.went_silent(busy=True)
        sizes.append(size.segment_bytes)
    small = SMALL_SEGMENT_BYTES
    assert sizes == [0, small, small, 0, 0, small]


def test_a_death_of_another_kind_between_them_changes_nothing():
    size = PacketSize()
    for between in (size.forgive, lambda: size.went_silent(busy=False), size.forget):
        assert not size.went_silent(busy=True)
        between()
        assert not size.went_silent(busy=True)
        size.forgive()
    assert size.segment_bytes == 0


def test_small_packets_stay_until_this_machine_moves():
    size = PacketSize()
    size.went_silent(busy=True)
    assert size.went_silent(busy=True)
    size.forgive()
    assert size.segment_bytes == SMALL_SEGMENT_BYTES
    size.forget()
    assert size.segment_bytes == 0
