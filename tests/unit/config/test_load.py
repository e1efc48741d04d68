"""The config: what is accepted, and that everything else is a list of problems."""

from __future__ import annotations

import json  # noqa: TID251 - stdlib JSON is what a person's editor writes
import os
import pwd
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunneltcp.config.load import MAX_FILE_BYTES, build_config, load_config, read_document
from tunneltcp.config.model import DEFAULT_HOLD_SECONDS, MAX_TUNNELS
from tunneltcp.config.users import find_user
from tunneltcp.errors import ConfigError

BARE = (
    '[{"local_port": 8000, "remote_port": 60001}, {"local_port": 8001, "remote_port": 60002}]'
)
NO_RANGE = 'is not a port or a range like "60001-60010" (1-65535)'
NO_SIZE = 'is not a size from 50000000 to 1099511627776 bytes, like 200000000 or "200 MB"'
FOR_SERVER = "is for the server, and this is the client"
FOR_CLIENT = "is for the client, and this is the server"


def problems(text: str, role="client", server="vps", bind=()) -> list[str]:
    document = json.loads(text)
    with pytest.raises(ConfigError) as caught:
        build_config(document, role, server=server if role == "client" else None, bind=bind)
    return list(caught.value.problems)


def file_problem(tmp_path: Path, data: bytes) -> str:
    path = tmp_path / "config.json"
    path.write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        load_config(path, "server")
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(f"{path}: ")
    return caught.value.problems[0].removeprefix(f"{path}: ")


