"""TLS over a socket: in any pieces, without waiting, and never a hidden byte."""

from __future__ import annotations

import os
import random
import socket
import ssl
from contextlib import suppress
from types import SimpleNamespace

import pytest

from tests.support.certificates import client_settings, common_certificate, make_certificate
from tests.support.fake_peer import tcp_pair
from tests.support.fake_tls import TlsPeer
from tests.support.pattern import pattern
from tunneltcp.master.spawn import fork
from tunneltcp.net.tls import (
    _PIECE_BYTES,
    MAX_RAW_BYTES,
    TlsConnection,
    _pieces,
    client_context,
    server_tls,
)

VIEW_BYTES = 1 << 20


def again(call) -> None:
    """Call until it fails, and not for ever."""
    for _ in range(100):
        with suppress(BlockingIOError):
            call()


class Pair:
    """A connection under test, and its far end."""

    def __init__(
        self, *, server: bool = True, settings: ssl.SSLContext | None = None, name: str = ""
    ) -> None:
        near, far = tcp_pair()
        self.sock = near
        certificate = common_certificate()
        self.tls = server_tls(certificate.fd())
        ours = self.tls.context if server else (client_context(verify=False))
        theirs = settings or (client_settings() if server else certificate.settings())
        self.near = TlsConnection(near, ours, server_side=server, server_name=name)
        self.far = TlsPeer(far, theirs, server_side=not server)
        self.far.begun = True
        self.view = memoryview(bytearray(VIEW_BYTES))

    def shake_hands(self) -> Pair:
        for _ in range(20):
            self.far._drive()
            self.far.pump()
            if self.near.shake_hands():
                break
        for _ in range(3):
            self.far.pump()
        assert self.far.secured
        assert self.receive() == b"", "a server's tickets, perhaps"
        return self

    def receive(self) -> bytes:
        """All that is there now."""
        data = b""
        try:
            while count := self.near.recv_into(self.view):
                data += self.view[:count]
        except BlockingIOError:
            pass
        return data

    def close(self) -> None:
        self.near.close()
        self.far.close()


@pytest.fixture
def make():
    pairs: list[Pair] = []

    def make_pair(**settings) -> Pair:
        pairs.append(Pair(**settings))
        return pairs[-1]

    yield make_pair
    for pair in pairs:
        pair.close()


@pytest.fixture(params=[True, False], ids=["server", "client"])
def pair(request, make):
    return make(server=request.param).shake_hands()


