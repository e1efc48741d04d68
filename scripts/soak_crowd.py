"""Many tunnels with visitors of all sorts; and the same with a server on a small machine."""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from soak_books import MIB, Books, all_memory, flat
from soak_machine import Cgroup, make_cgroup, one_core
from soak_mix import PARTS, Mix
from tests.support.apps import Apps
from tests.support.leaks import descendants
from tests.support.processes import TunnelPair
from tests.support.visitors import Load
from tests.support.wait import wait_until

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping, Sequence

    from soak_books import Sample

__all__ = ["CROWD_TUNNELS", "SMALL_TUNNELS", "crowd", "small"]

CROWD_TUNNELS = 100
SMALL_TUNNELS = 50
WARM_PART = 0.2
"""Of the whole time: what grows in it is warming up."""
LOOKS = 40
"""At memory and descriptors, after that."""
STALL_SECONDS = 30.0
"""Who gets nothing done for so long is forgotten, and not slow."""
SETTLE_SECONDS = 20.0
"""From the end of the visitors until all they had is given back."""
LIMIT_BYTES = 512 * MIB
GOAL_BYTES = 400_000_000
"""Where no cgroup counts: what the kernel has for the sockets is not in it."""
LOOK_SECONDS = TURN_SECONDS = 0.1
CGROUP_LOOK_SECONDS = 1.0
"""Where a cgroup counts, only to be told what of it is the processes'."""
LEAST_BUDGET_BYTES = 4 * MIB


class Crowd:
    """Two masters, their tunnels, twenty visitors for each, and the books."""

    def __init__(
        self,
        stack: ExitStack,
        tunnels: int,
        *,
        server_prefix: Sequence[str] = (),
        server_options: Mapping[str, object] | None = None,
    ) -> None:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tt-soak-")))
        apps = stack.enter_context(Apps())
        load = stack.enter_context(Load())
        # One for each tunnel: so many connections to one port would use up the ports of the
        # kernel, which rests each for a minute.
        app_ports = [apps.add("any") for _ in range(tunnels)]
        self.pair = stack.enter_context(
            TunnelPair(
                app_ports,
                folder,
                server_prefix=server_prefix,
                server_options=server_options,
            )
        )
        self.books = Books(self.pair)
        self.mix = Mix(load, apps, self.pair.ports, app_ports)
        self.longest = 0.0

    def tell(self, minutes: float) -> list[str]:
        """Print how it goes; return what is wrong."""
        try:
            return self._tell(minutes)
        except OSError as error:
            return [f"a master does not answer: {error}"]

    def _tell(self, minutes: float) -> list[str]:
        both = self.mix.stats()
        stats = [one for _part, one in both]
        gap, who = max((one.max_gap, part.text) for part, one in both if part.moves)
        self.longest = max(self.longest, gap)
        p99 = sorted(one.p99 for one in stats if one.answers)
        wrong = self.mix.errors(both) + self.books.gone()
        if links := self.books.links():
            wrong.append(f"{links} reconnects, and nobody cut a link")
        if gap > STALL_SECONDS:
            wrong.append(f"a visitor got nothing done for {gap:.0f} s")
        print(
            f"{minutes:7.1f} min  {self.books.memory() / MIB:.0f} MiB and "
            f"{self.books.ring_bytes() / MIB:.0f} of rings  "
            f"{sum(one.rounds for one in stats):>8} answers  "
            f"{sum(one.up + one.down for one in stats) / 1e6:>8.0f} MB  "
            f"{sum(one.running for one in stats):>5} of "
            f"{sum(one.started for one in stats):>7} visitors there  "
            f"{sum(one.bad for one in stats)} bad  "
            f"p99 of a question {p99[len(p99) // 2]:.2f} s  longest stall {gap:.2f} s ({who})",
            flush=True,
        )
        return wrong

    def run(
        self,
        options: argparse.Namespace,
        look: Callable[[], None] | None = None,
    ) -> int:
        """Let them all come; return the exit code.

        Again and again ``look`` is called, which judges by itself; without it memory and
        descriptors are to stay flat.
        """
        stay = sum(part.count for part in PARTS if part.stays)
        come = sum(part.count for part in PARTS) - stay
        print(
            f"{options.tunnels} tunnels, each with {stay} visitors who stay and {come} who "
            f"come and go"
        )
        self.mix.begin(look or (lambda: None))
        begin = told = time.monotonic()
        seconds = options.minutes * 60
        samples: list[Sample] = []
        next_sample = WARM_PART * seconds
        wrong: list[str] = []
        while not wrong and (passed := time.monotonic() - begin) < seconds:
            if look is not None:
                look()
            elif passed >= next_sample:
                samples.append(self.books.take())
                next_sample = passed + (1 - WARM_PART) * seconds / LOOKS
            if time.monotonic() - told > options.report:
                told = time.monotonic()
                wrong = self.tell(passed / 60)
            time.sleep(TURN_SECONDS)  # noqa: TID251 - it paces itself
        if not wrong:
            wrong = self.tell((time.monotonic() - begin) / 60)
        if not wrong and look is None:
            wrong += flat(samples)
        return self._end(wrong)

    def _end(self, wrong: list[str]) -> int:
        self.mix.end()
        wrong = wrong or settled(self.mix.left)
        self.mix.reset()
        wrong = wrong or settled(self.books.held)
        print(f"longest stall {self.longest:.2f} s")
        for line in wrong[:40]:
            print(f"WRONG: {line}")
        print("soak: failed" if wrong else "soak: all was well", flush=True)
        return 1 if wrong else 0


