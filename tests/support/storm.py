"""A tunnel full of visitors, whose workers die: nobody may notice more than a pause.

Theory of operation
-------------------
One tunnel, since what is asked is what becomes of the visitors of *one* worker, and an ``any``
app behind it, which plays every part. The ``busy`` ask and are answered without a pause, so
how long one hears nothing is how long it was stalled; ``bulk`` streams move all that goes, both
ways or, half-closed for ever, one; beside them others come and go: whole ones with every way to
finish, newcomers with one question, those that the target resets and those that reset
themselves. All bytes are checked by position, at both ends.

A :class:`Blow` is what one death did, as the visitors saw it and as the master says.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.apps import Apps
from tests.support.instants import MODULE, arm, disarm, is_armed
from tests.support.leaks import children
from tests.support.processes import Master, TunnelPair
from tests.support.visitors import Load
from tests.support.wait import wait_until
from tunneltcp.control.context import NONCES_BYTES, RECORDS_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import ExitStack

    from tests.support.instants import Instant

__all__ = ["SIDES", "Blow", "Storm", "pause", "rings_left"]

SIDES = ("server", "client")
FLAGS = ["", "e", "r", "f"]
"""Ways to finish; see :func:`tests.support.apps.request`."""
RECOVER_SECONDS = 20.0
"""Longer is not a pause any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Blow:
    """One death, or two at once."""

    what: str
    stalls: list[float]
    """Seconds in which each busy visitor heard nothing."""
    served: list[float] = field(default_factory=list)
    """Seconds from the death, when it was seen, until the successor served; for each side."""
    stood_still: list[float] = field(default_factory=list)
    """Seconds from there until the streams went on."""

    @property
    def stall(self) -> float:
        """The longest of all visitors."""
        return max(self.stalls)


