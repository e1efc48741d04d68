"""What is on its way: a path is simulated, millisecond by millisecond."""

from __future__ import annotations

import copy
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunneltcp.protocol.flight import (
    IDLE_SECONDS,
    LOOK_BYTES,
    LOOK_SECONDS,
    MAX_PINGS,
    NEVER,
    PAUSE_SECONDS,
    SLACK_BYTES,
    Flight,
    Mode,
)

STEP = 0.001
MBIT = 1e6 / 8


class Path:
    """A line with one queue, and who writes to it as fast as he may.

    Args:
        mbit: What it carries.
        rtt: Seconds there and back, when its queue is empty.
        holds: Bytes that the kernel and the queue take.
    """

    def __init__(self, mbit: float, rtt: float, holds: float = 5e6) -> None:
        self.rate, self.rtt, self.holds = mbit * MBIT, rtt, holds
        self.now = 1000.0
        self.flight = Flight(self.now)
        self.served = 0.0
        self.others_seconds = 0.0
        """What stands in the queue that is not ours."""
        self.answers = True
        self.wants = True
        """Whether there is something to write."""
        self.pings: deque[tuple[int, int]] = deque()
        self.pongs: deque[tuple[float, int]] = deque()
        self.sent_pings = 0
        self.loses_each = 0.0
        """Bytes between two lost packets; 0: none are lost."""
        self.tells = True
        """Whether the kernel says how many packets it sent again."""
        self.resent: list[float] = []
        """When they were."""
        self.whole_at = 0.0
        """When the last of them has come, and its PONG is here."""
        self.queues: list[float] = []
        self.ping()

    def is_bound(self) -> bool:
        return self.flight.mode is Mode.BOUND

    def ping(self) -> None:
        self.sent_pings += 1
        self.flight.note_ping(self.sent_pings, self.now, self.told())
        self.pings.append((self.flight.written, self.sent_pings))

    def told(self) -> int:
        return sum(at <= self.now for at in self.resent) if self.tells else 0

    @property
    def waiting(self) -> float:
        return self.flight.written - self.served

    def run(self, seconds: float) -> float:
        """Go on; return the share of the path that was used."""
        before, self.queues = self.served, []
        for _ in range(round(seconds / STEP)):
            self.step()
        return (self.served - before) / (self.rate * seconds)

    def step(self) -> None:
        self.now += STEP
        before = self.served
        self.served = min(self.flight.written, self.served + self.rate * STEP)
        if self.loses_each and self.served // self.loses_each > before // self.loses_each:
            self.resent.append(self.now + self.rtt)
            self.whole_at = self.now + 2 * self.rtt
        while self.pings and self.pings[0][0] <= self.served:
            due = max(self.now + self.rtt + self.others_seconds, self.whole_at)
            self.pongs.append((due, self.pings.popleft()[1]))
        while self.pongs and self.pongs[0][0] <= self.now:
            _, value = self.pongs.popleft()
            if self.answers:
                self.flight.note_pong(value, self.now, self.told())
        if self.wants:
            self.write()
        self.queues.append(self.waiting / self.rate)

    def write(self) -> None:
        """As a link does: batches, with a PING in front where one is due."""
        flight = self.flight
        for _ in range(100):
            if self.waiting >= self.holds:
                return
            if flight.written >= flight.look_at and flight.look(self.now):
                self.ping()
            size = min(flight.room, flight.spacing, 65_536)
            if size <= 0:
                return
            flight.written += size


@pytest.mark.parametrize("rtt", [0.001, 0.02, 0.1, 0.2])
@pytest.mark.parametrize("mbit", [2, 20, 100, 1000])
def test_a_deep_queue_stays_nearly_empty_and_the_path_full(mbit, rtt):
    path = Path(mbit, rtt, holds=mbit * MBIT * 0.5 + 500_000)
    path.run(2 + 5 * rtt + 3 * path.holds / path.rate)  # what went out before has to leave

    assert path.run(1) > 0.97
    slack = SLACK_BYTES / path.rate
    assert max(path.queues) < max(0.025, rtt / 4) + 2 * slack
    assert path.flight.mode is Mode.BOUND


@pytest.mark.parametrize(("rtt", "queue"), [(0.0002, 0.025), (0.05, 0.01)])
def test_a_short_queue_is_left_alone(rtt, queue):
    """On loopback and in a data centre, more so: no bound, and ten PINGs a second at most."""
    path = Path(1000, rtt, holds=1000 * MBIT * queue)

    assert path.run(2) > 0.97
    assert path.flight.mode is Mode.FREE
    assert (path.flight.room, path.flight.spacing) == (NEVER, NEVER)
    assert path.sent_pings <= 2 + 2 / LOOK_SECONDS


