"""The far end of a link, played by a test: frame by frame, as alive as it should be."""

from __future__ import annotations

import itertools
import secrets
import socket
from typing import TYPE_CHECKING, NamedTuple

from tests.support.fake_peer import FakePeer
from tests.support.fake_tls import TlsPeer
from tunneltcp.protocol.frames import CREDIT_FRAME, FrameType, encode_frame
from tunneltcp.protocol.handshake import (
    NO_CERTIFICATE,
    ClientHandshake,
    ServerHandshake,
    Stage,
)
from tunneltcp.protocol.messages import Hello, RefusedCode
from tunneltcp.protocol.preface import PREFACE_BYTES, port_key

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from tests.support.certificates import Certificate

__all__ = ["Frame", "RawClient", "RawLink", "RawServer", "take_frames"]

HOST_ID = "aa" * 16
RUN_ID = "bb" * 16

_attempts = itertools.count(1)


class Frame(NamedTuple):
    """One frame, taken apart."""

    type: FrameType
    stream_id: int
    value: int
    payload: bytes


def take_frames(buffer: bytearray) -> list[Frame]:
    """Take all whole frames from the front of ``buffer``."""
    frames = []
    while len(buffer) >= 16:
        word = int.from_bytes(buffer[:8], "big")
        end = 16 + (word >> 40 & 0xFFFFF)
        if len(buffer) < end:
            break
        value = int.from_bytes(buffer[8:16], "big")
        kind = FrameType(word >> 60)
        frames.append(Frame(kind, word & (1 << 40) - 1, value, bytes(buffer[16:end])))
        del buffer[:end]
    return frames


class RawLink:
    """One connected socket that speaks frames."""

    def __init__(self, end: socket.socket | FakePeer) -> None:
        self.peer = end if isinstance(end, FakePeer) else FakePeer(end)
        self.frames: list[Frame] = []
        self.answers_pings = True
        self.answers_opens = True
        """With a CREDIT, as a client does."""
        self.window = 1 << 20

    @property
    def end(self) -> str:
        """How it ended, as in :class:`~tests.support.fake_peer.FakePeer`."""
        return self.peer.end

    def of(self, kind: FrameType) -> list[Frame]:
        """Return the frames of one type that came so far."""
        return [frame for frame in self.frames if frame.type is kind]

    def data(self, stream_id: int) -> bytes:
        """Return what came on one stream."""
        frames = self.of(FrameType.DATA)
        return b"".join(frame.payload for frame in frames if frame.stream_id == stream_id)

    def send(
        self, kind: FrameType, stream_id: int = 0, value: int = 0, payload: bytes = b""
    ) -> None:
        """Send a frame."""
        self.peer.send(encode_frame(kind, stream_id, value, payload))

    def credit(self, stream_id: int, delivered: int, limit: int, flags: int = 0) -> None:
        """Send a CREDIT."""
        word = FrameType.CREDIT << 60 | 9 << 40 | stream_id
        self.peer.send(CREDIT_FRAME.pack(word, delivered, limit, flags))

    def reset(self, stream_id: int, code: int) -> None:
        """Send a RESET."""
        self.send(FrameType.RESET, stream_id, 0, code.to_bytes(2, "big"))

    def pump(self) -> None:
        """Take what came and answer what a living end answers at once."""
        self.peer.pump()
        self._take()

    def _take(self) -> None:
        for frame in take_frames(self.peer.received):
            self.frames.append(frame)
            if frame.type is FrameType.PING and self.answers_pings:
                self.send(FrameType.PONG, 0, frame.value)
            if frame.type is FrameType.OPEN and self.answers_opens:
                self.credit(frame.stream_id, 0, self.window)

    def close(self) -> None:
        """Let go of the socket."""
        self.peer.close()


