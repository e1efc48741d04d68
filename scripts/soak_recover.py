"""How long until the first byte is through again: the distribution, for each kind of loss.

One visitor for each of some tunnels, all cut at the same time. Each asks an ``echo`` app once
and the time until its answer counts: from the loss where the network is there all the time,
from the network's return where it was away.
"""

from __future__ import annotations

import random
import selectors
import socket
import statistics
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.apps import Apps
from tests.support.emulator import inside
from tests.support.journey import Journey
from tests.support.processes import TunnelPair

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

__all__ = ["KINDS", "recover"]

ANSWER_SECONDS = 40.0
"""No answer for so long is a failure, not a sample."""
PROMISE_SECONDS = 5.0
"""What no loss may exceed at its 99th percentile."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One way to lose links."""

    text: str
    path: bool = False
    """Whether it wants an emulated path, and so root."""
    delay: float = 0.0
    """Each way, seconds."""
    away: tuple[float, float] = (0.0, 0.0)
    """Seconds of silence, from and to; the clock starts behind them."""


KINDS = {
    "reset": Kind("RST to both ends"),
    "close": Kind("FIN to both ends"),
    "half-open": Kind("the old connection goes silent, new ones pass"),
    "drop": Kind("no packet passes for 1 to 8 s", path=True, away=(1, 8)),
    "drop-100ms": Kind("the same at 100 ms of RTT", path=True, delay=0.05, away=(1, 8)),
    "drop-800ms": Kind("the same at 800 ms of RTT", path=True, delay=0.4, away=(1, 8)),
    "long-drop": Kind("no packet passes for 65 to 90 s", path=True, away=(65, 90)),
    "killed": Kind("ss -K on the client's host", path=True),
    "address": Kind("the client's address is replaced", path=True),
}
USUAL = [name for name in KINDS if name != "long-drop"]


class Bench:
    """Tunnels, one visitor each, and a way to cut them all."""

    def __init__(self, stack: ExitStack, folder: Path, kind: Kind, tunnels: int) -> None:
        self.journey: Journey | None = None
        if kind.path:
            self.journey = Journey(stack, folder, ["echo"] * tunnels)
            self.journey.path.change(delay=kind.delay)
            self.wait_links: Callable[[], None] = self.journey.wait_links
            self.ports, host = self.journey.ports, self.journey.host
            with inside(self.journey.hosts.server.name):
                self.visitors = [self._visit(stack, host, port) for port in self.ports]
        else:
            apps = stack.enter_context(Apps())
            self.pair = stack.enter_context(
                TunnelPair([apps.add("echo")] * tunnels, folder, chaos=True)
            )
            self.wait_links = self.pair.wait_links
            self.ports = self.pair.ports
            self.visitors = [self._visit(stack, "127.0.0.1", port) for port in self.ports]
        self.round = 0

    @staticmethod
    def _visit(stack: ExitStack, host: str, port: int) -> socket.socket:
        return stack.enter_context(socket.create_connection((host, port), 20))

    def cut(self, name: str, kind: Kind, chance: random.Random) -> list[float]:
        """Lose all links once; return how long each visitor waited.

        Raises:
            RuntimeError: If one was not answered, or wrongly.
        """
        self.wait_links()
        pause(chance.uniform(0.05, 1.5))  # at any moment of the PINGs' rhythm
        self._lose(name)
        self.round += 1
        question = self.round.to_bytes(8, "big")
        for visitor in self.visitors:
            visitor.sendall(question)
        if kind.away[1]:
            pause(chance.uniform(*kind.away))
        begin = time.monotonic()
        if self.journey is not None:
            self.journey.path.change(silent=False)
        try:
            return answers(self.visitors, question, begin)
        finally:
            if self.journey is None:
                for relay in self.pair.relays.values():
                    relay.heal()

    def _lose(self, name: str) -> None:
        if self.journey is None:
            for relay in self.pair.relays.values():
                if name == "half-open":
                    relay.silence("existing")
                else:
                    (relay.reset if name == "reset" else relay.close)()
        elif name == "killed":
            ports = " or ".join(f"dport = {port}" for port in self.ports)
            self.journey.hosts.client.kill_connections(f"( {ports} )")
        elif name == "address":
            self.journey.move_client()
        else:
            self.journey.path.change(silent=True)


def pause(seconds: float) -> None:
    """Let time pass."""
    time.sleep(seconds)  # noqa: TID251 - it is what is measured


def answers(visitors: Sequence[socket.socket], question: bytes, begin: float) -> list[float]:
    """Wait until all are answered; return when each was, seconds from ``begin``."""
    seconds = []
    with selectors.DefaultSelector() as selector:
        for visitor in visitors:
            selector.register(visitor, selectors.EVENT_READ)
        while selector.get_map():
            left = begin + ANSWER_SECONDS - time.monotonic()
            ready = selector.select(left) if left > 0 else []
            if not ready:
                raise RuntimeError(f"no answer within {ANSWER_SECONDS:g} s")
            now = time.monotonic()
            for key, _events in ready:
                assert isinstance(key.fileobj, socket.socket), "registered above"
                answer = key.fileobj.recv(64)
                if answer != question:
                    raise RuntimeError(f"answered {answer!r} instead of {question!r}")
                seconds.append(now - begin)
                selector.unregister(key.fileobj)
    return seconds


def recover(options: argparse.Namespace) -> int:
    """Measure each kind; return the exit code."""
    chance = random.Random(options.seed)
    late = []
    print(
        f"{'kind':<12}{'cuts':>6}{'p50':>8}{'p90':>8}{'p99':>8}{'max':>8}  seconds", flush=True
    )
    for name in options.kind or USUAL:
        kind = KINDS[name]
        samples: list[float] = []
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tt-soak-")))
            bench = Bench(stack, folder, kind, options.tunnels)
            while len(samples) < options.cuts:
                samples += bench.cut(name, kind, chance)
        cuts = statistics.quantiles(samples, n=100, method="inclusive")
        print(
            f"{name:<12}{len(samples):>6}{cuts[49]:>8.2f}{cuts[89]:>8.2f}{cuts[98]:>8.2f}"
            f"{max(samples):>8.2f}  {kind.text}",
            flush=True,
        )
        if cuts[98] > PROMISE_SECONDS:
            late.append(name)
    print(
        f"recover: over {PROMISE_SECONDS:g} s: {', '.join(late)}" if late else "recover: fine"
    )
    return 1 if late else 0
