"""Links with TLS: a server's and a client's worker, and whoever else may stand between."""

from __future__ import annotations

import os
import ssl
from contextlib import suppress

import orjson
import pytest

from tests.support.certificates import client_settings, common_certificate, make_certificate
from tests.support.fake_peer import FakePeer
from tests.support.fake_tls import TlsPeer
from tests.support.key_update import KeyUpdatingPeer
from tests.support.loop_stepper import spins
from tests.support.pattern import pattern
from tunneltcp.control.counters import Counter, LinkState
from tunneltcp.net.tls import MAX_RAW_BYTES
from tunneltcp.protocol.frames import FrameType
from tunneltcp.protocol.handshake import HANDSHAKE_SECONDS, ServerHandshake, Stage
from tunneltcp.protocol.messages import RefusedCode, encode_message, encode_refused
from tunneltcp.protocol.preface import PREFACE_BYTES, make_preface, port_key
from tunneltcp.workers.claims import MAX_CLAIMS


@pytest.fixture
def server(world):
    return world.server(tls=True)


def raw_client(world, server, **settings):
    settings.setdefault("tls", client_settings())
    return world.raw_client(server.port, **settings)


class TestBothWorkers:
    def test_carry_every_byte_in_its_place(self, world, server):
        app = world.app()
        client = world.client(server.port, app.port, tls=True)
        world.until(lambda: server.worker.link and client.worker.link, "link")
        size = 3_000_000
        visitors = [world.visitor(server.port, pattern(seed, 0, size)) for seed in range(3)]
        world.until(lambda: len(app.peers) == 3)
        for seed, peer in enumerate(app.peers):
            peer.send(pattern(100 + seed, 0, size))
        for visitor in visitors:
            visitor.finish()
        world.until(lambda: all(peer.end == "fin" for peer in app.peers), seconds=20)
        assert sorted(bytes(peer.received) for peer in app.peers) == sorted(
            pattern(seed, 0, size) for seed in range(3)
        )
        for peer in app.peers:
            peer.finish()
        world.until(lambda: all(visitor.end == "fin" for visitor in visitors), seconds=20)
        assert sorted(bytes(visitor.received) for visitor in visitors) == sorted(
            pattern(100 + seed, 0, size) for seed in range(3)
        )

    def test_rest_when_nothing_happens(self, world, server):
        app = world.app()
        client = world.client(server.port, app.port, tls=True)
        world.until(lambda: server.worker.link and client.worker.link, "link")
        world.settle(40)
        assert not spins(server.loop)
        assert not spins(client.loop)

    def test_come_back_after_a_cut(self, world, server):
        app = world.app()
        client = world.client(server.port, app.port, tls=True)
        world.until(lambda: server.worker.link and client.worker.link, "link")
        first = client.worker.link
        server.worker.link.lose("cut by the test")
        world.until(lambda: client.worker.link not in (first, None), "the next one")
        world.visitor(server.port, b"hello")
        world.until(lambda: app.peers and app.peers[0].received == b"hello")

    @pytest.mark.parametrize("secured", [True, False])
    def test_that_do_not_agree_have_no_link(self, world, secured):
        server = world.server(tls=secured)
        client = world.client(server.port, 1, tls=not secured)
        world.until(lambda: client.told("link"))
        assert client.told("link")[0]["trouble"] == "tls"
        world.pass_time(0.3)
        assert server.counter(Counter.LINK_STATE) == LinkState.DOWN
        assert server.counter(Counter.VISITORS_TOTAL) == 0


