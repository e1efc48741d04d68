"""``token``, and who on this machine is believed about one."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from tests.support.require import require_root
from tests.unit.cli.conftest import a_status
from tunneltcp.cli.main import main
from tunneltcp.cli.servers_here import servers_here
from tunneltcp.config import token_files

NOBODY = 65_534


def run(*words):
    return CliRunner().invoke(main, ["token", *map(str, words)])


def a_server(state, **values):
    return a_status(state_dir=str(state), token="its own place, as by default", **values)


@pytest.fixture
def state(tmp_path):
    folder = tmp_path / "state"
    folder.mkdir()
    token_files.make_token(folder)
    return folder


class TestWhoPlaysAServer:
    """Anybody may in a folder of his own, and root is told of all folders."""

    def test_is_not_believed_by_root(self, script_master, base_of_states, state):
        require_root()
        stranger = script_master(user=NOBODY, status=[a_server(state)])
        done = run()
        assert (done.exit_code, done.stdout) == (1, "")
        assert f"there is no token in {base_of_states}/server" in done.stderr
        assert servers_here() == [base_of_states / "server"]
        assert stranger.heard(status=True) == []

    def test_is_believed_where_he_is_named(self, script_master, state):
        require_root()
        named = script_master(user=NOBODY, status=[a_server(state)])
        done = run("--run-dir", named.folder)
        assert (done.exit_code, done.stdout.split()) == (0, token_files.own_tokens(state))

    def test_a_server_of_ours_is_found(self, script_master, base_of_states, state):
        script_master(status=[a_server(state)])
        assert run().stdout.split() == token_files.own_tokens(state)
        assert servers_here() == [state, base_of_states / "server"]


class TestAServerNamedByItsStateFolder:
    def test_that_runs_is_told(self, script_master, state):
        master = script_master(status=[a_server(state)], **{"reload-tokens": [{"tunnels": 1}]})
        assert run("rotate", "--state-dir", state).stderr == ""
        done = run("retire", "--state-dir", state)
        assert (done.exit_code, done.stderr) == (0, "")
        assert done.stdout == 'server "web": the old token is not good any more\n'
        assert master.heard() == [{"op": "reload-tokens"}] * 2

    def test_that_is_not_found_is_not_said_to_know(self, script_master, state, tmp_path):
        other = script_master(status=[a_server(tmp_path / "other")])
        token_files.rotate_token(state)
        done = run("retire", "--state-dir", state)
        assert done.exit_code == 0
        assert done.stdout == f"the old token was removed from {state}\n"
        assert "it takes this when it starts" in done.stderr
        assert other.heard() == []

    def test_with_a_run_folder_of_its_own_is_named_by_both(self, script_master, base, state):
        (base / "elsewhere").mkdir()
        master = script_master(
            "elsewhere/web", status=[a_server(state)], **{"reload-tokens": [{"tunnels": 1}]}
        )
        assert run("rotate", "--state-dir", state).stderr != ""
        words = ("--state-dir", state, "--run-dir", master.folder)
        assert run("retire", *words).stderr == ""
        assert len(master.heard()) == 1
