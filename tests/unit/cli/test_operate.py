"""``restart``, ``stop``, ``start``, ``reload``, ``kick``: what is asked, and what is said."""

from __future__ import annotations

import re

import orjson
import pytest
from click.testing import CliRunner

from tests.unit.cli.conftest import a_status, a_tunnel
from tunneltcp.cli import operate
from tunneltcp.cli.main import main


def run(*words):
    return CliRunner().invoke(main, [*map(str, words)])


def statuses(*tunnels):
    return [a_status(tunnel) for tunnel in tunnels]


def test_restart_waits_for_the_successor(script_master):
    master = script_master(
        status=statuses(
            a_tunnel(pid=100), a_tunnel(pid=100), a_tunnel(pid=None, state="backoff"),
            a_tunnel(pid=101, state="starting"), a_tunnel(pid=101),
        ),
        restart=[{"port": 60001, "pid": 100}],
    )  # fmt: skip
    done = run("restart", 60001)
    assert (done.exit_code, done.stderr) == (0, "")
    assert re.fullmatch(r"60001: restarted, process 100 -> 101, in \d+\.\d\d s\n", done.stdout)
    assert master.heard() == [{"op": "restart", "port": 60001}]


def test_restart_as_json(script_master):
    script_master(
        status=statuses(a_tunnel(), a_tunnel(pid=101)), restart=[{"port": 60001, "pid": 100}]
    )
    answer = orjson.loads(run("restart", "60001", "--json").stdout)
    assert 0 <= answer.pop("seconds") < 15
    assert answer == {"port": 60001, "old_pid": 100, "pid": 101}


def test_restart_gives_up_and_says_where_to_look(script_master, monkeypatch):
    monkeypatch.setattr(operate, "_START_SECONDS", 0.2)
    script_master(
        status=statuses(a_tunnel(), a_tunnel(pid=None, state="backoff", reason="busy\x1b[2J")),
        restart=[{"port": 60001, "pid": 100}],
    )
    done = run("restart", 60001)
    assert done.exit_code == 1
    first, second = done.stderr.splitlines()
    assert re.fullmatch(
        r"tunneltcp: 60001: no successor of process 100 runs after \d+ s; it is backoff:"
        r" busy\\x1b\[2J",
        first,
    )
    assert second == 'tunneltcp: "tunneltcp logs 60001" says more'


def test_nobody_waits_for_what_is_fatal(script_master, monkeypatch):
    monkeypatch.setattr(operate, "_HOPE_SECONDS", 0.1)
    script_master(
        status=statuses(a_tunnel(pid=None, state="fatal", reason="no permission")),
        start=[{"port": 60001, "state": "starting"}],
    )
    done = run("start", 60001)
    assert done.exit_code == 1
    (seconds,) = re.findall(
        r"it does not run after (\d+) s; it is fatal: no permission", done.stderr
    )
    assert int(seconds) < operate._START_SECONDS


def test_a_tunnel_that_vanishes_meanwhile(script_master):
    script_master(
        status=[a_status(), a_status(a_tunnel(60009))], restart=[{"port": 60001, "pid": 100}]
    )
    done = run("restart", 60001)
    assert (done.exit_code, done.stderr) == (1, "tunneltcp: 60001: was removed meanwhile\n")


def test_stop_waits_until_it_is_stopped(script_master):
    script_master(
        status=statuses(
            a_tunnel(visitors=3),
            a_tunnel(state="stopping"),
            a_tunnel(state="stopped", pid=None),
        ),
        stop=[{"port": 60001, "state": "stopping"}],
    )
    done = run("stop", 60001)
    assert done.exit_code == 0
    assert done.stderr == "60001: stopping; 3 visitors may finish first\n"
    assert done.stdout == '60001: stopped; "tunneltcp start 60001" opens it again\n'


def test_stop_and_start_of_what_is_so_already(script_master):
    master = script_master(
        status=statuses(a_tunnel(state="stopped", pid=None)),
        stop=[{"port": 60001, "state": "stopped", "warning": "it cannot be stored"}],
    )
    done = run("stop", 60001)
    assert (done.exit_code, done.stdout) == (0, "60001: was stopped already\n")
    assert done.stderr == "tunneltcp: it cannot be stored\n"
    master.stop()
    master = script_master("other", start=[{"port": 60001, "state": "running"}])
    done = run("start", 60001)
    assert (done.exit_code, done.stdout) == (0, "60001: runs already, process 100\n")


