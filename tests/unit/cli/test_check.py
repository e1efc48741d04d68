"""``tunneltcp check``: all problems at once, or what would run."""

from __future__ import annotations

import os

import orjson
import pytest
from click.testing import CliRunner

from tunneltcp.cli.main import main

BARE = '[{"local_port": 8000, "remote_port": 60001}, {"local_port": 22, "remote_port": 60002}]'


@pytest.fixture
def check(tmp_path):
    """Return a function that checks a text with some options."""

    def run(text, *options):
        path = tmp_path / "tunnels.json"
        path.write_text(text)
        done = CliRunner().invoke(main, ["check", str(path), *options])
        assert "Traceback" not in done.output
        name = f"{path}"
        return done.exit_code, [
            line.replace(name, "FILE") for line in (done.stdout + done.stderr).splitlines()
        ]

    return run


def test_a_bare_list_is_right_for_both(check):
    code, lines = check(BARE)
    assert code == 0
    assert lines == [
        "FILE is right for the server and the client (give --server HOST)",
        "port   target          name          settings",
        "60001  localhost:8000  tunnel-60001",
        "60002  localhost:22    tunnel-60002",
    ]


def test_what_differs_from_the_default_is_shown(check):
    code, lines = check(
        """{"tunnels": [{"remote_port": 60001, "local_port": 80, "local_host": "::1",
            "name": "shop", "max_visitors": 7, "link_port": 9}],
            "server": "vps", "hold": 3, "drain": 0, "access_log": true}"""
    )
    assert code == 0
    assert lines == [
        "FILE is right for the client",
        "client: server=vps drain=0",
        "port   target    name  settings",
        "60001  [::1]:80  shop  link_port=9 hold=3 max_visitors=7 access_log=true",
    ]


def test_ports_are_for_the_server(check):
    code, lines = check('{"ports": "60001-60002", "bind": "localhost"}')
    assert code == 0
    assert lines == [
        "FILE is right for the server",
        "server: bind=127.0.0.1,::1",
        "port   target  name          settings",
        "60001  -       tunnel-60001",
        "60002  -       tunnel-60002",
    ]


def test_every_problem_at_once_with_its_path(check):
    code, lines = check(
        """{"tunnels": [{"remote_port": 1, "local_port": 5},
                        {"remote_port": 60001.0, "local_port": true},
                        {"remote_port": 1, "local_port": 5, "hodl": 3}], "drain": NO}"""
    )
    assert (code, lines) == (
        2,
        ["tunneltcp: FILE: line 3 column 83: is not JSON: Expecting value"],
    )
    code, lines = check(
        """{"tunnels": [{"remote_port": 1, "local_port": 5},
                        {"remote_port": 60001.0, "local_port": true},
                        {"remote_port": 1, "local_port": 5, "hodl": 3}], "drain": -1}"""
    )
    assert code == 2
    assert lines == [
        "tunneltcp: FILE: tunnels[1].remote_port: 60001.0 is not a port (1-65535)",
        "tunneltcp: FILE: tunnels[1].local_port: true is not a port (1-65535)",
        "tunneltcp: FILE: tunnels[2].hodl: is not a known key; did you mean hold?",
        "tunneltcp: FILE: tunnels[2].remote_port: 1 is already used by tunnels[0]",
        "tunneltcp: FILE: drain: -1 is not a number of seconds from 0 to 3600",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"server": "a", "tunnels": [{"remote_port": 1}]}', "local_port: is missing"),
        ('{"bind": "::1", "ports": "x"}', "ports: 'x' is not a port or a range"),
    ],
)
def test_problems_are_those_of_the_role_it_was_meant_for(check, text, problem):
    code, lines = check(text)
    assert (code, len(lines)) == (2, 1)
    assert problem in lines[0]


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--role", "server"], 0, "is right for the server"),
        (["--role", "client"], 2, "server: is missing; give --server HOST"),
        (["--role", "client", "--server", "vps"], 0, "is right for the client"),
        (["--server", "vps"], 0, "is right for the server and the client"),
        (["--server", "http://vps"], 0, "is right for the server"),
        (["--role", "server", "--server", "vps"], 2, "--server is for the client"),
        (["--role", "both"], 2, "Invalid value"),
    ],
)
def test_with_options(check, options, code, says):
    found, lines = check(BARE, *options)
    assert found == code
    assert says in "\n".join(lines)


