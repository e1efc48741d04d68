"""The two sessions on a fake wire notice what is wrong: that is what they are for."""

from __future__ import annotations

import pytest

from tests.support.session_pair import SessionPair


def pair_at_work():
    pair = SessionPair()
    visit = pair.must_open()
    visit.visitor.write(100_000)
    visit.target.write(5000)
    return pair, visit


def test_bytes_cross_in_both_directions_and_all_ends():
    pair, visit = pair_at_work()
    pair.make_willing()
    pair.settle()
    pair.check_complete()
    assert (visit.target.taken, visit.visitor.taken) == (100_000, 5000)
    pair.end_all()
    pair.settle()
    pair.check_all_over()
    assert (visit.visitor.over, visit.target.over) == ("clean", "clean")


def test_nothing_moves_by_itself_and_any_cut_is_possible():
    pair, visit = pair_at_work()
    assert visit.visitor.read(10) == 10
    assert pair.server.write(7) == 7
    assert pair.client.receive(pair.server.out, 3) == 3
    assert pair.client.receive(pair.server.out) == 4
    assert not visit.target.started, "only a part of the OPEN has come"
    pair.server.write()
    pair.client.receive(pair.server.out)
    assert visit.target.came == 10
    assert visit.target.taken == 0, "its socket takes nothing yet"
    visit.target.take(4)
    assert (visit.target.taken, len(visit.target.waiting)) == (4, 6)


def test_a_wrong_byte_is_found_when_the_socket_takes_it():
    pair, visit = pair_at_work()
    visit.visitor.read(100)
    pair.server.write()
    pair.server.out.flying[-1] ^= 1
    pair.client.receive(pair.server.out)
    with pytest.raises(AssertionError):
        visit.target.take(100)


def test_a_buffer_that_changes_before_it_is_written_is_found():
    pair, visit = pair_at_work()
    visit.visitor.read(100)
    pair.server.write(20)
    visit.visitor.ring.view[99] ^= 1
    with pytest.raises(AssertionError, match="buffers changed"):
        pair.server.write()


def test_books_that_do_not_balance_are_found():
    pair, visit = pair_at_work()
    visit.visitor.read(100)
    pair.check()
    pair.server.arena.used_bytes += 1
    with pytest.raises(AssertionError, match="rings leak"):
        pair.check()
    pair.server.arena.used_bytes -= 1
    pair.server.session.windows.granted_bytes += 1
    with pytest.raises(AssertionError, match="windows leak"):
        pair.check()


def test_what_is_stuck_is_found():
    pair, visit = pair_at_work()
    visit.target.take(50_000)
    pair.settle()
    with pytest.raises(AssertionError, match="stuck"):
        pair.check_complete()
    with pytest.raises(AssertionError, match="never ended"):
        pair.check_all_over()