def test_the_bare_list_is_complete_for_either_side(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(BARE)
    client = load_config(path, "client", server="vps")
    assert [(t.local_port, t.remote_port) for t in client.tunnels] == [
        (8000, 60001),
        (8001, 60002),
    ]
    assert client.server == "vps"
    assert client.tunnels[0].local_host == "localhost"
    assert client.tunnels[0].name == "tunnel-60001"
    server = load_config(path, "server")
    assert [t.remote_port for t in server.tunnels] == [60001, 60002]
    assert server.bind == ("0.0.0.0", "::")
    assert (server.drain_seconds, server.budget_bytes) == (5.0, None)


def test_the_long_form_with_everything():
    config = build_config(
        {
            "tunnels": [
                {"remote_port": 60001, "local_port": 80, "local_host": "::1", "name": "web"},
                {"remote_port": 60002, "local_port": 81, "hold": 0, "congestion": "reno"},
                {"remote_port": 60003, "local_port": 82, "max_visitors": 7, "link_port": 9},
            ],
            "server": "vps.example",
            "hold": 3,
            "idle_ping": 4.5,
            "congestion": "bbr",
            "max_visitors": 10,
            "drain": 1,
            "budget": 8 << 20,
            "log_bytes": 10_000,
            "log_files": 2,
        },
        "client",
    )
    first, second, third = config.tunnels
    assert (first.hold_seconds, first.idle_ping_seconds, first.max_visitors) == (3, 4.5, 10)
    assert (second.hold_seconds, second.idle_ping_seconds) == (0, 4.5)
    assert (first.congestion, second.congestion) == ("bbr", "reno")
    assert (third.max_visitors, third.link_port) == (7, 9)
    assert (config.budget_bytes, config.log_bytes, config.log_files) == (8 << 20, 10_000, 2)


@pytest.mark.parametrize(
    ("given", "size"),
    [
        (60_000_000, 60_000_000),
        ("200 MB", 200_000_000),
        ("200MB", 200_000_000),
        ("64 MiB", 64 << 20),
        ("1.5 GiB", 3 << 29),
        ("70000 kB", 70_000_000),
    ],
)
def test_sizes_have_units(given, size):
    config = build_config(
        {
            "tunnels": [{"remote_port": 1}, {"remote_port": 2, "max_rss": 99_000_000}],
            "max_rss": given,
            "max_fds": 100,
        },
        "server",
    )
    first, second = config.tunnels
    assert (first.max_rss_bytes, second.max_rss_bytes) == (size, 99_000_000)
    assert first.max_fds == second.max_fds == 100
    (plain,) = build_config({"ports": [1]}, "server").tunnels
    assert (plain.max_rss_bytes, plain.max_fds) == (None, None)


def test_ports_of_a_server_join_its_tunnels():
    config = build_config(
        {"ports": "60001-60003, 60010", "tunnels": [{"remote_port": 60002, "hold": 1}]},
        "server",
    )
    assert [t.remote_port for t in config.tunnels] == [60002, 60001, 60003, 60010]
    assert [t.hold_seconds for t in config.tunnels] == [1, *[DEFAULT_HOLD_SECONDS] * 3]
    listed = build_config({"ports": [60001, "60005-60006"]}, "server")
    assert [t.remote_port for t in listed.tunnels] == [60001, 60005, 60006]


@pytest.mark.parametrize(
    ("bind", "addresses"),
    [
        ("localhost", ("127.0.0.1", "::1")),
        ("*", ("0.0.0.0", "::")),
        (["10.0.0.1", "localhost", "127.0.0.1"], ("10.0.0.1", "127.0.0.1", "::1")),
        ("0:0::1", ("::1",)),
    ],
)
def test_bind(bind, addresses):
    assert build_config({"ports": [1], "bind": bind}, "server").bind == addresses


def test_options_overrule_the_file():
    document = {"tunnels": [{"remote_port": 1, "local_port": 2}], "server": "a"}
    assert build_config(document, "client", server="b").server == "b"
    config = build_config({"ports": [1], "bind": "::1"}, "server", bind=["127.0.0.2"])
    assert config.bind == ("127.0.0.2",)


def test_all_problems_come_at_once_each_with_its_path():
    found = problems(
        """{"tunnels": [{"remote_port": 70000, "local_port": true},
                        {"remote_port": 1.0, "local_port": 2, "hold": -1},
                        7,
                        {"remote_prot": 1, "local_port": 5, "local_host": "a b"}],
            "drain": "soon", "budget": 1, "log_files": 0, "serve": 1}"""
    )
    assert found == [
        "serve: is not a known key; did you mean server?",
        "tunnels[0].remote_port: 70000 is not a port (1-65535)",
        "tunnels[0].local_port: true is not a port (1-65535)",
        "tunnels[1].remote_port: 1.0 is not a port (1-65535)",
        "tunnels[1].hold: -1 is not a number of seconds from 0 to 3600",
        "tunnels[2]: must be an object, not a number",
        "tunnels[3].remote_prot: is not a known key; did you mean remote_port?",
        "tunnels[3].remote_port: is missing",
        "tunnels[3].local_host: 'a b' is not a host name or an address",
        "drain: 'soon' is not a number of seconds from 0 to 3600",
        "budget: 1 is not a whole number from 1048576 to 1073741824",
        "log_files: 0 is not a whole number from 1 to 100",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"ports": [1], "server": "x"}', f"server: {FOR_CLIENT}"),
        ('{"ports": [1], "max_rss": 1}', f"max_rss: 1 {NO_SIZE}"),
        ('{"ports": [1], "max_rss": "200 mb"}', f"max_rss: '200 mb' {NO_SIZE}"),
        ('{"ports": [1], "max_rss": "-200 MB"}', f"max_rss: '-200 MB' {NO_SIZE}"),
        ('{"ports": [1], "max_rss": "999999999 GB"}', f"max_rss: '999999999 GB' {NO_SIZE}"),
        ('{"ports": [1], "max_rss": true}', f"max_rss: true {NO_SIZE}"),
        ('{"ports": [1], "max_rss": 2e8}', f"max_rss: 200000000.0 {NO_SIZE}"),
        (
            '{"ports": [1], "max_fds": 63}',
            "max_fds: 63 is not a whole number from 64 to 1000000",
        ),
        ('{"ports": "9-1"}', f"ports: '9-1' {NO_RANGE}"),
        ('{"ports": [1, true]}', f"ports[1]: true {NO_RANGE}"),
        ('{"ports": ["1-3", 2]}', "ports[1]: 2 is given more than once"),
        ('{"ports": "1-501"}', f"ports: makes 501 tunnels; {MAX_TUNNELS} is the limit"),
        (
            '{"ports": [1], "bind": "example.com"}',
            "bind: 'example.com' is not an IP address, and neither localhost nor *",
        ),
        ('{"ports": [1], "bind": []}', "bind: must be an address or a list of addresses"),
        ("[]", "tunnels: there are none"),
        ("{}", "tunnels: there are none"),
        ('{"tunnels": 5}', "tunnels: must be a list, not a number"),
        ("null", "must be a list of tunnels or an object, not null"),
        ('[{"remote_port": 5, "link_port": 6}]', f"tunnels[0].link_port: {FOR_CLIENT}"),
        (
            '[{"remote_port": 5}, {"remote_port": 5}]',
            "tunnels[1].remote_port: 5 is already used by tunnels[0]",
        ),
        (
            '[{"remote_port":5,"name":"a"},{"remote_port":6,"name":"a"}]',
            "tunnels[1].name: 'a' is already used by tunnels[0]",
        ),
        (
            '[{"remote_port": 5, "name": "a\\nb"}]',
            "tunnels[0].name: 'a\\nb' is not a name (1-64 printable characters)",
        ),
    ],
)
def test_one_problem_of_a_server(text, problem):
    assert problems(text, role="server") == [problem]


