"""The command line: its errors, its exit codes, its one line on standard output."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.support.processes import run_python
from tunneltcp import __version__
from tunneltcp.cli import main as cli_main
from tunneltcp.cli import run as cli_run

ROOT = Path(__file__).parents[3]


def invoke(*words, group=True):
    return CliRunner().invoke(cli_main.main if group else cli_run.main, words)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("server", "/none.json"), "/none.json: cannot be read: no such file or directory"),
        (("client", "/none.json", "--server", "a"), "/none.json: cannot be read"),
        (("server", "/none.json", "--instance", "../x"), "is not a name for an instance"),
        (("server",), "/etc/tunneltcp/server.json: cannot be read"),
        (("server", "--instance", "web"), "/etc/tunneltcp/web.json: cannot be read"),
        (("client", "/none.json", "--bind", "::1"), "No such option"),
        (("nonsense",), "No such command"),
    ],
)
def test_usage_errors_leave_with_2(words, problem):
    done = invoke(*words)
    assert done.exit_code == 2
    assert problem in done.stderr
    assert "Traceback" not in done.output


def test_who_gives_no_config_is_told_what_to_give():
    assert "tunneltcp: give the config as FILE, or ports such as" in invoke("server").stderr
    assert invoke("client", "--server", "a").stderr.endswith(": give the config as FILE\n")
    assert "give the config" not in invoke("server", "/none.json").stderr


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--role", "server", "--config", "x", "--server", "a"), "--server is for the client"),
        (("--role", "client", "--config", "x", "--bind", "::1"), "--bind is for the server"),
        (("--role", "both",), "Invalid value"),
        ((), "Missing option '--role'"),
    ],
)  # fmt: skip
def test_usage_errors_of_the_module(words, problem):
    done = invoke(*words, group=False)
    assert done.exit_code == 2
    assert problem in done.stderr


def test_every_problem_of_a_config_is_told(tmp_path):
    path = tmp_path / "c.json"
    path.write_text('[{"remote_port": 0}, {"remote_port": 1, "hodl": 1}]')
    done = invoke("server", str(path))
    assert done.exit_code == 2
    assert done.stderr.splitlines() == [
        f"tunneltcp: {path}: tunnels[0].remote_port: 0 is not a port (1-65535)",
        f"tunneltcp: {path}: tunnels[1].hodl: is not a known key; did you mean hold?",
    ]


def test_the_version():
    assert __version__ in invoke("--version").stdout


def test_both_entry_points_exist():
    for module in ("tunneltcp", "tunneltcp.master"):
        done = subprocess.run(
            [sys.executable, "-m", module, "--help"],
            capture_output=True, text=True, cwd=ROOT, check=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert "Usage:" in done.stdout


def test_the_master_stays_lean():
    code = (
        "import sys, loguru, psutil, orjson, click; given = set(sys.modules); "
        "import tunneltcp.cli.run; new = set(sys.modules) - given; "
        "print(sorted(m for m in new if m.partition('.')[0] in ('rich', 'asyncio', 'ssl',"
        " 'multiprocessing', 'concurrent') or m.startswith('tunneltcp.workers')"
        " or m.startswith('tunneltcp.relay')))"
    )
    assert run_python(code) == "[]\n"


def test_asking_stays_leaner_still():
    """Who runs ``status`` in a script each second should not pay for a log and its friends."""
    code = (
        "import sys; import tunneltcp.cli.main as main; "
        "[main.main.get_command(None, name) for name in"
        " ('status', 'who', 'logs', 'restart', 'token', 'check', 'upgrade')]; "
        "large = {'loguru', 'asyncio', 'psutil', 'rich', 'ssl', 'tunneltcp.log'}; "
        "print(sorted(large & set(sys.modules)))"
    )
    assert run_python(code) == "[]\n"