class TestServer:
    def test_welcomes_who_holds_the_key(self, world, server):
        raw = raw_client(world, server)
        world.until(lambda: raw.is_up)
        assert raw.peer.tls.version() == "TLSv1.3"
        assert raw.peer.certificate_hash == common_certificate().fingerprint

    def test_takes_it_byte_by_byte(self, world, server):
        raw = raw_client(world, server, dials=False)
        out = bytearray(raw.first)
        raw.peer._push = lambda: None  # what it sends is sent by this test alone
        raw.secure()
        for _ in range(5000):
            out += raw.peer._out
            raw.peer._out.clear()
            if out:
                raw.peer.sock.send(out[:1])
                del out[:1]
            world.turn()
            if raw.is_up:
                break
        assert raw.is_up

    def test_proof_and_frames_in_one_packet_are_all_taken(self, world, server):
        raw = raw_client(world, server, proves=False)
        world.until(lambda: raw.stage is Stage.CHALLENGED)
        raw.handshake.prove()
        ping = (FrameType.PING << 60).to_bytes(8, "big") + (7).to_bytes(8, "big")
        raw.peer.send(raw.handshake.data_to_send() + ping)
        world.until(lambda: raw.of(FrameType.PONG))
        assert raw.of(FrameType.PONG)[0].value == 7

    def test_refuses_in_clear_who_does_not_say_tls(self, world, server):
        raw = world.raw_client(server.port)
        world.until(lambda: raw.refused)
        assert raw.refused is RefusedCode.TLS
        assert not raw.handshake.refusal.proven
        world.until(lambda: raw.end)
        assert "it does without TLS" in server.told("warning")[0]["text"]

    def test_refuses_in_clear_who_says_tls_where_there_is_none(self, world):
        server = world.server()
        first = make_preface(port_key("", server.port), server.port, bytes(16), tls=True)
        peer = world.visitor(server.port, first)
        world.until(lambda: peer.end == "fin")
        assert orjson.loads(peer.received[2:]) == {"type": "refused", "code": "tls"}
        assert "it wants TLS" in server.told("warning")[0]["text"]

    @pytest.mark.parametrize(
        "data",
        [b"GET / HTTP/1.1\r\n\r\n", bytes(100), b"\x16\x03\x01\x02\x00" + b"x" * 512, b"HELLO"],
    )
    def test_closes_on_junk_instead_of_tls(self, world, server, data):
        first = make_preface(port_key("", server.port), server.port, bytes(16), tls=True)
        peer = world.visitor(server.port, first + data)
        peer.finish()
        world.until(lambda: peer.end)
        assert len(server.worker._claims) == 0
        assert server.counter(Counter.VISITORS_TOTAL) == 0

    def test_closes_on_a_hello_in_clear_behind_the_flag(self, world, server):
        raw = raw_client(world, server, dials=False)
        raw.handshake.greet(bytes(32))
        peer = world.visitor(server.port, raw.first + raw.handshake.data_to_send())
        world.until(lambda: peer.end)
        assert b"challenge" not in peer.received

    def test_never_speaks_tls_1_2(self, world, server):
        settings = client_settings()
        settings.maximum_version = ssl.TLSVersion.TLSv1_2
        raw = raw_client(world, server, tls=settings)
        world.until(lambda: raw.peer.problem)
        assert raw.peer.problem == "TLSV1_ALERT_PROTOCOL_VERSION"

    @pytest.mark.parametrize("alpn", [None, "h2"])
    def test_closes_on_another_alpn(self, world, server, alpn):
        raw = raw_client(world, server, tls=client_settings(alpn=alpn))
        world.until(lambda: raw.end)
        assert raw.stage is Stage.WAITING

    def test_never_reaches_tls_without_the_key(self, world, server):
        raw = raw_client(world, server, token="another token, which is not that of the server")
        world.until(lambda: raw.end)
        assert not raw.peer.secured
        assert raw.peer.problem == "WRONG_VERSION_NUMBER", "REFUSED in clear"

    def test_too_slow_a_handshake_is_over_after_5_seconds(self, world, server):
        first = make_preface(port_key("", server.port), server.port, bytes(16), tls=True)
        peer = world.visitor(server.port, first + b"\x16\x03\x01\x00\xff")
        world.pass_time(HANDSHAKE_SECONDS - 0.2)
        assert not peer.end
        assert not spins(server.loop, 0.005)
        world.pass_time(0.4)
        world.until(lambda: peer.end)

    def test_secured_but_silent_is_over_after_5_seconds(self, world, server):
        raw = raw_client(world, server, proves=False)
        world.until(lambda: raw.stage is Stage.CHALLENGED)
        world.pass_time(HANDSHAKE_SECONDS + 0.1)
        world.until(lambda: raw.end)

    def test_at_16_the_oldest_goes(self, world, server):
        key = port_key("", server.port)
        peers = []
        for number in range(MAX_CLAIMS + 4):
            first = make_preface(key, server.port, bytes([number]) * 16, tls=True)
            peers.append(world.visitor(server.port, first))
            world.until(lambda: len(server.worker._claims))
            world.settle(3)
        world.settle()
        assert len(server.worker._claims) == MAX_CLAIMS == 16
        assert [bool(peer.end) for peer in peers] == [True] * 4 + [False] * 16
        raw = raw_client(world, server)
        world.until(lambda: raw.is_up)

    def test_more_than_16_kib_before_proof_ends_it(self, world, server):
        raw = raw_client(world, server, proves=False)
        world.until(lambda: raw.stage is Stage.CHALLENGED)
        for _ in range(MAX_RAW_BYTES // 6 + 1):
            raw.peer.send_raw(b"\x14\x03\x03\x00\x01\x01")
        world.until(lambda: raw.end)
        assert server.worker.link is None

    def test_a_link_is_not_bounded_by_that(self, world, server, monkeypatch):
        monkeypatch.setattr("tunneltcp.protocol.glitches.FREE_GLITCHES", 1 << 20)
        raw = raw_client(world, server)
        world.until(lambda: raw.is_up)
        for value in range(5000):
            raw.send(FrameType.PING, 0, value)
        world.until(lambda: (pongs := raw.of(FrameType.PONG)) and pongs[-1].value == 4999)

    def test_a_changed_byte_ends_the_link_with_its_reason(self, world, server):
        raw = raw_client(world, server)
        world.until(lambda: raw.is_up)
        raw.peer.send_raw(b"\x17\x03\x03\x00\x20" + bytes(32))
        world.until(lambda: server.told("link")[-1]["state"] == "down")
        assert "changed on the way" in server.told("link")[-1]["reason"]

    @pytest.mark.parametrize("how", ["finish", "reset"])
    def test_the_end_of_the_connection_is_the_end_of_the_link(self, world, server, how):
        raw = raw_client(world, server)
        world.until(lambda: raw.is_up)
        visitor = world.visitor(server.port, b"hello")
        world.until(lambda: raw.data(1) == b"hello")
        getattr(raw.peer, how)()
        world.until(lambda: server.worker.link is None)
        assert visitor.end == "", "an end without FIN frames is never a clean one"


class TestClient:
    def dial(self, world, tls, **settings):
        raw = world.raw_server(tls=tls, **settings)
        client = world.client(raw.port, 1, tls=True)
        world.until(lambda: raw.ends)
        return raw, client

    def test_is_welcomed(self, world):
        raw, client = self.dial(world, common_certificate())
        world.until(lambda: client.worker.link)
        world.until(lambda: raw.up)
        assert raw.up[0].peer.tls.version() == "TLSv1.3"

    def test_says_nothing_secret_in_clear(self, world):
        """Of what it says in clear, the preface is all."""
        raw, _ = self.dial(world, None, speaks=False)
        end = raw.ends[0]
        world.until(lambda: len(end.peer.received) > PREFACE_BYTES)
        world.settle()
        assert end.peer.received[9] == 1
        assert end.peer.received[PREFACE_BYTES] == 0x16
        assert b"hello" not in bytes(end.peer.received)

    def test_takes_refused_in_clear_as_a_hint_and_comes_again(self, world):
        raw, client = self.dial(world, None, speaks=False)
        raw.ends[0].peer.send(encode_refused(RefusedCode.TLS))
        world.until(lambda: client.told("link"))
        assert client.told("link")[0]["trouble"] == "tls"
        world.pass_time(3.0)
        world.until(lambda: len(raw.ends) > 1)
        world.until(lambda: all(len(end.peer.received) > 9 for end in raw.ends))
        for end in raw.ends:
            assert end.peer.received[9] == 1, "TLS again: it never falls back"

    @pytest.mark.parametrize(
        "message",
        [
            {"type": "challenge", "version": 1, "nonce": "00" * 32},
            {"type": "welcome", "agent": "x", "session": "00" * 16, "epoch": 1},
        ],
    )
    def test_takes_nothing_else_in_clear(self, world, message):
        raw, client = self.dial(world, None, speaks=False)
        raw.ends[0].peer.send(encode_message(message))
        world.until(lambda: client.told("link"))
        assert client.told("link")[0]["trouble"] == "foreign"

    @pytest.mark.parametrize("code", ["denied", "in_use", "something"])
    def test_takes_no_signed_refusal_in_clear(self, world, code):
        raw, client = self.dial(world, None, speaks=False)
        raw.ends[0].peer.send(encode_message({"type": "refused", "code": code}, bytes(32)))
        world.until(lambda: client.told("link"))
        assert client.told("link")[0]["trouble"] == "foreign"

    @pytest.mark.parametrize("data", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-x\r\n"])
    def test_names_who_is_no_server(self, world, data):
        raw, client = self.dial(world, None, speaks=False)
        raw.ends[0].peer.send(data)
        world.until(lambda: client.told("link"))
        assert client.told("link")[0]["trouble"] == "foreign"

    @pytest.mark.parametrize("how", ["finish", "reset"])
    def test_a_server_that_dies_in_the_handshake_is_dialled_again_at_once(self, world, how):
        raw, client = self.dial(world, None, speaks=False)
        world.until(lambda: len(raw.ends[0].peer.received) > PREFACE_BYTES)
        getattr(raw.ends[0].peer, how)()
        world.settle(20)  # no time passes
        assert len(raw.ends) == 2
        assert not client.told("link"), "it may well be nothing"

    def test_a_server_of_tls_1_2_is_none(self, world):
        raw, client = self.dial(world, None, speaks=False)
        end = raw.ends[0]
        settings = common_certificate().settings()
        settings.maximum_version = ssl.TLSVersion.TLSv1_2
        world.until(lambda: len(end.peer.received) > PREFACE_BYTES)
        tls = TlsPeer(end.peer.sock, settings, server_side=True)
        tls.received += end.peer.received[PREFACE_BYTES:]
        tls.secure()
        world.until(lambda: client.told("link"))
        assert "tls 1.3" in client.told("link")[0]["detail"]

    def test_a_silent_server_is_given_up_after_5_seconds(self, world):
        _, client = self.dial(world, None, speaks=False)
        world.pass_time(HANDSHAKE_SECONDS - 0.3)
        assert not client.told("link")
        world.pass_time(0.6)
        assert client.told("link")[0]["trouble"] == "mute"

    def test_that_wants_a_ca_refuses_a_stranger(self, world, tmp_path):
        cert, _ = make_certificate("another CA").save(tmp_path)
        raw = world.raw_server(tls=common_certificate())
        client = world.client(raw.port, 1, tls=True, verify=cert)
        world.until(lambda: client.told("link"))
        assert "certificate is not good" in client.told("link")[0]["reason"]

    def test_that_wants_a_ca_refuses_another_name(self, world, tmp_path):
        ca = make_certificate("the CA")
        cert, _ = ca.save(tmp_path)
        raw = world.raw_server(tls=make_certificate("evil.example", ca=ca))
        client = world.client(raw.port, 1, tls=True, verify=cert)
        world.until(lambda: client.told("link"))
        assert "certificate is not good" in client.told("link")[0]["reason"]
        assert client.worker.link is None

    def test_that_wants_a_ca_takes_whom_it_vouches_for(self, world, tmp_path):
        ca = make_certificate("the CA")
        cert, _ = ca.save(tmp_path)
        raw = world.raw_server(tls=make_certificate("127.0.0.1", ca=ca))
        client = world.client(raw.port, 1, tls=True, verify=cert)
        world.until(lambda: client.worker.link)


class Middle:
    """Takes a client's connection, and makes one of its own to the server; knows no key."""

    def __init__(self, world, server_port):
        self.world = world
        self.raw = world.raw_server(speaks=False)
        self.server_port = server_port
        self.pairs = {}
        world.stepper.pumps.append(self.pump)

    def pump(self):
        for end in self.raw.ends:
            if end not in self.pairs and len(end.peer.received) >= PREFACE_BYTES:
                preface = bytes(end.peer.received[:PREFACE_BYTES])
                near = TlsPeer(
                    end.peer.sock, make_certificate("Mallory").settings(), server_side=True
                )
                near.received += end.peer.received[PREFACE_BYTES:]
                near.secure()
                end.peer = near
                far = self.world.visitor(self.server_port, preface)
                sock = FakePeer(far.sock).sock
                self.world.stepper.pumps.remove(far.pump)
                there = TlsPeer(sock, client_settings())
                there.secure()
                self.pairs[end] = (near, there)
        for near, there in self.pairs.values():
            near.pump()
            there.pump()
            self.move(near, there)
            self.move(there, near)

    def move(self, one, other):
        if one.received:
            data = bytes(one.received)
            one.received.clear()
            other.send(data)
        if one.end and other.sock.fileno() >= 0:
            with suppress(OSError):  # it has ended already
                other.finish()


def test_a_man_in_the_middle_is_refused_by_both(world, server):
    """He ends TLS on both sides and passes every message on, unchanged."""
    middle = Middle(world, server.port)
    client = world.client(
        server.port, 1, tls=True, link_port=middle.raw.port, server_host="127.0.0.1"
    )
    world.until(lambda: client.told("link"))
    assert client.told("link")[0]["trouble"] == "forged", "the server does not fall for it"
    assert middle.pairs, "he was there"
    assert all(near.secured and there.secured for near, there in middle.pairs.values())
    assert server.worker.link is None
    assert client.worker.link is None


class TestKeyUpdate:
    """Either side may change its keys at any time: the link goes on, byte by byte."""

    @pytest.fixture(autouse=True)
    def _peers_can(self, monkeypatch):
        monkeypatch.setattr("tests.support.fake_link.TlsPeer", KeyUpdatingPeer)

    def ping(self, world, raw, value):
        raw.send(FrameType.PING, 0, value)
        world.until(lambda: value in [frame.value for frame in raw.of(FrameType.PONG)])

    @pytest.mark.parametrize("ask", [False, True], ids=["alone", "asks us too"])
    def test_of_a_client(self, world, server, ask):
        raw = world.linked_client(server.port, tls=client_settings())
        self.ping(world, raw, 1)
        visitor = world.visitor(server.port, pattern(1, 0, 100_000))
        world.until(lambda: raw.of(FrameType.OPEN))
        stream_id = raw.of(FrameType.OPEN)[0].stream_id
        for number in range(5):
            raw.peer.update_keys(ask=ask)
            raw.send(FrameType.DATA, stream_id, 1000 * number, pattern(2, 1000 * number, 1000))
            world.until(lambda number=number: len(visitor.received) == 1000 * (number + 1))
            self.ping(world, raw, 10 + number)
        assert visitor.received == pattern(2, 0, 5000)
        world.until(lambda: len(raw.data(stream_id)) == 100_000)
        assert raw.data(stream_id) == pattern(1, 0, 100_000)
        assert server.counter(Counter.LINKS_TOTAL) == 1

    @pytest.mark.parametrize("ask", [False, True], ids=["alone", "asks us too"])
    def test_of_a_server(self, world, ask):
        raw = world.raw_server(tls=common_certificate())
        client = world.client(raw.port, 1, tls=True)
        world.until(lambda: raw.up and client.worker.link)
        for number in range(5):
            raw.up[0].peer.update_keys(ask=ask)
            self.ping(world, raw.up[0], 10 + number)
        assert client.counter(Counter.LINKS_TOTAL) == 1

    def test_many_at_once_are_no_trouble(self, world, server):
        raw = world.linked_client(server.port, tls=client_settings())
        for _ in range(200):
            raw.peer.update_keys(ask=True)
        self.ping(world, raw, 1)
        assert server.counter(Counter.LINKS_TOTAL) == 1

    def test_with_the_old_keys_nothing_is_taken(self, world, server):
        """So the keys did change."""
        raw = world.linked_client(server.port, tls=client_settings())
        old = raw.peer._secret
        raw.peer.update_keys(ask=False)
        raw.peer._secret = old
        raw.send(FrameType.PING, 0, 1)
        world.until(lambda: raw.end)


class Tap:
    """Passes bytes on between a client and the server, and keeps them."""

    def __init__(self, world, server_port):
        self.app = world.app()
        self.world = world
        self.server_port = server_port
        self.there = []
        self.upward = bytearray()
        self.downward = bytearray()
        world.stepper.pumps.append(self.pump)

    def pump(self):
        while len(self.there) < len(self.app.peers):
            self.there.append(self.world.visitor(self.server_port))
        for near, far in zip(self.app.peers, self.there, strict=True):
            for one, other, kept in (
                (near, far, self.upward),
                (far, near, self.downward),
            ):
                if one.received:
                    kept += one.received
                    other.send(bytes(one.received))
                    one.received.clear()


def test_a_capture_holds_neither_token_nor_key_nor_a_byte_of_a_visitor(world):
    server = world.server(tls=True)
    token = "the token of this test, long enough for anybody"
    keys = (port_key(token, server.port),)
    server.worker._claims.keys = keys
    tap = Tap(world, server.port)
    app = world.app()
    client = world.client(server.port, app.port, tls=True, keys=keys, link_port=tap.app.port)
    world.until(lambda: server.worker.link and client.worker.link, "link")
    secret = b"what a visitor says to the app " * 100
    visitor = world.visitor(server.port, secret)
    world.until(lambda: app.peers and app.peers[0].received == secret)
    app.peers[0].send(secret[::-1])
    world.until(lambda: visitor.received == secret[::-1])
    capture = bytes(tap.upward + tap.downward)
    assert len(capture) > 2 * len(secret), "it is all in there, but not to be read"
    for word in (token.encode(), keys[0], keys[0].hex().encode(), secret[:31], secret[:-32:-1]):
        assert word not in capture
    for word in (b"hello", b"nonce", b"challenge", b"session"):
        assert b'"' + word + b'"' not in capture


def test_a_recorded_handshake_played_back_is_refused(world, server):
    tap = Tap(world, server.port)
    client = world.client(server.port, 1, tls=True, link_port=tap.app.port)
    world.until(lambda: server.worker.link and client.worker.link, "link")
    again = world.visitor(server.port, bytes(tap.upward))
    world.until(lambda: again.end or b"welcome" in again.received)
    assert again.end
    assert server.counter(Counter.LINKS_TOTAL) == 1
    assert server.worker.link is not None


def test_a_welcome_for_another_certificate_is_not_believed(world):
    """Even from who holds the key: the MAC covers the certificate."""
    raw = world.raw_server(tls=make_certificate("the real one"))
    shown = make_certificate("Mallory")
    client = world.client(raw.port, 1, tls=True)
    world.until(lambda: raw.ends)
    world.stepper.pumps.remove(raw.pump)  # from here on another answers
    tls = TlsPeer(raw.ends[0].peer.sock, shown.settings(), server_side=True)
    world.stepper.pumps.append(tls.pump)
    world.until(lambda: len(tls.received) > PREFACE_BYTES)
    preface = bytes(tls.received[:PREFACE_BYTES])
    del tls.received[:PREFACE_BYTES]
    tls.secure()
    handshake = ServerHandshake(
        preface,
        agent="raw/1",
        port=raw.port,
        keys=(port_key("", raw.port),),
        nonce=os.urandom(32),
        stand_in_key=os.urandom(32),
        certificate_hash=shown.fingerprint,
    )

    def talk():
        data = bytes(tls.received)
        tls.received.clear()
        if data and handshake.stage is Stage.WAITING:
            handshake.receive(data)
            if handshake.is_proven:
                handshake._said = handshake._said.replace(shown.fingerprint, bytes(32))
                handshake.welcome("cc" * 16, 1)
            tls.send(handshake.data_to_send())

    world.stepper.pumps.append(talk)
    world.until(lambda: client.told("link"))
    assert client.told("link")[0]["trouble"] == "forged"
    assert client.worker.link is None
