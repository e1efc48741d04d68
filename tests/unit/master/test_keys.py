"""Keys come from a child, past the master; a config comes from one as values."""

from __future__ import annotations

import fcntl
import os

import pytest

from tests.support.leaks import Snapshot
from tests.unit.master.conftest import fake_key
from tunneltcp.config.model import Config, TunnelConfig
from tunneltcp.config.token_reader import TokenReader
from tunneltcp.config.tokens import TokenPlace
from tunneltcp.control.context import Role
from tunneltcp.control.keys import pack_keys, read_keys
from tunneltcp.errors import ConfigError
from tunneltcp.master.reading import read_config
from tunneltcp.master.secrets import PortSecrets

TUNNELS = tuple(TunnelConfig(remote_port=port) for port in (60001, 60002))
NONE = TokenPlace(kind="none")


def keys_of(tmp_path):
    return PortSecrets(Role.SERVER, fake_key, TokenReader("server", (tmp_path,), {}))


def test_each_port_has_its_own_in_memory_that_nobody_can_change(tmp_path):
    keys = keys_of(tmp_path)
    assert not keys.make(Config(tunnels=TUNNELS, tls=False, token=NONE))
    for port in (60001, 60002):
        fd = keys.keys_fd(port)
        assert read_keys(fd) == {fake_key("", port): ""}
        assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) == 15, "not written, grown, shrunk, unsealed"
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"x", 0)
    assert keys.keys_fd(60003) == -1
    keys.close()


def test_a_server_without_a_token_has_one_afterwards(tmp_path):
    keys = keys_of(tmp_path)
    assert keys.make(Config(tunnels=TUNNELS, tls=False))
    token = (tmp_path / "token").read_text().strip()
    assert read_keys(keys.keys_fd(60001)) == {fake_key(token, 60001): ""}
    assert not keys.make(Config(tunnels=TUNNELS, tls=False)), "it was there"
    keys.close()


def test_without_a_token_the_old_keys_stay(tmp_path):
    keys = keys_of(tmp_path)
    keys.make(Config(tunnels=TUNNELS, tls=False, token=NONE))
    before = Snapshot.take()
    missing = TokenPlace(kind="file", where=str(tmp_path / "missing"))
    with pytest.raises(ConfigError, match="cannot be read"):
        keys.make(Config(tunnels=TUNNELS, tls=False, token=missing))
    assert read_keys(keys.keys_fd(60001)) == {fake_key("", 60001): ""}
    assert not before.new_descriptors()
    keys.close()


def test_no_keys_is_an_error_and_not_an_empty_list():
    fd = os.memfd_create("keys")
    seventeen = [(bytes([number]) * 32, "name") for number in range(17)]
    for data in (b"", b"x" * 31, b"x" * 32, b"x" * 32 + b"\1", pack_keys(seventeen)):
        os.ftruncate(fd, 0)
        os.pwrite(fd, data, 0)
        with pytest.raises(OSError, match="no keys"):
            read_keys(fd)
    os.close(fd)


def test_a_config_of_any_size_comes_from_a_child():
    tunnels = tuple(TunnelConfig(remote_port=port, name="n" * 64) for port in range(1, 501))
    config = Config(tunnels=tunnels, bind=("::1",), budget_bytes=1 << 20, log_format="json")
    here = os.getpid()

    def load():
        assert os.getpid() != here
        return config

    assert read_config(load) == config


def test_all_that_is_wrong_comes_from_a_child():
    def load():
        raise ConfigError(["one", "two"])

    with pytest.raises(ConfigError) as caught:
        read_config(load)
    assert caught.value.problems == ("one", "two")


def test_a_child_that_dies_is_no_config():
    with pytest.raises(ConfigError, match="could not be read"):
        read_config(lambda: os._exit(3))
