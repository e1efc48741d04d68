"""Looking names up: always an answer, never an exception."""

from __future__ import annotations

import socket

import pytest

from tunneltcp.net.names import addresses_message, look_up


def test_literals_are_found():
    assert look_up("127.0.0.1") == {
        "addresses": [[socket.AF_INET, "127.0.0.1", 0]],
        "error": None,
    }


@pytest.mark.parametrize("name", ["a..b", "x" * 70])
def test_what_is_no_name_has_a_reason(name):
    found = look_up(name)
    assert found["addresses"] == []
    assert found["error"]


def test_too_many_addresses_are_cut(monkeypatch):
    many = [(socket.AF_INET, 1, 6, "", (f"127.0.0.{n}", 0)) for n in range(200)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: many)
    assert len(look_up("many.test")["addresses"]) == 64


def test_the_message_has_what_was_asked_and_what_was_found():
    found = {"addresses": [[10, "fe80::1", 3]], "error": None}
    assert addresses_message("a.test", 7, found) == {
        "type": "addresses",
        "host": "a.test",
        "port": 7,
        "addresses": [[10, "fe80::1", 7, 3]],
        "error": None,
    }


def test_no_answer_is_an_answer():
    message = addresses_message("a.test", 7, None)
    assert message["addresses"] == []
    assert "in time" in message["error"]
