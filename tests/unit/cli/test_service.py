"""``tunneltcp service``: one source of all service files, and each setting that matters."""

from __future__ import annotations

import configparser
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from tunneltcp.cli import run as cli_run
from tunneltcp.cli import service as cli_service
from tunneltcp.cli.main import main
from tunneltcp.cli.templates import STOP_MARGIN_SECONDS, Service, program, unit
from tunneltcp.config.model import DEFAULT_DRAIN_SECONDS
from tunneltcp.errors import ConfigError
from tunneltcp.master import stopping
from tunneltcp.master.process import START_SECONDS

ROOT = Path(__file__).parents[3]
ROLES = ["server", "client"]


def default_service(role, **changes):
    values = {"role": role, "instance": role, "config": f"/etc/tunneltcp/{role}.json"}
    return Service(**{**values, **changes})


def invoke(*words):
    return CliRunner().invoke(main, ["service", *words])


def settings_of(text, section):
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(text)
    return dict(parser[section])


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"tunnels": [{"remote_port": 60001, "local_port": 80}], "drain": 30}')
    return path


# ---------------------------------------------------------------------------- drift


@pytest.mark.parametrize("role", ROLES)
def test_what_is_shipped_comes_from_the_templates(role):
    shipped = (ROOT / f"supervisor/tunneltcp-{role}.conf").read_text()
    assert shipped == program(default_service(role))
    shipped = (ROOT / f"systemd/tunneltcp-{role}.service").read_text()
    assert shipped == unit(default_service(role))


@pytest.mark.parametrize("manager", ["systemd", "supervisor"])
@pytest.mark.parametrize(
    "words",
    [
        ("--role", "server"),
        ("--role", "client", "--server", "vps.example.com"),
        ("--role", "client", "--instance", "two", "--server", "::1"),
        ("--role", "server", "--config", "/srv/it's mine/server.json"),
    ],
)
def test_the_command_in_a_file_makes_the_same_file(manager, words):
    first = invoke(manager, *words).stdout
    line = next(line for line in first.splitlines() if "Made by: " in line)
    again = shlex.split(line.partition("Made by: ")[2])
    assert again[:3] == ["tunneltcp", "service", manager]
    assert invoke(*again[2:]).stdout == first


def test_nothing_else_is_shipped_and_supervisor_is_no_package():
    """The installed package of that name must win."""
    assert {path.name for path in (ROOT / "supervisor").iterdir()} == {
        f"tunneltcp-{role}.conf" for role in ROLES
    }
    import supervisor

    assert supervisor.__file__ is not None


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("manager", ["supervisor", "systemd"])
def test_what_is_printed_is_the_same_filled_in(manager, role, config):
    words = ["--config", str(config), "--instance", "web"]
    words += ["--server", "vps"] if role == "client" else []
    done = invoke(manager, "--role", role, *words)
    make = program if manager == "supervisor" else unit
    service = default_service(
        role,
        instance="web",
        config=str(config),
        python=sys.executable,
        server="vps" if role == "client" else "",
        drain_seconds=30,
    )
    assert done.stdout == make(service)
    assert done.exit_code == 0


# ------------------------------------------------------------------------- settings


def test_the_stop_margin_is_more_than_a_master_takes():
    own = START_SECONDS + stopping._STOP_LIMIT_SECONDS
    assert own < STOP_MARGIN_SECONDS
    assert default_service("server", drain_seconds=30).stop_seconds == 30 + STOP_MARGIN_SECONDS


@pytest.mark.parametrize("role", ROLES)
def test_settings_of_supervisord(role):
    found = settings_of(program(default_service(role)), f"program:tunneltcp-{role}")
    python = "/opt/tunneltcp/venv/bin/python"
    assert found.pop("command").split() == [
        *(python, "-P", "-m", "tunneltcp.master"),
        *("--role", role, "--config", f"/etc/tunneltcp/{role}.json"),
    ]
    assert int(found.pop("stopwaitsecs")) == DEFAULT_DRAIN_SECONDS + STOP_MARGIN_SECONDS
    assert int(found["startretries"]) >= 1_000_000
    assert float(found["startsecs"]) < cli_run.SUPERVISORD_SECONDS
    expected = {
        "directory": "/", "autostart": "true", "autorestart": "true", "stopsignal": "TERM",
        "killasgroup": "true", "stopasgroup": "false", "stdout_logfile": "AUTO",
    }  # fmt: skip
    assert expected.items() <= found.items()


