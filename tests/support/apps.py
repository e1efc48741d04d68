"""Local apps to tunnel to: small ones of our own in one helper process, and real ones.

Our own (``Apps.add``, by kind):

``echo``        sends back what comes, until the end; then ends too
``pattern``     takes one request line and moves pattern bytes (see :func:`request`)
``banner``      speaks first, then echoes
``early``       answers 413 before it has read the request, then resets
``deaf``        accepts and never reads
``resetting``   takes one line, sends pattern bytes and ends them with a reset
``any``         becomes one of these, by the first word that it is sent (then a space, if the
                app takes a line, or the line's end)

Tests that drive a target step by step use a listening socket of their own instead.
"""

from __future__ import annotations

import getpass
import os
import signal
import socket
import struct
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.pattern import PatternChecker, PatternError, pattern
from tests.support.ports import free_port
from tests.support.require import require_program
from tests.support.service import (
    READ,
    WRITE,
    Service,
    ServiceProcess,
    run_service,
    unacknowledged,
)
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = [
    "BANNER",
    "EARLY_ANSWER",
    "AppStats",
    "Apps",
    "Sshd",
    "program",
    "refused_port",
    "request",
    "start_iperf3",
    "start_nginx",
    "start_sshd",
]

BANNER = b"220 a server that speaks first\r\n"
EARLY_ANSWER = (
    b"HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 8\r\n\r\ntoo big\n"
)

_CHUNK = 256 * 1024
_LINGER_RST = struct.pack("ii", 1, 0)
_AGAIN = (BlockingIOError, InterruptedError)


def request(
    *, up_seed: int = 0, up: int = 0, down_seed: int = 0, down: int = 0, flags: str = ""
) -> bytes:
    """The request line of a ``pattern`` app.

    The visitor then sends ``up`` bytes of the pattern ``up_seed`` while the app sends
    ``down`` bytes (-1: for ever) of ``down_seed``. When both are done the app sends one
    line: ``OK`` and the bytes it has checked, or what was wrong. Then it ends.

    Args:
        flags: ``e``: before its last line the app waits for the visitor's end, after which
            nothing may come. ``f``: the app sends ``down``, no last line, and finishes its
            direction before it reads the visitor's bytes. ``r``: the app reads all bytes and
            the visitor's end before it sends.
    """
    return f"{up_seed} {up} {down_seed} {down} {flags or '-'}\n".encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class AppStats:
    """What an app has seen."""

    accepted: int
    open: int
    received: int
    """Bytes."""
    sent: int
    """Bytes."""
    ends: dict[str, int]
    """How connections ended, seen from the app: ``eof``, ``reset``, ``wrong``."""
    errors: list[str]
    """What was wrong with the bytes of the first few ``wrong`` ones."""


