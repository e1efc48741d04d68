"""A second client of the link protocol, written from docs/PROTOCOL.md alone.

It shares no code with tunneltcp and wants the standard library only: where the two
disagree, one of them or the document is wrong. It is as simple as the document allows: one
thread, one link at a time. Section numbers (§) are the document's.

    python tests/interop/client.py --server 127.0.0.1 --port 60001 --target 127.0.0.1:8000
    python tests/interop/client.py --server 127.0.0.1 --port 60001 --echo --plain

It says on standard output what becomes of its links, one line each: ``up SESSION``,
``resumed SESSION``, ``refused CODE proven`` (``hint``: without a MAC), ``down REASON``.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import hmac
import ipaddress
import json
import os
import secrets
import select
import socket
import ssl
import struct
import sys
import time
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    Connect: TypeAlias = "Callable[[], Echo | Tcp]"

MAGIC = bytes.fromhex("89545443500d0a1a")
NO_BINDING = bytes(32)
MAC_BYTES = 32
TLS_FLAG, ALPN = 1, "tunneltcp/1"  # §3, §4
HANDSHAKE_BYTES, HANDSHAKE_SECONDS = 4096, 5.0
WINDOW_BYTES = 32_768
"""Default for each stream towards the target, before the first CREDIT and after."""

OPEN, DATA, FIN, RESET, CREDIT, PING, PONG, SYNC, STATE, GOAWAY = range(1, 11)
PAYLOAD_BYTES = {OPEN: range(2, 39), DATA: range(1, 262_145), FIN: (0,), RESET: (2,)}
PAYLOAD_BYTES |= {CREDIT: (9,), PING: (0,), PONG: (0,), SYNC: (4,), STATE: (9,), GOAWAY: (2,)}
ANSWER, FAILED, REFUSED, UNREACHABLE, IMPOSSIBLE, NO_ROOM, STOPPING = range(7)  # of RESET, §7.3
RESET_CODES = {errno.ECONNREFUSED: REFUSED, errno.EHOSTUNREACH: UNREACHABLE}
RESET_CODES |= {errno.ENETUNREACH: UNREACHABLE, errno.ETIMEDOUT: UNREACHABLE}
DRAINING, VIOLATION = 0, 1  # of GOAWAY, §7.7
FIN_DELIVERED, IS_RESET = 1, 2  # flags of CREDIT and STATE, §7.5 and §7.8
MAX_STREAMS = 65_536
GRACE_SECONDS = 60.0  # a session without a link is kept for so long, §7.8
TOP = 1 << 62  # of offsets and limits, §6

CHUNK_BYTES = 1 << 16
OUTPUT_BYTES = 1 << 18
"""As much may wait for the link before no target is read any more."""
QUIET_SECONDS = 0.02  # before a CREDIT that nothing else called for, §7.5
SILENCE_SECONDS, IDLE_SECONDS, DOUBT_SECONDS = 1.0, 2.0, 2.0  # §8
REDIAL_SECONDS, LONGEST_PAUSE_SECONDS = 0.7, 30.0  # §8

# Keys, preface and handshake: §2 to §4.


def _hmac(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, hashlib.sha256)


def port_key(port: int, token: str = "") -> bytes:
    return _hmac(token.strip().encode(), b"tunneltcp/1 port %d" % port)


def key_id(key: bytes) -> bytes:
    return _hmac(key, b"id")[:8]


def preface(key: bytes, port: int, nonce: bytes, version: int = 1, flags: int = 0) -> bytes:
    head = MAGIC + struct.pack(">BBH", version, flags, port) + nonce
    return head + _hmac(key, b"preface" + head)[:16]


@dataclass
class Identity:
    """Who a client is: this machine, this run of it, and how often it dialled."""

    host: str = field(default_factory=lambda: secrets.token_hex(16))
    run: str = field(default_factory=lambda: secrets.token_hex(16))
    attempt: int = 0


class RefusedError(Exception):
    """A REFUSED; ``proven`` if it came with the server's MAC."""

    def __init__(self, fields: dict[str, Any], proven: bool) -> None:
        super().__init__(f"{fields.get('code')} {'proven' if proven else 'hint'}")
        self.code, self.holder, self.proven = fields.get("code"), fields.get("holder"), proven


