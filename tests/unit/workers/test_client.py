"""The client's worker: how it gets the link, keeps it, and reaches the target.

The server is played by hand; ``world.clock`` says what time it is.
"""

from __future__ import annotations

import itertools
import socket

import pytest

from tests.support import frame_factory as make
from tests.support.fake_shortage import no_descriptors
from tests.support.loop_stepper import spins
from tests.support.pattern import pattern
from tunneltcp.control.counters import Counter, LinkState
from tunneltcp.errors import ExitCode
from tunneltcp.protocol.errors import ResetCode
from tunneltcp.protocol.frames import FrameType
from tunneltcp.protocol.messages import RefusedCode
from tunneltcp.workers.lookups import FIRST_NAME_SECONDS
from tunneltcp.workers.pace import (
    DIAL_SECONDS,
    MAX_ATTEMPTS,
    MAX_IN_USE_SECONDS,
    MAX_REFUSED_SECONDS,
    SLOW_AFTER_SECONDS,
    SLOW_DIAL_SECONDS,
)

NOBODY = b"\0\0"
"""The payload of an OPEN that says neither who came nor where to."""

V4, V6 = socket.AF_INET, socket.AF_INET6


@pytest.fixture
def raw(world):
    return world.raw_server()


@pytest.fixture
def app(world):
    return world.app()


@pytest.fixture
def client(world, raw, app):
    """A client whose link is up."""
    client = world.client(raw.port, app.port)
    world.until(lambda: raw.up, "the link")
    world.settle()
    return client


def wait_up(world, raw):
    """The one link that is up."""
    world.until(lambda: raw.up, "the link")
    assert len(raw.up) == 1
    return raw.up[0]


def dials(world, raw, seconds: float, step: float = 0.05) -> list[float]:
    """When, from now on, the client dialled."""
    begin = world.clock()
    seen = len(raw.ends)
    times = []
    while world.clock() < begin + seconds:
        world.pass_time(step, step)
        times += [world.clock() - begin] * (len(raw.ends) - seen)
        seen = len(raw.ends)
    return times


@pytest.fixture
def closed_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


