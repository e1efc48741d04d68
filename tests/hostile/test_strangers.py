"""Strangers attack the port of an honest client, whose visitors go on.

Each attack is a small function; what must hold during and after all of them is in
``tests/support/siege.py``.
"""

from __future__ import annotations

import resource
import secrets
import ssl
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.certificates import client_settings
from tests.support.fake_link import RawClient
from tests.support.fake_tls import TlsPeer
from tests.support.least import least
from tests.support.processes import TOKEN
from tests.support.siege import descriptors, during, message_from, pump_until
from tests.support.sockets import connect, receive_exactly, seconds_until_echo
from tests.support.wait import wait_until
from tunneltcp.protocol.handshake import Stage
from tunneltcp.protocol.messages import RefusedCode
from tunneltcp.protocol.preface import MAGIC, make_preface, port_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.siege import Siege

pytestmark = pytest.mark.slow

SECONDS = 0.8
"""Of each attack."""


def crowd_size(wanted: int) -> int:
    """As many as our own descriptors allow; all but 200 where the limit is low."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return min(wanted, hard - 200)


def test_silent_and_dribbling_connections(siege: Siege) -> None:
    """5,000 at once, over ``max_visitors`` and over the places of strangers; they stay.

    Nothing, half a magic, a magic and no more, something else a byte at a time.
    """
    firsts = (b"", MAGIC[:5], MAGIC, b"G")
    each = crowd_size(5000) // len(firsts)
    with siege.attack() as honest, siege.crowd() as crowd:
        for _ in range(each // 10):
            for first in firsts:
                crowd.dial(first, count=10)
            siege.pause()
        for turn, _ in enumerate(during(SECONDS)):
            crowd.say(b"\x0a", turn, 30)  # all at once would be a thousand visitors' work
            siege.pause()
        assert crowd.dialled > 900
        honest.settle(500)


FLOODS: dict[str, Callable[[], bytes]] = {
    "garbage": lambda: secrets.token_bytes(300),
    "http": lambda: b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 20,
    "a wrong MAC": lambda: MAGIC + secrets.token_bytes(36),
    "a wrong MAC and what follows": lambda: MAGIC + secrets.token_bytes(60_000),
    "a huge TLS record": lambda: b"\x16\x03\x01\xff\xff" + bytes(20_000),
}


@pytest.mark.parametrize("kind", FLOODS)
def test_a_flood(siege: Siege, kind: str) -> None:
    with siege.attack() as honest, siege.crowd() as crowd:
        for _ in during(SECONDS):
            for _ in range(4):
                crowd.dial(FLOODS[kind]())
            if len(crowd.socks) > 60:
                crowd.leave(30)
            siege.pause()
        assert crowd.dialled > 40
        honest.settle()


def test_tls_of_yesterday(siege: Siege) -> None:
    """As a visitor's first bytes it is the app's affair; behind a preface it is refused."""
    old = client_settings()
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with siege.attack():
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        with pytest.raises(ssl.SSLWantReadError):
            old.wrap_bio(incoming, outgoing).do_handshake()
        hello = outgoing.read()
        with connect(siege.port) as visitor:
            visitor.sendall(hello)
            assert receive_exactly(visitor, len(hello)) == hello
        for _ in during(SECONDS):
            raw = RawClient(siege.port, token=TOKEN, tls=old)
            try:
                pump_until(raw, lambda raw=raw: raw.end, "the end")  # type: ignore[misc]
                assert isinstance(raw.peer, TlsPeer)
                assert raw.peer.problem
                assert not raw.peer.secured
            finally:
                raw.close()


def test_prefaces_that_never_come_to_an_end(siege: Siege) -> None:
    """They crowd each other out, and nobody who holds the key."""
    with siege.attack(), siege.crowd() as crowd:
        crowd.dial(MAGIC, count=200)
        for _ in during(SECONDS):
            crowd.leave(50)
            crowd.dial(MAGIC, count=50)
            crowd.say(b"x")
            with siege.insider(siege.port, run_id="12" * 16, proves=False) as raw:
                pump_until(raw, lambda raw=raw: raw.stage is Stage.CHALLENGED, "CHALLENGE")  # type: ignore[misc]
                crowd.dial(MAGIC, count=80)
                raw.prove()
                pump_until(raw, lambda raw=raw: raw.refused, "an answer")  # type: ignore[misc]
                assert raw.refused is RefusedCode.IN_USE
            crowd.leave(80)


def test_a_recorded_preface_throws_nobody_out(siege: Siege) -> None:
    """A relay on the way has seen it, and plays it back while others prove themselves."""
    with siege.attack(), siege.crowd() as crowd:
        with siege.insider(siege.port, run_id="12" * 16, proves=False) as seen:
            pump_until(seen, lambda: seen.stage is Stage.CHALLENGED, "CHALLENGE")
            recorded = seen.first
            assert len(recorded) == 44
        with siege.insider(siege.port, run_id="12" * 16, proves=False) as raw:
            pump_until(raw, lambda: raw.stage is Stage.CHALLENGED, "CHALLENGE")
            crowd.dial(recorded, count=100)
            crowd.expect(b'"denied"')
            raw.prove()
            pump_until(raw, lambda: raw.refused, "an answer")
            assert raw.refused is RefusedCode.IN_USE


def test_a_recorded_handshake_is_of_no_use(siege: Siege) -> None:
    """HELLO and PROOF of another connection, by somebody who can even make prefaces."""
    with siege.attack():
        with siege.linked() as seen:
            hello, proof = seen.said
            assert b'"hello"' in hello
            assert b'"proof"' in proof
        for _ in during(SECONDS):
            with siege.insider(dials=False) as raw:
                raw.peer.send(raw.first)
                raw.secure()
                raw.greeted = True
                raw.peer.send(hello)
                challenge = message_from(raw)
                assert challenge["type"] == "challenge"
                raw.peer.send(proof)
                assert message_from(raw) == {"type": "refused", "code": "denied"}


def test_a_hello_that_names_a_strangers_session(siege: Siege) -> None:
    """Another client of the same token, which has learned session, host and run of this one."""
    with siege.linked() as owner, siege.attack():
        assert owner.handshake.welcome is not None
        session = owner.handshake.welcome.session
        before = siege.server.tunnel(siege.other)["links_total"]
        for host, run in (
            ("cc" * 16, "bb" * 16),
            ("aa" * 16, "cc" * 16),
            ("dd" * 16, "ee" * 16),
        ):
            with siege.insider(host_id=host, run_id=run, session=session) as raw:

                def answered(raw: RawClient = raw) -> bool:
                    owner.pump()  # it lives, and answers
                    return raw.refused is not None

                pump_until(raw, answered, "an answer")
                assert raw.refused is RefusedCode.IN_USE
        owner.pump()
        assert owner.is_up
        assert not owner.end
        assert siege.server.tunnel(siege.other)["links_total"] == before


@pytest.mark.parametrize("claimed", ["that port", "its own port"])
def test_a_token_that_is_good_for_another_port(siege: Siege, claimed: str) -> None:
    port = siege.port if claimed == "that port" else siege.other
    preface = make_preface(
        port_key(TOKEN, siege.other), port, secrets.token_bytes(16), tls=True
    )
    with siege.attack(), siege.crowd() as crowd:
        crowd.dial(preface, count=20)
        crowd.expect(b'"denied"')


def test_guessing_the_token(siege: Siege) -> None:
    """500 guesses; nothing is held against this machine, and the right one is let in."""
    with siege.attack(), siege.crowd() as crowd:
        for number in range(500):
            key = port_key(f"a guess that is long enough, {number}", siege.port)
            crowd.dial(make_preface(key, siege.port, secrets.token_bytes(16), tls=True))
            if number % 50 == 0:
                siege.pause()

        def seconds_to_answer() -> float:
            begin = time.monotonic()
            with siege.insider(siege.port, run_id="12" * 16) as raw:
                pump_until(raw, lambda: raw.refused, "an answer")
                assert raw.refused is RefusedCode.IN_USE, "it holds the key, but not the port"
            return time.monotonic() - begin

        assert least(seconds_to_answer, 2) < 2


def test_no_descriptor_is_left(siege: Siege) -> None:
    """Who comes waits or is reset; the worker does not spin, link and visitors stay."""
    pid = siege.server.worker_pid(siege.port)
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    with siege.attack() as honest, siege.crowd() as crowd:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (descriptors(pid) + 20, hard))
        try:
            crowd.dial(b"hello", count=100)
            crowd.dial(count=100)
            used = siege.cpu_seconds(pid)
            answers = honest.answers()
            for _ in during(2 * SECONDS):
                siege.pause()
            spent = siege.cpu_seconds(pid) - used
            answers = honest.answers() - answers
            # An answer costs 0.2 ms; a loop that spins takes all that it gets.
            assert spent < 0.1 * SECONDS + answers * 0.0004, f"it spins: {spent:.2f} s"
            assert "no descriptor is left" in siege.server.log_text()
        finally:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
        crowd.leave()
        assert seconds_until_echo(siege.port, tries=True) < 5, "it recovers"


def test_the_link_comes_back_through_a_full_house(siege: Siege) -> None:
    """``max_visitors`` are here, and more keep coming; the client is started anew."""
    with siege.crowd() as crowd:
        crowd.dial(b"hello", count=1024)
        wait_until(lambda: siege.server.tunnel(siege.port)["visitors"] >= 1000, 10)
        siege.client.allowed.append("killed")
        old = siege.client.kill_worker(siege.port)
        begin = time.monotonic()

        def is_back() -> bool:
            crowd.dial(count=20)
            crowd.dial(b"more", count=20)
            crowd.dial(MAGIC, count=20)
            return siege.client.link_up(siege.port)

        siege.client.wait_for_successor(siege.port, old)
        wait_until(is_back, 10, siege.client.complaint)
        assert time.monotonic() - begin < 8
    siege.renew_visitors()
    with siege.attack():
        assert least(lambda: seconds_until_echo(siege.port), 2) < 2


def test_the_link_comes_back_without_descriptors(siege: Siege) -> None:
    """All of them are silent strangers', and more strangers stand before it in the queue."""
    pid = siege.server.worker_pid(siege.port)
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    siege.stop_visitors()
    siege.client.allowed.append("killed")
    with siege.crowd() as crowd:
        old = siege.client.kill_worker(siege.port)
        wait_until(lambda: not siege.server.link_up(siege.port), 5)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (descriptors(pid) + 10, hard))
        try:
            crowd.dial(count=300)
            siege.client.wait_for_successor(siege.port, old)
            wait_until(lambda: siege.client.link_up(siege.port), 5, siege.client.complaint)
        finally:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
    siege.renew_visitors()
    with siege.attack():
        assert least(lambda: seconds_until_echo(siege.port), 2) < 2
