"""The options of sockets, and what they mean for whoever is at the far end."""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from contextlib import closing, suppress
from pathlib import Path

import pytest

from tests.support.congestion import congestion_of, require_congestion
from tests.support.fake_peer import tcp_pair
from tests.support.sockets import expect_reset, receive_all
from tunneltcp.master.resources import open_listeners
from tunneltcp.net.address import peer_address
from tunneltcp.net.sockopt import (
    CONNECT_BEGUN,
    LINK_TIMEOUT_MS,
    LINK_UNSENT_BYTES,
    TCP_NOTSENT_LOWAT,
    UNSENT_BYTES,
    accept,
    close_cleanly,
    cookie,
    error_text,
    gather_send,
    is_connected_to_itself,
    new_socket,
    prepare_connection,
    prepare_link,
    prepare_listener,
    unpace,
    unpace_if_near,
)

TCP, SOL = socket.IPPROTO_TCP, socket.SOL_SOCKET


def options(sock: socket.socket) -> dict[str, int | tuple[int, int]]:
    onoff, seconds = struct.unpack("ii", sock.getsockopt(SOL, socket.SO_LINGER, 8))
    return {
        "nodelay": int(bool(sock.getsockopt(TCP, socket.TCP_NODELAY))),
        "keepalive": sock.getsockopt(SOL, socket.SO_KEEPALIVE),
        "idle": sock.getsockopt(TCP, socket.TCP_KEEPIDLE),
        "interval": sock.getsockopt(TCP, socket.TCP_KEEPINTVL),
        "count": sock.getsockopt(TCP, socket.TCP_KEEPCNT),
        "oobinline": sock.getsockopt(SOL, socket.SO_OOBINLINE),
        "notsent_lowat": sock.getsockopt(TCP, TCP_NOTSENT_LOWAT),
        "user_timeout": sock.getsockopt(TCP, socket.TCP_USER_TIMEOUT),
        "linger": (onoff, seconds),
    }


CONNECTION = {
    "nodelay": 1,
    "keepalive": 1,
    "idle": 60,
    "interval": 10,
    "count": 6,
    "oobinline": 1,
    "notsent_lowat": 128 * 1024,
    "user_timeout": 0,  # it kills who merely does not read
    "linger": (1, 0),  # whoever dies with it open resets it
}


@pytest.fixture
def prepared_pair():
    """A connection whose first end is prepared as a visitor's or a target's is."""
    one, other = tcp_pair()
    prepare_connection(one)
    other.settimeout(5)
    yield one, other
    one.close()
    other.close()


def test_a_connection_has_all_options():
    with socket.socket() as sock:
        prepare_connection(sock)
        assert options(sock) == CONNECTION
    assert CONNECTION["notsent_lowat"] == UNSENT_BYTES


def test_who_is_near_needs_no_keepalive():
    with socket.socket() as sock:
        default = options(sock)
        prepare_connection(sock, is_near=True)
        assert options(sock) == CONNECTION | {
            name: default[name] for name in ("keepalive", "idle", "interval", "count")
        }


class TestPacing:
    """What spreads packets over time costs half of the speed where there is no path."""

    @pytest.mark.parametrize(
        ("begins", "is_near", "ends"),
        [
            ("bbr", True, "reno"),
            ("bbr", False, "bbr"),
            ("cubic", True, "cubic"),
            ("reno", True, "reno"),
        ],
    )
    def test_is_for_who_is_far(self, begins, is_near, ends):
        require_congestion(begins)
        with socket.socket() as sock:
            sock.setsockopt(TCP, socket.TCP_CONGESTION, begins.encode())
            prepare_connection(sock, is_near=is_near)
            assert congestion_of(sock) == ends

    @pytest.mark.parametrize(
        ("address", "ends"),
        [
            (("127.0.0.1", 80), "reno"),
            (("::ffff:127.0.0.1", 80, 0, 0), "reno"),
            (("::1", 80, 0, 0), "reno"),
            (("192.0.2.7", 80), "bbr"),
        ],
    )
    def test_ends_for_an_accepted_connection_that_is_near(self, address, ends):
        require_congestion("bbr")
        one, other = tcp_pair()
        with one, other:
            one.setsockopt(TCP, socket.TCP_CONGESTION, b"bbr")
            unpace_if_near(one, address)
            assert congestion_of(one) == ends
            one.sendall(b"still here")
            assert other.recv(20) == b"still here"

    def test_that_cannot_be_changed_stays(self):
        sock = socket.socket()
        sock.close()
        unpace(sock)
        with socket.socket(socket.AF_UNIX) as sock:
            unpace(sock)


