"""Two ends of a session as a state machine: every byte arrives, nothing leaks or sticks."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.support.session_pair import MANY, End, SessionPair
from tunneltcp.protocol.errors import ResetCode
from tunneltcp.protocol.sender import BATCH_BYTES

SIZES = st.sampled_from([1, 7, 1000, 16_384, 16_385, 65_536, 100_000, 300_000])
CUTS = st.one_of(st.integers(1, 40), SIZES, st.just(MANY))
CODES = st.sampled_from([ResetCode.CANCELLED, ResetCode.TARGET_UNREACHABLE, ResetCode.STOPPING])


class TwoEnds(RuleBasedStateMachine):
    """Anything that two workers, their sockets and the wire between them may do."""

    budgets = st.sampled_from([1 << 20, 1280 << 10, 2 << 20, 4 << 20])
    steps = 60
    left_bytes: st.SearchStrategy[int] = st.just(MANY)
    """What the two sides have for rings."""

    pair: SessionPair

    @initialize(
        server=budgets,
        client=budgets,
        first_id=st.sampled_from([1, 2**32 - 2, 2**40 - 100]),
        max_streams=st.sampled_from([2, 6]),
        client_max_streams=st.sampled_from([2, 6]),
        connects=st.booleans(),
        grows=st.booleans(),
        data=st.data(),
    )
    def start(
        self, server, client, first_id, max_streams, client_max_streams, connects, grows, data
    ):
        self.pair = SessionPair(
            server,
            client_budget_bytes=client,
            max_streams=max_streams,
            client_max_streams=client_max_streams,
            first_id=first_id,
        )
        self.pair.connects_at_once = connects
        if grows:
            for side in self.pair.sides:
                side.let_windows_grow()
        for _ in range(data.draw(st.integers(0, max_streams), label="visitors")):
            self.pair.open()
        if data.draw(st.booleans(), label="all is known of them"):
            self.pair.settle()
        for side in self.pair.sides:
            side.hold_back(data.draw(self.left_bytes, label=f"left for the {side.name}"))

    def ends(self) -> list[End]:
        visits = self.pair.visits if hasattr(self, "pair") else []
        return [end for visit in visits for end in visit.ends if end.started and not end.over]

    def pick(self, data, wanted=lambda end: True) -> End | None:
        found = [end for end in self.ends() if wanted(end)]
        return data.draw(st.sampled_from(found), label="end") if found else None

    @rule()
    def open(self):
        self.pair.open()

    @rule(refuses=st.booleans())
    def targets_refuse(self, refuses):
        self.pair.refuses = refuses

    @precondition(lambda self: self.ends())
    @rule(data=st.data(), size=SIZES)
    def app_writes(self, data, size):
        end = self.pick(data, lambda end: not end.ended)
        if end is not None:
            end.write(size)
            end.read(size)

    @precondition(lambda self: self.ends())
    @rule(data=st.data(), size=CUTS)
    def relay_reads(self, data, size):
        end = self.pick(data, lambda end: end.watching)
        if end is not None:
            end.read(size)

    @precondition(lambda self: self.ends())
    @rule(data=st.data())
    def app_ends(self, data):
        end = self.pick(data, lambda end: not end.ended)
        if end is not None:
            end.end()
            end.read()

    @precondition(lambda self: self.ends())
    @rule(data=st.data(), size=CUTS)
    def app_takes(self, data, size):
        end = self.pick(data)
        if end is not None:
            end.take(size)

    @precondition(lambda self: self.ends())
    @rule(data=st.data())
    def socket_connects(self, data):
        end = self.pick(data, lambda end: not end.connected)
        if end is not None:
            end.connect()

    @precondition(lambda self: self.ends())
    @rule(data=st.data(), code=CODES)
    def socket_fails(self, data, code):
        end = self.pick(data)
        if end is not None:
            end.fail(code)

    @precondition(lambda self: self.ends())
    @rule(size=CUTS)
    def server_writes(self, size):
        self.pair.server.write(size)

    @precondition(lambda self: self.ends())
    @rule(size=CUTS)
    def client_writes(self, size):
        self.pair.client.write(size)

    @precondition(lambda self: self.ends())
    @rule(size=CUTS)
    def server_receives(self, size):
        self.pair.server.receive(size=size)

    @precondition(lambda self: self.ends())
    @rule(size=CUTS)
    def client_receives(self, size):
        self.pair.client.receive(size=size)

    @precondition(lambda self: self.ends())
    @rule(turns=st.integers(1, 4))
    def some_turns_pass(self, turns):
        for _ in range(turns):
            self.pair.pump()
            for end in self.ends():
                end.read()

    @precondition(lambda self: self.ends())
    @rule(side=st.integers(0, 1), room=st.sampled_from([0, 2048, 16_384, BATCH_BYTES]))
    def link_is_held_back(self, side, room):
        self.pair.sides[side].limit_batches(room)

    @rule()
    def time_passes(self):
        for side in self.pair.sides:
            side.session.sweep()
            side.arena.tidy()

    @rule(value=st.integers(0, 2**64 - 1))
    def server_pings(self, value):
        self.pair.server.session.ping(value)

    @precondition(lambda self: self.ends())
    @rule()
    def link_is_cut(self):
        self.pair.cut()

    @precondition(lambda self: self.ends())
    @rule(side=st.integers(0, 1))
    def one_side_loses_the_link(self, side):
        self.pair.sides[side].detach()
        if side == 0:
            self.pair.offered = None

    @precondition(lambda self: self.ends())
    @rule(side=st.integers(0, 1))
    def worker_dies(self, side):
        self.pair.die(self.pair.sides[side])

    @precondition(lambda self: self.ends())
    @rule(resumes=st.sampled_from([True, True, True, False]))
    def server_takes_a_link(self, resumes):
        """An older one may still be up, even one that the client never got."""
        self.pair.offer(resumes=resumes)

    @precondition(lambda self: hasattr(self, "pair") and self.pair.offered)
    @rule()
    def client_takes_the_link(self):
        self.pair.take_offer()

    @precondition(lambda self: self.ends())
    @rule()
    def link_is_resumed(self):
        self.pair.resume()

    @precondition(lambda self: self.ends())
    @rule(side=st.integers(0, 1))
    def grace_is_over(self, side):
        if not self.pair.sides[side].session.is_attached:
            self.pair.abandon(self.pair.sides[side])

    @invariant()
    def holds(self):
        if hasattr(self, "pair"):
            self.pair.check()

    def teardown(self):
        if not hasattr(self, "pair"):
            return
        pair = self.pair
        pair.make_willing()
        pair.settle()
        for _ in range(2):  # once more would be too often: all is told
            pair.resume()
            pair.settle()
            self.holds()
        pair.check_complete()
        for visit in pair.visits:  # one direction, for a start: half-close is no end
            visit.ends[visit.number % 2].end()
        pair.settle()
        pair.check_complete()
        pair.end_all()
        pair.settle()
        pair.check_complete()
        pair.check_all_over()
        for visit in pair.visits:
            for end in visit.ends:
                if end.started and end.code < 0:
                    assert end.over == "clean", f"{end}: not a clean end, without a reason"
        assert pair.open(), "no room although nobody is there"


class ShortOfMemory(TwoEnds):
    """The same with rings for one to four streams, of which there are up to six."""

    budgets = st.sampled_from([1280 << 10, 2 << 20])
    left_bytes = st.sampled_from([16 << 10, 32 << 10, 64 << 10])


@pytest.mark.timeout(300)  # long examples, on a machine that may be busy
@pytest.mark.parametrize("machine", [TwoEnds, ShortOfMemory])
def test_two_ends(machine):
    run_state_machine_as_test(
        machine,
        settings=settings(
            stateful_step_count=machine.steps,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