def test_start(script_master):
    script_master(
        status=statuses(a_tunnel(state="stopped", pid=None), a_tunnel(pid=5)),
        start=[{"port": 60001, "state": "starting"}],
    )
    assert run("start", 60001).stdout == "60001: runs, process 5\n"


def test_start_and_stop_as_json(script_master):
    script_master(
        status=statuses(a_tunnel(visitors=1), a_tunnel(state="stopped", pid=None), a_tunnel()),
        stop=[{"port": 60001, "state": "stopping"}],
        start=[{"port": 60001, "state": "starting"}],
    )
    done = run("stop", 60001, "--json")
    answer = orjson.loads(done.stdout)
    assert (answer["port"], answer["state"], done.stderr) == (60001, "stopped", "")
    answer = orjson.loads(run("start", 60001, "--json").stdout)
    assert (answer["port"], answer["state"], answer["pid"]) == (60001, "running", 100)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"added": [60004, 60005], "removed": [], "changed": [60002], "unchanged": 2},
         "web: reloaded: added 60004-60005; changed 60002; 2 unchanged\n"),
        ({"added": [], "removed": [60001], "changed": [], "unchanged": 0},
         "web: reloaded: removed 60001; 0 unchanged\n"),
        ({"added": [], "removed": [], "changed": [], "unchanged": 3, "different": False},
         "web: reloaded: nothing is different; all tunnels keep their processes\n"),
        ({"added": [], "removed": [], "changed": [], "unchanged": 3, "different": True},
         "web: reloaded: other settings; all tunnels keep their processes\n"),
    ],
)  # fmt: skip
def test_reload(script_master, answer, said):
    script_master(reload=[answer])
    done = run("reload")
    assert (done.exit_code, done.stdout) == (0, said)
    assert orjson.loads(run("reload", "--json").stdout) == answer


def test_a_config_that_was_not_taken_tells_every_problem(script_master):
    answer = {"error": "the config was not taken: a: b", "problems": ["a: b", "c: d"]}
    script_master(reload=[answer])
    done = run("reload")
    assert done.exit_code == 2
    assert done.stderr.splitlines() == [
        "tunneltcp: web: the config was not taken, all goes on as before",
        "tunneltcp: a: b",
        "tunneltcp: c: d",
    ]
    done = run("reload", "--json")
    assert (done.exit_code, orjson.loads(done.stdout)) == (2, answer)


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ((17,), {"visitor": 17}),
        (("--address", "203.0.113.9"), {"address": "203.0.113.9"}),
        (("--address", "[2001:DB8:0::1]"), {"address": "2001:db8::1"}),
        (("--all",), {"all": True}),
    ],
)
def test_kick(script_master, words, asked):
    master = script_master(kick=[{"port": 60001, "kicked": 2}])
    done = run("kick", 60001, *words)
    assert (done.exit_code, done.stdout) == (0, "60001: reset 2 visitors\n")
    assert master.heard() == [{"op": "kick", "port": 60001, **asked}]


def test_kicking_nobody_is_not_done_unless_all_were_meant(script_master):
    script_master(kick=[{"port": 60001, "kicked": 0}])
    done = run("kick", 60001, 17)
    assert (done.exit_code, done.stdout) == (1, "")
    assert 'there is no visitor 17; see "tunneltcp who 60001"' in done.stderr
    assert "no visitor from 192.0.2.1" in run("kick", 60001, "--address", "192.0.2.1").stderr
    done = run("kick", 60001, "--all")
    assert (done.exit_code, done.stdout) == (0, "60001: reset 0 visitors\n")
    done = run("kick", 60001, 17, "--json")
    assert (done.exit_code, orjson.loads(done.stdout)["kicked"]) == (1, 0)


@pytest.mark.parametrize(
    "words",
    [
        (),
        (17, "--all"),
        ("--all", "--address", "192.0.2.1"),
        ("--address", "a.example"),
        ("0",),
        ("9" * 30,),
    ],
)
def test_whom_to_kick_must_be_plain(script_master, words):
    master = script_master()
    assert run("kick", 60001, *words).exit_code == 2
    assert master.heard() == []


def test_what_a_master_refuses_is_said(script_master):
    script_master(restart=[{"error": "tunnel 60001 is stopped"}])
    done = run("restart", 60001)
    assert done.exit_code == 1
    assert done.stderr == 'tunneltcp: instance "web" answers: tunnel 60001 is stopped\n'
    done = run("kick", 60001, "--all")
    assert "unknown request" in done.stderr
