"""Keys and the first 44 bytes, in hex."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunneltcp.protocol.preface import (
    MAGIC,
    PREFACE_BYTES,
    VERSION,
    key_id,
    make_preface,
    parse_preface,
    port_key,
)

KEY = port_key("", 60_001)
NONCE = bytes(range(16))


def test_the_key_of_the_empty_token_and_port_60001():
    assert KEY.hex() == "e2cf8cced0764996addc4bbaf05ab69da9d77a45e8c91bfe8e68c0b4fda944a1"
    assert key_id(KEY) == "43432123e792361d"


def test_the_preface_of_the_empty_token_and_port_60001():
    assert make_preface(KEY, 60_001, bytes(16)).hex() == (
        "89545443500d0a1a"  # magic
        "01"  # version
        "00"  # flags
        "ea61"  # port
        "00000000000000000000000000000000"  # nonce
        "6c5de7691be65c2e85d0c977dcdcc84c"  # MAC
    )


def test_the_same_by_the_words_of_the_document():
    def mac(key, message):
        return hmac.new(key, message, hashlib.sha256).digest()

    key = mac(b"secret", b"tunneltcp/1 port 8080")
    signed = MAGIC + b"\x01\x01\x1f\x90" + NONCE

    assert port_key("secret", 8080) == key
    assert key_id(key) == mac(key, b"id")[:8].hex()
    assert (
        make_preface(key, 8080, NONCE, tls=True) == signed + mac(key, b"preface" + signed)[:16]
    )


def test_white_space_around_a_token_does_not_count():
    assert port_key("  sécret\n", 1) == port_key("sécret", 1)
    assert port_key("se cret", 1) != port_key("secret", 1)


def test_each_port_and_each_token_has_a_key_of_its_own():
    keys = {port_key(token, port) for token in ("", "a", "b") for port in (1, 2, 12)}
    assert len(keys) == 9


@pytest.mark.parametrize("tls", [False, True])
def test_a_preface_is_read_back(tls):
    preface = parse_preface(make_preface(KEY, 60_001, NONCE, tls=tls), (b"x" * 32, KEY))

    assert len(make_preface(KEY, 60_001, NONCE)) == PREFACE_BYTES == 44
    assert preface.version == VERSION == 1
    assert preface.tls is tls
    assert preface.port == 60_001
    assert preface.nonce == NONCE
    assert preface.key == KEY


def test_what_comes_behind_is_not_looked_at():
    assert parse_preface(make_preface(KEY, 60_001, NONCE) + b"\0\5hello", (KEY,)).key == KEY


def test_another_key_or_none_does_not_fit():
    data = make_preface(KEY, 60_001, NONCE)

    assert parse_preface(data, ()).key is None
    assert parse_preface(data, (port_key("", 60_002),)).key is None


@pytest.mark.parametrize("index", range(44))
def test_every_byte_is_signed(index):
    data = bytearray(make_preface(KEY, 60_001, NONCE))
    data[index] ^= 1

    assert parse_preface(bytes(data), (KEY,)).key is None


@given(st.binary(min_size=PREFACE_BYTES - len(MAGIC), max_size=200))
def test_whatever_stands_behind_the_magic_is_read_and_has_no_key(rest):
    preface = parse_preface(MAGIC + rest, (KEY, port_key("other", 60_001)))
    assert preface.key is None
    assert preface.version == rest[0]
    assert preface.nonce == rest[4:20]


@given(st.integers(0, PREFACE_BYTES - 1), st.integers(1, 255))
def test_no_byte_can_be_changed(where, mask):
    preface = bytearray(make_preface(KEY, 60_001, NONCE))
    preface[where] ^= mask
    assert parse_preface(bytes(preface), (KEY,)).key is None
