"""Tokens: what is one, where they lie, and that no message has one in it."""

from __future__ import annotations

import os

import pytest

from tunneltcp.config import token_files
from tunneltcp.config.load import build_config, load_config
from tunneltcp.config.model import Config, TunnelConfig
from tunneltcp.config.plain import config_from_plain, config_to_plain
from tunneltcp.config.token_reader import TokenReader
from tunneltcp.config.tokens import TokenPlace, new_token, token_problem
from tunneltcp.errors import ConfigError

TOKEN = "a-secret-of-more-than-32-characters"
OTHER = "another-one-of-more-than-32-characters"


def config(kind="own", where="", server="vps"):
    tunnels = (TunnelConfig(remote_port=1, local_port=2),)
    place = TokenPlace(kind=kind, where=where)
    return Config(tunnels=tunnels, token=place, server=server)


def test_a_new_one_is_good_and_never_an_option():
    made = {new_token() for _ in range(100)}
    assert len(made) == 100
    for token in made:
        assert token_problem(token) == ""
        assert not token.startswith("-")
        assert len(token.removeprefix("tt_")) == 43, "256 bits"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("x" * 32, ""),
        (f" \t{'x' * 32}\n", ""),
        ("x" * 31, "shorter than 32"),
        (f"{'x' * 31}     ", "shorter than 32"),
        ("", "is empty"),
        (" \n", "is empty"),
        (f"{TOKEN}\n{TOKEN}", "not a token"),
        ("x" * 1025, "not a token"),
        (f"{TOKEN}\0", "not a token"),
    ],
)
def test_what_is_a_token(text, problem):
    said = token_problem(text)
    assert problem in said
    assert bool(said) == bool(problem)
    assert not text.strip() or text.strip() not in said


class TestConfig:
    @pytest.mark.parametrize(
        ("value", "place"),
        [
            (TOKEN, TokenPlace(kind="config")),
            ({"env": "NAME"}, TokenPlace(kind="variable", where="NAME")),
            ({"file": "/x"}, TokenPlace(kind="file", where="/x")),
        ],
    )
    def test_it_says_where_and_never_what(self, value, place):
        read = build_config({"ports": 1, "token": value}, "server")
        assert read.token == place
        assert TOKEN not in repr(read)
        assert TOKEN not in str(config_to_plain(read))

    @pytest.mark.parametrize(
        "value", ["hush-hush", 5, None, {}, {"env": ""}, {"file": 1}, {"env": "A", "file": "b"}]
    )
    def test_what_will_not_do_is_a_problem_without_it(self, value):
        with pytest.raises(ConfigError, match="token: ") as caught:
            build_config({"ports": 1, "token": value}, "server")
        assert "hush-hush" not in str(caught.value)

    def test_none_and_a_token_are_a_contradiction(self):
        with pytest.raises(ConfigError, match="leave one of the two out"):
            build_config({"ports": 1, "auth": "none", "token": TOKEN}, "server")
        assert build_config({"ports": 1, "auth": "none"}, "server").token.kind == "none"

    def test_paths_are_beside_the_config(self, tmp_path):
        path = tmp_path / "c.json"
        path.write_text('{"ports": 1, "token": {"file": "secret"}}')
        assert load_config(path, "server").token.where == str(tmp_path / "secret")
        path.write_text(f'{{"ports": 1, "token": "{TOKEN}"}}')
        place = load_config(path, "server").token
        assert place == TokenPlace(kind="config", where=str(path))
        path.chmod(0o600)
        assert token_files.place_warning(place) == ""
        path.chmod(0o644)
        assert "others may read" in token_files.place_warning(place)

    def test_plain_values_and_back(self):
        made = config("file", "/x")
        assert config_from_plain(config_to_plain(made)) == made


