"""The far end of a TLS connection that changes its keys, which Python's ssl cannot ask for.

What it receives OpenSSL decrypts, as ever. What it sends behind the handshake it encrypts
itself (RFC 8446 §5.2), from the secret that OpenSSL writes into its key log.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.support.fake_tls import TlsPeer

if TYPE_CHECKING:
    import socket
    import ssl

__all__ = ["KeyUpdatingPeer"]

_APPLICATION_DATA, _HANDSHAKE = 23, 22
_MAX_RECORD_BYTES = 16_384


class KeyUpdatingPeer(TlsPeer):
    """A peer that can change the keys it sends with; of suites it knows AES-256-GCM alone."""

    def __init__(
        self, sock: socket.socket, context: ssl.SSLContext, *, server_side: bool = False
    ) -> None:
        fd, name = tempfile.mkstemp(prefix="keylog-")
        os.close(fd)
        self._key_log = Path(name)
        context.keylog_filename = name
        if server_side:
            context.num_tickets = 0  # they would be encrypted with the same key
        super().__init__(sock, context, server_side=server_side)
        self._label = ("CLIENT", "SERVER")[server_side]
        self._secret = b""
        self._sent = 0

    def close(self) -> None:
        """Also forget the secrets."""
        super().close()
        self._key_log.unlink(missing_ok=True)

    def send(self, data: bytes) -> None:
        """Send, behind the handshake by ourselves."""
        if not self.secured:
            assert not (self.begun and data), "the handshake comes first"
            super().send(data)
            return
        for start in range(0, len(data), _MAX_RECORD_BYTES):
            self._send_record(data[start : start + _MAX_RECORD_BYTES], _APPLICATION_DATA)

    def update_keys(self, *, ask: bool) -> None:
        """Send KeyUpdate and use the next keys; ``ask`` the other side to do the same."""
        self._send_record(bytes([24, 0, 0, 1, ask]), _HANDSHAKE)
        self._secret = self._expand(b"traffic upd", len(self._secret))
        self._sent = 0

    def _send_record(self, content: bytes, kind: int) -> None:
        if not self._secret:
            self._secret = self._first_secret()
        key, iv = self._expand(b"key", 32), self._expand(b"iv", 12)
        nonce = (int.from_bytes(iv, "big") ^ self._sent).to_bytes(12, "big")
        head = bytes([23, 3, 3]) + (len(content) + 17).to_bytes(2, "big")
        self.send_raw(head + AESGCM(key).encrypt(nonce, content + bytes([kind]), head))
        self._sent += 1

    def _first_secret(self) -> bytes:
        cipher = self.tls.cipher()
        assert cipher is not None, "the handshake is over"
        assert cipher[0] == "TLS_AES_256_GCM_SHA384", cipher
        rows = [line.split() for line in self._key_log.read_text().splitlines()]
        found = [row[2] for row in rows if row[0] == f"{self._label}_TRAFFIC_SECRET_0"]
        return bytes.fromhex(found[-1])

    def _expand(self, label: bytes, size: int) -> bytes:
        """HKDF-Expand-Label (RFC 8446 §7.1), of at most one block."""
        full = b"tls13 " + label
        info = size.to_bytes(2, "big") + bytes([len(full)]) + full + b"\0"
        return hmac.digest(self._secret, info + b"\1", hashlib.sha384)[:size]