def listener_of_net(host: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    prepare_listener(listener)
    listener.bind((host, 0))
    listener.listen()
    return listener


def listener_of_master(host: str) -> socket.socket:
    return socket.socket(fileno=open_listeners(0, [host])[0])


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("make", [listener_of_net, listener_of_master])
def test_accepted_sockets_inherit_all_options(make, host):
    with make(host) as listener, socket.create_connection(listener.getsockname()[:2]):
        listener.setblocking(True)
        accepted, _ = listener.accept()
        with accepted:
            assert options(accepted) == CONNECTION


def test_a_link_accepted_as_if_it_were_a_visitor_gets_the_options_of_a_link(prepared_pair):
    one, _ = prepared_pair
    prepare_link(one)
    found = options(one)
    assert found["linger"] == (0, 0)
    assert found["nodelay"] == 1
    assert found["keepalive"] == 1
    assert found["notsent_lowat"] == LINK_UNSENT_BYTES
    assert found["user_timeout"] == LINK_TIMEOUT_MS


def test_close_cleanly_sends_all_bytes_and_fin(prepared_pair):
    one, other = prepared_pair
    size = 0
    with suppress(BlockingIOError):
        while True:
            size += one.send(bytes(65536))
    assert size > 65536
    close_cleanly(one)
    assert len(receive_all(other)) == size


def test_close_cleanly_of_what_is_over_at_both_ends_sends_nothing_more(prepared_pair):
    one, other = prepared_pair
    one.send(b"all of it")
    one.shutdown(socket.SHUT_WR)
    other.shutdown(socket.SHUT_WR)
    assert one.recv(10) == b""
    close_cleanly(one)
    assert receive_all(other) == b"all of it"
    assert other.getsockopt(SOL, socket.SO_ERROR) == 0


def test_closing_otherwise_sends_rst(prepared_pair):
    one, other = prepared_pair
    one.send(b"half of an answer")
    one.close()
    expect_reset(other)


def test_close_cleanly_of_a_connection_that_was_reset_is_harmless(prepared_pair):
    one, other = prepared_pair
    prepare_connection(other)
    other.close()
    close_cleanly(one)
    assert one.fileno() == -1
    close_cleanly(one)


class TestConnectedToItself:
    @staticmethod
    def closed_even_port() -> int:
        """A port that outgoing connections may get (Linux gives them the even ones first
        or last, by version; connecting from the same port makes it sure)."""
        low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
        for port in range(low + low % 2 + 1000, high, 2):
            with socket.socket() as probe:
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError:
                    continue
                return port
        raise AssertionError("no port is free")

    def test_is_recognised(self):
        port = self.closed_even_port()
        with socket.socket() as sock:
            sock.setsockopt(SOL, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", port))
            sock.connect(("127.0.0.1", port))
            sock.send(b"echo")
            assert sock.recv(10) == b"echo"
            assert is_connected_to_itself(sock, peer_address(sock))

    @pytest.mark.slow
    def test_happens_to_who_dials_a_closed_port_again_and_again(self):
        """Design §9: so it is worth a check at all. Bounded: not each kernel does it."""
        low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
        port = self.closed_even_port()
        for _ in range(2 * (high - low)):
            with socket.socket() as sock:
                if sock.connect_ex(("127.0.0.1", port)) == 0:
                    assert is_connected_to_itself(sock, peer_address(sock))
                    return
        pytest.skip("this kernel never chose the port that was dialled")

    def test_is_not_said_of_others(self, prepared_pair):
        one, other = prepared_pair
        assert not is_connected_to_itself(one, peer_address(one))
        assert not is_connected_to_itself(other, peer_address(other))

    def test_is_not_said_of_one_without_an_end(self):
        with socket.socket() as sock:
            assert not is_connected_to_itself(sock, peer_address(sock))


class TestCookie:
    def test_is_what_the_kernel_says_and_differs(self, prepared_pair):
        one, other = prepared_pair
        said = struct.unpack("=Q", one.getsockopt(SOL, 57, 8))[0]
        assert cookie(one) == said > 0
        assert cookie(one) == cookie(one)
        assert cookie(one) != cookie(other)

    def test_stays_with_the_socket_when_the_number_changes(self, prepared_pair):
        one, _ = prepared_pair
        with one.dup() as copy:
            assert cookie(copy) == cookie(one)

    def test_is_0_for_who_is_closed(self):
        sock = socket.socket()
        sock.close()
        assert cookie(sock) == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_who_is_accepted_waits_for_nothing(host):
    with listener_of_net(host) as listener:
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            accept(listener)
        with socket.create_connection(listener.getsockname()[:2]) as visitor:
            sock, address = accept(listener)
            with closing(sock):
                assert address == visitor.getsockname()
                assert not sock.getblocking()
                assert not os.get_blocking(sock.fileno())
                assert not os.get_inheritable(sock.fileno())
                assert (sock.family, sock.type) == (listener.family, socket.SOCK_STREAM)


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_new_socket_waits_for_nothing(family, platform, monkeypatch):
    monkeypatch.setattr(sys, "platform", platform)
    with closing(new_socket(family)) as sock:
        assert not sock.getblocking()
        assert not os.get_blocking(sock.fileno())
        assert (sock.family, sock.type) == (family, socket.SOCK_STREAM)


def test_a_connect_that_goes_on_has_begun_and_one_without_a_port_has_not():
    assert errno.EINPROGRESS in CONNECT_BEGUN
    assert errno.EAGAIN not in CONNECT_BEGUN, "on Linux that is a failure: nothing goes on"


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_a_list_is_sent_as_one(prepared_pair, platform, monkeypatch):
    one, other = prepared_pair
    monkeypatch.setattr(sys, "platform", platform)
    assert gather_send(one)([b"ab", memoryview(b"cd")]) == 4
    assert other.recv(10) == b"abcd"


def test_errors_have_the_words_of_this_system():
    for code in (errno.ECONNREFUSED, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.EMFILE):
        assert error_text(code) == os.strerror(code)
