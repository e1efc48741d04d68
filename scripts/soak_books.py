"""What the processes of two masters have: memory, descriptors, and whether they still are."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from tests.support.leaks import descendants

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from tests.support.processes import Master, TunnelPair

__all__ = ["MIB", "Books", "Member", "Sample", "all_memory", "flat", "grown"]

MIB = 1 << 20
GROWTH_BYTES_PER_HOUR = 1 * MIB
"""Of private memory, for one worker; more is a leak."""
SLACK_BYTES = 3 * MIB
"""Rings and buffers that are in use at one look and not at the other."""
FLAT_PART = 0.03
"""What all processes of a kind may have more of at the end than in the beginning."""
FLAT_SLACK = {"memory": 2 * MIB, "descriptors": 20}
"""Or so much, if that is more: a master has few of both."""
RING_SLACK_BYTES = 128 * 1024
"""Of each tunnel and side: a page here and there that stays touched."""
LEAST_SAMPLES = 8
"""Of which a quarter is not yet one moment."""

_ROLLUP = re.compile(r"^(Pss_Anon|Pss_File):\s+(\d+) kB", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Member:
    """One process that has to be there from the beginning to the end."""

    pid: int
    side: str
    role: str
    """``master``, ``worker`` or ``keeper``."""

    @property
    def kind(self) -> str:
        """Whom it is judged together with."""
        return f"{self.side} {self.role}"


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at all of them."""

    memory: Mapping[Member, int]
    """Their share in bytes, without the rings: those are as full as the visitors make them,
    and are to be empty when the visitors have gone."""
    descriptors: Mapping[Member, int]


class Books:
    """The processes of two masters, as they are when this is made."""

    def __init__(self, pair: TunnelPair) -> None:
        self.pair = pair
        self.members = [
            member
            for side, master in (("server", pair.server), ("client", pair.client))
            for member in _members(side, master)
        ]
        self.first_descriptors = self._each(_count_descriptors)
        self.first_rings = self.ring_bytes()
        self.first_links = self.count("links_total")

    def workers(self) -> list[psutil.Process]:
        """The workers of both sides, in the order of their tunnels."""
        masters = (self.pair.server, self.pair.client)
        return [
            psutil.Process(tunnel["pid"])
            for master in masters
            for tunnel in master.status()["tunnels"]
        ]

    def count_descriptors(self) -> list[int]:
        """Of each worker."""
        return [worker.num_fds() for worker in self.workers()]

    def measure_memory(self) -> list[int]:
        """Private bytes of each worker."""
        return [worker.memory_full_info().uss for worker in self.workers()]

    def count(self, key: str) -> int:
        """Sum a counter of the client's over its tunnels."""
        return sum(tunnel[key] for tunnel in self.pair.client.status()["tunnels"])

    def links(self) -> int:
        """How often a link came since the beginning."""
        return self.count("links_total") - self.first_links

    def take(self) -> Sample:
        """Look at all processes."""
        return Sample(self._each(_own_bytes), self._each(_count_descriptors))

    def memory(self) -> int:
        """What all of them have, without the rings."""
        return sum(self._each(_own_bytes).values())

    def ring_bytes(self) -> int:
        """What the rings of both sides have."""
        return _ring_bytes(self.pair.server.pid) + _ring_bytes(self.pair.client.pid)

    def gone(self) -> list[str]:
        """Which processes are not what they were: a dead one has a successor by now."""
        found = []
        for side, master in (("server", self.pair.server), ("client", self.pair.client)):
            there = {member.pid for member in _members(side, master)}
            found += [
                f"{member.kind} {member.pid} is gone"
                for member in self.members
                if member.side == side and member.pid not in there
            ]
            found += [
                f"{side}: the worker of {tunnel['port']} was started {tunnel['restarts']} "
                f"times again: {tunnel['last_exit']}"
                for tunnel in master.status()["tunnels"]
                if tunnel["restarts"]
            ]
        return found

    def held(self) -> list[str]:
        """What there is more of than before there were visitors: descriptors, full rings."""
        now = self._each(_count_descriptors)
        found = [
            f"{member.kind} {member.pid}: {before} descriptors, then {now[member]}"
            for member, before in self.first_descriptors.items()
            if now[member] > before
        ]
        rings = self.ring_bytes()
        if rings > self.first_rings + 2 * len(self.pair.ports) * RING_SLACK_BYTES:
            found.append(f"rings: {self.first_rings:,} bytes, then {rings:,} with no visitor")
        return found

    def _each(self, measure: Callable[[int], int]) -> dict[Member, int]:
        found = {}
        for member in self.members:
            found[member] = 0
            with suppress(OSError):  # whoever is gone is told by gone()
                found[member] = measure(member.pid)
        return found


