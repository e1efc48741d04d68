from __future__ import annotations

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from tests.support.apps import Apps, refused_port, request
from tests.support.chaos import Chaos
from tests.support.least import least
from tests.support.pattern import pattern
from tests.support.ports import free_port
from tests.support.sockets import (
    accept,
    connect,
    expect_end,
    expect_pattern,
    expect_reset,
    listener,
    receive_all,
    receive_exactly,
    reset,
)
from tests.support.visitors import Load
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.slow


class Ends:
    """A relay and both ends of one connection through it."""

    def __init__(self, chaos: Chaos, target: socket.socket) -> None:
        self.chaos = chaos
        self.target = target
        self.near, self.far = self.open()

    def open(self) -> tuple[socket.socket, socket.socket]:
        near = connect(self.chaos.address[1])
        return near, accept(self.target)

    def close(self) -> None:
        self.near.close()
        self.far.close()


@pytest.fixture
def ends() -> Iterator[Ends]:
    with listener() as target:
        port = free_port()
        address = ("127.0.0.1", target.getsockname()[1])
        with Chaos(("127.0.0.1", port), address) as chaos:
            both = Ends(chaos, target)
            yield both
            both.close()


def silent(sock: socket.socket, seconds: float = 0.15) -> bool:
    """Say whether nothing comes for a while."""
    sock.settimeout(seconds)
    try:
        sock.recv(1)
    except TimeoutError:
        return True
    finally:
        sock.settimeout(10)
    return False


def test_bytes_and_both_ends_of_both_directions_pass(ends: Ends) -> None:
    ends.near.sendall(pattern(1, 0, 100_000))
    ends.near.shutdown(socket.SHUT_WR)
    assert receive_all(ends.far) == pattern(1, 0, 100_000)
    ends.far.sendall(pattern(2, 0, 100_000))
    ends.far.close()
    assert receive_all(ends.near) == pattern(2, 0, 100_000)

    wait_until(lambda: ends.chaos.counters().open == 0)
    counters = ends.chaos.counters()
    assert (counters.accepted, counters.up, counters.down) == (1, 100_000, 100_000)


@pytest.mark.parametrize("who", ["near", "far"])
def test_a_reset_passes(ends: Ends, who: str) -> None:
    one, other = (ends.near, ends.far) if who == "near" else (ends.far, ends.near)
    one.sendall(b"x")
    assert receive_exactly(other, 1) == b"x"
    reset(one)

    assert expect_reset(other) == 0


def test_delay_holds_bytes_and_the_end_in_their_order(ends: Ends) -> None:
    ends.chaos.delay(0.2, "up")
    begin = time.monotonic()
    ends.near.sendall(pattern(1, 0, 10_000))
    ends.near.shutdown(socket.SHUT_WR)
    assert receive_all(ends.far) == pattern(1, 0, 10_000)
    assert time.monotonic() - begin >= 0.2

    def at_once() -> float:
        begin = time.monotonic()
        ends.far.sendall(b"at once")
        assert receive_exactly(ends.near, 7) == b"at once"
        return time.monotonic() - begin

    assert least(at_once, 0.15) < 0.15


def test_delay_does_not_lower_the_rate(ends: Ends) -> None:
    ends.chaos.delay(0.1)
    with Load() as load, Apps() as apps:
        ends.chaos.retarget(("127.0.0.1", apps.add("pattern")))
        port = ends.chaos.address[1]
        assert least(lambda: seconds_to_move(load, port, 50_000_000, 50_000_000), 5) < 5


def seconds_to_move(load: Load, port: int, up: int, down: int) -> float:
    begin = time.monotonic()
    load.transfer("a", port, up=up, down=down)
    assert load.finish("a").outcomes == {"ok": 1}
    return time.monotonic() - begin


def test_healing_lets_delayed_bytes_go_at_once(ends: Ends) -> None:
    ends.chaos.delay(60)
    ends.near.sendall(b"late")
    assert silent(ends.far)

    ends.chaos.heal()

    assert receive_exactly(ends.far, 4) == b"late"