class Storm:
    """Both masters, the app and the visitors."""

    def __init__(
        self,
        stack: ExitStack,
        folder: Path,
        *,
        tls: bool = False,
        ipv6: bool = False,
        seed: int = 1,
        busy: int = 50,
    ) -> None:
        self.host = "::1" if ipv6 else "127.0.0.1"
        self.seed = seed
        self.busy = busy
        self.apps = stack.enter_context(Apps())
        self.load = stack.enter_context(Load())
        self.app_port = self.apps.add("any", self.host)
        self.pair = stack.enter_context(
            TunnelPair(
                [{"local_host": self.host, "local_port": self.app_port}],
                folder,
                bind=[self.host],
                server_host=self.host,
                common={"tls": tls, "hold": 20, "max_visitors": 2000},
                module=MODULE,
            )
        )
        self.port = self.pair.port
        self.groups: list[str] = []
        self.wait_ready()
        self._before = [self._held(master) for master in self.masters]

    @property
    def masters(self) -> tuple[Master, Master]:
        """The server's and the client's."""
        return self.pair.server, self.pair.client

    def master(self, side: str) -> Master:
        """That of one side."""
        return self.masters[SIDES.index(side)]

    def wait_ready(self, seconds: float = RECOVER_SECONDS) -> None:
        """Wait until both sides serve, have their link, and would survive another death."""
        for master in self.masters:
            wait_until(
                lambda master=master: (  # type: ignore[misc]
                    master.link_up(self.port) and master.tunnel(self.port)["crash_safe"]
                ),
                seconds,
                lambda master=master: f"{master}: {master.tunnel(self.port)}",  # type: ignore[misc]
            )

    # -------------------------------------------------------------------- visitors

    def begin(self) -> None:
        """Let all the visitors come."""
        load, port, host, seed = self.load, self.port, self.host, 1_000_000 * self.seed
        load.probe("busy", port, host=host, count=self.busy, seed=seed, size=16_000, app="echo")
        # Half-closed for ever: the visitor has finished, or the target has.
        for name, flags, up, down in (
            ("bulk", "", -1, -1),
            ("bulk, visitor finished", "r", 1000, -1),
            ("bulk, target finished", "f", -1, 1000),
        ):
            seed += 10_000
            load.transfer(
                name, port, host=host, count=2, seed=seed, up=up, down=down, flags=flags,
                app="pattern", receive_buffer=4096,
            )  # fmt: skip
        for flags in FLAGS:
            seed += 10_000
            load.transfer(
                f"short {flags}", port, host=host, count=2, seed=seed, up=200_000, down=300_000,
                flags=flags, repeat=True, pause=0.01, app="pattern",
            )  # fmt: skip
        load.probe(
            "newcomers", port, host=host, count=4, seed=seed + 1000, size=1000, rounds=1,
            repeat=True, pause=0.005, app="echo",
        )  # fmt: skip
        load.torn("torn", port, host=host, count=2, seed=seed, down=60_000, app="resetting")
        load.hasty("hasty", port, host=host, count=2, seed=seed, up=500_000, app="pattern")
        bulk = ["bulk", "bulk, visitor finished", "bulk, target finished"]
        self.groups = ["busy", *bulk, *(f"short {flags}" for flags in FLAGS)]
        self.groups += ["newcomers", "torn", "hasty"]
        self.wait_moving()

    def send_away(self, name: str) -> None:
        """End a group, and forget about it."""
        self.load.end(name)
        self.groups.remove(name)

    def wait_moving(self, bytes_each_way: int = 1_000_000) -> None:
        """Wait until those who stay move more."""
        for name in ("busy", "bulk"):
            before = self.load.stats(name)
            wait_until(
                lambda name=name, before=before: (  # type: ignore[misc]
                    self.load.stats(name).up - before.up > bytes_each_way
                    and self.load.stats(name).down - before.down > bytes_each_way
                ),
                RECOVER_SECONDS,
                lambda name=name: f"bytes move: {self.load.stats(name)}",  # type: ignore[misc]
            )

    def wrong(self) -> list[str]:
        """What visitors and the app complain of; and who is not here any more."""
        found = []
        for name in self.groups:
            stats = self.load.stats(name)
            if stats.bad:
                found.append(f"{name}: {stats.outcomes}: {stats.errors}")
            if name.startswith(("busy", "bulk")):
                lost = stats.started - stats.running
                found += [f"{name}: {lost} streams were lost"] if lost else []
        return found + self.apps.stats(self.app_port, self.host).errors

    def count(self) -> dict[str, int]:
        """How many visitors came, and how many bytes they moved."""
        stats = [self.load.stats(name) for name in self.groups]
        return {
            "visitors": sum(one.started for one in stats),
            "ended well": sum(one.outcomes.get("ok", 0) for one in stats),
            "bytes": sum(one.up + one.down for one in stats),
        }

    # ------------------------------------------------------------------------ blows

    def kill(self, sides: Sequence[str], how: int, lag_seconds: float = 0.0) -> Blow:
        """Send a signal to the workers of these sides; return when all went on.

        Args:
            lag_seconds: Between the first and the second: the second dies while the link of
                the first is being resumed.
        """
        self.load.gaps("busy")
        old = {side: self.master(side).worker_pid(self.port) for side in sides}
        for number, pid in enumerate(old.values()):
            pause(lag_seconds * bool(number))
            os.kill(pid, how)
        return self._recover(f"{signal.Signals(how).name[3:]} {' and '.join(sides)}", old)

    def strike(self, side: str, instant: Instant, seconds: float = 2.0) -> Blow | None:
        """Have the next worker of a side die at an instant; None if that did not come."""
        master = self.master(side)
        arm(master, self.port, instant)
        self.load.gaps("busy")
        old = master.restart_worker(self.port)
        met = True
        try:
            wait_until(lambda: not is_armed(master, self.port), seconds)
        except AssertionError:
            met = not disarm(master, self.port)
        blow = self._recover(f"{instant}, {side}", {side: old})
        return blow if met else None

    def _recover(self, what: str, old: dict[str, int]) -> Blow:
        """Wait until all is as it was: every busy visitor has heard something again."""
        for side, pid in old.items():
            self.master(side).wait_for_successor(self.port, pid, RECOVER_SECONDS)
        self.wait_ready()
        up = time.monotonic()
        stalls = [0.0] * self.busy

        def all_heard() -> bool:
            found = self.load.gaps("busy")
            now = time.monotonic()
            stalls[: len(found)] = map(max, stalls, [longest for longest, _ in found])
            return all(now - silent > up for _, silent in found)

        wait_until(all_heard, RECOVER_SECONDS, lambda: f"{what}: {self.wrong()}")
        self.wait_ready()
        served, stood = [], []
        for side in old:
            takeover = self.master(side).tunnel(self.port)["last_takeover"]
            served.append(takeover["served_seconds"])
            stood.append(takeover["stood_still_seconds"] or 0.0)
        return Blow(what=what, stalls=stalls, served=served, stood_still=stood)

    # -------------------------------------------------------------------- leftovers

    def end(self) -> list[str]:
        """End the visitors; return what was wrong with them."""
        found = self.wrong()
        for name in self.groups:
            stats = self.load.end(name)
            found += [f"{name}: {error}" for error in stats.errors if stats.bad]
        self.groups = []
        return found

    def left_over(self, seconds: float = 20.0) -> list[str]:
        """What is more than before anybody came, once there was time to tidy up."""

        def more() -> list[str]:
            found = []
            for master, before in zip(self.masters, self._before, strict=True):
                now = self._held(master)
                found += [
                    f"{master.role}: {what}: {count} before, {now[what]} now"
                    for what, count in before.items()
                    if now[what] > count
                ]
            return found

        with suppress(AssertionError):
            wait_until(lambda: not more(), seconds)
        return more()

    def _held(self, master: Master) -> dict[str, int]:
        worker = master.worker_pid(self.port)
        family = children(master.pid)
        tunnel = master.tunnel(self.port)
        return {
            "processes": len(family),
            "zombies": sum(_is_zombie(pid) for pid in family),
            "descriptors of the master": _descriptors(master.pid),
            "descriptors of the worker": _descriptors(worker),
            "bytes of rings": rings_left(worker),
            "visitors": tunnel["visitors"],
        }


