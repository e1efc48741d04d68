"""The certificates that a server's links are secured with, one for each tunnel.

Theory of operation
-------------------
A short-lived child makes a new certificate for each tunnel at each start, or reads the one
that is configured, and writes it with its key into a sealed memfd. The master keeps the
descriptor, for this worker and its successors, and never the bytes; a worker is given that
of its own tunnel. Nothing lies on disk, and a made certificate tells nothing: nobody has to
know it, since the handshake binds it to the key of the port (PROTOCOL.md §4).
"""

from __future__ import annotations

import fcntl
import os
import secrets
import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tunneltcp.master.helpers import Helpers

__all__ = ["SPARE", "CertificateFiles", "Certificates"]

SPARE: Final = 0
"""Instead of a port: a certificate that no client ever sees, for who wants to try TLS."""

CertificateFiles = tuple[Path, Path]
"""Where a configured certificate lies, with those that vouch for it, and where its key."""

_MAX_FILE_BYTES: Final = 256 * 1024
"""A certificate with its chain and key has 10 kB."""

_NEVER: Final = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
"""RFC 5280's date for "does not end": a made certificate lives as long as its master."""

_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class Certificates:
    """Has one memfd for each port, and a spare one."""

    def __init__(self, helpers: Helpers) -> None:
        self._helpers = helpers
        self._fds: dict[int, int] = {}

    def fd(self, port: int) -> int:
        """Return the descriptor of a port's certificate; -1 if there is none."""
        return self._fds.get(port, -1)

    def prepare(
        self,
        ports: Sequence[int],
        files: CertificateFiles | None,
        done: Callable[[str], None],
        *,
        anew: bool,
    ) -> None:
        """Have certificates for these ports and no others: all of them, or none is changed.

        Args:
            ports: Whose workers show one.
            files: Those to read; None: they are made.
            done: Called with what is wrong, or an empty text.
            anew: Replace also those that are there.

        Raises:
            OSError: If the kernel has no memory to give.
        """
        missing = [port for port in (SPARE, *ports) if anew or port not in self._fds]
        fresh: dict[int, int] = {}
        try:
            for port in missing:
                flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
                fresh[port] = os.memfd_create(f"certificate-{port}", flags)
        except OSError:
            _close_all(fresh)
            raise

        def finish(answer: Any) -> None:  # noqa: ANN401 - an answer from another process
            problem = answer if isinstance(answer, str) else "no certificate was made in time"
            if problem:
                _close_all(fresh)
            else:
                self._take(fresh, {SPARE, *ports})
            done(problem)

        if fresh:
            fds = tuple(fresh.values())
            self._helpers.run(lambda: _fill(dict(fresh), files), finish, keep=fds)
        else:
            finish("")

    def _take(self, fresh: dict[int, int], wanted: set[int]) -> None:
        old = self._fds
        self._fds = {port: fd for port, fd in {**old, **fresh}.items() if port in wanted}
        used = set(self._fds.values())
        _close_all({port: fd for port, fd in old.items() if fd not in used})

    def close(self) -> None:
        """Let go of all of them."""
        _close_all(self._fds)
        self._fds = {}


def _close_all(fds: dict[int, int]) -> None:
    for fd in fds.values():
        os.close(fd)


# What follows runs in the child.


def _fill(fds: dict[int, int], files: CertificateFiles | None) -> str:
    """Write a certificate with its key to each descriptor; return what is wrong.

    The spare one is made in any case.
    """
    text = b""
    if files is not None:
        try:
            text = _read(files[0], "cert") + b"\n" + _read(files[1], "key")
        except ValueError as error:
            return str(error)
    for port, fd in fds.items():
        with open(fd, "wb", closefd=False) as file:
            file.write(text if text and port != SPARE else _make())
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    configured = [fd for port, fd in fds.items() if text and port != SPARE]
    return _problem(configured[0], files) if files is not None and configured else ""


def _read(path: Path, key: str) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{key}: {path} cannot be read: {_lower(error)}") from error
    if len(data) > _MAX_FILE_BYTES:
        raise ValueError(f"{key}: {path} is larger than {_MAX_FILE_BYTES} bytes")
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


def _lower(error: OSError) -> str:
    return (error.strerror or "?").lower()


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
