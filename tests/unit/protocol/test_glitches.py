"""Frames that say nothing: which they are, how many are borne, what earns more."""

from __future__ import annotations

import pytest

from tests.support import frame_factory as make
from tests.support.pattern import pattern
from tests.support.session_pair import SessionPair
from tunneltcp.protocol.errors import RemoteProtocolError
from tunneltcp.protocol.glitches import BYTES_PER_GLITCH, FREE_GLITCHES, GLITCHES_PER_STREAM

ID = 1
SEED = 3
"""What the end of that stream checks its bytes by."""


def count(bench):
    return bench.session.glitches._count


USELESS = {
    "PING before the last was answered": make.ping(1),
    "PONG": make.pong(1),
    "GOAWAY again": make.goaway(0, 0),
    "RESET of what is over": make.reset(ID, 1),
    "an answer to no RESET": make.reset(ID, 0),
    "CREDIT of what is over": make.credit(ID, 0, 9, 0),
    "DATA of what is over": make.data(ID, 0, b"x"),
    "FIN of what is over": make.fin(ID, 0),
}


def over(bench):
    """A stream that both sides have forgotten."""
    bench.open()
    bench.feed(make.reset(ID, 1))
    bench.sent()
    bench.feed(make.ping(0), make.goaway(0, 0))
    bench.session.glitches.clear()
    bench.session.glitches.is_first_goaway()


@pytest.mark.parametrize("kind", USELESS)
def test_what_is_counted(client, kind):
    over(client)
    client.feed(USELESS[kind])
    assert count(client) == 1


@pytest.mark.parametrize("kind", USELESS)
def test_too_many_end_the_session(client, kind):
    over(client)
    with pytest.raises(RemoteProtocolError, match="frames that say nothing"):
        client.feed(*[USELESS[kind]] * (FREE_GLITCHES + 1))


def test_the_bound_is_exact(client):
    over(client)
    client.feed(*[make.pong(1)] * FREE_GLITCHES)
    with pytest.raises(RemoteProtocolError):
        client.feed(make.pong(1))


def test_another_link_has_its_own(client):
    over(client)
    client.feed(*[make.pong(1)] * FREE_GLITCHES)
    client.session.detach()
    client.session.begin()
    client.feed(*[make.pong(1)] * FREE_GLITCHES)


def test_what_says_something_is_not_counted(client):
    end = client.open()
    for value in range(20):
        client.feed(make.ping(value))
        client.sent()
        client.session.ping(value)
        client.sent()
        client.feed(make.pong(value))
    end.write(100)
    end.read()
    client.sent()
    for delivered in range(1, 101):
        client.feed(make.credit(ID, delivered, 1 << 20, 0))
    client.feed(make.data(ID, 0, pattern(SEED, 0, 10)), make.fin(ID, 10), make.goaway(0, 0))
    assert count(client) == 0


def test_a_limit_that_rises_alone_is_believed_and_counted(client):
    client.open()
    client.feed(make.credit(ID, 0, 2 << 20, 0), make.credit(ID, 0, 3 << 20, 0))
    assert client.session.streams[ID].limit == 3 << 20
    assert count(client) == 1, "the first one says that the stream is known"


def test_streams_and_bytes_earn_more(client):
    client.open()
    client.feed(make.data(ID, 0, pattern(SEED, 0, 10_000)))
    allowed = FREE_GLITCHES + GLITCHES_PER_STREAM + 10_000 // BYTES_PER_GLITCH
    client.feed(*[make.pong(1)] * allowed)
    with pytest.raises(RemoteProtocolError):
        client.feed(make.pong(1))


def test_what_is_on_its_way_to_a_stream_that_was_reset_is_not_counted(client):
    """As far as the peer was allowed to send; then it is."""
    end = client.open()
    granted = client.session.streams[ID].granted
    end.stream.reset(1)
    client.sent()
    pieces = [make.data(ID, at, bytes(1024)) for at in range(0, granted, 1024)]
    client.feed(*pieces)
    assert count(client) == 0
    client.feed(pieces[-1])
    assert count(client) == 1


def test_what_is_on_its_way_to_a_stream_that_was_refused_is_paid_for(new_bench):
    """A limit of ours is no fault of the peer's: it sent on before it heard of it."""
    client = new_bench("client", max_streams=1)
    client.open()
    for stream_id in range(2, 2000):
        client.feed(
            make.open_(stream_id),
            make.data(stream_id, 0, b"GET / HTTP/1.1\r\n\r\n"),
            make.fin(stream_id, 18),
            make.reset(stream_id, 0),
        )
        client.sent()


def test_small_pieces_on_their_way_to_streams_that_were_refused_are_not_counted(new_bench):
    """A visitor who writes byte by byte makes a frame of each, for as long as a round trip."""
    client = new_bench("client", max_streams=1)
    client.open()
    for stream_id in range(2, 20):
        client.feed(make.open_(stream_id))
        client.feed(*[make.data(stream_id, at, b"x") for at in range(300)])
        client.feed(make.reset(stream_id, 0))
        client.sent()
    assert count(client) == 0
    client.feed(make.data(19, 300, b"x"))
    assert count(client) == 1, "it was answered"


MANY_VISITORS = 1100


def crowd(**settings):
    pair = SessionPair(64 << 20, max_streams=MANY_VISITORS + 1, **settings)
    pair.make_willing()
    return pair, [pair.must_open() for _ in range(MANY_VISITORS + 1)]


@pytest.mark.parametrize("end", ["visitor", "target"])
def test_a_crowd_may_leave_while_the_link_is_away(end):
    """STATE tells of each, and so does RESET, sent again: one of the two is useless."""
    pair, visits = crowd()
    pair.settle()
    pair.cut()
    for visit in visits[1:]:
        getattr(visit, end).fail()
    pair.resume()
    pair.settle()
    assert not visits[0].visitor.over


@pytest.mark.parametrize("begins", ["held", "resumed"])
def test_a_crowd_that_a_link_began_with_may_leave_at_once(begins):
    """What they came with, and the answers to it, cross their RESETs."""
    pair, visits = crowd()
    if begins == "resumed":
        pair.settle()
        pair.cut()
        pair.resume()
        pair.settle()
    else:
        pair.cut()
        pair.relink()
    for visit in visits[1:]:
        visit.visitor.write(50)
        visit.visitor.read()
    while pair.server.write():
        pair.client.receive()
    for _ in range(2):
        pair.client.session.sweep()
    while pair.client.write():
        pass
    for visit in visits[1:]:
        visit.visitor.fail()
    pair.settle()
    assert not visits[0].visitor.over