class TestDialling:
    def test_begins_at_once(self, world, raw, client):
        assert len(raw.ends) == 1
        hello = raw.up[0].handshake.hello
        assert hello.port == raw.port
        assert hello.session is None
        assert client.counter(Counter.LINK_STATE) == LinkState.UP
        assert client.counter(Counter.LINKS_TOTAL) == 1
        assert client.told("link")[0]["state"] == "up"

    def test_goes_on_at_once_after_an_end_of_the_link(self, world, raw, client):
        raw.up[0].peer.finish()
        world.settle(30)  # no time passes
        assert len(raw.ends) == 2
        assert len(raw.up) == 1

    def test_goes_on_at_once_after_a_reset_of_the_link(self, world, raw, client):
        raw.up[0].peer.reset()
        raw.ends.clear()
        world.settle(30)
        assert len(raw.up) == 1
        assert client.counter(Counter.LINKS_TOTAL) == 2

    def test_attempt_numbers_rise(self, world, raw, client):
        for _ in range(3):
            raw.up[0].peer.finish()
            world.settle(30)
        numbers = [end.handshake.hello.attempt for end in raw.ends]
        assert numbers == sorted(set(numbers))
        assert len(numbers) == 4

    def test_attempts_of_a_tunnel_that_was_put_back_are_newer(self, world, raw, client):
        """Its memory is a new one, its run is the same: the server remembers the number."""
        for _ in range(5):
            raw.up[0].peer.finish()
            world.settle(30)
        world.pass_time(1.0)
        before = len(raw.ends)
        again = world.client(raw.port, client.context.target_port)
        world.until(lambda: len(raw.ends) > before and raw.ends[-1].is_up)
        numbers = [end.handshake.hello.attempt for end in raw.ends]
        assert numbers[-1] > max(numbers[:-1])
        assert again.worker.memory.table.attempt < 2**53

    def test_attempts_overlap_but_never_more_than_four(self, world, app):
        raw = world.raw_server(speaks=False)
        client = world.client(raw.port, app.port)
        most = 0
        begin = world.clock()
        times = []
        seen = 0
        while world.clock() < begin + 12:
            world.pass_time(0.05)
            times += [world.clock() - begin] * (len(raw.ends) - seen)
            seen = len(raw.ends)
            most = max(most, len(raw.open))
        assert most == MAX_ATTEMPTS == 4
        gaps = [later - earlier for earlier, later in itertools.pairwise(times[:4])]
        for gap in gaps:
            assert DIAL_SECONDS * 0.85 - 0.06 <= gap <= DIAL_SECONDS * 1.15 + 0.06
        assert client.worker.link is None
        assert not spins(client.loop)

    def test_each_attempt_has_five_seconds(self, world, app):
        raw = world.raw_server(speaks=False)
        world.client(raw.port, app.port)
        world.until(lambda: raw.ends)
        world.pass_time(4.9)
        assert not raw.ends[0].end
        world.pass_time(0.2)
        assert raw.ends[0].end

    def test_the_first_welcome_wins_and_the_other_attempts_are_closed(self, world, app):
        raw = world.raw_server(speaks=False)
        client = world.client(raw.port, app.port)
        world.pass_time(2.0)
        assert len(raw.open) >= 3
        raw.speaks = True
        world.until(lambda: raw.up)
        world.settle()
        assert len(raw.open) == 1
        assert client.counter(Counter.LINKS_TOTAL) == 1
        assert dials(world, raw, 1.8) == []

    def test_proof_goes_out_on_one_attempt_at_a_time(self, world, raw, app):
        raw.decide = lambda end: None  # it says nothing for now
        world.client(raw.port, app.port)
        world.pass_time(2.4)
        assert len([end for end in raw.open if end.has_greeted]) >= 3
        assert len([end for end in raw.open if end.is_proven]) == 1
        raw.decide = type(raw.ends[0]).welcome
        world.until(lambda: raw.up)
        assert raw.up == [raw.ends[0]]

    def test_when_the_proving_one_fails_another_proves(self, world, raw, app):
        raw.decide = lambda end: None
        world.client(raw.port, app.port)
        world.pass_time(1.0)
        assert len(raw.open) == 2
        raw.ends[0].peer.reset()
        raw.ends[0].peer.end = "rst"
        world.settle()
        assert raw.ends[1].is_proven

    def test_when_another_fails_the_proving_one_goes_on(self, world, raw, app):
        raw.decide = lambda end: None
        client = world.client(raw.port, app.port)
        world.pass_time(1.0)
        assert [end.is_proven for end in raw.ends] == [True, False]
        raw.ends[1].peer.reset()
        world.settle()
        raw.decide = type(raw.ends[0]).welcome
        world.settle()
        assert client.worker.link is not None

    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
    def test_hung_up_on_it_dials_the_same_address_at_once(self, world, raw, app, host):
        """The server's worker died with the attempt in its hands; the next one serves.

        localhost: nobody answers on ::1.
        """
        client = world.client(raw.port, app.port, server_host=host)
        wait_up(world, raw)
        raw.decide = lambda end: end.peer.finish() if len(raw.ends) == 2 else end.welcome()
        raw.up[0].peer.finish()
        world.settle(40)  # no time passes
        assert len(raw.ends) == 3
        assert len(raw.up) == 1
        assert [message["state"] for message in client.told("link")] == ["up", "down", "up"]
        assert "trouble" not in client.told("link")[1]

    def test_hung_up_on_twice_it_takes_its_time_and_says_why(self, world, raw, app):
        raw.decide = lambda end: end.peer.sock.fileno() < 0 or end.peer.reset()
        client = world.client(raw.port, app.port)
        world.settle(40)
        assert len(raw.ends) == 2
        assert [message["trouble"] for message in client.told("link")] == ["hangs up"]
        assert len(dials(world, raw, 3.0)) in (3, 4, 5)

    def test_a_refused_connection_is_no_hot_loop(self, world, app, closed_port):
        client = world.client(closed_port, app.port)
        attempt = client.worker.memory.table.raise_attempt
        before = attempt()
        world.pass_time(3.0)
        tries = attempt() - before - 1
        assert 4 <= tries <= 6

    def test_two_addresses_that_refuse_are_no_hot_loop(self, world, app, closed_port):
        """Both are tried at once, then there is a pause as with one."""
        client = world.client(closed_port, app.port, server_host="localhost")
        attempt = client.worker.memory.table.raise_attempt
        before = attempt()
        world.pass_time(3.0)
        tries = attempt() - before - 1
        assert 8 <= tries <= 12

    def test_after_a_minute_it_is_slower(self, world, app, closed_port):
        client = world.client(closed_port, app.port)
        attempt = client.worker.memory.table.raise_attempt
        first = attempt()
        world.pass_time(SLOW_AFTER_SECONDS, step=0.1)
        before = attempt()
        assert before - first == pytest.approx(SLOW_AFTER_SECONDS / DIAL_SECONDS, rel=0.2)
        world.pass_time(20, step=0.1)
        assert attempt() - before - 1 == pytest.approx(20 / SLOW_DIAL_SECONDS, rel=0.25)

    def test_all_addresses_in_turn_and_the_one_that_worked_first(self, world, raw, app):
        """localhost: nobody answers on ::1."""
        client = world.client(raw.port, app.port, server_host="localhost")
        world.pass_time(1.0)
        assert len(raw.up) == 1
        raw.up[0].peer.finish()
        world.settle(30)
        assert len(raw.up) == 1, "127.0.0.1 is asked first now"
        assert len(client.worker._server_addresses) == 2, "and none is there twice"
        assert client.counter(Counter.LINKS_TOTAL) == 2

    def test_something_else_that_listens_there_is_no_server(self, world, app):
        web = world.app()
        client = world.client(web.port, app.port)
        world.until(lambda: web.peers and web.peers[0].received)
        web.peers[0].send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        world.until(lambda: web.peers[0].end)
        assert client.worker.link is None
        world.pass_time(1.0)
        assert len(web.peers) == 2, "and it never gives up"

    def test_a_server_with_another_token_is_no_link(self, world, app):
        raw = world.raw_server(token="x" * 32)
        client = world.client(raw.port, app.port)
        world.pass_time(3.0)
        assert client.worker.link is None
        assert not raw.up

    def test_without_a_descriptor_it_tries_again_later(self, world, raw, app):
        client = world.client(raw.port, app.port)
        with no_descriptors():
            client.worker._dial()
        world.until(lambda: raw.up or world.pass_time(0.1))
        world.pass_time(6.0)
        assert client.worker.link is not None


