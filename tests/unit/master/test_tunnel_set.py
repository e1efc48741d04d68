"""Tunnels that nobody has started yet: what a person or a new config says of them counts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.support.ports import free_port
from tests.unit.master.test_operating import can_bind, refuses
from tunneltcp.config.model import Config, TunnelConfig
from tunneltcp.control.context import Role
from tunneltcp.master.changes import compare
from tunneltcp.master.process import ProcessState
from tunneltcp.master.secrets import PortSecrets
from tunneltcp.master.stopped import StoppedPorts
from tunneltcp.master.surroundings import Surroundings
from tunneltcp.master.tunnel_set import TunnelSet
from tunneltcp.net.loop import Loop


def no_worker(*_: object) -> Any:
    raise AssertionError("a worker was wanted")


@pytest.fixture
def tunnels(tmp_path):
    """One tunnel with its port bound, in a set in which any fork is a failure."""
    loop = Loop()
    nobody: Any = None
    around = Surroundings(
        loop=loop,
        children=nobody,
        helpers=nobody,
        lookups=nobody,
        addresses=("127.0.0.1",),
        drain_seconds=1.0,
        secrets=PortSecrets(Role.SERVER, no_worker, nobody),
        make_context=no_worker,
        fork_worker=no_worker,
        maps=[],
    )
    made = TunnelSet([], around, StoppedPorts(tmp_path))
    made.make([TunnelConfig(remote_port=free_port(), name="good")])
    yield made
    for tunnel in made._tunnels:
        tunnel.close()
    loop.close()


def test_one_that_is_stopped_before_its_turn_to_start_stays_stopped(tunnels):
    (one,) = tunnels._tunnels
    tunnels.stop(one)
    tunnels.begin(one)
    assert one.life.state is ProcessState.STOPPED
    assert refuses(one.config.remote_port)
    assert not can_bind(one.config.remote_port)


@pytest.mark.parametrize("stopped", [False, True])
def test_one_that_is_removed_before_its_turn_to_start_is_gone(tunnels, stopped):
    (one,) = tunnels._tunnels
    if stopped:
        tunnels.stop(one)
    old = Config(tunnels=(one.config,))
    tunnels.apply(compare(old, replace(old, tunnels=())), [])
    tunnels.begin(one)
    assert one.is_gone
    assert can_bind(one.config.remote_port)


def test_one_that_is_removed_is_not_kept_as_stopped(tunnels, tmp_path):
    """Added again it runs, and so it does when the master is started again."""
    (one,) = tunnels._tunnels
    tunnels.stop(one)
    assert StoppedPorts(tmp_path).ports == {one.config.remote_port}
    old = Config(tunnels=(one.config,))
    tunnels.apply(compare(old, replace(old, tunnels=())), [])
    assert StoppedPorts(tmp_path).ports == frozenset()


def test_a_reload_forks_nobody_in_its_own_turn(tunnels):
    """500 new tunnels at once would keep the master busy for seconds."""
    (one,) = tunnels._tunnels
    old = Config(tunnels=(one.config,))
    new = TunnelConfig(remote_port=free_port(), name="new")
    changes = compare(old, replace(old, tunnels=(one.config, new)))
    added = tunnels.make_new(changes.added)
    tunnels.apply(changes, added)
    assert tunnels.unstarted == added
    assert not can_bind(new.remote_port), "visitors who come wait for the worker"


@pytest.mark.parametrize("ending", [True, False])
def test_who_waits_for_a_port_begins_unless_everything_ends(tunnels, ending):
    (one,) = tunnels._tunnels
    old = Config(tunnels=(one.config,))
    tunnels.apply(compare(old, replace(old, tunnels=())), [])
    again = tunnels.make_new((one.config,))
    tunnels.apply(compare(replace(old, tunnels=()), old), again)
    if ending:
        tunnels.drop_removed(ending=True)
        assert again[0].life.state is ProcessState.STOPPED
    else:
        with pytest.raises(AssertionError, match="a worker was wanted"):
            tunnels.drop_removed(ending=False)
