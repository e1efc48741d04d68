"""How much memory a process has."""

from __future__ import annotations

from pathlib import Path

__all__ = ["memory"]


def memory(pid: int, kind: str) -> int:
    """Some kind of a process's memory, bytes; see proc(5)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{kind}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no line for {kind}")
