"""What machine a run was on."""

from __future__ import annotations

import datetime
import os
import platform
import re
from pathlib import Path
from typing import Any

import psutil

from benchmark.lab import ROOT
from benchmark.ways import output_of

__all__ = ["describe"]


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def describe() -> dict[str, Any]:
    """What could matter to the figures; nothing that names the machine or its user."""
    model = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return {
        "when": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": output_of("git", "-C", str(ROOT), "describe", "--always", "--dirty"),
        "processor": model[1] if model else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "load_before": round(os.getloadavg()[0], 2),
        "kernel": platform.release().split("-")[0],
        "python": platform.python_version(),
        "congestion": _read("/proc/sys/net/ipv4/tcp_congestion_control").strip(),
        "tools": [
            output_of("wrk", "-v"),
            output_of("iperf3", "--version"),
            output_of("nginx", "-v"),
        ],
    }