def _members(side: str, master: Master) -> list[Member]:
    """The processes of a master that stay; what it starts for a moment is not among them."""
    workers = {tunnel["pid"] for tunnel in master.status()["tunnels"]}
    found = [Member(master.pid, side, "master")]
    for pid in descendants(master.pid):
        if pid in workers:
            found.append(Member(pid, side, "worker"))
        else:
            with suppress(OSError):
                title = Path(f"/proc/{pid}/cmdline").read_bytes()
                if b"keeper of" in title:
                    found.append(Member(pid, side, "keeper"))
    return sorted(found, key=lambda member: member.pid)


def _count_descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - four times as fast


def _rollup(pid: int) -> dict[str, int]:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return {name: int(kilobytes) * 1024 for name, kilobytes in _ROLLUP.findall(text)}


def _own_bytes(pid: int) -> int:
    return sum(_rollup(pid).values())


def _ring_bytes(master: int) -> int:
    """What the shared memory of a master and its workers has."""
    total = 0
    seen = set()
    for entry in os.scandir(f"/proc/{master}/fd"):
        with suppress(OSError):
            if os.readlink(entry.path).startswith("/memfd:"):  # noqa: PTH115 - as above
                about = os.stat(entry.path)  # noqa: PTH116
                if about.st_ino not in seen:
                    seen.add(about.st_ino)
                    total += about.st_blocks * 512
    return total


def all_memory(master: int, pids: Iterable[int]) -> int:
    """All memory that a master and its family have: their share, and all of the rings.

    A page of a ring that no process maps at the moment is in nobody's share, and is memory
    all the same. So rings are counted by what the master holds of them, and not by shares.
    """
    total = _ring_bytes(master)
    for pid in {master, *pids}:
        with suppress(OSError):
            total += _own_bytes(pid)
    return total


def grown(before: list[int], now: list[int], seconds: float) -> list[str]:
    """Return which workers have more memory than they should."""
    allowed = SLACK_BYTES + GROWTH_BYTES_PER_HOUR * seconds / 3600
    more = [later - earlier for earlier, later in zip(before, now, strict=True)]
    print(
        f"memory of a worker, from warm to the end: {min(more) / MIB:+.2f} to "
        f"{max(more) / MIB:+.2f} MiB, on average {sum(more) / len(more) / MIB:+.2f}"
    )
    return [f"a worker grew by {one / MIB:.1f} MiB" for one in more if one > allowed]


def flat(samples: Sequence[Sample]) -> list[str]:
    """Return what is more in the last quarter of the samples than in the first."""
    if len(samples) < LEAST_SAMPLES:
        return [f"only {len(samples)} looks at memory and descriptors: run longer"]
    part = len(samples) // 4
    wrong = []
    for what, slack in FLAT_SLACK.items():
        rows: list[Mapping[Member, int]] = [getattr(sample, what) for sample in samples]
        first, last = _averages(rows[:part]), _averages(rows[-part:])
        unit = MIB if what == "memory" else 1
        for kind in dict.fromkeys(member.kind for member in first):
            before, after = (
                sum(value for member, value in values.items() if member.kind == kind)
                for values in (first, last)
            )
            text = f"{what} of {kind}s: {before / unit:.1f}, then {after / unit:.1f}"
            print(f"{text} ({100 * (after - before) / max(before, 1):+.1f} %)")
            if after - before > max(slack, FLAT_PART * before):
                wrong.append(text)
        if what == "memory":
            wrong += [
                f"{member.kind} {member.pid} grew by {(last[member] - value) / MIB:.1f} MiB"
                for member, value in first.items()
                if last[member] - value > SLACK_BYTES
            ]
    return wrong


def _averages(rows: Sequence[Mapping[Member, int]]) -> dict[Member, float]:
    return {member: sum(row[member] for row in rows) / len(rows) for member in rows[0]}
