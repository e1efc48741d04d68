"""Fuzz the parsers for a while; see scripts/fuzz."""

from __future__ import annotations

import argparse
import hashlib
import random
import re
import signal
import subprocess
import sys
import sysconfig
import time
import traceback
import venv
from pathlib import Path
from typing import TYPE_CHECKING, Final

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["fuzz_at_random"]

ATHERIS: Final = "atheris==3.0.0"
PLACE: Final = ROOT / ".fuzz"
ENVIRONMENT: Final = ROOT / ".venv-fuzz"
INPUT_SECONDS: Final = 5
"""One input that takes longer is a finding."""
MEMORY_MIB: Final = 1024
"""A process that grows beyond is one too; it begins with some 60."""
SPARE_SECONDS: Final = 60
"""For starting, and for ending by itself; then atheris is killed."""


def fuzz_at_random(
    target: Callable[[bytes], None],
    seeds: Sequence[bytes],
    seconds: float,
    found: Path,
    *,
    rng: random.Random,
    max_bytes: int,
) -> tuple[int, list[Path]]:
    """Change inputs at random for a time; return how many there were, and what was found.

    ``found`` is the folder of the inputs that were found; they are tried first.
    """
    signal.signal(signal.SIGALRM, _too_slow)
    end = time.monotonic() + seconds
    kept = sorted(found.glob("*"))
    findings = [path for path in kept if not _survives(target, path.read_bytes())]
    count = len(kept)
    while time.monotonic() < end and len(findings) < 10:
        data = _changed(rng, seeds)[:max_bytes]
        count += 1
        if not _survives(target, data):
            path = found / f"crash-{hashlib.sha256(data).hexdigest()[:16]}"
            path.write_bytes(data)
            findings.append(path)
    return count, findings


def _peak_mib() -> int:
    """Return the most memory this process has had; see VmHWM in proc_pid_status(5).

    Not ``ru_maxrss``: that begins with what the process had that started this one.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) // 1024


def _too_slow(_number: int, _frame: object) -> None:
    raise TimeoutError(f"one input took more than {INPUT_SECONDS} s")


def _survives(target: Callable[[bytes], None], data: bytes) -> bool:
    signal.alarm(INPUT_SECONDS)
    try:
        target(data)
    except Exception:  # noqa: BLE001 - whatever it is, it is what we look for
        traceback.print_exc(limit=-4, file=sys.stdout)
        return False
    finally:
        signal.alarm(0)
    return True


def _changed(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Return one of the seeds, or two of them, with some changes."""
    data = bytearray(rng.choice(seeds))
    if rng.random() < 0.2:
        other = rng.choice(seeds)
        data[rng.randrange(len(data) + 1) :] = other[rng.randrange(len(other) + 1) :]
    for _ in range(rng.choice((0, 1, 1, 2, 4, 16))):
        at = rng.randrange(len(data) + 1)
        size = rng.choice((1, 1, 2, 4, 8, 16, 64))
        match rng.randrange(6):
            case 0 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at : at + size] = rng.randbytes(size)
            case 2:
                data[at:at] = rng.randbytes(size)
            case 3:
                del data[at : at + size]
            case 4:
                data[at:at] = data[at : at + size * rng.choice((1, 16))]
            case _:
                edge = rng.choice((0, 1, 2**16, 2**31, 2**32, 2**62, 2**62 + 1, 2**64 - 1))
                data[at : at + 8] = edge.to_bytes(8, "big")
    return bytes(data)


# --------------------------------------------------------------------------- atheris


def _atheris() -> Path | None:
    """Return the interpreter that has atheris; None, and say why, if it cannot be had."""
    python = ENVIRONMENT / "bin/python"
    if _has_atheris(python):
        return python
    print(f"fuzz: installing {ATHERIS} into {ENVIRONMENT.name}", flush=True)
    try:
        venv.create(ENVIRONMENT, with_pip=True, clear=True)
        packages = Path(sysconfig.get_path("purelib"))
        here = next((ENVIRONMENT / "lib").glob("python*/site-packages"))
        (here / "tunneltcp-tools.pth").write_text(f"{packages}\n")
        command = [str(python), "-m", "pip", "install", "--quiet", "--only-binary=:all:"]
        subprocess.run([*command, ATHERIS], check=True, timeout=300)
    except (OSError, subprocess.SubprocessError) as error:
        print(f"fuzz: {error}")
    if _has_atheris(python):
        return python
    print("fuzz: atheris cannot be had for this Python")
    return None