class TestHandshake:
    @pytest.mark.parametrize("server", [True, False])
    def test_is_tls_1_3_with_our_alpn(self, make, server):
        pair = make(server=server).shake_hands()
        assert pair.far.tls.version() == "TLSv1.3"
        assert pair.far.tls.selected_alpn_protocol() == "tunneltcp/1"

    def test_gives_both_ends_the_same_hash(self, make):
        pair = make().shake_hands()
        assert pair.far.certificate_hash == pair.tls.certificate_hash
        assert pair.tls.certificate_hash == common_certificate().fingerprint
        client = make(server=False).shake_hands()
        assert client.near.certificate_hash == common_certificate().fingerprint

    def test_hashes_the_leaf_of_a_chain(self):
        ca = make_certificate("a CA")
        leaf = make_certificate("leaf", ca=ca)
        fd = os.memfd_create("chain")
        os.write(fd, leaf.text + ca.text + leaf.key)
        assert server_tls(fd).certificate_hash == leaf.fingerprint

    def test_sends_no_ticket(self, make):
        pair = make().shake_hands()
        pair.far.pump()
        assert not pair.far.tls.session.has_ticket

    def test_says_no_name_unless_it_is_asked_for(self, make):
        names = []
        settings = common_certificate().settings()
        settings.sni_callback = lambda _tls, name, _context: names.append(name)
        make(server=False, settings=settings).shake_hands()
        make(server=False, settings=settings, name="vps.example").shake_hands()
        assert names == [None, "vps.example"]

    @pytest.mark.parametrize("server", [True, False])
    def test_may_come_byte_by_byte(self, make, server):
        pair = make(server=server)
        held = bytearray()
        done = False
        for _ in range(4000):
            _drive_held(pair.far, held)
            if held:
                pair.far.sock.send(held[:1])
                del held[:1]
            done = done or pair.near.shake_hands()
        assert done
        assert pair.far.secured

    def test_without_alpn_fails(self, make):
        pair = make(settings=client_settings(alpn=None))
        with pytest.raises(OSError, match="does not want tunneltcp") as failed:
            pair.shake_hands()
        assert failed.value.strerror

    def test_with_another_alpn_fails(self, make):
        pair = make(settings=client_settings(alpn="h2"))
        with pytest.raises(OSError, match="tunneltcp"):
            pair.shake_hands()

    def test_of_a_client_fails_where_the_server_chose_no_alpn(self, make):
        settings = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        fd = common_certificate().fd()
        settings.load_cert_chain(f"/proc/self/fd/{fd}")
        os.close(fd)
        with pytest.raises(OSError, match="tunneltcp"):
            make(server=False, settings=settings).shake_hands()

    @pytest.mark.parametrize("server", [True, False])
    def test_with_tls_1_2_fails_and_says_so_to_the_other(self, make, server):
        settings = client_settings() if server else common_certificate().settings()
        settings.maximum_version = ssl.TLSVersion.TLSv1_2
        pair = make(server=server, settings=settings)
        with pytest.raises(OSError, match="does not speak TLS 1"):
            pair.shake_hands()
        pair.far.pump()
        assert pair.far.problem

    @pytest.mark.parametrize(
        ("data", "sentence"),
        [
            (b"GET / HTTP/1.1\r\n\r\n", "HTTP"),
            (b"\x00\x20" + bytes(100), "not TLS"),
            (bytes(range(200)), "not TLS"),
            (b"\x16\x03\x01\x00\x05\x01\xff\xff\xff\xff", "."),
            (b"\x17\x03\x03\x40\x00" + bytes(0x4000), "."),
        ],
    )
    def test_of_junk_fails(self, make, data, sentence):
        pair = make()
        pair.far.begun = False
        pair.far.send(data)
        with pytest.raises(OSError, match=sentence):
            again(pair.near.shake_hands)

    def test_that_is_huge_fails_early(self, make):
        """A ClientHello of 100,000 bytes in honest records: OpenSSL would wait for it."""
        pair = make()
        pair.far.begun = False
        body = b"\x01" + (100_000).to_bytes(3, "big") + b"\x03\x03" + bytes(100_000)
        for start in range(0, len(body), 1000):
            piece = body[start : start + 1000]
            pair.far.send(b"\x16\x03\x01" + len(piece).to_bytes(2, "big") + piece)
        with pytest.raises(OSError, match="too much"):
            again(pair.near.shake_hands)

    def test_that_ends_early_fails(self, make):
        pair = make()
        pair.far.begun = False
        pair.far.send(b"\x16\x03\x01")
        pair.far.finish()
        with pytest.raises(OSError, match="closed"):
            again(pair.near.shake_hands)

    def test_waits_for_nothing(self, make):
        assert make().near.shake_hands() is False
        assert make(server=False).near.shake_hands() is False


def _drive_held(far: TlsPeer, held: bytearray) -> None:
    """Let the far end go on, but keep what it would send."""
    far._incoming.write(_take(far.sock))
    try:
        if not far.secured:
            far.tls.do_handshake()
            far.secured = True
    except ssl.SSLWantReadError:
        pass
    held += far._outgoing.read()


def _take(sock: socket.socket) -> bytes:
    try:
        return sock.recv(1 << 16)
    except BlockingIOError:
        return b""