@pytest.mark.parametrize(
    ("text", "server", "problem"),
    [
        (BARE, None, "server: is missing; give --server HOST or put it into the config"),
        (BARE, "http://x", "server: 'http://x' is not a host name or an address"),
        (
            BARE,
            "vps:22",
            "server: 'vps:22' is not an IPv6 address; give the host without a port",
        ),
        (
            '{"tunnels": [{"remote_port": 1, "local_port": 2}], "bind": "::1"}',
            "a",
            f"bind: {FOR_SERVER}",
        ),
        (
            '{"tunnels": [{"remote_port": 1, "local_port": 2}], "ports": [2]}',
            "a",
            f"ports: {FOR_SERVER}",
        ),
        ('[{"remote_port": 1}]', "a", "tunnels[0].local_port: is missing"),
    ],
)
def test_one_problem_of_a_client(text, server, problem):
    assert problems(text, server=server) == [problem]


def test_duplicate_keys_are_found_where_they_stand(tmp_path):
    path = tmp_path / "c.json"
    path.write_text('[{"remote_port": 1}, {"remote_port": 2, "hold": 1, "hold": 2}]')
    with pytest.raises(ConfigError, match=r"tunnels\[1\]\.hold: is given more than once"):
        load_config(path, "server")


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"\xef\xbb\xbf[]", "starts with a byte order mark; save it as plain UTF-8"),
        (b'[\n  {"remote_port": 1,}]', "line 2 column 21: is not JSON"),
        (b'[\n"\xff"]', "line 2 column 2: is not UTF-8 text"),
        (b'{"drain": NaN}', "line 1 column 11: NaN is not JSON"),
        (b'{"name": "NaN",\n "drain": -Infinity}', "line 2 column 11: -Infinity is not JSON"),
        (b"[" * 200_000, "is nested too deeply"),
        (b"[" + b"1" * 5000 + b"]", "holds a number that is too long"),
        (b" " * (MAX_FILE_BYTES + 1), "is larger than 1048576 bytes"),
        (b'{"drain": 1e999, "ports": [1]}', "drain: inf is not a number of seconds"),
        (
            b'[{"remote_port": 1, "name": "\\ud800"}]',
            "tunnels[0].name: '\\ud800' is not a name",
        ),
    ],
)
def test_files_that_are_no_config(tmp_path, data, problem):
    assert file_problem(tmp_path, data).startswith(problem)


