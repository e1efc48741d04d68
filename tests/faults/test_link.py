"""A lost link comes back by itself, and its visitors notice nothing but a pause."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.apps import Apps
from tests.support.least import least
from tests.support.netns import two_hosts
from tests.support.ports import free_port
from tests.support.processes import Master, TunnelPair
from tests.support.require import is_long
from tests.support.sockets import connect, receive_exactly, seconds_until_echo
from tests.support.visitors import Load
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.chaos import Chaos

BACK_SECONDS = 5.0
"""The promise: a link is back within this time."""

SILENCE_SECONDS = 10.0
"""The silent cut after which the promise holds, measured from healing."""


@pytest.fixture(scope="module")
def apps() -> Iterator[Apps]:
    with Apps() as running:
        yield running


@pytest.fixture(scope="module")
def load() -> Iterator[Load]:
    with Load() as running:
        yield running


@pytest.fixture(scope="module")
def _module_pair(apps: Apps, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TunnelPair]:
    targets = [apps.add("echo"), apps.add("pattern")]
    folder = tmp_path_factory.mktemp("link")
    with TunnelPair(targets, folder, chaos=True, common={"hold": 20}) as running:
        yield running


@pytest.fixture
def pair(_module_pair: TunnelPair) -> Iterator[TunnelPair]:
    """Two tunnels, an ``echo`` and a ``pattern``, each link through a relay, all up."""
    _module_pair.wait_links()
    yield _module_pair
    for relay in _module_pair.relays.values():
        relay.heal()


def wait_for_cut(relay: Chaos, before: int) -> None:
    wait_until(lambda: relay.counters().cut > before, 5, "the link is cut")


@pytest.mark.parametrize("how", ["reset", "close"])
def test_a_link_that_was_ended_is_back_at_once(pair: TunnelPair, how: str) -> None:
    times = []
    for _ in range(3):
        ended = pair.relay.reset() if how == "reset" else pair.relay.close()
        assert ended == 1
        times.append(seconds_until_echo(pair.port))
        pair.wait_links()

    assert max(times) < BACK_SECONDS
    assert sorted(times)[1] < 1.0, f"usually within a second, but {times}"


def test_the_other_tunnel_notices_nothing(pair: TunnelPair, load: Load) -> None:
    def gap() -> float:
        pair.wait_links()
        load.transfer("beside", pair.ports[1], count=2, up=-1, down=-1)
        wait_until(lambda: load.stats("beside").down > 1_000_000)
        pair.relay.reset()
        seconds_until_echo(pair.port)
        down = load.stats("beside").down
        wait_until(lambda: load.stats("beside").down > down)
        stats = load.end("beside")
        assert stats.bad == 0, stats.errors
        return stats.max_gap

    assert least(gap, 1) < 1


@pytest.mark.parametrize("direction", ["up", "down"])
def test_streams_of_a_cut_link_go_on_whole(
    pair: TunnelPair, load: Load, direction: str
) -> None:
    """Cut after exactly so many bytes, in the middle of headers and of payloads."""
    relay = pair.relays[pair.ports[1]]
    for number, size in enumerate((1, 15, 16, 17, 1000, 65_552, 300_001)):
        relay.cut_after(size, direction, scope="existing")  # type: ignore[arg-type]
        load.transfer("cut", pair.ports[1], count=10, up=200_000, down=200_000, seed=number)
        stats = load.finish("cut")
        assert stats.outcomes == {"ok": 10}, stats.errors
        pair.wait_links(BACK_SECONDS)

    load.transfer("after", pair.ports[1], count=10, up=200_000, down=200_000)
    assert load.finish("after").outcomes == {"ok": 10}


def test_busy_streams_survive_many_cuts(pair: TunnelPair, load: Load) -> None:
    """Also a cut of the next link right behind its first bytes: in SYNC and STATE."""
    relay = pair.relays[pair.ports[1]]
    load.transfer("many", pair.ports[1], count=20, up=8_000_000, down=8_000_000)
    for number in range(20):
        size = (1000, 60, 500, 650, 700, 800, 2_000_000)[number % 7]
        cut = relay.counters().cut
        relay.cut_after(size, ("up", "down")[number % 2], scope="new")
        relay.reset()
        wait_for_cut(relay, cut)
        relay.heal()
        pair.wait_links(BACK_SECONDS)
    stats = load.finish("many")

    assert stats.outcomes == {"ok": 20}, stats.errors


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_link_cut_in_its_handshake_is_tried_again(pair: TunnelPair, direction: str) -> None:
    for size in (0, 1, 7, 43, 44, 45, 60, 200):
        relay = pair.relay
        relay.cut_after(size, direction, scope="new")  # type: ignore[arg-type]
        cut = relay.counters().cut
        relay.reset()
        wait_for_cut(relay, cut)
        relay.heal()
        assert seconds_until_echo(pair.port) < BACK_SECONDS


def test_a_link_in_slices_of_one_byte_carries_everything(pair: TunnelPair, load: Load) -> None:
    relay = pair.relays[pair.ports[1]]
    relay.slice(1)
    relay.reset()  # the next handshake comes in slices too
    load.transfer("sliced", pair.ports[1], count=3, up=20_000, down=20_000)
    stats = load.finish("sliced")

    assert stats.outcomes == {"ok": 3}, stats.errors


def test_a_thin_and_slow_link_carries_everything(pair: TunnelPair, load: Load) -> None:
    relay = pair.relays[pair.ports[1]]
    relay.delay(0.1)
    relay.rate(2_000_000, "both")
    relay.slice(1000)
    load.transfer("thin", pair.ports[1], count=10, up=100_000, down=100_000)
    stats = load.finish("thin")

    assert stats.outcomes == {"ok": 10}, stats.errors
    assert pair.server.tunnel(pair.ports[1])["link"]["state"] == "up"


def test_a_stalled_direction_loses_nothing(pair: TunnelPair, load: Load) -> None:
    """Back-pressure on the link for less time than makes it doubted."""
    relay = pair.relays[pair.ports[1]]
    load.transfer("stalled", pair.ports[1], count=5, up=10_000_000, down=10_000_000)
    for direction in ("up", "down"):
        relay.stall(direction)
        load.mark("stalled")
        wait_until(lambda: load.stats("stalled").max_gap > 0.5)
        relay.heal()
    stats = load.finish("stalled")

    assert stats.outcomes == {"ok": 5}, stats.errors


def test_a_half_open_link_is_replaced(pair: TunnelPair) -> None:
    """The old connection says nothing more and is not closed; a new one would pass."""
    pair.relay.silence("existing")
    assert seconds_until_echo(pair.port, tries=True) < 2 + 2 + BACK_SECONDS
    pair.wait_links()


def test_a_visitor_that_no_client_has_seen_is_held_for_the_next_link(pair: TunnelPair) -> None:
    """Its OPEN went out on a link that was dead already; nobody has answered it."""
    pair.relay.silence("existing")
    with connect(pair.port, timeout=20) as visitor:
        visitor.sendall(b"hello")
        wait_until(lambda: pair.server.tunnel(pair.port)["visitors"] >= 1)
        assert receive_exactly(visitor, 5) == b"hello"


def test_a_server_that_accepts_and_never_answers_is_tried_again(pair: TunnelPair) -> None:
    pair.relay.silence("new")
    accepted = pair.relay.counters().accepted
    pair.relay.reset()
    wait_until(lambda: pair.relay.counters().accepted >= accepted + 2, 5)
    pair.relay.heal()

    assert seconds_until_echo(pair.port) < BACK_SECONDS


def test_an_unreachable_server_is_found_when_it_is_back(pair: TunnelPair) -> None:
    pair.relay.refuse()
    pair.relay.reset()
    wait_until(lambda: not pair.client.link_up(pair.port), 5)
    wait_until(lambda: "refuses the" in pair.client.log_text(f"tunnel-{pair.port}.log"), 5)
    pair.relay.heal()

    assert seconds_until_echo(pair.port) < BACK_SECONDS


def test_a_silent_cut_of_ten_seconds_heals(pair: TunnelPair, load: Load) -> None:
    """Through a relay: nothing passes and nothing is closed, for old and new connections.

    Visitors are there all the time: streams under way, and one that comes in between.
    """
    for relay in pair.relays.values():
        relay.silence()
    begin = time.monotonic()
    load.probe("running", pair.port, count=3, pause=0.05)
    with connect(pair.port, timeout=30) as held:
        held.sendall(b"hello")
        wait_until(
            lambda: time.monotonic() - begin > SILENCE_SECONDS,
            SILENCE_SECONDS + 5,
            "the silence",
        )
        for relay in pair.relays.values():
            relay.heal()
        healed = time.monotonic()
        # It came while the link was dead and not yet known to be.
        assert receive_exactly(held, 5) == b"hello"
    seconds_until_echo(pair.port, tries=True)
    assert time.monotonic() - healed < BACK_SECONDS
    pair.wait_links(BACK_SECONDS)
    stats = load.end("running")
    assert stats.bad == 0, stats.errors
    assert not stats.outcomes.get("reset")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["TERM", "KILL"])
def test_a_restarted_server_is_found(pair: TunnelPair, number: int) -> None:
    if number == signal.SIGTERM:
        pair.server.stop()
    else:
        pair.server.kill()
    pair.server.start()
    begin = time.monotonic()
    seconds_until_echo(pair.port)
    pair.wait_links(BACK_SECONDS)

    assert time.monotonic() - begin < BACK_SECONDS


def test_a_killed_client_finds_its_port_free(pair: TunnelPair) -> None:
    pair.client.kill()
    pair.client.start()
    begin = time.monotonic()
    seconds_until_echo(pair.port)
    pair.wait_links(BACK_SECONDS)

    assert time.monotonic() - begin < BACK_SECONDS


def test_the_ghost_of_a_killed_client_does_not_hold_its_port(pair: TunnelPair) -> None:
    """Its old link is half-open at the server, which has not noticed."""
    for relay in pair.relays.values():
        relay.silence("existing")
    pair.client.kill()
    pair.client.start()
    begin = time.monotonic()
    seconds_until_echo(pair.port, tries=True)
    pair.wait_links(BACK_SECONDS)

    assert time.monotonic() - begin < BACK_SECONDS


def test_a_client_from_elsewhere_does_not_get_the_port(
    pair: TunnelPair, apps: Apps, load: Load, tmp_path: Path
) -> None:
    """Another host with the same tunnel waits; the owner's visitors notice nothing."""
    config = [{"remote_port": pair.port, "local_port": apps.add("banner")}]
    name = f"tunnel-{pair.port}.log"

    def gap() -> float:
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        load.probe("owner", pair.port, count=3, pause=0.01)
        with Master("client", config, folder, server="127.0.0.1") as stranger:
            stranger.allowed.append("no link")
            wait_until(lambda: "no link" in stranger.log_text(name), 10)
            assert not stranger.link_up(pair.port)
            assert pair.client.link_up(pair.port)
            assert least(lambda: seconds_until_echo(pair.port), 1) < 1
        stats = load.end("owner")
        assert stats.bad == 0, stats.errors
        return stats.max_gap

    assert least(gap, 1) < 1


