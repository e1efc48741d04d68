"""What a forked child has of its master."""

from __future__ import annotations

import gc
import os

import pytest

from tunneltcp.master.spawn import run_helper


@pytest.fixture
def no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Garbage:
    """Refers to itself, and closes a descriptor when the collector finds it."""

    def __init__(self, fd):
        self.fd, self.knot = fd, self

    def __del__(self):
        os.close(self.fd)


@pytest.mark.usefixtures("no_collector")
def test_garbage_of_the_master_closes_nothing_of_its_child():
    number = os.open(os.devnull, os.O_RDONLY)
    Garbage(number)

    def work():
        while os.open(os.devnull, os.O_RDONLY) < number:
            pass
        gc.collect()
        os.fstat(number)
        return "still open"

    assert run_helper(work, 10) == "still open"
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)  # it was garbage: here, it is found
