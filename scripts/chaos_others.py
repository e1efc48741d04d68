"""Planned restarts under wrk, idle visitors, and a machine that sleeps; see scripts/chaos."""

from __future__ import annotations

import os
import resource
import signal
import socket
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.support.apps import start_nginx
from tests.support.ports import free_port
from tests.support.processes import TunnelPair
from tests.support.storm import SIDES, Storm, pause
from tests.support.wait import wait_until
from tests.support.wrk import run_wrk

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

__all__ = ["idle", "make_storm", "restarts", "suspend"]

DESCRIPTORS: Final = 4096


def end(wrong: Sequence[str]) -> int:
    """Say how it was; return the exit code."""
    for line in wrong:
        print(f"WRONG: {line}")
    print("chaos: failed" if wrong else "chaos: all was well", flush=True)
    return 1 if wrong else 0


def make_storm(stack: ExitStack, folder: Path, options: argparse.Namespace) -> Storm:
    """Start a tunnel as it was asked for, whose visitors are to come."""
    return Storm(
        stack, folder, tls=options.tls, ipv6=options.ipv6, seed=options.seed, busy=options.busy
    )


# ---------------------------------------------------------------------------- restarts


def restarts(options: argparse.Namespace) -> int:
    """Restart workers while wrk asks a web server; return the exit code."""
    wrong = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tt-chaos-")))
        target = stack.enter_context(start_nginx(folder / "nginx", free_port()))
        pair = stack.enter_context(
            TunnelPair([target], folder, common={"tls": options.tls, "hold": 20})
        )
        for keep_alive in (True, False):
            run = run_wrk(pair, pair.port, keep_alive=keep_alive, restarts=options.count)
            print("with keep-alive:" if keep_alive else "without keep-alive:", run.output)
            wrong += run.wrong
    return end(wrong)


# -------------------------------------------------------------------------------- idle


def idle(options: argparse.Namespace) -> int:
    """Let visitors sit through deaths of both sides; return the exit code."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = options.visitors + DESCRIPTORS
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(wanted, hard)), hard))
    wrong: list[str] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tt-chaos-")))
        storm = Storm(stack, folder, tls=options.tls, ipv6=options.ipv6, seed=options.seed)
        visitors = [
            stack.enter_context(socket.create_connection((storm.host, storm.port), 20))
            for _ in range(options.visitors)
        ]
        wrong += _ask(visitors, b"echo\nfirst", b"first")
        for sides in (["server"], ["client"], list(SIDES)):
            old = {side: storm.master(side).worker_pid(storm.port) for side in sides}
            begin = time.monotonic()
            for pid in old.values():
                os.kill(pid, signal.SIGKILL)
            for side, pid in old.items():
                storm.master(side).wait_for_successor(storm.port, pid)
            storm.wait_ready()
            up = time.monotonic() - begin
            wrong += _ask(visitors, b"still here?", b"still here?")
            here = [master.tunnel(storm.port)["visitors"] for master in storm.masters]
            print(
                f"{' and '.join(sides)} killed: link up again after {up:.3f} s, all answered "
                f"after {time.monotonic() - begin:.3f} s, visitors {here}"
            )
            if here != [options.visitors] * 2:
                wrong.append(f"{here} visitors of {options.visitors}")
            pause(1.2)
    return end(wrong)


def _ask(visitors: Sequence[socket.socket], question: bytes, answer: bytes) -> list[str]:
    wrong = []
    for visitor in visitors:
        visitor.sendall(question)
    for number, visitor in enumerate(visitors):
        try:
            got = b""
            while len(got) < len(answer):
                piece = visitor.recv(100)
                if not piece:
                    break
                got += piece
        except OSError as error:
            wrong.append(f"visitor {number}: {error}")
        else:
            if got != answer:
                wrong.append(f"visitor {number}: {got!r} instead of {answer!r}")
    return wrong


# ----------------------------------------------------------------------------- suspend


def suspend(options: argparse.Namespace) -> int:
    """Stop masters and workers for a while, under load; return the exit code."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tt-chaos-")))
        storm = make_storm(stack, folder, options)
        storm.begin()
        # They need nobody to come and go: thousands would wait in the queue of the port.
        storm.send_away("hasty")
        workers = [master.worker_pid(storm.port) for master in storm.masters]
        everybody = [*workers, *(master.pid for master in storm.masters)]
        for pid in everybody:
            os.kill(pid, signal.SIGSTOP)
        print(f"stopped for {options.seconds:g} s", flush=True)
        pause(options.seconds)
        for pid in reversed(everybody):  # masters first: they see workers that are late
            os.kill(pid, signal.SIGCONT)
        begin = time.monotonic()
        storm.wait_ready()
        storm.wait_moving()
        print(f"all moves {time.monotonic() - begin:.2f} s after it went on")
        wait_until(lambda: time.monotonic() > begin + 5, 10)
        wrong = storm.end()
        now = [master.worker_pid(storm.port) for master in storm.masters]
        if now != workers:
            wrong.append(f"workers were {workers}, are {now}")
    return end(wrong)
