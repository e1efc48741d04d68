"""``login``: what is kept, and what is said about clients that run beside it."""

from __future__ import annotations

import sys

import pytest
from click.testing import CliRunner

from tests.unit.cli.conftest import a_status
from tunneltcp.cli import login
from tunneltcp.cli.main import main
from tunneltcp.config import token_files

TOKEN = "a-token-of-at-least-32-characters"
OLD = "the-token-before-it, 32 characters"


def log_in(*words, token=TOKEN):
    words = ("login", "vps", "--no-check", *map(str, words))
    return CliRunner().invoke(main, words, input=token)


@pytest.fixture
def client(script_master, base_of_states):
    """A client of that server that runs here, with what it keeps below the usual place."""
    status = a_status(
        role="client", server="vps", token="its own place, as by default",
        state_dir=str(base_of_states / "web"),
    )  # fmt: skip
    return script_master(status=[status], **{"reload-tokens": [{"tunnels": 1}]})


def test_a_client_that_looks_there_is_told(client, base_of_states):
    done = log_in()
    assert done.exit_code == 0
    assert done.stdout.splitlines()[1:] == ['client "web" uses it from now on']
    assert client.heard() == [{"op": "reload-tokens"}]


def test_a_client_with_a_login_of_its_own_is_not_said_to_use_it(client, base_of_states):
    kept = token_files.keep_login("vps", OLD, base_of_states / "web")
    done = log_in()
    assert done.stdout.splitlines()[1:] == [f'client "web" goes on with the one in {kept}']
    assert client.heard() == []
    done = log_in("--state-dir", base_of_states / "web")
    assert done.stdout.splitlines()[1:] == ['client "web" uses it from now on']


def test_a_client_that_does_not_look_there_is_not_said_to_use_it(client, tmp_path):
    done = log_in("--state-dir", tmp_path / "elsewhere")
    assert (done.exit_code, len(done.stdout.splitlines())) == (0, 1)
    assert client.heard() == []


def test_without_a_standard_input_nothing_was_given(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert login._ask("vps") == ""
