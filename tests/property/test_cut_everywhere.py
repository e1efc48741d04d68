"""A small session with frames of every type, cut at every byte in both directions, resumed.

The story is the same each time; only the place of the cut differs, and whether what the apps
do after it happens during the pause or on the next link. The story has a resume of its own, so
SYNC and STATE are cut as well: that is a second cut during a resume.
"""

from __future__ import annotations

import pytest

from tests.support.frame_factory import split_frames
from tests.support.session_pair import MANY, SessionPair
from tunneltcp.protocol.errors import GoawayCode
from tunneltcp.protocol.frames import FrameType
from tunneltcp.protocol.windows import MAX_WINDOW_BYTES, USUAL_WINDOW_BYTES

VISITORS = 5
PIECE = 211
"""Bytes that a wire carries at once: no multiple of any frame's size."""


class CutError(Exception):
    """The link is dead."""


class Story:
    """Two ends, what happens at them, and a link that is cut after so many bytes."""

    def __init__(self, direction=0, cut_at=MANY):
        self.pair = SessionPair(1 << 20)
        self.left = [MANY, MANY]
        self.left[direction] = cut_at
        self.carried = [0, 0]
        self.wire = [b"", b""]

    # ------------------------------------------------------------------- the wire

    def move(self):
        """Let all travel that can, piece by piece; time passes when nothing moves."""
        quiet = 0
        while quiet < 3:
            moved = sum(self._carry(direction) for direction in (0, 1))
            quiet = 0 if moved else quiet + 1
            if not moved:
                for side in self.pair.sides:
                    side.session.sweep()

    def _carry(self, direction):
        source, other = self.pair.sides[direction], self.pair.sides[1 - direction]
        source.write(PIECE)
        size = min(PIECE, self.left[direction], len(other.inbox.flying))
        self.wire[direction] += bytes(other.inbox.flying[:size])
        count = other.receive(size=size) if size else 0
        self.left[direction] -= count
        self.carried[direction] += count
        if not self.left[direction]:
            raise CutError
        return count

    def idle(self):
        """Nothing travels: there is no link."""

    # ------------------------------------------------------------------ the story

    def steps(self):
        """What the apps do, and the two sides."""
        pair = self.pair
        for number in range(3):
            yield lambda number=number: self.visit(number)
        yield lambda: pair.server.session.ping(1)
        yield lambda: pair.client.session.ping(2)
        yield lambda: self.say(0, 1, 50)
        yield lambda: self.end(0, 0)
        yield lambda: self.say(1, 1, 30)
        yield lambda: self.end(1, 1)  # half-close: the visitor goes on
        yield lambda: self.say(1, 0, 20)
        yield lambda: self.visit(3)
        yield lambda: pair.visits[2].visitor.fail()
        yield self.resume
        yield lambda: self.visit(4)
        yield lambda: self.say(3, 1, 60)
        yield lambda: pair.visits[3].target.fail()  # a target that answers and resets
        yield lambda: self.end(0, 1)
        yield lambda: self.say(1, 0, 15)
        yield lambda: self.end(1, 0)
        yield lambda: self.say(4, 1, 10)
        yield lambda: pair.client.session.goaway(GoawayCode.DRAINING)
        yield lambda: pair.server.session.goaway(GoawayCode.DRAINING)
        yield lambda: self.end(4, 1)
        yield lambda: self.end(4, 0)

    def visit(self, number):
        visit = self.pair.must_open()
        visit.visitor.appetite = visit.target.appetite = MANY
        self.say(number, 0, 10 + number)

    def say(self, number, whose, size):
        end = self.pair.visits[number].ends[whose]
        end.write(size)
        end.read()

    def end(self, number, whose):
        end = self.pair.visits[number].ends[whose]
        end.end()
        end.read()

    def resume(self):
        if self.pair.server.session.is_attached:
            self.pair.resume()

    # -------------------------------------------------------------------- the test

    def tell(self, *, during_the_pause):
        """Play it, with one cut; then everything must be as if there had been none."""
        move, was_cut = self.move, False
        for step in self.steps():
            step()
            try:
                move()
            except CutError:
                was_cut = True
                self.left = [MANY, MANY]
                self.pair.cut()
                self.pair.check()
                move = self.idle
                if not during_the_pause:
                    self.pair.resume()
                    move = self.move
        if was_cut and during_the_pause:
            self.pair.resume()
        self.pair.settle()
        self.pair.visits[3].target.fail()  # if it was not there yet when it should have
        self.pair.settle()
        self.check()
        return was_cut

    def check(self):
        pair = self.pair
        for visit in pair.visits:
            for end, far in (visit.ends, visit.ends[::-1]):
                if visit.number in (2, 3):
                    assert end.over in ("aborted", "reset") or not end.started, end
                else:
                    assert end.over == "clean", end
                    assert end.taken == far.written, end
        visitor, target = pair.visits[3].ends
        assert visitor.taken == target.written, "an answer in front of a RESET was lost"
        pair.check_all_over()


