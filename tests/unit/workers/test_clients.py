"""A port that several clients may have: whose key it is decides, and not what it says."""

from __future__ import annotations

import os

import pytest

from tunneltcp.control.context import AllowedNetworks
from tunneltcp.control.counters import Counter
from tunneltcp.control.keys import pack_keys
from tunneltcp.protocol.frames import FrameType
from tunneltcp.protocol.handshake import Stage
from tunneltcp.protocol.messages import RefusedCode
from tunneltcp.protocol.preface import port_key
from tunneltcp.workers.doors import FOREIGN
from tunneltcp.workers.server import OWNER_SECONDS

TOKENS = {"new": "laptop", "old": "laptop", "d": "desk"}
"""Whose each one is; the first of a client is the preferred one."""


def give_keys(server, tokens):
    """As the master does: beside a message."""
    fd = os.memfd_create("keys")
    keys = [(port_key(token, server.port), name) for token, name in tokens.items()]
    os.pwrite(fd, pack_keys(keys), 0)
    server.worker._take_keys(fd)


@pytest.fixture
def server(world):
    server = world.server()
    give_keys(server, TOKENS)
    return server


def decided(world, raw):
    """Let the owner of the port be asked; return why the other one was refused."""
    world.until(lambda: not raw.proves)
    world.pass_time(0.5)
    world.until(lambda: raw.refused or raw.is_up)
    return raw.refused


def client_of(server):
    return server.told("link")[-1]["client"]


class TestNames:
    def test_it_has_the_name_that_its_key_has_here(self, world, server):
        world.linked_client(server.port, token="d")
        world.until(lambda: client_of(server) == "desk")
        assert server.worker.link_client == "desk"

    def test_a_key_is_old_if_its_client_has_a_newer_one(self, world, server):
        world.linked_client(server.port, token="new")
        assert server.counter(Counter.LINK_KEY) == 0
        raw = world.linked_client(server.port, token="old")
        assert server.counter(Counter.LINK_KEY) == 1
        raw.send(FrameType.GOAWAY, 0, 0, b"\0\0")
        raw.peer.reset()
        world.pass_time(61)
        world.linked_client(server.port, token="d")
        assert server.counter(Counter.LINK_KEY) == 0, "no key of desk's is before it"

    def test_a_token_of_nobody_is_denied(self, world, server):
        raw = world.raw_client(server.port, token="")
        world.until(lambda: raw.refused)
        assert raw.refused is RefusedCode.DENIED

    def test_another_name_for_the_same_key_cuts_nobody(self, world, server):
        raw = world.linked_client(server.port, token="d")
        visitor = world.visitor(server.port, b"hi")
        world.until(lambda: raw.data(1))
        give_keys(server, {"new": "laptop", "d": "table"})
        world.until(lambda: client_of(server) == "table")
        world.settle()
        assert not raw.end
        assert not visitor.end
        again = world.linked_client(server.port, token="d", session=server.worker.session_id)
        assert again.handshake.welcome.resumed


