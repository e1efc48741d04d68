"""A connection that says it is the link: preface, handshake, and one deadline."""

from __future__ import annotations

import secrets

import orjson
import pytest

from tests.support.fake_peer import FakePeer, tcp_pair
from tests.support.loop_stepper import spins
from tunneltcp.control.counters import Counter
from tunneltcp.protocol.frames import FrameType
from tunneltcp.protocol.handshake import Stage
from tunneltcp.protocol.messages import RefusedCode
from tunneltcp.protocol.preface import MAGIC, make_preface, port_key
from tunneltcp.workers.claims import MAX_CLAIMS, MAX_STRANGERS
from tunneltcp.workers.penalties import MAX_DELAY_SECONDS


@pytest.fixture
def server(world):
    return world.server()


def message_in(data):
    """The one message that came; it has nothing behind its JSON, least of all a MAC."""
    assert len(data) == int.from_bytes(data[:2], "big") + 2, data
    return orjson.loads(data[2:])


def refused_in_clear(world, server, first):
    """Send this; return the code of a REFUSED without a MAC, behind which comes the end."""
    peer = world.visitor(server.port, first)
    world.until(lambda: peer.end)
    assert peer.end == "fin"
    message = message_in(bytes(peer.received))
    assert set(message) == {"type", "code"}
    assert message["type"] == "refused"
    assert server.counter(Counter.VISITORS_TOTAL) == 0, "it is never a visitor"
    assert len(server.worker._claims) == 0
    return message["code"]


class TestPreface:
    def test_with_a_wrong_mac_is_refused_as_denied(self, world, server):
        preface = make_preface(port_key("wrong", server.port), server.port, bytes(16))
        assert refused_in_clear(world, server, preface) == "denied"

    def test_with_a_changed_bit_is_refused_as_denied(self, world, server):
        preface = bytearray(make_preface(port_key("", server.port), server.port, bytes(16)))
        preface[43] ^= 1
        assert refused_in_clear(world, server, bytes(preface)) == "denied"

    def test_for_another_port_is_refused_as_denied(self, world, server):
        preface = make_preface(port_key("", server.port), server.port - 1, bytes(16))
        assert refused_in_clear(world, server, preface) == "denied"

    def test_with_junk_behind_the_magic_is_refused_as_denied(self, world, server):
        junk = MAGIC + secrets.token_bytes(36)
        assert refused_in_clear(world, server, junk) == "denied"

    def test_of_another_version_is_refused_as_version(self, world, server, monkeypatch):
        monkeypatch.setattr("tunneltcp.protocol.preface.VERSION", 2)
        preface = make_preface(port_key("", server.port), server.port, bytes(16))
        assert preface[8] == 2
        assert refused_in_clear(world, server, preface) == "version"

    def test_of_another_version_with_a_wrong_mac_is_denied(self, world, server):
        preface = MAGIC + b"\x02" + bytes(35)
        assert refused_in_clear(world, server, preface) == "denied"

    def test_with_the_tls_flag_is_refused_as_tls(self, world, server):
        preface = make_preface(port_key("", server.port), server.port, bytes(16), tls=True)
        assert refused_in_clear(world, server, preface) == "tls"

    def test_that_ends_too_early_is_just_closed(self, world, server):
        peer = world.visitor(server.port, MAGIC + b"half")
        peer.finish()
        world.until(lambda: peer.end)
        assert peer.received == b""
        assert len(server.worker._claims) == 0

    def test_that_is_reset_is_forgotten(self, world, server):
        peer = world.visitor(server.port, MAGIC + b"half")
        world.until(lambda: len(server.worker._claims))
        peer.reset()
        world.until(lambda: not len(server.worker._claims))