class LinkError(Exception):
    """The handshake or the link can't go on; the text says why."""


class Handshake:
    """Both sides' messages, and the MACs over all that was said."""

    def __init__(self, sock: socket.socket, key: bytes, first: bytes) -> None:
        self.sock, self.key, self.said = sock, key, first
        self.binding = NO_BINDING
        self.deadline = time.monotonic() + HANDSHAKE_SECONDS
        self.left = HANDSHAKE_BYTES

    def mac(self, side: bytes, message: bytes) -> bytes:
        return _hmac(self.key, b"tunneltcp/1 " + side + self.binding + self.said + message)

    def message(self, fields: dict[str, object], *, signed: bool = False) -> bytes:
        """The bytes of our next message; from here on it was said."""
        text = json.dumps(fields).encode()
        data = struct.pack(">H", len(text) + MAC_BYTES * signed) + text
        if signed:
            data += self.mac(b"client", data)
        self.said += data
        return data

    def receive(self) -> tuple[dict[str, Any], bool]:
        """The server's next message, and whether it came with the right MAC."""
        head = self._exactly(2)
        body = self._exactly(int.from_bytes(head, "big"))
        try:  # one character a byte: the end of the text is the end of the object
            _, end = json.JSONDecoder().raw_decode(body.decode("latin-1"))
            fields = json.loads(body[:end])
        except ValueError as error:
            raise LinkError(f"a message that is no JSON: {error}") from None
        if not isinstance(fields, dict) or len(body) - end not in (0, MAC_BYTES):
            raise LinkError("a message that is not laid out as §4 says")
        proven = hmac.compare_digest(body[end:], self.mac(b"server", head + body[:end]))
        self.said += head + body
        if fields.get("type") == "refused":
            raise RefusedError(fields, proven)
        return fields, proven

    def _exactly(self, size: int) -> bytes:
        self.left -= size
        if self.left < 0:
            raise LinkError("a handshake without end")
        data = b""
        while len(data) < size:
            self.sock.settimeout(max(0.001, self.deadline - time.monotonic()))
            piece = self.sock.recv(size - len(data))
            if not piece:
                raise LinkError("the server closed during the handshake")
            data += piece
        return data


