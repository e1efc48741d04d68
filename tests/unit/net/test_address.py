"""Hosts and ports: which need no look-up, and how they look in a log."""

from __future__ import annotations

import socket

import pytest

from tunneltcp.net.address import (
    format_address,
    is_loopback,
    is_loopback_host,
    literal_addresses,
    pack_address,
    pack_own_address,
    peer_address,
)

V4, V6 = socket.AF_INET, socket.AF_INET6


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", [(V4, ("127.0.0.1", 80))]),
        ("192.0.2.7", [(V4, ("192.0.2.7", 80))]),
        ("::1", [(V6, ("::1", 80, 0, 0))]),
        ("[::1]", [(V6, ("::1", 80, 0, 0))]),
        ("2001:db8::7", [(V6, ("2001:db8::7", 80, 0, 0))]),
        ("fe80::1%1", [(V6, ("fe80::1", 80, 0, 1))]),
        ("[fe80::1%1]", [(V6, ("fe80::1", 80, 0, 1))]),
        ("fe80::1%no-such-card", [(V6, ("fe80::1", 80, 0, 0))]),
        ("localhost", [(V6, ("::1", 80, 0, 0)), (V4, ("127.0.0.1", 80))]),
        ("LocalHost.", [(V6, ("::1", 80, 0, 0)), (V4, ("127.0.0.1", 80))]),
        ("example.org", []),
        ("localhost.example.org", []),
        ("127.1", []),
        ("127.0.0.1%1", []),
        ("nul\0byte", []),
        ("1.2.3.4.5", []),
        ("", []),
    ],
)
def test_literal_addresses(host, expected):
    assert literal_addresses(host, 80) == expected


def test_a_scope_may_be_the_name_of_an_interface():
    index, name = socket.if_nameindex()[0]
    assert literal_addresses(f"fe80::1%{name}", 80) == [(V6, ("fe80::1", 80, 0, index))]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_what_is_returned_can_be_bound(host):
    found = literal_addresses(host, 0)
    assert found
    for family, address in found:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.bind(address)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (("192.0.2.7", 80), "192.0.2.7:80"),
        (("2001:db8::7", 80), "[2001:db8::7]:80"),
        (("2001:db8::7", 80, 0, 0), "[2001:db8::7]:80"),
        (("::ffff:192.0.2.7", 80, 0, 0), "192.0.2.7:80"),
        (("::ffff:1", 80, 0, 0), "[::ffff:1]:80"),
        (("example.org", 80), "example.org:80"),
        ("", "unknown"),
        (None, "unknown"),
        ((), "unknown"),
    ],
)
def test_format_address(address, expected):
    assert format_address(address) == expected


V6_BYTES = bytes.fromhex("20010db8000000000000000000000007")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (("192.0.2.7", 60001), b"\4\xc0\0\2\7\xea\x61"),
        (("::ffff:192.0.2.7", 60001, 0, 0), b"\4\xc0\0\2\7\xea\x61"),
        (("2001:db8::7", 1, 0, 0), b"\6" + V6_BYTES + b"\0\1"),
        (("fe80::1%lo", 1, 0, 1), b"\6\xfe\x80" + bytes(13) + b"\1\0\1"),
        (("::ffff:1", 1, 0, 0), b"\6" + bytes(12) + b"\xff\xff\0\1\0\1"),
        ("", b"\0"),
        (None, b"\0"),
        (("", 0), b"\0"),
        (("example.org", 1), b"\0"),
    ],
)
def test_pack_address(address, expected):
    assert pack_address(address) == expected


def test_our_own_address_is_packed_again_and_again():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        for _ in range(2):
            assert pack_own_address(sock) == pack_address(sock.getsockname())
    assert pack_own_address(sock) == b"\0"


def test_peer_address():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        assert peer_address(sock) is None
        with socket.create_connection(sock.getsockname()) as connected:
            assert peer_address(connected) == sock.getsockname()
    assert peer_address(sock) is None


@pytest.mark.parametrize(
    ("host", "is_near"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("192.0.2.7", False),
        ("12.7.0.1", False),
        ("::ffff:192.0.2.7", False),
        ("::127.0.0.1", False),
        ("fe80::1%lo", False),
    ],
)
def test_what_is_this_very_machine(host, is_near):
    assert is_loopback_host(host) == is_near
    assert is_loopback((V4, (host, 80))) == is_near
