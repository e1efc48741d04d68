"""The handshake, message by message."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import replace
from typing import Any

import orjson
import pytest

from tunneltcp.protocol.errors import LocalProtocolError, RemoteProtocolError
from tunneltcp.protocol.handshake import (
    HANDSHAKE_SECONDS,
    MAX_HANDSHAKE_BYTES,
    ClientHandshake,
    ServerHandshake,
    Stage,
)
from tunneltcp.protocol.messages import Hello, RefusedCode, encode_message, encode_refused
from tunneltcp.protocol.preface import make_preface, port_key

PORT = 60_001
KEY = port_key("", PORT)
HELLO = Hello(
    agent="tunneltcp/1.0",
    host_id="aa" * 16,
    run_id="bb" * 16,
    port=PORT,
    window=32_768,
    session=None,
    attempt=3,
)
PREFACE = make_preface(KEY, PORT, bytes(16))


def new_client(hello=HELLO, key=KEY):
    return ClientHandshake(hello, key, bytes(48))


def new_server(keys=(KEY,), preface=PREFACE):
    return ServerHandshake(
        preface,
        agent="server/1",
        port=PORT,
        keys=keys,
        nonce=b"\1" * 32,
        stand_in_key=b"?" * 32,
    )


def challenged(hello=HELLO, key=KEY, keys=(KEY,)):
    """Both ends with HELLO and CHALLENGE behind them."""
    client = new_client(hello, key)
    out = client.data_to_send()
    server = new_server(keys, out[:44])
    server.receive(out[44:])
    client.receive(server.data_to_send())
    assert client.stage is Stage.CHALLENGED
    return client, server


def proven(hello=HELLO):
    client, server = challenged(hello)
    client.prove()
    server.receive(client.data_to_send())
    assert server.is_proven
    return client, server


def mac(label, *parts):
    return hmac.new(KEY, label + bytes(32) + PREFACE + b"".join(parts), hashlib.sha256).digest()


def test_the_client_speaks_first():
    out = new_client().data_to_send()

    assert out[:44] == PREFACE
    assert int.from_bytes(out[44:46], "big") == len(out) - 46
    assert orjson.loads(out[46:]) == {
        "type": "hello",
        "versions": [1],
        "agent": "tunneltcp/1.0",
        "host": "aa" * 16,
        "run": "bb" * 16,
        "port": 60_001,
        "nonce": "00" * 32,
        "key_id": "43432123e792361d",
        "window": 32_768,
        "session": None,
        "attempt": 3,
    }


def test_what_is_to_be_sent_is_handed_out_once():
    client = new_client()

    assert client.data_to_send()
    assert client.data_to_send() == b""


def test_the_challenge():
    server = new_server()
    server.receive(new_client().data_to_send()[44:])

    out = server.data_to_send()
    assert orjson.loads(out[2:]) == {"type": "challenge", "version": 1, "nonce": "01" * 32}
    assert server.hello == HELLO
    assert server.stage is Stage.WAITING


def test_proof_and_welcome_by_the_words_of_the_document():
    client, server = new_client(), new_server()
    hello = client.data_to_send()[44:]
    server.receive(hello)
    challenge = server.data_to_send()
    client.receive(challenge)
    client.prove()
    proof = client.data_to_send()

    assert proof[:-32] == b'\0\x30{"type":"proof"}'
    assert proof[-32:] == mac(b"tunneltcp/1 client", hello, challenge, proof[:-32])

    server.receive(proof)
    server.welcome("cc" * 16, 1)
    welcome = server.data_to_send()
    assert welcome[-32:] == mac(b"tunneltcp/1 server", hello, challenge, proof, welcome[:-32])
    assert orjson.loads(welcome[2:-32]) == {
        "type": "welcome",
        "agent": "server/1",
        "session": "cc" * 16,
        "epoch": 1,
        "resumed": False,
        "limits": {"payload": 262_144},
    }
    client.receive(welcome)
    assert client.stage is server.stage is Stage.WELCOMED
    assert (client.welcome.session, client.welcome.epoch) == ("cc" * 16, 1)
    assert client.welcome.resumed is False


def test_a_session_to_resume():
    _, server = proven(replace(HELLO, session="dd" * 16))

    assert server.hello.session == "dd" * 16


def test_frames_behind_welcome_are_kept():
    client, server = proven()
    server.welcome("cc" * 16, 1)

    client.receive(server.data_to_send() + b"frames")
    assert client.rest == b"frames"


@pytest.mark.parametrize("code", [code for code in RefusedCode if code.value != "unknown"])
def test_refused_with_a_mac_is_proven(code):
    client, server = proven()
    server.refuse(code, holder="198.51.100.7")
    client.receive(server.data_to_send())

    assert client.stage is server.stage is Stage.REFUSED
    assert client.refusal.code is code
    assert client.refusal.proven
    assert client.refusal.holder == "198.51.100.7"


def test_refused_in_clear_is_a_hint():
    client = new_client()
    text = {"type": "refused", "code": "denied", "holder": "\x1b]0;lies"}
    client.receive(encode_message(text))

    assert client.refusal.code is RefusedCode.DENIED
    assert not client.refusal.proven
    assert client.refusal.holder == ""


def test_refused_with_a_wrong_mac_is_an_error():
    client, _ = challenged()

    with pytest.raises(RemoteProtocolError, match="REFUSED with a wrong MAC"):
        client.receive(encode_message({"type": "refused", "code": "denied"}, bytes(32)))


def test_a_code_of_a_later_version():
    client = new_client()
    client.receive(encode_message({"type": "refused", "code": "too_early"}))

    assert client.refusal.code is RefusedCode.UNKNOWN


@pytest.mark.parametrize(
    "case", ["a wrong key for a known id", "an unknown id", "another port", "no key at all"]
)
def test_without_the_key_there_is_one_answer(case):
    """CHALLENGE comes all the same, then the same bytes, whatever was wrong."""
    other = port_key("other", PORT)
    if case == "another port":
        client, server = challenged(replace(HELLO, port=60_002))
    elif case == "a wrong key for a known id":
        client, server = challenged()
        client._key = other
    else:
        client, server = challenged(key=other, keys=(KEY,) if case == "an unknown id" else ())
    client.prove()
    server.receive(client.data_to_send())

    assert server.stage is Stage.REFUSED
    assert server.data_to_send() == encode_refused(RefusedCode.DENIED)


def test_knowing_the_stand_in_key_is_not_enough():
    """The proof itself is right; the port is open to nobody who holds no key of ours."""
    client, server = challenged(key=b"?" * 32)
    client.prove()
    server.receive(client.data_to_send())

    assert server.stage is Stage.REFUSED


def hello_with(**changes):
    fields = orjson.loads(new_client().data_to_send()[46:])
    return encode_message({**fields, **changes})


@pytest.mark.parametrize("versions", [[], [2], None, "1", 1, ["1"]])
def test_no_common_version(versions):
    server = new_server()
    server.receive(hello_with(versions=versions))

    assert server.stage is Stage.REFUSED
    assert server.data_to_send() == encode_refused(RefusedCode.VERSION)


def test_unknown_fields_are_ignored():
    server = new_server()
    server.receive(hello_with(versions=[2, 1], later={"a": [1]}))

    assert server.hello == HELLO


@pytest.mark.parametrize(
    "changes",
    [
        {"agent": "x" * 65},
        {"agent": None},
        {"host": "AA" * 16},
        {"host": "aa" * 15},
        {"run": "zz" * 16},
        {"port": 0},
        {"port": 65_536},
        {"port": True},
        {"port": "60001"},
        {"nonce": ""},
        {"key_id": "00" * 9},
        {"key_id": None},
        {"window": 0},
        {"window": (32 << 20) + 1},
        {"window": 1e5},
        {"session": "dd" * 15},
        {"session": 5},
        {"attempt": -1},
        {"attempt": 2**53 + 1},
        {"type": None},
        {"type": "x" * 65},
    ],
)
def test_wrong_fields_of_hello(changes):
    server = new_server()

    with pytest.raises(RemoteProtocolError):
        server.receive(hello_with(**changes))
    assert server.data_to_send() == b""
    assert server.stage is Stage.WAITING


def test_messages_out_of_turn():
    hello = new_client().data_to_send()[44:]
    proof = encode_message({"type": "proof"}, bytes(32))
    for rows in [
        [proof],
        [hello, hello],
        [hello, encode_message({"type": "proof"})],
        [encode_message({"type": "challenge", "version": 1, "nonce": "00" * 32})],
        [encode_message(orjson.loads(hello[2:]), bytes(32))],
    ]:
        with pytest.raises(RemoteProtocolError, match="out of turn"):
            new_server().receive(b"".join(rows))
    challenge = {"type": "challenge", "version": 1, "nonce": "00" * 32}
    wrong: list[list[Any]] = [
        [{"type": "welcome"}],
        [challenge, challenge],
        [challenge, {"type": "welcome"}],
        [orjson.loads(hello[2:])],
    ]
    for texts in wrong:
        with pytest.raises(RemoteProtocolError, match="out of turn"):
            new_client().receive(b"".join(map(encode_message, texts)))


def test_welcome_before_proof_is_out_of_turn_also_with_a_right_mac():
    client, server = challenged()
    server.stage = Stage.PROVEN
    server._known = True
    server.welcome("cc" * 16, 1)

    with pytest.raises(RemoteProtocolError, match="out of turn"):
        client.receive(server.data_to_send())


def test_the_clients_proof_is_no_welcome():
    """What one side signed can't be played back to it."""
    client, _ = challenged()
    client.prove()

    with pytest.raises(RemoteProtocolError):
        client.receive(client.data_to_send())


