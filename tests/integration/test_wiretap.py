"""Who listens on the way of a link learns nothing; who meddles with it is refused."""

from __future__ import annotations

import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.support.pattern import pattern
from tests.support.ports import free_port
from tests.support.processes import TOKEN, Master, TunnelPair
from tests.support.sockets import connect, receive_all, receive_exactly
from tests.support.wait import wait_until
from tests.support.wiretap import Middleman, Player, Recorder
from tunneltcp import __version__
from tunneltcp.protocol.preface import MAGIC, PREFACE_BYTES, port_key

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.apps import Apps

UP = b"what a visitor says to the app; "
SIZE = 50_000
IN_BETWEEN = "its proof is not for this connection"
"""What a server says of who is not alone on the way."""


@dataclass(frozen=True)
class Tapped:
    """A pair whose link is listened to, and what a whole session of it left there."""

    pair: TunnelPair
    recorder: Recorder
    tls: bool

    @property
    def port(self) -> int:
        return self.pair.port

    def needles(self) -> dict[str, bytes]:
        """What should not be seen on the way, by name."""
        key = port_key(TOKEN, self.port)
        host_id = (self.pair.client.state_dir / "host_id").read_text().strip()
        down = pattern(self.port, 0, SIZE)
        return {
            "token": TOKEN.encode(),
            "key": key,
            "key in hex": key.hex().encode(),
            "host id": host_id.encode(),
            "agent": f"tunneltcp/{__version__}".encode(),  # TLS says "tunneltcp/1" in clear
            "message": b'"type":"',
            "visitor": UP,
            "app": down[:32],
            "app, later": down[SIZE // 2 : SIZE // 2 + 32],
        }

    def seen(self) -> set[str]:
        """Which of them are in the capture."""
        capture = self.recorder.whole()
        return {name for name, needle in self.needles().items() if needle in capture}

    def first(self) -> list[tuple[str, bytes]]:
        """What was said on the connection that became the link."""
        return max(self.recorder.said, key=lambda said: sum(len(data) for _, data in said))


@pytest.fixture(scope="module", params=["tls", "plain"])
def tapped(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Tapped]:
    tls = request.param == "tls"
    folder = tmp_path_factory.mktemp("tapped")
    with socket.create_server(("127.0.0.1", 0)) as app:
        app.settimeout(10)
        pair = TunnelPair(
            [app.getsockname()[1]], folder, server_host="127.0.0.2", common={"tls": tls}
        )
        recorder = Recorder(("127.0.0.2", pair.port), ("127.0.0.1", pair.port))
        with recorder, pair:
            with connect(pair.port) as visitor, app.accept()[0] as target:
                target.settimeout(10)
                visitor.sendall(UP * 1000)
                assert receive_exactly(target, len(UP) * 1000) == UP * 1000
                data = pattern(pair.port, 0, SIZE)
                target.sendall(data)
                assert receive_exactly(visitor, SIZE) == data
            yield Tapped(pair, recorder, tls)


def test_a_capture_of_a_whole_session_tells_nothing(tapped: Tapped) -> None:
    """The same search finds all but the token and the key where there is no TLS."""
    assert len(tapped.recorder.whole()) > len(UP) * 1000 + SIZE
    readable = {"host id", "agent", "message", "visitor", "app", "app, later"}
    assert tapped.seen() == (set() if tapped.tls else readable)
    assert tapped.recorder.whole("up").startswith(MAGIC)


def test_what_a_client_said_is_of_no_use_a_second_time(tapped: Tapped) -> None:
    server = tapped.pair.server
    before = server.tunnel(tapped.port)
    link = b"".join(data for way, data in tapped.first() if way == "up")
    for size in (len(link), PREFACE_BYTES + 1):
        with connect(tapped.port) as thief:
            with suppress(OSError):  # the server may hang up in the middle of it
                thief.sendall(link[:size])
                thief.shutdown(socket.SHUT_WR)
            assert b"welcome" not in receive_all(thief, may_reset=True)
    after = server.tunnel(tapped.port)
    assert after["link"]["state"] == "up"
    assert after["pid"] == before["pid"]
    assert after["links_total"] == before["links_total"], "the link is the old one"
    words = "its preface was used before"
    wait_until(lambda: words in server.log_text(f"tunnel-{tapped.port}.log"), 5, words)


def test_what_a_server_said_is_of_no_use_a_second_time(tapped: Tapped, tmp_path: Path) -> None:
    player = Player(tapped.first())
    with player, dialling(tapped, player.port, tmp_path) as client:
        words = "TLS with" if tapped.tls else "is not the server itself (its proof is wrong)"
        wait_until(lambda: words in reason(client, tapped.port), 10, client.complaint)
        assert client.tunnel(tapped.port)["links_total"] == 0
        assert player.heard[0].startswith(MAGIC), "the client did dial"
        heard = b"".join(player.heard)
        assert TOKEN.encode() not in heard
        assert port_key(TOKEN, tapped.port) not in heard


@pytest.mark.parametrize("forges", [False, True], ids=["passes on", "forges"])
def test_a_relay_with_a_certificate_of_its_own_is_refused_by_both(
    forges: bool, apps: Apps, tmp_path: Path
) -> None:
    port = free_port()
    tunnels = [{"remote_port": port, "local_port": apps.add("echo")}]
    middle = Middleman(("127.0.0.1", port), forges=forges)
    with Master("server", tunnels, tmp_path / "server") as server, middle:
        config = [tunnels[0] | {"link_port": middle.port}]
        with Master("client", config, tmp_path / "client", server="127.0.0.1") as client:
            text = "(its proof is wrong)" if forges else "(our proof was not taken there"
            wait_until(lambda: text in reason(client, port), 10, client.complaint)
            assert "is not the server itself" in reason(client, port)
            assert text in client.log_text(f"tunnel-{port}.log")
            if not forges:
                log = lambda: server.log_text(f"tunnel-{port}.log")  # noqa: E731
                wait_until(lambda: IN_BETWEEN in log(), 5, "the server says why")
            for one in (server, client):
                assert one.tunnel(port)["links_total"] == 0
    heard = b"".join(middle.read)
    assert b'"type":"hello"' in heard, "he could read all of it"
    assert b'"type":"proof"' in heard
    assert TOKEN.encode() not in heard
    assert port_key(TOKEN, port) not in heard


def dialling(tapped: Tapped, port: int, folder: Path) -> Master:
    """A client of the same tunnel and token that dials another port."""
    tunnel = {"remote_port": tapped.port, "local_port": 1, "link_port": port}
    config = {"tunnels": [tunnel], "tls": tapped.tls}
    return Master("client", config, folder, server="127.0.0.1")


def reason(client: Master, port: int) -> str:
    """Why a client has no link."""
    return str(client.tunnel(port)["reason"])
