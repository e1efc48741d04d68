"""What a master says when it is ready: one line, and on a terminal what to do next.

At most six lines, and nothing in them that is not so: ports that wait are said to wait,
and an address that only this machine can reach is not offered to others.
"""

from __future__ import annotations

import ipaddress
import os
import shlex
from typing import TYPE_CHECKING, Final

from tunneltcp.config.tokens import OWN_TOKEN
from tunneltcp.control.context import Role
from tunneltcp.log import write_if_room
from tunneltcp.master.folders import run_base
from tunneltcp.master.process import ProcessState
from tunneltcp.text import ranges

if TYPE_CHECKING:
    from pathlib import Path

    from tunneltcp.config.model import Config
    from tunneltcp.master.master import Master
    from tunneltcp.master.tunnel import Tunnel

__all__ = ["announce", "announcement"]

_HOST: Final = "HOST"
"""Stands for what we cannot know: the name by which others reach this machine."""


def announce(master: Master, file: Path | None) -> None:
    """Say on standard output what runs; never wait for whoever reads it.

    Args:
        master: Whose tunnels have just been started.
        file: Its config; None if it was started with a list of ports.
    """
    lines = announcement(master, file)
    text = "\n".join(lines) if os.isatty(1) else lines[0]
    write_if_room(1, f"{text}\n".encode())


def announcement(master: Master, file: Path | None) -> list[str]:
    """Return what is said: the line for everybody, then at most five for a person."""
    rest = _client_lines(master) if master.role is Role.CLIENT else _server_lines(master, file)
    kept = [f"  logs   {master.folders.log}", f"  state  {master.folders.state}"]
    look = f"  look   tunneltcp status{_which(master)}"
    return [_ready_line(master), *kept, look, *rest]


def _ready_line(master: Master) -> str:
    running = _ports(master, ProcessState.RUNNING)
    stopped = _ports(master, ProcessState.STOPPED)
    waiting = [t for t in master.tunnels if t.config.remote_port not in {*running, *stopped}]
    what = f"linking to {master.config.server}"
    if master.role is Role.SERVER:
        what = f"listening on {', '.join(master.config.bind)}"
    notes = []
    if len(waiting) == 1:
        reason = waiting[0].reason or "it is starting"
        notes.append(f"{waiting[0].config.remote_port} waits: {reason}")
    elif waiting:
        notes.append(f"{ranges([t.config.remote_port for t in waiting])} wait, see status")
    if stopped:
        notes.append(f"{ranges(stopped)} stopped")
    note = f" ({'; '.join(notes)})" if notes else ""
    ports = ranges(running) or "none"
    return f"tunneltcp {master.role.value} ready: {what} port {ports}{note}"


def _ports(master: Master, state: ProcessState) -> list[int]:
    return [t.config.remote_port for t in master.tunnels if t.life.state is state]


def _client_lines(master: Master) -> list[str]:
    """Say which app is reached where; the first only, where there are many."""
    tunnels = master.tunnels
    server = _bracketed(master.config.server)
    shown = tunnels if len(tunnels) <= 2 else tunnels[:1]
    lines = [f"  {server}:{t.config.remote_port} leads to {_target(t)}" for t in shown]
    more = len(tunnels) - len(shown)
    return [*lines, f"  and {more} more"] if more else lines


def _server_lines(master: Master, file: Path | None) -> list[str]:
    """Say what to run beside the apps, and whether anybody can get here from there."""
    host, where = _HOST, "where your apps are; HOST: a name or address of this machine"
    lines = []
    if all(_is_loopback(address) for address in master.config.bind):
        host, where = master.config.bind[0], "on this machine"
        lines = ["  note   only this machine can reach it; --bind '*' opens it to others"]
    elif master.config.auth == "none":
        host, where = "127.0.0.1", "on this machine"
        lines = ['  note   "auth" is "none": only this machine can be the client']
    elif specific := [one for one in master.config.bind if _is_specific(one)]:
        host, where = specific[0], "where your apps are"
    if not lines:
        login = f"  login  tunneltcp login {_bracketed(host)}{_login_port(master)}"
        login += _tls_option(master.config)
        lines = [f"{login}   (once, {where}; {_token_words(master.config)})"]
        where = "then, there"
    return [*lines, f"  next   {_client_command(master.config, file, host)}   ({where})"]


def _token_words(config: Config) -> str:
    """Say how to have the token; one that is kept elsewhere is not printed."""
    if config.clients:
        return '"tunneltcp token --client NAME" prints the token'
    if config.token != OWN_TOKEN:
        return f"the token is in {config.token}"
    return '"tunneltcp token" prints the token'


def _tls_option(config: Config) -> str:
    """Return what a command without a config needs to speak as this server does."""
    return "" if config.tls else " --no-tls"


def _login_port(master: Master) -> str:
    """Return the port to prove a token at, unless it is the one that is tried anyway."""
    ports = [tunnel.remote_port for tunnel in master.config.tunnels]
    return "" if 60_001 in ports else f":{ports[0]}"


def _client_command(config: Config, file: Path | None, host: str) -> str:
    """Return what goes with this server: the same file, if it says where the apps are."""
    if file is not None and all(tunnel.local_port for tunnel in config.tunnels):
        return f"tunneltcp client {shlex.quote(str(file))} --server {host}"
    first = config.tunnels[0]
    local = first.local_port or 8000
    options = " --auth none" if config.auth == "none" else ""
    options += _tls_option(config)
    return f"tunneltcp expose {local} --to {_bracketed(host)}:{first.remote_port}{options}"


def _which(master: Master) -> str:
    """Return the options by which a command finds this master, if it needs any."""
    if master.folders.run != run_base() / master.instance:
        return f" --run-dir {shlex.quote(str(master.folders.run))}"
    return "" if master.instance == master.role.value else f" --instance {master.instance}"


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


def _is_specific(address: str) -> bool:
    return not (_is_loopback(address) or ipaddress.ip_address(address).is_unspecified)


def _target(tunnel: Tunnel) -> str:
    return f"{_bracketed(tunnel.config.local_host)}:{tunnel.config.local_port}"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