def test_what_is_not_a_readable_file(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    wanted = {
        tmp_path: "is a directory",
        fifo: "is not a regular file",
        tmp_path / "none": "cannot be read: no such file",
        Path("/dev/zero"): "is not a regular file",
        Path("a\0b"): "cannot be read: its name is not a file name",
        tmp_path / ("x" * 300): "cannot be read: file name too long",
    }
    for path, problem in wanted.items():
        with pytest.raises(ConfigError, match=problem):
            read_document(path)


def test_a_file_we_may_not_read(tmp_path):
    path = tmp_path / "c.json"
    path.write_text("[]")
    path.chmod(0)
    mine = os.geteuid()
    if mine == 0:
        os.seteuid(65_534)  # root may read everything
    try:
        with pytest.raises(ConfigError, match="cannot be read: permission denied"):
            read_document(path)
    finally:
        os.seteuid(mine)


def test_every_truncation_is_a_problem_and_never_a_traceback(tmp_path):
    path = tmp_path / "c.json"
    for end in range(len(BARE)):
        path.write_text(BARE[:end])
        with pytest.raises(ConfigError) as caught:
            load_config(path, "server")
        assert all("\n" not in problem for problem in caught.value.problems)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(
        ["tunnels", "ports", "bind", "server", "remote_port", "local_port", "name", "hold",
         "local_host", "max_visitors", "budget", "idle_ping", "drain", "log_bytes"]), inner),
    max_leaves=20,
)  # fmt: skip


@given(json_values, st.sampled_from(["server", "client"]))
def test_any_value_is_a_config_or_a_list_of_problems(document, role):
    with suppress(ConfigError):
        config = build_config(document, role, server="a" if role == "client" else None)
        assert config.tunnels
        assert all(1 <= tunnel.remote_port <= 65_535 for tunnel in config.tunnels)


class TestTls:
    """Links speak TLS unless somebody says otherwise."""

    TUNNELS = '"tunnels": [{"local_port": 8000, "remote_port": 60001}]'

    def build(self, more, role="server"):
        document = json.loads(f"{{{self.TUNNELS}{more}}}")
        return build_config(document, role, server="vps" if role == "client" else None)

    @pytest.mark.parametrize("role", ["server", "client"])
    def test_is_on(self, role):
        config = self.build("", role)
        assert config.tls is True
        assert config.certificate is None
        assert config.verify is False
        assert self.build(', "tls": false', role).tls is False

    def test_with_a_certificate_of_ones_own(self):
        config = self.build(', "cert": "/etc/cert.pem", "key": "/etc/key.pem"')
        assert config.certificate == (Path("/etc/cert.pem"), Path("/etc/key.pem"))

    @pytest.mark.parametrize("value", ["true", '"/etc/ca.pem"'])
    def test_with_a_ca(self, value):
        expected = json.loads(value)
        config = self.build(f', "verify": {value}', "client")
        assert config.verify == (expected if expected is True else Path(expected))

    @pytest.mark.parametrize(
        ("role", "more", "expected"),
        [
            ("server", '"tls": 1', "tls: 1 is neither true nor false"),
            ("server", '"cert": "/a"', "cert: needs key beside it"),
            ("server", '"key": "/a"', "key: needs cert beside it"),
            ("server", '"cert": 5, "key": "/a"', "cert: must be a path, not a number"),
            (
                "server",
                '"cert": "a.pem", "key": "/a"',
                "cert: 'a.pem' must be a whole path, beginning with /",
            ),
            (
                "server",
                '"tls": false, "cert": "/a", "key": "/b"',
                "cert: is of no use while tls is false",
            ),
            ("server", '"verify": true', f"verify: {FOR_CLIENT}"),
            ("client", '"verify": 5', "verify: must be true, false or a path, not a number"),
            (
                "client",
                '"tls": false, "verify": true',
                "verify: is of no use while tls is false",
            ),
            ("client", '"cert": "/a"', f"cert: {FOR_SERVER}"),
        ],
    )
    def test_problems(self, role, more, expected):
        assert problems(f"{{{self.TUNNELS}, {more}}}", role) == [expected]