def whole_story():
    story = Story()
    assert not story.tell(during_the_pause=False)
    return story


def test_the_story_has_frames_of_every_type():
    story = whole_story()
    kinds = {frame.type for wire in story.wire for frame in split_frames(wire)}
    assert kinds == set(FrameType)
    assert len(story.pair.visits) == VISITORS
    assert min(story.carried) > 500


@pytest.mark.slow
@pytest.mark.parametrize(
    "during_the_pause", [False, True], ids=["on the next link", "meanwhile"]
)
@pytest.mark.parametrize("direction", [0, 1], ids=["to the client", "to the server"])
def test_a_cut_at_every_byte(direction, during_the_pause):
    for cut_at in range(1, whole_story().carried[direction]):
        story = Story(direction, cut_at)
        try:
            assert story.tell(during_the_pause=during_the_pause)
        except AssertionError as error:
            raise AssertionError(f"cut behind byte {cut_at}: {error}") from error


def test_full_rings_of_16_mib_each_way_are_carried_again():
    """Nobody writes all before reading: each side has more to send than any queue takes."""
    pair = SessionPair(64 << 20, max_streams=16)
    size = USUAL_WINDOW_BYTES
    for _ in range(16):
        pair.must_open()
    pair.settle()
    for visit in pair.visits:
        for end in visit.ends:
            end.write(size + 100_000)
    pair.settle()
    for side in pair.sides:
        assert side.arena.used_bytes >= 16 * size
    for _ in range(2):  # the second time in the middle of it
        pair.cut()
        pair.resume()
        for _ in range(20):
            pair.pump(100_000)
    assert sum(again for _, again in pair.server.resumed) >= 16 * size
    assert sum(again for _, again in pair.client.resumed) >= 16 * size
    pair.make_willing()
    pair.end_all()
    pair.settle()
    pair.check_complete()
    pair.check_all_over()


def test_a_window_that_grew_to_32_mib_is_cut_and_changes_hands():
    """Ring and window are as large as they come when link and worker are lost."""
    pair = SessionPair(64 << 20, max_streams=8)
    for side in pair.sides:
        side.let_windows_grow()
    visit = pair.must_open()
    pair.make_willing()
    for _ in range(7):  # each window is used up twice
        visit.visitor.write(24 << 20)
        pair.settle()
    assert pair.client.session.windows.granted_bytes == MAX_WINDOW_BYTES
    visit.target.appetite = 0
    visit.visitor.write(40 << 20)
    pair.settle()
    assert pair.server.arena.used_bytes == MAX_WINDOW_BYTES
    assert visit.target.stream.received - visit.target.taken == MAX_WINDOW_BYTES

    pair.cut()
    pair.die(pair.server)
    pair.resume()
    pair.settle()
    assert pair.server.resumed[-1][1] >= MAX_WINDOW_BYTES
    pair.make_willing()
    pair.end_all()
    pair.settle()
    pair.check_complete()
    pair.check_all_over()
