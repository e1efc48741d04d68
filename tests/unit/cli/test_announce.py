"""What a master says when it is ready: honest, and at most six lines."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from tunneltcp.cli.announce import announce, announcement
from tunneltcp.config.model import Config, TunnelConfig
from tunneltcp.config.tokens import TokenPlace
from tunneltcp.control.context import Role
from tunneltcp.master.folders import run_base
from tunneltcp.master.process import ProcessState

UP, WAITING, STOPPED = ProcessState.RUNNING, ProcessState.BACKOFF, ProcessState.STOPPED


def master_of(
    *states: ProcessState, role=Role.SERVER, local_port=0, instance="", run=None, **settings
):
    tunnels = [
        SimpleNamespace(
            config=TunnelConfig(
                remote_port=60001 + n, local_port=local_port and local_port + n
            ),
            life=SimpleNamespace(state=state),
            reason=f"port {60001 + n} is busy" if state is WAITING else "",
        )
        for n, state in enumerate(states)
    ]
    instance = instance or role.value
    return SimpleNamespace(
        tunnels=tunnels, role=role, instance=instance,
        config=Config(tunnels=tuple(t.config for t in tunnels), **settings),
        folders=SimpleNamespace(
            log=Path("/l"), state=Path("/s"), run=run or run_base() / instance
        ),
    )  # fmt: skip


def test_a_server_with_a_list_of_ports():
    lines = announcement(master_of(UP, UP, UP), None)
    assert lines == [
        "tunneltcp server ready: listening on 0.0.0.0, :: port 60001-60003",
        "  logs   /l",
        "  state  /s",
        "  look   tunneltcp status",
        "  login  tunneltcp login HOST   (once, where your apps are; HOST: a name or address of"
        ' this machine; "tunneltcp token" prints the token)',
        "  next   tunneltcp expose 8000 --to HOST:60001   (then, there)",
    ]


def test_a_server_that_only_this_machine_reaches():
    lines = announcement(master_of(UP, UP, UP, bind=("127.0.0.1",)), None)
    assert lines == [
        "tunneltcp server ready: listening on 127.0.0.1 port 60001-60003",
        "  logs   /l",
        "  state  /s",
        "  look   tunneltcp status",
        "  note   only this machine can reach it; --bind '*' opens it to others",
        "  next   tunneltcp expose 8000 --to 127.0.0.1:60001   (on this machine)",
    ]


@pytest.mark.parametrize(
    ("settings", "login", "expose"),
    [
        ({"tls": False}, "HOST --no-tls   (once", "HOST:60001 --no-tls   (then"),
        ({"auth": "none"}, None, "127.0.0.1:60001 --auth none   (on"),
        ({"auth": "none", "tls": False}, None, "127.0.0.1:60001 --auth none --no-tls   (on"),
        (
            {"auth": "none", "bind": ("::1",)},
            None,
            "[::1]:60001 --auth none   (on this machine",
        ),
    ],
)
def test_the_commands_speak_as_this_server_does(settings, login, expose):
    """As they were, they failed: "only one wants TLS", "there is no token"."""
    lines = announcement(master_of(UP, **settings), None)
    assert f"  next   tunneltcp expose 8000 --to {expose}" in lines[-1]
    logins = [line for line in lines if line.startswith("  login")]
    assert bool(logins) == bool(login)
    assert not login or f"tunneltcp login {login}" in logins[0]
    assert len(lines) <= 6


@pytest.mark.parametrize("kind", ["file", "config", "variable"])
def test_a_token_from_elsewhere_is_not_said_to_be_printed(kind):
    place = TokenPlace(kind=kind, where="/x")
    lines = announcement(master_of(UP, token=place), None)
    assert f"the token is in {place})" in lines[4]
    assert "prints" not in "".join(lines)


@pytest.mark.parametrize(
    ("bind", "local_port", "command"),
    [
        (("0.0.0.0", "::"), 0, "tunneltcp expose 8000 --to HOST:60001   (then, there)"),
        (("0.0.0.0",), 9000, "tunneltcp client 't 1.json' --server HOST   (then"),
        (("127.0.0.1", "192.0.2.7"), 0, "tunneltcp expose 8000 --to 192.0.2.7:60001   (then"),
        (("2001:db8::1",), 0, "tunneltcp expose 8000 --to [2001:db8::1]:60001   (then"),
        (("::1",), 9000, "tunneltcp client 't 1.json' --server ::1   (on this machine)"),
    ],
)  # fmt: skip
def test_the_next_command_fits_the_config(bind, local_port, command):
    lines = announcement(master_of(UP, UP, bind=bind, local_port=local_port), Path("t 1.json"))
    assert lines[-1].startswith(f"  next   {command}")
    assert len(lines) <= 6


def test_ports_that_wait_or_are_stopped_are_said():
    first = announcement(master_of(UP, UP, WAITING, UP), None)[0]
    assert first.endswith("port 60001-60002, 60004 (60003 waits: port 60003 is busy)")
    first = announcement(master_of(WAITING, WAITING, STOPPED), None)[0]
    assert first.endswith("port none (60001-60002 wait, see status; 60003 stopped)")


def test_a_client_says_which_app_is_reached_where():
    lines = announcement(
        master_of(UP, UP, role=Role.CLIENT, local_port=8000, server="vps.example.com"),
        Path("t.json"),
    )
    assert lines == [
        "tunneltcp client ready: linking to vps.example.com port 60001-60002",
        "  logs   /l",
        "  state  /s",
        "  look   tunneltcp status",
        "  vps.example.com:60001 leads to localhost:8000",
        "  vps.example.com:60002 leads to localhost:8001",
    ]
    many = master_of(*[UP] * 30, role=Role.CLIENT, local_port=8000, server="::1")
    assert announcement(many, Path("t.json"))[4:] == [
        "  [::1]:60001 leads to localhost:8000", "  and 29 more",
    ]  # fmt: skip


def test_the_command_to_look_finds_this_master():
    assert announcement(master_of(UP, instance="web"), None)[3].endswith(
        "tunneltcp status --instance web"
    )
    assert announcement(master_of(UP, run=Path("/tmp/a b")), None)[3].endswith(
        "tunneltcp status --run-dir '/tmp/a b'"
    )


def test_the_announcement_never_waits_for_its_reader():
    reader, writer = os.pipe()
    saved = os.dup(1)
    try:
        os.dup2(writer, 1)
        for _ in range(2000):
            announce(master_of(UP), None)
        first = os.read(reader, 200).splitlines()[:2]
    finally:
        os.dup2(saved, 1)
        for fd in (reader, writer, saved):
            os.close(fd)
    assert first[0] == first[1], "one line where there is no terminal"


def test_a_terminal_is_told_what_to_do_next():
    ours, theirs = os.openpty()
    saved = os.dup(1)
    try:
        os.dup2(theirs, 1)
        announce(master_of(UP), None)
        said = os.read(ours, 4096).decode().splitlines()
    finally:
        os.dup2(saved, 1)
        for fd in (ours, theirs, saved):
            os.close(fd)
    assert said == announcement(master_of(UP), None)
