"""Certificates: made or read by a child, kept in memory that nobody can change."""

from __future__ import annotations

import fcntl
import os
import ssl
import subprocess
import sys
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from tests.support.certificates import make_certificate
from tests.support.leaks import Snapshot
from tests.support.ports import free_port
from tests.support.service import ROOT
from tests.unit.master.conftest import fake_key
from tunneltcp.config.model import Config, TunnelConfig
from tunneltcp.config.token_reader import TokenReader
from tunneltcp.config.tokens import TokenPlace
from tunneltcp.control.context import Role
from tunneltcp.errors import ConfigError
from tunneltcp.master.children import Children
from tunneltcp.master.helpers import Helpers
from tunneltcp.master.secrets import SPARE, PortSecrets, Renewed
from tunneltcp.net.loop import Loop
from tunneltcp.net.tls import server_tls


class Bench:
    def __init__(self, folder):
        self.loop = Loop(max_sleep_seconds=0.05)
        self.children = Children(self.loop)
        self.helpers = Helpers(self.loop, self.children, seconds=5)
        self.reader = TokenReader("server", (folder,), {})
        self.all: list[PortSecrets] = []
        self.wanted: dict[PortSecrets, tuple[Any, Any]] = {}

    def renew(self, secrets, ports=None, *, anew=True):
        """Return what is wrong; take what came if nothing is."""
        said: list[Renewed | ConfigError] = []
        wanted, files = self.wanted[secrets]
        wanted = wanted if ports is None else ports
        cert, key = files or (None, None)
        tunnels = tuple(TunnelConfig(remote_port=port) for port in wanted)
        config = Config(tunnels=tunnels, token=TokenPlace(kind="none"), cert=cert, key=key)
        secrets.renew(self.helpers, config, said.append, anew=anew)
        for _ in range(400):
            if said:
                break
            self.loop.turn()
        assert len(said) == 1
        if isinstance(said[0], ConfigError):
            (problem,) = said[0].problems
            return problem
        secrets.take(said[0])
        return ""

    def make(self, ports, files=None):
        self.all.append(PortSecrets(Role.SERVER, fake_key, self.reader))
        self.wanted[self.all[-1]] = (ports, files)
        return self.all[-1]

    def close(self):
        self.helpers.close()
        while len(self.children):
            self.children.reap()
            self.loop.turn()
        for secrets in self.all:
            secrets.close()
        self.loop.close()


@pytest.fixture
def bench(tmp_path):
    free_port()
    before = Snapshot.take()
    made = Bench(tmp_path)
    yield made
    made.close()
    before.check()


def text(fd):
    return os.pread(fd, 1 << 20, 0)


def test_each_port_has_one_of_its_own(bench):
    certificates = bench.make([60_001, 60_002])
    assert bench.renew(certificates) == ""
    fds = [certificates.certificate_fd(port) for port in (60_001, 60_002, SPARE)]
    assert len({text(fd) for fd in fds}) == 3
    assert certificates.certificate_fd(60_003) == -1
    serials = set()
    for fd in fds:
        found = x509.load_pem_x509_certificate(text(fd))
        serials.add(found.serial_number)
        public = found.public_key()
        assert isinstance(public, ec.EllipticCurvePublicKey)
        assert isinstance(public.curve, ec.SECP256R1)
        assert found.issuer == found.subject
        names = [attribute.value for attribute in found.subject]
        assert len(names) == 1
        assert len(bytes.fromhex(str(names[0]))) == 16, "a random name, and nothing else"
        assert not list(found.extensions)
        tls = server_tls(os.dup(fd))
        assert isinstance(tls.context, ssl.SSLContext)
    assert len(serials) == 3


def test_nobody_can_change_them(bench):
    certificates = bench.make([60_001])
    bench.renew(certificates)
    fd = certificates.certificate_fd(60_001)
    seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) == seals
    with pytest.raises(PermissionError):
        os.pwrite(fd, b"x", 0)
    assert not os.get_inheritable(fd)


def test_a_new_start_makes_new_ones_and_closes_the_old(bench):
    certificates = bench.make([60_001])
    bench.renew(certificates)
    first = text(certificates.certificate_fd(60_001))
    bench.renew(certificates)
    assert text(certificates.certificate_fd(60_001)) != first


