"""``scripts/install``, for real, into a folder of the test."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.service import ROOT
from tunneltcp import __version__

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]  # it downloads on a new machine


def run(
    *words: str, environment: dict[str, str] | None = None, umask: int = -1
) -> subprocess.CompletedProcess[str]:
    given = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "PYTHON"}}
    return subprocess.run(
        [ROOT / "scripts/install", *words],
        capture_output=True,
        text=True,
        timeout=200,
        # Compiling takes a third of the time and changes nothing here.
        env={**given, "PIP_NO_COMPILE": "1", **(environment or {})},
        cwd="/",
        umask=umask,
        check=False,
    )


def command(prefix: Path, *words: str) -> str:
    return subprocess.run(
        [prefix / "bin/tunneltcp", *words],
        capture_output=True,
        text=True,
        timeout=30,
        cwd="/",
        check=True,
    ).stdout


def install_old(prefix: Path) -> Path:
    """Pretend that an older version was installed there; return its release."""
    release = prefix / "releases" / "20200101T000000.1"
    (release / "bin").mkdir(parents=True)
    (release / "bin/tunneltcp").write_text("#!/bin/sh\necho the old one\n")
    (release / "bin/tunneltcp").chmod(0o755)
    (prefix / "venv").symlink_to("releases/20200101T000000.1")
    (prefix / "bin").mkdir()
    (prefix / "bin/tunneltcp").symlink_to(prefix / "venv/bin/tunneltcp")
    return release


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where it was installed once, over two older versions, for all tests."""
    folder = tmp_path_factory.mktemp("install") / "with a blank" / "tunneltcp"
    install_old(folder)
    (folder / "releases" / "20190101T000000.1").mkdir()
    done = run("--prefix", str(folder), umask=0o077)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "next   tunneltcp" in done.stdout
    assert f'export PATH="{folder}/bin:$PATH"' in done.stdout
    return folder


def test_the_command_works(prefix: Path) -> None:
    assert __version__ in command(prefix, "--version")
    assert "running" in subprocess.run(
        [prefix / "bin/tunneltcp", "status", "--run-dir", "/nowhere"],
        capture_output=True, text=True, timeout=30, check=False,
    ).stderr  # fmt: skip


@pytest.mark.skipif(os.geteuid() != 0, reason="who is not root installs for himself")
@pytest.mark.needs_root
def test_what_root_installs_is_for_all_to_run_whatever_his_umask_is(prefix: Path) -> None:
    installed = [
        path for path in (prefix / "venv").resolve().rglob("*") if not path.is_symlink()
    ]
    assert installed
    closed = [path for path in installed if path.stat().st_mode & 0o044 != 0o044]
    assert closed == []


def test_a_service_names_the_path_that_stays_over_upgrades(prefix: Path) -> None:
    text = command(prefix, "service", "supervisor", "--role", "server")
    assert f"{prefix}/venv/bin/python" in text
    assert "releases" not in text


def test_an_upgrade_keeps_the_version_before(prefix: Path) -> None:
    """What runs may still need it."""
    names = sorted(path.name for path in (prefix / "releases").iterdir())
    assert len(names) == 2
    assert names[0] == "20200101T000000.1"
    assert (prefix / "venv").resolve().name == names[1]


def test_an_upgrade_that_fails_leaves_the_old_version(tmp_path: Path) -> None:
    old = install_old(tmp_path)
    # An environment without pip: nothing can be installed, and it takes no time to see that.
    lame = f"""case "$*" in
      *_base_executable*) echo "$0" ;;
      "-m venv "*) shift 2; exec {sys.executable} -m venv --without-pip "$@" ;;
      *) exec {sys.executable} "$@" ;;
    esac"""
    (tmp_path / "lame").mkdir()
    python = fake_python(tmp_path / "lame", lame)
    done = run("--prefix", str(tmp_path), environment={"PYTHON": python})
    assert done.returncode == 1
    assert "No module named pip" in done.stderr
    assert "nothing was changed" in done.stderr
    assert list((tmp_path / "releases").iterdir()) == [old]
    assert command(tmp_path) == "the old one\n"


def test_a_foreign_command_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/tunneltcp").write_text("mine")
    done = run("--prefix", str(tmp_path))
    assert done.returncode == 1
    assert "belongs to another installation" in done.stderr
    assert (tmp_path / "bin/tunneltcp").read_text() == "mine"


def fake_python(folder: Path, text: str) -> str:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        # What Debian's python3 says where python3-venv was left out.
        ('case "$2" in *ensurepip*) exit 1;; *print*) echo "$0";; esac', "python3-venv"),
        ('[ "$1" = --version ] && echo Python 3.9.2; exit 1', "3.9.2 is too old"),
    ],
)
def test_a_python_that_will_not_do(text: str, problem: str, tmp_path: Path) -> None:
    done = run(
        "--prefix", str(tmp_path / "new"), environment={"PYTHON": fake_python(tmp_path, text)}
    )
    assert done.returncode == 1
    assert problem in done.stderr
    assert not list((tmp_path / "new/releases").iterdir())


def test_no_python_at_all(tmp_path: Path) -> None:
    done = run("--prefix", str(tmp_path / "new"), environment={"PYTHON": "python-of-nobody"})
    assert done.returncode == 1
    assert "apt-get install" in done.stderr


def test_what_is_for_one_user_is_in_his_home(tmp_path: Path) -> None:
    done = run(
        "--user", "--uninstall", environment={"HOME": str(tmp_path), "XDG_DATA_HOME": ""}
    )
    assert done.returncode == 1
    assert f"nothing was installed in {tmp_path}/.local/share/tunneltcp" in done.stderr


@pytest.mark.parametrize("words", [["--nonsense"], ["--prefix"]])
def test_usage_errors(words: list[str]) -> None:
    done = run(*words)
    assert done.returncode == 1
    assert done.stderr.startswith("install: ")


def test_removing_takes_only_what_was_installed(tmp_path: Path) -> None:
    release = tmp_path / "releases/1/bin"
    release.mkdir(parents=True)
    (tmp_path / "venv").symlink_to("releases/1")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/tunneltcp").symlink_to(tmp_path / "venv/bin/tunneltcp")
    (tmp_path / "bin/other").touch()
    done = run("--prefix", str(tmp_path), "--uninstall")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["bin", "other"]
