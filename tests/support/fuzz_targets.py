"""What can be fuzzed: each target eats any bytes, and raises only if that is a finding.

The documented errors of each part are no findings, everything else is: another exception, a
link for who has no key, a buffer beyond its bound. Hypothesis runs these in each test run,
``scripts/fuzz`` for as long as it is told to.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from tests.support import frame_factory as make
from tests.support.session_pair import Side
from tunneltcp.control.codec import (
    MAX_FRAME_BYTES,
    FrameDecoder,
    decode_message,
    encode_frame,
    encode_message,
)
from tunneltcp.errors import ControlChannelError
from tunneltcp.master.messages import parse_message
from tunneltcp.protocol.errors import RemoteProtocolError, ResetCode
from tunneltcp.protocol.frames import FIN_DELIVERED
from tunneltcp.protocol.handshake import (
    MAX_HANDSHAKE_BYTES,
    ClientHandshake,
    ServerHandshake,
    Stage,
)
from tunneltcp.protocol.messages import Hello
from tunneltcp.protocol.messages import encode_message as encode_handshake
from tunneltcp.protocol.preface import (
    MAGIC,
    PREFACE_BYTES,
    make_preface,
    parse_preface,
    port_key,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from tunneltcp.protocol.stream import Stream

__all__ = ["MAX_INPUT_BYTES", "SEEDS", "TARGETS"]

MAX_INPUT_BYTES: Final = 16 * 1024
"""Longer ones find nothing more, and are slow."""

_PORT: Final = 60001
_KEY: Final = port_key("the token of the fuzzer, which it does not know", _PORT)
_NONCES: Final = bytes(range(48))
_BUDGET: Final = 1 << 20
_STREAMS: Final = 4
_FIRST_ID: Final = 2**32 - 2
"""Two of the streams take the quick path through the receiver, the others cannot."""
_MOST_OUT: Final = 4 << 20
"""Bytes that a session may answer to one input: its rings, and a bounded queue of answers."""


def _pieces(data: bytes) -> Iterator[bytes]:
    """Cut: the first byte says how."""
    size = (1, 3, 16, 17, 100, 1 << 12, 1 << 20, 1 << 20)[data[0] & 7] if data else 1
    rest = data[1:]
    for start in range(0, len(rest), size):
        yield rest[start : start + size]


# --------------------------------------------------------------------------- preface


def fuzz_preface(data: bytes) -> None:
    """The first 44 bytes: nobody makes a right one without the key."""
    whole = (MAGIC + data)[:PREFACE_BYTES].ljust(PREFACE_BYTES, b"\0")
    found = parse_preface(whole, (bytes(32), _KEY))
    assert found.key is None, "a right MAC without the key"
    assert make_preface(_KEY, found.port, found.nonce, tls=found.tls) != whole


# ------------------------------------------------------------------------- handshake

_HELLO: Final = Hello(
    agent="fuzz/1",
    host_id="11" * 16,
    run_id="22" * 16,
    port=_PORT,
    window=32_768,
    session=None,
    attempt=1,
)


def _server() -> ServerHandshake:
    preface = make_preface(_KEY, _PORT, _NONCES[:16])
    return ServerHandshake(
        preface,
        agent="fuzz/1",
        port=_PORT,
        keys=(_KEY,),
        nonce=bytes(32),
        stand_in_key=bytes(range(32)),
    )


def _hello() -> bytes:
    client = ClientHandshake(_HELLO, _KEY, _NONCES)
    return client.data_to_send()[PREFACE_BYTES:]


def _challenge() -> bytes:
    server = _server()
    server.receive(_hello())
    return server.data_to_send()


def _shake(end: ServerHandshake | ClientHandshake, data: bytes) -> None:
    said = len(end.data_to_send())
    with suppress(RemoteProtocolError):
        for piece in _pieces(data):
            end.receive(piece)
            said += len(end.data_to_send())
            done = end.stage not in (Stage.WAITING, Stage.CHALLENGED)
            assert done or len(end.rest) <= MAX_HANDSHAKE_BYTES + len(piece), "not bounded"
    assert end.stage in (Stage.WAITING, Stage.CHALLENGED, Stage.REFUSED), end.stage
    assert said < MAX_HANDSHAKE_BYTES, "it says more than it may"


def fuzz_server(data: bytes) -> None:
    """A server's end; an odd first byte: behind a right HELLO."""
    end = _server()
    if data and data[0] & 8:
        end.receive(_hello())
    _shake(end, data)


