"""Where names lead, from one client's worker to the next."""

from __future__ import annotations

import os
import socket
from dataclasses import replace

import pytest

from tests.support.fake_master import _context
from tunneltcp.control.context import MEMORY_BYTES, RECORDS_BYTES, Role
from tunneltcp.control.counters import COUNTERS_BYTES
from tunneltcp.master.resources import make_memory
from tunneltcp.net.address import unpack_address
from tunneltcp.protocol.table import StreamTable
from tunneltcp.relay.memory import TunnelMemory
from tunneltcp.workers.known import pack_known, unpack_known
from tunneltcp.workers.successor import ClientSuccessor

CONTEXT = replace(
    _context(Role.CLIENT, 60001),
    server_host="vps.example",
    link_port=60001,
    target_host="db.example",
    target_port=5432,
    crash_safe=True,
    keeper_pid=1,
)
V4 = (socket.AF_INET, ("192.0.2.1", 60001))
V6 = (socket.AF_INET6, ("fe80::1", 60001, 0, 2))
TARGET = (socket.AF_INET6, ("2001:db8::5", 5432, 0, 0))


@pytest.mark.parametrize(
    ("server", "target"), [([], []), ([V4], []), ([V6, V4], [TARGET]), ([], [TARGET] * 5)]
)
def test_they_come_back(server, target):
    packed = pack_known(CONTEXT, server, target).ljust(256, b"\0")
    assert unpack_known(CONTEXT, packed) == (server, target)


def test_those_for_which_there_is_no_room_are_left_out():
    packed = pack_known(CONTEXT, [V4] * 9, [TARGET] * 9)
    assert len(packed) <= 256
    assert unpack_known(CONTEXT, packed) == ([V4] * 5, [TARGET] * 5)


@pytest.mark.parametrize(
    "other",
    [{"server_host": "x"}, {"link_port": 1}, {"target_host": "y"}, {"target_port": 1}],
)
def test_of_other_names_nothing_is_known(other):
    packed = pack_known(CONTEXT, [V4], [TARGET])
    assert unpack_known(replace(CONTEXT, **other), packed) == ([], [])


def test_what_was_damaged_is_not_believed():
    packed = bytearray(pack_known(CONTEXT, [V4], [TARGET]).ljust(256, b"\0"))
    for at in range(10 + 2 * 21):
        broken = packed.copy()
        broken[at] ^= 0x40
        assert unpack_known(CONTEXT, bytes(broken)) == ([], [])
    assert unpack_known(CONTEXT, bytes(256)) == ([], [])
    assert unpack_known(CONTEXT, b"\xff" * 256) == ([], [])


def test_a_worker_stores_what_it_is_told(world):
    names = {"server_host": "vps.example", "target_host": "db.example"}
    bench = world.client(60001, 5432, **names)
    for host, port, address in (("vps.example", 60001, V4), ("db.example", 5432, TARGET)):
        where = [address[0], address[1][0], port, 0]
        bench.say(type="addresses", host=host, port=port, addresses=[where])
    world.settle()
    owner = bench.worker.memory.table.owner
    assert unpack_known(bench.worker.context, owner) == ([V4], [TARGET])


def test_a_successor_connects_where_the_one_before_it_was_about_to(world):
    """Its target has a name, which nobody looks up for it; it knows the visitor too."""
    app = world.app()
    context = replace(CONTEXT, target_port=app.port, server_host="127.0.0.1", link_port=1)
    fds = make_memory("counters", COUNTERS_BYTES), make_memory("memory", MEMORY_BYTES)
    before = TunnelMemory(fds[1], MEMORY_BYTES, RECORDS_BYTES, 1 << 22).table
    target = (socket.AF_INET, ("127.0.0.1", app.port))
    before.set_owner(pack_known(context, [], [target]))
    before.set_session(bytes(range(16)), 1)
    record = before.take(5, 0)
    before.set_address(record, b"\4\xc0\0\2\7" + (4711).to_bytes(2, "big"))
    before.note_id(5)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    worker = ClientSuccessor(
        replace(context, channel_fd=theirs.detach(), counters_fd=fds[0], memory_fd=fds[1])
    )
    try:
        worker.begin()
        world.stepper.loops.append(worker.loop)
        world.until(lambda: app.peers)
        assert [one.address for one in worker.all_visitors()] == ["192.0.2.7:4711"]
    finally:
        worker.close()
        ours.close()
        for fd in fds:
            os.close(fd)


@pytest.mark.parametrize(
    ("packed", "text"),
    [
        (b"\4\x7f\0\0\1\xff\xff\0", "127.0.0.1:65535"),
        (b"\6" + bytes(15) + b"\1" + b"\0\x50", "[::1]:80"),
        (b"\0", "unknown"),
        (b"\4\x7f", "unknown"),
    ],
)
def test_a_record_knows_its_visitor_and_nothing_of_the_one_before(packed, text):
    table = StreamTable(memoryview(bytearray(4096 + 64)))
    record = table.take(1, 0)
    table.set_address(record, packed)
    assert unpack_address(table.address(record)) == text
    table.give(record)
    assert table.take(2, 0) == record
    assert unpack_address(table.address(record)) == "unknown"
