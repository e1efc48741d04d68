"""One stream: its ring, its record, its two halves."""

from __future__ import annotations

import pytest

from tests.support import frame_factory as make
from tests.support.pattern import pattern
from tunneltcp.protocol.errors import ResetCode
from tunneltcp.protocol.stream import DISCARD
from tunneltcp.protocol.table import (
    BYTES_READ,
    CONFIRMED,
    COOKIE,
    END_READ,
    FIN_OFFSET,
    FLAGS,
    RING_WORD,
    STREAM_ID,
)

ID = 1
K = 1024
MIB = 1 << 20


def record(bench, end):
    return list(bench.side.table.words[end.record : end.record + 6])


def test_a_ring_is_taken_with_the_first_byte_and_given_back_with_the_last(server):
    end = server.open()
    assert not end.holds_ring
    end.write(1000)
    assert end.read() == 1000
    assert end.ring.size == server.side.arena.used_bytes == 64 * K

    server.sent()
    server.feed(make.credit(ID, 999, MIB))
    assert end.holds_ring
    server.feed(make.credit(ID, 1000, MIB))
    assert not end.holds_ring
    assert server.session.sender.has_output, "the link is asked once more, so it goes back"
    assert server.sent() == []
    assert server.side.arena.used_bytes == 0


def test_a_ring_doubles_when_it_is_full_and_the_limit_can_use_it(server):
    end = server.open()
    server.feed(make.credit(ID, 0, 200 * K))
    end.write(MIB)
    sizes = []
    while end.read() > 0:
        sizes.append(end.ring.size // K)
        server.side.check_record(end)

    assert sizes == [64, 128, 256]
    assert end.read_bytes == 256 * K
    assert server.side.arena.used_bytes == (64 + 128 + 256) * K, "the old ones are retired"
    payload = b"".join(frame.payload for frame in server.sent())
    assert payload == pattern(end.seed, 0, 200 * K)
    server.sent()
    assert server.side.arena.used_bytes == 256 * K


def test_a_ring_that_is_wrapped_is_copied_in_order(server):
    end = server.open()
    server.feed(make.credit(ID, 0, 300 * K))
    end.write(60 * K)
    end.read()
    server.sent()
    server.feed(make.credit(ID, 50 * K, 300 * K))
    end.write(240 * K)
    while end.read() > 0:
        server.side.check_record(end)

    payload = b"".join(frame.payload for frame in server.sent() + server.sent())
    assert payload == pattern(end.seed, 60 * K, 240 * K)


def test_without_a_limit_to_use_it_a_ring_does_not_grow(server):
    end = server.open()
    end.write(MIB)
    while end.read() > 0:
        pass
    assert end.ring.size == 64 * K
    assert end.read_bytes == 64 * K
    assert end.stream.paused
    assert not end.watching


def test_the_next_ring_has_the_size_of_the_last(server):
    end = server.open()
    server.feed(make.credit(ID, 0, MIB))
    end.write(200 * K)
    while end.read() > 0:
        pass
    while server.sent():
        pass
    server.feed(make.credit(ID, 200 * K, 2 * MIB))
    assert not end.holds_ring
    end.write(1)
    end.read()
    assert end.ring.size == 256 * K


def test_when_memory_is_short_a_first_ring_is_small_and_growth_is_a_quarter(new_bench):
    bench = new_bench("server", budget=MIB, first_limit=MIB)
    end = bench.open()
    bench.side.hold_back(512 * K)
    end.write(MIB)
    sizes = []
    while end.read() > 0:
        sizes.append(end.ring.size // K)
        bench.session.data_to_send()
    assert sizes == [16, 32, 64]


def test_a_full_ring_stops_the_reading_and_credit_wakes_it(server):
    end = server.open()
    end.write(100 * K)
    end.read()
    assert end.read() == -1
    assert end.stream.fill(lambda view: pytest.fail("there is no room")) == -1
    server.sent()
    server.feed(make.credit(ID, 1, 32 * K))

    assert end.watching
    assert end.read() == 1, "one byte was delivered, one byte has room"


def test_at_most_256_kib_are_read_at_once(new_bench):
    server = new_bench("server", budget=5 * MIB)
    end = server.open()
    server.feed(make.credit(ID, 0, 4 * MIB))
    end.write(4 * MIB)
    reads = []
    while (count := end.read()) > 0:
        reads.append(count // K)
    assert reads == [64, 64, 128] + [256] * 7


def test_what_reading_raises_is_passed_on(server):
    end = server.open()

    def fail(view):
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        end.stream.fill(fail)
    end.write(10)
    assert end.read() == 10


def test_the_record_follows_each_step(server):
    end = server.open()
    stream = end.stream
    assert record(server, end) == [7, ID, 0, 0, 0, 0]
    end.write(70_000)
    end.read()
    assert record(server, end) == [7, ID, stream.ring.word, 65_536, 0, 0]
    server.sent()
    server.feed(make.credit(ID, 32_768, MIB))
    end.read()
    assert record(server, end)[BYTES_READ] == 70_000
    end.end()
    end.read()
    assert record(server, end)[FLAGS] == END_READ | CONFIRMED
    server.feed(make.data(ID, 0, pattern(end.checker.seed, 0, 9)), make.fin(ID, 9))
    assert record(server, end)[FIN_OFFSET] == 10
    server.sent()
    server.feed(make.credit(ID, 70_000, MIB))
    assert record(server, end)[RING_WORD] == 0
    server.feed(make.credit(ID, 70_000, MIB, 1))
    assert end.over == "clean"
    assert record(server, end) == [0] * 6


def test_the_final_offset_is_stored_before_the_fin_is_passed_on(server):
    end = server.open()
    seen = []
    done = end.stream.fin_done
    shutdown = end._pass_fin_on

    def pass_fin_on():
        assert record(server, end)[FIN_OFFSET] == 0
        shutdown()
        seen.append(record(server, end)[FIN_OFFSET])

    end._pass_fin_on = pass_fin_on
    server.feed(make.fin(ID, 0))
    assert seen == [1]
    assert done is not None


def test_the_clients_record_has_no_cookie_until_it_has_a_socket(client):
    end = client.open()
    words = client.side.table.words
    assert (words[end.record + COOKIE], words[end.record + STREAM_ID]) == (0, ID)


def test_the_record_gets_the_cookie_of_a_socket_that_came_later(client):
    end = client.open()
    end.stream.store_cookie(2**64 - 1)
    assert record(client, end)[:2] == [2**64 - 1, ID]


@pytest.mark.parametrize("stream_id", [2**32 - 1, 2**32, 2**40 - 1])
def test_large_ids(new_bench, stream_id):
    bench = new_bench("server")
    bench.side.table.words[5] = stream_id
    end = bench.open(quietly=False)
    end.write(5)
    end.read()
    end.end()
    end.read()
    assert [f.stream_id for f in bench.sent()] == [stream_id] * 3
    bench.feed(make.credit(stream_id, 5, MIB, 1))
    bench.feed(make.data(stream_id, 0, pattern(end.checker.seed, 0, 3)), make.fin(stream_id, 3))
    assert end.over == "clean"


def test_the_status_line(server):
    end = server.open()
    end.write(5)
    end.read()
    assert repr(end.stream) == (
        "<Stream 1 acked=0 sent=0 head=5 limit=32768 delivered=0 received=0"
        " granted=1048576 fin=-1 peer_fin=-1 reset=-1>"
    )


def test_discard_takes_nothing_and_minds_nothing():
    assert DISCARD.deliver(memoryview(b"abc")) == 0
    DISCARD.deliver_fin()
    DISCARD.resume_reading()
    DISCARD.abort(ResetCode.CANCELLED)
    DISCARD.close()


def test_a_half_closed_stream_holds_no_ring(server):
    """Half-closed for hours, if need be (design §8); an idle stream holds no ring (§5)."""
    end = server.open()
    end.end()
    assert end.read() == 0
    server.sent()
    server.feed(make.credit(ID, 0, MIB, 1))

    assert server.side.arena.used_bytes == 0


def test_a_read_that_finds_nothing_keeps_no_ring(server):
    end = server.open()

    def nothing(view):
        raise BlockingIOError

    with pytest.raises(BlockingIOError):
        end.stream.fill(nothing)
    assert server.side.arena.used_bytes == 0