@pytest.mark.parametrize(
    "changes", [{"epoch": 0}, {"session": None}, {"resumed": 0}, {"agent": "\n"}]
)
def test_wrong_fields_of_welcome(changes):
    client, server = proven()
    fields = {
        "type": "welcome",
        "agent": "a",
        "session": "cc" * 16,
        "epoch": 1,
        "resumed": False,
    }
    server._send({**fields, **changes}, KEY, b"tunneltcp/1 server")

    with pytest.raises(RemoteProtocolError, match="handshake: "):
        client.receive(server.data_to_send())
    assert client.stage is not Stage.WELCOMED


def test_one_side_says_at_most_4096_bytes():
    assert MAX_HANDSHAKE_BYTES == 4096
    new_server().receive((4094).to_bytes(2, "big"))
    with pytest.raises(RemoteProtocolError, match="too much"):
        new_server().receive((4095).to_bytes(2, "big"))

    server = new_server()
    hello = new_client().data_to_send()[44:]
    server.receive(hello + (4094 - len(hello)).to_bytes(2, "big"))
    server = new_server()
    with pytest.raises(RemoteProtocolError, match="too much"):
        server.receive(hello + (4095 - len(hello)).to_bytes(2, "big"))


def test_our_messages_are_small():
    client, server = new_client(replace(HELLO, session="dd" * 16)), new_server()
    assert len(client.data_to_send()) < 500 + 44
    server.receive(hello_with())
    assert len(server.data_to_send()) < 500
    assert HANDSHAKE_SECONDS == 5


