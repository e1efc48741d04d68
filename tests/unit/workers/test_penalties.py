"""What a source has to wait off for claims that were wrong."""

from __future__ import annotations

import pytest

from tunneltcp.workers.penalties import (
    ENFORCED_SECONDS,
    FAILURE_SECONDS,
    MAX_DELAY_SECONDS,
    MAX_PENALTY_SECONDS,
    MAX_SOURCES,
    Penalties,
    source_of,
)

STRANGER = ("198.51.100.7", 40_000)
NEIGHBOUR = ("198.51.100.8", 40_000)


def failed(penalties, times, address=STRANGER, now=100.0):
    return [penalties.fail(address, now) for _ in range(times)]


def test_the_first_failures_cost_nothing_then_answers_are_late():
    free = round(ENFORCED_SECONDS / FAILURE_SECONDS)
    assert failed(Penalties(), free + 3) == [0.0] * free + [MAX_DELAY_SECONDS] * 3
    assert free == 3


def test_time_heals():
    penalties = Penalties()
    failed(penalties, 4)
    assert penalties.fail(STRANGER, 100.0 + 4 * FAILURE_SECONDS) == 0.0
    assert penalties.fail(STRANGER, 1e6) == 0.0


def test_nobody_waits_off_more_than_ten_minutes():
    penalties = Penalties()
    failed(penalties, 10_000)
    assert penalties.fail(STRANGER, 101.0) == MAX_DELAY_SECONDS
    assert penalties.fail(STRANGER, 101.0 + MAX_PENALTY_SECONDS) == 0.0


def test_an_answer_comes_while_a_client_still_waits_for_it():
    assert MAX_DELAY_SECONDS < 5.0 / 2


def test_it_is_held_against_one_source_alone():
    penalties = Penalties()
    failed(penalties, 100)
    assert penalties.fail(NEIGHBOUR, 100.0) == 0.0


def test_a_right_proof_lifts_it():
    penalties = Penalties()
    failed(penalties, 100)
    penalties.lift(("198.51.100.7", 1))
    assert failed(penalties, 3) == [0.0] * 3


def test_lifting_what_is_not_there_is_harmless():
    Penalties().lift(STRANGER)
    Penalties().lift(None)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.9.9.9", "::1", "10.1.2.3", "172.16.0.1", "172.31.255.255",
     "192.168.7.7", "169.254.1.1", "100.64.0.1", "fd00::7", "fe80::1%eth0",
     "::ffff:127.0.0.1", "::ffff:10.1.2.3", "not an address", ""],
)  # fmt: skip
def test_it_is_never_held_against_loopback_and_private_sources(host):
    penalties = Penalties()
    assert failed(penalties, 100, (host, 1)) == [0.0] * 100
    assert len(penalties) == 0


@pytest.mark.parametrize(
    "host",
    ["8.8.8.8", "172.32.0.1", "100.128.0.1", "2001:db8::1", "::ffff:8.8.8.8", "11.0.0.1"],
)
def test_all_others_are_counted(host):
    assert any(failed(Penalties(), 10, (host, 1)))


def test_ipv6_counts_by_64_bits_and_mapped_as_ipv4():
    assert source_of("2001:db8::1") == source_of("2001:db8::ffff:1")
    assert source_of("2001:db8::1") != source_of("2001:db8:0:1::1")
    assert source_of("::ffff:8.8.8.8") == source_of("8.8.8.8")


@pytest.mark.parametrize("address", [None, (), "8.8.8.8"])
def test_an_address_that_is_not_known_is_nobodys(address):
    assert failed(Penalties(), 10, address) == [0.0] * 10


def test_sources_are_bounded_and_the_latest_are_kept():
    penalties = Penalties()
    failed(penalties, 10)
    for number in range(MAX_SOURCES):
        penalties.fail((f"9.{number >> 16}.{number >> 8 & 255}.{number & 255}", 1), 100.0)
    assert len(penalties) == MAX_SOURCES == 4096
    assert penalties.fail(STRANGER, 100.0) == 0.0, "forgotten: in his favour"
