"""Who is connected, how fast, waiting for what; who is kicked; how a stay ended."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.pattern import pattern
from tunneltcp.protocol.errors import ResetCode
from tunneltcp.relay.relay import CLOSED, FAILED
from tunneltcp.workers import visitors as module
from tunneltcp.workers.visitors import PAGE, Visitor, Visitors, describe_end, find


class Tunnel:
    def __init__(self, world, **settings) -> None:
        self.world = world
        self.app = world.app()
        self.server = world.server(**settings)
        self.client = world.client(self.server.port, self.app.port, **settings)
        world.until(lambda: self.server.worker.link and self.client.worker.link, "the link")

    def visit(self, data: bytes = b"hi"):
        before = len(self.app.peers)
        visitor = self.world.visitor(self.server.port, data)
        self.world.until(lambda: len(self.app.peers) > before, "the target")
        return visitor, self.app.peers[-1]

    def ask(self, bench, kind, **words):
        before = len(bench.told("answer"))
        bench.say(type=kind, number=77, **words)
        self.world.settle()
        self.world.pass_time(0.6)  # it may look twice
        self.world.until(lambda: len(bench.told("answer")) > before, "an answer")
        answer = bench.told("answer")[-1]
        assert answer["number"] == 77
        return answer["body"]

    def who(self, bench, **words):
        return self.ask(bench, "who", **words)["visitors"]


@pytest.fixture
def tunnel(world):
    return Tunnel(world)


def address(visitor) -> str:
    host, port = visitor.sock.getsockname()[:2]
    return f"{host}:{port}"


class TestWho:
    def test_nobody(self, tunnel):
        assert tunnel.ask(tunnel.server, "who") == {"visitors": [], "next": None}

    def test_both_sides_know_the_same_visitor(self, world, tunnel):
        visitor, peer = tunnel.visit(b"question")
        peer.send(b"an answer")
        world.until(lambda: visitor.received == b"an answer")
        for bench in (tunnel.server, tunnel.client):
            (one,) = tunnel.who(bench)
            assert (one["id"], one["address"]) == (1, address(visitor))
            assert (one["bytes_in"], one["bytes_out"]) == (8, 9)
            assert one["waits_for"] is None
            assert one["since"].endswith("+00:00")

    def test_a_rate_is_what_moved_while_it_was_asked(self, world, tunnel):
        visitor, peer = tunnel.visit()
        bench = tunnel.server
        bench.say(type="who", number=1)
        world.settle()
        assert not bench.told("answer"), "it looks twice"
        visitor.send(bytes(50_000))
        world.until(lambda: len(peer.received) == 50_002)
        world.pass_time(0.5)
        world.until(lambda: bench.told("answer"))
        (one,) = bench.told("answer")[0]["body"]["visitors"]
        assert 50_000 < one["rate_in"] <= 100_000
        assert one["rate_out"] == 0
        world.pass_time(2)
        (one,) = tunnel.who(bench)
        assert one["rate_in"] == 0

    def test_a_held_visitor_waits_for_the_link(self, world):
        server = world.server(hold_seconds=60.0)
        world.visitor(server.port, b"hello")
        world.until(lambda: server.worker._waiting)
        server.say(type="who", number=5)
        world.settle()
        world.pass_time(0.6)
        world.until(lambda: server.told("answer"))
        (one,) = server.told("answer")[0]["body"]["visitors"]
        assert (one["waits_for"], one["bytes_in"]) == ("link", 5)

    def test_a_visitor_that_does_not_read_is_waited_for(self, world, tunnel):
        visitor, peer = tunnel.visit()
        visitor.reads = False
        peer.send(bytes(12 << 20))
        world.until(lambda: tunnel.who(tunnel.server)[0]["waits_for"] == "visitor")
        world.until(lambda: tunnel.who(tunnel.client)[0]["waits_for"] == "visitor")

    def test_a_target_that_does_not_read_is_waited_for(self, world, tunnel):
        visitor, peer = tunnel.visit()
        peer.reads = False
        visitor.send(bytes(12 << 20))
        world.until(lambda: tunnel.who(tunnel.client)[0]["waits_for"] == "target")
        world.until(lambda: tunnel.who(tunnel.server)[0]["waits_for"] == "target")

    def test_pages(self, world):
        visitors = Visitors(world.server().loop, is_server=True)
        all_ = [Visitor(1 + n, "x:1", 0.0) for n in range(PAGE + 3)]
        first = visitors.page(all_[::-1], 0, link_is_good=True)
        assert [one["id"] for one in first["visitors"]] == list(range(1, PAGE + 1))
        assert first["next"] == PAGE
        second = visitors.page(all_, first["next"], link_is_good=True)
        assert [one["id"] for one in second["visitors"]] == [PAGE + 1, PAGE + 2, PAGE + 3]
        assert second["next"] is None


class TestKick:
    def test_resets_both_ends_of_one_and_nobody_else(self, world, tunnel):
        first, peer = tunnel.visit()
        second, other = tunnel.visit()
        assert tunnel.ask(tunnel.server, "kick", visitor=1) == {"kicked": 1}
        world.until(lambda: first.end and peer.end)
        assert (first.end, peer.end) == ("rst", "rst")
        other.send(b"still here")
        world.until(lambda: second.received == b"still here")
        assert [one["id"] for one in tunnel.who(tunnel.server)] == [2]

    def test_from_the_client_as_well(self, world, tunnel):
        visitor, peer = tunnel.visit()
        assert tunnel.ask(tunnel.client, "kick", all=True) == {"kicked": 1}
        world.until(lambda: visitor.end and peer.end)
        assert (visitor.end, peer.end) == ("rst", "rst")

    def test_one_that_is_held(self, world):
        server = world.server(hold_seconds=60.0)
        visitor = world.visitor(server.port, b"hello")
        world.until(lambda: server.worker._waiting)
        server.say(type="kick", number=1, address="127.0.0.1")
        world.until(lambda: visitor.end)
        assert visitor.end == "rst"
        assert not server.worker._waiting

    def test_nobody(self, tunnel):
        tunnel.visit()
        assert tunnel.ask(tunnel.server, "kick", visitor=99) == {"kicked": 0}
        assert tunnel.ask(tunnel.server, "kick", address="192.0.2.1") == {"kicked": 0}
        assert len(tunnel.who(tunnel.server)) == 1

    @pytest.mark.parametrize(
        ("whom", "ids"),
        [({"visitor": 2}, [2]), ({"address": "192.0.2.1"}, [1, 3]), ({"all": True}, [1, 2, 3]),
         ({"address": "192.0.2.1:5"}, [1]), ({"address": "2001:db8::1"}, [2]),
         ({"address": "[2001:db8::1]:5"}, [2]), ({}, []), ({"all": False}, []),
         ({"address": "192.0.2"}, [])],
    )  # fmt: skip
    def test_whom_it_means(self, whom, ids):
        there = ["192.0.2.1:5", "[2001:db8::1]:5", "192.0.2.1:6"]
        visitors = [Visitor(number + 1, text, 0.0) for number, text in enumerate(there)]
        assert [one.id for one in find(visitors, whom)] == ids


def ended_relay(ended, *, is_known=True) -> Any:
    return SimpleNamespace(ended=ended, stream=SimpleNamespace(is_known=is_known))


class TestHowItEnded:
    @pytest.mark.parametrize(
        ("ended", "on_server", "on_client"),
        [(CLOSED, "closed", "closed"),
         (FAILED, "reset by the visitor", "reset by the target"),
         (ResetCode.CANCELLED, "reset by the target", "reset by the visitor"),
         (ResetCode.TARGET_REFUSED, "the target refused it", "the target refused it"),
         (ResetCode.OVER_LIMIT, "no room for it", "no room for it"),
         (99, "reset by the target", "reset by the visitor")],
    )  # fmt: skip
    def test_in_words(self, ended, on_server, on_client):
        visitor = Visitor(1, "x:1", 0.0)
        visitor.relay = ended_relay(ended)
        assert describe_end(visitor, is_server=True, link_lost=False) == on_server
        assert describe_end(visitor, is_server=False, link_lost=False) == on_client

    def test_other_ways(self):
        visitor = Visitor(1, "x:1", 0.0)
        visitor.relay = ended_relay(ResetCode.CANCELLED, is_known=False)
        assert "in vain" in describe_end(visitor, is_server=True, link_lost=True)
        visitor.relay = ended_relay(ResetCode.CANCELLED)
        assert describe_end(visitor, is_server=True, link_lost=True) == "the link was lost"
        visitor.kicked = True
        assert describe_end(visitor, is_server=True, link_lost=True) == "kicked"


class TestAccessLog:
    @pytest.fixture
    def lines(self, monkeypatch):
        lines = []
        monkeypatch.setattr(module, "log_access", lambda text, **fields: lines.append(fields))
        return lines

    def test_one_line_for_each_visitor_on_each_side(self, world, lines):
        tunnel = Tunnel(world, access_log=True)
        visitor, peer = tunnel.visit(pattern(1, 0, 1000))
        peer.send(pattern(2, 0, 3000))
        world.until(lambda: len(peer.received) == 1000 and len(visitor.received) == 3000)
        visitor.finish()
        peer.finish()
        world.until(lambda: len(lines) == 2)
        for line in lines:
            assert line["address"] == address(visitor)
            assert (line["bytes_in"], line["bytes_out"], line["how"]) == (1000, 3000, "closed")
            assert line["seconds"] >= 0

    @pytest.mark.parametrize(
        ("end", "how"),
        [("visitor", "reset by the visitor"), ("target", "reset by the target"),
         ("kick", "kicked")],
    )  # fmt: skip
    def test_it_says_how(self, world, lines, end, how):
        tunnel = Tunnel(world, access_log=True)
        visitor, peer = tunnel.visit()
        if end == "visitor":
            visitor.reset()
        elif end == "target":
            peer.reset()
        else:
            tunnel.ask(tunnel.server, "kick", all=True)
        world.until(lambda: len(lines) == 2)
        hows = {line["how"] for line in lines}
        expected = {how, "reset by the visitor"} if end == "kick" else {how}
        assert hows == expected

    def test_one_that_waited_in_vain(self, world, lines):
        server = world.server(hold_seconds=1.0, access_log=True)
        visitor = world.visitor(server.port, b"hello")
        world.until(lambda: server.worker._waiting)
        world.pass_time(1.1)
        world.until(lambda: visitor.end)
        assert [line["how"] for line in lines] == ["waited for the link in vain"]

    def test_without_it_nothing_is_written(self, world, lines):
        tunnel = Tunnel(world)
        visitor, _ = tunnel.visit()
        visitor.reset()
        world.until(lambda: not tunnel.client.worker._relays)
        assert lines == []
