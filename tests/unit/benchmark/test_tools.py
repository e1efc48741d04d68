"""What the tools print is understood, and options of the command line."""

from __future__ import annotations

import argparse

import pytest

from benchmark.catalogue import OF_OUR_OWN, WAYS
from benchmark.cli import MEASURE, complain, numbers
from benchmark.goals import Verdict
from benchmark.lab import BenchError, Lab, Program
from benchmark.results import ROWS
from benchmark.tools import parse_wrk

WRK = """Running 2s test @ http://127.0.0.1:27001/
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   709.10us  233.47us   8.68ms   94.21%
    Req/Sec    45.30k     2.55k   49.86k    85.71%
  Latency Distribution
     50%  670.00us
     75%  752.00us
     90%    0.88ms
     99%    1.40ms
  94666 requests in 2.10s, 14.54MB read
{errors}Requests/sec:  45083.03
Transfer/sec:      6.92MB
"""


def test_wrk_is_understood():
    seen = parse_wrk(WRK.format(errors=""))
    assert (seen.rate, seen.count, seen.errors) == (45083.03, 94666, 0)
    assert (seen.p50_ms, seen.p99_ms) == pytest.approx((0.67, 1.4))


def test_errors_that_wrk_saw_are_counted():
    line = "  Socket errors: connect 1, read 2, write 3, timeout 4\n"
    assert parse_wrk(WRK.format(errors=line)).errors == 6


def test_what_wrk_complains_of_is_told():
    with pytest.raises(BenchError, match="unable to connect"):
        parse_wrk("", "unable to connect to 127.0.0.1")


def test_rows_are_numbers_and_ranges():
    assert numbers("1-3,5") == [1, 2, 3, 5]
    assert set(MEASURE) == set(ROWS)
    for wrong in ("0", "10", "3-12"):
        with pytest.raises(argparse.ArgumentTypeError):
            numbers(wrong)


def test_each_way_has_a_key_of_its_own():
    keys = [way.key for way in WAYS]
    assert len(set(keys)) == len(keys)
    assert set(OF_OUR_OWN) < set(keys)


def test_a_broken_gate_is_an_exit_of_1_and_is_told(capsys):
    fine = Verdict(text="fine", figure="1 times", is_met=True)
    unknown = Verdict(text="unknown", figure="not measured", is_met=None)
    slow = Verdict(text="slow", figure="0.1 times", is_met=False)
    assert complain([fine, unknown]) == 0
    assert complain([fine, slow]) == 1
    said = capsys.readouterr().err
    assert "gross regression: slow is 0.1 times" in said
    assert "not measured: unknown" in said


def test_what_fails_on_its_way_up_is_taken_down_again():
    def fail(lab, started):
        with lab.undo_on_failure():
            started.append(lab.start("sleep", ["sleep", "60"]))
            raise BenchError("no")

    with Lab() as lab:
        started: list[Program] = []
        with pytest.raises(BenchError):
            fail(lab, started)
        assert started[0].process.poll() is not None
        kept = lab.start("sleep", ["sleep", "60"])
        assert kept.process.poll() is None
    assert kept.process.poll() is not None
    assert not lab.folder.exists()
