"""The real server and a client that was written from docs/PROTOCOL.md alone.

First the client's own program with visitors, then a link that is driven by hand: what the
document promises about owners, frames and errors. Where both go wrong in the same way a
test of tunneltcp with itself would not notice.
"""

from __future__ import annotations

import itertools
import os
import re
import secrets
import signal
import socket
import ssl
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.interop import client
from tests.interop.client import (
    CREDIT,
    DATA,
    FIN,
    GOAWAY,
    OPEN,
    PING,
    PONG,
    RESET,
    STATE,
    SYNC,
)
from tests.support.apps import BANNER, Apps, refused_port
from tests.support.pattern import pattern
from tests.support.ports import free_port, free_ports
from tests.support.processes import Master
from tests.support.sockets import (
    accept,
    connect,
    expect_end,
    expect_pattern,
    expect_reset,
    listener,
    receive_all,
    receive_exactly,
    reset,
)
from tests.support.visitors import Load
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCUMENT = Path(__file__).parents[2] / "docs" / "PROTOCOL.md"

_TCP_CLOSE = 7  # a state of TCP_INFO: a reset came; after a clean end it would be another

_numbers = itertools.count(1)

# The client's program.


class Program:
    """The second client as a process; its end is asked for and checked."""

    def __init__(self, port: int, folder: Path, *words: str) -> None:
        self.output = folder / f"client-{port}-{next(_numbers)}.txt"
        command = [sys.executable, "-I", "-S", client.__file__, "--control"]
        if "--identity" not in words:  # one machine: it need not wait for who was here before
            words = (*words, "--identity", f"{ME.host}:{client.Identity().run}")
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [*command, "--server", "127.0.0.1", "--port", str(port), *words],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def lines(self) -> list[str]:
        """What it said so far, and nothing else: no traceback, no warning."""
        lines = self.output.read_text().splitlines()
        assert all(re.match("(up|resumed|down|refused) ", line) for line in lines), lines
        return lines

    def wait_up(self, count: int = 1) -> str:
        """Wait for that many links in all; return the session of the last."""

        def sessions() -> list[str]:
            pairs = [line.split(maxsplit=1) for line in self.lines()]
            return [rest for word, rest in pairs if word in ("up", "resumed")]

        wait_until(
            lambda: len(sessions()) >= count, 10, lambda: f"link {count}: {self.lines()}"
        )
        return sessions()[count - 1]

    def tell(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(word.encode() + b"\n")
        self.process.stdin.flush()

    def __enter__(self) -> Program:
        self.wait_up()
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            assert self.process.wait(5) == 0, self.output.read_text()
        finally:
            self.process.kill()
            self.process.wait()
        self.lines()


class Tunnels(NamedTuple):
    """The public ports of one server, by who is their client, and what stands behind."""

    master: Master
    ports: dict[str, int]
    folder: Path
    target: socket.socket
    """Where the streams of ``manual`` come out."""
    program: Program
    """The client of ``manual``."""

    def open(self) -> tuple[socket.socket, socket.socket]:
        """A visitor of ``manual``, and its connection at the target."""
        visitor = connect(self.ports["manual"])
        return visitor, accept(self.target)


@pytest.fixture(scope="module")
def tunnels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tunnels]:
    """A server, the client of ``manual``, and other ports that have no client yet."""
    names = ("raw", "again", "echo", "pattern", "banner", "refused", "manual")
    folder = tmp_path_factory.mktemp("interop")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    tunnels = [{"remote_port": port, "name": name} for name, port in ports.items()]
    # Streams that a test has left behind are not waited for at the end.
    config = {"tunnels": tunnels, "auth": "none", "drain": 0}
    with listener() as target, Master("server", config, folder / "server") as master:
        where = f"127.0.0.1:{target.getsockname()[1]}"
        with Program(ports["manual"], folder, "--target", where) as program:
            yield Tunnels(master, ports, folder, target, program)


@pytest.fixture(scope="module")
def echo(tunnels: Tunnels) -> Iterator[int]:
    """The public port of a client that is the echo itself."""
    with Program(tunnels.ports["echo"], tunnels.folder, "--echo"):
        yield tunnels.ports["echo"]


@pytest.fixture(scope="module")
def programs(tunnels: Tunnels) -> Iterator[dict[str, Program]]:
    """Clients with targets, by the kind of these."""
    kinds = ("pattern", "banner")
    with Apps() as running, refused_port() as refused:
        where = {kind: running.add(kind) for kind in kinds} | {"refused": refused}
        with ExitStack() as stack:
            found = {
                kind: Program(
                    tunnels.ports[kind], tunnels.folder, "--target", f"127.0.0.1:{port}"
                )
                for kind, port in where.items()
            }
            for program in found.values():
                stack.enter_context(program)
            yield found


@pytest.fixture(scope="module")
def apps(tunnels: Tunnels, programs: dict[str, Program]) -> dict[str, int]:
    """Public ports of these."""
    assert programs
    return tunnels.ports


@pytest.fixture(scope="module")
def load() -> Iterator[Load]:
    with Load() as running:
        yield running


