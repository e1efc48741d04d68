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
def home(tmp_path, monkeypatch):
    """Where the tokens of this user lie by default."""
    folder = tmp_path / "home"
    for module in ("servers_here", "token"):
        monkeypatch.setattr(f"tunneltcp.cli.{module}.state_base", lambda: folder)
    return folder


@pytest.fixture
def state(tmp_path):
    folder = tmp_path / "state"
    folder.mkdir()
    token_files.make_token(folder)
    return folder


class TestWhoPlaysAServer:
    """Anybody may in a folder of his own, and root is told of all folders."""

    def test_is_not_believed_by_root(self, script_master, home, state):
        require_root()
        stranger = script_master(user=NOBODY, status=[a_server(state)])
        done = run()
        assert (done.exit_code, done.stdout) == (1, "")
        assert f"there is no token in {home}/server" in done.stderr
        assert servers_here() == [home / "server"]
        assert stranger.heard(status=True) == []

    def test_is_believed_where_he_is_named(self, script_master, state):
        require_root()
        named = script_master(user=NOBODY, status=[a_server(state)])
        done = run("--run-dir", named.folder)
        assert (done.exit_code, done.stdout.split()) == (0, token_files.own_tokens(state))

    def test_a_server_of_ours_is_found(self, script_master, home, state):
        script_master(status=[a_server(state)])
        assert run().stdout.split() == token_files.own_tokens(state)
        assert servers_here() == [state, home / "server"]
