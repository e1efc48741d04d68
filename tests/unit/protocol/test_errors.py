"""The codes are on the wire: they never change."""

from __future__ import annotations

from tunneltcp.protocol.errors import (
    GoawayCode,
    LocalProtocolError,
    ProtocolError,
    RemoteProtocolError,
    ResetCode,
    TunnelError,
)


def test_reset_codes():
    assert {code.name: code.value for code in ResetCode} == {
        "ANSWER": 0,
        "CANCELLED": 1,
        "TARGET_REFUSED": 2,
        "TARGET_UNREACHABLE": 3,
        "STREAM_ERROR": 4,
        "OVER_LIMIT": 5,
        "STOPPING": 6,
    }


def test_goaway_codes():
    assert {code.name: code.value for code in GoawayCode} == {
        "DRAINING": 0,
        "PROTOCOL_ERROR": 1,
    }


def test_blame_decides_the_branch():
    assert issubclass(RemoteProtocolError, ProtocolError)
    assert issubclass(LocalProtocolError, ProtocolError)
    assert not issubclass(LocalProtocolError, RemoteProtocolError)
    assert issubclass(ProtocolError, TunnelError)