class TestProof:
    """Before the peer has proven itself, its bytes are counted."""

    def test_little_is_received(self, pair):
        pair.far.send(b"hello")
        assert pair.near.recv(4096) == b"hello"
        with pytest.raises(BlockingIOError):
            pair.near.recv(4096)

    def test_more_than_16_kib_fails(self, pair):
        pair.far.send(bytes(MAX_RAW_BYTES))
        with pytest.raises(OSError, match="too much"):
            again(lambda: pair.near.recv(4096))

    def test_many_empty_records_fail(self, pair):
        """Each costs us work, and none of them is a byte of a message."""
        pair.far.pump()
        for _ in range(1000):
            pair.far.send_raw(b"\x14\x03\x03\x00\x01\x01")
        with pytest.raises(OSError, match=r"[a-z]"):
            again(lambda: pair.near.recv(4096))

    def test_the_end_is_empty(self, pair):
        pair.far.finish()
        assert pair.near.recv(4096) == b""

    def test_a_whole_record_leaves_nothing_hidden(self, pair):
        pair.far.send(pattern(1, 0, 10_000))
        assert pair.near.recv(100) == pattern(1, 0, 10_000)


class TestReceive:
    @pytest.mark.parametrize("size", [1, 16_383, 16_384, 16_385, 1_000_000])
    def test_gives_every_byte_in_its_place(self, pair, size):
        pair.far.send(pattern(2, 0, size))
        data = b""
        while len(data) < size:
            pair.far.pump()
            data += pair.receive()
        assert data == pattern(2, 0, size)

    def test_takes_any_pieces(self, make):
        """The ciphertext is cut anywhere; what is whole is given out, nothing else."""
        pair = make().shake_hands()
        rng = random.Random(4)
        raw = _encrypted(pair.far, pattern(3, 0, 60_000))
        data = b""
        while raw:
            size = rng.choice([1, 2, 5, 100, 5000, 20_000])
            pair.far.sock.send(raw[:size])
            raw = raw[size:]
            data += pair.receive()
        assert data == pattern(3, 0, 60_000)

    def test_byte_by_byte(self, make):
        pair = make().shake_hands()
        data = b""
        for byte in _encrypted(pair.far, b"hello"):
            pair.far.sock.send(bytes([byte]))
            data += pair.receive()
        assert data == b"hello"

    def test_leaves_nothing_that_the_loop_cannot_see(self, pair):
        """After each call either the kernel holds more, or there is nothing more."""
        for seed in range(30):
            size = 1 + seed * 9973 % 40_000
            pair.far.send(pattern(seed, 0, size))
        total = sum(1 + seed * 9973 % 40_000 for seed in range(30))
        got = 0
        while got < total:
            pair.far.pump()
            try:
                got += pair.near.recv_into(pair.view)
            except BlockingIOError:
                continue
            assert pair.near._tls.pending() == 0
            assert pair.near._incoming.pending == 0

    def test_in_a_short_view_hides_nothing_either(self, pair):
        view = memoryview(bytearray(128 * 1024))
        raw = _encrypted(pair.far, pattern(5, 0, 300_000))
        data = b""
        while raw or len(data) < 300_000:
            try:
                raw = raw[pair.far.sock.send(raw[:20_000]) :] if raw else b""
                count = pair.near.recv_into(view)
            except BlockingIOError:
                continue
            data += view[:count]
            assert pair.near._tls.pending() == 0
            assert pair.near._incoming.pending == 0
        assert data == pattern(5, 0, 300_000)

    def test_nothing_there_would_block(self, pair):
        with pytest.raises(BlockingIOError):
            pair.near.recv_into(pair.view)

    @pytest.mark.parametrize("polite", [True, False])
    def test_the_end_is_the_end_with_or_without_goodbye(self, pair, polite):
        pair.far.send(b"last words")
        if polite:
            with pytest.raises(ssl.SSLWantReadError):
                pair.far.tls.unwrap()
            pair.far.send_raw(pair.far._outgoing.read())
        pair.far.finish()
        assert pair.near.recv_into(pair.view) == 10
        assert pair.near.recv_into(pair.view) == 0
        assert pair.near.recv_into(pair.view) == 0

    def test_bytes_behind_a_goodbye_do_not_make_it_spin(self, pair):
        with pytest.raises(ssl.SSLWantReadError):
            pair.far.tls.unwrap()
        pair.far.send_raw(pair.far._outgoing.read() + bytes(100))
        assert pair.near.recv_into(pair.view) == 0

    def test_close_notify_behind_data_is_an_end(self, make):
        """Also for who only asks later, and where the connection itself goes on."""
        pair = make().shake_hands()
        pair.far.tls.write(b"data")
        with pytest.raises(ssl.SSLWantReadError):
            pair.far.tls.unwrap()
        pair.far.sock.send(pair.far._outgoing.read())
        view = memoryview(bytearray(1 << 20))
        assert pair.near.recv_into(view) == 4
        assert pair.near.recv_into(view) == 0

    def test_half_a_record_at_the_end_gives_no_byte_of_it(self, make):
        pair = make().shake_hands()
        pair.far.sock.send(_encrypted(pair.far, b"cut in the middle")[:-3])
        pair.far.finish()
        with pytest.raises(BlockingIOError):
            pair.near.recv_into(pair.view)
        assert pair.near.recv_into(pair.view) == 0

    def test_a_reset_is_an_error(self, pair):
        pair.far.reset()
        with pytest.raises(ConnectionResetError):
            pair.near.recv_into(pair.view)

    @pytest.mark.parametrize("where", [0, 5, 20, -1])
    def test_a_changed_bit_is_an_error(self, make, where):
        pair = make().shake_hands()
        raw = bytearray(_encrypted(pair.far, pattern(6, 0, 1000)))
        raw[where] ^= 1
        pair.far.sock.send(raw)
        with pytest.raises(OSError, match=r"[a-z]") as failed:
            pair.near.recv_into(pair.view)
        assert not isinstance(failed.value, ssl.SSLError | BlockingIOError)


