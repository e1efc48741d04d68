"""Somebody holds the token and breaks the rules: his own tunnel pays, and no other.

The test is the client of one port; visitors of the other port, of the same server, go on
undisturbed (``tests/support/siege.py``), and the worker of the bad one survives him.
"""

from __future__ import annotations

import secrets
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.support.siege import during, pump_until
from tests.support.wait import wait_until
from tunneltcp.protocol.frames import MAX_PAYLOAD_BYTES, FrameType, encode_frame
from tunneltcp.protocol.glitches import FREE_GLITCHES
from tunneltcp.protocol.handshake import Stage
from tunneltcp.workers.claims import MAX_CLAIMS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.fake_link import RawClient
    from tests.support.fake_peer import FakePeer
    from tests.support.siege import Siege

pytestmark = pytest.mark.slow

SECONDS = 0.6
FLOOD = 20_000
"""Frames that a flood has; 1,000 of them say nothing before it ends."""


def frame(kind: int, stream_id: int = 0, value: int = 0, payload: bytes = b"") -> bytes:
    """A frame, also of a type that does not exist."""
    word = kind << 60 | len(payload) << 40 | stream_id
    return word.to_bytes(8, "big") + value.to_bytes(8, "big") + payload


def header(kind: int, size: int, stream_id: int = 0) -> bytes:
    """The beginning of a frame that says it has ``size`` bytes."""
    return (kind << 60 | size << 40 | stream_id).to_bytes(8, "big") + bytes(8)


def credit(stream_id: int, delivered: int, limit: int, flags: int = 0) -> bytes:
    payload = limit.to_bytes(8, "big") + bytes([flags])
    return frame(FrameType.CREDIT, stream_id, delivered, payload)


def state(siege: Siege) -> str:
    return str(siege.server.tunnel(siege.other)["link"]["state"])


def end_of(peer: FakePeer) -> str:
    """How it ended, if it has."""
    peer.pump()
    return peer.end


def opened(raw: RawClient) -> int:
    """The id of the stream that was opened last."""
    pump_until(raw, lambda: raw.of(FrameType.OPEN), "OPEN")
    return raw.of(FrameType.OPEN)[-1].stream_id


def expect_goaway(siege: Siege, raw: RawClient) -> None:
    """The session is over; the next one is welcome."""
    pump_until(raw, lambda: raw.end, "the end of the link")
    goaways = raw.of(FrameType.GOAWAY)
    assert [frame.payload for frame in goaways] == [b"\0\1"], "protocol error"
    with siege.linked():
        pass


ENDS_SESSION: dict[str, Callable[[int], bytes]] = {
    "an unknown type": lambda _: frame(11, 1),
    "type 0": lambda _: frame(0),
    "DATA that is too long": lambda last: header(FrameType.DATA, MAX_PAYLOAD_BYTES + 1, last),
    "DATA of a megabyte": lambda last: header(FrameType.DATA, 0xFFFFF, last),
    "DATA of nothing": lambda last: frame(FrameType.DATA, last),
    "a PING with a payload": lambda _: header(FrameType.PING, 0xFFFFF),
    "a PING that names a stream": lambda last: frame(FrameType.PING, last),
    "an OPEN": lambda last: frame(FrameType.OPEN, last + 1, 1, b"\0\0"),
    "a stream that was never opened": lambda last: frame(FrameType.DATA, last + 9, 0, b"x"),
    "stream 0": lambda _: frame(FrameType.DATA, 0, 0, b"x"),
    "a SYNC that nobody asked for": lambda _: frame(FrameType.SYNC, 0, 0, b"\0\0\0\1"),
    "a STATE that nobody asked for": lambda last: frame(FrameType.STATE, last, 0, bytes(9)),
}


@pytest.mark.parametrize("kind", ENDS_SESSION)
def test_what_ends_the_session(siege: Siege, kind: str) -> None:
    with siege.attack(), siege.linked() as raw, siege.visitors(1) as (visitor,):
        last = opened(raw)
        raw.peer.send(ENDS_SESSION[kind](last))
        expect_goaway(siege, raw)
        wait_until(lambda: end_of(visitor) == "rst", 5, "its visitor is reset")