class TestOwner:
    def test_with_both_its_tokens_it_is_the_same_client(self, world, server):
        world.linked_client(server.port, token="old")
        session = server.worker.session_id
        again = world.linked_client(server.port, token="new", session=session)
        assert again.handshake.welcome.resumed

    @pytest.mark.parametrize("lost", [False, True])
    def test_another_client_never_resumes_whatever_it_says(self, world, server, lost):
        """It claims to be the same machine, the same run, and names the session."""
        owner = world.linked_client(server.port, token="new")
        visitor = world.visitor(server.port, b"hi")
        world.until(lambda: owner.data(1))
        session = server.worker.session_id
        if lost:
            owner.peer.reset()
            world.until(lambda: server.worker.link is None)
        other = world.raw_client(server.port, token="d", session=session)
        assert decided(world, other) is RefusedCode.IN_USE
        assert other.handshake.refusal.proven
        assert other.handshake.refusal.holder == "", "where laptop is, is not for desk"
        assert server.worker.session_id == session
        assert not visitor.end
        again = world.linked_client(server.port, token="new", session=session)
        assert again.handshake.welcome.resumed

    def test_another_clients_attempts_are_not_counted(self, world, server):
        world.linked_client(server.port, token="new", attempt=5)
        other = world.raw_client(server.port, token="d", attempt=1000)
        assert decided(world, other) is RefusedCode.IN_USE
        again = world.linked_client(server.port, token="new", attempt=6)
        assert again.is_up

    def test_another_client_has_the_port_when_the_first_kept_it_long_enough(
        self, world, server
    ):
        owner = world.linked_client(server.port, token="new")
        owner.peer.reset()
        world.until(lambda: server.worker.link is None)
        world.pass_time(59)
        early = world.raw_client(server.port, token="d")
        world.until(lambda: early.refused is RefusedCode.IN_USE)
        world.pass_time(2)
        world.linked_client(server.port, token="d")
        assert client_of(server) == "desk"

    def test_a_restarted_client_is_known_by_its_name_too(self, world, server):
        """A silent owner of the same machine gives way to its own client, to no other."""
        owner = world.linked_client(server.port, token="new")
        owner.answers_pings = False
        world.pass_time(0.5)
        other = world.raw_client(server.port, token="d", run_id="77" * 16)
        world.pass_time(OWNER_SECONDS + 0.3)
        assert other.refused is RefusedCode.IN_USE
        restarted = world.raw_client(server.port, token="old", run_id="77" * 16)
        world.pass_time(OWNER_SECONDS + 0.3)
        world.until(lambda: restarted.is_up)

    def test_of_its_own_other_run_the_address_is_told(self, world, server):
        world.linked_client(server.port, token="new")
        other = world.raw_client(server.port, token="old", run_id="77" * 16)
        assert decided(world, other) is RefusedCode.IN_USE
        assert other.handshake.refusal.holder.startswith("127.0.0.1:")


class TestRevoking:
    def test_who_is_revoked_goes_at_once_and_the_next_may_come(self, world, server):
        owner = world.linked_client(server.port, token="new")
        visitor = world.visitor(server.port, b"hi")
        world.until(lambda: owner.data(1))
        give_keys(server, {"d": "desk"})
        world.until(lambda: owner.end and visitor.end)
        assert visitor.end == "rst"
        assert server.worker.session_id == ""
        world.linked_client(server.port, token="d")

    def test_a_session_that_waits_goes_too(self, world, server):
        owner = world.linked_client(server.port, token="new")
        visitor = world.visitor(server.port, b"hi")
        world.until(lambda: owner.data(1))
        owner.peer.reset()
        world.until(lambda: server.worker.link is None)
        assert not visitor.end
        give_keys(server, {"d": "desk"})
        world.until(lambda: visitor.end == "rst")
        world.linked_client(server.port, token="d")

    def test_one_token_of_two_is_enough_to_stay(self, world, server):
        owner = world.linked_client(server.port, token="new")
        give_keys(server, {"new": "laptop", "d": "desk"})
        world.settle()
        assert not owner.end

    def test_a_handshake_that_runs_meanwhile_comes_to_nothing(self, world, server):
        raw = world.raw_client(server.port, token="d", proves=False)
        world.until(lambda: len(server.worker._claims))
        give_keys(server, {"new": "laptop"})
        world.until(lambda: raw.end)
        assert not raw.is_up


