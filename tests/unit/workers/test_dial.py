"""One attempt to become the link: it ends one way or the other, and says so once."""

from __future__ import annotations

import socket

import pytest

from tests.support.certificates import client_settings
from tests.support.fake_clock import FakeClock
from tests.support.fake_link import HOST_ID, RUN_ID, RawServer
from tests.support.loop_stepper import LoopStepper, spins
from tunneltcp.net.loop import Loop
from tunneltcp.net.tls import ClientTls
from tunneltcp.protocol.handshake import HANDSHAKE_SECONDS
from tunneltcp.protocol.messages import Hello, RefusedCode, encode_refused
from tunneltcp.protocol.preface import port_key
from tunneltcp.workers.dial import CONNECT_SECONDS, Attempt


class Owner:
    """Proves at once, and remembers how it ended."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.refusals: list[object] = []
        self.proves = True

    def on_challenged(self, attempt):
        self.said.append("challenged")
        if self.proves:
            attempt.prove()

    def on_welcome(self, attempt, welcome, rest):
        self.said.append(f"welcome {rest!r}")

    def on_failure(self, attempt, trouble, detail, refusal):
        assert not attempt.is_open
        self.said.append(f"{trouble.value} {detail}".strip())
        self.refusals.append(refusal)


class Bench:
    def __init__(self) -> None:
        self.stepper = LoopStepper(FakeClock())
        self.until, self.settle = self.stepper.until, self.stepper.settle
        self.loop = Loop(clock=self.stepper.clock)
        self.stepper.loops.append(self.loop)
        self.owner = Owner()
        self.server = RawServer()
        self.stepper.pumps.append(self.server.pump)
        self.attempts: list[Attempt] = []

    def dial(self, port: int | None = None, *, starts: bool = True, tls=None) -> Attempt:
        port = self.server.port if port is None else port
        hello = Hello(
            agent="test/1",
            host_id=HOST_ID,
            run_id=RUN_ID,
            port=self.server.port,
            window=1000,
            session=None,
            attempt=5,
        )
        key = port_key("", self.server.port)
        address = (socket.AF_INET, ("127.0.0.1", port))
        attempt = Attempt(self.loop, address, hello, key, self.owner, tls=tls)
        self.attempts.append(attempt)
        if starts:
            attempt.start()
        return attempt

    def close(self) -> None:
        for attempt in self.attempts:
            attempt.cancel()
            attempt.transport.close()
        self.server.close()
        self.loop.close()


@pytest.fixture
def bench():
    bench = Bench()
    yield bench
    bench.close()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_that_is_welcomed_hands_its_socket_over(bench):
    attempt = bench.dial()
    assert attempt.number == 5
    assert attempt.where == f"127.0.0.1:{bench.server.port}"
    bench.until(lambda: len(bench.owner.said) == 2)
    assert bench.owner.said == ["challenged", "welcome b''"]
    assert attempt.transport.fileno() >= 0
    bench.loop.register(
        attempt.transport.fileno(), 1, lambda _: None
    )  # it is free for the link
    bench.stepper.pass_time(HANDSHAKE_SECONDS + 1)
    assert len(bench.owner.said) == 2


def test_what_comes_in_one_packet_with_welcome_is_handed_on(bench):
    bench.dial()
    bench.owner.proves = False
    bench.until(lambda: bench.owner.said)
    end = bench.server.ends[0]
    bench.server.decide = lambda _: None
    bench.attempts[0].prove()
    bench.until(lambda: end.is_proven)
    end.handshake.welcome("cc" * 16, 1)
    end.peer.send(end.handshake.data_to_send() + b"first frames")
    bench.until(lambda: len(bench.owner.said) == 2)
    assert bench.owner.said[1] == "welcome b'first frames'"


def test_that_waits_for_its_turn_to_prove_costs_no_turns(bench):
    bench.owner.proves = False
    bench.dial()
    bench.until(lambda: bench.owner.said)
    bench.settle()
    assert bench.owner.said == ["challenged"]
    assert not spins(bench.loop)


def test_that_is_refused_by_nobody_listening(bench):
    bench.dial(free_port())
    bench.until(lambda: bench.owner.said)
    assert bench.owner.said == ["refuses connection refused"]
    assert bench.owner.refusals == [None]


def test_that_is_refused_by_the_server(bench):
    bench.server.decide = lambda end: end.refuse(RefusedCode.IN_USE)
    bench.dial()
    bench.until(lambda: len(bench.owner.said) == 2)
    assert bench.owner.said == ["challenged", "in_use"]
    assert bench.owner.refusals[0].code is RefusedCode.IN_USE
    assert bench.owner.refusals[0].proven


def test_that_reaches_itself_is_told_so(bench):
    """Here its socket is bound to the very port it dials: a sure self-connect."""
    port = free_port()
    attempt = bench.dial(port, starts=False)
    attempt.transport.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    attempt.transport.bind(("127.0.0.1", port))
    attempt.start()
    bench.until(lambda: bench.owner.said)
    assert bench.owner.said == ["refuses"]


@pytest.mark.parametrize("how", ["fin", "rst"])
def test_that_is_cut_in_the_handshake(bench, how):
    bench.server.speaks = False
    bench.dial()
    bench.until(lambda: bench.server.ends)
    end = bench.server.ends.pop()
    end.peer.reads = False
    end.peer.finish() if how == "fin" else end.peer.reset()
    bench.until(lambda: bench.owner.said)
    assert len(bench.owner.said) == 1
    assert bench.owner.refusals == [None]
    end.close()


def test_that_is_answered_with_junk(bench):
    bench.server.speaks = False
    bench.dial()
    bench.until(lambda: bench.server.ends)
    bench.server.ends[0].peer.send(b"HTTP/1.1 400 Bad Request\r\n" * 200)
    bench.until(lambda: bench.owner.said)
    assert bench.owner.said == ["foreign HTTP"]


def test_that_is_answered_with_a_wrong_mac_says_so(bench):
    bench.dial()
    bench.until(lambda: bench.server.ends and bench.server.ends[0].has_greeted)
    bench.server.ends[0].handshake._key = bytes(32)
    bench.server.ends[0].handshake._known = False
    bench.server.ends[0].handshake._handle = lambda *_: bench.server.ends[0].welcome()
    bench.server.ends[0].handshake._must_be_proven = lambda: None
    bench.until(lambda: len(bench.owner.said) == 2)
    assert bench.owner.said[1] == "forged its proof is wrong"


def test_whose_proof_was_not_taken_knows_that_its_token_was(bench):
    bench.server.token = "another"
    bench.dial()
    bench.until(lambda: len(bench.owner.said) == 2)
    assert bench.owner.said[1] == "forged our proof was not taken there, though our token was"
    assert bench.owner.refusals[0].code is RefusedCode.DENIED


def test_that_is_refused_in_clear_before_it_looks_takes_it_for_no_tls(bench):
    """The server has our preface, and an answer, before our loop turns again."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        bench.dial(listener.getsockname()[1], tls=ClientTls(context=client_settings()))
        server, _ = listener.accept()
        with server:
            server.sendall(encode_refused(RefusedCode.DENIED))
            bench.until(lambda: bench.owner.said)
    assert bench.owner.said == ["denied"]