ENDS_STREAM: dict[str, Callable[[int], bytes]] = {
    "a gap": lambda last: frame(FrameType.DATA, last, 10, b"x"),
    "bytes that came already": lambda last: frame(FrameType.DATA, last, 0, b"x" * 5) * 2,
    "an offset near the end of all": lambda last: frame(FrameType.DATA, last, 2**64 - 1, b"x"),
    "more than was granted": lambda last: (
        frame(FrameType.DATA, last, 0, bytes(MAX_PAYLOAD_BYTES))
        + b"".join(
            frame(FrameType.DATA, last, offset, bytes(MAX_PAYLOAD_BYTES))
            for offset in range(MAX_PAYLOAD_BYTES, 8 << 20, MAX_PAYLOAD_BYTES)
        )
    ),
    "FIN at another offset": lambda last: frame(FrameType.FIN, last, 77),
    "bytes behind FIN": lambda last: (
        frame(FrameType.FIN, last) + frame(FrameType.DATA, last, 0, b"x")
    ),
    "delivered before it was sent": lambda last: credit(last, 1 << 30, 1 << 31),
    "a limit of 2^64 - 1": lambda last: credit(last, 0, 2**64 - 1),
    "a limit just above 2^62": lambda last: credit(last, 0, 2**62 + 1),
    "a limit below delivered": lambda last: credit(last, 4, 3),
    "its FIN delivered, which nobody sent": lambda last: credit(last, 0, 100, 1),
}


@pytest.mark.parametrize("kind", ENDS_STREAM)
def test_what_ends_one_stream(siege: Siege, kind: str) -> None:
    """That visitor is reset, the next one is served over the same link."""
    with siege.attack(), siege.linked() as raw:
        with siege.visitors(1) as (visitor,):
            visitor.reads = False
            last = opened(raw)
            raw.peer.send(ENDS_STREAM[kind](last))
            pump_until(raw, lambda: raw.of(FrameType.RESET), "RESET")
            assert raw.of(FrameType.RESET)[0][1:] == (last, 0, b"\0\4")
            raw.reset(last, 0)
        with siege.visitors(1, b"next"):
            pump_until(raw, lambda: raw.data(last + 1) == b"next", "the next visitor")
        assert not raw.end


FLOODS: dict[str, Callable[[int], bytes]] = {
    "PING": lambda _: frame(FrameType.PING),
    "PONG": lambda _: frame(FrameType.PONG),
    "GOAWAY": lambda _: frame(FrameType.GOAWAY, 0, 0, b"\0\0"),
    "RESET of what is over": lambda last: frame(FrameType.RESET, last, 0, b"\0\1"),
    "answers to no RESET": lambda last: frame(FrameType.RESET, last, 0, b"\0\0"),
    "CREDIT of what is over": lambda last: credit(last - 1, 0, 1),
    "DATA of what is over": lambda last: frame(FrameType.DATA, last - 1, 0, b"x"),
    "FIN of what is over": lambda last: frame(FrameType.FIN, last - 1),
    "CREDIT that says nothing": lambda last: credit(last, 0, 1),
    "the same FIN": lambda last: frame(FrameType.FIN, last),
}


@pytest.mark.parametrize("kind", FLOODS)
def test_a_flood_of_frames_that_say_nothing(siege: Siege, kind: str) -> None:
    """It ends after about 1,000 of them, and not after the last."""
    log = f"tunnel-{siege.other}.log"
    before = len(siege.server.log_text(log))
    with siege.attack(), siege.linked() as raw:
        with siege.visitors(1):
            over = opened(raw)
        pump_until(raw, lambda: raw.of(FrameType.RESET) or raw.of(FrameType.FIN), "he leaves")
        raw.reset(over, 1)
        raw.reset(over, 0)
        with siege.visitors(1):
            pump_until(raw, lambda: len(raw.of(FrameType.OPEN)) == 2, "the next")
            last = opened(raw)
            assert last == over + 1
            raw.peer.send(FLOODS[kind](last) * FLOOD)
            expect_goaway(siege, raw)
    said = siege.server.log_text(log)[before:]
    assert "frames that say nothing" in said
    assert len(said.splitlines()) < 30, "nor is the log flooded"


def test_limits_that_rise_by_one(siege: Siege) -> None:
    """Each CREDIT says something, and never ends; so it is counted like those that do not."""
    with siege.attack(), siege.linked() as raw, siege.visitors(1):
        last = opened(raw)
        top = raw.window
        raw.peer.send(b"".join(credit(last, 0, top + n) for n in range(1, 4 * FREE_GLITCHES)))
        expect_goaway(siege, raw)


