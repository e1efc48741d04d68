"""Bad input, as a user meets it: an exit code, one clear message, nothing lost."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from tests.support.apps import Apps
from tests.support.ports import free_port
from tests.support.processes import Master, TunnelPair, run_tunneltcp
from tests.support.require import require_root
from tests.support.service import ROOT
from tests.support.sockets import connect, receive_exactly
from tests.support.wait import wait_until
from tunneltcp.cli.main import main

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

NOBODY = 65_534
BARE = b'[{"local_port": 8000, "remote_port": 60001}]'


_RUN_AS = """
import os, sys
import tunneltcp.cli.check, tunneltcp.cli.main, tunneltcp.cli.run, tunneltcp.cli.status
if user := int(sys.argv.pop(1)):  # only now: the interpreter may be in a folder of root's
    os.setgroups([])
    os.setegid(user)
    os.seteuid(user)
tunneltcp.cli.main.main()
"""


def refused(words: Sequence[str], code: int = 2, user: int | None = None) -> list[str]:
    """Run a command that must fail at once; return what it said."""
    done = subprocess.run(
        [sys.executable, "-c", _RUN_AS, str(user or 0), *words],
        capture_output=True,
        text=True,
        timeout=20,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd="/",
    )
    assert done.returncode == code, done
    assert "Traceback" not in done.stderr
    assert not done.stdout
    return done.stderr.splitlines()


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


FILES: dict[str, tuple[Callable[[Path], object] | bytes, str]] = {
    "missing": (lambda path: None, "cannot be read: no such file or directory"),
    "a folder": (Path.mkdir, "is a directory, not a file"),
    "a FIFO that nobody writes to": (make_fifo, "is not a regular file"),
    "huge": (make_sparse, "is larger than 1048576 bytes"),
    "empty": (b"", "is empty"),
    "truncated": (BARE[:-1], "line 1 column 44: is not JSON: Expecting ',' delimiter"),
    "nested": (b"[" * 1_000_000, "is nested too deeply"),
    "not UTF-8": (b'[\n{"name": "\xe4"}]', "line 2 column 11: is not UTF-8 text"),
    "with a BOM": (b"\xef\xbb\xbf" + BARE, "starts with a byte order mark"),
    "NaN": (b'{"drain": NaN, "ports": 1}', "line 1 column 11: NaN is not JSON"),
    "keys given twice": (b'{"ports": 1, "ports": 2}', "ports: is given more than once"),
    "true as a port": (b'[{"remote_port": true}]', "remote_port: true is not a port"),
    "a float as a port": (b'[{"remote_port": 60001.0}]', "remote_port: 60001.0 is not a port"),
    "one port twice": (b'[{"remote_port":5},{"remote_port":5}]', "already used by tunnels[0]"),
    "a wrong key": (b'{"ports": 1, "holt": 2}', "holt: is not a known key; did you mean hold?"),
    "the other's key": (b'{"ports": 1, "server": "a"}', "is for the client"),
}  # fmt: skip


_SERVE_EACH = """
import os, sys
import tunneltcp.cli.main, tunneltcp.cli.run
for folder in sys.argv[1:]:
    if os.fork() == 0:
        os.chdir(folder)
        os.dup2(os.open("said", os.O_WRONLY | os.O_CREAT), 2)
        folders = [f"--{name}-dir={folder}/{name}" for name in ("run", "state", "log")]
        sys.argv[1:] = ["server", f"{folder}/config.json", *folders]
        tunneltcp.cli.main.main()
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, Path]]:
    """What each of those files led to, and the folder: all in one process, which forks."""
    folders = []
    for number, (content, _problem) in enumerate(FILES.values()):
        folder = tmp_path_factory.mktemp(f"file{number}")
        path = folder / "config.json"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content(path)
        folders.append(folder)
    done = subprocess.run(
        [sys.executable, "-c", _SERVE_EACH, *map(str, folders)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    codes = map(int, done.stdout.split())
    return dict(zip(FILES, zip(codes, folders, strict=True), strict=True))


@pytest.mark.parametrize("kind", FILES)
def test_a_config_that_is_none(kind: str, served: dict[str, tuple[int, Path]]) -> None:
    """``server`` and ``check`` say the same line, and nothing was begun."""
    code, folder = served[kind]
    path = folder / "config.json"
    (said,) = (folder / "said").read_text().splitlines()
    assert code == 2
    assert said.startswith(f"tunneltcp: {path}: ")
    assert FILES[kind][1] in said
    checked = CliRunner().invoke(main, ["check", str(path), "--role", "server"])
    assert (checked.exit_code, checked.stderr) == (2, f"{said}\n")
    assert not (folder / "run").exists()


@contextmanager
def open_folder() -> Iterator[Path]:
    """A folder that everybody may enter: those of pytest are ours alone."""
    folder = Path(tempfile.mkdtemp(prefix="tt-open-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.mark.needs_root
def test_a_config_that_we_may_not_read() -> None:
    require_root()
    with open_folder() as folder:
        path = folder / "config.json"
        path.write_bytes(BARE)
        path.chmod(0o600)
        (said,) = refused(["check", str(path)], user=NOBODY)
    assert said == f"tunneltcp: {path}: cannot be read: permission denied"


def test_folders_that_are_in_the_way(tmp_path: Path) -> None:
    """All of them are named at once, with the option that helps; what is there stays."""
    config = tmp_path / "config.json"
    config.write_bytes(BARE)
    file = tmp_path / "file"
    file.write_text("precious")
    said = refused(
        ["server", str(config), *(f"--{name}-dir={file}" for name in ("run", "state", "log"))]
    )
    assert said == [
        f"tunneltcp: folder {file} cannot be used: a file is there; see --{name}-dir"
        for name in ("state", "run", "log")
    ]
    assert file.read_text() == "precious"


@pytest.mark.parametrize("name", ["control.sock", "master.pid"])
def test_something_else_in_the_run_folder(name: str, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_bytes(BARE)
    run = tmp_path / "run"
    (run / name).mkdir(parents=True)
    (run / name / "precious").touch()
    folders = [
        f"--run-dir={run}",
        f"--state-dir={tmp_path / 's'}",
        f"--log-dir={tmp_path / 'l'}",
    ]
    (said,) = refused(["server", str(config), *folders])
    assert said == (
        f"tunneltcp: folder {run} cannot be used: {name} in it is not of tunneltcp, remove it; "
        "see --run-dir"
    )
    assert (run / name / "precious").exists()


@contextmanager
def small_disk(folder: Path, options: str) -> Iterator[Path]:
    require_root()
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.needs_root
def test_a_state_folder_that_is_read_only(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_bytes(BARE)
    with small_disk(tmp_path / "state", "ro,size=64k") as state:
        (said,) = refused(
            ["client", str(config), "--server=127.0.0.1", f"--state-dir={state}",
             f"--run-dir={tmp_path / 'run'}", f"--log-dir={tmp_path / 'log'}"]
        )  # fmt: skip
    assert said == f"tunneltcp: folder {state} cannot be used: not writable; see --state-dir"


@pytest.mark.needs_root
def test_a_log_folder_that_is_full_from_the_start(tmp_path: Path) -> None:
    """Lines are dropped and counted; visitors notice nothing."""
    with small_disk(tmp_path / "server" / "log", "size=64k") as disk, Apps() as apps:
        with (disk / "filler").open("wb", buffering=0) as filler, suppress(OSError):
            while True:
                filler.write(bytes(4096))
        with TunnelPair([apps.add("echo")], tmp_path) as pair:
            with connect(pair.port) as visitor:
                visitor.sendall(b"hello")
                assert receive_exactly(visitor, 5) == b"hello"
            status = pair.server.status()
            assert status["log_dropped"] > 0
            assert pair.server.log_text() == ""


def test_a_second_master_of_the_same_name(tmp_path: Path) -> None:
    with Master("server", [{"remote_port": free_port()}], tmp_path) as master:
        before = master.status()["tunnels"][0]["pid"]
        (said,) = refused(["server", str(master.config_path), *master.folder_words()], code=75)
        assert f'instance "test" is already run by process {master.pid}' in said
        assert master.status()["tunnels"][0]["pid"] == before


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Master]:
    config = [{"remote_port": free_port()}]
    with Master("server", config, tmp_path_factory.mktemp("server")) as master:
        yield master


@contextmanager
def asking(server: Master) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(server.run_dir / "control.sock"))
        yield connection


@pytest.mark.parametrize(
    "data",
    [b"\xff" * 64, b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\2[]", b"\0\0\0\5hello",
     (1 << 19).to_bytes(4, "big") + b"x" * 200_000, b"\0\0\0\0"],
    ids=["ones", "http", "list", "text", "oversize", "nothing"],
)  # fmt: skip
def test_garbage_on_the_control_socket(server: Master, data: bytes) -> None:
    before = server.status()["tunnels"][0]["pid"]
    with asking(server) as connection:
        with suppress(ConnectionError):
            connection.sendall(data)
        with suppress(ConnectionError):
            assert connection.recv(100) == b"", "it hangs up"
    assert server.status()["tunnels"][0]["pid"] == before


@pytest.mark.parametrize(
    "request_text",
    [b"{}", b'{"op": 5}', b'{"op": "fly"}', b'{"op": ["status"]}', b'{"op": null}',
     b'{"op": "stop", "port": "x"}', b'{"op": "restart", "port": 1e99}',
     b'{"op": "kick", "port": true, "id": {}}', b'{"op": "who", "port": -1}'],
)  # fmt: skip
def test_nonsense_is_answered_with_an_error(server: Master, request_text: bytes) -> None:
    before = server.status()["tunnels"][0]["pid"]
    with asking(server) as connection:
        connection.sendall(len(request_text).to_bytes(4, "big") + request_text)
        assert b'"error":' in connection.recv(10_000)
    assert server.status()["tunnels"][0]["pid"] == before


def test_those_who_never_ask_keep_nobody_out_for_long(server: Master) -> None:
    with ExitStack() as stack:
        for _ in range(40):
            silent = stack.enter_context(socket.socket(socket.AF_UNIX))
            silent.settimeout(10)
            with suppress(BlockingIOError):  # so many wait already
                silent.connect(str(server.run_dir / "control.sock"))
        words = ["status", f"--run-dir={server.run_dir}", "--json"]
        wait_until(lambda: run_tunneltcp(*words).returncode == 0, 20)


@pytest.mark.needs_root
def test_another_user_is_told_whose_it_is(server: Master) -> None:
    require_root()
    (said,) = refused(["status", f"--run-dir={server.run_dir}"], code=1, user=NOBODY)
    assert "belongs to user root" in said


def test_no_descriptor_to_start_with(tmp_path: Path) -> None:
    """A limit that is far too low: it says so, and leaves nothing behind."""
    config = tmp_path / "config.json"
    config.write_bytes(BARE)
    words = [f"--{name}-dir={tmp_path / name}" for name in ("run", "state", "log")]
    done = subprocess.run(
        [sys.executable, "-m", "tunneltcp", "server", str(config), *words],
        capture_output=True,
        text=True,
        timeout=20,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (6, 6)),
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "too many open files" in done.stderr.lower()
