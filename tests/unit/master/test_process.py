"""The life of a worker, over all pairs of state and input."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunneltcp.master.process import (
    BLOCKED_DELAYS,
    RESTART_DELAYS,
    START_SECONDS,
    TRANSITIONS,
    Action,
    Input,
    ProcessLife,
    ProcessState,
)

S, I, A = ProcessState, Input, Action  # noqa: E741
ALIVE = {S.STARTING, S.RUNNING, S.STOPPING}


def life(drain=5.0) -> ProcessLife:
    return ProcessLife(drain_seconds=drain, jitter=lambda _low, high: high)


def after(*inputs: tuple[Input, float]) -> ProcessLife:
    made = life()
    for happened, now in inputs:
        made.handle(happened, now)
    return made


def test_the_way_of_a_healthy_worker():
    one = life()
    assert one.handle(I.START, 0.0) == (A.SPAWN,)
    assert (one.state, one.deadline) == (S.STARTING, START_SECONDS)
    assert one.handle(I.READY, 0.1) == ()
    assert (one.state, one.deadline) == (S.RUNNING, None)
    assert one.handle(I.STOP, 50.0) == (A.DRAIN,)
    assert (one.state, one.deadline) == (S.STOPPING, 55.25)
    assert one.handle(I.EXIT, 51.0) == ()
    assert (one.state, one.deadline, one.restarts) == (S.STOPPED, None, 0)


def test_one_that_ran_for_a_while_is_replaced_at_once():
    one = after((I.START, 0.0), (I.READY, 0.1), (I.EXIT, 10.0))
    assert (one.state, one.deadline) == (S.BACKOFF, 10.0)
    assert one.handle(I.TIME_UP, 10.0) == (A.SPAWN,)
    assert one.restarts == 1


def test_one_that_exceeds_its_budget_at_once_waits_longer_and_longer():
    """It is looked at every few seconds, which is longer than what counts as sound."""
    one = after((I.START, 0.0))
    now, delays = 0.0, []
    for _ in range(6):
        now += 0.1
        one.handle(I.READY, now)
        now += 5.0
        assert one.handle(I.EXCEED, now) == (A.KILL,)
        one.handle(I.EXIT, now)
        assert one.deadline is not None
        delays.append(round(one.deadline - now, 3))
        now = one.deadline
        assert one.handle(I.TIME_UP, now) == (A.SPAWN,)
    assert delays == list(RESTART_DELAYS[:6])
    one.handle(I.READY, now)
    one.handle(I.EXCEED, now + 61)
    one.handle(I.EXIT, now + 61)
    assert one.deadline == now + 61, "one that took a minute to fill it is as good as new"
    one.handle(I.TIME_UP, now + 61)
    one.handle(I.READY, now + 61)
    one.handle(I.EXIT, now + 63)
    assert one.deadline == now + 63, "another death is judged as ever"


def test_one_that_keeps_crashing_waits_longer_and_longer_and_never_gives_up():
    one = after((I.START, 0.0))
    delays = []
    now = 0.0
    for _ in range(15):
        one.handle(I.EXIT, now)
        assert one.deadline is not None
        delays.append(round(one.deadline - now, 6))
        now = one.deadline
        assert one.handle(I.TIME_UP, now) == (A.SPAWN,)
    assert delays == [*RESTART_DELAYS, 30.0, 30.0, 30.0, 30.0, 30.0]
    one.handle(I.READY, now)
    one.handle(I.EXIT, now + 10)
    assert one.deadline == now + 10, "a stable run must forget the failures before it"
    one.handle(I.TIME_UP, now + 10)
    one.handle(I.EXIT, now + 11)
    assert one.deadline == now + 11, "the first failure after it is a first one again"


def test_a_blocked_start_is_no_restart_and_is_tried_each_few_seconds():
    one = after((I.START, 0.0))
    delays = []
    now = 0.0
    for _ in range(6):
        one.handle(I.BLOCKED, now)
        assert (one.state, one.restarts) == (S.BACKOFF, 0)
        assert one.deadline is not None
        delays.append(one.deadline - now)
        now = one.deadline
        one.handle(I.TIME_UP, now)
    assert delays == [*BLOCKED_DELAYS, 5.0, 5.0]


def test_one_that_is_never_ready_is_killed_and_then_counts_as_failed():
    one = after((I.START, 0.0))
    assert one.handle(I.TIME_UP, 10.0) == (A.KILL,)
    assert one.state.name == "STARTING", "it is not gone before its exit was seen"
    assert one.handle(I.TIME_UP, 11.0) == (A.KILL,)
    one.handle(I.EXIT, 11.5)
    assert one.state.name == "BACKOFF"


def test_fatal_is_tried_again_after_five_minutes():
    one = after((I.START, 0.0), (I.EXIT_PERMANENT, 1.0))
    assert (one.state, one.deadline) == (S.FATAL, 301.0)
    assert one.handle(I.TIME_UP, 301.0) == (A.SPAWN,)


def test_replacing_kills_first_and_spawns_after_the_exit():
    one = after((I.START, 0.0), (I.READY, 0.1))
    assert one.handle(I.REPLACE, 20.0) == (A.KILL,)
    assert one.state is S.RUNNING
    assert one.handle(I.EXIT, 20.1) == ()
    assert one.handle(I.TIME_UP, 20.1) == (A.SPAWN,)


def test_stopping_is_drain_then_stop_then_kill():
    one = after((I.START, 0.0), (I.READY, 0.1), (I.STOP, 1.0))
    assert one.handle(I.TIME_UP, 6.25) == (A.SAY_STOP,)
    assert one.handle(I.TIME_UP, 7.25) == (A.KILL,)
    assert one.handle(I.TIME_UP, 8.25) == (A.KILL,)
    assert one.handle(I.EXIT, 9.0) == ()
    assert one.state is S.STOPPED


@pytest.mark.parametrize(("seconds", "deadline"), [(2.0, 13.25), (60.0, 15.25)])
def test_another_drain_counts_for_who_is_seen_off_if_it_is_shorter(seconds, deadline):
    one = after((I.START, 0.0), (I.READY, 0.1), (I.STOP, 10.0))
    one.take_drain(seconds, 11.0)
    assert one.deadline == deadline
    assert one.handle(I.TIME_UP, deadline) == (A.SAY_STOP,)
    one.take_drain(0.0, deadline)
    assert one.deadline == deadline + 1.0, "told to stop, which is another matter"


def test_another_drain_is_for_the_next_stop_of_who_runs():
    one = after((I.START, 0.0), (I.READY, 0.1))
    one.take_drain(2.0, 9.0)
    one.handle(I.STOP, 10.0)
    assert one.deadline == 12.25


def test_stopping_now_skips_the_drain():
    one = after((I.START, 0.0), (I.READY, 0.1), (I.STOP, 1.0))
    assert one.handle(I.STOP_NOW, 2.0) == (A.SAY_STOP,)
    assert one.deadline == 2.25
    assert one.handle(I.TIME_UP, 2.25) == (A.KILL,)


def test_a_start_while_stopping_comes_after_the_exit():
    one = after((I.START, 0.0), (I.READY, 0.1), (I.STOP, 1.0))
    assert one.handle(I.START, 2.0) == ()
    assert one.handle(I.EXIT, 3.0) == (A.SPAWN,)
    assert one.state is S.STARTING


def test_the_jitter_stays_within_bounds():
    seen = []

    def jitter(low, high):
        seen.append((low, high))
        return low

    one = ProcessLife(drain_seconds=5, jitter=jitter)
    for happened in (I.START, I.EXIT, I.TIME_UP, I.EXIT):
        one.handle(happened, 0.0)
    assert one.deadline == pytest.approx(0.075)
    assert seen == [(0.75, 1.0)] * 2


@pytest.mark.parametrize(("state", "happened"), list(product(S, I)))
def test_every_pair_ends_in_a_state_and_spawns_only_where_nobody_lives(state, happened):
    next_state, actions, _ = TRANSITIONS.get((state, happened), (state, (), None))
    if A.SPAWN in actions:
        assert state not in ALIVE
        assert next_state is S.STARTING
    if {A.KILL, A.DRAIN, A.SAY_STOP} & set(actions):
        assert state in ALIVE
        assert next_state in ALIVE
    if next_state not in ALIVE and state in ALIVE:
        assert happened in (I.EXIT, I.EXIT_PERMANENT, I.BLOCKED), "only an exit ends a worker"
    if next_state is S.RUNNING and state is not S.RUNNING:
        assert happened is I.READY


@given(st.lists(st.tuples(st.sampled_from(I), st.floats(0, 60)), max_size=40))
def test_any_history_then_a_stop_ends_in_stopped(history):
    one = life()
    alive = False
    now = 0.0
    timed = [step for one_ in history for step in (one_, (I.TIME_UP, 0.0))]
    for happened, pause in [*timed, (I.STOP, 0.0)]:
        now += pause
        if happened is I.TIME_UP and (one.deadline is None or one.deadline > now):
            continue
        # As the world is: only what lives can exit, and a blocked spawn made nobody.
        if happened in (I.EXIT, I.EXIT_PERMANENT, I.READY, I.REPLACE) and not alive:
            continue
        if happened is I.BLOCKED:
            continue
        if happened in (I.EXIT, I.EXIT_PERMANENT):
            alive = False
        for action in one.handle(happened, now):
            if action is A.SPAWN:
                assert not alive, "two workers at one time"
                alive = True
        assert alive == (one.state in ALIVE)
        if one.state not in (S.STOPPED, S.RUNNING):
            assert one.deadline is not None, "it would wait for ever"
    for _ in range(6):
        if one.state is S.STOPPED:
            break
        assert one.deadline is not None
        actions = one.handle(I.TIME_UP, one.deadline)
        if A.KILL in actions:
            one.handle(I.EXIT, now)
    assert one.state is S.STOPPED
