"""TLS 1.3 on a link: a transport over a socket, and the settings of both ends.

Theory of operation
-------------------
The socket stays ours: ciphertext is received into memory and handed to OpenSSL, and taken
from it and sent. So OpenSSL never reads or writes by itself: writing never waits for
reading, nor the other way round, one system call moves many records, and before the peer has
proven who it is, its bytes can be counted. Each receive decrypts all that it took from the
kernel: no decrypted byte stays where the loop, which waits for the socket, can't see it.

Who the peer is, is not asked here but in the handshake behind it (PROTOCOL.md §4), to which
both ends add the hash of the certificate that was shown. A CA is asked only on request.
"""

from __future__ import annotations

import errno
import hashlib
import os
import ssl
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

__all__ = [
    "ALPN",
    "MAX_RAW_BYTES",
    "MAX_RECORD_BYTES",
    "ClientTls",
    "ServerTls",
    "TlsConnection",
    "client_context",
    "server_tls",
]

ALPN: Final = "tunneltcp/1"
MAX_RAW_BYTES: Final = 16 * 1024
"""Bytes that a peer may send before it has proven who it is, TLS and messages together. Our
own ends need 2 KiB; a configured certificate with its chain has 3 to 6 KiB."""
MAX_RECORD_BYTES: Final = 16 * 1024
"""Plaintext of one record (RFC 8446 §5.1)."""

_RECEIVE_BYTES: Final = 64 * 1024
"""Ciphertext taken from the kernel at once: more only makes OpenSSL's memory larger."""
_ROUND_BYTES: Final = _RECEIVE_BYTES + MAX_RECORD_BYTES
"""What that may decrypt to: a record may have come before, but for its last byte."""
_PIECE_BYTES: Final = 64 * 1024
"""Plaintext that is encrypted and sent at once: OpenSSL's memory stays small and warm."""

_SENTENCES: Final = {
    "HTTP_REQUEST": "what comes is HTTP, not TLS",
    "WRONG_VERSION_NUMBER": "what comes is not TLS",
    "UNSUPPORTED_PROTOCOL": "the other side does not speak TLS 1.3",
    "TLSV1_ALERT_PROTOCOL_VERSION": "the other side does not speak TLS 1.3",
    "DECRYPTION_FAILED_OR_BAD_RECORD_MAC": "what came was changed on the way",
}