@pytest.mark.parametrize("role", ROLES)
def test_settings_of_systemd(role):
    text = unit(default_service(role))
    found = settings_of(text, "Service")
    assert found["ExecStart"].split()[:4] == [
        *("/opt/tunneltcp/venv/bin/python", "-P", "-m", "tunneltcp.master")
    ]
    assert int(found["TimeoutStopSec"]) == DEFAULT_DRAIN_SECONDS + STOP_MARGIN_SECONDS
    expected = {
        "Type": "exec", "WorkingDirectory": "/", "Restart": "always", "KillMode": "mixed",
        "OOMPolicy": "continue", "ExecReload": "/bin/kill -HUP $MAINPID",
        "StateDirectory": f"tunneltcp/{role}", "RuntimeDirectory": f"tunneltcp/{role}",
        "LogsDirectory": f"tunneltcp/{role}", "RuntimeDirectoryMode": "0700",
        "NoNewPrivileges": "yes", "ProtectSystem": "strict",
        "CapabilityBoundingSet": "CAP_NET_BIND_SERVICE",
    }  # fmt: skip
    assert expected.items() <= found.items()
    assert settings_of(text, "Unit")["StartLimitIntervalSec"] == "0"
    assert settings_of(text, "Install")["WantedBy"] == "multi-user.target"


def test_one_with_a_user_may_become_him():
    text = unit(replace(default_service("server"), user="nobody"))
    kept = settings_of(text, "Service")["CapabilityBoundingSet"].split()
    assert kept == ["CAP_NET_BIND_SERVICE", "CAP_CHOWN", "CAP_KILL", "CAP_SETGID", "CAP_SETUID"]
    assert "# Its workers are nobody" in text


def test_a_users_unit_asks_for_nothing_that_only_the_system_has():
    text = unit(default_service("client", is_users=True))
    for word in ("Capabilit", "Directory=tunneltcp", "Protect", "Private", "network-online"):
        assert word not in text
    assert settings_of(text, "Install")["WantedBy"] == "default.target"


AWKWARD = ["/a b/c.json", "/50%.json", "/it's.json", "/$HOME/x", '/say "x".json', "/a\\b"]


@pytest.mark.parametrize("path", AWKWARD)
def test_supervisord_reads_the_path_that_was_meant(path):
    from supervisor.options import UnhosedConfigParser  # type: ignore[import-untyped]

    parser = UnhosedConfigParser()
    parser.read_string(program(default_service("server", config=path)))
    parser.expansions = {"here": "/"}
    command = parser.saneget("program:tunneltcp-server", "command")
    assert shlex.split(command)[7] == path


def test_systemd_quotes():
    words = unit(default_service("server", config='/a "b" 5% $c\\.json')).splitlines()
    line = next(line for line in words if line.startswith("ExecStart="))
    assert line.endswith('--config "/a \\"b\\" 5%% $$c\\\\.json"')


@pytest.mark.parametrize("path", ["/a\nb", "/a ;b", "/a #b", "/a\x1b"])
def test_what_supervisord_cannot_read_is_refused(path):
    with pytest.raises(ConfigError):
        program(default_service("server", config=path))


def test_a_line_break_cannot_add_a_setting_to_a_unit():
    with pytest.raises(ConfigError):
        unit(default_service("server", config="/a\nUser=x"))


