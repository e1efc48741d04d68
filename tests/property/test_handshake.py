"""The handshake under any cut, any flip, any replay: only the right key gets in."""

from __future__ import annotations

import json  # noqa: TID251 - makes JSON that orjson would not
import random
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunneltcp.protocol.errors import RemoteProtocolError
from tunneltcp.protocol.handshake import (
    MAX_HANDSHAKE_BYTES,
    ClientHandshake,
    ServerHandshake,
    Stage,
)
from tunneltcp.protocol.messages import Hello, RefusedCode
from tunneltcp.protocol.preface import PREFACE_BYTES, parse_preface, port_key

PORT = 60001
KEY = port_key("a token of more than thirty-two characters", PORT)
OTHER_KEY = port_key("another token, also longer than needed", PORT)
SESSION = "5e" * 16
HELLO = Hello(
    agent="tunneltcp/1.0",
    host_id="11" * 16,
    run_id="22" * 16,
    port=PORT,
    window=32_768,
    session=None,
    attempt=7,
)


def new_client(key=KEY, nonce=bytes(range(48)), hello=HELLO, certificate=bytes(32)):
    client = ClientHandshake(hello, key, nonce, tls=True)
    first = client.data_to_send()
    client.greet(certificate)
    client._out = first + client._out
    return client


def new_server(preface, keys=(KEY,), nonce=bytes(range(100, 132)), certificate=bytes(32)):
    return ServerHandshake(
        preface,
        agent="tunneltcp/1.0",
        port=PORT,
        keys=keys,
        nonce=nonce,
        stand_in_key=b"?" * 32,
        certificate_hash=certificate,
    )


class Talk:
    """A client and a server that talk over a wire which a test may tamper with.

    ``tamper`` gets ("client" or "server", position of its first byte, bytes) and returns the
    bytes that come. Errors are noted, as a driver would close the connection.
    """

    def __init__(self, tamper=lambda who, at, data: data, pieces=None, **options):
        self.tamper = tamper
        self.pieces = pieces or (lambda data: [data])
        self.client = new_client(
            options.get("client_key", KEY), hello=options.get("hello", HELLO)
        )
        self.server = None
        self.keys = options.get("keys", (KEY,))
        self.answer = options.get("answer", lambda server: server.welcome(SESSION, 1))
        self.said = {"client": b"", "server": b""}
        self.errors = []
        self.was_proven = False
        self.preface = b""

    def carry(self, who, data):
        at = len(self.said[who])
        self.said[who] += data
        return self.tamper(who, at, data)

    def run(self):
        try:
            for _ in range(6):
                self.turn()
        except RemoteProtocolError as error:
            self.errors.append(str(error))
        return self

    def turn(self):
        for piece in self.pieces(self.carry("client", self.client.data_to_send())):
            self.server_takes(piece)
        if self.server is None:
            return
        if self.server.is_proven:
            self.was_proven = True
            self.answer(self.server)
        for piece in self.pieces(self.carry("server", self.server.data_to_send())):
            self.client.receive(piece)
        if self.client.stage is Stage.CHALLENGED and not self.client._proof_sent:
            self.client.prove()

    def server_takes(self, piece):
        if self.server is None:
            self.preface += piece
            if len(self.preface) < PREFACE_BYTES:
                return
            piece = self.preface[PREFACE_BYTES:]
            self.server = new_server(self.preface[:PREFACE_BYTES], self.keys)
        self.server.receive(piece)

    @property
    def stages(self):
        return self.client.stage, self.server.stage if self.server else None


RIGHT = Talk().run()
LENGTHS = {who: len(said) for who, said in RIGHT.said.items()}


def test_the_right_key_gets_in():
    assert RIGHT.stages == (Stage.WELCOMED, Stage.WELCOMED)
    assert RIGHT.server.hello == HELLO
    assert RIGHT.client.welcome.session == SESSION
    assert not RIGHT.errors
    assert parse_preface(RIGHT.preface, (OTHER_KEY, KEY)).key == KEY


@given(st.integers(0, 2**32))
def test_any_cut(seed):
    rng = random.Random(seed)

    def pieces(data):
        while data:
            size = rng.choice([1, 2, 3, 50, 200])
            yield data[:size]
            data = data[size:]

    talk = Talk(pieces=pieces).run()

    assert talk.stages == (Stage.WELCOMED, Stage.WELCOMED)
    assert talk.said == RIGHT.said
    assert talk.server.rest == talk.client.rest == b""


@given(st.binary(min_size=1, max_size=100), st.integers(1, 200))
def test_what_comes_behind_the_handshake_is_kept(frames, size):
    def add_frames(who, at, data):
        welcomed = who == "server" and at + len(data) == LENGTHS["server"] and data
        return data + frames if welcomed else data

    talk = Talk(add_frames, pieces=lambda d: [d[i : i + size] for i in range(0, len(d), size)])
    talk.run()

    rest = talk.client.rest
    assert talk.client.stage is Stage.WELCOMED
    assert frames.startswith(rest) or rest == frames
    assert size < 200 or rest == frames


def flip(who, index, mask):
    def tamper(speaker, at, data):
        if speaker == who and at <= index < at + len(data):
            changed = bytearray(data)
            changed[index - at] ^= mask
            return bytes(changed)
        return data

    return tamper


@pytest.mark.parametrize("who", ["client", "server"])
@pytest.mark.parametrize("mask", [0x01, 0x20, 0x80])
def test_no_byte_can_be_changed_unseen(who, mask):
    """Every single byte: whoever was told something else never takes the link."""
    assert LENGTHS[who] > 200
    for index in range(LENGTHS[who]):
        talk = Talk(flip(who, index, mask)).run()

        assert talk.client.stage is not Stage.WELCOMED, f"byte {index} of {who}"
        if who == "client":
            assert not talk.was_proven, f"byte {index} of {who}"


