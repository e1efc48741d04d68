"""What measures: wrk, iperf3, and the kernel's books on processes."""

from __future__ import annotations

import re
import socket
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
import psutil

from benchmark.lab import BenchError, find_program, pause

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmark.lab import Lab, Program
    from benchmark.places import Endpoint, Place

__all__ = [
    "Bulk",
    "Requests",
    "ask_once",
    "bulk",
    "cpu_seconds",
    "pss_bytes",
    "requests",
    "start_iperf3",
    "start_nginx",
    "start_target",
]

EXTRA_SECONDS = 30.0
"""Beyond its own time, until a tool is given up."""

BUSY_TRIES = 20
"""iperf3 serves one test at a time, and may still be ending the last one."""

_UNITS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """What wrk saw."""

    rate: float
    """Per second."""
    count: int
    p50_ms: float
    p99_ms: float
    errors: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Bulk:
    """What iperf3 saw, at the end that received."""

    bits_per_second: float
    bytes_moved: int


def requests(
    where: Endpoint, connections: int, seconds: int, *, keep_alive: bool = True
) -> Requests:
    """Run wrk with one thread.

    Raises:
        BenchError: If it says nothing that can be understood.
    """
    url = f"http://{where[0]}:{where[1]}/"
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", url]
    command += [] if keep_alive else ["-H", "Connection: close"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=seconds + EXTRA_SECONDS, check=False
    )
    return parse_wrk(done.stdout, done.stderr)


def parse_wrk(said: str, complaint: str = "") -> Requests:
    """Read what wrk printed."""
    rate = re.search(r"Requests/sec:\s+([\d.]+)", said)
    count = re.search(r"(\d+) requests in", said)
    if rate is None or count is None:
        raise BenchError(f"wrk: {(complaint or said).strip()[-200:]}")
    found = {
        percent: float(value) * _UNITS[unit]
        for percent, value, unit in re.findall(r"(\d+)%\s+([\d.]+)(us|ms|s|m)\b", said)
    }
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+)", said)
    return Requests(
        rate=float(rate[1]),
        count=int(count[1]),
        p50_ms=found["50"],
        p99_ms=found["99"],
        errors=sum(map(int, errors.groups())) if errors else 0,
    )


def ask_once(where: Endpoint) -> None:
    """One request, so that what begins with the first visitor is over.

    Raises:
        OSError: If nobody answers.
    """
    with socket.create_connection(where, timeout=EXTRA_SECONDS) as sock:
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        if not sock.recv(1000):
            raise BenchError("the first visitor was sent away")


def bulk(
    where: Endpoint,
    *,
    down: bool,
    streams: int = 1,
    seconds: int = 1,
    omit: int = 0,
    total_bytes: int = 0,
    prefix: Sequence[str] = (),
) -> Bulk:
    """Run iperf3 once.

    Args:
        where: A server of iperf3, or a tunnel to one.
        down: Towards the visitor.
        streams: Connections at the same time.
        seconds: How long.
        omit: Seconds before that, not counted.
        total_bytes: Move so many instead of going on for ``seconds``.
        prefix: Words before the command.

    Raises:
        BenchError: If it does not work.
    """
    command = [*prefix, "iperf3", "-J", "-c", where[0], "-p", str(where[1]), "-P", str(streams)]
    command += ["-R"] if down else []
    command += (
        ["-n", str(total_bytes)] if total_bytes else ["-t", str(seconds), "-O", str(omit)]
    )
    said = ""
    for _try in range(BUSY_TRIES):
        done = subprocess.run(
            command,
            capture_output=True,
            timeout=seconds + omit + EXTRA_SECONDS,
            check=False,
        )
        with suppress(orjson.JSONDecodeError):
            answer = orjson.loads(done.stdout)
            received = answer.get("end", {}).get("sum_received")
            if received and received["bytes"]:
                return Bulk(
                    bits_per_second=received["bits_per_second"],
                    bytes_moved=received["bytes"],
                )
            said = answer.get("error", "")
        pause(0.2)
    raise BenchError(f"iperf3: {said or 'said nothing'}")


def cpu_seconds(programs: Sequence[Program]) -> float:
    """CPU time that programs and all below them have used."""
    total = 0.0
    for program in programs:
        for process in program.family():
            with suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system + times.children_user
                total += times.children_system
    return total


def pss_bytes(programs: Sequence[Program]) -> int:
    """Their share of memory (PSS): what is shared counts once, divided by who has it."""
    total = 0
    for program in programs:
        for process in program.family():
            with suppress(OSError):
                text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
                found = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
                total += int(found[1]) * 1024 if found else 0
    return total


def start_nginx(lab: Lab, place: Place) -> tuple[Program, int]:
    """Start an nginx with one worker that answers ``ok`` to everything."""
    folder, port = lab.new_folder("nginx"), lab.port()
    temporary = "".join(
        f"  {name}_temp_path temp/{name};\n"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "temp").mkdir()
    config = folder / "nginx.conf"
    config.write_text(
        "daemon off;\nworker_processes 1;\npid nginx.pid;\nerror_log error.log;\n"
        "events { worker_connections 16384; }\n"
        "http {\n  access_log off;\n  keepalive_requests 100000000;\n"
        f"  keepalive_timeout 600s;\n{temporary}"
        f"  server {{ listen {place.target_address}:{port} backlog=4096;\n"
        '    location / { default_type text/plain; return 200 "ok\\n"; }\n  }\n}\n'
    )
    folder.chmod(0o755)  # its worker is another user
    nginx = str(find_program("nginx"))
    command = [nginx, "-p", str(folder), "-c", str(config), "-e", "error.log"]
    program = lab.start("nginx", command, prefix=place.client_prefix)
    program.wait_listening(port)
    return program, port


def start_iperf3(lab: Lab, place: Place) -> tuple[Program, int]:
    """Start an iperf3 server."""
    port = lab.port()
    command = ["iperf3", "-s", "-B", place.target_address, "-p", str(port)]
    program = lab.start("iperf3", command, prefix=place.client_prefix)
    program.wait_listening(port)
    return program, port


def start_target(lab: Lab, place: Place) -> tuple[Program, int]:
    """Start our own target: echo, downloads, uploads."""
    port = lab.port()
    program = lab.python("target", f"{place.target_address}:{port}", prefix=place.client_prefix)
    program.wait_listening(port)
    return program, port
