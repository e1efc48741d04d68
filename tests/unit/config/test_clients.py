"""Clients in a config: all that can be wrong with them, and never a token in the words."""

from __future__ import annotations

import os

import pytest

from tunneltcp.config.clients import MAX_SHARING, ClientConfig
from tunneltcp.config.load import build_config, config_token, load_config
from tunneltcp.config.plain import config_from_plain, config_to_plain
from tunneltcp.config.token_files import make_token, own_tokens
from tunneltcp.config.token_reader import TokenReader
from tunneltcp.config.tokens import TokenPlace
from tunneltcp.errors import ConfigError

ONE = "the-first-token-of-more-than-32-characters"
TWO = "the-second-token-of-more-than-32-characters"
THREE = "the-third-token-of-more-than-32-characters"


def client(name="laptop", token=ONE, ports=60001, **values):
    return {"name": name, "token": token, "ports": ports, **values}


def build(*clients, ports="60001-60010", role="server", **values):
    return build_config({"ports": ports, "clients": list(clients), **values}, role)


def problems(*clients, **values):
    with pytest.raises(ConfigError) as caught:
        build(*clients, **values)
    said = "\n".join(caught.value.problems)
    for token in (ONE, TWO, THREE):
        assert token not in said
    return said


def test_what_is_one():
    config = build(
        client(ports=["60001-60003", 60005]),
        client("desk", {"file": "desk"}, "60006"),
        client("tv", {"env": "TV"}, 60007, shared=True),
    )
    assert config.clients == (
        ClientConfig(
            name="laptop",
            tokens=(TokenPlace(kind="config", client="laptop"),),
            ports=(60001, 60002, 60003, 60005),
        ),
        ClientConfig(
            name="desk", tokens=(TokenPlace(kind="file", where="desk"),), ports=(60006,)
        ),
        ClientConfig(
            name="tv", tokens=(TokenPlace(kind="variable", where="TV"),), ports=(60007,),
            shared=True,
        ),
    )  # fmt: skip
    assert config.token.kind == "own", "60004 and others are for who has that one"
    assert ONE not in repr(config)
    assert ONE not in str(config_to_plain(config))
    assert config_from_plain(config_to_plain(config)) == config


def test_two_tokens_while_one_replaces_the_other():
    (found,) = build(client(token=[TWO, ONE])).clients
    assert found.tokens == (
        TokenPlace(kind="config", client="laptop", index=0),
        TokenPlace(kind="config", client="laptop", index=1),
    )
    for tokens in ([], [ONE, TWO, THREE]):
        assert "or a list of at most 2" in problems(client(token=tokens))


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("laptop", "clients[0]: must be an object"),
        ({}, "clients[0].name: is missing"),
        ({}, "clients[0].token: is missing"),
        ({}, "clients[0].ports: is missing"),
        (client(name=""), "clients[0].name: '' is not a name"),
        (client(name=5), "clients[0].name: 5 is not a name"),
        (client(name="a\nb"), "is not a name"),
        (client(token="hush"), "clients[0].token: is shorter than 32"),
        (client(token=5), "clients[0].token: must be a text"),
        (client(token=[ONE, "hush"]), "clients[0].token[1]: is shorter than 32"),
        (client(ports=[]), "clients[0].ports: there are none"),
        (client(ports="60001-x"), "clients[0].ports: '60001-x' is not a port"),
        (client(ports=["60001", 60001]), "60001 is given more than once"),
        (client(shared="yes"), "clients[0].shared: 'yes' is neither"),
        (client(port=1), "did you mean ports?"),
    ],
)
def test_what_is_wrong_with_one(entry, problem):
    assert problem in problems(entry)


def test_more_than_a_list_of_them():
    values: list[object] = [5, None, {}, "laptop"]
    for value in values:
        with pytest.raises(ConfigError, match="clients: must be a list"):
            build_config({"ports": 1, "clients": value}, "server")
    assert "501 are more than 500" in problems(*[client(f"c{n}") for n in range(501)])


def test_a_name_is_that_of_one():
    said = problems(client(), client(token=TWO, ports=60002))
    assert "clients[1].name: 'laptop' is already used by clients[0]" in said


@pytest.mark.parametrize(
    ("one", "two", "fine"),
    [(None, None, False), (True, None, False), (None, True, False), (True, True, True)],
)
class TestSharing:
    def test_ports(self, one, two, fine):
        def flags(value):
            return {} if value is None else {"shared": value}

        entries = (
            client(ports="60001-60003", **flags(one)),
            client("desk", TWO, "60003-60005", **flags(two)),
        )
        if fine:
            assert build(*entries).clients[1].ports == (60003, 60004, 60005)
        else:
            text = 'clients[1].ports: 60003 is already in clients[0]; "shared": true in both'
            assert problems(*entries).count(text) == 1

    def test_a_token(self, one, two, fine):
        entries = (
            client(shared=bool(one)),
            client("desk", f" {ONE} ", 60002, shared=bool(two)),
        )
        if fine:
            assert len(build(*entries).clients) == 2
        else:
            assert "'laptop' and 'desk' have the same token" in problems(*entries)

    def test_a_token_that_only_reading_shows(self, one, two, fine, tmp_path):
        for name in ("a", "b"):
            (tmp_path / name).write_text(ONE)
            (tmp_path / name).chmod(0o600)
        config = build(
            client(token={"file": str(tmp_path / "a")}, shared=bool(one)),
            client("desk", {"file": str(tmp_path / "b")}, 60002, shared=bool(two)),
            ports="60001-60002",
        )
        reader = TokenReader("server", (), {})
        if fine:
            assert [right.client for right in reader.rights(config)] == ["laptop", "desk", ""]
            return
        with pytest.raises(ConfigError, match="'laptop' and 'desk' have the same") as caught:
            reader.rights(config)
        assert ONE not in str(caught.value)


