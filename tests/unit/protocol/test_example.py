"""The worked example of docs/PROTOCOL.md: each of its bytes is what the code says and takes."""

from __future__ import annotations

import hashlib
import hmac
import re
import textwrap
from pathlib import Path

import pytest

from tunneltcp.protocol.errors import ProtocolError
from tunneltcp.protocol.handshake import ClientHandshake, ServerHandshake, Stage
from tunneltcp.protocol.messages import Hello, decode_message
from tunneltcp.protocol.preface import key_id, parse_preface, port_key

DOCUMENT = Path(__file__).parents[3] / "docs/PROTOCOL.md"
SECTION = "### 4.5 An example"
TOKEN = "no secret, but the example of a token"
PORT = 60001
SESSION = "33" * 16
NONCES = bytes(range(48))
"""The client's: 16 bytes for the preface, 32 for HELLO."""
SERVER_NONCE = bytes(range(0x40, 0x60))
CERTIFICATE = hashlib.sha256(b"the server's certificate in DER").digest()
HELLO = Hello(
    agent="example/1",
    host_id="11" * 16,
    run_id="22" * 16,
    port=PORT,
    window=32_768,
    session=None,
    attempt=1,
)
CASES = ("without TLS", "behind TLS")
NAMES = ("port key", "key id", "binding", "preface", "HELLO", "CHALLENGE", "PROOF", "WELCOME")


def binding(case: str) -> bytes:
    return CERTIFICATE if case == "behind TLS" else bytes(32)


def new_client(case: str) -> tuple[ClientHandshake, bytes]:
    """A client that has just said its preface, which comes too."""
    tls = case == "behind TLS"
    client = ClientHandshake(HELLO, port_key(TOKEN, PORT), NONCES, tls=tls)
    preface = client._preface
    if tls:
        assert client.data_to_send() == preface
        client.greet(binding(case))
    return client, preface


def new_server(case: str, preface: bytes, key: bytes) -> ServerHandshake:
    return ServerHandshake(
        preface,
        agent="example/1",
        port=PORT,
        keys=(key,),
        nonce=SERVER_NONCE,
        stand_in_key=bytes(32),
        certificate_hash=binding(case),
    )


def spoken(case: str) -> dict[str, bytes]:
    """What our own ends say to each other."""
    key = port_key(TOKEN, PORT)
    client, preface = new_client(case)
    server = new_server(case, preface, key)
    said = {
        "port key": key,
        "key id": bytes.fromhex(key_id(key)),
        "binding": binding(case),
        "preface": preface,
    }
    said["HELLO"] = client.data_to_send().removeprefix(preface)
    server.receive(said["HELLO"])
    said["CHALLENGE"] = server.data_to_send()
    client.receive(said["CHALLENGE"])
    client.prove()
    said["PROOF"] = client.data_to_send()
    server.receive(said["PROOF"])
    server.welcome(SESSION, 1)
    said["WELCOME"] = server.data_to_send()
    return said


def written(text: str) -> dict[str, dict[str, bytes]]:
    """What the document says, by case and name."""
    section = text.partition(SECTION)[2].partition("\n## ")[0]
    found: dict[str, dict[str, bytes]] = {}
    for case, body in re.findall(r"\n([A-Z][a-zA-Z ]+):\n\n((?:    .*\n)+)", section):
        rows: dict[str, str] = {}
        name = ""
        for line in body.splitlines():
            name = line[4:14].strip() or name
            rows[name] = rows.get(name, "") + line[14:].replace(" ", "")
        found[case[0].lower() + case[1:]] = {
            one: bytes.fromhex(hex) for one, hex in rows.items()
        }
    return found


def shown(case: str) -> str:
    """How the document should say it."""
    lines = [f"{case[0].upper()}{case[1:]}:", ""]
    for name, data in spoken(case).items():
        for number, part in enumerate(textwrap.wrap(data.hex(), 80)):
            lines.append(f"    {'' if number else name:10}{part}")
    return "\n".join(lines)


def check(text: str) -> None:
    """Fail unless each byte of the example is right, both ways."""
    example = written(text)
    assert tuple(example) == CASES
    for case in CASES:
        said = example[case]
        assert tuple(said) == NAMES
        assert said == spoken(case), f"it should be:\n\n{shown(case)}\n"
        check_by_the_words(said)
        check_ours_take_it(case, said)


def check_by_the_words(said: dict[str, bytes]) -> None:
    """The formulas of §2, §3 and §4, without our code."""
    key = hmac.digest(TOKEN.encode(), f"tunneltcp/1 port {PORT}".encode(), "sha256")
    assert said["port key"] == key
    assert said["key id"] == hmac.digest(key, b"id", "sha256")[:8]
    preface = said["preface"]
    assert preface[28:] == hmac.digest(key, b"preface" + preface[:28], "sha256")[:16]
    covered = said["binding"] + preface
    for name, label in (
        ("HELLO", b""),
        ("CHALLENGE", b""),
        ("PROOF", b"tunneltcp/1 client"),
        ("WELCOME", b"tunneltcp/1 server"),
    ):
        whole = said[name]
        assert int.from_bytes(whole[:2], "big") == len(whole) - 2
        if label:
            mac = hmac.digest(key, label + covered + whole[:-32], "sha256")
            assert whole[-32:] == mac
        covered += whole


def check_ours_take_it(case: str, said: dict[str, bytes]) -> None:
    """The client believes this server, and the server this client."""
    key = said["port key"]
    assert parse_preface(said["preface"], (key,)).key == key
    server = new_server(case, said["preface"], key)
    server.receive(said["HELLO"])
    server.receive(said["PROOF"])
    assert server.stage is Stage.PROVEN
    client, _ = new_client(case)
    client.receive(said["CHALLENGE"])
    client.prove()
    client.receive(said["WELCOME"])
    assert client.stage is Stage.WELCOMED
    assert client.welcome is not None
    assert client.welcome.session == SESSION


def test_each_byte_of_the_example_is_right():
    check(DOCUMENT.read_text())


def test_the_messages_can_be_read_in_the_text():
    """The JSON of each message stands there as text too."""
    text = DOCUMENT.read_text()
    for case in CASES:
        for name, whole in written(text)[case].items():
            if whole[2:3] == b"{":
                line = whole[2 : decode_message(whole)[1]].decode()
                assert f"    {name:10}{line}\n" in re.sub(r"\n {14}", "", text)


def test_what_it_is_made_from_stands_there():
    section = DOCUMENT.read_text().partition(SECTION)[2].partition("\n## ")[0]
    for word in (f"`{TOKEN}`", str(PORT), "the server's certificate in DER"):
        assert word in section


@pytest.mark.parametrize("case", CASES)
def test_no_digit_of_it_may_change(case):
    text = DOCUMENT.read_text()
    start = text.index(SECTION)
    begin = text.index(f"{case[0].upper()}{case[1:]}:", start)
    places = [
        found.start() + at
        for found in re.finditer(r"[0-9a-f]{16,}", text[begin:])
        if found.start() < len(shown(case))
        for at in range(0, len(found[0]), 13)
    ]
    assert len(places) > 100
    for place in places:
        at = begin + place
        changed = text[:at] + ("1" if text[at] != "1" else "2") + text[at + 1 :]
        with pytest.raises((AssertionError, ValueError, ProtocolError)):
            check(changed)
