"""Life signs by the clock."""

from __future__ import annotations

import pytest

from tunneltcp.protocol.liveness import Liveness, Verdict


@pytest.mark.parametrize(("busy", "silence"), [(True, 1.0), (False, 2.0)])
def test_a_silent_link(busy, silence):
    liveness = Liveness(2.0, 100.0)

    assert liveness.next_check(busy=busy) == 100 + silence
    assert liveness.check(100.9, busy=busy) is Verdict.NOTHING
    assert liveness.check(100 + silence, busy=busy) is Verdict.PING
    assert liveness.check(100 + silence, busy=busy) is Verdict.NOTHING
    assert liveness.next_check(busy=busy) == 102 + silence
    assert liveness.check(101.9 + silence, busy=busy) is Verdict.NOTHING
    assert liveness.check(102 + silence, busy=busy) is Verdict.DOUBT
    assert liveness.doubted
    assert liveness.check(110.0, busy=busy) is Verdict.NOTHING


def test_any_byte_is_a_sign_of_life():
    liveness = Liveness(2.0, 0.0)
    assert liveness.check(1.0, busy=True) is Verdict.PING
    assert not liveness.hear(1.5)

    assert liveness.next_check(busy=True) == 2.5
    assert liveness.check(2.4, busy=True) is Verdict.NOTHING
    assert liveness.check(2.5, busy=True) is Verdict.PING


def test_a_doubted_link_that_speaks_is_trusted_again():
    liveness = Liveness(2.0, 0.0)
    liveness.check(1.0, busy=True)
    assert liveness.check(3.0, busy=True) is Verdict.DOUBT

    assert liveness.hear(4.0)
    assert not liveness.doubted
    assert not liveness.hear(4.1)
    assert liveness.check(5.0, busy=True) is Verdict.NOTHING
    assert liveness.check(5.1, busy=True) is Verdict.PING


def test_asking_at_once():
    liveness = Liveness(30.0, 0.0)
    assert not liveness.ask(0.05), "it spoke just now"
    assert liveness.ask(10.0)
    assert not liveness.ask(10.5), "a PING is out already"
    assert not liveness.ask(10.5, whatever_came=True)
    assert liveness.next_check(busy=False) == 12.0
    assert liveness.check(12.0, busy=False) is Verdict.DOUBT


def test_asking_whatever_came():
    liveness = Liveness(30.0, 0.0)
    liveness.hear(11.0)
    assert not liveness.ask(11.0)
    assert liveness.ask(11.0, whatever_came=True)
    assert liveness.check(12.9, busy=False) is Verdict.NOTHING
    assert liveness.check(13.0, busy=False) is Verdict.DOUBT


def test_the_first_visitor_of_an_idle_link():
    liveness = Liveness(30.0, 0.0)
    assert liveness.next_check(busy=False) == 30.0
    assert liveness.next_check(busy=True) == 1.0
    assert liveness.check(20.0, busy=True) is Verdict.PING


def test_a_byte_in_the_very_moment_of_the_ping_is_no_answer():
    """It may have been under way before; the next one counts."""
    liveness = Liveness(2.0, 0.0)
    liveness.check(1.0, busy=True)
    liveness.hear(1.0)
    assert liveness.check(3.0, busy=True) is Verdict.DOUBT