class TestRefused:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("code", "longest"),
        [
            (RefusedCode.IN_USE, MAX_IN_USE_SECONDS),
            (RefusedCode.DRAINING, MAX_IN_USE_SECONDS),
            (RefusedCode.DENIED, MAX_REFUSED_SECONDS),
        ],
    )
    def test_makes_the_pauses_grow_up_to_a_bound(self, world, raw, app, code, longest):
        raw.decide = lambda end: end.refuse(code)
        world.client(raw.port, app.port)
        times = dials(world, raw, 4 * longest + 40, step=0.1)
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        assert len(gaps) >= 5
        for earlier, later in itertools.pairwise(gaps):
            assert later > earlier * 1.2 or later > longest * 0.8
        assert max(gaps) <= longest * 1.15 + 0.3
        assert gaps[0] >= 0.8

    def test_is_forgotten_with_the_next_welcome(self, world, raw, app):
        raw.decide = lambda end: end.refuse(RefusedCode.DENIED)
        world.client(raw.port, app.port)
        world.pass_time(20, step=0.1)
        raw.decide = type(raw.ends[0]).welcome
        world.pass_time(20, step=0.1)
        wait_up(world, raw)
        raw.decide = lambda end: end.refuse(RefusedCode.DENIED)
        raw.up[0].peer.finish()
        first = len(raw.ends)
        world.pass_time(1.5)
        assert len(raw.ends) >= first + 2

    def test_the_master_hears_why(self, world, raw, app):
        raw.decide = lambda end: end.refuse(RefusedCode.IN_USE)
        client = world.client(raw.port, app.port)
        world.until(lambda: client.told("link"))
        assert client.told("link")[0]["state"] == "down"
        assert client.told("link")[0]["trouble"] == "in_use"
        assert "another client" in client.told("link")[0]["reason"]