@pytest.mark.parametrize("rtt", [0.006, 0.02, 0.05])
def test_a_queue_that_is_soon_full_is_not_filled(rtt):
    """A home router may hold 20 ms of its line, and then drops packets."""
    path = Path(100, rtt, holds=100 * MBIT * 0.02)
    path.run(2)

    assert path.run(1) > 0.97
    assert path.flight.mode is Mode.BOUND
    assert max(path.queues) < 0.0199


def bound_path(mbit=100.0, rtt=0.02) -> Path:
    path = Path(mbit, rtt)
    path.run(2)
    assert path.flight.mode is Mode.BOUND
    return path


@pytest.mark.parametrize("factor", [0.3, 3])
def test_another_rate_is_found_out(factor):
    path = bound_path()
    path.rate *= factor
    path.run(2)

    assert path.run(1) > 0.95
    assert max(path.queues) < 0.03


@pytest.mark.parametrize("more", [0.012, 0.018, 0.04, 0.3])
def test_a_longer_route_is_found_out(more):
    path = bound_path()
    path.rtt += more
    path.run(5)

    assert path.run(8) > 0.8, "at worst it looks again in the middle of it"


def test_a_queue_that_others_fill_is_no_reason_to_send_less():
    path = bound_path()
    path.others_seconds = 0.3
    path.run(5)

    assert path.run(4) > 0.95
    assert not path.is_bound()
    path.others_seconds = 0.0
    path.run(2 * PAUSE_SECONDS)
    path.run(4)
    assert path.is_bound()
    assert max(path.queues) < 0.04


@pytest.mark.parametrize("percent", [0.1, 0.5, 1])
@pytest.mark.parametrize("rtt", [0.02, 0.04, 0.1])
def test_lost_packets_are_no_queue(percent, rtt):
    """What comes behind one is late; a kernel that goes on all the same is not held back."""
    path = Path(100, rtt, holds=100 * MBIT * 0.008)
    path.loses_each = 1500 / (percent / 100)

    assert path.run(10) > 0.9
    assert path.flight.mode is Mode.FREE


def test_where_nobody_tells_of_lost_packets_they_look_like_a_queue():
    path = Path(100, 0.04, holds=100 * MBIT * 0.008)
    path.loses_each, path.tells = 300_000, False
    path.run(2)
    assert path.flight.mode is not Mode.FREE


@pytest.mark.parametrize("rtt", [0.02, 0.1])
def test_a_bound_is_given_up_on_a_line_that_begins_to_lose_packets(rtt):
    path = bound_path(rtt=rtt)
    path.loses_each = 150_000
    path.run(4)
    assert not path.is_bound()
    assert path.run(4) > 0.95


@pytest.mark.parametrize("percent", [1, 2, 5])
def test_a_way_so_long_that_each_answer_meets_a_lost_packet(percent):
    """Most spans of the bound that was have no lost packet, and yet no answer says a thing."""
    path = bound_path()
    path.rtt += 0.3
    path.loses_each = 1500 / (percent / 100)
    path.run(4)
    assert path.run(4) > 0.95


def test_a_probe_that_meets_lost_packets_teaches_nothing():
    path = bound_path()
    before = path.flight.round_trip
    path.flight._probe()
    path.loses_each, path.rtt = 20_000, path.rtt + 0.004
    while path.flight._probe_spans:
        path.step()
    assert path.flight.round_trip == before


def test_a_packet_that_is_lost_now_and_then_is_no_reason_to_give_up():
    path = bound_path()
    path.loses_each = 3_000_000
    path.run(5)
    assert path.is_bound()
    assert path.run(5) > 0.95
    assert max(path.queues) < 0.03


def test_who_answers_no_ping_is_not_held_back():
    path = bound_path()
    path.answers = False
    path.run(3)

    assert path.flight.mode is Mode.FREE
    assert path.run(1) > 0.99


def test_pings_that_nobody_answers_are_not_kept_for_ever():
    flight = Flight(0.0)
    for value in range(1, 3 * MAX_PINGS):
        flight.note_ping(value, value * 0.005)

    assert len(flight._pings) == MAX_PINGS
    assert flight.note_pong(1, 99.0) is None, "long forgotten"
    last = 3 * MAX_PINGS - 1
    assert flight.note_pong(last, last * 0.005 + 0.25) == pytest.approx(0.25)