class TestHandshake:
    def test_welcomes_who_holds_the_key(self, world, server):
        raw = world.linked_client(server.port)
        assert raw.handshake.welcome.epoch == 1
        assert not raw.handshake.welcome.resumed
        assert server.worker.link is not None
        assert len(server.worker._claims) == 0

    def test_may_come_byte_by_byte(self, world, server):
        raw = world.raw_client(server.port, dials=False)
        for byte in raw.first:
            raw.peer.send(bytes([byte]))
            world.turn()
        world.until(lambda: raw.is_up)

    def test_that_comes_too_slowly_is_over_after_5_seconds(self, world, server):
        raw = world.raw_client(server.port, dials=False)
        raw.peer.send(raw.first[:8])
        world.until(lambda: len(server.worker._claims))
        for byte in raw.first[8:28]:
            raw.peer.send(bytes([byte]))
            world.pass_time(0.24)
            assert not raw.end
            assert not spins(server.loop, 0.005)
        world.pass_time(0.3)
        world.until(lambda: raw.end)
        assert len(server.worker._claims) == 0

    def test_without_proof_is_over_after_5_seconds(self, world, server):
        raw = world.raw_client(server.port, proves=False)
        world.until(lambda: raw.stage is Stage.CHALLENGED)
        world.pass_time(4.9)
        assert not raw.end
        world.pass_time(0.2)
        world.until(lambda: raw.end)

    def test_with_a_right_preface_and_a_wrong_proof_is_denied(self, world, server):
        raw = world.raw_client(server.port, proves=False)
        world.until(lambda: raw.stage is Stage.CHALLENGED)
        raw.handshake._key = bytes(32)
        raw.prove()
        world.until(lambda: raw.refused)
        assert raw.refused is RefusedCode.DENIED
        assert not raw.handshake.refusal.proven
        world.until(lambda: raw.end)
        assert server.worker.link is None

    def test_with_a_version_we_do_not_speak_is_refused(self, world, server, monkeypatch):
        raw = world.raw_client(server.port, dials=False)
        changed = raw.first.replace(b'"versions":[1]', b'"versions":[9]')
        assert changed != raw.first
        raw.peer.send(changed)
        world.until(lambda: raw.refused)
        assert raw.refused is RefusedCode.VERSION

    @pytest.mark.parametrize(
        "junk", [b"\x00\x05hello", b"\x00\x02{}", b"\xff\xff", b"\x00\x03[1]", bytes(200)]
    )
    def test_with_junk_behind_a_right_preface_is_closed(self, world, server, junk):
        raw = world.raw_client(server.port, dials=False)
        raw.peer.send(raw.first[:44] + junk)
        world.until(lambda: raw.end)
        assert len(server.worker._claims) == 0
        assert server.worker.link is None

    def test_with_hello_twice_is_closed(self, world, server):
        raw = world.raw_client(server.port, proves=False)
        world.until(lambda: raw.stage is Stage.CHALLENGED)
        raw.peer.send(raw.first[44:])
        world.until(lambda: raw.end)

    def test_with_bytes_before_welcome_is_closed_and_the_owner_kept(self, world, server):
        owner = world.linked_client(server.port)
        owner.answers_pings = False  # so that nothing is decided yet
        raw = world.raw_client(server.port, run_id="99" * 16)
        world.until(lambda: not raw.proves)
        world.settle()
        assert not raw.end
        raw.send(FrameType.PING, 0, 1)
        world.settle()
        assert raw.end, "at once, not when its case is decided"
        assert raw.refused is None
        world.pass_time(3)
        assert server.worker.link is not None
        assert not owner.end

    def test_frames_in_one_packet_with_proof_are_not_lost(self, world, server):
        raw = world.raw_client(server.port, proves=False)
        world.until(lambda: raw.stage is Stage.CHALLENGED)
        raw.handshake.prove()
        ping = (FrameType.PING << 60).to_bytes(8, "big") + (7).to_bytes(8, "big")
        raw.peer.send(raw.handshake.data_to_send() + ping)
        world.until(lambda: raw.of(FrameType.PONG))
        assert raw.of(FrameType.PONG)[0].value == 7

    def test_that_is_cut_after_proof_harms_nobody(self, world, server):
        owner = world.linked_client(server.port)
        raw = world.raw_client(server.port, run_id="99" * 16)
        world.until(lambda: not raw.proves)
        world.settle()
        raw.peer.reset()
        world.pass_time(3)
        assert not owner.end
        assert server.worker.link is not None


class TestBound:
    def test_at_16_the_oldest_goes(self, world, server):
        claims = []
        for _ in range(MAX_CLAIMS + 1):
            claims.append(world.raw_client(server.port, proves=False))
            world.until(lambda: claims[-1].stage is Stage.CHALLENGED)
        world.until(lambda: claims[0].end)
        world.settle()
        assert [bool(claim.end) for claim in claims] == [True] + [False] * MAX_CLAIMS
        assert len(server.worker._claims) == MAX_CLAIMS == 16
        claims[-1].prove()
        world.until(lambda: claims[-1].is_up)

    def test_those_that_are_over_do_not_count(self, world, server):
        for _ in range(MAX_CLAIMS + 3):
            refused_in_clear(world, server, MAGIC + bytes(36))
        raw = world.linked_client(server.port)
        assert raw.is_up