class TestDoubt:
    def silence(self, world, raw):
        link = wait_up(world, raw)
        link.answers_pings = False
        return link

    def test_makes_it_dial_beside_the_link(self, world, raw, client):
        link = self.silence(world, raw)
        raw.speaks = False
        world.pass_time(4.3)
        assert client.counter(Counter.LINK_STATE) == LinkState.DOUBTED
        assert client.told("link")[-1]["state"] == "doubted"
        assert len(raw.open) >= 2
        assert not link.end, "the link is kept"

    def test_the_new_link_takes_its_place(self, world, raw, client):
        link = self.silence(world, raw)
        world.pass_time(4.3)
        world.until(lambda: link.end)
        assert wait_up(world, raw) is not link
        assert client.counter(Counter.LINK_STATE) == LinkState.UP
        assert client.counter(Counter.LINKS_TOTAL) == 2

    def test_a_link_that_speaks_again_stays_and_ends_the_dialling(self, world, raw, client):
        link = self.silence(world, raw)
        raw.speaks = False
        world.pass_time(5.3)
        assert len(raw.open) >= 3
        link.answers_pings = True
        link.send(FrameType.PONG, 0, 1)
        world.settle()
        assert [end for end in raw.open if not end.end] == [link]
        assert client.counter(Counter.LINK_STATE) == LinkState.UP
        assert dials(world, raw, 3.0) == []
        assert client.counter(Counter.LINKS_TOTAL) == 1

    def test_a_link_that_speaks_and_does_not_answer_is_replaced_all_the_same(
        self, world, raw, client
    ):
        """What is heard says nothing of the other way."""
        link = self.silence(world, raw)
        raw.speaks = False
        world.pass_time(4.3)
        assert client.worker.link.is_doubted
        # An answer, too, but to what was asked before the silence.
        old = next(frame.value for frame in link.frames if frame.type is FrameType.PING)
        link.send(FrameType.PONG, 0, old)
        world.settle()
        assert not client.worker.link.is_doubted
        assert client.counter(Counter.LINK_STATE) == LinkState.UP
        raw.speaks = True
        world.until(lambda: link.end)  # what was dialled before goes on at once
        assert wait_up(world, raw) is not link
        assert dials(world, raw, 3.0) == []

    def test_an_attempt_that_has_sent_proof_may_be_the_link_already(self, world, raw, client):
        """As the server sees it: to go back to the old one would be to lose both."""
        link = self.silence(world, raw)
        raw.decide = lambda end: None
        world.pass_time(4.3)
        world.until(lambda: any(end.is_proven for end in raw.open))
        link.answers_pings = True
        link.send(FrameType.PONG, 0, 1)
        world.pass_time(0.3)
        assert not client.worker.link.is_doubted
        newer = next(end for end in raw.open if end.is_proven)
        newer.welcome()
        world.until(lambda: link.end)
        assert not newer.end
        assert client.counter(Counter.LINKS_TOTAL) == 2

    def test_streams_of_a_link_that_speaks_again_go_on(self, world, raw, client, app):
        link = self.silence(world, raw)
        link.send(FrameType.OPEN, 1, 1 << 20, NOBODY)
        world.until(lambda: app.peers)
        raw.speaks = False
        world.pass_time(4.3)
        assert client.worker.link.is_doubted
        link.send(FrameType.DATA, 1, 0, b"hello")
        world.until(lambda: app.peers[0].received == b"hello")


