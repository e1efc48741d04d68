"""Ways to reach a target: none, ours, references, and OpenSSH. Others are in peers.py."""

from __future__ import annotations

import getpass
import os
import re
import secrets
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from benchmark.lab import BenchError, find_program

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmark.lab import Lab, Program
    from benchmark.places import Endpoint, Place

__all__ = ["Direct", "Mux", "Ours", "Relays", "Running", "Ssh", "Way", "output_of"]


MAX_VERSION_CHARACTERS = 60


@dataclass
class Running:
    """A way that is up."""

    endpoints: list[Endpoint]
    """Where the visitors of each target go."""
    server: list[Program] = field(default_factory=list)
    client: list[Program] = field(default_factory=list)
    folder: Path = Path()

    def stop(self) -> None:
        """End it, all at once: nobody waits for the other side's farewell."""
        programs = [*self.client, *self.server]
        for program in programs:
            program.terminate()
        for program in programs:
            program.stop()

    def check(self) -> None:
        """Raise BenchError if a program of it has ended."""
        for program in [*self.client, *self.server]:
            program.check()


class Way:
    """One way; ``start`` brings it up."""

    def __init__(self, key: str, name: str, settings: str, *, encrypted: bool = False) -> None:
        self.key = key
        """Short, for the command line."""
        self.name = name
        self.settings = settings
        """For the report: how it differs from what its user gets without a thought."""
        self.encrypted = encrypted

    def missing(self) -> str | None:
        """What it needs and this machine lacks; None if nothing."""
        return None

    def version(self) -> str:
        """As its program says it."""
        return ""

    def start(self, lab: Lab, place: Place, targets: Sequence[int]) -> Running:
        """Bring it up, with one public port for each target.

        Raises:
            BenchError: If it does not come up; then nothing of it is left.
        """
        with lab.undo_on_failure():
            return self.bring_up(lab, place, targets)

    def bring_up(self, lab: Lab, place: Place, targets: Sequence[int]) -> Running:
        """What :meth:`start` does for this one."""
        raise NotImplementedError


class Direct(Way):
    """No tunnel: the visitor dials the target, over the path if there is one."""

    def bring_up(self, lab: Lab, place: Place, targets: Sequence[int]) -> Running:
        """Nothing to do."""
        del lab
        return Running([place.reach(target) for target in targets])


class Relays(Way):
    """Two copying relays in a row."""

    def bring_up(self, lab: Lab, place: Place, targets: Sequence[int]) -> Running:
        """One pair for each target."""
        running = Running([])
        for target in targets:
            public, inner = lab.port(), lab.port()
            there, here = place.target_address, place.server_address
            client = lab.python(
                "reference_relay",
                f"{there}:{inner}",
                f"127.0.0.1:{target}",
                prefix=place.client_prefix,
            )
            client.wait_listening(inner)
            host, port = place.reach(inner)
            server = lab.python(
                "reference_relay",
                f"{here}:{public}",
                f"{host}:{port}",
                prefix=place.server_prefix,
            )
            server.wait_listening(public)
            running.server.append(server)
            running.client.append(client)
            running.endpoints.append((here, public))
        return running


class Mux(Way):
    """The reference with one link for all visitors."""

    def bring_up(self, lab: Lab, place: Place, targets: Sequence[int]) -> Running:
        """One pair for each target."""
        running = Running([])
        for target in targets:
            public, link = lab.port(), lab.port()
            here = place.server_address
            server = lab.python(
                "reference_mux",
                "server",
                f"{here}:{link}",
                f"{here}:{public}",
                prefix=place.server_prefix,
            )
            server.wait_listening(link)
            host, port = place.dial(link)
            client = lab.python(
                "reference_mux",
                "client",
                f"{host}:{port}",
                f"127.0.0.1:{target}",
                prefix=place.client_prefix,
            )
            server.wait_listening(public)
            running.server.append(server)
            running.client.append(client)
            running.endpoints.append((here, public))
        return running


