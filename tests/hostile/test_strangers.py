"""Strangers attack the port of an honest client, whose visitors go on.

Each attack is a small function; what must hold during and after all of them is in
``tests/support/siege.py``.
"""

from __future__ import annotations

import resource
import secrets
from typing import TYPE_CHECKING

import pytest

from tests.support.siege import during, pump_until
from tunneltcp.protocol.handshake import Stage
from tunneltcp.protocol.messages import RefusedCode
from tunneltcp.protocol.preface import MAGIC

if TYPE_CHECKING:
    from tests.support.siege import Siege

pytestmark = pytest.mark.slow

SECONDS = 1.2
"""Of each attack."""


def crowd_size(wanted: int) -> int:
    """As many as our own descriptors allow."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return min(wanted, hard - 200)


def test_silent_and_dribbling_connections(siege: Siege) -> None:
    """5,000 at once: a third says nothing, a third half a magic, a third a byte at a time."""
    each = crowd_size(5000) // 3
    with siege.attack(), siege.crowd() as silent, siege.crowd() as half, siege.crowd() as slow:
        for _ in range(each // 50):
            silent.dial(count=50)
            half.dial(MAGIC[:5], count=50)
            slow.dial(b"G", count=50)
        for _ in during(SECONDS):
            slow.say(b"E")
        half.say(b"no magic")


def test_garbage(siege: Siege) -> None:
    with siege.attack(), siege.crowd() as crowd:
        for _ in during(SECONDS):
            crowd.dial(secrets.token_bytes(300))
            if len(crowd.socks) > 50:
                crowd.leave(25)


def test_http(siege: Siege) -> None:
    with siege.attack(), siege.crowd() as crowd:
        for _ in during(SECONDS):
            crowd.dial(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 20)
            if len(crowd.socks) > 50:
                crowd.leave(25)


def test_a_right_magic_with_a_wrong_mac(siege: Siege) -> None:
    with siege.attack(), siege.crowd() as crowd:
        for _ in during(SECONDS):
            crowd.dial(MAGIC + secrets.token_bytes(36))
            if len(crowd.socks) > 50:
                crowd.leave(25)


def test_prefaces_that_never_come_to_an_end(siege: Siege) -> None:
    """They crowd each other out, and nobody who holds the key."""
    with siege.attack(), siege.crowd() as crowd:
        for _ in during(SECONDS):
            crowd.dial(MAGIC, count=8)
            crowd.say(b"x")
            if len(crowd.socks) > 200:
                crowd.leave(100)
            if crowd.dialled % 80 == 0:
                with siege.insider(siege.port, proves=False) as raw:
                    crowd.dial(MAGIC, count=20)
                    pump_until(raw, lambda: raw.stage is Stage.CHALLENGED, "CHALLENGE")
                    crowd.dial(MAGIC, count=20)
                    raw.prove()
                    pump_until(raw, lambda: raw.refused, "an answer")
                    assert raw.refused is RefusedCode.IN_USE