def echo_of_pattern(port: int, seed: int, size: int) -> None:
    """Send, finish sending, and get everything back in its place, and then the end."""
    with connect(port) as visitor, ThreadPoolExecutor(1) as pool:

        def send() -> None:
            for offset in range(0, size, 100_000):
                visitor.sendall(pattern(seed, offset, min(100_000, size - offset)))
            visitor.shutdown(socket.SHUT_WR)

        sending = pool.submit(send)
        expect_pattern(visitor, seed, size)
        expect_end(visitor)
        sending.result(10)


def echoes(visitor: socket.socket, text: bytes = b"hello") -> None:
    visitor.sendall(text)
    assert receive_exactly(visitor, len(text)) == text


def test_visitors_at_once_each_get_their_own_bytes_back(echo: int) -> None:
    with ThreadPoolExecutor(6) as pool:
        sizes = (4_000_000, 4_000_001, 3_999_999, 65_536, 1, 0)
        ends = [
            pool.submit(echo_of_pattern, echo, seed, size) for seed, size in enumerate(sizes)
        ]
        for end in ends:
            end.result(20)


@pytest.mark.parametrize("flags", ["", "e", "r", "f"])
def test_much_both_ways_with_an_app(apps: dict[str, int], load: Load, flags: str) -> None:
    """Who finishes first: nobody waits, the visitor, the visitor before the answer, the app."""
    load.transfer("a", apps["pattern"], count=3, up=3_000_000, down=4_000_000, flags=flags)
    stats = load.finish("a", 20)

    assert stats.outcomes == {"ok": 3}, stats.errors


def test_fifty_visitors_with_small_questions(echo: int, load: Load) -> None:
    load.probe("small", echo, count=50, size=10, rounds=10)
    stats = load.finish("small", 20)

    assert stats.outcomes == {"ok": 50}, stats.errors


def test_half_closed_streams_stay_open(tunnels: Tunnels) -> None:
    for first, second in ((0, 1), (1, 0)):
        ends = tunnels.open()
        with ends[0], ends[1]:
            ends[first].shutdown(socket.SHUT_WR)
            expect_end(ends[second])
            for index in range(10):
                ends[second].sendall(pattern(1, index * 1000, 1000))
                assert receive_exactly(ends[first], 1000) == pattern(1, index * 1000, 1000)
            ends[second].shutdown(socket.SHUT_WR)
            expect_end(ends[first])


@pytest.mark.parametrize("who", [0, 1], ids=["visitor", "target"])
def test_a_reset_stays_a_reset(tunnels: Tunnels, who: int) -> None:
    ends = tunnels.open()
    with ends[0], ends[1]:
        ends[0].sendall(b"hello")
        assert receive_exactly(ends[1], 5) == b"hello"
        ends[1].sendall(b"answer")
        assert receive_exactly(ends[0], 6) == b"answer"
        reset(ends[who])
        assert expect_reset(ends[1 - who]) == 0


def test_a_target_that_refuses_is_a_reset(apps: dict[str, int]) -> None:
    with connect(apps["refused"]) as visitor:
        visitor.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert expect_reset(visitor) == 0


def test_a_target_that_speaks_first_is_heard(apps: dict[str, int]) -> None:
    with connect(apps["banner"]) as visitor:
        assert receive_exactly(visitor, len(BANNER)) == BANNER
        echoes(visitor)


@pytest.mark.parametrize("who", [0, 1], ids=["visitor", "target"])
def test_who_does_not_read_stops_the_other_end_and_nobody_else(
    tunnels: Tunnels, who: int
) -> None:
    ends = tunnels.open()
    with ends[0], ends[1]:
        slow, busy = ends[who], ends[1 - who]
        sent = 0
        busy.settimeout(0.3)
        with suppress(TimeoutError):
            while sent < 64 << 20:
                sent += busy.send(pattern(7, sent, 1 << 18))
        assert 32_768 <= sent < 64 << 20, "nothing held it back"

        others = tunnels.open()
        with others[0], others[1]:
            others[0].sendall(b"question")
            assert receive_exactly(others[1], 8) == b"question"

        busy.shutdown(socket.SHUT_WR)
        expect_pattern(slow, 7, sent)
        expect_end(slow)


def test_a_dropped_link_is_a_pause(tunnels: Tunnels) -> None:
    port = tunnels.ports["again"]
    with Program(port, tunnels.folder, "--echo") as program, connect(port) as visitor:
        session = program.wait_up()
        for count in range(2, 5):
            echoes(visitor)
            program.tell("drop")
            assert program.wait_up(count) == session
        echoes(visitor)
        visitor.shutdown(socket.SHUT_WR)
        expect_end(visitor)
        words = [line.split()[0] for line in program.lines()]
        assert words == ["up", *["down", "resumed"] * 3]


def test_busy_streams_go_on_over_dropped_links(
    tunnels: Tunnels, apps: dict[str, int], programs: dict[str, Program], load: Load
) -> None:
    program, port = programs["pattern"], apps["pattern"]
    links = len([line for line in program.lines() if line.startswith(("up ", "resumed "))])
    load.transfer("busy", port, count=10, up=2_000_000, down=2_000_000)
    moved = 0
    for count in range(1, 9):
        before = moved
        wait_until(lambda before=before: load.stats("busy").down > before + 300_000, 10)  # type: ignore[misc]
        moved = load.stats("busy").down
        program.tell("drop")
        program.wait_up(links + count)
    stats = load.finish("busy")

    assert stats.outcomes == {"ok": 10}, stats.errors
    assert program.lines()[-1].startswith("resumed ")