@given(st.sampled_from(["client", "server"]), st.data(), st.integers(1, 255))
def test_no_bit_can_be_changed_unseen(who, data, mask):
    index = data.draw(st.integers(0, LENGTHS[who] - 1))

    talk = Talk(flip(who, index, mask)).run()

    assert talk.client.stage is not Stage.WELCOMED
    assert who == "server" or not talk.was_proven


@given(st.sampled_from(["client", "server"]), st.data())
def test_nothing_can_be_cut_out_or_put_in(who, data):
    index = data.draw(st.integers(0, LENGTHS[who] - 1))
    size = data.draw(st.integers(0, 60))
    extra = data.draw(st.binary(min_size=0 if size else 1, max_size=60))
    if RIGHT.said[who][index : index + size] == extra:
        return

    def tamper(speaker, at, said):
        if speaker == who and at <= index < at + len(said):
            start = index - at
            return said[:start] + extra + said[start + size :]
        return said

    talk = Talk(tamper).run()

    behind = index + size >= LENGTHS[who] and RIGHT.said[who][index:] == extra[:size]
    assert behind or talk.client.stage is not Stage.WELCOMED
    assert behind or who == "server" or not talk.was_proven


@given(st.binary(min_size=32, max_size=32))
def test_a_replay_against_a_new_nonce_fails(nonce):
    preface, messages = RIGHT.said["client"][:44], RIGHT.said["client"][44:]
    server = new_server(preface, nonce=nonce)

    server.receive(messages)

    assert server.stage is (Stage.PROVEN if nonce == bytes(range(100, 132)) else Stage.REFUSED)


@given(st.binary(min_size=48, max_size=48))
def test_a_replayed_server_fails(nonce):
    client = new_client(nonce=nonce)
    client.data_to_send()
    challenge = int.from_bytes(RIGHT.said["server"][:2], "big") + 2
    client.receive(RIGHT.said["server"][:challenge])
    client.prove()

    if nonce == bytes(range(48)):
        return
    with pytest.raises(RemoteProtocolError):
        client.receive(RIGHT.said["server"][challenge:])
    assert client.stage is not Stage.WELCOMED


@given(st.binary(min_size=32, max_size=32))
def test_a_wrong_key_fails_on_both_sides(key):
    if key == KEY:
        return
    talk = Talk(client_key=key).run()
    assert talk.stages == (Stage.REFUSED, Stage.REFUSED)
    assert talk.client.refusal.code is RefusedCode.DENIED
    assert not talk.client.refusal.proven

    # A server that does not hold the key, and takes the client all the same.
    server = new_server(talk.preface, keys=(key,))
    client = new_client()
    server.receive(client.data_to_send()[PREFACE_BYTES:])
    client.receive(server.data_to_send())
    client.prove()
    server._key, server._known, server.stage = key, True, Stage.PROVEN
    server.welcome(SESSION, 1)
    with pytest.raises(RemoteProtocolError):
        client.receive(server.data_to_send())


@given(st.binary(min_size=32, max_size=32))
def test_another_certificate_fails(certificate):
    client = new_client(certificate=certificate)
    preface_and_hello = client.data_to_send()
    server = new_server(preface_and_hello[:44], certificate=bytes(31) + b"\1")
    server.receive(preface_and_hello[44:])
    client.receive(server.data_to_send())
    client.prove()
    server.receive(client.data_to_send())

    assert server.is_proven == (certificate == bytes(31) + b"\1")


# ------------------------------------------------------------------------ garbage

RIGHT_FIELDS = json.loads(RIGHT.said["client"][46:].split(b"}")[0] + b"}")
anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["hello", "proof", "challenge", "welcome", "refused"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
fields = st.dictionaries(
    st.sampled_from([*RIGHT_FIELDS, "code", "holder", "epoch", "resumed"]), anything
)


@st.composite
def messages(draw):
    """A message that is nearly right, or not at all."""
    kind = draw(st.integers(0, 4))
    if kind == 0:
        text = draw(st.binary(max_size=60))
    elif kind == 1:
        text = json.dumps(draw(anything)).encode()
    else:
        start = RIGHT_FIELDS if draw(st.booleans()) else {}
        text = json.dumps({**start, **draw(fields)}).encode()
    mac = draw(st.sampled_from([b"", bytes(32), b"\xff" * 32, b"{" * 32, b"x" * 5]))
    size = len(text + mac) + draw(st.sampled_from([0, 0, 0, 1, -1, 3000]))
    return max(0, size).to_bytes(2, "big") + text + mac


@pytest.mark.parametrize("side", ["client", "server"])
@given(rows=st.lists(messages(), max_size=5), seed=st.integers(0, 2**32), proved=st.booleans())
def test_garbage_is_refused_or_an_error(side, rows, seed, proved):
    if side == "client":
        end = new_client()
        start = RIGHT.said["server"]
    else:
        end = new_server(RIGHT.preface[:44])
        start = RIGHT.said["client"][44:]
    if proved:
        end.receive(start[: int.from_bytes(start[:2], "big") + 2])
        if side == "client":
            end.prove()
    rng = random.Random(seed)
    whole = b"".join(rows)
    with suppress(RemoteProtocolError):
        while whole:
            size = rng.choice([1, 10, 500])
            end.receive(whole[:size])
            whole = whole[size:]
            assert len(end.rest) <= MAX_HANDSHAKE_BYTES + 500 or end.stage is Stage.REFUSED
    assert end.stage in (Stage.WAITING, Stage.CHALLENGED, Stage.REFUSED)
    assert len(end.data_to_send()) < 1000