def pause(seconds: float) -> None:
    """Let time pass: a worker is to be killed at any moment, not at the next event."""
    end = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() >= end, seconds + 1)


def _descriptors(pid: int) -> int:
    """Count them some times: the connection that just asked for the status may still be one."""
    looks: list[int] = []

    def look() -> bool:
        looks.append(len(os.listdir(f"/proc/{pid}/fd")))  # noqa: PTH208 - numbers, not paths
        return len(looks) > 4

    wait_until(look)
    return min(looks)


def _is_zombie(pid: int) -> bool:
    with suppress(OSError):
        stat = Path(f"/proc/{pid}/stat").read_text()
        return stat[stat.rindex(")") + 2] == "Z"
    return False


def rings_left(worker: int) -> int:
    """How many bytes of rings exist in the memory of the tunnel that a worker serves."""
    folder = Path(f"/proc/{worker}/fd")
    for entry in folder.iterdir():
        if entry.readlink().name.startswith("memfd:memory-"):
            with entry.open("rb") as memory:
                return _data_bytes(memory.fileno(), RECORDS_BYTES, NONCES_BYTES)
    raise AssertionError(f"{worker} has no memory of a tunnel")


def _data_bytes(fd: int, start: int, behind: int) -> int:
    """Count what is no hole between ``start`` and so many bytes before the end."""
    end = os.fstat(fd).st_size - behind
    count, at = 0, start
    while at < end:
        try:
            begin = min(end, os.lseek(fd, at, os.SEEK_DATA))
        except OSError:  # ENXIO: no data any more
            break
        at = min(end, os.lseek(fd, begin, os.SEEK_HOLE)) if begin < end else end
        count += at - begin
    return count