class TestFiles:
    def test_it_must_be_a_private_regular_file(self, tmp_path):
        path = tmp_path / "t"
        path.write_text(f"  {TOKEN}\n")
        path.chmod(0o640)
        assert token_files.read_token_file(path) == TOKEN
        for mode in (0o644, 0o602):
            path.chmod(mode)
            with pytest.raises(ConfigError, match="chmod 600"):
                token_files.read_token_file(path)
        path.chmod(0o600)
        link = tmp_path / "link"
        link.symlink_to(path)
        assert token_files.read_token_file(link) == TOKEN
        with pytest.raises(ConfigError, match="cannot be read"):
            token_files.read_token_file(link, follow=False)
        os.mkfifo(tmp_path / "fifo", 0o600)
        for other in (tmp_path / "fifo", tmp_path):
            with pytest.raises(ConfigError, match="not a regular file"):
                token_files.read_token_file(other)

    def test_made_once_rotated_once_retired(self, tmp_path):
        assert token_files.own_tokens(tmp_path) == []
        assert token_files.make_token(tmp_path)
        assert not token_files.make_token(tmp_path)
        (first,) = token_files.own_tokens(tmp_path)
        token_files.rotate_token(tmp_path)
        second, old = token_files.own_tokens(tmp_path)
        assert old == first
        assert second != first
        with pytest.raises(ConfigError, match="tunneltcp token retire"):
            token_files.rotate_token(tmp_path)
        assert token_files.retire_token(tmp_path)
        assert token_files.own_tokens(tmp_path) == [second]
        assert not token_files.retire_token(tmp_path)
        modes = {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
        assert modes == {0o600}

    def test_a_link_in_its_place_is_not_followed(self, tmp_path):
        there = tmp_path / "there"
        there.write_text(f"{TOKEN}\n")
        there.chmod(0o600)
        (tmp_path / "token").symlink_to(there)
        with pytest.raises(ConfigError):
            token_files.own_tokens(tmp_path)

    def test_logins_by_host(self, tmp_path):
        one, two = tmp_path / "one", tmp_path / "two"
        kept = token_files.keep_login("VPS.example.com.", TOKEN, two)
        assert kept.stat().st_mode & 0o777 == 0o600
        assert token_files.find_login("vps.example.com", (one, two)) == kept
        assert token_files.find_login("other.example.com", (one, two)) is None
        token_files.keep_login("fe80::1%eth0", OTHER, one)
        found = token_files.find_login("fe80::1%eth0", (one, two))
        assert found is not None
        assert found.read_text() == f"{OTHER}\n"
        token_files.keep_login("vps.example.com", OTHER, two)
        assert kept.read_text() == f"{OTHER}\n"

    def test_a_folder_that_will_not_do(self, tmp_path):
        (tmp_path / "logins").write_text("")
        with pytest.raises(ConfigError, match="cannot make"):
            token_files.keep_login("vps", TOKEN, tmp_path)


class TestReader:
    def test_a_variable_that_was_moved(self):
        fd = os.memfd_create("moved")
        os.write(fd, f" {TOKEN} ".encode())
        reader = TokenReader("server", (), {"NAME": fd})
        assert reader.read(config("variable", "NAME")) == [TOKEN]
        assert reader.read(config("variable", "NAME")) == [TOKEN], "more than once"
        with pytest.raises(ConfigError, match="OTHER is not set in the environment"):
            reader.read(config("variable", "OTHER"))
        os.close(fd)

    def test_one_that_came_too_late(self, monkeypatch):
        monkeypatch.setenv("LATE", TOKEN)
        with pytest.raises(ConfigError, match="only taken at the start") as caught:
            TokenReader("server", (), {}).read(config("variable", "LATE"))
        assert TOKEN not in str(caught.value)

    def test_a_client_looks_in_its_own_state_first(self, tmp_path):
        token_files.keep_login("vps", OTHER, tmp_path / "user")
        reader = TokenReader("client", (tmp_path / "own", tmp_path / "user"), {})
        assert reader.read(config()) == [OTHER]
        token_files.keep_login("vps", TOKEN, tmp_path / "own")
        assert reader.read(config()) == [TOKEN]
        with pytest.raises(ConfigError, match="tunneltcp login elsewhere"):
            reader.read(config(server="elsewhere"))

    @pytest.mark.parametrize("server", ["localhost", "127.0.0.1", "127.1.2.3", "::1", "vps"])
    def test_servers_here_are_for_loopback_alone(self, tmp_path, server):
        token_files.make_token(tmp_path)
        reader = TokenReader("client", (), {}, lambda: [tmp_path / "none", tmp_path])
        if server == "vps":
            with pytest.raises(ConfigError):
                reader.read(config(server=server))
        else:
            assert reader.read(config(server=server)) == token_files.own_tokens(tmp_path)

    def test_only_a_server_makes_one(self, tmp_path):
        assert not TokenReader("client", (tmp_path,), {}).make_missing(config())
        assert not TokenReader("server", (tmp_path,), {}).make_missing(config("none"))
        assert TokenReader("server", (tmp_path,), {}).make_missing(config())
        assert TokenReader("server", (), {}).read(config("none")) == [""]