class TestRate:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("20 Mbit/s", 2_500_000),
            ("20Mbit/s", 2_500_000),
            ("500 kbit/s", 62_500),
            ("2.5 MB/s", 2_500_000),
            ("1 Gbit/s", 125_000_000),
            ("64 kbit/s", 8_000),
            ("none", 0),
        ],
    )
    def test_is_read(self, text, expected):
        document = {"ports": 60001, "rate": text}
        assert build_config(document, "server").tunnels[0].rate == expected

    def test_there_is_none_by_default(self):
        assert build_config({"ports": 60001}, "server").tunnels[0].rate == 0

    def test_a_tunnel_may_have_its_own(self):
        ports = [{"remote_port": 60001, "rate": "none"}, {"remote_port": 60002}]
        config = build_config({"tunnels": ports, "rate": "1 MB/s"}, "server")
        assert [tunnel.rate for tunnel in config.tunnels] == [0, 1_000_000]

    @pytest.mark.parametrize(
        "wrong",
        ["20", "20 Mb/s", "20 mbit/s", "20 Mbit", "-1 Mbit/s", "1e3 Mbit/s", "", "20\nMbit/s"],
    )
    def test_what_is_not_plain_is_refused(self, wrong):
        found = problems(f'{{"ports": 60001, "rate": {json.dumps(wrong)}}}', "server")
        assert len(found) == 1
        assert 'is not a rate like "20 Mbit/s"' in found[0]

    @pytest.mark.parametrize("wrong", ["5 kbit/s", "2000 Gbit/s", "0 Mbit/s"])
    def test_it_has_bounds(self, wrong):
        found = problems(f'{{"ports": 60001, "rate": "{wrong}"}}', "server")
        assert found == [f"rate: '{wrong}' is not between 64 kbit/s and 1000 Gbit/s"]

    @pytest.mark.parametrize("wrong", ["20", "null", "[]", "true"])
    def test_it_is_a_text(self, wrong):
        assert len(problems(f'{{"ports": 60001, "rate": {wrong}}}', "server")) == 1


class TestUser:
    def test_is_a_name(self):
        document = {"ports": 60001, "user": "tunneltcp"}
        assert build_config(document, "server").user == "tunneltcp"
        for wrong in ('""', "7", '"a b"', '"../x"', '"-x"', "null", f'"{"x" * 33}"'):
            text = f'{{"ports": 60001, "user": {wrong}}}'
            found = problems(text, "server")
            assert len(found) == 1, wrong
            assert found[0].endswith("is not the name of a user")

    def test_is_looked_up_by_root_alone(self, monkeypatch):
        monkeypatch.setattr("tunneltcp.config.users.is_root", lambda: False)
        with pytest.raises(ConfigError, match="only a master that root starts"):
            find_user("nobody")
        monkeypatch.setattr("tunneltcp.config.users.is_root", lambda: True)
        monkeypatch.setattr("tunneltcp.config.users._missing", list)
        found = pwd.getpwnam("nobody")
        assert find_user("nobody") == (found.pw_uid, found.pw_gid)
        with pytest.raises(ConfigError, match="there is no user no-such-user here"):
            find_user("no-such-user")
        with pytest.raises(ConfigError, match="root is root itself"):
            find_user("root")
        monkeypatch.setattr("tunneltcp.config.users._missing", lambda: ["CAP_SETUID"])
        with pytest.raises(ConfigError, match=r"without CAP_SETUID.*service file"):
            find_user("nobody")