def _has_atheris(python: Path) -> bool:
    try:
        command = [str(python), "-c", "import atheris"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _fuzz_with_atheris(python: Path, name: str, seconds: float) -> tuple[int, list[Path]]:
    """Run atheris in a process of its own."""
    found, corpus = PLACE / name / "found", PLACE / name / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    before = set(found.glob("*"))
    command = [
        str(python), str(Path(__file__)), "--child", name,
        f"-max_total_time={max(1, int(seconds))}", f"-timeout={INPUT_SECONDS}",
        f"-rss_limit_mb={MEMORY_MIB}", f"-artifact_prefix={found}/", "-print_final_stats=1",
        "-verbosity=0", str(corpus), str(found),
    ]  # fmt: skip
    log = PLACE / name / "log"
    with log.open("wb") as output:
        done = subprocess.run(
            command, stdout=output, stderr=output, cwd=ROOT, check=False,
            timeout=seconds + SPARE_SECONDS,
        )  # fmt: skip
    text = log.read_text(errors="replace")
    units = re.search(r"stat::number_of_executed_units:\s*(\d+)", text)
    count = int(units[1]) if units else 0
    findings = sorted(set(found.glob("*")) - before)
    if done.returncode and not findings:
        findings = [log]
    if findings:
        print(text[-3000:])
    return count, findings


def _child(name: str, arguments: Sequence[str]) -> None:
    """Within atheris' interpreter: never returns."""
    import atheris  # type: ignore[import-untyped, import-not-found, unused-ignore]

    with atheris.instrument_imports(include=["tunneltcp"]):
        from tests.support.fuzz_targets import MAX_INPUT_BYTES, SEEDS, TARGETS
    corpus = Path(arguments[-2])
    for number, seed in enumerate(SEEDS[name]):
        (corpus / f"seed-{number}").write_bytes(seed)
    atheris.Setup([sys.argv[0], f"-max_len={MAX_INPUT_BYTES}", *arguments], TARGETS[name])
    atheris.Fuzz()


# ----------------------------------------------------------------------------- main


def main() -> int:
    """Fuzz what the command line names; return 1 if anything was found."""
    from tests.support.fuzz_targets import MAX_INPUT_BYTES, SEEDS, TARGETS

    parser = argparse.ArgumentParser(prog="scripts/fuzz")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target")
    parser.add_argument("--engine", choices=["atheris", "random"])
    words = parser.parse_args()
    if unknown := [name for name in words.targets if name not in TARGETS]:
        parser.error(f"there is no target {unknown[0]}; there are {', '.join(TARGETS)}")
    python = None if words.engine == "random" else _atheris()
    if words.engine == "atheris" and python is None:
        return 1
    print(f"fuzz: {'atheris' if python else 'inputs changed at random'}", flush=True)
    failed = False
    for name in words.targets or TARGETS:
        found = PLACE / name / "found"
        found.mkdir(parents=True, exist_ok=True)
        if python is not None:
            count, findings = _fuzz_with_atheris(python, name, words.seconds)
        else:
            count, findings = fuzz_at_random(
                TARGETS[name], SEEDS[name], words.seconds, found,
                rng=random.Random(), max_bytes=MAX_INPUT_BYTES,
            )  # fmt: skip
            if _peak_mib() > MEMORY_MIB:
                print(f"fuzz: it took more than {MEMORY_MIB} MiB of memory")
                findings.append(found)
        what = f"FOUND {', '.join(map(str, findings))}" if findings else "nothing found"
        print(f"fuzz: {name}: {count} inputs in {words.seconds:g} s: {what}", flush=True)
        failed |= bool(findings)
    return int(failed)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        _child(sys.argv[2], sys.argv[3:])
    sys.exit(main())