def settled(left: Callable[[], list[str]]) -> list[str]:
    """Wait until nothing is left; return what is."""
    try:
        wait_until(lambda: not left(), SETTLE_SECONDS)
    except AssertionError:
        return left()
    return []


def crowd(options: argparse.Namespace) -> int:
    """Run for as long as is asked; return the exit code."""
    with ExitStack() as stack:
        run = Crowd(stack, options.tunnels)
        return run.run(options)


class SmallServer:
    """What a server on a small machine takes of it."""

    def __init__(self, cgroup: Cgroup | None) -> None:
        self.cgroup = cgroup
        self.pace = LOOK_SECONDS if cgroup is None else CGROUP_LOOK_SECONDS
        self._next = 0.0
        self.peak = self.with_sockets = 0
        self.looks = 0

    def look(self, master: int) -> None:
        """Add up the memory of a master and its processes, ten times a second at most."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self.pace
        self.peak = max(self.peak, all_memory(master, descendants(master)))
        if self.cgroup is not None:
            self.with_sockets = max(self.with_sockets, self.cgroup.usage().now)
        self.looks += 1

    def judge(self) -> list[str]:
        """Say what the most was; return what is wrong."""
        print(
            f"memory of the server's processes: {self.peak / 1e6:.0f} MB at most, "
            f"of {self.looks} looks"
        )
        if self.cgroup is None:
            return ["that is more than it may be"] if self.peak > GOAL_BYTES else []
        usage = self.cgroup.usage()
        print(
            f"memory of the cgroup: {usage.peak / 1e6:.0f} MB at most of "
            f"{LIMIT_BYTES / 1e6:.0f}; with all buffers of sockets "
            f"{self.with_sockets / 1e6:.0f} MB when looked at; "
            f"killed: {usage.killed}"
        )
        return [f"the kernel killed {usage.killed} processes"] if usage.killed else []


def small(options: argparse.Namespace) -> int:
    """Run with the server in its cgroup and on its core; return the exit code."""
    with ExitStack() as stack:
        made = make_cgroup(LIMIT_BYTES)
        cgroup = None if isinstance(made, str) else stack.enter_context(made)
        if isinstance(made, str):
            print(f"no cgroup ({made}): what the server's processes have is added up instead")
        config = dict(options.config)
        if cgroup is None:  # nobody tells the server how small its machine is
            budget = max(LEAST_BUDGET_BYTES, LIMIT_BYTES // 4 // options.tunnels)
            config.setdefault("budget", budget)
        prefix = [*(cgroup.prefix if cgroup else []), *one_core()]
        server = SmallServer(cgroup)
        code = 1
        try:
            run = Crowd(stack, options.tunnels, server_prefix=prefix, server_options=config)
            pid = run.pair.server.pid
            print(
                f"the server, {pid}, in {cgroup or 'no cgroup'}; one core of {os.cpu_count()}"
            )
            code = run.run(options, lambda: server.look(pid))
        finally:
            wrong = server.judge()
            for line in wrong:
                print(f"WRONG: {line}")
            print("small: failed" if wrong or code else "small: all was well", flush=True)
        return 1 if wrong else code
