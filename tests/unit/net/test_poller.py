"""What a loop waits with; ``test_loop.py`` runs the loop itself on each of them."""

from __future__ import annotations

import select
import selectors
import socket

import pytest

from tunneltcp.net.poller import READ, WRITE, PortablePoller, new_poller

SELECTORS = [selectors.PollSelector, selectors.SelectSelector, selectors.DefaultSelector]


@pytest.fixture(params=SELECTORS)
def poller(request):
    made = PortablePoller(request.param())
    yield made
    made.close()


@pytest.fixture
def pair():
    one, other = socket.socketpair()
    yield one, other
    one.close()
    other.close()


def test_on_linux_it_is_epoll_itself_with_nothing_between():
    poller = new_poller()
    assert type(poller) is select.epoll
    assert (READ, WRITE) == (select.EPOLLIN, select.EPOLLOUT)
    poller.close()


def test_says_what_is_ready_and_nothing_else(poller, pair):
    one, other = pair
    poller.register(one.fileno(), READ)
    assert poller.poll(0) == []
    other.send(b"x")
    assert poller.poll(5) == [(one.fileno(), READ)]
    poller.modify(one.fileno(), READ | WRITE)
    assert poller.poll(0) == [(one.fileno(), READ | WRITE)]
    poller.modify(one.fileno(), WRITE)
    assert poller.poll(0) == [(one.fileno(), WRITE)]
    poller.unregister(one.fileno())
    assert poller.poll(0) == []


def test_a_failed_connect_wakes_who_waits_to_write(poller):
    with socket.socket() as nobody, socket.socket() as sock:
        nobody.bind(("127.0.0.1", 0))  # bound, and does not listen
        sock.setblocking(False)
        sock.connect_ex(nobody.getsockname())
        poller.register(sock.fileno(), WRITE)
        assert poller.poll(5) == [(sock.fileno(), WRITE)]
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def test_a_wrong_descriptor_is_an_error_as_with_epoll(poller):
    with pytest.raises((KeyError, OSError, ValueError)):
        poller.unregister(999)