def _encrypted(far: TlsPeer, data: bytes) -> bytes:
    far.tls.write(data)
    return far._outgoing.read()


class TestSend:
    def test_joins_what_is_small(self, pair):
        """One record, not a thousand: each has 22 bytes of its own."""
        buffers = [pattern(1, 16 * index, 16) for index in range(1000)]
        assert pair.near.sendmsg(buffers) == 16_000
        raw = _take(pair.far.sock)
        assert len(raw) == 16_000 + 22
        pair.far._incoming.write(raw)
        pair.far._drive()
        assert bytes(pair.far.received) == pattern(1, 0, 16_000)

    def test_a_header_goes_with_what_follows(self, pair):
        """Or each large frame costs one more call, and the network a tiny packet."""
        sent = []

        def send(data):
            sent.append(len(data))
            return len(data)

        pair.near._sock = SimpleNamespace(send=send)
        sizes = [16, 262_144, 16, 262_144, 16]
        assert pair.near.sendmsg([bytes(size) for size in sizes]) == sum(sizes)
        records = [(65_536, 4), (65_536, 4), (65_536, 4)]
        whole = [(16 + 65_536, 5), *records, (16 + 65_536, 5), *records, (16, 1)]
        assert sent == [size + count * 22 for size, count in whole]

    def test_of_one_small_piece_is_one_record(self, pair):
        assert pair.near.send(pattern(1, 0, 100)) == 100
        raw = _take(pair.far.sock)
        assert len(raw) == 100 + 22

    @pytest.mark.parametrize("size", [100, 65_536, 65_537, 1_000_000])
    def test_of_one_piece_takes_all_or_asks_to_be_called_again(self, pair, size):
        pair.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)
        data = pattern(8, 0, size)
        pair.far.reads = False
        while True:
            try:
                assert pair.near.send(data) == size
                break
            except BlockingIOError:
                pair.far.reads = True
                pair.far.pump()
        pair.far.reads = True
        for _ in range(10):
            pair.far.pump()
        assert bytes(pair.far.received) == data

    @pytest.mark.parametrize("sizes", [[16, 262_144, 16, 262_144], [16, 200, 16, 70_000, 16]])
    def test_takes_all_or_asks_to_be_called_again(self, pair, sizes):
        pair.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)
        starts = [sum(sizes[:index]) for index in range(len(sizes))]
        pieces = [
            memoryview(pattern(7, start, size))
            for start, size in zip(starts, sizes, strict=True)
        ]
        blocked = 0
        pair.far.reads = False
        while True:
            try:
                assert pair.near.sendmsg(list(pieces)) == sum(sizes)
                break
            except BlockingIOError:
                blocked += 1
                pair.far.reads = True
                pair.far.pump()
        for _ in range(10):
            pair.far.pump()
        assert blocked or sum(sizes) < 100_000
        assert bytes(pair.far.received) == pattern(7, 0, sum(sizes))

    def test_holds_no_more_than_one_batch(self, pair):
        """Called again and again while nothing is read, it encrypts nothing more."""
        batch = [memoryview(bytes(262_144)), memoryview(bytes(262_144))]
        held = blocked = 0
        for _ in range(10_000):  # the kernel may take more a moment after it took no more
            try:
                pair.near.sendmsg(batch)
                blocked = 0
            except BlockingIOError:
                blocked += 1
            held = max(held, len(pair.near._unsent))
            if blocked == 100:
                break
        assert blocked == 100
        assert 0 < held < 70_000

    def test_to_who_has_reset_is_an_error(self, pair):
        pair.far.reset()
        with pytest.raises(ConnectionError):
            again(lambda: pair.near.sendmsg([b"hello"]))


