"""Certificates for tests: made in memory, by somebody else than the code under test."""

from __future__ import annotations

import ipaddress
import os
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Certificate", "client_settings", "common_certificate", "make_certificate"]

_BEGIN, _END = datetime(2020, 1, 1, tzinfo=UTC), datetime(2120, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Certificate:
    """A certificate and its key."""

    certificate: x509.Certificate
    private_key: ec.EllipticCurvePrivateKey

    @property
    def text(self) -> bytes:
        """The certificate in PEM."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key(self) -> bytes:
        """The key in PEM."""
        pem, nothing = serialization.Encoding.PEM, serialization.NoEncryption()
        return self.private_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, nothing)

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 of the certificate in DER."""
        return self.certificate.fingerprint(hashes.SHA256())

    def fd(self) -> int:
        """Both in a new file in memory, as a worker gets them."""
        fd = os.memfd_create("certificate")
        os.write(fd, self.text + self.key)
        return fd

    def save(self, folder: Path) -> tuple[Path, Path]:
        """Write both to files; return where."""
        paths = folder / "cert.pem", folder / "key.pem"
        paths[0].write_bytes(self.text)
        paths[1].write_bytes(self.key)
        return paths

    def settings(self) -> ssl.SSLContext:
        """The settings of a server that shows it."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_alpn_protocols(["tunneltcp/1"])
        fd = self.fd()
        try:
            context.load_cert_chain(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)
        return context


def make_certificate(name: str = "a test", *, ca: Certificate | None = None) -> Certificate:
    """Make one; without ``ca`` it vouches for itself, and may for others."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(ca.certificate.subject if ca else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_BEGIN)
        .not_valid_after(_END)
        .add_extension(x509.BasicConstraints(ca=ca is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([_general(name)]), critical=False)
    )
    return Certificate(builder.sign(ca.private_key if ca else key, hashes.SHA256()), key)


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name.replace(" ", "-"))


@lru_cache(maxsize=1)
def common_certificate() -> Certificate:
    """One for all tests that don't care which."""
    return make_certificate()


def client_settings(alpn: str | None = "tunneltcp/1") -> ssl.SSLContext:
    """The settings of a client that takes any certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if alpn is not None:
        context.set_alpn_protocols([alpn])
    return context