class TestResume:
    @pytest.fixture
    def link(self, world, raw, client, app):
        """The link, with one stream on it."""
        link = wait_up(world, raw)
        link.send(FrameType.OPEN, 1, 1 << 20, NOBODY)
        link.send(FrameType.DATA, 1, 0, b"hello")
        world.until(lambda: app.peers and app.peers[0].received == b"hello")
        return link

    def lose(self, raw, link):
        """Our side of it is gone: the client sees a reset."""
        link.peer.reset()
        raw.ends.remove(link)

    def resume(self, world, raw, *states):
        """Let the server go on with the session it is asked for; its link."""

        def decide(end):
            end.welcome(end.handshake.hello.session, 2, resumed=True)
            end.peer.send(make.sync(1, len(states)) + b"".join(states))

        raw.decide = decide
        return lambda: wait_up(world, raw)

    def test_the_session_goes_on(self, world, raw, client, link, app):
        app.peers[0].send(b"answer")
        world.until(lambda: link.data(1) == b"answer")
        newer = self.resume(world, raw, make.state(1, 2, 1 << 20))
        self.lose(raw, link)
        app.peers[0].send(b" and more")
        newer = newer()
        world.until(lambda: newer.data(1) == b"swer and more")
        assert newer.handshake.hello.session == "cc" * 16
        assert newer.frames[0] == (FrameType.SYNC, 0, 1, b"\0\0\0\1")
        assert (newer.frames[1].type, newer.frames[1].value) == (FrameType.STATE, 5)
        assert client.worker.memory.table.epoch == 2
        newer.send(FrameType.DATA, 1, 5, b" too")
        world.until(lambda: app.peers[0].received == b"hello too")

    def test_what_the_server_has_not_is_reset(self, world, raw, client, link, app):
        self.lose(raw, link)
        world.until(lambda: app.peers[0].end == "rst")
        assert wait_up(world, raw).handshake.hello.session == "cc" * 16
        assert client.worker.session_id == "cc" * 16

    def test_another_session_than_was_asked_for_is_a_new_one(
        self, world, raw, client, link, app
    ):
        raw.decide = lambda end: end.welcome("dd" * 16, 1, resumed=True)
        self.lose(raw, link)
        world.until(lambda: app.peers[0].end == "rst")
        assert client.worker.session_id == "dd" * 16

    def test_after_the_grace_it_is_over(self, world, raw, client, link, app):
        raw.speaks = False
        self.lose(raw, link)
        world.pass_time(59.0, step=0.1)
        assert not app.peers[0].end
        world.pass_time(2.0)
        world.until(lambda: app.peers[0].end == "rst")
        raw.speaks = True
        world.until(lambda: raw.up or world.pass_time(0.2))
        assert client.worker.link is not None

    def test_a_server_that_stopped_is_not_waited_for(self, world, raw, client, link, app):
        raw.speaks = False
        link.send(FrameType.GOAWAY, 0, 1, b"\0\0")
        world.settle()
        assert not app.peers[0].end
        link.peer.finish()
        world.until(lambda: app.peers[0].end == "rst")

    def test_stale_is_no_refusal(self, world, raw, client, link):
        refuse = [True, True]

        def decide(end):
            if refuse:
                refuse.pop()
                end.refuse(RefusedCode.STALE)
            else:
                end.welcome()

        raw.decide = decide
        self.lose(raw, link)
        world.until(lambda: raw.up, "two in vain, at once, and one that is taken")
        assert len(raw.ends) == 3
        numbers = [end.handshake.hello.attempt for end in raw.ends]
        assert numbers == sorted(set(numbers))

    def test_with_a_proof_older_attempts_are_dropped(self, world, raw, client, link):
        raw.speaks = False
        self.lose(raw, link)
        world.pass_time(1.7)
        pending = [end for end in raw.open if not end.is_up]
        assert len(pending) == 3
        raw.speaks, raw.decide = True, lambda end: None
        pending[1].pump()
        world.until(lambda: pending[1].is_proven)
        world.until(lambda: pending[0].end)
        assert not pending[2].end