def test_ports_come_and_go_and_the_others_keep_theirs(bench):
    certificates = bench.make([60_001, 60_002])
    bench.renew(certificates)
    kept, gone = text(certificates.certificate_fd(60_001)), certificates.certificate_fd(60_002)
    assert bench.renew(certificates, [60_003, 60_001], anew=False) == ""
    assert text(certificates.certificate_fd(60_001)) == kept
    assert text(certificates.certificate_fd(60_003)).startswith(b"-----")
    assert certificates.certificate_fd(60_002) == -1
    assert not text_or_nothing(gone).startswith(b"-----"), "its descriptor is closed"


def text_or_nothing(fd):
    try:
        return text(fd)
    except OSError:
        return b""


def test_the_master_learns_nothing_of_the_library(bench):
    """cryptography is large: it lives and dies with the child. (This test has it already.)"""
    code = (
        "import sys, tunneltcp.master.master, tunneltcp.workers, tunneltcp.cli.run;"
        "sys.exit(any(name.startswith('cryptography') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


class TestConfigured:
    def test_ones_are_read_for_each_port_but_not_for_the_spare(self, bench, tmp_path):
        certificate = make_certificate("vps.example")
        certificates = bench.make([60_001, 60_002], certificate.save(tmp_path))
        assert bench.renew(certificates) == ""
        for port in (60_001, 60_002):
            tls = server_tls(os.dup(certificates.certificate_fd(port)))
            assert tls.certificate_hash == certificate.fingerprint
        assert certificate.text not in text(certificates.certificate_fd(SPARE))

    def test_a_chain_stays_whole(self, bench, tmp_path):
        ca = make_certificate("a CA")
        leaf = make_certificate("vps.example", ca=ca)
        cert, key = leaf.save(tmp_path)
        cert.write_bytes(leaf.text + ca.text)
        certificates = bench.make([60_001], (cert, key))
        assert bench.renew(certificates) == ""
        assert ca.text in text(certificates.certificate_fd(60_001))
        assert (
            server_tls(os.dup(certificates.certificate_fd(60_001))).certificate_hash
            == leaf.fingerprint
        )

    def test_ones_that_are_missing_are_named_and_the_old_stay(self, bench, tmp_path):
        cert, key = make_certificate("vps.example").save(tmp_path)
        certificates = bench.make([60_001], (cert, key))
        bench.renew(certificates)
        before = text(certificates.certificate_fd(60_001))
        key.unlink()
        reason = f"key: {key} cannot be read: no such file or directory"
        assert bench.renew(certificates) == reason
        assert text(certificates.certificate_fd(60_001)) == before

    @pytest.mark.parametrize("role", ["cert", "key"])
    def test_ones_that_are_no_pem_are_named(self, bench, tmp_path, role):
        paths = dict(zip(("cert", "key"), make_certificate("x").save(tmp_path), strict=True))
        paths[role].write_bytes(b"nothing")
        problem = bench.renew(bench.make([60_001], tuple(paths.values())))
        assert problem.endswith("are not a certificate and its key in PEM")
        assert str(paths[role]) in problem

    def test_a_key_of_another_certificate_is_named(self, bench, tmp_path):
        cert, key = make_certificate("one").save(tmp_path)
        key.write_bytes(make_certificate("other").key)
        problem = bench.renew(bench.make([60_001], (cert, key)))
        assert problem.endswith("the key is not that of the first certificate")

    def test_a_key_with_a_password_is_named_and_nobody_is_asked(self, bench, tmp_path):
        from cryptography.hazmat.primitives import serialization as serial

        certificate = make_certificate("x")
        cert, key = certificate.save(tmp_path)
        locked = serial.BestAvailableEncryption(b"secret")
        key.write_bytes(
            certificate.private_key.private_bytes(
                serial.Encoding.PEM, serial.PrivateFormat.PKCS8, locked
            )
        )
        problem = bench.renew(bench.make([60_001], (cert, key)))
        assert problem.endswith("the key needs a password; store it without one")

    def test_a_huge_file_is_named(self, bench, tmp_path):
        cert, key = make_certificate("x").save(tmp_path)
        cert.write_bytes(bytes(1 << 20))
        assert "is larger than" in bench.renew(bench.make([60_001], (cert, key)))