class TestVerify:
    """Only where a client asks for it."""

    def connect(self, make, ca, name, leaf):
        pair = make(server=False, settings=leaf.settings(), name=name)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=ca.text.decode())
        context.set_alpn_protocols(["tunneltcp/1"])
        pair.near = TlsConnection(pair.sock, context, server_side=False, server_name=name)
        pair.shake_hands()

    def test_takes_who_is_vouched_for(self, make):
        ca = make_certificate("a CA")
        self.connect(make, ca, "vps.example", make_certificate("vps.example", ca=ca))

    def test_takes_an_address_in_the_certificate(self, make):
        ca = make_certificate("a CA")
        self.connect(make, ca, "192.0.2.1", make_certificate("192.0.2.1", ca=ca))

    def test_refuses_another_name(self, make):
        ca = make_certificate("a CA")
        with pytest.raises(OSError, match="Hostname mismatch"):
            self.connect(make, ca, "vps.example", make_certificate("evil.example", ca=ca))

    def test_refuses_who_vouches_for_himself(self, make):
        with pytest.raises(OSError, match="certificate is not good"):
            self.connect(
                make, make_certificate("a CA"), "vps.example", make_certificate("vps.example")
            )

    def test_reads_the_cas_of_a_file(self, tmp_path):
        cert, key = make_certificate("a CA").save(tmp_path)
        context = client_context(cert)
        assert context.check_hostname
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert len(context.get_ca_certs()) == 1
        with pytest.raises(ssl.SSLError):
            client_context(key)
        with pytest.raises(FileNotFoundError):
            client_context(tmp_path / "nothing")


def test_forked_workers_share_no_randomness():
    """OpenSSL is used before the fork, and the fork is not Python's: it must notice."""
    ssl.RAND_bytes(16)
    seen = {ssl.RAND_bytes(16)}
    for _ in range(3):
        reader, writer = os.pipe()
        pid, _ = fork()
        if pid == 0:
            os.write(writer, ssl.RAND_bytes(16))
            os._exit(0)
        os.close(writer)
        seen.add(os.read(reader, 16))
        os.close(reader)
        os.waitpid(pid, 0)
    seen.add(ssl.RAND_bytes(16))
    assert len(seen) == 5
    assert b"" not in seen


def test_what_is_encrypted_at_once_is_bounded():
    """Many small buffers are as a large one is: OpenSSL keeps what it took room for."""
    rng = random.Random(5)
    sizes = [rng.choice([16, 300, 3000, 16_383, 16_384, 200_000]) for _ in range(300)]
    buffers = [pattern(6, number, size) for number, size in enumerate(sizes)]
    pieces = _pieces(buffers, sum(sizes))[::-1]
    assert b"".join(pieces) == b"".join(buffers)
    assert max(map(len, pieces)) <= _PIECE_BYTES
    assert len(pieces) < sum(sizes) / _PIECE_BYTES * 3