# -------------------------------------------------------------------------- command


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("systemd",), "Missing option '--role'"),
        (("systemd", "--role", "server", "--server", "a"), "--server is for the client"),
        (("systemd", "--role", "client", "--server", "a b"), "--server: 'a b' is not a host"),
        (("systemd", "--role", "client", "--server", ""), "--server: '' is not a host"),
        (("systemd", "--role", "server", "--instance", "../x"), "is not a name"),
        (("systemd", "--role", "server", "--force"), "are for --install"),
        (("supervisor", "--role", "server", "--config", "/a ;b"), "cannot be written"),
    ],
)
def test_usage_errors(words, problem):
    done = invoke(*words)
    assert done.exit_code == 2
    assert problem in done.stderr
    assert done.stdout == ""


def test_a_config_that_cannot_be_read_is_a_note(tmp_path):
    """It may be written later, or be for root's eyes."""
    done = invoke("systemd", "--role", "server", "--config", str(tmp_path / "none.json"))
    assert done.exit_code == 0
    assert "note" in done.stderr
    assert "TimeoutStopSec=25" in done.stdout


def test_server_and_user(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    done = invoke("systemd", "--role", "client", "--server", "vps", "--user")
    assert f"--config {tmp_path}/tunneltcp/client.json --server vps\n" in done.stdout


def install(folder, *words, manager="systemd"):
    where = ("--install", "--destination", str(folder))
    return invoke(manager, "--role", "server", *where, *words)


@pytest.mark.slow
def test_installing(tmp_path, config):
    folder = tmp_path / "made/for/it"
    done = install(folder, "--config", str(config))
    path = folder / "tunneltcp-server.service"
    assert done.exit_code == 0
    assert f"wrote {path}" in done.stdout
    assert "systemctl enable --now tunneltcp-server" in done.stdout
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(folder.iterdir()) == [path]


@pytest.mark.slow
def test_installing_again_changes_nothing(tmp_path, config):
    install(tmp_path, "--config", str(config))
    done = install(tmp_path, "--config", str(config))
    assert done.exit_code == 0
    assert "in place already" in done.stdout


@pytest.mark.slow
def test_another_file_is_kept_unless_told_otherwise(tmp_path, config):
    path = tmp_path / "tunneltcp-server.service"
    path.write_text("mine")
    done = install(tmp_path, "--config", str(config))
    assert done.exit_code == 2
    assert "--force" in done.stderr
    assert path.read_text() == "mine"
    assert install(tmp_path, "--config", str(config), "--force").exit_code == 0
    assert "ExecStart" in path.read_text()


@pytest.mark.slow
def test_a_masked_unit_is_another_file(tmp_path, config):
    path = tmp_path / "tunneltcp-server.service"
    path.symlink_to("/dev/null")
    assert install(tmp_path, "--config", str(config)).exit_code == 2


@pytest.mark.slow
def test_a_folder_that_cannot_be_written(tmp_path, config):
    (tmp_path / "file").touch()
    done = install(tmp_path / "file", "--config", str(config))
    assert done.exit_code == 1
    assert "cannot write to" in done.stderr


@pytest.mark.slow
def test_an_interpreter_without_tunneltcp_is_not_installed(tmp_path, config, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    done = install(tmp_path / "new", "--config", str(config))
    assert done.exit_code == 2
    assert "the service would not start" in done.stderr
    assert not (tmp_path / "new").exists()


def test_the_folder_that_supervisord_includes(tmp_path):
    conf = tmp_path / "supervisord.conf"
    conf.write_text("[supervisord]\n[include]\nfiles = one.conf programs.d/*.ini ; all\n")
    place = cli_service._supervisord_place((tmp_path / "none", conf))
    assert place.folder == tmp_path / "programs.d"
    assert place.suffix == ".ini"


@pytest.mark.parametrize("text", ["", "[include]\n", "[include]\nfiles=a.conf", "garbage"])
def test_a_supervisord_that_includes_no_folder(text, tmp_path):
    conf = tmp_path / "supervisord.conf"
    conf.write_text(text)
    with pytest.raises(ConfigError):
        cli_service._supervisord_place((conf,))


def test_no_supervisord():
    with pytest.raises(ConfigError, match="--destination"):
        cli_service._supervisord_place((Path("/none"),))