class TestNames:
    @pytest.fixture
    def named(self, world, raw, app):
        return world.client(raw.port, app.port, server_host="server.test")

    def answer(self, client, host, port, *ips, error=None):
        addresses = [[V6 if ":" in ip else V4, ip, port, 0] for ip in ips]
        message = {"host": host, "port": port, "addresses": addresses}
        if error:
            message["error"] = error
        client.say(type="addresses", **message)

    def test_are_asked_for_at_the_master_and_dialled_at_once(self, world, raw, named):
        world.settle()
        assert named.told("resolve") == [
            {"type": "resolve", "host": "server.test", "port": raw.port}
        ]
        assert not raw.ends
        self.answer(named, "server.test", raw.port, "127.0.0.1")
        world.settle(30)
        assert len(raw.up) == 1

    def test_are_not_asked_for_all_the_time(self, world, raw, named):
        world.pass_time(14.0, step=0.1)
        assert 2 <= len(named.told("resolve")) <= 4

    def test_the_old_addresses_stay_when_there_are_no_new_ones(self, world, raw, named):
        self.answer(named, "server.test", raw.port, "127.0.0.1")
        world.until(lambda: raw.up)
        self.answer(named, "server.test", raw.port, error="name server is down")
        world.settle()
        raw.up[0].peer.finish()
        world.settle(30)
        assert len(raw.up) == 1

    def test_the_last_address_is_dialled_at_once_and_the_name_asked_for(
        self, world, raw, named
    ):
        self.answer(named, "server.test", raw.port, "127.0.0.1")
        world.until(lambda: raw.up)
        world.pass_time(6.0)
        before = len(named.told("resolve"))
        raw.up[0].peer.finish()
        world.settle(30)
        assert len(raw.up) == 1
        assert len(named.told("resolve")) == before + 1

    def test_new_addresses_are_used_for_the_next_attempt(self, world, raw, named):
        self.answer(named, "server.test", raw.port, "127.0.0.2")  # nobody there
        world.pass_time(1.0)
        assert not raw.ends
        self.answer(named, "server.test", raw.port, "127.0.0.1")
        world.pass_time(1.0)
        assert len(raw.up) == 1

    def test_an_answer_for_somebody_else_changes_nothing(self, world, raw, named):
        self.answer(named, "other.test", raw.port, "127.0.0.1")
        self.answer(named, "server.test", raw.port + 1, "127.0.0.1")
        world.pass_time(1.0)
        assert not raw.ends

    def test_new_addresses_while_an_attempt_is_on_its_way(self, world, raw, named):
        raw.speaks = False
        self.answer(named, "server.test", raw.port, "127.0.0.1")
        world.until(lambda: raw.ends)
        self.answer(named, "server.test", raw.port, "127.0.0.2")
        world.settle()
        (attempt,) = named.worker._attempts
        try:
            raw.speaks = True
            world.until(lambda: raw.up)
            world.settle()
            assert named.worker.link is not None
        finally:
            if named.worker.link is None:
                attempt.sock.close()

    def test_literal_addresses_are_never_asked_for(self, world, raw, client):
        world.pass_time(3.0)
        raw.up[0].peer.finish()
        world.pass_time(3.0)
        assert client.told("resolve") == []

    def test_the_targets_name_is_asked_for_too(self, world, raw, app):
        client = world.client(raw.port, app.port, target_host="app.test")
        world.pass_time(FIRST_NAME_SECONDS + 0.1)
        link = wait_up(world, raw)
        assert client.told("resolve") == [
            {"type": "resolve", "host": "app.test", "port": app.port}
        ]
        link.send(FrameType.OPEN, 1, 1 << 20, NOBODY)
        world.until(lambda: link.of(FrameType.RESET))
        assert link.of(FrameType.RESET)[0].payload == b"\0\3", "not known yet"
        self.answer(client, "app.test", app.port, "127.0.0.1")
        world.settle()
        link.send(FrameType.OPEN, 2, 1 << 20, NOBODY)
        world.until(lambda: app.peers)

    @pytest.mark.parametrize("error", [None, "no such name"])
    def test_the_first_link_waits_for_the_targets_name(self, world, raw, app, error):
        """With it come those who wait at the server; they would be reset for nothing."""
        client = world.client(raw.port, app.port, target_host="app.test")
        world.pass_time(FIRST_NAME_SECONDS - 0.1)
        assert not raw.ends
        ips = [] if error else ["127.0.0.1"]
        self.answer(client, "app.test", app.port, *ips, error=error)
        world.until(lambda: raw.up)

    def test_a_target_that_cannot_be_reached_is_asked_for_again(self, world, raw, app):
        client = world.client(raw.port, app.port, target_host="app.test")
        self.answer(client, "app.test", app.port, "127.0.0.2")
        link = wait_up(world, raw)
        world.pass_time(6.0)
        link.send(FrameType.OPEN, 1, 1 << 20, NOBODY)
        world.until(lambda: link.of(FrameType.RESET))
        world.settle()
        assert len(client.told("resolve")) == 2

    def test_a_server_and_a_target_of_the_same_name_are_both_asked_for(self, world, raw, app):
        client = world.client(
            raw.port, app.port, server_host="box.test", target_host="box.test"
        )
        world.settle()
        asked = {message["port"] for message in client.told("resolve")}
        assert asked == {raw.port, app.port}