class TestStrangers:
    """Who has not sent a right preface."""

    def test_at_64_a_random_one_goes(self, world, server):
        peers = []
        for number in range(MAX_STRANGERS + 30):
            peers.append(world.visitor(server.port, MAGIC))
            world.until(
                lambda n=number: len(server.worker._claims) == min(n + 1, MAX_STRANGERS)
            )
        world.settle()
        gone = [index for index, peer in enumerate(peers) if peer.end]
        assert len(gone) == 30
        assert gone != list(range(30)), "not the oldest"
        assert MAX_STRANGERS == 64

    def test_they_throw_out_nobody_who_holds_the_key(self, world, server):
        claims = [world.raw_client(server.port, proves=False) for _ in range(MAX_CLAIMS)]
        world.until(lambda: all(claim.stage is Stage.CHALLENGED for claim in claims))
        for _ in range(2 * MAX_STRANGERS):
            world.visitor(server.port, MAGIC)
            world.settle(2)
        assert not any(claim.end for claim in claims)
        late = world.raw_client(server.port)
        world.until(lambda: late.is_up, "WELCOME")

    def test_a_whole_preface_is_looked_at_at_once(self, world, server):
        """However many others come in the same turn."""
        raw = world.raw_client(server.port, proves=False)
        for _ in range(4 * MAX_STRANGERS):
            world.visitor(server.port, MAGIC)
        world.until(lambda: raw.stage is Stage.CHALLENGED or raw.end)
        assert not raw.end

    def test_a_preface_is_good_once(self, world, server):
        raw = world.raw_client(server.port, proves=False)
        world.until(lambda: raw.stage is Stage.CHALLENGED)
        assert refused_again(world, server, raw.first[:44]) == "denied"
        raw.prove()
        world.until(lambda: raw.is_up)

    def test_a_successor_does_not_take_it_either(self, world, server):
        raw = world.raw_client(server.port, proves=False)
        world.until(lambda: raw.stage is Stage.CHALLENGED)
        server.worker.memory.clear()  # what a successor begins with
        assert refused_again(world, server, raw.first[:44]) == "denied"

    def test_one_that_is_refused_for_something_else_is_used_up_too(self, world, server):
        key = port_key("", server.port)
        preface = make_preface(key, server.port, bytes(16), tls=True)
        assert refused_in_clear(world, server, preface) == "tls"
        assert refused_in_clear(world, server, preface) == "denied"


def refused_again(world, server, first):
    peer = world.visitor(server.port, first)
    world.until(lambda: peer.end)
    return message_in(bytes(peer.received))["code"]


class TestPenalty:
    """Claims from an address of the Internet, put in by hand: tests are all on loopback."""

    ADDRESS = ("198.51.100.7", 40_000)

    def claim(self, world, server, data, address=ADDRESS):
        one, other = tcp_pair()
        peer = FakePeer(one)
        world._play(peer)
        peer.send(data)
        server.worker._claims.add(other, address)
        world.settle()
        return peer

    def fail_often(self, world, server):
        for _ in range(4):
            assert self.claim(world, server, MAGIC + bytes(36)).end == "fin"

    def test_answers_come_late_after_some_failures(self, world, server):
        self.fail_often(world, server)
        late = self.claim(world, server, MAGIC + bytes(36))
        world.pass_time(MAX_DELAY_SECONDS - 0.1)
        assert not late.end
        assert not late.received
        assert not spins(server.loop)
        world.pass_time(0.2)
        world.until(lambda: late.end)
        assert message_in(bytes(late.received))["code"] == "denied"
        assert len(server.worker._claims) == 0

    def test_one_who_does_not_wait_for_his_answer_leaves_nothing(self, world, server):
        self.fail_often(world, server)
        late = self.claim(world, server, MAGIC + bytes(36))
        late.reset()
        world.until(lambda: len(server.worker._claims) == 0)
        late = self.claim(world, server, MAGIC + bytes(3000))
        late.finish()
        world.settle()
        assert not spins(server.loop)
        world.pass_time(MAX_DELAY_SECONDS + 0.1)
        assert len(server.worker._claims) == 0

    def test_those_who_wait_crowd_out_each_other_alone(self, world, server):
        self.fail_often(world, server)
        late = [self.claim(world, server, MAGIC + bytes(36)) for _ in range(MAX_STRANGERS + 9)]
        assert len(server.worker._claims) == MAX_STRANGERS
        assert sum(bool(peer.end) for peer in late) == 9
        assert world.linked_client(server.port).is_up

    def test_who_holds_the_key_is_let_in_and_lifts_it(self, world, server):
        self.fail_often(world, server)
        key = port_key("", server.port)
        peer = self.claim(world, server, make_preface(key, server.port, bytes(16)))
        assert not peer.end
        raw = world.linked_client(server.port)
        assert raw.is_up
        server.worker._claims.penalties.lift(self.ADDRESS)
        assert self.claim(world, server, MAGIC + bytes(36)).end == "fin"

    def test_a_right_proof_lifts_it(self, world, server):
        self.fail_often(world, server)
        raw = world.raw_client(server.port, proves=False)
        world.until(lambda: raw.stage is Stage.CHALLENGED)
        (claim,) = server.worker._claims._open
        claim._peer = self.ADDRESS
        raw.prove()
        world.until(lambda: raw.is_up)
        assert self.claim(world, server, MAGIC + bytes(36)).end == "fin", "at once"

    def test_a_preface_that_never_comes_to_an_end_counts(self, world, server):
        for _ in range(4):
            self.claim(world, server, MAGIC)
        world.pass_time(5.1)
        assert len(server.worker._claims) == 0
        late = self.claim(world, server, MAGIC + bytes(36))
        assert not late.end

    def test_nothing_is_held_against_loopback(self, world, server):
        for _ in range(10):
            near = self.claim(world, server, MAGIC + bytes(36), ("127.0.0.1", 1))
            assert near.end == "fin"


def test_nothing_is_held_against_who_never_was_a_link(world, server):
    """Junk from many strangers, then the real client, then its visitor."""
    for _ in range(5):
        refused_in_clear(world, server, MAGIC + bytes(36))
    raw = world.linked_client(server.port)
    world.visitor(server.port, b"hello")
    world.until(lambda: raw.data(1) == b"hello")
