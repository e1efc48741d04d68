"""Whether a goal is reached, and whether a regression is gross: pure decisions."""

from __future__ import annotations

import pytest

from benchmark.goals import GATES, GOALS, Bound, Quiet, Ratio, behind, judge
from benchmark.results import Metric, Results


def metric(key, *, is_lower_better=False):
    row = int(key.split(".")[0])
    return Metric(row=row, key=key, title=key, unit="u", is_lower_better=is_lower_better)


def results(**figures):
    """From ``key__way=value``, with dots written as one underscore."""
    found = Results()
    for name, value in figures.items():
        key, way = name.removeprefix("r").split("__")
        found.add(metric(key.replace("_", ".")), way.replace("_", "-"), value)
    return found


def usual(factor=1.0):
    """A run as it usually is, with our figures times ``factor``."""
    found = Results()
    for gate in GATES:
        for key, way in gate.others:
            found.add(metric(key), way, 100.0)
        ratio = 0.5 if gate.rows == {1, 3} or gate.rows == {2, 3} else 1.0  # TLS beside plain
        found.add(metric(gate.key), gate.way, 100.0 * ratio * factor)
    return found


def test_a_usual_run_breaks_no_gate():
    assert GATES
    assert [one.is_met for one in judge(usual(), GATES)] == [True] * len(GATES)


def test_a_slow_tunnel_breaks_every_gate():
    assert [one.is_met for one in judge(usual(factor=0.05), GATES)] == [False] * len(GATES)


def test_slower_by_a_quarter_breaks_none():
    assert all(one.is_met for one in judge(usual(factor=0.75), GATES))


def test_what_was_not_measured_is_neither_met_nor_broken():
    assert GOALS
    verdicts = judge(Results(), (*GATES, *GOALS))
    assert {one.is_met for one in verdicts} == {None}
    assert {one.figure for one in verdicts} == {"not measured"}


def test_a_ratio_is_held_against_the_best_of_the_others():
    ratio = Ratio(
        text="t", key="1.a", way="ours", factor=1.2, others=(("1.a", "x"), ("1.b", "y"))
    )
    verdict = ratio.judge(results(r1_a__ours=120, r1_a__x=90, r1_b__y=100))
    assert verdict.is_met is True
    assert verdict.figure == "1.20 times (y)"
    assert ratio.judge(results(r1_a__ours=120, r1_a__x=101)).is_met is False
    assert ratio.judge(results(r1_a__ours=119, r1_b__y=100)).is_met is False
    assert ratio.rows == {1}


def test_a_bound_may_be_reached_and_not_passed():
    bound = Bound(text="t", key="7.a", way="ours", bound=360, unit="MB")
    assert bound.judge(results(r7_a__ours=360)).is_met is True
    assert bound.judge(results(r7_a__ours=360.1)).is_met is False
    assert bound.rows == {7}


@pytest.mark.parametrize(
    ("p99", "rate", "is_met"), [(80, 95, True), (81, 95, False), (80, 89, False)]
)
def test_a_quiet_visitor_needs_short_trips_at_the_full_rate(p99, rate, is_met):
    goal = Quiet(text="t", key="5.down", idle_key="5.idle.p50", extra_ms=60, rate=90)
    seen = results(r5_idle_p50__ours=20, r5_down_p99__ours=p99, r5_down_rate__ours=rate)
    assert goal.judge(seen).is_met is is_met
    assert goal.rows == {5}


def test_each_goal_names_rows_and_figures_that_exist():
    for goal in (*GOALS, *GATES):
        assert goal.rows <= set(range(1, 10))


def test_behind_says_who_is_ahead_and_by_what():
    found = Results()
    found.add(metric("1.rate"), "ours", 100.0)
    found.add(metric("1.rate"), "frp", 120.0)
    found.add(metric("1.close"), "ours", 100.0)
    found.add(metric("1.close"), "frp", 104.0)
    found.add(metric("1.p99", is_lower_better=True), "ours", 10.0)
    found.add(metric("1.p99", is_lower_better=True), "frp", 5.0)
    found.add(metric("1.better", is_lower_better=True), "ours", 1.0)
    found.add(metric("1.better", is_lower_better=True), "frp", 5.0)
    found.add(metric("1.alone"), "frp", 5.0)
    assert behind(found, ["ours"], ["frp"]) == [
        "row 1, 1.rate: frp 120 u, ours 100",
        "row 1, 1.p99: frp 5 u, ours 10",
    ]
    assert behind(found, ["frp"], ["ours"]) == ["row 1, 1.better: ours 1 u, ours 5"]


def test_the_median_and_the_spread_are_of_all_samples():
    found = Results()
    for value in (3.0, 1.0, 2.0):
        found.add(metric("1.a"), "ours", value)
    assert found.median("1.a", "ours") == 2.0
    assert found.spread("1.a", "ours") == (1.0, 3.0)
    assert found.median("1.a", "frp") is None
    assert found.as_json()[0]["samples"] == {"ours": [3.0, 1.0, 2.0]}
