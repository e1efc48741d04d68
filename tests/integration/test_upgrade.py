"""Another version of the code, or of the config, comes to masters that carry visitors.

Both masters run a copy of the package, which the tests change under them.
"""

from __future__ import annotations

import compileall
import os
import re
import shutil
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

import orjson
import pytest

from tests.support.apps import Apps
from tests.support.leaks import descendants
from tests.support.ports import free_port, free_ports
from tests.support.processes import Master, TunnelPair, run_tunneltcp
from tests.support.service import ROOT
from tests.support.sockets import connect, seconds_until_echo
from tests.support.visitors import Load
from tests.support.wait import wait_until
from tunneltcp.cli.ask import Refused, ask

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

FIRST = "0.1.0"
SIDES = ("server", "client")


class Code:
    """A copy of the package."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "tunneltcp"
        # Compiled once, and again what changes: else each start of a program takes a second.
        self.environment = {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": ""}
        skip = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "tunneltcp", self.path, ignore=skip)
        compileall.compile_dir(self.path, quiet=1)
        self.version = FIRST
        self._versions = 0
        self._changed_at = self.path.stat().st_mtime

    def replace(self, name: str, old: str, new: str) -> None:
        """Change a file of it."""
        path = self.path / name
        text = path.read_text()
        assert text.count(old) == 1, f"{name} has {old!r} {text.count(old)} times"
        path.write_text(text.replace(old, new))
        self._changed_at += 10  # what is compiled is known by its size and the second
        os.utime(path, (self._changed_at, self._changed_at))

    def change_version(self) -> str:
        """Be the next version; return it."""
        self._versions += 1
        before, self.version = self.version, f"9.0.{self._versions}"
        self.replace("__init__.py", f'"{before}"', f'"{self.version}"')
        return self.version

    @contextmanager
    def changed(self, name: str, old: str, new: str) -> Iterator[None]:
        """Have a file changed for a while."""
        self.replace(name, old, new)
        try:
            yield
        finally:
            self.replace(name, new, old)


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Code:
    return Code(tmp_path_factory.mktemp("code"))


@pytest.fixture(scope="module")
def upgraded(code: Code, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TunnelPair]:
    folder = tmp_path_factory.mktemp("upgraded")
    with Apps() as apps:
        targets = [apps.add("pattern"), apps.add("echo"), apps.add("echo")]
        with TunnelPair(targets, folder, environment=code.environment) as pair:
            for master in (pair.server, pair.client):
                master.allowed += ["upgrade refused", "cannot take over", r"^  \| "]
            yield pair


@pytest.fixture(scope="module")
def load() -> Iterator[Load]:
    with Load() as running:
        yield running


@pytest.fixture
def pair(upgraded: TunnelPair, load: Load) -> Iterator[TunnelPair]:
    """Tunnels to a ``pattern`` and to two ``echo`` apps, with visitors who all stay whole."""
    upgraded.wait_links()
    load.probe("staying", upgraded.ports[1], count=4, size=20_000, pause=0.03)
    load.probe("waiting", upgraded.ports[2], count=2, size=64, pause=0.05, seed=50)
    load.probe(
        "coming", upgraded.ports[2], count=2, rounds=1, repeat=True, pause=0.01, seed=100
    )
    load.transfer("sending", upgraded.port, count=1, up=10_000_000, down=10_000_000, seed=900)
    wait_until(lambda: load.stats("staying").rounds > 10, 10)
    yield upgraded
    sent = load.finish("sending", 30)
    ends = {name: load.end(name) for name in ("staying", "waiting", "coming")}
    assert sent.outcomes == {"ok": 1}, sent.errors
    assert ends["staying"].running == 4, ends
    assert ends["waiting"].running == 2, ends
    for name, stats in ends.items():
        assert stats.bad == 0, (name, stats.errors)
        assert set(stats.outcomes) <= {"ok"}, (name, stats.errors)
        assert stats.max_gap < 4, name


def masters(pair: TunnelPair) -> dict[str, Master]:
    return {"server": pair.server, "client": pair.client}


def upgrade(master: Master, *words: object) -> subprocess.CompletedProcess[str]:
    return run_tunneltcp("upgrade", f"--run-dir={master.run_dir}", *map(str, words), timeout=60)


def begin_upgrade(master: Master) -> None:
    """Ask for it, and do not wait."""
    assert "number" in ask(master.run_dir, {"op": "upgrade"})


def count_readings(master: Master) -> int:
    """How often it has read its config again."""
    return master.log_text("master.log").count("config read again")


def pids(master: Master) -> dict[int, int]:
    return {one["port"]: one["pid"] for one in master.status()["tunnels"]}


def versions(master: Master) -> list[str]:
    return [one["version"] for one in master.status()["tunnels"]]


def everything_goes_on(load: Load) -> None:
    """Wait until each visitor has had answers from here on."""
    for name in ("staying", "waiting", "coming"):
        rounds = load.stats(name).rounds
        wait_until(lambda name=name, rounds=rounds: load.stats(name).rounds > rounds + 3, 10)  # type: ignore[misc]


def test_new_code_comes_under_load(pair: TunnelPair, load: Load, code: Code) -> None:
    """Same process, other code, and nobody notices. (The server: with a canary, below.)"""
    master, port = pair.client, pair.ports[1]
    before = master.status()
    new = code.change_version()
    done = upgrade(master)
    assert (done.returncode, done.stderr) == (0, "")
    said = f"test: upgraded, {before['version']} -> {new}, process {master.pid}\n"
    assert done.stdout.endswith(said)
    went_on = rf"^{port}: runs {new}; 4 visitors went on after \d\.\d"
    assert re.search(went_on, done.stdout, re.MULTILINE)

    now = master.status()
    assert (now["pid"], now["version"]) == (master.pid, new)
    assert now["since"] == before["since"]
    assert now["upgrade"]["left"] == []
    for old, tunnel in zip(before["tunnels"], now["tunnels"], strict=True):
        assert (tunnel["version"], tunnel["crash_safe"]) == (new, True)
        assert tunnel["pid"] != old["pid"]
        assert tunnel["restarts"] == old["restarts"] + 1
    everything_goes_on(load)
    # The new master goes on for it too, and hears the wish of a worker that is asked to go.
    old_pid = master.kill_worker(port, signal.SIGTERM)
    master.wait_for_successor(port, old_pid)


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("workers/base.py", "import annotations", "import annotations (", "SyntaxError"),
        ("master/tunnel_state.py", '["life"])', '["lives"])', "KeyError: 'lives'"),
        ("relay/link.py", "    def end_turn(self", "    def end_it(self", "AttributeError"),
        ("protocol/table.py", "LAYOUT_VERSION: Final =", "LAYOUT_VERSION = 9 +", "laid out"),
    ],
)  # fmt: skip
def test_code_that_cannot_take_over_changes_nothing(
    upgraded: TunnelPair, code: Code, name: str, old: str, new: str, said: str
) -> None:
    master = upgraded.server
    before, version = pids(master), master.status()["version"]
    with code.changed(name, old, new):
        done = upgrade(master)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("tunneltcp: test: nothing was changed: ")
    assert said in line
    assert (pids(master), master.status()["version"]) == (before, version)
    assert master.status()["upgrade"]["state"] == "refused"
    seconds_until_echo(upgraded.ports[1])


def test_a_config_that_the_new_code_refuses_changes_nothing(upgraded: TunnelPair) -> None:
    master = upgraded.client
    good, before = master.config_path.read_text(), pids(master)
    master.config_path.write_text(good.replace('"tunnels"', '"tunnel"'))
    done = upgrade(master, "--json")
    master.config_path.write_text(good)
    assert done.returncode == 1
    answer = orjson.loads(done.stdout)
    assert answer["state"] == "refused"
    assert "it refuses the config: " in answer["reason"]
    assert pids(master) == before


def test_a_canary_goes_first(pair: TunnelPair, load: Load, code: Code) -> None:
    master, port = pair.server, pair.ports[1]
    before, old, new = pids(master), master.status()["version"], code.change_version()
    done = upgrade(master, "--canary", port)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{port}: runs {new}; 4 visitors went on" in done.stdout
    after = pids(master)
    assert {one for one in before if before[one] != after[one]} == {port}
    assert set(versions(master)) == {old, new}
    table = run_tunneltcp("status", f"--run-dir={master.run_dir}").stdout
    assert f"on version {old} as before" in table
    everything_goes_on(load)

    done = upgrade(master)
    assert done.returncode == 0
    assert versions(master) == [new] * 3


def test_what_else_is_wanted_meanwhile(pair: TunnelPair, load: Load, code: Code) -> None:
    """A second upgrade, a reload, a restart; who was stopped stays so."""
    master, (port, _, third) = pair.server, pair.ports
    code.change_version()
    for name in ("waiting", "coming"):
        load.end(name)
    run_tunneltcp("stop", str(third), f"--run-dir={master.run_dir}")
    before, readings = pids(master), count_readings(master)
    begin_upgrade(master)
    with pytest.raises(Refused, match="an upgrade is under way"):
        begin_upgrade(master)
    master.send(signal.SIGHUP)
    restart = run_tunneltcp("restart", str(port), f"--run-dir={master.run_dir}")
    assert restart.returncode == 0, restart.stderr

    wait_until(lambda: master.status()["upgrade"]["state"] == "done", 20)
    assert count_readings(master) == readings + 1
    assert pids(master)[port] != before[port]
    stopped = master.tunnel(third)
    assert (stopped["state"], stopped["stopped_by_user"]) == ("stopped", True)
    with pytest.raises(ConnectionRefusedError):
        connect(third)
    run_tunneltcp("start", str(third), f"--run-dir={master.run_dir}")
    pair.wait_links()
    load.probe("waiting", third, count=2, size=64, pause=0.05, seed=50)
    load.probe("coming", third, count=2, rounds=1, repeat=True, pause=0.01, seed=100)
    everything_goes_on(load)


def test_what_fails_after_all_is_tried_again_and_cuts_nobody(
    pair: TunnelPair, load: Load, code: Code, tmp_path: Path
) -> None:
    """The new image cannot take over at first: workers serve on, listeners stay."""
    master, mended = pair.client, tmp_path / "mended"
    begin = "        raise_descriptor_limit()\n"
    fails = f'{begin}        assert before is None or os.path.exists("{mended}"), "on cue"\n'
    code.change_version()
    with code.changed("master/master.py", begin, fails):
        begin_upgrade(master)
        wait_until(lambda: "cannot take over what runs (attempt 1" in master.stderr(), 20)
        everything_goes_on(load)
        mended.touch()
        wait_until(lambda: master.status()["upgrade"]["state"] == "done", 20)
    assert versions(master) == [code.version] * 3


def test_a_changed_setting_cuts_nobody(pair: TunnelPair, load: Load) -> None:
    """SIGHUP: the tunnel has another process, which goes on with its visitors."""
    port = pair.ports[1]
    for master in masters(pair).values():
        config = orjson.loads(master.config_path.read_bytes())
        (changed,) = (one for one in config["tunnels"] if one["remote_port"] == port)
        changed["max_visitors"] = 4 + changed.get("max_visitors", 100)
        before = pids(master)
        master.config_path.write_bytes(orjson.dumps(config))
        master.send(signal.SIGHUP)
        master.wait_for_successor(port, before[port])
        pair.wait_links()
        after = pids(master)
        assert {one for one in before if before[one] != after[one]} == {port}
        everything_goes_on(load)
        assert load.stats("staying").running == 4


def test_workers_of_either_code_end_with_their_master(code: Code, tmp_path: Path) -> None:
    """What ends a worker with its master outlives the ``execv``."""
    first, second = free_ports(2)
    tunnels = [{"remote_port": first}, {"remote_port": second}]
    with Master("server", tunnels, tmp_path, environment=code.environment) as master:
        wait_until(lambda: all(one["crash_safe"] for one in master.status()["tunnels"]), 10)
        old, new = master.status()["version"], code.change_version()
        assert upgrade(master, "--canary", first).returncode == 0
        assert versions(master) == [new, old]
        family = "two workers, a keeper of each, and a zygote"
        assert len(descendants(master.pid)) == 5, family
        master.kill()  # fails if one of them is left


def test_a_signal_that_comes_between_the_two_waits_for_the_new_one(
    code: Code, tmp_path: Path
) -> None:
    """TERM just when the old code is gone and the new one not there yet: a proper stop."""
    here, go = tmp_path / "here", tmp_path / "go"
    first, slow = "import sys\n", "import sys, os, time\n"
    slow += 'if "take" in os.environ.get("TUNNELTCP_HANDOVER", ""):\n'
    slow += f'    open("{here}", "w").close()\n'
    slow += f'    while not os.path.exists("{go}"):\n        time.sleep(0.01)\n'
    tunnels = [{"remote_port": free_port()}]
    with Master("server", tunnels, tmp_path / "server", environment=code.environment) as master:
        code.change_version()
        with code.changed("master/__main__.py", first, slow):
            begin_upgrade(master)
            wait_until(here.exists, 20)
            master.send(signal.SIGTERM)
            go.touch()
            assert master.wait() == 0
    text = master.log_text("master.log")
    assert text.index("goes on, as new code") < text.index("SIGTERM: stopping")