class TlsConnection:
    """TLS over a connected, non-blocking socket; a :class:`~tunneltcp.net.transport.Transport`.

    Args:
        server_name: Name that the server's certificate must have, where the context asks.
    """

    def __init__(
        self,
        sock: socket.SocketType,
        context: ssl.SSLContext,
        *,
        server_side: bool,
        server_name: str = "",
    ) -> None:
        # OpenSSL itself would say nothing, and take any name.
        assert server_name or not context.check_hostname, "whose certificate is it to be?"
        self._sock = sock
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side, server_name or None
        )
        # With a buffer it returns a size, which its type does not say.
        self._decrypt: Callable[[int, memoryview], int] = self._tls.read  # type: ignore[assignment]
        self._encrypt = self._tls.write
        self._raw_left = MAX_RAW_BYTES
        self._ended = False
        self._pieces: list[bytes | memoryview] = []
        """What is still to be encrypted of what is being sent, the last piece first."""
        self._unsent: bytes | memoryview = b""
        """What is encrypted and not sent yet."""
        self.fileno = sock.fileno
        self.getsockopt = sock.getsockopt
        self.close = sock.close

    @property
    def certificate_hash(self) -> bytes:
        """SHA-256 of the certificate that the server showed; for its client."""
        certificate = self._tls.getpeercert(binary_form=True)
        assert certificate is not None, "shake_hands returned True, and we are the client"
        return hashlib.sha256(certificate).digest()

    # ------------------------------------------------------------------- handshake

    def shake_hands(self) -> bool:
        """Go on with the handshake as far as it goes now; return whether it is over.

        Afterwards something may have come behind it: read before waiting for the socket.

        Raises:
            OSError: It failed; ``strerror`` says how. A ConnectionError: it was cut.
        """
        with suppress(BlockingIOError):
            data = self._sock.recv(min(MAX_RECORD_BYTES, self._take_raw()))
            if not data:
                raise ConnectionResetError(errno.ECONNRESET, "closed in the middle of it")
            self._raw_left -= len(data)
            self._incoming.write(data)
        return self._step()

    def say_hello(self) -> None:
        """Begin as a client; receive nothing: who looks first may find that this is no TLS."""
        self._step()

    def _step(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:
            raise _failure(_sentence(error)) from error
        finally:
            # At most some KiB into an empty socket: what does not fit never will. If it
            # failed, this tells the other side why.
            with suppress(OSError):
                self._sock.send(self._outgoing.read())
        if self._tls.selected_alpn_protocol() != ALPN:
            raise _failure("the other side does not want tunneltcp's protocol")
        return True

    def _take_raw(self) -> int:
        if not self._raw_left:
            raise _failure("too much came before the other side proved who it is")
        return self._raw_left

    def recv(self, _size: int) -> bytes:
        """Receive before the peer has proven itself; like a socket's ``recv``.

        Raises:
            BlockingIOError: Nothing is there.
            OSError: The connection failed, or more than ``MAX_RAW_BYTES`` came.
        """
        view = memoryview(bytearray(3 * MAX_RECORD_BYTES))
        raw = view[: min(MAX_RECORD_BYTES, self._take_raw())]
        if not self._incoming.pending:
            came = self._sock.recv_into(raw)
            if not came:
                return b""
            self._raw_left -= came
            self._incoming.write(raw[:came])
        count = self._decrypt_all(view)
        if not count and not self._ended:
            raise BlockingIOError
        return bytes(view[:count])

    # ------------------------------------------------------------------------ link

    def recv_into(self, view: memoryview) -> int:
        """Receive; see :class:`~tunneltcp.net.transport.Transport`."""
        if self._ended:  # close_notify came behind the last bytes
            return 0
        # Ciphertext into the end of the view, while its front is for what that decrypts to.
        raw = view[-_RECEIVE_BYTES:]
        came = self._sock.recv_into(raw)
        if not came:
            return 0
        self._incoming.write(raw[:came])
        count = self._decrypt_all(view)
        if came == _RECEIVE_BYTES:
            count = self._receive_more(view, raw, count)
        if not count and not self._ended:
            raise BlockingIOError
        return count

    def _receive_more(self, view: memoryview, raw: memoryview, count: int) -> int:
        """Go on while as much comes as is taken at once, and there is room."""
        room = len(view) - len(raw)
        with suppress(BlockingIOError):
            while room - count >= _ROUND_BYTES:
                came = self._sock.recv_into(raw)
                self._incoming.write(raw[:came])
                count += self._decrypt_all(view[count:room])
                if came < _RECEIVE_BYTES:
                    break
        return count

    def _decrypt_all(self, view: memoryview) -> int:
        """Decrypt what was received, up to half a record at its end; return the size."""
        incoming = self._incoming
        decrypt = self._decrypt
        size = len(view)
        count = 0
        try:
            count = more = decrypt(size, view)
            while more and incoming.pending:
                more = decrypt(size - count, view[count:])
                count += more
            if not more:  # close_notify: nothing that follows counts
                self._ended = True
                incoming.read()
        except ssl.SSLWantReadError:  # half a record
            pass
        except ssl.SSLError as error:
            raise _failure(_sentence(error)) from error
        return count

    def send(self, data: bytes) -> int:
        """Send all of ``data``, or be called again with the same."""
        size = len(data)
        if not self._unsent:
            self._pieces = [data] if size <= _PIECE_BYTES else _pieces([data], size)
        self._send_pieces()
        return size

    def sendmsg(self, buffers: Sequence[bytes | memoryview]) -> int:
        """Send all of ``buffers``, or be called again with the same ones."""
        size = sum(map(len, buffers))
        if not self._unsent:
            self._pieces = _pieces(buffers, size)
        self._send_pieces()
        return size

    def _send_pieces(self) -> None:
        """Encrypt one piece, send it, and so on: never is more in memory than one.

        A small one, such as a frame's header, goes with the next.
        """
        pieces, unsent = self._pieces, self._unsent
        encrypt, send = self._encrypt, self._sock.send
        while unsent or pieces:
            if not unsent:
                piece = pieces.pop()
                try:
                    encrypt(piece)
                    if pieces and len(piece) < MAX_RECORD_BYTES:
                        encrypt(pieces.pop())
                except ssl.SSLError as error:
                    raise _failure(_sentence(error)) from error
                self._unsent = unsent = self._outgoing.read()
            count = send(unsent)
            unsent = b"" if count == len(unsent) else memoryview(unsent)[count:]
            self._unsent = unsent


def _pieces(buffers: Sequence[bytes | memoryview], size: int) -> list[bytes | memoryview]:
    """Return what is to be encrypted at once, the last piece first.

    Small buffers are joined: each record costs 22 bytes and a microsecond. Large ones are
    cut, but never copied. None is longer than ``_PIECE_BYTES``, since what OpenSSL once took
    room for it keeps.
    """
    if size <= _PIECE_BYTES:
        return [b"".join(buffers)]
    pieces: list[bytes | memoryview] = []
    small: list[bytes | memoryview] = []
    room = 0
    for buffer in buffers:
        if len(buffer) < MAX_RECORD_BYTES and len(buffer) <= room:
            small.append(buffer)
            room -= len(buffer)
            continue
        if small:
            pieces.append(b"".join(small))
            small.clear()
        if len(buffer) < MAX_RECORD_BYTES:
            small.append(buffer)
            room = _PIECE_BYTES - len(buffer)
            continue
        room = 0
        whole = memoryview(buffer)
        starts = range(0, len(whole), _PIECE_BYTES)
        pieces += [whole[start : start + _PIECE_BYTES] for start in starts]
    if small:
        pieces.append(b"".join(small))
    pieces.reverse()
    return pieces


def _failure(sentence: str) -> OSError:
    return OSError(errno.EPROTO, sentence)


def _sentence(error: ssl.SSLError) -> str:
    """Return what OpenSSL found, for a person."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the server's certificate is not good: {error.verify_message}"
    reason = error.reason or "failed"
    return _SENTENCES.get(reason) or reason.lower().replace("_", " ")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTls:
    """What a server shows to its clients."""

    context: ssl.SSLContext
    certificate_hash: bytes
    """SHA-256 of the certificate, in DER."""


def server_tls(fd: int) -> ServerTls:
    """Read a certificate, those that vouch for it, and its key, in PEM; close the file.

    Raises:
        OSError: It cannot be used.
    """
    path = Path(f"/proc/self/fd/{fd}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _set_common(context)
    # A second handshake costs no less than the first, and a ticket would be traffic.
    context.num_tickets = 0
    try:
        context.load_cert_chain(path)
        text = path.read_text(errors="replace")
    finally:
        os.close(fd)
    end = "-----END CERTIFICATE-----"
    first = text[text.index("-----BEGIN CERTIFICATE-----") : text.index(end) + len(end)]
    digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(first)).digest()
    return ServerTls(context=context, certificate_hash=digest)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientTls:
    """What a client asks of its server."""

    context: ssl.SSLContext
    server_name: str = ""
    """The name that its certificate must have; empty: any."""

    @classmethod
    def of(cls, verify: bool | Path, host: str) -> ClientTls:
        """Return what is asked of ``host`` with this ``verify`` in the config."""
        return cls(context=client_context(verify), server_name=host if verify else "")


@lru_cache(maxsize=2)
def client_context(verify: bool | Path) -> ssl.SSLContext:
    """Return the settings of a client; made once, before workers are forked, and shared.

    Two are kept: that of the config, and that of the workers' warming up.

    Args:
        verify: Whether a CA must vouch for the server: one of the system's, or of this file.

    Raises:
        OSError: The file cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _set_common(context)
    if verify is False:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif verify is True:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    else:
        context.load_verify_locations(os.fspath(verify))
    return context


def _set_common(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols([ALPN])