class TestTarget:
    def open(self, world, raw, stream_id: int = 1):
        link = wait_up(world, raw)
        link.send(FrameType.OPEN, stream_id, 1 << 20, NOBODY)
        return link

    def test_open_is_answered_before_there_is_a_target(self, world, raw, client, app):
        app.listener.close()
        link = self.open(world, raw)
        world.until(lambda: link.of(FrameType.RESET))
        first = link.of(FrameType.CREDIT)
        assert first or link.frames[-1].type is FrameType.RESET
        assert link.of(FrameType.RESET)[0].payload == b"\0\2"

    def test_bytes_cross_by_position(self, world, raw, client, app):
        link = self.open(world, raw)
        link.send(FrameType.DATA, 1, 0, pattern(1, 0, 20_000))
        link.send(FrameType.FIN, 1, 20_000)
        world.until(lambda: app.peers and app.peers[0].end)
        assert app.peers[0].received == pattern(1, 0, 20_000)
        app.peers[0].send(pattern(2, 0, 100_000))
        app.peers[0].finish()
        world.until(lambda: link.of(FrameType.FIN))
        assert link.data(1) == pattern(2, 0, 100_000)
        assert client.counter(Counter.VISITORS) == 1
        link.credit(1, 100_000, 1 << 20, flags=1)
        world.until(lambda: client.counter(Counter.VISITORS) == 0)
        assert client.counter(Counter.VISITORS_TOTAL) == 1

    def test_localhost_that_is_only_ipv6(self, world, raw):
        six = world.app("::1")
        world.client(raw.port, six.port, target_host="localhost")
        self.open(world, raw)
        world.until(lambda: six.peers)

    def test_localhost_that_is_only_ipv4_is_asked_first_the_next_time(self, world, raw, app):
        client = world.client(raw.port, app.port, target_host="localhost")
        self.open(world, raw)
        world.until(lambda: app.peers)
        assert next(iter(client.worker._relays)).tried == 1
        self.open(world, raw, 2)
        world.until(lambda: len(app.peers) == 2)
        assert sorted(relay.tried for relay in client.worker._relays) == [0, 1]

    def test_also_when_two_visitors_come_at_once(self, world, raw, app):
        client = world.client(raw.port, app.port, target_host="localhost")
        self.open(world, raw, 1)
        self.open(world, raw, 2)
        world.until(lambda: len(app.peers) == 2)
        world.settle()
        before = set(client.worker._relays)
        self.open(world, raw, 3)
        world.until(lambda: len(app.peers) == 3)
        world.settle()
        (third,) = set(client.worker._relays) - before
        assert third.tried == 0

    def test_without_a_descriptor_the_visitor_is_reset(self, world, raw, client):
        link = wait_up(world, raw)
        with no_descriptors():
            link.send(FrameType.OPEN, 1, 1 << 20, NOBODY)
            world.until(lambda: link.of(FrameType.RESET))
        assert link.of(FrameType.RESET)[0].payload == ResetCode.OVER_LIMIT.to_bytes(2, "big")
        assert client.worker.link is not None

    def test_beyond_the_memory_the_visitor_is_reset(self, world, raw, app):
        world.client(raw.port, app.port, budget_bytes=32 * 1024, max_visitors=2)
        link = self.open(world, raw, 1)
        self.open(world, raw, 2)
        world.until(lambda: link.of(FrameType.RESET))
        assert link.of(FrameType.RESET)[0].stream_id == 2
        assert link.of(FrameType.RESET)[0].payload == b"\0\5"