def test_a_file_cut_short_at_any_byte_has_one_problem(check):
    for end in range(len(BARE)):
        code, lines = check(BARE[:end])
        assert (code, len(lines)) == (2, 1), end
        assert lines[0].startswith(
            ("tunneltcp: FILE: line 1 column ", "tunneltcp: FILE: is empty")
        )


def test_for_programs(check):
    code, lines = check(BARE, "--json")
    answer = orjson.loads(lines[0])
    assert (code, len(lines)) == (0, 1)
    assert (answer["fits"], answer["needs_server"]) == (["server", "client"], True)
    assert answer["configs"]["client"]["server"] is None
    tunnel = answer["configs"]["client"]["tunnels"][1]
    assert (tunnel["remote_port"], tunnel["local_port"], tunnel["hold"]) == (60002, 22, 10.0)
    assert tunnel["link_port"] is None
    assert "link_port" not in answer["configs"]["server"]["tunnels"][0]
    code, lines = check('{"ports": [0, 70000]}', "--json")
    answer = orjson.loads(lines[0])
    assert (code, answer["fits"], answer["configs"]) == (2, [], {})
    assert [problem.partition(":")[0] for problem in answer["problems"]] == [
        "ports[0]",
        "ports[1]",
    ]


def test_a_file_with_a_name_that_is_no_text(tmp_path):
    path = tmp_path / os.fsdecode(b"\xff\x1b.json")
    path.write_text(BARE)
    for options in ([], ["--json"]):
        done = CliRunner().invoke(main, ["check", str(path), *options])
        assert done.exit_code == 0, done.output
        assert "\x1b" not in done.output


def test_clients_have_a_table_of_their_own_without_tokens(check):
    token = "a-token-of-more-than-32-characters-here"
    text = f"""{{"ports": "60001-60004", "clients": [
        {{"name": "laptop", "token": "{token}", "ports": ["60001-60002", 60009]}},
        {{"name": "desk", "token": [{{"env": "NEW"}}, {{"file": "/etc/desk"}}], "ports": 60003,
          "shared": true}}], "visitors_allow": "::1"}}"""
    code, lines = check(text)
    assert code == 0
    table = lines[next(i for i, line in enumerate(lines) if line.startswith("client ")) :]
    assert table[:4] == [
        "client  ports               token                         settings",
        "laptop  60001-60002, 60009  config                        (not open: 60009)",
        "desk    60003               variable:NEW, file:/etc/desk  shared=true",
        "-       60004               own",
    ]
    assert "visitors_allow=::1/128" in lines[2]
    assert token not in "".join(lines)
    code, lines = check(text, "--json")
    assert token not in lines[0]
    clients = orjson.loads(lines[0])["configs"]["server"]["clients"]
    assert [one["name"] for one in clients] == ["laptop", "desk"]
    assert clients[0]["token"][0]["kind"] == "config"


def test_paths_in_the_json(check):
    text = '{"ports": 60001, "cert": "/etc/a.pem", "key": "/etc/k.pem"}'
    code, lines = check(text, "--json")
    assert code == 0
    assert orjson.loads(lines[0])["configs"]["server"]["cert"] == "/etc/a.pem"
    text = '{"server": "a", "verify": "/ca", "tunnels": [{"remote_port": 1, "local_port": 2}]}'
    assert orjson.loads(check(text, "--json")[1][0])["configs"]["client"]["verify"] == "/ca"


@pytest.mark.parametrize("path", ["/a/\\ud800", "/a/\\u0000"])
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_path_that_cannot_be_one_is_a_problem(check, path, options):
    text = f'{{"ports": 60001, "cert": "{path}", "key": "/k", "token": {{"file": "{path}"}}}}'
    code, lines = check(text, *options)
    assert code == 2
    text = "\n".join(lines)
    assert "cert: " in text
    assert "must be a whole path" in text
    assert "token: must be" in text