class _Peer:
    """One connection of an app; a subclass is one behaviour."""

    def __init__(self, app: _App, sock: socket.socket) -> None:
        self.app = app
        self.sock = sock
        self.out = bytearray()
        self.reading = True
        self.over = False
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    # What a behaviour says.

    def on_start(self) -> None:
        """The connection is here."""

    def on_data(self, data: memoryview) -> None:
        """Bytes came."""

    def on_eof(self) -> None:
        """The visitor has finished."""
        self.finish()

    def on_space(self) -> None:
        """Everything to be sent was taken by the kernel; more may be sent."""

    # What it can do.

    def send(self, data: bytes | memoryview) -> bool:
        """Send; say whether the kernel took all of it."""
        if not self.out:
            try:
                sent = self.sock.send(data)
            except _AGAIN:
                sent = 0
            self.app.sent += sent
            data = data[sent:]
        self.out += data
        return not self.out

    def finish(self) -> None:
        """End: cleanly, with everything sent."""
        if not self.out:
            self.end("eof")

    def end(self, how: str) -> None:
        """Close, and count how."""
        if self.over:
            return
        self.over = True
        self.app.ends[how] = self.app.ends.get(how, 0) + 1
        self.app.peers.discard(self)
        self.app.service.forget(self.sock)
        self.sock.close()

    def reset(self) -> None:
        """End with RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RST)
        self.end("ours")

    # The loop's side.

    def ready(self, events: int) -> None:
        with self.judged():
            if events & WRITE:
                self._flush()
            if events & READ and not self.over and self.reading:
                self._read()
        self.watch()

    @contextmanager
    def judged(self) -> Iterator[None]:
        """What goes wrong within the block is the end of it."""
        try:
            yield
        except PatternError as error:
            self.app.errors = [*self.app.errors, str(error)][:5]
            self.end("wrong")
        except OSError:
            self.end("reset")

    def _flush(self) -> None:
        if self.out:
            sent = self.sock.send(self.out)
            self.app.sent += sent
            del self.out[:sent]
        if not self.out:
            self.on_space()

    def _read(self) -> None:
        buffer = self.app.service.buffer
        try:
            size = self.sock.recv_into(buffer)
        except _AGAIN:
            return
        if size:
            self.app.received += size
            self.on_data(buffer[:size])
        else:
            self.reading = False
            self.on_eof()

    def wants_write(self) -> bool:
        return bool(self.out)

    def watch(self) -> None:
        if not self.over:
            events = (READ if self.reading else 0) | (WRITE if self.wants_write() else 0)
            self.app.service.watch(self.sock, events, self.ready)


class _Echo(_Peer):
    finished = False

    def on_data(self, data: memoryview) -> None:
        self.reading = self.send(data)

    def on_eof(self) -> None:
        self.finished = True
        self.finish()

    def on_space(self) -> None:
        if self.finished:
            self.end("eof")
        self.reading = not self.finished


class _Banner(_Echo):
    def on_start(self) -> None:
        self.send(BANNER)


class _Early(_Peer):
    def on_data(self, data: memoryview) -> None:
        self.send(EARLY_ANSWER)
        self.reset()


class _Deaf(_Peer):
    def on_start(self) -> None:
        self.reading = False


class _Lined(_Peer):
    """Reads one line of words first."""

    line = b""
    started = False

    def on_data(self, data: memoryview) -> None:
        if self.started:
            self.on_body(data)
            return
        line, newline, rest = (self.line + bytes(data)).partition(b"\n")
        self.line = line
        if newline:
            self.started = True
            self.on_line([word.decode() for word in line.split()])
            if rest and not self.over:
                self.on_body(memoryview(rest))

    def on_line(self, words: list[str]) -> None:
        raise NotImplementedError

    def on_body(self, data: memoryview) -> None:
        raise NotImplementedError


class _Resetting(_Lined):
    def on_line(self, words: list[str]) -> None:
        seed, size = (int(word) for word in words)
        if self.send(pattern(seed, 0, size)):
            self.on_space()

    def on_space(self) -> None:
        """Reset when the other end has it all: a reset drops what is on its way."""
        if self.over:
            return
        if unacknowledged(self.sock):
            self.app.service.call_later(0.001, self.on_space)
        else:
            self.reset()


class _Pattern(_Lined):
    """Moves pattern bytes as :func:`request` says."""

    up = down = sent = 0
    down_seed = 0
    flags = ""
    eof = False
    verdict_sent = False

    def on_line(self, words: list[str]) -> None:
        up_seed, self.up, self.down_seed, self.down = (int(word) for word in words[:4])
        self.flags = words[4]
        self.checker = PatternChecker(up_seed)
        self.reading = "f" not in self.flags
        self.step()

    def on_body(self, data: memoryview) -> None:
        if self.checker.offset + len(data) > self.up >= 0:
            raise PatternError(self.checker.seed, self.up, bytes(data[-8:]))
        self.checker.feed(data)
        self.step()

    def on_eof(self) -> None:
        self.eof = True
        if not self.started:
            self.end("eof")
            return
        self.step()

    def on_space(self) -> None:
        self.step()

    def wants_write(self) -> bool:
        return bool(self.out) or (self.started and self._may_send() and self._left() != 0)

    def _left(self) -> int:
        return _CHUNK if self.down < 0 else self.down - self.sent

    def _may_send(self) -> bool:
        return "r" not in self.flags or self.eof

    def _ends_by_itself(self) -> bool:
        return "e" not in self.flags and self.up >= 0

    def step(self) -> None:
        """Send as far as the socket takes it; then the last line and the end."""
        if not self.started or self.over:
            return
        if self._may_send():
            for _ in range(4):
                size = min(self._left(), _CHUNK)
                if self.out or not size:
                    break
                data = pattern(self.down_seed, self.sent, size)
                self.sent += size
                self.send(data)
        if self.out or self._left() or not self._may_send():
            return
        if "f" in self.flags:
            self._finish_first()
        elif self.checker.offset >= self.up and (self.eof or self._ends_by_itself()):
            self._say(f"OK {self.checker.offset}\n".encode())
        elif self.eof:
            self._say(f"SHORT {self.checker.offset} of {self.up}\n".encode())

    def _finish_first(self) -> None:
        if not self.reading and not self.eof:
            self.sock.shutdown(socket.SHUT_WR)
            self.reading = True
        if self.eof:
            self.end("eof" if self.checker.offset == self.up else "wrong")

    def _say(self, line: bytes) -> None:
        if not self.verdict_sent:
            self.verdict_sent = True
            self.send(line)
        if not self.out:
            self.end("eof" if line.startswith(b"OK") else "wrong")


class _Any(_Peer):
    """Hands its connection to another behaviour."""

    line = b""

    def on_data(self, data: memoryview) -> None:
        self.line += bytes(data)
        line, newline, rest = self.line.partition(b"\n")
        if not newline:
            return
        word, _, words = line.partition(b" ")
        self.over = True
        self.app.peers.discard(self)
        self.app.service.forget(self.sock)
        peer = _KINDS[word.decode()](self.app, self.sock)
        self.app.peers.add(peer)
        with peer.judged():
            peer.on_start()
            if first := (words + b"\n" if words else b"") + rest:
                peer.on_data(memoryview(first))
        peer.watch()


_KINDS: dict[str, type[_Peer]] = {
    "any": _Any,
    "echo": _Echo,
    "pattern": _Pattern,
    "banner": _Banner,
    "early": _Early,
    "deaf": _Deaf,
    "resetting": _Resetting,
}


class _App:
    """One listening port and its connections."""

    def __init__(self, service: _AppService, kind: type[_Peer], sock: socket.socket) -> None:
        self.service = service
        self.kind = kind
        self.sock = sock
        self.peers: set[_Peer] = set()
        self.accepted = self.received = self.sent = 0
        self.ends: dict[str, int] = {}
        self.errors: list[str] = []
        service.watch(sock, READ, self._accept)

    def _accept(self, _events: int) -> None:
        for _ in range(128):
            try:
                sock, _peer = self.sock.accept()
            except OSError:
                return
            self.accepted += 1
            peer = self.kind(self, sock)
            self.peers.add(peer)
            peer.on_start()
            peer.watch()

    def close(self) -> None:
        self.service.forget(self.sock)
        self.sock.close()

    def stats(self) -> dict[str, Any]:
        return {
            "accepted": self.accepted,
            "open": len(self.peers),
            "received": self.received,
            "sent": self.sent,
            "ends": self.ends,
            "errors": self.errors,
        }


class _AppService(Service):
    """All apps of one helper process."""

    def __init__(self) -> None:
        super().__init__()
        self.buffer = memoryview(bytearray(1 << 20))
        self.apps: dict[str, _App] = {}

    def do_add(self, kind: str, host: str, port: int) -> int:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
        sock.listen(4096)
        sock.setblocking(False)
        port = int(sock.getsockname()[1])
        self.apps[f"{host}:{port}"] = _App(self, _KINDS[kind], sock)
        return port

    def do_remove(self, host: str, port: int) -> None:
        self.apps.pop(f"{host}:{port}").close()

    def do_stats(self, host: str, port: int) -> dict[str, Any]:
        return self.apps[f"{host}:{port}"].stats()

    def do_reset_all(self, host: str, port: int) -> int:
        peers = tuple(self.apps[f"{host}:{port}"].peers)
        for peer in peers:
            peer.reset()
        return len(peers)


class Apps(ServiceProcess):
    """A process with any number of apps."""

    def __init__(self, *, prefix: Sequence[str] = ()) -> None:
        super().__init__("tests.support.apps", prefix=prefix)

    def add(self, kind: str, host: str = "127.0.0.1", port: int | None = None) -> int:
        """Start an app and return its port."""
        chosen = free_port() if port is None else port
        return int(self.call("add", kind=kind, host=host, port=chosen))

    def remove(self, port: int, host: str = "127.0.0.1") -> None:
        """Stop listening: who comes now is refused. Connections that are go on."""
        self.call("remove", host=host, port=port)

    def stats(self, port: int, host: str = "127.0.0.1") -> AppStats:
        """Return what an app has seen."""
        return AppStats(**self.call("stats", host=host, port=port))

    def reset_all(self, port: int, host: str = "127.0.0.1") -> int:
        """RST to every connection of an app; say how many there were."""
        return int(self.call("reset_all", host=host, port=port))


@contextmanager
def refused_port(host: str = "127.0.0.1") -> Iterator[int]:
    """A port that refuses: bound, so that nobody else takes it, and never listening."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        port = free_port()
        sock.bind((host, port))
        yield port


