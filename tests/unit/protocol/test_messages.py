"""Messages of the handshake: layout, and what is not one."""

from __future__ import annotations

import pytest

from tunneltcp.protocol.errors import RemoteProtocolError
from tunneltcp.protocol.messages import (
    Fields,
    RefusedCode,
    decode_message,
    encode_message,
    encode_refused,
)

MAC = bytes(range(200, 232))


def test_a_message_is_length_json_mac():
    assert encode_message({"type": "proof"}) == b'\0\x10{"type":"proof"}'
    assert encode_message({"type": "proof"}, MAC) == b'\0\x30{"type":"proof"}' + MAC


def test_refused_in_clear():
    assert encode_refused(RefusedCode.DENIED) == b'\0\x22{"type":"refused","code":"denied"}'


def test_the_codes_of_refused():
    assert {code.value for code in RefusedCode} == {
        "denied", "version", "tls", "in_use", "draining", "probed", "stale", "unknown",
    }  # fmt: skip


@pytest.mark.parametrize(
    "mac", [b"", MAC, b"}" * 32, b"{" * 32, b"\xed\xb2\x80" * 10 + b"\xc3("]
)
def test_the_mac_begins_where_the_json_ends(mac):
    whole = encode_message({"type": "höflich", "nested": {"a": ["}", 1]}}, mac)

    fields, end = decode_message(whole)

    assert whole[end:] == mac
    assert fields.text("type") == "höflich"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"{}x",
        b"{}" + bytes(31),
        b"{}" + bytes(33),
        b"[]",
        b"1",
        b"null",
        b'"proof"',
        b" {}",
        b"\xff\xfe",
        b"[" * 4000,
        b'{"a":' * 800,
        b'{"a":' + b"9" * 5000 + b"}",
        MAC,
    ],
)
def test_what_is_not_a_message(body):
    with pytest.raises(RemoteProtocolError, match="handshake: a message"):
        decode_message(len(body).to_bytes(2, "big") + body)


def test_text():
    assert Fields({"a": "x" * 64}).text("a") == "x" * 64
    assert Fields({"a": "xyz"}).text("a", 3) == "xyz"


@pytest.mark.parametrize(
    "value", [None, 1, ["x"], "x" * 65, "a\nb", "\x1b[31m", "\ud800", "\u202e"]
)
def test_what_is_not_a_short_printable_text(value):
    with pytest.raises(RemoteProtocolError, match="a is not a short text"):
        Fields({"a": value}).text("a")


@pytest.mark.parametrize(
    "value", ["", "0a0", "0A0b", "0a 0b", "0a0b0c", "zzzz", "\u0660a0b", 2571]
)
def test_what_is_not_two_bytes_in_hex(value):
    with pytest.raises(RemoteProtocolError):
        Fields({"a": value}).hex("a", 2)


def test_two_bytes_in_hex():
    assert Fields({"a": "0a0b"}).hex("a", 2) == "0a0b"


@pytest.mark.parametrize("value", [0, 11, True, 5.0, "5", None, 10**30])
def test_what_is_not_a_number_from_1_to_10(value):
    with pytest.raises(RemoteProtocolError, match="a is not a number from 1 to 10"):
        Fields({"a": value}).number("a", 1, 10)


def test_numbers_flags_and_versions():
    fields = Fields({"n": 10, "f": False, "v": [1, "x"], "null": None, "w": 1})

    assert fields.number("n", 1, 10) == 10
    assert fields.flag("f") is False
    assert fields.versions() == []
    assert Fields({"versions": [1, "x"]}).versions() == [1, "x"]
    assert Fields({"versions": "1"}).versions() == []
    assert fields.has("n")
    assert not fields.has("null")
    assert not fields.has("nothing")


@pytest.mark.parametrize("value", [0, 1, "true", None])
def test_what_is_not_true_or_false(value):
    with pytest.raises(RemoteProtocolError, match="a is not true or false"):
        Fields({"a": value}).flag("a")
