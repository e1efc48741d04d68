"""The words of ``tunneltcp expose``: understood, or refused with what to do instead."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from tests.support.processes import run_python
from tunneltcp.cli import expose, expose_token
from tunneltcp.cli.elsewhere import linux_only
from tunneltcp.cli.expose import parse_exposure
from tunneltcp.cli.main import main
from tunneltcp.config import token_files
from tunneltcp.errors import ConfigError


def parsed(words: str, to: str) -> tuple[str, list[tuple[str, int, int]]]:
    exposure = parse_exposure(words.split(), to)
    tunnels = [(one.local_host, one.local_port, one.remote_port) for one in exposure.tunnels]
    return exposure.server, tunnels


@pytest.mark.parametrize(
    ("words", "to", "server", "tunnels"),
    [
        ("8000", "vps.example.com:60001", "vps.example.com", [("localhost", 8000, 60001)]),
        ("8000:60001", "vps", "vps", [("localhost", 8000, 60001)]),
        ("8000:60001", "vps:60001", "vps", [("localhost", 8000, 60001)]),
        ("8000:60001 8001:60002", "203.0.113.5", "203.0.113.5",
         [("localhost", 8000, 60001), ("localhost", 8001, 60002)]),
        ("10.0.0.5:22:60003", "vps", "vps", [("10.0.0.5", 22, 60003)]),
        ("10.0.0.5:22", "vps:60003", "vps", [("10.0.0.5", 22, 60003)]),
        ("db.local:5432:60003", "vps", "vps", [("db.local", 5432, 60003)]),
        ("[::1]:8000:60001", "vps", "vps", [("::1", 8000, 60001)]),
        ("[fe80::1]:8000", "[2001:db8::1]:60001", "2001:db8::1", [("fe80::1", 8000, 60001)]),
        ("8000:60001", "[2001:db8::1]", "2001:db8::1", [("localhost", 8000, 60001)]),
        ("8000:60001", "2001:db8::1", "2001:db8::1", [("localhost", 8000, 60001)]),
    ],
)  # fmt: skip
def test_is_understood(words, to, server, tunnels):
    assert parsed(words, to) == (server, tunnels)


@pytest.mark.parametrize(
    ("words", "to", "problem"),
    [
        ("8000", "vps", "8000: has no public port; say 8000:60001, or --to SERVER:60001"),
        ("8000:60001 8001:60001", "vps", "public port 60001 is given twice"),
        ("8000 8001", "vps:60001", "is for one target, and there are 2"),
        ("8000:60002", "vps:60001", "says public port 60002, and --to says 60001"),
        ("0:60001", "vps", "'0' is not a port (1-65535)"),
        ("8000:66000", "vps", "'66000' is not a port (1-65535)"),
        ("8000:", "vps", "'' is not a port"),
        ("8000:1:2", "vps", "is not [HOST:]PORT[:PUBLIC]"),
        ("app", "vps:1", "'app': is not [HOST:]PORT[:PUBLIC], such as 8000:60001"),
        ("::1:8000:60001", "vps", "is not"),
        ("[::1:8000", "vps:1", "is not"),
        ("[::g]:8000", "vps:1", "is not an IPv6 address"),
        ("a_/b:8000", "vps:1", "is not a host name"),
        ("8000", "vps:", "'' is not a port"),
        ("8000", "vps:x", "'x' is not a port"),
        ("8000", ":60001", "is not a host name"),
        ("8000", "[::1", "is neither SERVER nor SERVER:PORT"),
        ("8000", "[::1]60001", "is neither SERVER nor SERVER:PORT"),
        ("8000", "http://vps:60001", "not"),
        ("\u0668000:60001", "vps", "is not"),
    ],
)
def test_is_refused_with_a_reason(words, to, problem):
    with pytest.raises(ConfigError) as caught:
        parse_exposure(words.split(), to)
    assert any(problem in one for one in caught.value.problems), caught.value.problems


def test_all_problems_are_told_at_once_and_leave_with_2():
    done = CliRunner().invoke(main, ["expose", "0:60001", "x", "--to", "vps"])
    assert done.exit_code == 2
    lines = done.stderr.splitlines()
    assert len(lines) >= 2
    assert all(line.startswith("tunneltcp: ") for line in lines)


@pytest.mark.parametrize("words", [("expose",), ("expose", "8000")])
def test_missing_words_are_said(words):
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 2
    assert "Missing" in done.stderr


def test_the_help_has_examples_as_they_are_typed():
    shown = CliRunner().invoke(main, ["expose", "--help"]).stdout
    assert "\n    tunneltcp expose 8000 --to vps.example.com:60001\n" in shown
    assert "\b" not in shown


class TestHostId:
    def test_is_kept(self, tmp_path):
        first = expose._host_id(tmp_path / "new" / "folder")
        assert expose._host_id(tmp_path / "new" / "folder") == first
        assert (tmp_path / "new" / "folder").stat().st_mode & 0o777 == 0o700

    def test_is_made_anew_where_nothing_can_be_kept(self, tmp_path):
        (tmp_path / "file").write_text("")
        first = expose._host_id(tmp_path / "file")
        assert len(first) == 32
        assert expose._host_id(tmp_path / "file") != first


def test_who_has_no_home_may_say_where_the_token_is(tmp_path, monkeypatch):
    def homeless():
        raise ConfigError(["there is no home folder"])

    monkeypatch.setattr(expose_token, "state_base", homeless)
    file = tmp_path / "token"
    found = expose_token.find_token("vps", "token", file, None)
    assert (found.place.kind, found.place.where) == ("file", str(file))
    kept = token_files.keep_login("vps", "x" * 32, tmp_path)
    assert expose_token.find_token("vps", "token", None, tmp_path).place.where == str(kept)
    assert expose_token.find_token("vps", "none", None, None).place.kind == "none"


def test_one_tunnel_loads_nothing_of_a_master():
    code = (
        "import sys, tunneltcp.cli.main, tunneltcp.cli.expose, tunneltcp.cli.expose_one; "
        "print([m for m in sys.modules if m.startswith('tunneltcp.master')"
        " or m in ('tunneltcp.cli.run', 'tunneltcp.workers.server', 'tunneltcp.workers.warm')])"
    )
    assert run_python(code) == "[]\n"


@pytest.mark.parametrize("words", [[], ["x.json", "--server", "a"], ["--help"]])
def test_elsewhere_the_others_say_in_one_sentence_what_to_use(words):
    done = CliRunner().invoke(linux_only("client"), words)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.startswith("tunneltcp: client needs Linux; ")
    assert "tunneltcp expose 8000 --to" in done.stderr
    assert done.stderr.count("\n") == 1