def test_proof_is_sent_once():
    client = new_client()
    with pytest.raises(LocalProtocolError):
        client.prove()
    client, _ = challenged()
    client.prove()
    with pytest.raises(LocalProtocolError):
        client.prove()


def test_only_a_proven_link_is_decided_upon():
    for decide in (lambda s: s.welcome("cc" * 16, 1), lambda s: s.refuse(RefusedCode.IN_USE)):
        with pytest.raises(LocalProtocolError, match="waiting"):
            decide(new_server())
        _, server = proven()
        decide(server)
        with pytest.raises(LocalProtocolError):
            decide(server)


class TestBehindTls:
    """A client that wants TLS: its preface in clear, and nothing more before TLS is there."""

    HASH = hashlib.sha256(b"a certificate").digest()

    def client(self):
        client = ClientHandshake(HELLO, KEY, bytes(48), tls=True)
        assert client.data_to_send() == make_preface(KEY, PORT, bytes(16), tls=True)
        return client

    def server(self, certificate_hash):
        return ServerHandshake(
            make_preface(KEY, PORT, bytes(16), tls=True),
            agent="server/1",
            port=PORT,
            keys=(KEY,),
            nonce=b"\1" * 32,
            stand_in_key=b"?" * 32,
            certificate_hash=certificate_hash,
        )

    def talk(self, client, server):
        client.greet(self.HASH)
        server.receive(client.data_to_send())
        client.receive(server.data_to_send())
        client.prove()
        server.receive(client.data_to_send())

    def test_both_prove_themselves_over_the_same_certificate(self):
        client, server = self.client(), self.server(self.HASH)
        self.talk(client, server)
        assert server.is_proven
        server.welcome("cc" * 16, 1)
        client.receive(server.data_to_send())
        assert client.stage is Stage.WELCOMED

    def test_a_server_with_another_certificate_denies(self):
        client, server = self.client(), self.server(bytes(32))
        self.talk(client, server)
        assert server.stage is Stage.REFUSED

    def test_greets_once(self):
        client = self.client()
        client.greet(self.HASH)
        with pytest.raises(LocalProtocolError):
            client.greet(self.HASH)
        with pytest.raises(LocalProtocolError):
            new_client().greet(self.HASH)

    @pytest.mark.parametrize("code", [RefusedCode.TLS, RefusedCode.DENIED])
    def test_takes_a_refusal_in_clear_as_a_hint(self, code):
        client = self.client()
        client.receive(encode_refused(code))
        assert client.stage is Stage.REFUSED
        assert client.refusal.code is code
        assert not client.refusal.proven

    def test_takes_nothing_else_in_clear(self):
        key_and_mac = hmac.digest(KEY, b"tunneltcp/1 server", "sha256")
        for message in (
            encode_message({"type": "challenge", "version": 1, "nonce": "00" * 32}),
            encode_message({"type": "refused", "code": "in_use"}, key_and_mac),
            encode_message({"type": "welcome"}, key_and_mac),
        ):
            with pytest.raises(RemoteProtocolError, match="in clear"):
                self.client().receive(message)