class TestNetworks:
    """All of the test come from 127.0.0.1."""

    def server(self, world, near_only=False, **networks):
        allowed = AllowedNetworks(**networks)
        return world.server(networks=allowed, near_links_only=near_only)

    @pytest.mark.parametrize(
        ("near_only", "networks", "admitted"),
        [
            (False, {"allow": ("127.0.0.0/8",)}, True),
            (False, {"allow": ("10.0.0.0/8",)}, False),
            (False, {"deny": ("127.0.0.1/32",)}, False),
            (False, {"visitors_allow": ("10.0.0.0/8",)}, True),
            (True, {}, True),
            (True, {"allow": ("10.0.0.0/8",)}, True),
            (True, {"deny": ("127.0.0.0/8",)}, False),
        ],
    )
    def test_links(self, world, near_only, networks, admitted):
        server = self.server(world, near_only, **networks)
        raw = world.raw_client(server.port)
        world.until(lambda: raw.is_up or raw.refused)
        assert raw.is_up is admitted
        assert server.counter(Counter.LINKS_REFUSED) == (not admitted)
        if not admitted:
            assert raw.refused is RefusedCode.DENIED
            assert not raw.handshake.refusal.proven

    @pytest.mark.parametrize(
        ("networks", "admitted"),
        [
            ({"visitors_allow": ("127.0.0.0/8",)}, True),
            ({"visitors_allow": ("10.0.0.0/8",)}, False),
            ({"visitors_deny": ("127.0.0.1/32",)}, False),
            ({"allow": ("127.0.0.1/32",), "visitors_deny": ("10.0.0.0/8",)}, True),
        ],
    )
    @pytest.mark.parametrize("data", [b"hello", b""])
    def test_visitors(self, world, networks, admitted, data):
        server = self.server(world, **networks)
        raw = world.linked_client(server.port)
        visitor = world.visitor(server.port, data)
        world.settle()
        world.pass_time(0.1)  # who says nothing is a visitor after 30 ms
        if admitted:
            world.until(lambda: raw.of(FrameType.OPEN))
            return
        world.until(lambda: visitor.end)
        assert visitor.end == "rst"
        assert server.counter(Counter.VISITORS_REFUSED) == 1
        assert server.counter(Counter.VISITORS_TOTAL) == 0
        assert not raw.of(FrameType.OPEN)

    def test_refusals_are_told_once_and_counted(self, world):
        server = self.server(world, deny=("127.0.0.1/32",), visitors_deny=("127.0.0.1/32",))
        for _ in range(3):
            visitor, raw = world.visitor(server.port, b"hi"), world.raw_client(server.port)
            world.until(lambda: visitor.end and raw.refused)  # noqa: B023 - at once
        said = [message["text"] for message in server.told("warning")]
        assert len(said) == 2
        assert any('"visitors_allow" and "visitors_deny" say so' in text for text in said)
        assert any("no link is taken from its network" in text for text in said)
        assert server.counter(Counter.LINKS_REFUSED) == 3
        assert server.counter(Counter.VISITORS_REFUSED) == 3

    def test_who_comes_from_many_addresses_is_still_told_of_once(self, world, server):
        for number in range(20):
            server.worker.on_refused(f"10.0.0.{number}:1", FOREIGN, "")
        world.settle()
        assert len(server.told("warning")) == 1
        assert server.counter(Counter.LINKS_REFUSED) == 20

    def test_others_by_a_message(self, world):
        server = self.server(world)
        raw = world.linked_client(server.port)
        visitor = world.visitor(server.port, b"hello")
        world.until(lambda: raw.data(1) == b"hello")
        rules = {"allow": [], "deny": [], "visitors_allow": ["10.0.0.0/8"], "visitors_deny": []}
        server.say(type="networks", networks=rules)
        world.until(lambda: visitor.end == "rst")
        assert not raw.end, "the link is another matter"
        server.say(type="networks", networks=rules | {"allow": ["10.0.0.0/8"]})
        world.until(lambda: raw.end)
        refused = world.raw_client(server.port)
        world.until(lambda: refused.refused is RefusedCode.DENIED)
        server.say(type="networks", networks=rules | {"visitors_allow": []})
        world.settle()
        again = world.linked_client(server.port, session=server.worker.session_id)
        assert again.handshake.welcome.resumed, "the session had only lost its link"
        raw = world.linked_client(server.port)
        world.visitor(server.port, b"hello")
        world.until(lambda: raw.data(2) == b"hello")

    def test_who_is_in_the_handshake_when_its_network_is_shut_out_gets_no_link(self, world):
        server = self.server(world)
        begun = world.raw_client(server.port, proves=False)
        world.until(lambda: begun.stage is Stage.CHALLENGED)
        rules = {"allow": [], "deny": ["127.0.0.1/32"], "visitors_allow": []}
        server.say(type="networks", networks=rules | {"visitors_deny": []})
        world.settle()
        if not begun.end:
            begun.prove()
        world.until(lambda: begun.end or begun.is_up)
        assert not begun.is_up
        assert server.worker.link is None

    def test_who_waits_for_the_owners_answer_then_gets_no_link(self, world):
        server = self.server(world)
        owner = world.linked_client(server.port)
        owner.answers_pings = False
        world.pass_time(0.5)
        other = world.raw_client(server.port, run_id="77" * 16)
        world.until(lambda: not other.proves)
        world.settle()
        rules = {"allow": [], "deny": ["127.0.0.1/32"], "visitors_allow": []}
        server.say(type="networks", networks=rules | {"visitors_deny": []})
        world.pass_time(3.0)
        assert not other.is_up
        assert server.worker.link is None
