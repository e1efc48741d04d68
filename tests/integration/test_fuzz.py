"""scripts/fuzz: it ends by itself, says what it did, and keeps what it found."""

from __future__ import annotations

import importlib.util
import random
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.service import ROOT

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType


@pytest.fixture
def fuzz() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_script", ROOT / "scripts/fuzz.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_a_short_run_ends_by_itself() -> None:
    words = ["control", "preface", "--seconds", "1", "--engine", "random"]
    done = subprocess.run(
        [ROOT / "scripts/fuzz", *words], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stdout + done.stderr
    engine, *lines = done.stdout.splitlines()
    assert engine == "fuzz: inputs changed at random"
    assert [line.split()[1] for line in lines] == ["control:", "preface:"]
    for line in lines:
        assert int(line.split()[2]) > 100
        assert line.endswith("inputs in 1 s: nothing found")


def test_its_memory_is_its_own(fuzz: ModuleType) -> None:
    """What a parent has had is no finding; what the process itself has, is."""
    before = fuzz._peak_mib()
    ballast = bytearray(b"x") * (before + 100 << 20)
    assert fuzz._peak_mib() >= before + 100
    script = str(ROOT / "scripts/fuzz.py")
    code = f"import runpy; print(runpy.run_path({script!r})['_peak_mib']())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert 0 < int(done.stdout) < before + 100 <= len(ballast) >> 20


def test_no_such_target() -> None:
    done = subprocess.run(
        [ROOT / "scripts/fuzz", "nothing"], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 2
    assert "there are preface, frames, server, client, control" in done.stderr


def test_what_it_finds_is_kept_and_tried_first(
    fuzz: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def target(data: bytes) -> None:
        if b"B" in data:
            raise KeyError("on cue")

    before = signal.getsignal(signal.SIGALRM)
    try:
        count, found = fuzz.fuzz_at_random(
            target, [b"seed A"], 10, tmp_path, rng=random.Random(1), max_bytes=100
        )
        assert found
        assert all(b"B" in path.read_bytes() for path in found)
        assert "KeyError: 'on cue'" in capsys.readouterr().out
        again = fuzz.fuzz_at_random(
            target, [b"seed A"], 0, tmp_path, rng=random.Random(1), max_bytes=100
        )
        assert again == (len(found), sorted(found))
        assert count >= len(found)
    finally:
        signal.signal(signal.SIGALRM, before)