def test_a_resetting_stream_that_is_written_to_for_ever(siege: Siege) -> None:
    """It is reset, never answers that, and writes on: as far as it was allowed to."""
    with siege.attack(), siege.linked() as raw, siege.visitors(1):
        last = opened(raw)
        raw.peer.send(frame(FrameType.FIN, last, 77))
        pump_until(raw, lambda: raw.of(FrameType.RESET), "RESET")
        raw.peer.send(frame(FrameType.DATA, last, 0, bytes(60_000)))
        with siege.visitors(1, b"next"):
            pump_until(
                raw, lambda: raw.data(last + 1) == b"next", "what was on its way is dropped"
            )
        raw.peer.send(frame(FrameType.DATA, last, 0, bytes(1000)) * 3 * FREE_GLITCHES)
        expect_goaway(siege, raw)


def test_who_reads_nothing_while_visitors_write(siege: Siege) -> None:
    """Rings and kernel buffers hold what they may, and no more."""
    with siege.attack(growth_bytes=100 << 20), siege.linked() as raw:
        raw.window = 8 << 20  # it allows more than it will ever take
        with siege.visitors(40) as visitors:
            pump_until(raw, lambda: len(raw.of(FrameType.OPEN)) == 40, "all OPENs")
            before = siege.server.tunnel(siege.other)["bytes_in"]
            raw.peer.reads = False
            for visitor in visitors:
                visitor.send(bytes(4 << 20))
            read, since = 0, 0.0
            for passed in during(15):
                for visitor in visitors:
                    visitor.pump()
                raw.send(FrameType.PING)
                raw.peer.pump()
                siege.pause()
                more = siege.server.tunnel(siege.other)["bytes_in"] - before
                if more > read:
                    read, since = more, passed
                elif read > 1 << 20 and passed - since > 0.6:
                    break  # nothing is read any more
            assert 1 << 20 < read <= 64 << 20, "of 160 MiB that wait in the kernel"
            assert state(siege) == "up"


def test_garbage_behind_a_right_handshake(siege: Siege) -> None:
    with siege.attack():
        for _ in during(SECONDS):
            with siege.linked() as raw:
                raw.peer.send(b"\xff" + secrets.token_bytes(100_000))
                pump_until(raw, lambda raw=raw: raw.end, "the end")  # type: ignore[misc]


@pytest.mark.parametrize(
    "junk",
    [b"\xff\xff" + bytes(70_000), b"\x10\x01{" + b" " * 4096, b"\x00\x05[" + b"[" * 4000,
     b"\x00\x00" * 5000, b"\x00\x02{}" * 2000, b"\x13\x88{" + b" " * 2000],
    ids=["length", "4 KiB", "nested", "empty", "many", "half of 5 KB"],
)  # fmt: skip
def test_oversize_and_malformed_messages(siege: Siege, junk: bytes) -> None:
    """Behind TLS, in place of HELLO: the end, without a word, and not after 5 s."""
    with siege.attack():
        for _ in range(5):
            with siege.insider(dials=False) as raw:
                raw.peer.send(raw.first)
                raw.secure()
                raw.greeted = True
                raw.peer.send(junk)
                wait_until(lambda raw=raw: end_of(raw.peer), 4, "the end")  # type: ignore[misc]
                assert not raw.peer.received


def test_handshakes_that_never_end(siege: Siege) -> None:
    """At most 16 at once: the oldest goes, and the newest gets through."""
    with siege.attack(), ExitStack() as stack:
        waiting = []
        for _ in range(MAX_CLAIMS + 10):
            raw = stack.enter_context(siege.insider(proves=False, host_id="12" * 16))
            pump_until(raw, lambda raw=raw: raw.stage is Stage.CHALLENGED, "CHALLENGE")  # type: ignore[misc]
            waiting.append(raw)
        with siege.linked():
            ended = [bool(end_of(raw.peer)) for raw in waiting]
            assert ended[:10] == [True] * 10
            assert ended[-MAX_CLAIMS + 1 :] == [False] * (MAX_CLAIMS - 1)


def test_the_worst_of_it_leaves_the_worker_as_it_was(siege: Siege) -> None:
    """A ramble through all of the above, on one worker that must not grow."""
    before = siege.server.worker_pid(siege.other)
    with siege.attack(growth_bytes=8 << 20):
        for kind in ("PING", "RESET of what is over"):
            for _ in range(5):
                with siege.linked() as raw:
                    with siege.visitors(1):
                        last = opened(raw)
                    raw.peer.send(FLOODS[kind](last) * FLOOD)
                    pump_until(raw, lambda raw=raw: raw.end, "the end")  # type: ignore[misc]
        assert encode_frame(FrameType.PING, 0, 0) == frame(FrameType.PING)
    assert siege.server.worker_pid(siege.other) == before
