"""wrk, which asks a web server as often as it can, while workers are restarted."""

from __future__ import annotations

import re
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.support.require import require_program
from tests.support.storm import pause

if TYPE_CHECKING:
    from tests.support.processes import TunnelPair

__all__ = ["WrkRun", "run_wrk"]

RESTART_SECONDS = 0.4
"""From one restart to the next: a worker is back within a tenth of that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WrkRun:
    """What came of it."""

    requests: int
    wrong: list[str]
    """Requests that failed, in wrk's words."""
    output: str


def run_wrk(
    pair: TunnelPair, port: int, *, keep_alive: bool, restarts: int, connections: int = 16
) -> WrkRun:
    """Ask through a tunnel, and restart its workers so many times, the two sides in turn."""
    wrk = require_program("wrk")
    seconds = max(2, round(restarts * RESTART_SECONDS) + 1)
    command = [wrk, "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "--timeout", "10s"]
    command += [] if keep_alive else ["-H", "Connection: close"]
    begin = time.monotonic()
    done = 0
    with subprocess.Popen(
        [*command, f"http://127.0.0.1:{port}/"], stdout=subprocess.PIPE, text=True
    ) as process:
        while done < restarts and process.poll() is None:
            pause(max(0.0, begin + 0.2 + done * RESTART_SECONDS - time.monotonic()))
            master = (pair.server, pair.client)[done % 2]
            master.wait_for_successor(port, master.restart_worker(port))
            done += 1
        output = process.communicate(timeout=seconds + 30)[0]
    wrong = re.findall(r"Socket errors: .*|Non-2xx .*", output)
    if not keep_alive:  # then it prints the line also where all are 0
        wrong = [line for line in wrong if re.search(r"[1-9]", line)]
    served = re.search(r"(\d+) requests in", output)
    if done < restarts:
        wrong.append(f"only {done} of {restarts} restarts within {seconds} s")
    return WrkRun(requests=int(served[1]) if served else 0, wrong=wrong, output=output.strip())
