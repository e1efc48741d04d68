"""Listeners and memory: the options that everything above relies on."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from contextlib import contextmanager

import pytest

from tests.support.leaks import Snapshot
from tests.support.ports import free_port
from tunneltcp.master import resources
from tunneltcp.master.resources import (
    PortBusy,
    computed_budget,
    make_memory,
    open_listeners,
)


@contextmanager
def listeners(port, *addresses):
    sockets = [socket.socket(fileno=fd) for fd in open_listeners(port, addresses)]
    try:
        yield sockets
    finally:
        for sock in sockets:
            sock.close()


def test_accepted_sockets_inherit_what_was_set_on_the_listener():
    port = free_port()
    with listeners(port, "127.0.0.1") as (listener,):
        assert listener.getblocking() is False or not listener.gettimeout()
        with socket.create_connection(("127.0.0.1", port)):
            listener.setblocking(True)
            visitor, _ = listener.accept()
        with visitor:
            tcp, sol = socket.IPPROTO_TCP, socket.SOL_SOCKET
            found = {
                name: visitor.getsockopt(level, number)
                for name, level, number in (
                    ("nodelay", tcp, socket.TCP_NODELAY),
                    ("idle", tcp, socket.TCP_KEEPIDLE),
                    ("interval", tcp, socket.TCP_KEEPINTVL),
                    ("count", tcp, socket.TCP_KEEPCNT),
                    ("notsent", tcp, socket.TCP_NOTSENT_LOWAT),
                    ("keepalive", sol, socket.SO_KEEPALIVE),
                    ("oob", sol, socket.SO_OOBINLINE),
                )
            }
            linger = struct.unpack("ii", visitor.getsockopt(sol, socket.SO_LINGER, 8))
    assert found == {
        "nodelay": 1, "idle": 60, "interval": 10, "count": 6,
        "notsent": 131_072, "keepalive": 1, "oob": 1,
    }  # fmt: skip
    assert linger == (1, 0)


def test_both_families_on_one_port():
    port = free_port()
    with listeners(port, "0.0.0.0", "::") as (first, second):
        assert (first.family, second.family) == (socket.AF_INET, socket.AF_INET6)
        assert second.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1
        assert not os.get_inheritable(first.fileno())


def test_a_busy_port_keeps_none():
    port = free_port()
    before = Snapshot.take()
    with socket.create_server(("::1", port), family=socket.AF_INET6):
        with pytest.raises(PortBusy, match=f"port {port} is busy") as caught:
            open_listeners(port, ("127.0.0.1", "::1"))
        assert caught.value.in_use
    assert not before.new_descriptors()


def test_a_missing_ipv6_address_is_left_out_if_another_is_there():
    port = free_port()
    with listeners(port, "127.0.0.1", "2001:db8::1") as sockets:
        assert len(sockets) == 1
    with pytest.raises(PortBusy, match="cannot listen on 2001:db8::1") as caught:
        open_listeners(port, ("2001:db8::1",))
    assert not caught.value.in_use
    with pytest.raises(PortBusy, match=r"cannot listen on 192\.0\.2\.1"):
        open_listeners(port, ("192.0.2.1",))


def test_nobody_changes_the_size_of_the_memory():
    fd = make_memory("test", 8192)
    try:
        assert os.fstat(fd).st_size == 8192
        for size in (0, 4096, 16_384):
            with pytest.raises(PermissionError):
                os.ftruncate(fd, size)
        with pytest.raises(PermissionError):
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("machine", "tunnels", "budget"),
    [(16 << 30, 1, 64 << 20), (512 << 20, 4, 32 << 20), (512 << 20, 50, 4 << 20),
     (8 << 30, 0, 64 << 20)],
)  # fmt: skip
def test_the_budget(monkeypatch, machine, tunnels, budget):
    monkeypatch.setattr(resources, "_machine_bytes", lambda: machine)
    assert computed_budget(tunnels) == budget


def test_the_machine_has_some_memory():
    assert resources._machine_bytes() > 64 << 20


def test_limits_of_a_cgroup_and_of_those_around_it(tmp_path):
    inner = tmp_path / "a/b"
    inner.mkdir(parents=True)
    (inner / "memory.max").write_text("max\n")
    (tmp_path / "a/memory.max").write_text("1000\n")
    (tmp_path / "memory.max").write_text("3000\n")
    assert resources._limits(tmp_path, "/a/b", "memory.max") == [1000, 3000]