# Real programs.


@contextmanager
def program(
    command: Sequence[str], ready: Callable[[], bool], log: Path, *, stop: int = signal.SIGTERM
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program in the foreground for the time of a block; its output goes to a file.

    Raises:
        AssertionError: If it ends, or is not ready within 10 s; with its output.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    try:

        def check() -> bool:
            code = process.poll()
            if code is not None:
                raise RuntimeError(f"{command[0]} ended with {code}: {log.read_text()[-2000:]}")
            return ready()

        wait_until(check, 10, lambda: f"{command[0]} is ready: {log.read_text()[-2000:]}")
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(stop)
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(5)


def _listens(port: int, host: str = "127.0.0.1") -> Callable[[], bool]:
    def check() -> bool:
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex((host, port)) == 0

    return check


@contextmanager
def start_nginx(folder: Path, port: int, prefix: Sequence[str] = ()) -> Iterator[int]:
    """Run nginx with one worker, no files of root's, answering ``ok`` to everything."""
    nginx = require_program("nginx")
    (folder / "temp").mkdir(parents=True, exist_ok=True)
    user = f"user {getpass.getuser()};\n" if os.geteuid() == 0 else ""
    temporary = "".join(
        f"  {name}_temp_path temp/{name};\n"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = folder / "nginx.conf"
    config.write_text(
        f"{user}daemon off;\nworker_processes 1;\npid nginx.pid;\nerror_log error.log;\n"
        "events { worker_connections 4096; }\n"
        "http {\n  access_log off;\n  keepalive_requests 100000000;\n"
        f"  keepalive_timeout 600s;\n{temporary}"
        f"  server {{ listen 127.0.0.1:{port} backlog=4096;\n"
        '    location / { default_type text/plain; return 200 "ok\\n"; }\n  }\n}\n'
    )
    command = [*prefix, nginx, "-p", str(folder), "-c", str(config), "-e", "error.log"]
    with program(command, _listens(port), folder / "output.log", stop=signal.SIGQUIT):
        yield port


@contextmanager
def start_iperf3(folder: Path, port: int) -> Iterator[int]:
    """Run an iperf3 server on loopback."""
    iperf3 = require_program("iperf3")
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "iperf3.log"
    command = [iperf3, "-s", "-B", "127.0.0.1", "-p", str(port), "--forceflush"]
    # A probe that connects would be taken for a test that failed; it says when it listens.
    with program(command, lambda: b"listening" in log.read_bytes(), log):
        yield port


@dataclass(frozen=True, slots=True, kw_only=True)
class Sshd:
    """A running OpenSSH server."""

    port: int
    user: str
    key: Path
    known_hosts: Path

    def command(self, *words: str, port: int) -> list[str]:
        """The command that runs ``words`` there, reached at another port of loopback."""
        options = {
            "BatchMode": "yes",
            "IdentitiesOnly": "yes",
            "StrictHostKeyChecking": "yes",
            "UserKnownHostsFile": str(self.known_hosts),
            "GlobalKnownHostsFile": "/dev/null",
            "HostKeyAlias": "target",
            "ConnectTimeout": "10",
            "LogLevel": "ERROR",
        }
        told = [f"-o{key}={value}" for key, value in options.items()]
        ssh = require_program("ssh")
        where = ["-p", str(port), f"{self.user}@127.0.0.1"]
        return [ssh, "-F", "/dev/null", "-i", str(self.key), *told, *where, *words]


@contextmanager
def start_sshd(folder: Path) -> Iterator[Sshd]:
    """Run an OpenSSH server for the present user, with keys made for it."""
    sshd, keygen = require_program("sshd"), require_program("ssh-keygen")
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    for name in ("host", "user"):
        command = [keygen, "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    (folder / "authorized_keys").write_text((folder / "user.pub").read_text())
    (folder / "known_hosts").write_text("target " + (folder / "host.pub").read_text())
    port = free_port()
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd of a root wants its empty folder
    config = folder / "sshd_config"
    config.write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {folder}/host\nPidFile none\n"
        f"AuthorizedKeysFile {folder}/authorized_keys\nStrictModes no\nUsePAM no\n"
        "PermitRootLogin prohibit-password\nPasswordAuthentication no\nUseDNS no\n"
        "KbdInteractiveAuthentication no\nMaxStartups 100\nLogLevel INFO\n"
    )
    command = [sshd, "-D", "-e", "-f", str(config)]
    with program(command, _listens(port), folder / "sshd.log"):
        yield Sshd(
            port=port,
            user=getpass.getuser(),
            key=folder / "user",
            known_hosts=folder / "known_hosts",
        )


def python(*words: str) -> list[str]:
    """The command that runs this Python."""
    return [sys.executable, *words]


if __name__ == "__main__":
    run_service(_AppService)
