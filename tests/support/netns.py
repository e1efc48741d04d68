"""Two hosts on one machine: network namespaces joined by a cable that can be cut.

What a relay cannot do happens here: packets vanish without a word. Everything needs root;
what the kernel lacks is told by a probe, for a skip that names it.
"""

from __future__ import annotations

import functools
import itertools
import os
import socket
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.support.require import require_ability, require_program, require_root

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Host", "TwoHosts", "missing_netns", "missing_nft", "missing_ss_kill", "two_hosts"]

_numbers = itertools.count()

_DROP_ALL = """
table inet tunneltcp_test {
  chain in  { type filter hook input  priority 0; policy drop; iifname "lo" accept; }
  chain out { type filter hook output priority 0; policy drop; oifname "lo" accept; }
}
"""


def _run(*words: str, given: str | None = None) -> str:
    done = subprocess.run(words, input=given, capture_output=True, text=True, timeout=20)
    if done.returncode:
        raise OSError(f"{' '.join(words)}: exit {done.returncode}: {done.stderr.strip()}")
    return done.stdout


@functools.cache
def missing_netns() -> str | None:
    """Say what this kernel lacks for two hosts; None if nothing."""
    name = f"ttprobe{os.getpid()}"
    try:
        _run("ip", "netns", "add", name)
    except OSError as error:
        return f"no network namespaces: {error}"
    try:
        _run("ip", "-n", name, "link", "add", "ttp0", "type", "veth", "peer", "name", "ttp1")
    except OSError as error:
        return f"no veth: {error}"
    finally:
        _run("ip", "netns", "del", name)
    return None


@functools.cache
def missing_nft() -> str | None:
    """Say why packets cannot be dropped by nft; None if they can."""
    name = f"ttprobe{os.getpid()}"
    _run("ip", "netns", "add", name)
    try:
        _run("ip", "netns", "exec", name, "nft", "-f", "-", given=_DROP_ALL)
    except OSError as error:
        return f"no nft: {error}"
    finally:
        _run("ip", "netns", "del", name)
    return None


@functools.cache
def missing_ss_kill() -> str | None:
    """Say why ``ss -K`` cannot kill a connection; None if it can (INET_DIAG_DESTROY)."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            other, _address = server.accept()
            with other:
                _run("ss", "-K", "dport", "=", str(port), "src", "127.0.0.1")
                client.settimeout(1)
                try:
                    client.recv(1)
                except TimeoutError:
                    return "ss -K does nothing: the kernel has no INET_DIAG_DESTROY"
                except OSError:
                    return None
    return "ss -K did not end a connection as it should"


class Host:
    """One network namespace with one cable."""

    def __init__(self, name: str, device: str, address: str, address6: str) -> None:
        self.name = name
        self.device = device
        self.address = address
        self.address6 = address6

    @property
    def prefix(self) -> tuple[str, ...]:
        """The words that run a command there."""
        return ("ip", "netns", "exec", self.name)

    def run(self, *words: str, given: str | None = None) -> str:
        """Run a command there; return what it said."""
        return _run(*self.prefix, *words, given=given)

    def silence(self) -> None:
        """Drop every packet to and from others, without a word."""
        require_ability(missing_nft())
        self.run("nft", "-f", "-", given=_DROP_ALL)

    def heal(self) -> None:
        """Let packets pass again; harmless if they do."""
        try:
            self.run("nft", "delete", "table", "inet", "tunneltcp_test")
        except OSError as error:
            if "No such file" not in str(error):
                raise

    def kill_connections(self, *which: str) -> None:
        """End connections as if by RST (``ss -K``), chosen as ``ss`` does."""
        require_ability(missing_ss_kill())
        self.run("ss", "-K", *which)

    def replace_address(self, address: str) -> None:
        """Take the IPv4 address away and give another of the same network."""
        self.run("ip", "addr", "del", f"{self.address}/24", "dev", self.device)
        self.run("ip", "addr", "add", f"{address}/24", "dev", self.device)
        self.address = address

    def unplug(self) -> None:
        """Pull the cable."""
        self.run("ip", "link", "set", self.device, "down")

    def plug(self) -> None:
        """Put it in again."""
        self.run("ip", "link", "set", self.device, "up")


class TwoHosts:
    """A server's host and a client's host, joined by one cable."""

    def __init__(self) -> None:
        tag = f"{os.getpid() % 100_000}n{next(_numbers)}"
        self.server = Host(f"tts{tag}", f"vs{tag}", "10.213.7.1", "fd00:7::1")
        self.client = Host(f"ttc{tag}", f"vc{tag}", "10.213.7.2", "fd00:7::2")

    @property
    def hosts(self) -> tuple[Host, Host]:
        """Both."""
        return self.server, self.client

    def set_up(self) -> None:
        """Make the namespaces, the cable and the addresses."""
        for host in self.hosts:
            _run("ip", "netns", "add", host.name)
        one, other = self.hosts
        near = ["ip", "link", "add", one.device, "netns", one.name, "type", "veth"]
        _run(*near, "peer", "name", other.device, "netns", other.name)
        for host in self.hosts:
            host.run("ip", "link", "set", "lo", "up")
            host.run("ip", "addr", "add", f"{host.address}/24", "dev", host.device)
            host.run("ip", "addr", "add", f"{host.address6}/64", "dev", host.device, "nodad")
            host.run("ip", "link", "set", host.device, "up")

    def tear_down(self) -> None:
        """Remove everything; processes inside must have ended."""
        for host in self.hosts:
            try:
                _run("ip", "netns", "del", host.name)
            except OSError as error:
                if "No such file" not in str(error):
                    raise


@contextmanager
def two_hosts() -> Iterator[TwoHosts]:
    """Two hosts for the time of a block; skips, or in CI fails, where they cannot be."""
    require_root()
    for name in ("ip", "nft", "ss"):
        require_program(name)
    require_ability(missing_netns())
    hosts = TwoHosts()
    try:
        hosts.set_up()
        yield hosts
    finally:
        hosts.tear_down()