def fuzz_client(data: bytes) -> None:
    """A client's end; its first byte says how far it has come, and whether over TLS."""
    flags = data[0] if data else 0
    end = ClientHandshake(_HELLO, _KEY, _NONCES, tls=bool(flags & 16))
    if flags & 32 and flags & 16:
        end.greet(bytes(range(32)))
    if flags & 8 and not flags & 16:
        end.receive(_challenge())
        end.prove()
    _shake(end, data)


# --------------------------------------------------------------------------- frames


class _Sink:
    """An endpoint that takes some bytes and then no more."""

    stream: Stream

    def __init__(self, appetite: int) -> None:
        self._left = appetite
        self.waiting = 0
        self._over = False

    def deliver(self, data: memoryview) -> int:
        assert len(data), "an empty delivery"
        assert not self._over, "bytes after the end"
        count = min(len(data), self._left) if not self.waiting else 0
        self._left -= count
        self.waiting += len(data) - count
        return count

    def deliver_fin(self) -> None:
        assert not self._over, "FIN after the end"
        if not self.waiting:
            self.stream.record_fin()
            self.stream.fin_done()

    def resume_reading(self) -> None:
        assert not self._over, "woken after the end"

    def drop_waiting(self) -> None:
        self.waiting = 0

    def abort(self, code: int) -> None:
        del code
        assert not self._over, "over twice"
        self._over = True

    def close(self) -> None:
        assert not self._over, "over twice"
        self._over = True


class _Bench:
    """A session with some streams, as a link drives it."""

    def __init__(self, *, opens: bool, resumed: bool, waits: bool) -> None:
        self.side = Side("fuzzed", _BUDGET, _STREAMS, opens=opens, first_limit=32_768)
        self.session = self.side.session
        self.side.table.words[5] = _FIRST_ID  # the next id of a server
        self.sinks: list[_Sink] = []
        self.side.accept = self._accept
        self._kept = b""
        for number in range(_STREAMS - 1):
            if opens:
                self._open(number)
            else:
                self.receive(make.open_(_FIRST_ID + number))
        for number, sink in enumerate(self.sinks):
            sink.stream.fill(partial(_read, 1000 * number))
            if number == 1:
                sink.stream.finish()
        self.drain()
        if resumed:
            self.lose_link()
            self.side.session.resume(32_768)
            self.drain()
        if waits:  # the link takes nothing: what is said from here on is not, for now
            self.session.sender.small_bytes = 0
        if waits and opens:
            self._open(_STREAMS - 1)

    def _open(self, number: int) -> None:
        sink = self._new_sink()
        stream = self.session.open_stream(sink, 1, make.addresses(number))
        assert stream is not None, "there is room"
        sink.stream = stream

    def _new_sink(self) -> _Sink:
        self.sinks.append(_Sink((0, 1, 3000, 1 << 30)[len(self.sinks) % 4]))
        return self.sinks[-1]

    def _accept(self, stream: Stream, addresses: bytes) -> _Sink:
        del addresses
        sink = self._new_sink()
        sink.stream = stream
        return sink

    def receive(self, piece: bytes) -> None:
        whole = bytearray(self._kept + piece)
        used = self.session.receive(memoryview(whole), len(whole))
        self._kept = bytes(whole[used:])
        assert len(self._kept) < 64, "more is left than the beginning of a small frame"

    def drain(self) -> int:
        """Take all that is to be sent; how much that was."""
        size = 0
        while batch := self.session.data_to_send():
            size += sum(map(len, batch))
            assert size <= _MOST_OUT, "answers without end"
        return size

    def lose_link(self) -> None:
        self.session.detach()
        self._kept = b""
        for sink in self.sinks:
            sink.drop_waiting()

    def check(self) -> None:
        session = self.session
        streams = session.streams.values()
        assert len(streams) <= _STREAMS
        assert all(0 <= one.acked <= one.sent <= one.head for one in streams), "books"
        granted = sum(stream.window for stream in streams)
        assert session.windows.granted_bytes == granted <= _BUDGET
        assert self.side.arena.used_bytes <= _BUDGET
        assert all(sink.waiting <= _BUDGET for sink in self.sinks)

    def close(self) -> None:
        self.session.sweep()
        self.session.abort_all(ResetCode.CANCELLED)
        self.drain()
        assert self.side.arena.used_bytes == 0, "a ring is lost"
        assert self.session.windows.granted_bytes == 0, "a grant is lost"


def _read(size: int, view: memoryview) -> int:
    return min(size, len(view))


