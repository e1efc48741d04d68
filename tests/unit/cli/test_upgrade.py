"""``upgrade``: what is asked, what is waited for, what is said."""

from __future__ import annotations

import orjson
import pytest
from click.testing import CliRunner

from tests.unit.cli.conftest import a_status, a_tunnel
from tunneltcp.cli import upgrade as cli_upgrade
from tunneltcp.cli.main import main
from tunneltcp.cli.masters import find_master


def run(*words):
    return CliRunner().invoke(main, ["upgrade", *map(str, words)])


def at(state, *tunnels, **values):
    upgrade = {
        "number": 4, "state": state, "from": "1.0", "to": "2.0", "canary": None,
        "reason": None, "replaced": [], "left": [], **values,
    }  # fmt: skip
    return a_status(*tunnels, upgrade=upgrade)


BEGUN = [{"number": 4, "from": "1.0"}]
TAKEN = {"streams": 14, "reset": 0, "stood_still_seconds": 0.0621}


def test_it_waits_until_all_run_the_new_code(script_master):
    tunnel, idle = a_tunnel(last_takeover=TAKEN), a_tunnel(60003, last_takeover=None)
    other = a_tunnel(
        60002, last_takeover={"streams": 1, "reset": 2, "stood_still_seconds": None}
    )
    master = script_master(
        upgrade=BEGUN,
        status=[
            a_status(), at("checking", to=None), at("handing over"), at("replacing"),
            at("replacing", replaced=[60001]),
            at("done", tunnel, other, idle, replaced=[60001, 60002]),
        ],
    )  # fmt: skip
    done = run()
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "60001: runs 2.0; 14 visitors went on after 0.06 s",
        "60002: runs 2.0; 1 visitor went on, 2 reset",
        "web: upgraded, 1.0 -> 2.0, process 7",
    ]
    assert master.heard() == [{"op": "upgrade"}]


def test_a_person_who_waits_hears_of_each_step(script_master):
    said: list[str] = []
    script_master(
        status=[
            at("checking", to=None), at("checking"), at("handing over"), at("replacing"),
            at("replacing", replaced=[60001]), at("done"),
        ],
    )  # fmt: skip
    master = find_master(None, None)
    cli_upgrade._wait(
        master, 4, lambda name, upgrade: said.append(f"{name} {upgrade['state']}")
    )
    assert said == ["web checking", "web handing over", "web replacing"]
    assert {step.partition(" ")[2] for step in said} == set(cli_upgrade._STEPS)


def test_a_canary(script_master):
    ended = at("canary", a_tunnel(last_takeover=None), replaced=[60001], left=[60002, 60003])
    master = script_master(upgrade=BEGUN, status=[a_status(), ended])
    done = run("--canary", 60001)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "60001: runs 2.0",
        "web: the master runs 2.0; 60002-60003 run on with 1.0",
        '"tunneltcp upgrade" goes on with all; to go back, install the version',
        'from before again, and "tunneltcp upgrade"',
    ]
    assert master.heard() == [{"op": "upgrade", "canary": 60001}]


def test_code_that_cannot_take_over(script_master):
    ended = at("refused", to=None, reason="SyntaxError: invalid syntax\x1b[2J")
    script_master(upgrade=BEGUN, status=[a_status(), ended])
    done = run()
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == (
        "tunneltcp: web: nothing was changed: SyntaxError: invalid syntax\\x1b[2J\n"
    )


def test_a_worker_that_does_not_come_up(script_master):
    ended = at("failed", reason="60001 does not come up", left=[60002])
    script_master(upgrade=BEGUN, status=[a_status(), ended])
    done = run()
    assert done.exit_code == 1
    assert done.stderr.splitlines() == [
        "tunneltcp: web: the master runs 2.0, but 60001 does not come up",
        "tunneltcp: 60002 run on as they were, with 1.0",
        'tunneltcp: "tunneltcp upgrade" tries again; to go back, install the version before it',
    ]


@pytest.mark.parametrize(("state", "code"), [("done", 0), ("refused", 1), ("failed", 1)])
def test_as_json(script_master, state, code):
    script_master(upgrade=BEGUN, status=[a_status(), at(state, reason="why")])
    done = run("--json")
    assert (done.exit_code, done.stderr) == (code, "")
    answer = orjson.loads(done.stdout)
    assert 0 <= answer.pop("seconds") < 10
    assert (answer["instance"], answer["state"], answer["reason"]) == ("web", state, "why")


@pytest.mark.parametrize("now", [a_status(upgrade=None), at("done", number=1)])
def test_a_master_that_was_started_anew_meanwhile(script_master, now):
    script_master(upgrade=BEGUN, status=[a_status(), now])
    done = run()
    assert done.exit_code == 1
    assert "web: the master was started anew" in done.stderr
    assert "the new code did not take over" in done.stderr


def test_nobody_waits_for_ever(script_master, monkeypatch):
    monkeypatch.setattr(cli_upgrade, "_STANDSTILL_SECONDS", 0.3)
    script_master(upgrade=BEGUN, status=[a_status(), at("replacing")])
    done = run()
    assert (done.exit_code, done.stderr) == (1, "tunneltcp: web: not done after 0.3 s\n")


def test_what_a_master_refuses_is_said(script_master):
    script_master(upgrade=[{"error": "an upgrade is under way"}], status=[a_status()])
    done = run()
    assert done.exit_code == 1
    assert 'instance "web" answers: an upgrade is under way' in done.stderr
