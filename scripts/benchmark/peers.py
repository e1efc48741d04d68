"""Other tunnels: how each is installed, configured and started.

Each comes as its manual says first, and with the settings that are best for what is
measured, where they differ.
"""

from __future__ import annotations

import os
import secrets
import subprocess
from typing import TYPE_CHECKING

from benchmark.lab import ROOT, BenchError, find_program
from benchmark.ways import Running, Way, output_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from benchmark.lab import Lab, Program
    from benchmark.places import Place

__all__ = ["PEER_FOLDER", "Bore", "Chisel", "Frp", "Rathole", "install_peers"]

PEER_FOLDER = ROOT / ".bench" / "peers"
"""Where ``--install-peers`` puts them; git does not look there."""

INSTALL_SECONDS = 1800.0
"""For one peer; a big one compiles for some minutes."""

BORE_CONTROL_PORT = 7835
"""Where every server of bore listens, and every client dials."""

_INSTALL = {
    "bore": ("cargo", "install", "--locked", "--root", str(PEER_FOLDER), "bore-cli"),
    # Not what it locks: that is a version of "time" which compilers since Rust 1.80 refuse.
    "rathole": ("cargo", "install", "--root", str(PEER_FOLDER), "rathole"),
    "chisel": ("go", "install", "github.com/jpillora/chisel@latest"),
    "frps": ("go", "install", "github.com/fatedier/frp/cmd/frps@latest"),
    "frpc": ("go", "install", "github.com/fatedier/frp/cmd/frpc@latest"),
}


def find_peer(name: str) -> str | None:
    """Its program: ours, or what the machine has."""
    return find_program(name, PEER_FOLDER / "bin")