class RawClient(RawLink):
    """A client that is nothing but a handshake and then frames."""

    def __init__(
        self,
        port: int,
        *,
        token: str = "",
        public_port: int | None = None,
        host_id: str = HOST_ID,
        run_id: str = RUN_ID,
        tls: ssl.SSLContext | None = None,
        proves: bool = True,
        dials: bool = True,
        session: str | None = None,
        attempt: int | None = None,
        greeting: bytes = b"",
    ) -> None:
        sock = socket.create_connection(("127.0.0.1", port))
        super().__init__(sock if tls is None else TlsPeer(sock, tls))
        public_port = port if public_port is None else public_port
        hello = Hello(
            agent="raw/1",
            host_id=host_id,
            run_id=run_id,
            port=public_port,
            window=1 << 20,
            session=session,
            attempt=next(_attempts) if attempt is None else attempt,
        )
        key = port_key(token, public_port)
        self.handshake = ClientHandshake(
            hello, key, secrets.token_bytes(48), tls=tls is not None
        )
        self.first = self.handshake.data_to_send()
        """Preface, and HELLO if there is no TLS; sent at once unless ``dials`` is false."""
        self.said: list[bytes] = []
        """HELLO (with TLS) and PROOF, as they were sent."""
        self.proves = proves
        self.greeting = greeting
        """What it says first of all on its link: SYNC and STATE, if it resumes."""
        self.greeted = tls is None
        if dials:
            self.peer.send(self.first)
            self.secure()

    def secure(self) -> None:
        """Begin with TLS, if it is wanted."""
        if isinstance(self.peer, TlsPeer):
            self.peer.secure()

    @property
    def stage(self) -> Stage:
        """How far the handshake is."""
        return self.handshake.stage

    @property
    def is_up(self) -> bool:
        """Whether it was welcomed."""
        return self.stage is Stage.WELCOMED

    @property
    def refused(self) -> RefusedCode | None:
        """Why it was refused; None if it was not."""
        refusal = self.handshake.refusal
        return None if refusal is None else refusal.code

    def prove(self) -> None:
        """Send PROOF."""
        self.handshake.prove()
        self._say()
        self.proves = False

    def _say(self) -> None:
        self.said.append(self.handshake.data_to_send())
        self.peer.send(self.said[-1])

    def pump(self) -> None:
        """As above; until WELCOME, the handshake."""
        self.peer.pump()
        if not self.greeted and isinstance(self.peer, TlsPeer) and self.peer.secured:
            self.greeted = True
            self.handshake.greet(self.peer.certificate_hash)
            self._say()
        if self.stage in (Stage.WAITING, Stage.CHALLENGED):
            data, self.peer.received = bytes(self.peer.received), bytearray()
            self.handshake.receive(data)
            if self.stage is Stage.CHALLENGED and self.proves:
                self.prove()
            if self.is_up:
                self.peer.send(self.greeting)
                self.peer.received += self.handshake.rest
        if self.is_up:
            self._take()


class _ServerEnd(RawLink):
    """One client that dialled a :class:`RawServer`."""

    def __init__(self, sock: socket.socket, server: RawServer) -> None:
        tls = server.tls
        super().__init__(
            sock if tls is None else TlsPeer(sock, tls.settings(), server_side=True)
        )
        self._server = server
        self.handshake: ServerHandshake | None = None

    @property
    def is_up(self) -> bool:
        return self.handshake is not None and self.handshake.stage is Stage.WELCOMED

    @property
    def is_proven(self) -> bool:
        return self.handshake is not None and self.handshake.is_proven

    @property
    def has_greeted(self) -> bool:
        """Whether HELLO came."""
        return self.handshake is not None and self.handshake.hello is not None

    def pump(self) -> None:
        self.peer.pump()
        server = self._server
        if (
            self.handshake is None
            and server.speaks
            and len(self.peer.received) >= PREFACE_BYTES
        ):
            first = bytes(self.peer.received[:PREFACE_BYTES])
            del self.peer.received[:PREFACE_BYTES]
            binding = NO_CERTIFICATE
            if server.tls is not None and isinstance(self.peer, TlsPeer):
                self.peer.secure()
                binding = server.tls.fingerprint
            self.handshake = ServerHandshake(
                first,
                agent="raw/1",
                port=server.public_port,
                keys=(port_key(server.token, server.public_port),),
                nonce=bytes(32),
                stand_in_key=bytes(32),
                certificate_hash=binding,
            )
        handshake = self.handshake
        if handshake is not None and handshake.stage is Stage.WAITING:
            data, self.peer.received = bytes(self.peer.received), bytearray()
            handshake.receive(data)
            self.peer.send(handshake.data_to_send())
        if self.is_proven:
            server.decide(self)
        if self.is_up:
            self._take()

    def welcome(
        self, session: str = "cc" * 16, epoch: int = 1, *, resumed: bool = False
    ) -> None:
        """Take it as the link."""
        assert self.handshake is not None, "proven"
        self.handshake.welcome(session, epoch, resumed=resumed)
        self.peer.send(self.handshake.data_to_send())
        self.peer.received += self.handshake.rest

    def refuse(self, code: RefusedCode) -> None:
        """Do not take it."""
        assert self.handshake is not None, "proven"
        self.handshake.refuse(code)
        self.peer.send(self.handshake.data_to_send())
        self.peer.finish()


class RawServer:
    """A server that is nothing but an accept queue, handshakes, and then frames."""

    def __init__(
        self, *, token: str = "", speaks: bool = True, tls: Certificate | None = None
    ) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.listener.setblocking(False)
        self.port: int = self.listener.getsockname()[1]
        self.public_port = self.port
        self.token = token
        self.tls = tls
        self.speaks = speaks
        """Whether it says anything at all."""
        self.ends: list[_ServerEnd] = []
        self.decide: Callable[[_ServerEnd], None] = _ServerEnd.welcome
        """What becomes of a client that has proven itself; asked again until it is decided."""

    @property
    def up(self) -> list[_ServerEnd]:
        """Those that were welcomed and have not ended."""
        return [end for end in self.ends if end.is_up and not end.end]

    @property
    def open(self) -> list[_ServerEnd]:
        """Those that have not ended, welcomed or not."""
        return [end for end in self.ends if not end.end]

    def pump(self) -> None:
        """Accept who came, and pump all."""
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:  # nobody is there, or no descriptor for him
                break
            self.ends.append(_ServerEnd(sock, self))
        for end in self.ends:
            end.pump()

    def close(self) -> None:
        """Stop listening and let go of everybody."""
        self.listener.close()
        for end in self.ends:
            end.close()