def test_what_the_ends_did_in_the_pause(tunnels: Tunnels) -> None:
    """The client is stopped for a while: its visitors finish, reset, and speak meanwhile."""
    program = tunnels.program
    links = len([line for line in program.lines() if line.startswith(("up ", "resumed "))])
    (one, far_one), (two, far_two), (three, far_three) = (tunnels.open() for _ in range(3))
    with one, far_one, two, far_two, three, far_three:
        for visitor, far in ((one, far_one), (two, far_two), (three, far_three)):
            visitor.sendall(b"hello")
            assert receive_exactly(far, 5) == b"hello"
        os.kill(program.process.pid, signal.SIGSTOP)
        try:
            one.sendall(b"the end")
            one.shutdown(socket.SHUT_WR)
            reset(two)
            far_three.sendall(b"from the target")
            far_three.shutdown(socket.SHUT_WR)
            program.tell("drop")
        finally:
            os.kill(program.process.pid, signal.SIGCONT)
        program.wait_up(links + 1)
        assert receive_exactly(far_one, 7) == b"the end"
        expect_end(far_one)
        far_one.sendall(b"and yours")
        assert receive_exactly(one, 9) == b"and yours"
        expect_reset(far_two)
        assert receive_exactly(three, 15) == b"from the target"
        expect_end(three)


def test_a_forgotten_session_resets_its_visitors_and_the_next_serves(tunnels: Tunnels) -> None:
    port = tunnels.ports["again"]
    with Program(port, tunnels.folder, "--echo") as program, connect(port) as cut:
        first = program.wait_up()
        echoes(cut)
        program.tell("forget")
        assert expect_reset(cut) == 0

        assert program.wait_up(2) != first
        echo_of_pattern(port, 3, 100_000)
        assert [line.split()[0] for line in program.lines()] == ["up", "down", "up"]


def test_after_goaway_running_streams_finish_and_new_visitors_wait(tunnels: Tunnels) -> None:
    port = tunnels.ports["again"]
    with Program(port, tunnels.folder, "--echo") as leaving, connect(port) as running:
        echoes(running)
        leaving.tell("drain")
        wait_until(lambda: "is leaving" in tunnels.master.log_text(f"tunnel-{port}.log"), 5)
        with connect(port) as waiting:
            waiting.sendall(b"hello")
            wait_until(lambda: tunnels.master.tunnel(port)["held"] == 1, 5)
            echoes(running, b"still there")
            running.shutdown(socket.SHUT_WR)
            expect_end(running)
            assert leaving.process.wait(5) == 0
            assert leaving.lines()[-1] == "down drained"
            with Program(port, tunnels.folder, "--echo"):
                assert receive_exactly(waiting, 5) == b"hello"


def test_all_that_works_without_tls_too(tmp_path: Path, load: Load) -> None:
    port = free_port()
    config = {"tls": False, "auth": "none", "tunnels": [{"remote_port": port}]}
    with (
        Master("server", config, tmp_path / "server"),
        Program(port, tmp_path, "--echo", "--plain"),
    ):
        echo_of_pattern(port, 1, 3_000_000)
        load.probe("small", port, count=20, size=10, rounds=10)
        assert load.finish("small", 20).outcomes == {"ok": 20}


def test_who_speaks_tls_to_a_plain_server_is_refused(tmp_path: Path) -> None:
    """And the other way round: see the prefaces below."""
    port = free_port()
    config = {"tls": False, "auth": "none", "tunnels": [{"remote_port": port}]}
    with Master("server", config, tmp_path / "server"), connect(port) as sock:
        first = client.preface(
            client.port_key(port), port, secrets.token_bytes(16), flags=client.TLS_FLAG
        )
        with pytest.raises(client.RefusedError) as caught:
            client.shake_hands(sock, port, client.Identity(), first=first, tls=False)
        assert (caught.value.code, caught.value.proven) == ("tls", False)


# A link that is driven by hand.


class Frame(NamedTuple):
    kind: int
    stream: int
    value: int
    payload: bytes


