"""TLS with real processes: what is on by default, a certificate of one's own, a CA."""

from __future__ import annotations

import signal
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.support.certificates import client_settings, make_certificate
from tests.support.fake_link import RawClient
from tests.support.fake_tls import TlsPeer
from tests.support.pattern import pattern
from tests.support.ports import free_port
from tests.support.processes import TOKEN, Master, TunnelPair, run_tunneltcp
from tests.support.sockets import connect, expect_pattern, receive_exactly
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.conftest import Tunnels
    from tests.support.apps import Apps
    from tests.support.visitors import Load


def shown(port: int) -> bytes:
    """The hash of the certificate that a server shows on a link, right now."""
    raw = RawClient(port, token=TOKEN, tls=client_settings(), run_id="77" * 16, proves=False)
    try:

        def greeted() -> bool:
            raw.pump()
            return raw.greeted

        wait_until(greeted, 5, "TLS")
        assert isinstance(raw.peer, TlsPeer)
        return raw.peer.certificate_hash
    finally:
        raw.close()


def test_each_tunnel_shows_a_certificate_of_its_own(tunnels: Tunnels) -> None:
    ports = [tunnels.public["echo"], tunnels.public["pattern"]]
    assert shown(ports[0]) == shown(ports[0])
    assert shown(ports[0]) != shown(ports[1])


@pytest.mark.slow
def test_the_successor_of_a_worker_shows_the_same(apps: Apps, tmp_path: Path) -> None:
    with TunnelPair([apps.add("echo")], tmp_path) as pair:
        before = shown(pair.port)
        pair.server.allowed.append("killed")
        pair.server.wait_for_successor(pair.port, pair.server.kill_worker(pair.port))
        pair.wait_links()
        assert shown(pair.port) == before


@pytest.mark.slow
def test_nothing_in_clear_and_several_hundred_visitors(
    apps: Apps, load: Load, tmp_path: Path
) -> None:
    """What a relay on the way sees holds no byte of a visitor, and all arrives through cuts."""
    with TunnelPair([apps.add("pattern")], tmp_path, chaos=True) as pair:
        load.transfer("many", pair.port, count=300, up=20_000, down=30_000)
        assert load.finish("many", 40).outcomes == {"ok": 300}
        load.transfer("much", pair.port, count=3, up=8_000_000, down=8_000_000)
        assert load.finish("much", 40).outcomes == {"ok": 3}


@pytest.mark.slow
def test_a_certificate_is_read_again_and_a_ca_may_vouch_for_it(
    apps: Apps, load: Load, tmp_path: Path
) -> None:
    ca = make_certificate("the CA")
    (tmp_path / "ca").mkdir()
    ca_path, _ = ca.save(tmp_path / "ca")
    first, second = (make_certificate("127.0.0.1", ca=ca) for _ in range(2))
    cert, key = first.save(tmp_path)
    with TunnelPair(
        [apps.add("echo")],
        tmp_path,
        server_options={"cert": str(cert), "key": str(key)},
        client_options={"verify": str(ca_path)},
    ) as pair:
        assert shown(pair.port) == first.fingerprint
        with connect(pair.port) as visitor:
            visitor.sendall(b"before")
            assert receive_exactly(visitor, 6) == b"before"
            second.save(tmp_path)
            pair.server.send(signal.SIGHUP)
            wait_until(lambda: shown(pair.port) == second.fingerprint, 10, "the new one")
            visitor.sendall(b"after")
            assert receive_exactly(visitor, 5) == b"after", "its link was not touched"

            cert.write_bytes(b"broken")
            pair.server.allowed.append("config not taken")
            pair.server.send(signal.SIGHUP)
            wait_until(lambda: "config not taken" in pair.server.log_text(), 10)
            assert shown(pair.port) == second.fingerprint
            visitor.sendall(b"still")
            assert receive_exactly(visitor, 5) == b"still"


@pytest.mark.slow
def test_a_client_that_wants_a_ca_takes_nobody_else(tmp_path: Path) -> None:
    stranger, _ = make_certificate("another CA").save(tmp_path)
    port = free_port()
    tunnels = [{"remote_port": port, "local_port": 1}]
    with (
        Master("server", tunnels, tmp_path / "server", bind=["127.0.0.1"]),
        Master(
            "client",
            {"tunnels": tunnels, "verify": str(stranger)},
            tmp_path / "client",
            server="127.0.0.1",
        ) as client,
    ):
        text = "the server's certificate is not good"
        wait_until(lambda: text in client.log_text(f"tunnel-{port}.log"), 10)
        assert not client.link_up(port)


@pytest.mark.parametrize("role", ["server", "client"])
def test_files_that_cannot_be_used_are_told_at_once(tmp_path: Path, role: str) -> None:
    config = tmp_path / "config.json"
    port = free_port()
    missing = tmp_path / "nothing.pem"
    more = f'"cert": "{missing}", "key": "{missing}"' if role == "server" else (
        f'"server": "127.0.0.1", "verify": "{missing}"'
    )  # fmt: skip
    config.write_text(f'{{"tunnels": [{{"remote_port": {port}, "local_port": 1}}], {more}}}')
    folders = [f"--{name}-dir={tmp_path / name}" for name in ("state", "run", "log")]
    done = run_tunneltcp(role, str(config), *folders)
    assert done.returncode == 2
    assert str(missing) in done.stderr
    assert "no such file" in done.stderr.lower()


def test_visitors_may_speak_tls_themselves(tunnels: Tunnels) -> None:
    """A ClientHello is not a link: the app gets it, byte by byte."""
    visitor, target = tunnels.open()
    with visitor, target:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = client_settings().wrap_bio(incoming, outgoing)
        with pytest.raises(ssl.SSLWantReadError):
            tls.do_handshake()
        hello = outgoing.read()
        visitor.sendall(hello)
        assert receive_exactly(target, len(hello)) == hello
        target.shutdown(socket.SHUT_WR)


def test_much_goes_both_ways_at_once(tunnels: Tunnels) -> None:
    visitor, target = tunnels.open()
    with visitor, target, ThreadPoolExecutor(4) as pool:
        sizes = (3_000_000, 4_000_000)
        moving = [
            pool.submit(visitor.sendall, pattern(0, 0, sizes[0])),
            pool.submit(target.sendall, pattern(1, 0, sizes[1])),
            pool.submit(expect_pattern, target, 0, sizes[0]),
            pool.submit(expect_pattern, visitor, 1, sizes[1]),
        ]
        for one in moving:
            one.result(20)
