"""Who asks the master, and that nobody who does can disturb it."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest

from tests.support.leaks import Snapshot
from tests.support.require import require_root
from tunneltcp.control.codec import FrameDecoder, encode_frame
from tunneltcp.master.control_socket import ControlSocket
from tunneltcp.net.loop import Loop


class Bench:
    def __init__(self, path):
        self.now = 0.0
        self.loop = Loop(max_sleep_seconds=0.0, clock=lambda: self.now)
        self.path = path
        self.control = ControlSocket(self.loop, path, self.answer)
        self.open: list[socket.socket] = []
        self.size = 10

    def answer(self, request, respond):
        if request.get("op") == "later":
            self.respond = respond
        else:
            respond({"asked": request, "filler": "x" * self.size})

    def connect(self) -> socket.socket:
        made = socket.socket(socket.AF_UNIX)
        made.settimeout(2)
        made.connect(str(self.path))
        self.open.append(made)
        self.turn()
        return made

    def turn(self, count=4):
        for _ in range(count):
            self.loop.turn()

    def pass_time(self, seconds):
        self.now += seconds
        self.turn()

    def close(self):
        for made in self.open:
            made.close()
        self.turn()
        self.control.close()
        self.loop.close()


@pytest.fixture
def bench(tmp_path):
    before = Snapshot.take()
    made = Bench(tmp_path / "control.sock")
    yield made
    made.close()
    assert not before.new_descriptors()
    assert not made.path.exists()


def is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(10) == b""
    except ConnectionResetError:
        return True


def test_another_user_gets_no_answer_even_if_the_folder_lets_him_in(bench, monkeypatch):
    require_root()
    bench.path.parent.chmod(0o711)
    bench.path.chmod(0o666)
    monkeypatch.chdir(bench.path.parent)  # those above it are closed to others
    stranger = socket.socket(socket.AF_UNIX)
    bench.open.append(stranger)
    stranger.settimeout(2)
    os.seteuid(65_534)
    try:
        stranger.connect(bench.path.name)
        stranger.send(encode_frame({"op": "status"}))
    finally:
        os.seteuid(0)
    bench.turn()
    assert is_closed(stranger)


def test_a_question_in_pieces_gets_its_answer(bench):
    connection = bench.connect()
    for byte in encode_frame({"op": "status"}):
        connection.send(bytes([byte]))
        bench.turn()
    assert FrameDecoder().feed(connection.recv(1 << 16))[0]["asked"] == {"op": "status"}
    assert bench.path.stat().st_mode & 0o777 == 0o600


def test_a_large_answer_to_a_slow_reader(bench):
    bench.size = 900_000
    connection = bench.connect()
    connection.send(encode_frame({}))
    decoder = FrameDecoder()
    got: list[Any] = []
    while not got:
        bench.turn()
        got = decoder.feed(connection.recv(50_000))
    assert len(got[0]["filler"]) == 900_000


def test_an_answer_that_is_too_large_is_an_error_and_not_a_crash(bench):
    bench.size = 2_000_000
    connection = bench.connect()
    connection.send(encode_frame({}))
    bench.turn()
    assert "too long" in FrameDecoder().feed(connection.recv(1 << 16))[0]["error"]


@pytest.mark.parametrize("garbage", [b"\xff" * 8, b"\0\0\0\2[]", b"GET / HTTP/1.0\r\n\r\n"])
def test_garbage_is_hung_up_on(bench, garbage):
    connection = bench.connect()
    connection.send(garbage)
    bench.turn()
    assert is_closed(connection)


def test_an_oversize_request_is_hung_up_on(bench):
    connection = bench.connect()
    connection.send((1 << 19).to_bytes(4, "big"))
    for _ in range(20):
        connection.send(b"x" * 4000)
        bench.turn()
        if bench.control._connections == set():
            break
    assert is_closed(connection)


def test_one_who_never_asks_and_one_who_never_reads_go_after_five_seconds(bench):
    silent, deaf = bench.connect(), bench.connect()
    bench.size = 900_000
    deaf.send(encode_frame({}))
    bench.pass_time(4.9)
    assert len(bench.control._connections) == 2
    bench.pass_time(0.2)
    assert is_closed(silent)
    assert bench.control._connections == set()


def test_who_asked_for_what_takes_long_is_answered_when_it_is_done(bench):
    """A reload that reads a slow disk: it was done, and said to have failed."""
    patient = bench.connect()
    patient.send(encode_frame({"op": "later"}))
    bench.turn()
    answer = bench.respond
    bench.pass_time(59)
    answer({"added": []})
    assert FrameDecoder().feed(patient.recv(1000)) == [{"added": []}]
    bench.pass_time(5.1)
    assert is_closed(patient)


def test_who_asked_for_what_never_comes_goes_after_a_minute(bench):
    asking = bench.connect()
    asking.send(encode_frame({"op": "later"}))
    bench.turn()
    bench.pass_time(60.1)
    assert is_closed(asking)
    bench.respond({"too": "late"})


def test_the_seventeenth_is_refused_and_comes_in_later(bench):
    first = [bench.connect() for _ in range(16)]
    assert is_closed(bench.connect())
    first[0].close()
    bench.turn()
    connection = bench.connect()
    connection.send(encode_frame({}))
    bench.turn()
    assert FrameDecoder().feed(connection.recv(1000))


def test_who_goes_before_the_answer_harms_nobody(bench):
    connection = bench.connect()
    connection.send(encode_frame({}))
    connection.close()
    bench.turn()
    assert bench.control._connections == set()


def test_a_path_too_long_for_an_address(tmp_path):
    folder = tmp_path / ("d" * 100) / ("e" * 100)
    folder.mkdir(parents=True)
    loop = Loop(max_sleep_seconds=0.0)
    control = ControlSocket(
        loop, folder / "control.sock", lambda request, respond: respond(request)
    )
    assert (folder / "control.sock").is_socket()
    control.close()
    loop.close()


def test_a_socket_left_by_a_crash_is_replaced(tmp_path):
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(path))
    loop = Loop(max_sleep_seconds=0.0)
    ControlSocket(loop, path, lambda request, respond: respond(request)).close()
    loop.close()


def test_who_comes_while_it_pauses_is_answered_later_and_by_whoever_has_it_then(tmp_path):
    path, loop = tmp_path / "control.sock", Loop(max_sleep_seconds=0.0)
    first = ControlSocket(loop, path, lambda _request, respond: respond({"by": "first"}))
    first.pause()
    first.pause()
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(str(path))
        asking.send(encode_frame({}))
        for _ in range(3):
            loop.turn()
        assert first.is_idle, "nobody was let in"
        other = Loop(max_sleep_seconds=0.0)
        next_one = ControlSocket(
            other, path, lambda _request, respond: respond({"by": "next"}), os.dup(first.fd)
        )
        for _ in range(3):
            other.turn()
        assert not next_one.is_idle
        asking.settimeout(2)
        assert FrameDecoder().feed(asking.recv(1000)) == [{"by": "next"}]
        first.resume()
        first.resume()
        next_one.close()
        with socket.socket(socket.AF_UNIX) as refused, pytest.raises(OSError, match="No such"):
            refused.connect(str(path))
    first.close()
    loop.close()
    other.close()