def secure(shake: Handshake) -> ssl.SSLSocket:
    """Begin with TLS, behind the preface (§4); whose certificate it is, PROOF will show."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols([ALPN])
    tls = context.wrap_socket(shake.sock, do_handshake_on_connect=False)
    shake.sock = tls
    try:
        tls.do_handshake()
    except ssl.SSLError as error:  # a REFUSED in clear would be only a hint
        tls.close()
        raise LinkError(f"no TLS: {error.reason}") from None
    if tls.selected_alpn_protocol() != ALPN:
        raise LinkError("the server's TLS is not for tunneltcp")
    certificate = tls.getpeercert(binary_form=True)
    assert certificate, "a server has one"
    shake.binding = hashlib.sha256(certificate).digest()
    return tls


def shake_hands(
    sock: socket.socket,
    port: int,
    me: Identity,
    *,
    tls: bool = True,
    key: bytes = b"",
    first: bytes = b"",
    **hello: object,
) -> tuple[socket.socket, dict[str, Any]]:
    """Make a new connection a link; return what it goes on with, and WELCOME.

    Args:
        tls: Whether to speak TLS.
        key: The port key, if it is to be another than that of the empty token.
        first: The preface, if it is to be another than the right one.
        hello: Fields of HELLO that are to be other than usual.

    Raises:
        RefusedError: The server does not want us.
        LinkError: It does not keep to the protocol, or is not who it should be.
        OSError: The connection failed, or all this took too long.
    """
    key = key or port_key(port)
    first = first or preface(key, port, secrets.token_bytes(16), flags=TLS_FLAG * tls)
    shake = Handshake(sock, key, first)
    sock.sendall(first)
    if tls:
        sock = secure(shake)
    try:
        return sock, _greet(shake, port, me, hello)
    except BaseException:
        sock.close()
        raise


def _greet(
    shake: Handshake, port: int, me: Identity, hello: dict[str, object]
) -> dict[str, Any]:
    me.attempt += 1
    usual: dict[str, object] = {"type": "hello", "versions": [1], "agent": "interop 1"}
    usual |= {"host": me.host, "run": me.run, "attempt": me.attempt, "port": port}
    usual |= {"nonce": secrets.token_hex(32), "key_id": key_id(shake.key).hex()}
    usual |= {"window": WINDOW_BYTES, "session": None}
    shake.sock.sendall(shake.message(usual | hello))
    challenge, _ = shake.receive()
    if challenge.get("type") != "challenge" or challenge.get("version") != 1:
        raise LinkError(f"{challenge} instead of CHALLENGE")
    shake.sock.sendall(shake.message({"type": "proof"}, signed=True))
    welcome, proven = shake.receive()
    if welcome.get("type") != "welcome" or not proven:
        raise LinkError("no WELCOME with the server's MAC")
    return welcome


# Frames: §6 and §7.1.


def frame(kind: int, stream: int = 0, value: int = 0, payload: bytes = b"") -> bytes:
    return struct.pack(">QQ", kind << 60 | len(payload) << 40 | stream, value) + payload


def take_frame(buffer: bytearray) -> tuple[int, int, int, bytes] | None:
    """Take the next frame off a buffer, if it is there: type, stream id, value, payload."""
    if len(buffer) < 16:
        return None
    head, value = struct.unpack_from(">QQ", buffer)
    kind, size, stream = head >> 60, head >> 40 & 0xFFFFF, head & (1 << 40) - 1
    if kind not in PAYLOAD_BYTES or size not in PAYLOAD_BYTES[kind]:
        raise LinkError(f"a frame of type {kind} with {size} bytes")
    if (stream == 0) != (kind in (PING, PONG, SYNC, GOAWAY)):
        raise LinkError(f"a frame of type {kind} with stream id {stream}")
    if len(buffer) < 16 + size:
        return None
    payload = bytes(buffer[16 : 16 + size])
    del buffer[: 16 + size]
    return kind, stream, value, payload


def addresses(payload: bytes) -> list[tuple[str, int] | None]:
    """Who came, and to which address of the server; None: not known."""
    found: list[tuple[str, int] | None] = []
    while payload:
        size = {0: 0, 4: 4, 6: 16}.get(payload[0], -1)
        more = size + 2 if size else 0
        if size < 0 or len(payload) < 1 + more:
            raise LinkError("an OPEN that is not laid out as §7.1 says")
        host, port = payload[1 : 1 + size], payload[1 + size : 1 + more]
        found.append(
            (str(ipaddress.ip_address(host)), int.from_bytes(port, "big")) if size else None
        )
        payload = payload[1 + more :]
    if len(found) != 2:
        raise LinkError("an OPEN without two addresses")
    return found


# Targets: what a stream leads to. What failed raises OSError.


class Echo:
    """Sends back what comes, and the end after the end."""

    def __init__(self) -> None:
        self.held, self.ended, self.up = bytearray(), False, True

    def fileno(self) -> int:
        return -1  # nothing to wait for

    def connected(self) -> bool:
        return True

    def write(self, data: bytearray) -> int:
        taken = data[: CHUNK_BYTES - len(self.held)]
        self.held += taken
        return len(taken)

    def finish(self) -> None:
        self.ended = True

    def read(self, size: int) -> bytes | None:
        data = bytes(self.held[:size])
        del self.held[:size]
        return data if data or self.ended else None

    def close(self, *, reset: bool) -> None:
        self.held.clear()


class Tcp:
    """A connection to an app."""

    def __init__(self, host: str, port: int) -> None:
        self.sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.address, self.up = (host, port), False

    def fileno(self) -> int:
        return self.sock.fileno()

    def connected(self) -> bool:
        """Say whether the rest may be used."""
        if not self.up:  # asking again says what became of it
            code = self.sock.connect_ex(self.address)
            if code not in (0, errno.EISCONN, errno.EINPROGRESS, errno.EALREADY):
                raise OSError(code, os.strerror(code))
            self.up = code in (0, errno.EISCONN)
        return self.up

    def write(self, data: bytearray) -> int:
        """Return how many bytes were taken."""
        try:
            return self.sock.send(data)
        except BlockingIOError:
            return 0

    def finish(self) -> None:
        """No more bytes will come."""
        self.sock.shutdown(socket.SHUT_WR)

    def read(self, size: int) -> bytes | None:
        """Return what there is: None if nothing yet, no byte if that was the end."""
        try:
            return self.sock.recv(size)
        except BlockingIOError:
            return None

    def close(self, *, reset: bool) -> None:
        if reset:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


# The session: §7 and §8.


class Stream:
    """One visitor: two rows of bytes, each with its offset, its limit and its end."""

    def __init__(self, link: Link, number: int, limit: int, target: Echo | Tcp) -> None:
        self.link, self.number, self.target = link, number, target
        # Towards the target.
        self.inbox = bytearray()
        self.came = self.delivered = self.told = 0  # ``told``: in the last CREDIT
        self.came_at = 0.0
        self.granted = link.window
        self.final: int | None = None
        self.passed_fin = self.told_fin = False
        # Towards the visitor.
        self.kept = bytearray()  # what the target said and nobody has confirmed, from ``acked``
        self.acked = self.sent = 0
        self.limit = limit
        self.target_ended = self.sent_fin = self.fin_delivered = False
        self.resetting = False  # our RESET waits for its answer
        self.untold = False  # the STATE of the peer is still to come

    @property
    def said(self) -> int:
        """How many bytes came from the target."""
        return self.acked + len(self.kept)

    def pause(self) -> None:
        """The link is lost, and with it what was not delivered (§7.8)."""
        self.inbox.clear()
        self.came = self.told = self.delivered
        self.told_fin = self.passed_fin
        if not self.passed_fin:
            self.final = None
        self.granted = self.delivered + self.link.window
        self.untold = True

    def resume(self, delivered: int, limit: int, flags: int) -> None:
        """Go on from the peer's STATE; raise ValueError for what cannot be true."""
        over = bool(flags & FIN_DELIVERED)
        if not self.acked <= delivered <= min(self.sent, limit) or limit > TOP:
            raise ValueError("STATE out of bounds")
        if over < self.fin_delivered or over > (self.sent_fin and delivered == self.sent):
            raise ValueError("STATE with a wrong flag")
        del self.kept[: delivered - self.acked]
        self.acked = self.sent = delivered
        self.limit, self.untold = limit, False
        self.sent_fin = self.fin_delivered = over

    def receive(self, kind: int, value: int, payload: bytes) -> None:
        """Take DATA, FIN or CREDIT; raise ValueError for what cannot be true."""
        if kind == DATA:
            known = self.came - value
            if known and self.link.resumed and known <= len(payload):
                value, payload = self.came, payload[known:]
            if value != self.came or self.final is not None:
                raise ValueError("DATA out of order")
            if value + len(payload) > self.granted:
                raise ValueError("DATA beyond the limit")
            self.inbox += payload
            self.came, self.came_at = self.came + len(payload), time.monotonic()
        elif kind == FIN:
            if value != self.came:
                raise ValueError("FIN at a wrong offset")
            self.final = value
        elif kind == CREDIT:
            limit, flags = struct.unpack(">QB", payload)
            over = bool(flags & FIN_DELIVERED)
            if value > self.sent or not value <= limit <= TOP:
                raise ValueError("CREDIT out of bounds")
            if over < self.fin_delivered or over > (self.sent_fin and value == self.sent):
                raise ValueError("CREDIT with a wrong flag")
            if value > self.acked:
                del self.kept[: value - self.acked]
                self.acked = value
            self.limit, self.fin_delivered = max(self.limit, limit), over

    def may_read(self) -> int:
        """How many bytes the target may be asked for now."""
        room = not self.target_ended and self.sent == self.said and self.link.has_room()
        return min(self.limit - self.sent, CHUNK_BYTES, self.link.payload) if room else 0

    def must_write(self) -> bool:
        return bool(self.inbox) or not self.target.up

    def move(self) -> None:
        """Move what can be moved, both ways; raise OSError if the target failed."""
        moved = True
        while moved and self.target.connected() and not self.untold:
            before = self.sent, self.delivered, self.passed_fin
            if size := self.may_read():
                data = self.target.read(size)
                self.kept += data or b""
                self.target_ended = data is not None and not data
            self.speak()
            if self.inbox:
                taken = self.target.write(self.inbox)
                del self.inbox[:taken]
                self.delivered += taken
            if self.final == self.delivered and not self.passed_fin:
                self.target.finish()
                self.passed_fin = True
            moved = before != (self.sent, self.delivered, self.passed_fin)

    def speak(self) -> None:
        """Send what the target said, as far as may be: for the first time, or again."""
        begin = self.sent - self.acked
        size = min(len(self.kept) - begin, self.limit - self.sent, self.link.payload)
        if size > 0 and self.link.has_room():
            self.link.send(DATA, self.number, self.sent, bytes(self.kept[begin : begin + size]))
            self.sent += size
        if self.target_ended and self.sent == self.said and not self.sent_fin:
            self.link.send(FIN, self.number, self.sent)
            self.sent_fin = True

    def acknowledge(self, now: float) -> float | None:
        """Send CREDIT if it is time for it; return when it will be, if ever (§7.5)."""
        news = self.delivered - self.told
        if self.passed_fin == self.told_fin and news < min(self.link.window // 4, 65_536):
            if not news or self.inbox:
                return None
            if now < self.came_at + QUIET_SECONDS:
                return self.came_at + QUIET_SECONDS
        self.told, self.told_fin = self.delivered, self.passed_fin
        self.granted = self.delivered + self.link.window
        self.link.credit(self.number, self.delivered, self.granted, self.passed_fin)
        return None


class Link:
    """One link from WELCOME to its end, with its streams."""

    def __init__(
        self, sock: socket.socket, payload: int, window: int, connect: Connect
    ) -> None:
        self.sock, self.payload, self.window, self.connect = sock, payload, window, connect
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.input, self.output = bytearray(), bytearray()
        self.streams: dict[int, Stream] = {}
        self.highest = 0
        self.draining = False
        self.resumed = self.broke = False
        self.awaits_sync = False
        self.states_left = 0
        self.heard = time.monotonic()
        self.asked: float | None = None  # when the PING went out that nothing followed yet

    def send(self, kind: int, stream: int = 0, value: int = 0, payload: bytes = b"") -> None:
        self.output += frame(kind, stream, value, payload)

    def has_room(self) -> bool:
        return len(self.output) < OUTPUT_BYTES

    def take_over(self, past: Link) -> None:
        """Go on with the session of a link that was lost (§7.8)."""
        self.streams, self.highest, self.draining = past.streams, past.highest, past.draining
        self.resumed = self.awaits_sync = True
        self.send(SYNC, 0, self.highest, struct.pack(">I", len(self.streams)))
        for stream in self.streams.values():
            stream.link = self
            stream.pause()
            flags = stream.passed_fin * FIN_DELIVERED | stream.resetting * IS_RESET
            payload = struct.pack(">QB", stream.granted, flags)
            self.send(STATE, stream.number, stream.delivered, payload)
        if self.draining:
            self.goaway(DRAINING)

    def take_sync(self, last: int, count: int) -> None:
        if last < self.highest or count > MAX_STREAMS:
            raise LinkError("a SYNC that cannot be true")
        self.awaits_sync, self.states_left = False, count
        self.judge_untold()

    def take_state(self, number: int, delivered: int, payload: bytes) -> None:
        if not self.states_left:
            raise LinkError("a STATE too many")
        self.states_left -= 1
        stream = self.streams.get(number)
        limit, flags = struct.unpack(">QB", payload)
        if stream is None:
            pass
        elif stream.resetting:
            stream.untold = False
            self.reset(number, FAILED)
        elif flags & IS_RESET:
            self.reset(number, ANSWER)
            self.forget(stream, reset=True)
        else:
            try:
                stream.resume(delivered, limit, flags)
            except ValueError:
                stream.untold = False
                self.fail(stream, IMPOSSIBLE)
        self.judge_untold()

    def judge_untold(self) -> None:
        """When the peer has told all: what it did not list is over there."""
        if self.states_left:
            return
        for stream in [one for one in self.streams.values() if one.untold]:
            over = stream.passed_fin and stream.sent_fin
            self.forget(stream, reset=not over)

    def credit(self, number: int, delivered: int, limit: int, fin: bool) -> None:
        self.send(CREDIT, number, delivered, struct.pack(">QB", limit, fin * FIN_DELIVERED))

    def reset(self, number: int, code: int) -> None:
        self.send(RESET, number, 0, struct.pack(">H", code))

    def goaway(self, code: int) -> None:
        self.send(GOAWAY, 0, self.highest, struct.pack(">H", code))

    def write(self) -> None:
        with suppress(BlockingIOError, ssl.SSLWantWriteError):
            while self.output:
                del self.output[: self.sock.send(self.output[:OUTPUT_BYTES])]

    def read(self) -> None:
        try:
            data = self.sock.recv(OUTPUT_BYTES)  # of TLS a whole record: none is hidden
        except ssl.SSLWantReadError:
            return
        if not data:
            raise LinkError("the server closed the link")
        self.heard, self.asked = time.monotonic(), None
        self.input += data
        try:
            while one := take_frame(self.input):
                self.receive(*one)
        except LinkError:
            self.broke = True
            self.goaway(VIOLATION)
            self.write()
            raise

    def receive(self, kind: int, number: int, value: int, payload: bytes) -> None:
        stream = self.streams.get(number)
        if (kind == SYNC) != self.awaits_sync:
            raise LinkError("SYNC out of place")
        if kind == SYNC:
            self.take_sync(value, int.from_bytes(payload, "big"))
        elif kind == STATE:
            self.take_state(number, value, payload)
        elif kind == PING:
            self.send(PONG, 0, value)
        elif kind == GOAWAY and int.from_bytes(payload, "big") == VIOLATION:
            raise ConnectionAbortedError("the server says that we broke the protocol")
        elif kind == OPEN:
            self.open(number, value, payload)
        elif number > self.highest:
            raise LinkError(f"a frame of type {kind} for stream {number}")
        elif kind == RESET:
            if int.from_bytes(payload, "big") != ANSWER:
                self.reset(number, ANSWER)
            if stream:
                self.forget(stream, reset=True)
        elif stream and not stream.resetting:
            try:
                stream.receive(kind, value, payload)
            except ValueError:
                self.fail(stream, IMPOSSIBLE)

    def open(self, number: int, limit: int, payload: bytes) -> None:
        if limit > TOP:
            raise LinkError("an OPEN that cannot be true")
        addresses(payload)
        if number <= self.highest:  # we know it
            return
        self.highest = number
        if self.draining:
            self.reset(number, STOPPING)
        else:
            self.credit(number, 0, self.window, False)
            self.streams[number] = Stream(self, number, limit, self.connect())

    def fail(self, stream: Stream, code: int) -> None:
        """Reset a stream; it is forgotten when the server has answered."""
        stream.target.close(reset=True)
        stream.resetting = True
        self.reset(stream.number, code)

    def forget(self, stream: Stream, *, reset: bool) -> None:
        stream.target.close(reset=reset and not stream.resetting)
        del self.streams[stream.number]

    def close(self) -> None:
        """Reset whatever is left."""
        for stream in list(self.streams.values()):
            self.forget(stream, reset=True)

    def step(self, now: float) -> float:
        """Move what can be moved; return when to come again though nothing happens."""
        again = self.look_for_life(now)
        for stream in list(self.streams.values()):
            if stream.resetting:
                continue
            try:
                stream.move()
            except OSError as error:
                self.fail(stream, RESET_CODES.get(error.errno or 0, FAILED))
                continue
            again = min(again, stream.acknowledge(now) or again)
            if stream.sent < min(stream.said, stream.limit) and self.has_room():
                again = now
            if stream.told_fin and stream.fin_delivered:
                self.forget(stream, reset=False)
        full = len(self.output) >= OUTPUT_BYTES
        self.write()
        return now if full and len(self.output) < OUTPUT_BYTES else again

    def look_for_life(self, now: float) -> float:
        """Send a PING after silence; return when to look again (§8)."""
        if self.asked is None:
            due = self.heard + (SILENCE_SECONDS if self.streams else IDLE_SECONDS)
            if now < due:
                return due
            self.asked = now
            self.send(PING, 0, int(now * 1e6))
        if now >= self.asked + DOUBT_SECONDS:
            raise LinkError("the server is silent")
        return self.asked + DOUBT_SECONDS

    def run(self, control: int) -> None:
        """Serve until all is drained; every other end is an exception."""
        while True:
            now = time.monotonic()
            wait = max(0.0, self.step(now) - now)
            if self.draining and not self.streams and not self.output:
                return
            read: list[Any] = [self.sock, control]
            write: list[Any] = [self.sock] if self.output else []
            for stream in self.streams.values():
                if stream.target.fileno() >= 0:
                    read += [stream.target] if stream.may_read() else []
                    write += [stream.target] if stream.must_write() else []
            ready, _, _ = select.select(read, write, [], wait)
            if self.sock in ready:
                self.read()
            if control in ready:
                self.draining = obey(control)
                self.goaway(DRAINING)


# Dialling: §8.


def obey(control: int) -> bool:
    """Read a word of whoever started us, whose end is ours too; say whether to drain."""
    word = os.read(control, 100).strip()
    if not word:
        sys.exit(0)
    if word == b"drop":
        raise LinkError("told to drop it")
    if word == b"forget":
        raise ConnectionAbortedError("told to forget it")
    return word == b"drain"


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def dial(
    server: tuple[str, int],
    window: int,
    connect: Connect,
    control: int,
    me: Identity,
    *,
    tls: bool,
) -> None:
    """Dial again and again; return after a drain."""
    refusals = failures = 0
    past: Link | None = None
    session, lost_at = None, 0.0
    while True:
        if past is not None and time.monotonic() > lost_at + GRACE_SECONDS:
            past.close()
            past = session = None
        try:
            with closing(socket.create_connection(server, HANDSHAKE_SECONDS)) as plain:
                sock, welcome = shake_hands(
                    plain, server[1], me, tls=tls, window=window, session=session
                )
                say(f"{'resumed' if welcome['resumed'] else 'up'} {welcome['session']}")
                refusals = failures = 0
                payload = welcome["limits"]["payload"]
                link = Link(sock, payload, window, connect)
                if past is not None:
                    (link.take_over if welcome["resumed"] else Link.close)(past)
                past, session = link, welcome["session"]
                try:
                    with sock:
                        link.run(control)
                finally:
                    lost_at = time.monotonic()
                say("down drained")
                return
        except RefusedError as error:
            say(f"refused {error}")
            refusals += 1
        except (OSError, LinkError) as error:
            say(f"down {error}")
            failures += 1
            over = isinstance(error, ConnectionAbortedError)
            if past is not None and (past.broke or over):  # this session is not resumed
                past.close()
                past = session = None
        pause = min(REDIAL_SECONDS * 2**refusals, LONGEST_PAUSE_SECONDS)
        if (refusals or failures > 1) and select.select([control], [], [], pause)[0]:
            obey(control)


def main() -> None:
    parser = argparse.ArgumentParser(description="A second client, for one public port.")
    parser.add_argument("--server", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--target", metavar="HOST:PORT", help="the app visitors are led to")
    parser.add_argument("--echo", action="store_true", help="be that app (without --target)")
    parser.add_argument("--plain", action="store_true", help="without TLS")
    parser.add_argument("--window", type=int, default=WINDOW_BYTES, help="bytes")
    parser.add_argument("--identity", default="", metavar="HOST:RUN", help="of 32 digits each")
    parser.add_argument(
        "--control", action="store_true", help="obey standard input: drop, drain"
    )
    given = parser.parse_args()
    host, _, port = (given.target or "").rpartition(":")
    dial(
        (given.server, given.port),
        given.window,
        (lambda: Tcp(host.strip("[]"), int(port))) if given.target else Echo,
        0 if given.control else os.pipe()[0],
        Identity(*given.identity.split(":")) if given.identity else Identity(),
        tls=not given.plain,
    )


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