class RawLink:
    """A link whose every frame the test sends and sees; only PINGs are answered unasked."""

    def __init__(self, port: int, me: client.Identity, **hello: object) -> None:
        self.port, self.me = port, me
        self.buffer = bytearray()
        self.sock = connect(port)
        try:
            self.sock, self.welcome = client.shake_hands(self.sock, port, me, **hello)  # type: ignore[arg-type]
        except BaseException:
            self.sock.close()
            raise

    def __enter__(self) -> RawLink:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, kind: int, stream: int = 0, value: int = 0, payload: bytes = b"") -> None:
        self.sock.sendall(client.frame(kind, stream, value, payload))

    def send_reset(self, stream: int, code: int) -> None:
        self.send(RESET, stream, 0, struct.pack(">H", code))

    def send_credit(self, stream: int, delivered: int, limit: int, flags: int = 0) -> None:
        self.send(CREDIT, stream, delivered, struct.pack(">QB", limit, flags))

    def receive(self, timeout: float = 5.0) -> Frame | None:
        """The next frame; None: the server closed; TimeoutError: nothing but PINGs came."""
        deadline = time.monotonic() + timeout
        while True:
            found = client.take_frame(self.buffer)
            if found is None:
                self.sock.settimeout(max(0.0001, deadline - time.monotonic()))
                data = self.sock.recv(1 << 18)
                if not data:
                    return None
                self.buffer += data
            elif found[0] == PING:
                with suppress(ConnectionError, ssl.SSLError):
                    self.send(PONG, 0, found[2])
            else:
                return Frame(*found)

    def expect(self, kind: int, stream: int = 0, *, after: tuple[int, ...] = ()) -> Frame:
        """The next frame, which has to be of this type and stream.

        Args:
            after: Types that may come before it.
        """
        while (found := self.receive()) is not None and found.kind in after:
            pass
        assert found is not None, "the server closed"
        assert (found.kind, found.stream) == (kind, stream), found
        return found

    def ask(self) -> list[Frame]:
        """Send a PING, then another; return what came before both PONGs.

        What went out before the first has had its effect when the second is answered.
        """
        found = []
        for value in (4711, 4712):
            self.send(PING, 0, value)
            while (one := self.receive()) != Frame(PONG, 0, value, b""):
                assert one is not None, "the server closed"
                found.append(one)
        return found

    def open(self, said: bytes = b"hello") -> tuple[socket.socket, int, int]:
        """A new visitor that said something; its stream, and the first limit towards it."""
        visitor = connect(self.port)
        visitor.sendall(said)
        opened = self.receive()
        assert opened is not None
        assert opened.kind == OPEN
        self.send_credit(opened.stream, 0, client.WINDOW_BYTES)
        data = self.expect(DATA, opened.stream)
        assert (data.value, data.payload) == (0, said)
        return visitor, opened.stream, opened.value


ME = client.Identity()
"""Each test's link replaces that of the one before at once, for it is of the same run."""


@pytest.fixture
def link(tunnels: Tunnels) -> Iterator[RawLink]:
    with RawLink(tunnels.ports["raw"], ME) as one:
        yield one


def expect_was_reset(visitor: socket.socket) -> None:
    """Wait for the reset of a connection, also of one whose direction was over already."""

    def state() -> int:
        return visitor.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]

    wait_until(lambda: state() == _TCP_CLOSE, 5, lambda: f"reset; state {state()}")


def test_the_worked_example_of_the_document() -> None:
    key = client.port_key(60001)
    preface = client.preface(key, 60001, bytes(16))
    document = "".join(DOCUMENT.read_text().split())

    assert key.hex() == "e2cf8cced0764996addc4bbaf05ab69da9d77a45e8c91bfe8e68c0b4fda944a1"
    assert client.key_id(key).hex() == "43432123e792361d"
    assert preface.hex() == (
        "89545443500d0a1a0100ea6100000000000000000000000000000000"
        "6c5de7691be65c2e85d0c977dcdcc84c"
    )
    assert f"portkey{key.hex()}" in document
    assert f"keyid{client.key_id(key).hex()}" in document
    assert f"preface{preface[:28].hex()}(nonceof16zerobytes){preface[28:].hex()}" in document
    assert client.port_key(60001, " \n") == key


