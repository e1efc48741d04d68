"""What people are told: one sentence each, with what happened and the next thing to try."""

from __future__ import annotations

import errno
import string

import pytest

from tunneltcp.advice import (
    Trouble,
    claim_trouble,
    congestion_trouble,
    connect_trouble,
    link_trouble,
    port_trouble,
    spoken,
    target_trouble,
)
from tunneltcp.protocol.messages import RefusedCode

WHERE = "vps.example.com:60001 (203.0.113.5)"
APP = "localhost:8000"
RESERVE = "sysctl -w net.ipv4.ip_local_reserved_ports="


@pytest.mark.parametrize(
    ("trouble", "detail", "others_up", "words"),
    [
        (Trouble.SILENT, "", False, ["nothing answers", "is down", "provider", "ufw allow"]),
        (Trouble.SILENT, "", True, ["other tunnels", "firewall", "ufw allow 60001"]),
        (Trouble.REFUSES, "", False, ["not running", "--bind", "60001 is not among"]),
        (Trouble.REFUSES, "", True, ["other tunnels", "not among", "tunneltcp reload"]),
        (Trouble.FOREIGN, "HTTP", False, ["but speaks HTTP", "remote_port"]),
        (Trouble.FORGED, "its proof is wrong", False,
         ["not the server itself (its proof is wrong)", "in between", "opens TLS"]),
        (Trouble.MUTE, "", False, ["says nothing", "tunneltcp status"]),
        (Trouble.HANGS_UP, "", False, ["hangs up", "tunneltcp status"]),
        (Trouble.IN_USE, "198.51.100.7:4", False, ["client (198.51.100.7:4) holds port 60001"]),
        (Trouble.IN_USE, "", True, ["another client holds port 60001", "stop it"]),
        (Trouble.NAMELESS, "gone", False, ["resolved (gone)", "--server", "DNS"]),
        (Trouble.UNREACHABLE, "no route", False, ["no way to", "(no route)", "network"]),
        (Trouble.FORBIDDEN, "permission denied", False, ["forbids", "firewall"]),
        (Trouble.VERSION, "", False, ["another version", "install the same"]),
        (Trouble.DENIED, "", False, ["does not accept our token", "remote_port"]),
    ],
)  # fmt: skip
def test_why_there_is_no_link(trouble, detail, others_up, words):
    said = link_trouble(trouble, WHERE, 60001, detail=detail, others_up=others_up)
    assert [word for word in words if word not in said] == []


@pytest.mark.parametrize("others_up", [False, True])
@pytest.mark.parametrize("trouble", Trouble)
def test_each_trouble_is_one_line_that_fits(trouble, others_up):
    where = f"{'x' * 100}.example:60001 (203.0.113.5)"
    said = link_trouble(trouble, where, 60001, detail="connection refused", others_up=others_up)
    assert len(said) <= 400
    assert "\n" not in said
    assert not {name for _, name, _, _ in string.Formatter().parse(said) if name}


def test_what_a_host_is_called_is_no_format():
    assert "{port}" in link_trouble(Trouble.REFUSES, "{port}:1", 1)


def test_every_refusal_of_a_server_has_words_on_both_sides():
    for code in RefusedCode:
        assert link_trouble(Trouble(code.value), WHERE, 1)
        assert claim_trouble(code.value) or code is RefusedCode.PROBED
    assert "198.51.100.7:4 holds this port" in claim_trouble("in_use", "198.51.100.7:4")
    assert "somebody in between" in claim_trouble("proof")
    assert claim_trouble("of tomorrow") == "refused: of tomorrow"


@pytest.mark.parametrize(
    ("error", "trouble"),
    [
        ("ECONNREFUSED", Trouble.REFUSES),
        ("WSAECONNREFUSED", Trouble.REFUSES),
        ("ETIMEDOUT", Trouble.SILENT),
        ("ENETUNREACH", Trouble.UNREACHABLE),
        ("EHOSTUNREACH", Trouble.UNREACHABLE),
        ("EPERM", Trouble.FORBIDDEN),
        ("ECONNRESET", Trouble.HANGS_UP),
        ("", Trouble.OTHER),
        ("EMFILE", Trouble.OTHER),
    ],
)
def test_errors_of_the_system(error, trouble):
    assert connect_trouble(error) is trouble


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", "HTTP"),
        (b"<!DOCTYPE HTML>\n<html>", "HTTP"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "SSH"),
        (b"\x15\x03\x01\0\2\2\x16", "TLS"),
        (b"220 mail.example ESMTP", "SMTP or FTP"),
        (b"\0\0", "something else"),
        (b"", "something else"),
    ],
)
def test_who_speaks_there(data, name):
    assert spoken(data) == name


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            "ECONNREFUSED",
            "a visitor came, but nothing listens on localhost:8000: start the app",
        ),
        ("ETIMEDOUT", "localhost:8000 does not answer: look whether that machine is up"),
        ("EHOSTUNREACH", "there is no way to localhost:8000: correct local_host"),
        ("EMFILE", "no connections left (EMFILE): raise its limits"),
        ("EIO", "localhost:8000 cannot be reached (EIO)"),
        ("", "the name localhost cannot be resolved (gone): correct local_host"),
    ],
)
def test_why_a_visitor_does_not_get_to_the_target(error, words):
    said = target_trouble(APP, error, detail="gone")
    assert said.startswith("a visitor came, but ")
    assert words in said


def test_who_has_a_port():
    nginx = port_trouble(60001, "nginx (process 7) listens on it", listens=True)
    assert nginx == (
        "port 60001 is busy: nginx (process 7) listens on it; stop that program, or choose "
        "another port"
    )
    passing = port_trouble(60001, "curl holds it", listens=False, reserved="7000-7009\n")
    assert passing == (
        f"port 60001 is busy: curl holds it and may leave soon; keep it free with: "
        f"{RESERVE}7000-7009,60001"
    )
    unknown = port_trouble(60001, "", listens=False)
    assert "ss -tanp 'sport = :60001'" in unknown
    assert unknown.endswith(f"{RESERVE}60001")


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EPERM, ["keeps bbr for root", "net.ipv4.tcp_allowed_congestion_control"]),
        (errno.ENOENT, ["has no bbr", "tcp_available_congestion_control", "modprobe tcp_bbr"]),
        (errno.ENOPROTOOPT, ["bbr: no way"]),
    ],
)
def test_a_congestion_control_that_cannot_be_had(number, words):
    said = congestion_trouble("bbr", number, "no way")
    assert said.startswith("the link keeps the congestion control of the system")
    assert all(word in said for word in words), said
