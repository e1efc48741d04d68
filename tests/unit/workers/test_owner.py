"""Who has the session, from one worker to the next."""

from __future__ import annotations

from tunneltcp.protocol.table import OWNER_WORDS
from tunneltcp.workers.owner import pack_owner, unpack_owner

IDS = ("ab" * 16, "cd" * 16)
KEYS = (b"1" * 32, b"2" * 32)


def test_there_and_back():
    packed = pack_owner(IDS, KEYS[1], "[2001:db8::1]:4711").ljust(8 * OWNER_WORDS, b"\0")
    owner = unpack_owner(packed, KEYS)
    assert (owner.ids, owner.key, owner.address) == (IDS, KEYS[1], "[2001:db8::1]:4711")


def test_a_key_that_is_not_good_any_more_is_none():
    assert unpack_owner(pack_owner(IDS, KEYS[1], "x"), KEYS[:1]).key == b""


def test_it_always_fits_and_garbage_is_harmless():
    assert len(pack_owner(IDS, KEYS[0], "x" * 1000)) <= 8 * OWNER_WORDS
    owner = unpack_owner(b"\xff" * 8 * OWNER_WORDS, KEYS)
    assert owner.key == b""