@contextmanager
def false_server(*messages: bytes) -> Iterator[socket.socket]:
    """A connection to somebody who has said these already."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for body in messages:
            theirs.sendall(struct.pack(">H", len(body)) + body)
        yield ours


CHALLENGE = b'{"type": "challenge", "version": 1, "nonce": "%s"}' % (b"00" * 32)


@pytest.mark.parametrize("mac", [b"", bytes(32)], ids=["no", "wrong"])
def test_the_client_believes_no_welcome_without_the_mac(mac: bytes) -> None:
    welcome = b'{"type": "welcome", "limits": {"payload": 262144}}'
    with (
        false_server(CHALLENGE, welcome + mac) as sock,
        pytest.raises(client.LinkError, match="MAC"),
    ):
        client.shake_hands(sock, 60001, client.Identity(), tls=False)


@pytest.mark.parametrize("before", [(), (CHALLENGE,)], ids=["at-once", "after-proof"])
@pytest.mark.parametrize("mac", [b"", bytes(32)], ids=["no", "wrong"])
def test_the_client_takes_a_refusal_without_the_mac_as_a_hint(
    before: tuple[bytes, ...], mac: bytes
) -> None:
    refused = b'{"type": "refused", "code": "in_use"}'
    with (
        false_server(*before, refused + mac) as sock,
        pytest.raises(client.RefusedError) as caught,
    ):
        client.shake_hands(sock, 60001, client.Identity(), tls=False)
    assert (caught.value.code, caught.value.proven) == ("in_use", False)


# Keys, versions and owners: §3 to §5.


def refusal(port: int, me: client.Identity, **changes: object) -> client.RefusedError:
    with pytest.raises(client.RefusedError) as caught, RawLink(port, me, **changes):
        pass
    return caught.value


def test_welcome_says_what_the_document_says(link: RawLink) -> None:
    welcome = link.welcome
    assert re.fullmatch("[0-9a-f]{32}", welcome["session"])
    assert (welcome["epoch"], welcome["resumed"]) == (1, False)
    assert welcome["limits"]["payload"] == 262_144
    assert 0 < len(welcome["agent"]) <= 64


def test_a_wrong_preface_is_refused_without_a_mac(link: RawLink) -> None:
    port = link.port
    right, wrong = client.port_key(port), client.port_key(port, "wrong")
    nonces = [secrets.token_bytes(16) for _ in range(3)]
    prefaces = {
        "denied": client.preface(wrong, port, nonces[0], flags=client.TLS_FLAG),
        "version": client.preface(right, port, nonces[1], version=2, flags=client.TLS_FLAG),
        "tls": client.preface(right, port, nonces[2], flags=0),
    }
    for code, first in prefaces.items():
        error = refusal(port, client.Identity(), first=first, tls=False)
        assert (error.code, error.proven) == (code, False)
    assert link.ask() == []


def test_a_wrong_proof_is_denied_without_a_mac(link: RawLink) -> None:
    """Also to who has the right preface, the right key id, or the key but another id."""
    port, key, wrong = (
        link.port,
        client.port_key(link.port),
        client.port_key(link.port, "wrong"),
    )
    one, other = (
        client.preface(key, port, secrets.token_bytes(16), flags=client.TLS_FLAG)
        for _ in range(2)
    )
    for changes in (
        {"first": one, "key": wrong},
        {"first": other, "key": wrong, "key_id": client.key_id(key).hex()},
        {"key_id": client.key_id(wrong).hex()},
    ):
        error = refusal(port, client.Identity(), **changes)
        assert (error.code, error.proven) == ("denied", False)
    assert link.ask() == []


def test_no_common_version_is_refused(link: RawLink) -> None:
    error = refusal(link.port, client.Identity(), versions=[2, 3])
    assert (error.code, error.proven) == ("version", False)


def test_a_later_version_of_the_client_is_understood(link: RawLink) -> None:
    """Version 1 among others, and fields that nobody knows yet."""
    with RawLink(link.port, link.me, versions=[2, 1], colour={"of": ["the", "sky"]}) as later:
        assert later.ask() == []


def test_a_newer_link_of_the_same_run_takes_over(link: RawLink) -> None:
    visitor, _, _ = link.open()
    with visitor, RawLink(link.port, link.me) as newer:
        assert newer.welcome["session"] != link.welcome["session"]
        assert link.receive() is None
        assert expect_reset(visitor) == 0
        other, _, _ = newer.open()
        other.close()


def test_another_run_is_refused_while_the_owner_answers(tunnels: Tunnels) -> None:
    port = tunnels.ports["again"]
    with Program(port, tunnels.folder, "--echo") as owner, ThreadPoolExecutor(1) as pool:
        with connect(port) as visitor:
            answer = pool.submit(refusal, port, client.Identity())
            while not answer.done():  # signs of life, whenever the server may ask for one
                echoes(visitor)
            echoes(visitor)
        error = answer.result()
        assert (error.code, error.proven) == ("in_use", True)
        assert error.holder == tunnels.master.tunnel(port)["link"]["peer"]
        assert len(owner.lines()) == 1


def test_another_run_is_refused_though_the_owner_has_just_come(link: RawLink) -> None:
    """It answers whatever PING comes, and says nothing else."""
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(refusal, link.port, client.Identity())
        while not answer.done():
            with suppress(TimeoutError):
                assert link.receive(0.1) is not None, "the owner lost its link"
    assert answer.result().code == "in_use"


def test_a_ghost_loses_the_port(link: RawLink) -> None:
    """The owner is connected and says nothing; its machine comes with a new run."""
    with RawLink(link.port, client.Identity(link.me.host)) as newcomer:
        assert newcomer.ask() == []
        assert link.receive() is None


def test_a_link_that_was_silent_first_is_still_a_link(link: RawLink) -> None:
    """The server has taken it for a visitor, and takes that back."""
    with connect(link.port) as late:
        opened = link.receive()
        assert opened is not None
        assert opened.kind == OPEN
        secured, _ = client.shake_hands(late, link.port, link.me)
        with secured:
            assert link.expect(RESET, opened.stream).payload == b"\0\1"
            assert link.receive() is None


def test_a_link_that_came_too_late_is_reset(link: RawLink) -> None:
    with connect(link.port) as late:
        opened = link.receive()
        assert opened is not None
        link.send(DATA, opened.stream, 0, b"banner")
        assert receive_exactly(late, 6) == b"banner"
        late.sendall(
            client.preface(client.port_key(link.port), link.port, secrets.token_bytes(16))
        )
        link.expect(RESET, opened.stream, after=(CREDIT,))
        assert expect_reset(late) == 0


# Frames: §6 to §8.


def test_open_says_who_came_and_ids_rise(link: RawLink) -> None:
    last = 0
    for _ in range(3):
        with connect(link.port) as visitor:
            visitor.sendall(b"x")
            opened = link.receive()
            assert opened is not None
            assert opened.kind == OPEN
            assert client.addresses(opened.payload) == [
                visitor.getsockname(),
                visitor.getpeername(),
            ]
            assert opened.stream > last
            last = opened.stream
            link.expect(DATA, last)
            reset(visitor)
            assert link.expect(RESET, last) == Frame(RESET, last, 0, b"\0\1")
            link.send_reset(last, 0)


def test_a_stream_from_open_to_the_last_credit(link: RawLink) -> None:
    visitor, stream, limit = link.open(b"question")
    with visitor:
        assert limit >= 6
        visitor.shutdown(socket.SHUT_WR)
        assert link.expect(FIN, stream).value == 8
        link.send_credit(stream, 8, 8 + client.WINDOW_BYTES, client.FIN_DELIVERED)
        link.send(DATA, stream, 0, b"answer")
        assert receive_exactly(visitor, 6) == b"answer"
        delivered = link.expect(CREDIT, stream)
        assert (delivered.value, delivered.payload[8]) == (6, 0)
        assert int.from_bytes(delivered.payload[:8], "big") >= limit
        link.send(FIN, stream, 6)
        expect_end(visitor)
        last = link.expect(CREDIT, stream)
        assert (last.value, last.payload[8]) == (6, client.FIN_DELIVERED)
    # It is forgotten: frames are ignored, only RESET is answered.
    link.send(DATA, stream, 0, b"again")
    link.send_credit(stream, 8, 100_000)
    link.send_reset(stream, 0)
    assert link.ask() == []
    link.send_reset(stream, 1)
    assert link.ask() == [Frame(RESET, stream, 0, b"\0\0")]


def test_the_server_keeps_to_the_clients_limits(tunnels: Tunnels) -> None:
    """The first one is that of HELLO, and one lower than the one before is ignored."""
    with RawLink(tunnels.ports["raw"], ME, window=1000) as link, connect(link.port) as visitor:
        visitor.sendall(pattern(1, 0, 100_000))
        visitor.shutdown(socket.SHUT_WR)
        opened = link.receive()
        assert opened is not None
        came = highest = 0
        for limit in (1000, 1001, 50_000, 40_000, 60_000, 200_000):
            link.send_credit(opened.stream, came // 2, limit)
            highest = max(highest, limit)
            while came < min(highest, 100_000):
                data = link.expect(DATA, opened.stream)
                assert data.value == came
                assert data.payload == pattern(1, came, len(data.payload))
                came += len(data.payload)
                assert came <= highest
        assert link.expect(FIN, opened.stream).value == 100_000


def test_data_beyond_the_limit_is_a_reset(link: RawLink) -> None:
    """Of a visitor that does not read, so that the limit stops rising."""
    visitor, stream, _ = link.open()
    with visitor:
        sent = 0
        found: Frame | None = None
        while found is None or found.kind == CREDIT:
            assert sent < 128 << 20, "no limit holds"
            link.sock.settimeout(5)
            link.send(DATA, stream, sent, bytes(1 << 18))
            sent += 1 << 18
            with suppress(TimeoutError):
                found = link.receive(0)
        assert found == Frame(RESET, stream, 0, b"\0\4")
        link.send_reset(stream, 0)
        expect_was_reset(visitor)
        assert link.ask() == []


@pytest.mark.parametrize("code", [1, 2, 3, 6, 99])
def test_a_reset_of_the_client_resets_the_visitor_and_is_answered(
    link: RawLink, code: int
) -> None:
    visitor, stream, _ = link.open()
    with visitor:
        link.send(DATA, stream, 0, b"last words")
        link.send_reset(stream, code)
        assert link.expect(RESET, stream).payload == b"\0\0"
        assert expect_reset(visitor) == 10


def test_resets_that_cross_are_both_answered(link: RawLink) -> None:
    visitor, stream, _ = link.open()
    reset(visitor)
    link.expect(RESET, stream)
    link.send_reset(stream, 1)
    assert link.ask() == [Frame(RESET, stream, 0, b"\0\0")]
    link.send_reset(stream, 0)
    assert link.ask() == []


@pytest.mark.parametrize(
    "lines",
    [
        [(DATA, 1, b"x")],
        [(DATA, 1 << 63, b"x")],
        [(DATA, 0, b"x"), (DATA, 0, b"x")],
        [(DATA, 0, b"x"), (FIN, 1, b""), (DATA, 1, b"x")],
        [(DATA, 0, b"x"), (FIN, 0, b"")],
        [(DATA, 0, b"x"), (FIN, 2, b"")],
        [(DATA, 0, b"x"), (FIN, 1, b""), (FIN, 2, b"")],
        [(CREDIT, 6, struct.pack(">QB", 1 << 20, 0))],
        [(CREDIT, 5, struct.pack(">QB", 4, 0))],
        [(CREDIT, 5, struct.pack(">QB", (1 << 62) + 1, 0))],
        [(CREDIT, 5, struct.pack(">QB", 1 << 20, 1))],
    ],
    ids=[
        "gap",
        "huge-offset",
        "twice",
        "data-after-fin",
        "fin-too-low",
        "fin-too-high",
        "two-fins",
        "delivered-too-high",
        "limit-below-delivered",
        "limit-too-high",
        "fin-flag-before-fin",
    ],
)
def test_what_cannot_be_true_resets_one_stream(
    link: RawLink, lines: list[tuple[int, int, bytes]]
) -> None:
    visitor, stream, _ = link.open()
    other, beside, _ = link.open()
    with visitor, other:
        for kind, value, payload in lines:
            link.send(kind, stream, value, payload)
        assert link.expect(RESET, stream, after=(CREDIT,)).payload == b"\0\4"
        expect_was_reset(visitor)
        link.send(DATA, stream, 0, b"until the answer all is ignored")
        link.send_reset(stream, 0)
        link.send(DATA, beside, 0, b"alive")
        assert receive_exactly(other, 5) == b"alive"


@pytest.mark.parametrize(
    ("kind", "ahead", "payload"),
    [
        (0, 0, b""),
        (11, 0, b""),
        (DATA, 0, b""),
        (FIN, 0, b"x"),
        (RESET, 0, b"x"),
        (CREDIT, 0, bytes(8)),
        (SYNC, 0, bytes(4)),
        (STATE, 0, bytes(9)),
        (PING, None, b"x"),
        (PING, 0, b""),
        (PONG, 0, b""),
        (GOAWAY, 0, b"\0\0"),
        (DATA, None, b"x"),
        (RESET, None, b"\0\1"),
        (OPEN, 1, b"\0\0"),
        (DATA, 1, b"x"),
        (RESET, 1, b"\0\1"),
    ],
)
def test_what_breaks_the_protocol_ends_the_session(
    link: RawLink, kind: int, ahead: int | None, payload: bytes
) -> None:
    """For a stream that is there, for one ``ahead`` of the highest, or (None) for id 0."""
    visitor, stream, _ = link.open()
    with visitor:
        link.send(kind, 0 if ahead is None else stream + ahead, 0, payload)
        goaway = link.expect(GOAWAY)
        assert goaway.payload == b"\0\1"
        assert goaway.value == stream
        assert link.receive() is None
        assert expect_reset(visitor) == 0


def test_too_long_data_ends_the_session_before_it_came(link: RawLink) -> None:
    visitor, stream, _ = link.open()
    with visitor:
        link.sock.sendall(struct.pack(">QQ", DATA << 60 | 262_145 << 40 | stream, 0))
        assert link.expect(GOAWAY).payload == b"\0\1"
        assert link.receive() is None
        assert expect_reset(visitor) == 0


def test_a_server_that_stops_says_so_and_lets_visitors_finish(tmp_path: Path) -> None:
    port = free_port()
    with (
        Master("server", {"ports": port, "auth": "none"}, tmp_path) as master,
        RawLink(port, ME) as link,
    ):
        visitor, stream, _ = link.open()
        with visitor:
            master.send(signal.SIGTERM)
            assert link.expect(GOAWAY).payload == b"\0\0"
            link.send(DATA, stream, 0, b"bye")
            link.send(FIN, stream, 3)
            visitor.shutdown(socket.SHUT_WR)
            assert receive_all(visitor) == b"bye"
            assert link.expect(FIN, stream, after=(CREDIT,)).value == 5
            link.send_credit(stream, 5, client.WINDOW_BYTES, client.FIN_DELIVERED)
        assert master.wait() == 0


# A session that is resumed by hand.


def go_on(link: RawLink, *states: tuple[int, int, int, int]) -> RawLink:
    """Come back with the session of a link; tell these states (id, delivered, limit, flags)."""
    again = RawLink(link.port, ME, session=link.welcome["session"])
    assert again.welcome["resumed"]
    sync = again.expect(SYNC)
    count = int.from_bytes(sync.payload, "big")
    told = [again.receive() for _ in range(count)]
    assert all(one is not None and one.kind == STATE for one in told), told
    again.send(SYNC, 0, sync.value, struct.pack(">I", len(states)))
    for stream, delivered, limit, flags in states:
        again.send(STATE, stream, delivered, struct.pack(">QB", limit, flags))
    return again


LIMIT = client.WINDOW_BYTES


def test_a_resumed_link_sends_again_what_was_not_delivered(link: RawLink) -> None:
    visitor, stream, limit = link.open(b"hello there")
    with visitor:
        link.send(DATA, stream, 0, b"answer")
        assert receive_exactly(visitor, 6) == b"answer"
        epoch = link.welcome["epoch"]
        with RawLink(link.port, ME, session=link.welcome["session"]) as again:
            assert (again.welcome["resumed"], again.welcome["epoch"]) == (True, epoch + 1)
            assert link.receive() is None, "the older link is closed without GOAWAY"
            assert again.receive() == Frame(SYNC, 0, stream, b"\0\0\0\1")
            state = again.expect(STATE, stream)
            assert state.value == 6, "so much was delivered"
            assert struct.unpack(">QB", state.payload) == (limit + 6, 0)
            again.send(SYNC, 0, stream, b"\0\0\0\1")
            assert again.ask() == [], "nothing of a stream comes before its STATE"
            again.send(STATE, stream, 3, struct.pack(">QB", LIMIT, 0))
            assert again.expect(DATA, stream) == Frame(DATA, stream, 3, b"lo there")
            again.send(DATA, stream, 6, b" and more")
            assert receive_exactly(visitor, 9) == b" and more"


@pytest.mark.parametrize(
    ("delivered", "limit", "flags"),
    [
        (6, 1 << 20, 0),
        (1, 1 << 20, 0),
        (1 << 63, 1 << 63, 0),
        (5, 4, 0),
        (5, (1 << 62) + 1, 0),
        (5, 1 << 20, 1),
    ],
    ids=[
        "more-than-was-sent",
        "less-than-before",
        "huge",
        "limit-below-delivered",
        "limit-too-high",
        "fin-flag-before-fin",
    ],
)
def test_a_state_that_cannot_be_true_resets_one_stream(
    link: RawLink, delivered: int, limit: int, flags: int
) -> None:
    visitor, stream, _ = link.open()
    other, beside, _ = link.open()
    with visitor, other:
        link.send_credit(stream, 2, LIMIT)
        link.ask()
        states = (stream, delivered, limit, flags), (beside, 5, LIMIT, 0)
        with go_on(link, *states) as again:
            assert again.expect(RESET, stream).payload == b"\0\4"
            expect_was_reset(visitor)
            again.send_reset(stream, 0)
            again.send(DATA, beside, 0, b"alive")
            assert receive_exactly(other, 5) == b"alive"


def test_what_a_client_does_not_list_was_reset_there(link: RawLink) -> None:
    visitor, stream, _ = link.open()
    other, beside, _ = link.open()
    with (
        visitor,
        other,
        go_on(link, (beside, 5, LIMIT, 0), (stream + 99, 0, LIMIT, 0)) as again,
    ):
        expect_was_reset(visitor)
        assert again.ask() == [], "nobody is told"
        again.send(DATA, beside, 0, b"alive")
        assert receive_exactly(other, 5) == b"alive"


def test_an_open_that_the_client_never_took_comes_again(link: RawLink) -> None:
    with connect(link.port) as visitor:
        visitor.sendall(b"hello")
        opened = link.receive()
        assert opened is not None
        assert opened.kind == OPEN
        with RawLink(link.port, ME, session=link.welcome["session"]) as again:
            again.expect(SYNC)
            again.expect(STATE, opened.stream)
            again.send(SYNC, 0, opened.stream - 1, bytes(4))
            assert again.expect(OPEN, opened.stream) == opened
            again.send_credit(opened.stream, 0, LIMIT)
            assert again.expect(DATA, opened.stream).payload == b"hello"


@pytest.mark.parametrize(
    "lines",
    [
        [(PING, 0, 0, b"")],
        [(SYNC, 0, 99, bytes(4))],
        [(SYNC, 0, 0, struct.pack(">I", 65_537))],
        [(SYNC, 0, 0, struct.pack(">I", 1)), (SYNC, 0, 0, bytes(4))],
        [(SYNC, 0, 0, bytes(4)), (STATE, 0, 5, struct.pack(">QB", LIMIT, 0))],
    ],
    ids=[
        "no-sync",
        "id-above-the-highest",
        "too-many-states",
        "two-syncs",
        "unannounced-state",
    ],
)
def test_a_resume_that_breaks_the_protocol_ends_the_session(
    link: RawLink, lines: list[tuple[int, int, int, bytes]]
) -> None:
    """``value`` is above the highest id for SYNC; a STATE is that of the one stream."""
    visitor, stream, _ = link.open()
    with visitor, RawLink(link.port, ME, session=link.welcome["session"]) as again:
        again.expect(SYNC)
        again.expect(STATE, stream)
        for kind, _number, value, payload in lines:
            if kind == SYNC:
                again.send(SYNC, 0, stream + value, payload)
            else:
                again.send(kind, stream if kind == STATE else 0, value, payload)
        goaway = again.expect(GOAWAY, after=(RESET,))
        assert goaway.payload == b"\0\1"
        expect_was_reset(visitor)
    with RawLink(link.port, ME, session=link.welcome["session"]) as newer:
        assert not newer.welcome["resumed"]


def test_a_late_duplicate_of_an_old_attempt_is_stale_and_harms_nobody(link: RawLink) -> None:
    visitor, stream, _ = link.open()
    with visitor:
        for number in (ME.attempt, ME.attempt - 1, 0):
            late = refusal(link.port, ME, attempt=number, session=link.welcome["session"])
            assert (late.code, late.proven) == ("stale", True)
        link.send(DATA, stream, 0, b"alive")
        assert receive_exactly(visitor, 5) == b"alive"


def test_the_session_of_another_run_is_not_resumed(link: RawLink) -> None:
    visitor, _stream, _ = link.open()
    stranger = client.Identity(ME.host, client.Identity().run)
    link.sock.close()
    with visitor, RawLink(link.port, stranger, session=link.welcome["session"]) as other:
        assert not other.welcome["resumed"]
        assert other.welcome["session"] != link.welcome["session"]
        expect_was_reset(visitor)