@pytest.mark.parametrize("size", [0, 1, 1000, 3_000_000])
def test_a_cut_comes_after_exactly_so_many_bytes(ends: Ends, size: int) -> None:
    ends.chaos.cut_after(size, "down")
    data = bytearray()
    with ThreadPoolExecutor(1) as pool:  # it may have to wait for who reads, and is reset
        sending = pool.submit(ends.far.sendall, pattern(1, 0, size + 100_000))
        with pytest.raises(ConnectionResetError):  # noqa: PT012 - after some bytes
            while piece := ends.near.recv(1 << 20):
                data += piece
    with suppress(ConnectionError):
        sending.result()

    assert bytes(data) == pattern(1, 0, size)
    assert ends.chaos.counters().cut == 1
    ends.far.settimeout(5)
    with pytest.raises(ConnectionError):
        ends.far.sendall(bytes(10_000_000))


def test_a_cut_can_be_an_end_or_silence(ends: Ends) -> None:
    ends.chaos.cut_after(3, "up", how="close", scope="existing")
    ends.near.sendall(b"abcdef")
    assert receive_all(ends.far) == b"abc"
    expect_end(ends.near)

    ends.chaos.cut_after(2, "up", how="silent", scope="new")
    near, far = ends.open()
    with near, far:
        near.sendall(b"abcdef")
        assert receive_exactly(far, 2) == b"ab"
        assert silent(far)
        ends.chaos.heal()
        assert receive_exactly(far, 4) == b"cdef"


def test_each_connection_counts_for_itself(ends: Ends) -> None:
    ends.chaos.cut_after(5, "up")
    near, far = ends.open()
    with near, far:
        ends.near.sendall(b"1234")
        near.sendall(b"1234")
        assert receive_exactly(ends.far, 4) == receive_exactly(far, 4) == b"1234"
        near.sendall(b"5")
        assert expect_reset(far) == 1
        ends.chaos.heal()
        ends.near.sendall(b"5678")
        assert receive_exactly(ends.far, 4) == b"5678"


def test_stall_is_back_pressure_in_one_direction(ends: Ends) -> None:
    ends.chaos.stall("up")
    ends.near.settimeout(0.2)
    sent = 0
    with pytest.raises(TimeoutError):  # noqa: PT012 - after some bytes
        for index in range(1000):
            data = pattern(1, index * 65_536, 65_536)
            while data:
                size = ends.near.send(data)
                sent += size
                data = data[size:]
    ends.far.sendall(b"down is free")
    assert receive_exactly(ends.near, 12) == b"down is free"

    ends.chaos.stall("up", stalled=False)

    expect_pattern(ends.far, 1, sent)


def test_silence_loses_nothing_and_ends_nothing(ends: Ends) -> None:
    ends.chaos.silence()
    ends.near.sendall(b"up")
    ends.far.sendall(b"down")
    assert silent(ends.far)
    assert silent(ends.near)
    reset(ends.near)
    assert silent(ends.far)

    ends.chaos.heal()

    expect_reset(ends.far)


def test_the_old_connection_can_be_half_open_while_new_ones_pass(ends: Ends) -> None:
    ends.chaos.silence("existing")
    near, far = ends.open()
    with near, far:
        near.sendall(b"new")
        assert receive_exactly(far, 3) == b"new"
        ends.near.sendall(b"old")
        assert silent(ends.far)


def test_new_connections_can_be_left_without_an_answer(ends: Ends) -> None:
    ends.chaos.silence("new")
    with connect(ends.chaos.address[1]) as near:
        near.sendall(b"anybody?")
        assert silent(near)
        ends.near.sendall(b"old")
        assert receive_exactly(ends.far, 3) == b"old"

        ends.chaos.heal()

        with accept(ends.target) as far:
            assert receive_exactly(far, 8) == b"anybody?"


def test_new_connections_can_be_refused(ends: Ends) -> None:
    ends.chaos.refuse()
    with pytest.raises(ConnectionRefusedError):
        connect(ends.chaos.address[1])
    ends.near.sendall(b"old")
    assert receive_exactly(ends.far, 3) == b"old"

    ends.chaos.heal()

    for sock in ends.open():
        sock.close()


