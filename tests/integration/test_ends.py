"""FIN stays FIN, RST stays RST, and what failed never ends in a clean FIN."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.support.apps import BANNER, EARLY_ANSWER
from tests.support.least import least
from tests.support.pattern import pattern
from tests.support.sockets import (
    connect,
    expect_end,
    expect_pattern,
    expect_reset,
    receive_all,
    receive_exactly,
    reset,
)
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from tests.integration.conftest import Tunnels
    from tests.support.visitors import Load


def test_a_visitor_that_finished_gets_its_whole_answer(tunnels: Tunnels, load: Load) -> None:
    port = tunnels.public["pattern"]
    load.transfer("a", port, up=1000, down=20_000_000, flags="r")
    stats = load.finish("a")

    assert stats.outcomes == {"ok": 1}, stats.errors


def test_a_target_may_finish_first_and_go_on_reading(tunnels: Tunnels, load: Load) -> None:
    before = tunnels.apps.stats(tunnels.local["pattern"]).ends
    load.transfer("a", tunnels.public["pattern"], up=20_000_000, down=5_000_000, flags="f")
    stats = load.finish("a")

    assert stats.outcomes == {"ok": 1}, stats.errors
    wait_until(
        lambda: (
            tunnels.apps.stats(tunnels.local["pattern"]).ends.get("eof", 0)
            == before.get("eof", 0) + 1
        )
    )
    assert tunnels.apps.stats(tunnels.local["pattern"]).ends.get("wrong", 0) == before.get(
        "wrong", 0
    )


def test_an_end_without_a_byte_is_an_end(tunnels: Tunnels) -> None:
    visitor, target = tunnels.open()
    with visitor, target:
        visitor.shutdown(socket.SHUT_WR)
        expect_end(target)
        target.sendall(b"answer")
        target.shutdown(socket.SHUT_WR)
        assert receive_all(visitor) == b"answer"


def test_half_closed_streams_stay_open(tunnels: Tunnels) -> None:
    """Either direction goes on after the other has ended, for as long as it likes."""
    visitor, target = tunnels.open()
    with visitor, target:
        target.shutdown(socket.SHUT_WR)
        expect_end(visitor)
        for index in range(20):
            visitor.sendall(pattern(1, index * 1000, 1000))
            assert receive_exactly(target, 1000) == pattern(1, index * 1000, 1000)
        visitor.shutdown(socket.SHUT_WR)
        expect_end(target)


def test_what_was_sent_before_an_end_arrives_before_it(tunnels: Tunnels) -> None:
    """A visitor that sends and closes at once: everything comes, then the end."""
    visitor, target = tunnels.open()
    with target:
        visitor.sendall(pattern(1, 0, 3_000_000))
        visitor.close()
        expect_pattern(target, 1, 3_000_000)
        expect_end(target)


@pytest.mark.parametrize("half_closed", [False, True], ids=["open", "half-closed"])
def test_a_reset_by_the_visitor_reaches_the_target(tunnels: Tunnels, half_closed: bool) -> None:
    visitor, target = tunnels.open()
    with target:
        visitor.sendall(b"question")
        assert receive_exactly(target, 8) == b"question"
        if half_closed:
            target.shutdown(socket.SHUT_WR)
            expect_end(visitor)
        reset(visitor)
        assert expect_reset(target) == 0


@pytest.mark.parametrize("half_closed", [False, True], ids=["open", "half-closed"])
def test_a_reset_by_the_target_reaches_the_visitor(tunnels: Tunnels, half_closed: bool) -> None:
    visitor, target = tunnels.open()
    with visitor:
        visitor.sendall(b"question")
        assert receive_exactly(target, 8) == b"question"
        if half_closed:
            visitor.shutdown(socket.SHUT_WR)
            expect_end(target)
        reset(target)
        assert expect_reset(visitor) == 0


def test_a_visitor_that_leaves_in_mid_download_frees_the_target(tunnels: Tunnels) -> None:
    """As without a tunnel: who sends to one that closed is reset."""
    visitor, target = tunnels.open()
    with target:
        target.sendall(pattern(1, 0, 100_000))
        expect_pattern(visitor, 1, 50_000)
        visitor.close()
        with pytest.raises(ConnectionError):  # noqa: PT012 - any of them may be the one
            for _ in range(200):
                target.sendall(bytes(100_000))


def test_what_the_target_said_before_its_reset_is_delivered(tunnels: Tunnels) -> None:
    for seed in range(20):
        with connect(tunnels.public["resetting"]) as visitor:
            visitor.sendall(b"%d 30000\n" % seed)
            expect_pattern(visitor, seed, 30_000)
            assert expect_reset(visitor) == 0


def test_an_early_answer_and_its_reset_are_delivered(tunnels: Tunnels) -> None:
    """A web server that answers 413 before it has read the upload, and hangs up."""
    for _ in range(20):
        with connect(tunnels.public["early"]) as visitor:
            visitor.sendall(b"POST / HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n")
            assert receive_exactly(visitor, len(EARLY_ANSWER)) == EARLY_ANSWER
            with pytest.raises(ConnectionError):  # noqa: PT012 - either may be the one
                visitor.sendall(bytes(1_000_000))
                expect_end(visitor)


def test_a_cut_download_never_looks_complete(tunnels: Tunnels) -> None:
    visitor, target = tunnels.open()
    with visitor:
        target.sendall(pattern(1, 0, 1_000_000))
        expect_pattern(visitor, 1, 10_000)
        reset(target)
        assert expect_reset(visitor) < 1_000_000


def test_a_refusing_target_is_a_reset_within_a_second(tunnels: Tunnels) -> None:
    def seconds_to_reset(said: bytes) -> float:
        begin = time.monotonic()
        with connect(tunnels.public["refused"]) as visitor:
            visitor.sendall(said)
            assert expect_reset(visitor) == 0
        return time.monotonic() - begin

    assert least(lambda: seconds_to_reset(b"GET / HTTP/1.1\r\n\r\n"), 1) < 1
    assert least(lambda: seconds_to_reset(b""), 1) < 1


def test_a_target_may_go_down_and_come_back(tunnels: Tunnels) -> None:
    public, local = tunnels.public["restarted"], tunnels.local["restarted"]

    def echoes() -> None:
        with connect(public) as visitor:
            visitor.sendall(b"hello")
            assert receive_exactly(visitor, 5) == b"hello"

    echoes()
    for _ in range(3):
        tunnels.apps.remove(local)
        with connect(public) as visitor:
            visitor.sendall(b"hello")
            assert expect_reset(visitor) == 0
        tunnels.apps.add("echo", port=local)
        echoes()


def test_a_server_that_speaks_first_is_heard_at_once(tunnels: Tunnels) -> None:
    def seconds_to_banner() -> float:
        begin = time.monotonic()
        with connect(tunnels.public["banner"]) as visitor:
            assert receive_exactly(visitor, len(BANNER)) == BANNER
            seconds = time.monotonic() - begin
            visitor.sendall(b"HELO\r\n")
            assert receive_exactly(visitor, 6) == b"HELO\r\n"
        return seconds

    assert least(seconds_to_banner, 0.5) < 0.5


@pytest.mark.parametrize("size", [1, 4, 7])
def test_a_visitor_that_begins_like_a_link_is_still_a_visitor(
    tunnels: Tunnels, size: int
) -> None:
    """Half of the magic, then something else; and half of it, then nothing."""
    magic = bytes.fromhex("89545443500d0a1a")[:size]
    for rest in (b"", b"!" * 20):
        with connect(tunnels.public["echo"]) as visitor:
            visitor.sendall(magic + rest)
            assert receive_exactly(visitor, size + len(rest)) == magic + rest


def test_strangers_that_speak_like_a_link_harm_nobody(tunnels: Tunnels, load: Load) -> None:
    """A right magic and then rubbish, or silence: closed, and visitors notice nothing."""
    assert least(lambda: gap_beside_strangers(tunnels, load), 1) < 1
    assert tunnels.pair.server.link_up(tunnels.public["echo"])


def gap_beside_strangers(tunnels: Tunnels, load: Load) -> float:
    port = tunnels.public["echo"]
    load.probe("beside", port, count=4, pause=0.001)
    with ExitStack() as stack:
        for index in range(100):
            stranger = stack.enter_context(connect(port))
            preface = bytes.fromhex("89545443500d0a1a") + bytes(36)
            stranger.sendall(preface[: 44 if index % 2 else 8])
            if index % 2:
                receive_all(stranger, may_reset=True)  # at most a short answer in clear
        rounds = load.stats("beside").rounds
        wait_until(lambda: load.stats("beside").rounds > rounds + 100)
    stats = load.end("beside")

    assert stats.bad == 0, stats.errors
    return stats.max_gap