def fuzz_frames(data: bytes) -> None:
    """A session; its first byte says whose, what its link is, and whether another follows."""
    flags = data[0] if data else 0
    bench = _Bench(opens=bool(flags & 8), resumed=bool(flags & 16), waits=flags & 129 == 129)
    with suppress(RemoteProtocolError):
        for piece in _pieces(data):
            bench.receive(piece)
            bench.check()
            if flags & 32:
                bench.drain()
            if flags & 64:
                bench.session.sweep()
        bench.drain()
    if flags & 128:  # with streams as the last one left them
        bench.lose_link()
        bench.session.begin(32_768)
        bench.drain()
    bench.check()
    bench.close()


# -------------------------------------------------------------------------- control


def fuzz_control(data: bytes) -> None:
    """Messages of a worker, and of who speaks to the control socket."""
    with suppress(ControlChannelError):
        parse_message(decode_message(data[1:]))
    decoder = FrameDecoder()
    with suppress(ControlChannelError):
        for piece in _pieces(data):
            for message in decoder.feed(piece):
                assert isinstance(message, dict)
            assert decoder.buffered_bytes <= MAX_FRAME_BYTES + 4
        waits_for = int.from_bytes(data[1:5], "big") if len(data) >= 5 else 0
        assert waits_for <= MAX_FRAME_BYTES, "it waits for more than it may keep"
        return
    assert decoder.buffered_bytes == 0, "what is broken keeps nothing"


TARGETS: Final[Mapping[str, Callable[[bytes], None]]] = {
    "preface": fuzz_preface,
    "frames": fuzz_frames,
    "server": fuzz_server,
    "client": fuzz_client,
    "control": fuzz_control,
}


def _frames() -> bytes:
    """One of each, right for stream _FIRST_ID."""
    here = _FIRST_ID
    return b"".join(
        (
            make.open_(here + 3),
            make.credit(here, 0, 1 << 16),
            make.data(here, 0, b"hello"),
            make.data(here, 5, bytes(100)),
            make.fin(here, 105),
            make.credit(here + 1, 1000, 1 << 17, FIN_DELIVERED),
            make.reset(here + 2, 1),
            make.reset(here + 1, 0),
            make.ping(7),
            make.pong(7),
            make.goaway(here, 0),
        )
    )


def _state() -> bytes:
    here = _FIRST_ID
    states = b"".join(make.state(here + number, 0, 1 << 16) for number in range(3))
    return make.sync(here + 2, 3) + states + make.data(here, 0, b"again")


_ZERO_MAC: Final = bytes(32)

SEEDS: Final[Mapping[str, Sequence[bytes]]] = {
    "preface": [make_preface(bytes(range(32)), _PORT, bytes(16))[8:], b"\x01\x01"],
    "frames": [
        *(bytes([flags | 6]) + _frames() for flags in (0, 8, 32, 40, 96, 104)),
        *(bytes([flags | 6]) + _state() for flags in (16, 24, 48, 56)),
        *(bytes([flags | 6]) + _frames() for flags in (128, 136, 137, 169)),
        b"\x8f" + make.fin(_FIRST_ID + 3, 0),  # its OPEN waits
        b"\x8e" + make.data(_FIRST_ID, 0, b"x") + make.fin(_FIRST_ID, 1),
        b"\x00" + _frames()[:200],
        b"\x0e" + make.credit(_FIRST_ID, 10, 1 << 16),  # of what was never sent
    ],
    "server": [
        b"\x06" + _hello(),
        b"\x0e" + encode_handshake({"type": "proof"}, _ZERO_MAC),
        b"\x06" + _hello() + encode_handshake({"type": "proof"}, _ZERO_MAC),
    ],
    "client": [
        b"\x06" + _challenge(),
        b"\x0e"
        + encode_handshake(
            {
                "type": "welcome",
                "agent": "a",
                "session": "33" * 16,
                "epoch": 1,
                "resumed": False,
            },
            _ZERO_MAC,
        ),
        b"\x16"
        + encode_handshake({"type": "refused", "code": "in_use", "holder": "1.2.3.4:5"}),
        b"\x36" + encode_handshake({"type": "refused", "code": "denied"}, _ZERO_MAC),
    ],
    "control": [
        b"\x06" + encode_frame({"op": "status"}) * 2,
        b"\x00" + encode_message({"type": "ready"}),
        b"\x00" + encode_message({"type": "link", "state": "up", "peer": "1.2.3.4:5"}),
        b"\x00" + encode_message({"type": "resolve", "host": "a", "port": 1}),
        b"\x00" + encode_message({"type": "answer", "number": 1, "body": {"a": [1, None]}}),
    ],
}
"""Inputs to begin with: right ones, or as right as one can be without the key."""
