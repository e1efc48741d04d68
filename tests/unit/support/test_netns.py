from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.apps import Apps
from tests.support.netns import TwoHosts, missing_ss_kill, two_hosts
from tests.support.require import require_ability
from tests.support.visitors import Load
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.slow, pytest.mark.needs_root]


@pytest.fixture(scope="module")
def hosts() -> Iterator[TwoHosts]:
    with two_hosts() as both:
        yield both


@pytest.fixture(scope="module")
def probe(hosts: TwoHosts) -> Iterator[Load]:
    """A probe from the client's host to the server's, over IPv4."""
    with Apps(prefix=hosts.server.prefix) as apps, Load(prefix=hosts.client.prefix) as load:
        port = apps.add("echo", "10.213.7.1")
        load.probe("a", port, host="10.213.7.1", repeat=True, pause=0.01)
        wait_until(lambda: load.stats("a").rounds > 10)
        yield load


def test_commands_run_where_they_should(hosts: TwoHosts) -> None:
    seen = hosts.client.run(sys.executable, "-c", "import socket; print(socket.if_nameindex())")

    assert hosts.client.device in seen
    assert hosts.server.device not in seen


def test_silence_drops_without_a_word_and_healing_goes_on(hosts: TwoHosts, probe: Load) -> None:
    probe.mark("a")
    bad = probe.stats("a").bad
    hosts.server.silence()
    wait_until(lambda: probe.stats("a").max_gap > 0.5)
    hosts.server.heal()
    rounds = probe.stats("a").rounds
    wait_until(lambda: probe.stats("a").rounds > rounds)

    assert probe.stats("a").bad == bad


def test_a_connection_can_be_killed(hosts: TwoHosts, probe: Load) -> None:
    require_ability(missing_ss_kill())
    bad = probe.stats("a").bad
    hosts.server.kill_connections("dst", hosts.client.address)
    wait_until(lambda: probe.stats("a").bad == bad + 1)
    assert probe.stats("a").outcomes == {"reset": bad + 1}


def test_an_address_can_be_replaced_and_the_cable_pulled() -> None:
    with two_hosts() as both:
        both.client.replace_address("10.213.7.9")
        assert both.client.run("ip", "-br", "addr").count("10.213.7.9/24") == 1
        assert "10.213.7.2" not in both.client.run("ip", "-br", "addr")
        both.client.unplug()
        assert "DOWN" in both.client.run("ip", "-br", "link", "show", both.client.device)
        both.client.plug()
        both.server.heal()
