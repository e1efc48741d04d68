"""The units, read by systemd itself."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.processes import run_tunneltcp
from tests.support.require import require_program
from tests.support.service import ROOT

if TYPE_CHECKING:
    from pathlib import Path

SHIPPED = sorted((ROOT / "systemd").iterdir())


def verify(unit: Path, *words: str, runtime: Path | None = None) -> str:
    """Return what systemd has to say about a unit; it says nothing about a good one."""
    environment = dict(os.environ)
    if runtime is not None:
        environment["XDG_RUNTIME_DIR"] = str(runtime)
    done = subprocess.run(
        [require_program("systemd-analyze"), *words, "verify", str(unit)],
        capture_output=True,
        text=True,
        timeout=30,
        env=environment,
        check=False,
    )
    return (done.stdout + done.stderr) or ("" if done.returncode == 0 else "failed")


def test_there_are_units():
    assert [path.name for path in SHIPPED] == [
        "tunneltcp-client.service",
        "tunneltcp-server.service",
    ]


@pytest.mark.parametrize("shipped", SHIPPED, ids=lambda path: path.stem)
def test_what_is_shipped_is_right(shipped: Path, tmp_path: Path) -> None:
    unit = tmp_path / shipped.name
    text = shipped.read_text()
    assert "ExecStart=/opt/tunneltcp/venv/bin/python -P" in text
    unit.write_text(text.replace("/opt/tunneltcp/venv/bin/python", sys.executable))
    assert verify(unit) == ""


@pytest.mark.parametrize("user", [False, True], ids=["system", "user"])
def test_what_is_printed_is_right(user: bool, tmp_path: Path) -> None:
    config = tmp_path / 'odd "name" 100% $HOME.json'
    words = ["--role", "client", "--server", "vps.example.com", "--instance", "web"]
    words += ["--config", str(config), *(["--user"] if user else [])]
    where = ["--install", "--destination", str(tmp_path)]
    done = run_tunneltcp("service", "systemd", *words, *where)
    assert done.returncode == 0, done.stderr
    runtime = tmp_path / "runtime"
    runtime.mkdir(mode=0o700)
    unit = tmp_path / "tunneltcp-web.service"
    assert verify(unit, *(["--user"] if user else []), runtime=runtime) == ""


def test_a_mistake_is_noticed(tmp_path: Path) -> None:
    """Or the tests above would say nothing."""
    unit = tmp_path / "tunneltcp-web.service"
    run_tunneltcp(
        *("service", "systemd", "--role", "server", "--instance", "web"),
        *("--install", "--destination", str(tmp_path)),
    )
    unit.write_text(unit.read_text().replace("KillMode=mixed", "KillMode=mild"))
    assert "kill mode" in verify(unit)