def test_new_connections_can_wait_unaccepted(ends: Ends) -> None:
    ends.chaos.backlog()
    with connect(ends.chaos.address[1]) as near:
        near.sendall(b"waiting")
        assert silent(near)
        assert ends.chaos.counters().accepted == 1

        ends.chaos.heal()

        with accept(ends.target) as far:
            assert receive_exactly(far, 7) == b"waiting"


def test_slices_arrive_one_by_one(ends: Ends) -> None:
    ends.far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    ends.chaos.slice(1, "up")

    def first_size() -> int:
        ends.near.sendall(pattern(1, 0, 2000))
        size = len(ends.far.recv(1000))
        rest = pattern(1, size, 2000 - size)
        assert receive_exactly(ends.far, len(rest)) == rest
        return size

    assert least(first_size, 1000) < 1000, "they may have waited for us"
    ends.near.close()
    expect_end(ends.far)


def test_rate_is_kept(ends: Ends) -> None:
    ends.chaos.rate(1_000_000, "down")

    def seconds() -> float:
        begin = time.monotonic()
        ends.far.sendall(pattern(1, 0, 300_000))
        expect_pattern(ends.near, 1, 300_000)
        return time.monotonic() - begin

    assert 0.2 < least(seconds, 0.6) < 0.6


def test_reset_and_close_end_both_sides(ends: Ends) -> None:
    assert ends.chaos.reset() == 1
    expect_reset(ends.near)
    expect_reset(ends.far)

    near, far = ends.open()
    with near, far:
        near.sendall(b"last")
        assert receive_exactly(far, 4) == b"last"
        assert ends.chaos.close() == 1
        expect_end(near)
        expect_end(far)
    wait_until(lambda: ends.chaos.counters().open == 0)


def test_a_target_that_refuses_is_a_reset(ends: Ends) -> None:
    with refused_port() as port:
        ends.chaos.retarget(("127.0.0.1", port))
        with socket.socket() as near, pytest.raises(ConnectionResetError):  # noqa: PT012
            near.settimeout(10)
            near.connect(ends.chaos.address)  # the reset may come before it returns
            near.recv(1)
    assert ends.chaos.counters().failed == 1


def test_faults_in_any_order_lose_no_byte(ends: Ends) -> None:
    """Every fault that does not cut, one after the other, under load both ways."""
    with Load() as load, Apps() as apps:
        port = ends.chaos.address[1]
        ends.chaos.retarget(("127.0.0.1", apps.add("pattern")))
        load.transfer("a", port, count=8, up=1_000_000, down=1_000_000, repeat=True)
        for change, goes_on in (
            (lambda: ends.chaos.delay(0.02), True),
            (lambda: ends.chaos.slice(700), True),
            (lambda: ends.chaos.stall("up"), False),  # who has all waits for who says so
            (ends.chaos.silence, False),
            (ends.chaos.heal, True),
            (lambda: ends.chaos.rate(500_000, "both"), True),
            (ends.chaos.heal, True),
        ):
            change()
            seen = load.stats("a").down
            if goes_on:
                wait_until(lambda seen=seen: load.stats("a").down > seen)  # type: ignore[misc]
        wait_until(lambda: load.stats("a").outcomes.get("ok", 0) >= 20)
        stats = load.end("a")

    assert stats.bad == 0, stats.errors


def test_without_a_fault_it_is_fast(ends: Ends) -> None:
    with Load() as load, Apps() as apps:
        ends.chaos.retarget(("127.0.0.1", apps.add("pattern")))
        port = ends.chaos.address[1]
        seconds = least(lambda: seconds_to_move(load, port, 0, 500_000_000), 5)

    assert seconds < 5, f"{500 / seconds:.0f} MB/s"


def test_ipv6(ends: Ends) -> None:
    with Apps() as apps:
        port = apps.add("pattern", "::1")
        with (
            Chaos(("::1", 0), ("::1", port)) as chaos,
            connect(chaos.address[1], "::1") as near,
        ):
            near.sendall(request(down_seed=1, down=10))
            assert receive_all(near) == pattern(1, 0, 10) + b"OK 0\n"