class TestDrain:
    def test_visitors_may_finish_and_new_ones_are_refused(self, world, raw, client, app):
        link = wait_up(world, raw)
        link.send(FrameType.OPEN, 1, 1 << 20, NOBODY)
        world.until(lambda: app.peers)
        client.say(type="drain", seconds=5)
        world.until(lambda: link.of(FrameType.GOAWAY))
        assert link.of(FrameType.GOAWAY)[0].payload == b"\0\0"
        assert link.of(FrameType.GOAWAY)[0].value == 1
        link.send(FrameType.OPEN, 2, 1 << 20, NOBODY)
        world.until(lambda: link.of(FrameType.RESET))
        assert link.of(FrameType.RESET)[0].payload == b"\0\6"
        assert client.worker.left is None
        app.peers[0].send(b"bye")
        app.peers[0].finish()
        link.send(FrameType.FIN, 1, 0)
        world.until(lambda: link.of(FrameType.FIN))
        assert link.data(1) == b"bye"
        link.credit(1, 3, 1 << 20, flags=1)
        world.until(lambda: client.worker.left is not None)
        assert client.worker.left is ExitCode.DONE

    def test_with_nobody_here_it_leaves_at_once_with_a_goaway(self, world, raw, client):
        link = wait_up(world, raw)
        client.say(type="drain", seconds=5)
        world.until(lambda: client.worker.left is not None)
        world.settle()
        assert link.of(FrameType.GOAWAY)

    def test_while_dialling_it_leaves_at_once(self, world, app):
        raw = world.raw_server(speaks=False)
        client = world.client(raw.port, app.port)
        world.until(lambda: raw.ends)
        client.say(type="drain", seconds=5)
        world.until(lambda: client.worker.left is not None)
        world.until(lambda: raw.ends[0].end)

    def test_it_leaves_when_the_link_is_lost_and_dials_no_more(self, world, raw, client, app):
        link = wait_up(world, raw)
        link.send(FrameType.OPEN, 1, 1 << 20, NOBODY)
        world.until(lambda: app.peers)
        client.say(type="drain", seconds=5)
        world.until(lambda: link.of(FrameType.GOAWAY))
        link.peer.finish()
        world.until(lambda: client.worker.left is not None)
        assert len(raw.ends) == 1

    def test_it_leaves_when_the_time_is_over(self, world, raw, client, app):
        link = wait_up(world, raw)
        link.send(FrameType.OPEN, 1, 1 << 20, NOBODY)
        world.until(lambda: app.peers)
        client.say(type="drain", seconds=2)
        world.pass_time(1.9)
        assert client.worker.left is None
        world.pass_time(0.2)
        assert client.worker.left is ExitCode.DONE

    def test_a_server_that_leaves_is_dialled_again_when_its_link_ends(self, world, raw, client):
        link = wait_up(world, raw)
        link.send(FrameType.GOAWAY, 0, 0, b"\0\0")
        world.settle()
        assert len(raw.ends) == 1
        link.peer.finish()
        world.settle(30)
        assert len(raw.up) == 1