@pytest.mark.slow
@pytest.mark.needs_root
@pytest.mark.timeout(120)
def test_packets_that_vanish_for_ten_seconds(apps: Apps, tmp_path: Path) -> None:
    """Two hosts and a cable; ``test_paths.py`` has what else happens to packets."""
    silence = 60.0 if is_long() else SILENCE_SECONDS
    with two_hosts() as hosts:
        port, address = free_port(), hosts.server.address
        with (
            Apps(prefix=hosts.client.prefix) as far,
            Load(prefix=hosts.server.prefix) as load,
            Master(
                "server",
                [{"remote_port": port, "resume_grace": 90}],
                tmp_path / "server",
                bind=[address],
                prefix=hosts.server.prefix,
            ) as server,
            Master(
                "client",
                [{"remote_port": port, "local_port": far.add("echo"), "resume_grace": 90}],
                tmp_path / "client",
                server=address,
                prefix=hosts.client.prefix,
            ) as client,
        ):
            wait_until(lambda: server.link_up(port) and client.link_up(port), 10)

            def serves() -> None:
                """Visitors come one after the other until one is answered."""
                load.probe("visit", port, host=address, rounds=1, repeat=True, pause=0.05)
                try:
                    wait_until(lambda: load.stats("visit").rounds >= 1, 15)
                finally:
                    load.end("visit")

            serves()
            load.probe("running", port, host=address, count=3, pause=0.05)
            wait_until(lambda: load.stats("running").rounds > 10)
            hosts.client.silence()
            cut = time.monotonic()
            wait_until(
                lambda: not client.link_up(port) or client.tunnel(port)["link"]["doubted"], 6
            )
            wait_until(lambda: time.monotonic() - cut > silence, silence + 5, "the silence")
            hosts.client.heal()
            healed = time.monotonic()
            serves()
            assert time.monotonic() - healed < BACK_SECONDS
            assert load.end("running").bad == 0
            wait_until(lambda: server.link_up(port) and client.link_up(port), BACK_SECONDS)