class Ours(Way):
    """tunneltcp as its user starts it."""

    def __init__(self, key: str, name: str, settings: str, options: dict[str, Any]) -> None:
        super().__init__(key, name, settings, encrypted=options.get("tls", True))
        self.options = options

    def with_options(self, **options: object) -> Ours:
        """The same with other settings beside its own."""
        return Ours(self.key, self.name, self.settings, {**self.options, **options})

    def version(self) -> str:
        """As ``tunneltcp --version`` says it."""
        return output_of(sys.executable, "-m", "tunneltcp", "--version")

    def bring_up(self, lab: Lab, place: Place, targets: Sequence[int]) -> Running:
        """A master on each side."""
        folder = lab.new_folder("ours")
        token = folder / "token"
        token.touch(0o600)
        token.write_text(secrets.token_hex(32) + "\n")
        ports = [lab.port() for _target in targets]
        for role in ("server", "client"):
            (folder / role).mkdir()
        tunnels: list[dict[str, object]] = [{"remote_port": port} for port in ports]
        server = self._master(
            lab,
            "server",
            folder,
            {"tunnels": tunnels},
            ("--bind", place.server_address),
            place.server_prefix,
        )
        server.wait_listening(ports[-1])
        host = ""
        tunnels = []
        for port, target in zip(ports, targets, strict=True):
            host, link = place.dial(port)
            tunnels.append({"remote_port": port, "local_port": target, "link_port": link})
        client = self._master(
            lab,
            "client",
            folder,
            {"tunnels": tunnels},
            ("--server", host),
            place.client_prefix,
        )
        endpoints = [(place.server_address, port) for port in ports]
        return Running(endpoints, [server], [client], folder)

    def _master(
        self,
        lab: Lab,
        role: str,
        folder: Path,
        config: dict[str, Any],
        words: tuple[str, ...],
        prefix: tuple[str, ...],
    ) -> Program:
        home = folder / role
        path = home / "config.json"
        path.write_bytes(orjson.dumps({**config, **self.options}))
        command = [sys.executable, "-m", "tunneltcp.master", "--role", role, *words]
        command += ["--config", str(path), "--token-file", str(folder / "token")]
        command += [f"--{name}-dir={home / name}" for name in ("run", "state", "log")]
        return lab.start(f"tunneltcp-{role}", command, prefix=prefix)

    @staticmethod
    def status(running: Running, role: str) -> dict[str, Any]:
        """What a master says of itself.

        Raises:
            BenchError: If it does not answer.
        """
        run_dir = str(running.folder / role / "run")
        command = [sys.executable, "-m", "tunneltcp", "status", "--json", "--run-dir", run_dir]
        done = subprocess.run(command, capture_output=True, timeout=20, check=False)
        if done.returncode:
            raise BenchError(f"tunneltcp status: {done.stderr.decode()[-300:]}")
        found: dict[str, Any] = orjson.loads(done.stdout)
        return found


class Ssh(Way):
    """``ssh -R`` with a server of its own."""

    def __init__(self, key: str, name: str, settings: str, *words: str) -> None:
        super().__init__(key, name, settings, encrypted=True)
        self.words = words

    def missing(self) -> str | None:
        """OpenSSH, both sides."""
        wanted = ("ssh", "sshd", "ssh-keygen")
        lacking = [name for name in wanted if find_program(name) is None]
        return f"{', '.join(lacking)} is not installed" if lacking else None

    def version(self) -> str:
        """As ``ssh -V`` says it."""
        return output_of("ssh", "-V")

    def bring_up(self, lab: Lab, place: Place, targets: Sequence[int]) -> Running:
        """One connection for all targets, as ssh has it."""
        folder, port, here = lab.new_folder("ssh"), lab.port(), place.server_address
        for name in ("host", "user"):
            keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
            subprocess.run(keygen, check=True, stdin=subprocess.DEVNULL)
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # sshd of a root wants its empty folder
        (folder / "sshd_config").write_text(
            f"ListenAddress {here}\nPort {port}\nHostKey {folder}/host\nPidFile none\n"
            f"AuthorizedKeysFile {folder}/user.pub\nStrictModes no\nUsePAM no\n"
            "PermitRootLogin prohibit-password\nPasswordAuthentication no\nUseDNS no\n"
            "KbdInteractiveAuthentication no\nGatewayPorts clientspecified\n"
            "ClientAliveInterval 0\n"
        )
        sshd = str(find_program("sshd"))
        server = lab.start(
            "sshd",
            [sshd, "-D", "-e", "-f", f"{folder}/sshd_config"],
            prefix=place.server_prefix,
        )
        server.wait_listening(port)
        host, dialled = place.dial(port)
        publics = [lab.port() for _target in targets]
        command = ["ssh", "-N", "-F", "/dev/null", "-i", f"{folder}/user", "-p", str(dialled)]
        command += ["-oBatchMode=yes", "-oStrictHostKeyChecking=no", "-oLogLevel=ERROR"]
        command += ["-oUserKnownHostsFile=/dev/null", "-oExitOnForwardFailure=yes", *self.words]
        for public, target in zip(publics, targets, strict=True):
            command += ["-R", f"{here}:{public}:127.0.0.1:{target}"]
        command.append(f"{getpass.getuser()}@{host}")
        client = lab.start("ssh", command, prefix=place.client_prefix)
        client.wait_listening(publics[-1], server)
        return Running([(here, public) for public in publics], [server], [client], folder)


def output_of(*command: str) -> str:
    """The line with a version that a program says, or else its first, in a few words."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except OSError as error:
        return str(error)
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    said = [line for line in lines if re.search(r"\d\.\d+\.\d", line)] or lines
    return re.sub(r"\s+", " ", said[0]).strip()[:MAX_VERSION_CHARACTERS] if said else ""
