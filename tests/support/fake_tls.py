"""The far end of a TLS connection, played by a test; first it speaks in clear."""

from __future__ import annotations

import hashlib
import ssl
from typing import TYPE_CHECKING

from tests.support.fake_peer import FakePeer

if TYPE_CHECKING:
    import socket

__all__ = ["TlsPeer"]


class TlsPeer(FakePeer):
    """A peer that speaks TLS once it was told to :meth:`secure`."""

    def __init__(
        self, sock: socket.socket, context: ssl.SSLContext, **settings: object
    ) -> None:
        super().__init__(sock)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, **settings)  # type: ignore[arg-type]
        self.begun = False
        self.secured = False
        """Whether its handshake is over."""
        self.problem = ""
        """Why TLS failed, as OpenSSL calls it."""
        self._waiting = b""

    def secure(self) -> None:
        """From now on all is TLS; what came already too."""
        self.begun = True
        self._incoming.write(bytes(self.received))
        self.received.clear()
        self._drive()

    @property
    def certificate_hash(self) -> bytes:
        """SHA-256 of what the other side showed."""
        return hashlib.sha256(self.tls.getpeercert(binary_form=True) or b"").digest()

    def send(self, data: bytes) -> None:
        """Send, as soon as the handshake is over."""
        if not self.begun:
            super().send(data)
            return
        self._waiting += data
        self._drive()

    def send_raw(self, data: bytes) -> None:
        """Send past TLS."""
        super().send(data)

    def _pull(self) -> None:
        if not self.begun:
            super()._pull()
            return
        plain, self.received = self.received, bytearray()
        super()._pull()
        raw, self.received = bytes(self.received), plain
        self._incoming.write(raw)
        self._drive()

    def _drive(self) -> None:
        try:
            if not self.secured:
                self.tls.do_handshake()
                self.secured = True
            if self._waiting:
                self.tls.write(self._waiting)
                self._waiting = b""
            while data := self.tls.read(1 << 14):
                self.received += data
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self.problem = error.reason or "?"
        out = self._outgoing.read()
        if out:
            super().send(out)