def test_that_is_not_answered_is_over_after_five_seconds(bench):
    bench.server.speaks = False
    bench.dial()
    bench.stepper.pass_time(HANDSHAKE_SECONDS - 0.1)
    assert bench.owner.said == []
    bench.stepper.pass_time(0.2)
    assert bench.owner.said == ["mute"]


def test_that_nobody_accepts_makes_room_sooner(bench):
    with socket.create_server(("127.0.0.1", 0), backlog=0) as silent:
        port = silent.getsockname()[1]
        fillers = [socket.socket() for _ in range(3)]
        for sock in fillers:
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", port))
        bench.dial(port)
        bench.stepper.pass_time(CONNECT_SECONDS - 0.1)
        assert bench.owner.said == []
        bench.stepper.pass_time(0.2)
        assert bench.owner.said == ["silent"]
        for sock in fillers:
            sock.close()


@pytest.mark.parametrize("size", [0, 1024])
def test_packets_are_as_small_as_asked_for(bench, size):
    attempt = bench.dial(starts=False)
    attempt.start(size)
    bench.until(lambda: bench.server.ends)
    theirs = bench.server.ends[0].peer.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
    assert (theirs <= 1024) == bool(size), theirs


def test_that_is_cancelled_says_nothing_any_more(bench):
    bench.server.speaks = False
    attempt = bench.dial()
    bench.settle()
    attempt.cancel()
    attempt.cancel()
    bench.stepper.pass_time(HANDSHAKE_SECONDS + 1)
    assert bench.owner.said == []
    assert bench.server.ends[0].end


def test_that_cannot_even_begin_says_so_at_once(bench):
    attempt = bench.dial(starts=False)
    attempt.address = (socket.AF_INET, ("255.255.255.255", 1))
    attempt.start()
    assert bench.owner.said == ["unreachable network is unreachable"] or (
        "denied" in bench.owner.said[0]
    )