def test_a_port_of_too_many():
    many = [client(f"c{n}", f"{ONE}-{n}", shared=True) for n in range(MAX_SHARING)]
    assert len(build(*many).clients) == MAX_SHARING
    said = problems(*many, client("one-more", TWO, shared=True))
    assert "clients: 60001 is in more than 8 clients" in said


def test_the_token_at_the_top_is_another_one():
    assert "'laptop' and the server have the same token" in problems(client(), token=ONE)
    assert build(client(shared=True), token=ONE).token.kind == "config"
    assert "leave one of the two out" in problems(client(), auth="none")


def test_a_server_whose_ports_are_all_of_clients_needs_none_of_its_own(tmp_path):
    config = build(client(ports="60001-60010"))
    assert config.token.kind == "clients"
    reader = TokenReader("server", (tmp_path,), {})
    assert not reader.make_missing(config)
    assert list(tmp_path.iterdir()) == []
    assert build(client(ports="60001-60009")).token.kind == "own"
    assert build(client(ports="60001-60010"), token=TWO).token.kind == "config"


def test_they_are_for_the_server():
    tunnels = [{"remote_port": 1, "local_port": 2}]
    with pytest.raises(ConfigError, match="clients: is for the server"):
        build_config({"tunnels": tunnels, "clients": []}, "client", server="vps")


class TestReading:
    def load(self, tmp_path, text):
        path = tmp_path / "c.json"
        path.write_text(text)
        return load_config(path, "server")

    def test_all_places(self, tmp_path):
        (tmp_path / "desk").write_text(f"{TWO}\n")
        (tmp_path / "desk").chmod(0o600)
        fd = os.memfd_create("moved")
        os.write(fd, THREE.encode())
        config = self.load(
            tmp_path,
            f'{{"ports": "1-5", "clients": [{{"name": "a", "token": "{ONE}", "ports": "1-2"}},'
            '{"name": "b", "token": {"file": "desk"}, "ports": 3},'
            '{"name": "c", "token": {"env": "C"}, "ports": 4}]}',
        )
        make_token(tmp_path / "..")
        reader = TokenReader("server", (tmp_path / "..",), {"C": fd})
        rights = reader.rights(config)
        os.close(fd)
        assert [(one.client, list(one.tokens), sorted(one.ports)) for one in rights] == [
            ("a", [ONE], [1, 2]),
            ("b", [TWO], [3]),
            ("c", [THREE], [4]),
            ("", own_tokens(tmp_path / ".."), [5]),
        ]
        assert ONE not in repr(rights), "not in a traceback either"

    def test_one_that_moved_in_the_file_is_found_by_its_name(self, tmp_path):
        entry = '{{"name": "{}", "token": {}, "ports": {}}}'
        a, b = entry.format("a", f'"{ONE}"', 1), entry.format("b", f'["{TWO}", "{THREE}"]', 2)
        config = self.load(tmp_path, f'{{"ports": "1-2", "clients": [{a}, {b}]}}')
        self.load(tmp_path, f'{{"ports": "1-2", "clients": [{b}, {a}]}}')
        places = [place for one in config.clients for place in one.tokens]
        assert [config_token(place) for place in places] == [ONE, TWO, THREE]
        self.load(tmp_path, f'{{"ports": "1-2", "clients": [{b}]}}')
        with pytest.raises(ConfigError, match="the token of client 'a': has gone meanwhile"):
            config_token(places[0])

    def test_all_problems_at_once_with_names(self, tmp_path):
        config = build(
            client(token={"file": "/none/1"}), client("desk", {"env": "NONE"}, 60002)
        )
        with pytest.raises(ConfigError) as caught:
            TokenReader("server", (tmp_path,), {}).rights(config)
        first, second = caught.value.problems
        assert first.startswith("client 'laptop': token file /none/1 cannot be read")
        assert second.startswith("client 'desk': the variable NONE is not set")

    def test_a_servers_own_token_is_no_clients(self, tmp_path):
        make_token(tmp_path)
        (token,) = own_tokens(tmp_path)
        reader = TokenReader("server", (tmp_path,), {})
        entry = f'{{"name": "laptop", "token": "{token}", "ports": 1}}'
        config = self.load(tmp_path, f'{{"ports": "1-2", "clients": [{entry}]}}')
        with pytest.raises(ConfigError, match="'laptop' and the server have the same"):
            reader.rights(config)