def install_peers(say: Callable[[str], None]) -> None:
    """Install what is not there, by the package clients of their languages."""
    for name, command in _INSTALL.items():
        if find_peer(name) is not None:
            say(f"{name}: is there")
            continue
        if find_program(command[0]) is None:
            say(f"{name}: left out, {command[0]} is not installed")
            continue
        say(f"{name}: {' '.join(command)}")
        environment = {**os.environ, "GOBIN": str(PEER_FOLDER / "bin")}
        PEER_FOLDER.mkdir(parents=True, exist_ok=True)
        try:
            done = subprocess.run(
                command,
                env=environment,
                capture_output=True,
                text=True,
                timeout=INSTALL_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            say(f"{name}: left out, not installed within {INSTALL_SECONDS:g} s")
            continue
        if done.returncode:
            said = done.stderr.strip().splitlines()
            say(f"{name}: left out, {said[-1] if said else 'it failed'}")


class Peer(Way):
    """A tunnel with programs of its own."""

    programs: tuple[str, ...] = ()

    def missing(self) -> str | None:
        """Its programs."""
        lacking = [name for name in self.programs if find_peer(name) is None]
        return f"{', '.join(lacking)} is not installed (--install-peers)" if lacking else None

    def version(self) -> str:
        """As its program says it."""
        return output_of(str(find_peer(self.programs[0])), "--version")

    def run(self, lab: Lab, name: str, *words: str, prefix: Sequence[str] = ()) -> Program:
        """Start one of its programs."""
        return lab.start(name, [str(find_peer(name)), *words], prefix=prefix)


class Frp(Peer):
    """frps and frpc."""

    programs: tuple[str, ...] = ("frps", "frpc")

    def __init__(
        self, key: str, name: str, settings: str, *, tls: bool = True, mux: bool = True
    ) -> None:
        super().__init__(key, name, settings, encrypted=tls)
        self.tls, self.mux = tls, mux

    def bring_up(self, lab: Lab, place: Place, targets: Sequence[int]) -> Running:
        """One pair for all targets."""
        folder, port, here = lab.new_folder("frp"), lab.port(), place.server_address
        token, mux = secrets.token_hex(16), str(self.mux).lower()
        common = f'auth.token = "{token}"\ntransport.tcpMux = {mux}\n'
        (folder / "frps.toml").write_text(
            f'bindAddr = "{here}"\nbindPort = {port}\nproxyBindAddr = "{here}"\n'
            f"transport.maxPoolCount = 8\n{common}"
        )
        server = self.run(lab, "frps", "-c", f"{folder}/frps.toml", prefix=place.server_prefix)
        server.wait_listening(port)
        host, dialled = place.dial(port)
        publics = [lab.port() for _target in targets]
        pool = "" if self.mux else "transport.poolCount = 8\n"
        proxies = "".join(
            f'[[proxies]]\nname = "t{public}"\ntype = "tcp"\nlocalIP = "127.0.0.1"\n'
            f"localPort = {target}\nremotePort = {public}\n"
            for public, target in zip(publics, targets, strict=True)
        )
        (folder / "frpc.toml").write_text(
            f'serverAddr = "{host}"\nserverPort = {dialled}\n'
            f"transport.tls.enable = {str(self.tls).lower()}\n{pool}{common}{proxies}"
        )
        client = self.run(lab, "frpc", "-c", f"{folder}/frpc.toml", prefix=place.client_prefix)
        for public in publics:
            server.wait_listening(public)
        return Running([(here, public) for public in publics], [server], [client], folder)


class Rathole(Peer):
    """rathole, over plain TCP, Noise or TLS."""

    programs: tuple[str, ...] = ("rathole",)

    def __init__(self, key: str, name: str, settings: str, transport: str = "tcp") -> None:
        super().__init__(key, name, settings, encrypted=transport != "tcp")
        self.transport = transport

    def bring_up(self, lab: Lab, place: Place, targets: Sequence[int]) -> Running:
        """One pair for all targets."""
        folder, port, here = lab.new_folder("rathole"), lab.port(), place.server_address
        publics = [lab.port() for _target in targets]
        ours, theirs = self._transport(folder)
        token = secrets.token_hex(16)
        services = "".join(
            f'[server.services.t{public}]\ntoken = "{token}"\nbind_addr = "{here}:{public}"\n'
            for public in publics
        )
        (folder / "server.toml").write_text(
            f'[server]\nbind_addr = "{here}:{port}"\n{ours}{services}'
        )
        server = self.run(
            lab, "rathole", "--server", f"{folder}/server.toml", prefix=place.server_prefix
        )
        server.wait_listening(port)
        host, dialled = place.dial(port)
        services = "".join(
            f'[client.services.t{public}]\ntoken = "{token}"\n'
            f'local_addr = "127.0.0.1:{target}"\n'
            for public, target in zip(publics, targets, strict=True)
        )
        (folder / "client.toml").write_text(
            f'[client]\nremote_addr = "{host}:{dialled}"\n{theirs}{services}'
        )
        client = self.run(
            lab, "rathole", "--client", f"{folder}/client.toml", prefix=place.client_prefix
        )
        for public in publics:
            server.wait_listening(public)
        return Running([(here, public) for public in publics], [server], [client], folder)

    def _transport(self, folder: Path) -> tuple[str, str]:
        """The sections of both sides; keys are made."""
        if self.transport == "noise":
            made = subprocess.run(
                [str(find_peer("rathole")), "--genkey"],
                capture_output=True,
                text=True,
                check=True,
            ).stdout.split()
            private, public = made[made.index("Private") + 2], made[made.index("Public") + 2]
            kind = '[{0}.transport]\ntype = "noise"\n[{0}.transport.noise]\n'
            server = f'{kind.format("server")}local_private_key = "{private}"\n'
            return server, f'{kind.format("client")}remote_public_key = "{public}"\n'
        if self.transport == "tls":
            make_certificate(folder)
            kind = '[{0}.transport]\ntype = "tls"\n[{0}.transport.tls]\n'
            server = (
                f'{kind.format("server")}pkcs12 = "{folder}/both.p12"\n'
                'pkcs12_password = "bench"\n'
            )
            client = f'{kind.format("client")}trusted_root = "{folder}/cert"\n'
            return server, f'{client}hostname = "localhost"\n'
        return "", ""


class Bore(Peer):
    """bore: no encryption, a client for each target."""

    programs: tuple[str, ...] = ("bore",)

    def bring_up(self, lab: Lab, place: Place, targets: Sequence[int]) -> Running:
        """A server, and a client for each target."""
        here = place.server_address
        server = self.run(
            lab, "bore", "server", "--bind-addr", here, prefix=place.server_prefix
        )
        server.wait_listening(BORE_CONTROL_PORT)
        running = Running([], [server])
        host, dialled = place.dial(BORE_CONTROL_PORT)
        if dialled != BORE_CONTROL_PORT:
            raise BenchError(f"bore dials port {BORE_CONTROL_PORT} alone, so no relay fits")
        for target in targets:
            public = lab.port()
            words = [str(target), "--local-host", "127.0.0.1", "--to", host]
            words += ["--port", str(public)]
            running.client.append(
                self.run(lab, "bore", "local", *words, prefix=place.client_prefix)
            )
            server.wait_listening(public)
            running.endpoints.append((here, public))
        return running


class Chisel(Peer):
    """chisel: SSH inside a WebSocket."""

    programs: tuple[str, ...] = ("chisel",)

    def bring_up(self, lab: Lab, place: Place, targets: Sequence[int]) -> Running:
        """One pair for all targets."""
        port, here = lab.port(), place.server_address
        server = self.run(
            lab,
            "chisel",
            *("server", "--host", here, "--port", str(port), "--reverse"),
            prefix=place.server_prefix,
        )
        server.wait_listening(port)
        host, dialled = place.dial(port)
        publics = [lab.port() for _target in targets]
        remotes = [
            f"R:{here}:{public}:127.0.0.1:{target}"
            for public, target in zip(publics, targets, strict=True)
        ]
        client = self.run(
            lab,
            "chisel",
            *("client", f"http://{host}:{dialled}", *remotes),
            prefix=place.client_prefix,
        )
        for public in publics:
            server.wait_listening(public)
        return Running([(here, public) for public in publics], [server], [client])


def make_certificate(folder: Path) -> None:
    """A certificate for ``localhost`` that vouches for itself, alone and with its key."""
    commands = (
        "req -x509 -newkey rsa:2048 -nodes -keyout key -out cert -days 2 -subj /CN=localhost "
        "-addext subjectAltName=DNS:localhost",
        "pkcs12 -export -out both.p12 -inkey key -in cert -passout pass:bench",
    )
    for command in commands:
        subprocess.run(
            [str(find_program("openssl")), *command.split()],
            cwd=folder,
            check=True,
            capture_output=True,
        )
