"""A slow visitor stops its own stream and nobody else's."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from tests.support.apps import request
from tests.support.least import least
from tests.support.memory import memory
from tests.support.pattern import PatternChecker
from tests.support.sockets import connect
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from tests.integration.conftest import Tunnels
    from tests.support.visitors import Load

BUDGET_BYTES = 64 << 20
"""The most a tunnel may hold for its streams, by default."""

PROGRAM_BYTES = 32 << 20
"""What a worker has without any stream, generously."""


EMPTY_BYTES = 10 << 20
"""A worker without visitors has less of its own: 4 to 7 MB, or 2 with Python 3.12."""


STILL_SECONDS = 2.5
"""After that a worker takes it that nobody is at work: it looks once a second."""


def test_visitors_that_never_read_hold_up_nobody(tunnels: Tunnels, load: Load) -> None:
    port = tunnels.public["pattern"]
    with ExitStack() as stack:
        slow = [stack.enter_context(connect(port)) for _ in range(100)]
        for number, visitor in enumerate(slow):
            visitor.sendall(request(down_seed=number, down=-1))

        def gap() -> float:
            load.transfer("busy", port, up=20_000_000, down=20_000_000, seed=500)
            busy = load.finish("busy")
            assert busy.outcomes == {"ok": 1}, busy.errors
            return busy.max_gap

        assert least(gap, 1) < 1

        # Rings that were given back for larger ones keep their pages for some two seconds.
        for master in (tunnels.pair.server, tunnels.pair.client):
            pid = master.worker_pid(port)
            wait_until(
                lambda pid=pid: memory(pid, "Pss") < BUDGET_BYTES + PROGRAM_BYTES,  # type: ignore[misc]
                5,
                lambda pid=pid: f"{memory(pid, 'Pss')} bytes",  # type: ignore[misc]
            )

        # What they were sent is right as far as they read now, and they can be left.
        for number, visitor in enumerate(slow):
            checker = PatternChecker(number)
            while checker.offset < 100_000:
                checker.feed(visitor.recv(100_000))
    for master in (tunnels.pair.server, tunnels.pair.client):
        wait_until(lambda master=master: master.tunnel(port)["visitors"] == 0, 5)  # type: ignore[misc]


def test_what_visitors_who_never_read_took_is_given_back(tunnels: Tunnels) -> None:
    """Nothing moves when they go, and nobody comes after them."""
    port = tunnels.public["pattern"]
    masters = (tunnels.pair.server, tunnels.pair.client)
    with ExitStack() as stack:
        for number in range(200):
            visitor = stack.enter_context(connect(port))
            visitor.sendall(request(down_seed=number, down=-1))

        def is_full() -> bool:
            now = [memory(master.worker_pid(port), "Private_Dirty") for master in masters]
            return min(now) > 2 * EMPTY_BYTES

        wait_until(is_full, 10)
        moved, since = 0, time.monotonic()

        def is_still() -> bool:
            nonlocal moved, since
            now = sum(master.tunnel(port)["bytes_out"] for master in masters)
            if now != moved:
                moved, since = now, time.monotonic()
            return time.monotonic() - since > STILL_SECONDS

        wait_until(is_still, 15)
    for master in masters:
        pid = master.worker_pid(port)
        wait_until(
            lambda pid=pid: memory(pid, "Private_Dirty") < EMPTY_BYTES,  # type: ignore[misc]
            10,
            lambda pid=pid: f"{memory(pid, 'Private_Dirty')} bytes",  # type: ignore[misc]
        )


def test_a_target_that_never_reads_stops_its_own_visitor(tunnels: Tunnels, load: Load) -> None:
    visitor, target = tunnels.open()
    with visitor, target:
        visitor.settimeout(0.5)
        sent = 0
        try:
            while sent < 256 << 20:
                sent += visitor.send(bytes(1 << 20))
        except TimeoutError:
            pass
        assert sent < 64 << 20, "nothing held the visitor back"
        load.probe("beside", tunnels.public["manual"])
        with tunnels.target.accept()[0] as other:
            other.settimeout(10)
            other.sendall(other.recv(64))
            wait_until(lambda: load.stats("beside").rounds == 1)
        load.end("beside")
        got = 0
        while got < sent:
            got += len(target.recv(1 << 20))
