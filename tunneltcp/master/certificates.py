"""The certificates that a server's links are secured with, one for each tunnel.

A new one is made for each tunnel at each start, or the one that is configured is read, by the
short-lived child that has the other secrets too (``secrets.py``). Nothing lies on disk, and a
made certificate tells nothing: nobody has to know it, since the handshake binds it to the key
of the port (PROTOCOL.md §4).
"""

from __future__ import annotations

import secrets
import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tunneltcp.errors import ConfigError
from tunneltcp.master.sealed import write_sealed

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["CertificateFiles", "fill_certificates"]

CertificateFiles = tuple[Path, Path]
"""Where a configured certificate lies, with those that vouch for it, and where its key."""

_MAX_FILE_BYTES: Final = 256 * 1024
"""A certificate with its chain and key has 10 kB."""

_NEVER: Final = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
"""RFC 5280's date for "does not end": a made certificate lives as long as its master."""


def fill_certificates(fds: Sequence[int], files: CertificateFiles | None) -> None:
    """Write a certificate with its key, in PEM, into each memfd.

    Args:
        fds: Empty memfds.
        files: The one to read; None: each is made.

    Raises:
        ConfigError: If a configured one cannot be read, or is none.
    """
    configured = b""
    if files is not None and fds:
        configured = _read(files[0], "cert") + b"\n" + _read(files[1], "key")
    for fd in fds:
        write_sealed(fd, configured or _make())
    if files is not None and fds and (problem := _problem(fds[0], files)):
        raise ConfigError([problem])


def _read(path: Path, key: str) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        why = (error.strerror or "?").lower()
        raise ConfigError([f"{key}: {path} cannot be read: {why}"]) from error
    if len(data) > _MAX_FILE_BYTES:
        raise ConfigError([f"{key}: {path} is larger than {_MAX_FILE_BYTES} bytes"])
    return data


def _problem(fd: int, files: CertificateFiles) -> str:
    """Try a configured certificate just as a worker will."""

    def no_password() -> str:
        raise ValueError

    names = f"cert {files[0]} and key {files[1]}"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(f"/proc/self/fd/{fd}", password=no_password)
    except ValueError:
        return f"{names}: the key needs a password; store it without one"
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            return f"{names}: the key is not that of the first certificate"
        return f"{names}: are not a certificate and its key in PEM"
    return ""


def _make() -> bytes:
    """Return a new certificate and its key, in PEM."""
    # Here and not above: this library is large, and only this child has a use for it.
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    # A name and dates that are the same everywhere, or random: whoever looks learns nothing.
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, secrets.token_hex(16))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime(2000, 1, 1, tzinfo=UTC))
        .not_valid_after(_NEVER)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    return certificate.public_bytes(pem) + key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
