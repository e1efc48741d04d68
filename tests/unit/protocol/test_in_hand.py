"""Before a stream is touched its id is in the header: it tells what killed a worker."""

from __future__ import annotations

import pytest

from tunneltcp.protocol.arena import Arena
from tunneltcp.protocol.endpoint import DISCARD
from tunneltcp.protocol.frames import FrameType, encode_frame
from tunneltcp.protocol.session import Session
from tunneltcp.protocol.table import IN_HAND, StreamTable


class Handler:
    def on_open(self, _stream, _addresses):
        return DISCARD

    def on_pong(self, _value):
        pass

    def on_goaway(self, _code):
        pass

    def on_resumed(self, _streams, _again_bytes):
        pass


@pytest.fixture
def session():
    """A client's session with streams 1 and 2, and nothing in hand."""
    arena = Arena(memoryview(bytearray(1 << 20)), 1 << 20)
    table = StreamTable(memoryview(bytearray(4096 + 64 * 8)))
    made = Session(Handler(), opens=False, arena=arena, table=table, max_streams=4)
    made.begin()
    for number in (1, 2):
        receive(made, encode_frame(FrameType.OPEN, number, 1 << 16, b"\0\0"))
    table.words[IN_HAND] = 0
    return made


def receive(session, data):
    return session.receive(memoryview(data), len(data))


def data_frame(stream_id, size=100):
    return encode_frame(FrameType.DATA, stream_id, 0, bytes(size))


def killed(*_):
    raise ZeroDivisionError


def test_what_is_read(session):
    with pytest.raises(ZeroDivisionError):
        session.streams[2].fill(killed)
    assert session.table.words[IN_HAND] == 2


@pytest.mark.parametrize("end", [116, 60])
def test_what_is_delivered_whole_or_in_part(session, end):
    frames = data_frame(1) + data_frame(2)
    session.streams[2].send = killed
    session.streams[2].endpoint = type("Killer", (), {"deliver": killed})
    with pytest.raises(ZeroDivisionError):
        session.receive(memoryview(frames), 116 + end)
    assert session.table.words[IN_HAND] == 2


def test_the_rest_of_what_is_delivered(session):
    frame = data_frame(2)
    session.receive(memoryview(frame), 60)
    session.table.words[IN_HAND] = 1
    session.streams[2].endpoint = type("Killer", (), {"deliver": killed})
    with pytest.raises(ZeroDivisionError):
        receive(session, frame[60:])
    assert session.table.words[IN_HAND] == 2


def test_what_the_peer_says_of_a_stream_or_of_none(session):
    receive(session, encode_frame(FrameType.FIN, 2, 0, b""))
    assert session.table.words[IN_HAND] == 2
    receive(session, encode_frame(FrameType.PING, 0, 5, b""))
    assert session.table.words[IN_HAND] == 0
