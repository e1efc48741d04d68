"""One session whose peer is the test: frames go in by hand, frames come out to be read."""

from __future__ import annotations

import pytest

from tests.support import frame_factory as make
from tests.support.frame_factory import split_frames
from tests.support.session_pair import End, Side

MIB = 1 << 20


class Bench:
    """A session and the frames that its peer would send."""

    def __init__(self, role="client", *, budget=4 * MIB, max_streams=8, first_limit=32_768):
        self.side = Side(
            role, budget, max_streams, opens=role == "server", first_limit=first_limit
        )
        self.session = self.side.session
        self.ends = {}
        self.refuses = False
        self.side.accept = self._accept

    def _accept(self, stream, addresses):
        end = End(f"target {stream.id}", 2 * stream.id, 2 * stream.id + 1, connected=True)
        end.start(stream)
        self.ends[stream.id] = end
        if self.refuses:
            end.fail()
        return end

    def open(self, *, quietly=True):
        """A stream, opened by whoever opens; its end, after what it says at first."""
        if self.session.opens:
            end = End("visitor", 0, 1, connected=True)
            stream = self.session.open_stream(end, 7, make.addresses(1))
            if stream is None:
                return None
            end.start(stream)
            self.ends[stream.id] = end
        else:
            self.feed(make.open_(self.session.last_id + 1))
            end = self.ends[self.session.last_id]
        end.appetite = 1 << 30
        if quietly:
            self.sent()
        return end

    def feed(self, *pieces):
        """Receive frames; they must be whole."""
        whole = bytearray(b"".join(pieces))
        assert self.session.receive(memoryview(whole), len(whole)) == len(whole)
        whole[:] = bytes(len(whole))

    def sent(self):
        """The frames of the next batch."""
        return split_frames(self.session.data_to_send())

    def sweep(self):
        """Let a stream be quiet for the time that CREDIT waits."""
        self.session.sweep()
        self.session.sweep()


@pytest.fixture(params=["client", "server"])
def bench(request):
    """The rules that hold on both sides."""
    return Bench(request.param)


@pytest.fixture
def client():
    """The side that is told of visitors."""
    return Bench("client")


@pytest.fixture
def server():
    """The side that opens."""
    return Bench("server")


@pytest.fixture
def new_bench():
    """The class, for other sizes."""
    return Bench
