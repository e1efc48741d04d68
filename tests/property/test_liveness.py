"""Life signs: a link that speaks is never doubted, a silent one is, and in time."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tunneltcp.protocol.liveness import DOUBT_SECONDS, Liveness, Verdict

# Sixty-fourths of a second: sums of them are exact.
ticks = st.integers(1, 64 * 6).map(lambda n: n / 64)
under_a_second = st.integers(1, 63).map(lambda n: n / 64)
idle_pings = st.sampled_from([2.0, 30.0])


def run_until(liveness, now, end, busy, wanted):
    """Check whenever it is due, up to ``end``; the times of the verdicts wanted."""
    times: list[float] = []
    while True:
        due = max(now, liveness.next_check(busy=busy))
        if due > end or liveness.doubted:
            return times
        now = due
        if liveness.check(now, busy=busy) is wanted:
            times.append(now)
        elif now == due and liveness.next_check(busy=busy) <= now:
            raise AssertionError("next_check is due at once, but there is nothing to do")


@given(
    idle_pings, st.lists(st.tuples(under_a_second, st.booleans(), st.booleans()), max_size=60)
)
def test_a_link_that_speaks_each_second_is_never_doubted(idle_ping, steps):
    liveness = Liveness(idle_ping, 0.0)
    now = 0.0
    for gap, busy, asks in steps:
        assert not run_until(liveness, now, now + gap, busy, Verdict.DOUBT)
        now += gap
        if asks:
            liveness.ask(now)
        assert not liveness.hear(now)
        assert not liveness.doubted


@given(idle_pings, st.booleans(), ticks)
def test_a_silent_link_is_asked_and_doubted_on_time(idle_ping, busy, start):
    liveness: Any = Liveness(idle_ping, start)
    silence = 1.0 if busy else idle_ping

    assert liveness.next_check(busy=busy) == start + silence
    assert liveness.check(start + silence - 1 / 64, busy=busy) is Verdict.NOTHING
    assert liveness.check(start + silence, busy=busy) is Verdict.PING
    assert liveness.next_check(busy=busy) == start + silence + 2
    assert liveness.check(start + silence + 2 - 1 / 64, busy=busy) is Verdict.NOTHING
    assert not liveness.doubted
    assert liveness.check(start + silence + 2, busy=busy) is Verdict.DOUBT
    assert liveness.doubted
    assert liveness.check(start + silence + 9, busy=busy) is Verdict.NOTHING
    assert liveness.hear(start + silence + 10)
    assert not liveness.doubted
    assert not liveness.hear(start + silence + 11)


@given(
    idle_pings,
    st.lists(st.tuples(st.sampled_from(["check", "hear", "ask"]), ticks, st.booleans())),
)
def test_doubt_needs_two_seconds_of_silence_after_a_ping(idle_ping, steps):
    """Whatever a driver does, and however late it is."""
    liveness = Liveness(idle_ping, 0.0)
    now = heard = 0.0
    asked = None
    for step, gap, busy in steps:
        now += gap
        if step == "hear":
            liveness.hear(now)
            heard, asked = now, None
            assert not liveness.doubted
        elif step == "ask":
            if liveness.ask(now):
                assert asked is None, "a second PING while the first is out"
                asked = now
        else:
            verdict = liveness.check(now, busy=busy)
            if verdict is Verdict.PING:
                assert asked is None, "a second PING while the first is out"
                assert now - heard >= (1.0 if busy else idle_ping)
                asked = now
            elif verdict is Verdict.DOUBT:
                assert asked is not None, "doubted without having been asked"
                assert now - asked >= DOUBT_SECONDS
            elif asked is None:
                assert now - heard < (1.0 if busy else idle_ping), "a PING was due"
            else:
                assert now - asked < DOUBT_SECONDS or liveness.doubted, "doubt was due"


@given(ticks, ticks)
def test_when_asked_for_a_life_sign_silence_shows_in_two_seconds(start, gap):
    liveness = Liveness(30.0, start)

    sent = liveness.ask(start + gap)

    assert sent == (gap >= 0.1)
    if sent:
        assert not liveness.ask(start + gap)
        assert run_until(liveness, start + gap, start + 99, False, Verdict.DOUBT) == [
            start + gap + 2
        ]


@given(ticks)
def test_an_idle_link_that_gets_a_visitor_is_asked_sooner(gap):
    liveness = Liveness(30.0, 0.0)
    now = gap

    assert liveness.check(now, busy=False) is Verdict.NOTHING
    expected = Verdict.PING if gap >= 1 else Verdict.NOTHING
    assert liveness.check(now, busy=True) is expected
