"""Which master is meant: nothing is guessed where there are several."""

from __future__ import annotations

import socket

import click
import pytest
from click.testing import CliRunner

from tests.unit.cli.conftest import a_status, a_tunnel
from tunneltcp.cli import ask as cli_ask
from tunneltcp.cli import masters as cli_masters
from tunneltcp.cli.main import main


def run(*words):
    return CliRunner().invoke(main, [*map(str, words)])


def test_a_port_that_only_one_has_needs_no_name(script_master):
    one = script_master("one", kick=[{"port": 60001, "kicked": 1}])
    other = script_master("two", status=[a_status(a_tunnel(60002), instance="two")])
    assert run("kick", 60001, "--all").exit_code == 0
    assert len(one.heard()) == 1
    assert other.heard() == []


def test_a_port_that_two_have_needs_a_name(script_master):
    masters = [script_master(n, kick=[{"port": 60001, "kicked": 1}]) for n in ("one", "two")]
    done = run("kick", 60001, "--all")
    assert done.exit_code == 2
    assert done.stderr.splitlines() == [
        "tunneltcp: port 60001 is a tunnel of 2 masters; say which one:",
        "tunneltcp:   --instance one",
        "tunneltcp:   --instance two",
    ]
    assert run("kick", 60001, "--all", "--instance", "two").exit_code == 0
    assert run("kick", 60001, "--all", "--run-dir", masters[0].folder).exit_code == 0
    assert [len(master.heard()) for master in masters] == [1, 1]


def test_two_of_the_same_name_are_told_apart_by_their_folders(script_master):
    folders = [script_master(n, status=[a_status(instance="x")]).folder for n in ("a", "b")]
    done = run("reload")
    assert done.exit_code == 2
    assert [line.split()[-1] for line in done.stderr.splitlines()[1:]] == [*map(str, folders)]


def test_a_port_that_nobody_has(script_master):
    script_master(status=[a_status(a_tunnel(60001), a_tunnel(60002), a_tunnel(60007))])
    done = run("who", 60009)
    assert done.exit_code == 1
    assert done.stderr == (
        'tunneltcp: instance "web" has no tunnel 60009; it has 60001-60002, 60007\n'
    )


def test_nobody_runs(base):
    for words in (("restart", 60001), ("reload",), ("who", 60001)):
        done = run(*words)
        assert done.exit_code == 1
        assert "no instance is running" in done.stderr


@pytest.mark.parametrize(
    "words", [("restart",), ("restart", "web"), ("stop", 0), ("who", 65536)]
)
def test_a_wrong_port_is_a_usage_error(base, words):
    assert run(*words).exit_code == 2


def complete(incomplete="", **params):
    context = click.Context(click.Command("restart"))
    context.params.update(params)
    items = cli_masters.complete_port(context, click.Argument(["port"]), incomplete)
    return [(item.value, item.help) for item in items]


def test_ports_are_completed_from_what_runs(script_master, monkeypatch):
    monkeypatch.setattr(cli_masters, "_COMPLETE_SECONDS", 10)  # a busy machine is no reason
    script_master("one", status=[a_status(a_tunnel(60002), a_tunnel(60001), a_tunnel(7))])
    script_master("two", status=[a_status(a_tunnel(60003))])
    assert complete("6") == [(str(p), f"app-{p}") for p in (60001, 60002, 60003)]
    assert complete("60003") == [("60003", "app-60003")]
    assert complete(instance="two") == [("60003", "app-60003")]
    assert complete(instance="none") == []


def test_completion_does_not_wait_for_a_master_that_hangs(script_master, base, monkeypatch):
    given = {}

    def ask(folder, request, seconds):
        """Who answers may take his time, on a machine that is busy."""
        given[folder.name] = seconds
        return cli_ask.ask(folder, request, seconds if folder.name == "deaf" else 10)

    monkeypatch.setattr(cli_masters, "ask", ask)
    script_master("web")
    with socket.socket(socket.AF_UNIX) as deaf:  # nobody accepts
        (base / "deaf").mkdir()
        deaf.bind(str(base / "deaf" / "control.sock"))
        deaf.listen()
        assert complete() == [("60001", "app-60001")]
    assert given == {"web": 0.5, "deaf": 0.5}