def test_a_pause_of_the_visitors_changes_nothing():
    path = bound_path()
    bound = path.flight.bound
    path.wants = False
    path.run(IDLE_SECONDS / 2)
    for _ in range(50):  # a keystroke now and then
        path.flight.written += 40
        path.flight.look(path.now)
        path.run(0.02)
    assert path.flight.bound == pytest.approx(bound, rel=0.2)
    path.wants = True
    path.run(0.1)
    assert path.run(0.5) > 0.97


def test_a_bound_that_nobody_meets_is_forgotten():
    path = bound_path()
    path.wants = False
    path.run(IDLE_SECONDS + 1)
    path.flight.look(path.now)
    assert path.flight.mode is Mode.FREE


def test_with_the_other_direction_full_too():
    """Both ends leave a little standing; a PONG meets the queue of the other."""
    path = bound_path()
    path.others_seconds = 0.012
    path.run(3)
    assert path.run(3) > 0.8
    assert max(path.queues) < 0.03


def test_pings_are_few_against_what_is_carried():
    """A peer bears one frame that says nothing for each KiB (PROTOCOL.md §9)."""
    path = Path(2, 0.02, holds=300_000)
    path.run(6)
    assert path.flight.mode is Mode.BOUND
    pings, written = path.sent_pings, path.flight.written
    path.run(2)
    assert path.sent_pings - pings <= (path.flight.written - written) / 1024


def test_only_answers_to_our_pings_count():
    flight = Flight(0.0)
    assert flight.note_pong(1, 1.0) is None
    flight.note_ping(5, 1.0)
    flight.note_ping(8, 1.5)
    assert flight.note_pong(4, 2.0) is None
    assert flight.note_pong(9, 2.0) is None
    assert flight.note_pong(8, 2.0) == 0.5, "which answers the one before, too"
    assert flight.note_pong(5, 2.0) is None
    assert flight.round_trip == 0.5


@pytest.fixture(scope="module")
def flights() -> dict[Mode, Path]:
    """Paths whose flight is in each mode."""
    bound, watched = bound_path(), Path(100, 0.02)
    while watched.flight.mode is not Mode.WATCHED:
        watched.step()
    return {Mode.FREE: Path(100, 0.02), Mode.WATCHED: watched, Mode.BOUND: bound}


@pytest.mark.parametrize("mode", Mode)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["write", "pong", "last pong", "skip"]),
            st.floats(0, 0.5),
            st.integers(1, LOOK_BYTES),
            st.integers(0, 2),
        ),
        max_size=200,
    )
)
def test_nobody_is_ever_stopped_for_good(flights, mode, steps):
    """Whatever comes: there is room, or a PING is out whose answer or absence makes some."""
    path = flights[mode]
    flight, now, value = copy.deepcopy(path.flight), path.now, path.sent_pings
    out = [number for _, number in (*path.pongs, *path.pings)]
    resent = path.told()
    for what, seconds, size, lost in steps:
        now += seconds
        resent += lost
        if what == "write":
            if flight.written >= flight.look_at and flight.look(now):
                value += 1
                flight.note_ping(value, now, resent)
                out.append(value)
            flight.written += max(0, min(size, flight.room, flight.spacing))
        elif what != "skip" and out:
            answered = out.pop(0 if what == "pong" else -1)
            out = [number for number in out if number > answered]
            flight.note_pong(answered, now, resent)
        assert flight.bound >= SLACK_BYTES
        assert flight.spacing <= flight.bound
        assert 0 < flight.round_trip < 1000 or not flight.round_trip
    for one in out:
        now += 0.01
        flight.note_pong(one, now, resent)
    if not flight.room and flight.look(now):
        flight.note_ping(value + 1, now, resent)
        flight.note_pong(value + 1, now + 0.01, resent)
    assert flight.room > 0


@pytest.mark.parametrize("losing", [True, False])
def test_who_is_stopped_looks_for_an_answer_and_then_goes_on(flights, losing):
    """No answer at all comes to a link that has no room, with and without lost packets."""
    path = flights[Mode.BOUND]
    flight, now, resent = copy.deepcopy(path.flight), path.now, path.told()
    flight.written += flight.room
    assert not flight.room
    for turn in range(500):
        if flight.look(now + turn * 0.01):
            flight.note_ping(path.sent_pings + 1 + turn, now + turn * 0.01, resent)
        resent += losing
    assert flight.room
