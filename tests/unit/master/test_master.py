"""A whole master with fake workers: starting, replacing, stopping, refusing."""

from __future__ import annotations

import os
import signal
import socket
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from tests.support.ports import free_port
from tests.support.wait import wait_until
from tests.unit.master.conftest import visit
from tunneltcp.cli.ask import NotRunning, ask
from tunneltcp.config.model import TunnelConfig
from tunneltcp.control.context import Role
from tunneltcp.errors import MasterRunning
from tunneltcp.master import process, watchdog
from tunneltcp.master.folders import InstanceLock


def tunnel(name="good", **settings) -> TunnelConfig:
    return TunnelConfig(
        remote_port=free_port(), name=f"{name}-{time.monotonic_ns()}", **settings
    )


def named(name: str) -> TunnelConfig:
    return TunnelConfig(remote_port=free_port(), name=name)


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_three_tunnels_serve_and_stop(start_master):
    tunnels = [tunnel() for _ in range(3)]
    master = start_master(*tunnels, bind=("127.0.0.1", "::1"))
    master.wait_ready()
    status = master.status()
    assert (status["role"], status["instance"], status["pid"]) == ("server", "test", master.pid)
    pids = [t["pid"] for t in status["tunnels"]]
    assert [visit(t.remote_port) for t in tunnels] == pids
    assert visit(tunnels[0].remote_port, "::1") == pids[0]
    first = master.tunnel()
    assert (first["visitors_total"], first["rss"] > 0) == (2, True)
    wait_until(lambda: master.tunnel()["beat_age"] == 0.0, what="a beat that is not late")
    master.kill()
    assert master.wait_left() == 0
    assert all(gone(pid) for pid in pids)
    assert list(master.folders.run.iterdir()) == [], "the socket and the pid file are removed"
    assert "master left" in master.log()


def test_a_killed_worker_is_replaced_and_the_port_refuses_nobody(start_master):
    one, other = tunnel(), tunnel()
    master = start_master(one, other)
    master.wait_ready()
    killed, bystander = (t["pid"] for t in master.status()["tunnels"])
    os.kill(killed, signal.SIGKILL)
    # At once, while no worker is there: the kernel keeps us until the successor comes.
    assert visit(one.remote_port) != killed
    status = master.wait_state("running")
    assert status["restarts"] == 1
    assert status["last_exit"]["signal"] == "SIGKILL"
    assert status["last_exit"]["code"] is None
    assert master.tunnel(1)["pid"] == bystander
    assert master.tunnel(1)["restarts"] == 0
    assert "worker died after" in master.log()
    assert "ended by SIGKILL" in master.log()


def test_totals_go_on_in_the_successor(start_master):
    one = tunnel()
    master = start_master(one)
    master.wait_ready()
    first = visit(one.remote_port)
    os.kill(first, signal.SIGKILL)
    visit(one.remote_port)
    wait_until(lambda: master.tunnel()["visitors_total"] == 2)


def test_term_to_a_worker_means_replace_me(start_master):
    master = start_master(tunnel())
    master.wait_ready()
    old = master.tunnel()["pid"]
    os.kill(old, signal.SIGTERM)
    wait_until(lambda: master.tunnel()["pid"] not in (None, old))
    assert master.tunnel()["last_exit"]["reason"] == "asked to be replaced"
    wait_until(lambda: "worker replaced" in master.log())


def test_signals_to_the_group_do_a_worker_no_harm(start_master):
    master = start_master(named("silent"))
    pid = wait_until(lambda: _maybe_pid(master))
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        os.kill(pid, number)
    os.kill(pid, signal.SIGCONT)
    assert master.tunnel()["pid"] == pid
    assert not gone(pid)


def _maybe_pid(master, index=0):
    try:
        return master.tunnel(index)["pid"]
    except Exception:  # noqa: BLE001 - it is starting
        return None


@pytest.mark.parametrize(
    ("name", "state", "code"),
    [("code-1", "backoff", 1), ("code-75", "backoff", 75), ("code-0", "backoff", 0),
     ("code-77", "fatal", 77), ("code-78", "fatal", 78), ("raise", "backoff", 1)],
)  # fmt: skip
def test_how_a_worker_leaves_decides_what_follows(start_master, name, state, code):
    master = start_master(named(name), tunnel())
    wait_until(lambda: _maybe_pid(master) is None and _last_exit(master))
    assert _last_exit(master)["code"] == code
    wait_until(lambda: master.tunnel()["state"] == state)
    assert master.wait_state("running", 1), "its neighbour does not care"
    if name == "raise":
        log = master.log(f"tunnel-{master.tunnel()['port']}.log")
        assert "worker crashed" in log
        assert "ValueError: on cue" in log


def _last_exit(master):
    try:
        return master.tunnel()["last_exit"]
    except Exception:  # noqa: BLE001 - it is starting
        return None


@pytest.mark.parametrize(
    ("name", "reason"),
    [("garbage", "broke the rules of the control channel: a message is not JSON"),
     ("mute", "closed its control channel and stayed")],
)  # fmt: skip
def test_a_worker_that_breaks_the_rules_is_replaced(start_master, name, reason):
    master = start_master(named(name))
    wait_until(lambda: (_last_exit(master) or {}).get("reason") == reason)


def test_a_busy_port_is_a_state_that_names_the_holder_and_heals(start_master):
    busy, fine = tunnel(), tunnel()
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", busy.remote_port))
        holder.listen()
        master = start_master(busy, fine)
        wait_until(lambda: "listens on it; stop that" in _maybe_reason(master))
        status = master.tunnel()
        wait_until(lambda: master.tunnel()["state"] == "backoff")
        assert f"(process {os.getpid()})" in status["reason"]
        assert f"port {busy.remote_port} is busy" in status["reason"]
        assert master.wait_state("running", 1)
    master.wait_state("running")
    assert master.tunnel()["restarts"] == 0
    assert visit(busy.remote_port) == master.tunnel()["pid"]
    assert "port is open" in master.log()


def _maybe_reason(master) -> str:
    try:
        return master.tunnel()["reason"] or ""
    except Exception:  # noqa: BLE001 - it is starting
        return ""


def test_an_outgoing_connection_on_the_port_is_told_too(start_master):
    one = tunnel()
    with socket.create_server(("127.0.0.1", 0)) as far, socket.socket() as near:
        near.bind(("127.0.0.1", one.remote_port))
        near.connect(far.getsockname())
        master = start_master(one)
        wait_until(lambda: "an outgoing connection of" in _maybe_reason(master))


def test_the_second_master_is_told_who_runs(start_master, folders):
    master = start_master(tunnel())
    master.wait_ready()
    with pytest.raises(MasterRunning, match=f"already run by process {master.pid}"):
        InstanceLock(folders.run, "test")


def test_no_orphan_survives_the_master_and_its_successor_starts(start_master):
    tunnels = [tunnel() for _ in range(3)]
    master = start_master(*tunnels)
    master.wait_ready()
    pids = [t["pid"] for t in master.status()["tunnels"]]
    master.kill(signal.SIGKILL)
    assert master.wait_left() == -signal.SIGKILL
    wait_until(lambda: all(not _runs(pid) for pid in pids))
    again = start_master(*tunnels)
    again.wait_ready()


def test_a_worker_that_looks_at_nothing_does_not_outlive_the_master_either(start_master):
    master = start_master(named("silent"))
    pid = wait_until(lambda: _maybe_pid(master))
    wait_until(lambda: str(Path(f"/proc/{pid}/fd/0").readlink()) == "/dev/null")
    master.kill(signal.SIGKILL)
    master.wait_left()
    wait_until(lambda: not _runs(pid))


def _runs(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat[stat.rindex(")") + 2] != "Z"


def test_a_drain_waits_for_visitors_and_then_resets_them(start_master):
    one = named("keep")
    master = start_master(one, drain_seconds=0.5)
    master.wait_ready()
    visitor = socket.create_connection(("127.0.0.1", one.remote_port), 5)
    assert visitor.recv(100)
    begun = time.monotonic()
    master.kill()
    wait_until(lambda: master.tunnel()["state"] == "stopping")
    assert master.wait_left() == 0
    assert time.monotonic() - begun >= 0.5
    with pytest.raises(ConnectionResetError):
        visitor.recv(100)
    visitor.close()


def test_a_killed_workers_visitors_get_rst_and_never_a_clean_end(start_master):
    one = named("keep")
    master = start_master(one)
    master.wait_ready()
    with socket.create_connection(("127.0.0.1", one.remote_port), 5) as visitor:
        assert visitor.recv(100)
        os.kill(master.tunnel()["pid"], signal.SIGKILL)
        with pytest.raises(ConnectionResetError):
            visitor.recv(100)


def test_a_stubborn_worker_is_killed_at_its_deadline(start_master):
    master = start_master(named("stubborn"), drain_seconds=0.0)
    master.wait_ready()
    master.kill()
    assert master.wait_left() == 0


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_term_means_now(start_master, second):
    master = start_master(named("stubborn"), drain_seconds=60.0)
    master.wait_ready()
    master.kill()
    wait_until(lambda: master.tunnel()["state"] == "stopping")
    master.kill(second)
    assert master.wait_left() == 0, "and not after 60 s"


def test_a_worker_stopped_by_sigstop_does_not_hold_up_the_end(start_master, monkeypatch):
    monkeypatch.setattr(watchdog, "HANG_SECONDS", 60.0)  # it is not ended before that
    master = start_master(tunnel(), drain_seconds=0.1)
    master.wait_ready()
    os.kill(master.tunnel()["pid"], signal.SIGSTOP)
    wait_until(lambda: master.tunnel()["beat_age"] > 0, what="the beat is late")
    master.kill()
    assert master.wait_left() == 0


@pytest.mark.parametrize("kind", ["silent", "stopped"])
def test_a_worker_that_hangs_as_it_starts_is_aborted(start_master, monkeypatch, kind):
    """So its log has its stack; and what it inherits, if that is the cause, is given up."""
    monkeypatch.setattr(process, "START_SECONDS", 0.4)
    monkeypatch.setattr(process, "_KILL_AGAIN_SECONDS", 20.0)  # a busy machine is no reason
    master = start_master(named(kind))
    wait_until(lambda: _maybe_pid(master))
    last = wait_until(lambda: master.tunnel()["last_exit"])
    assert (last["signal"], last["reason"]) == ("SIGABRT", "was not ready in time")
    master.kill()
    assert master.wait_left() == 0


def test_stopping_while_workers_are_still_starting(start_master):
    master = start_master(named("silent"))
    wait_until(lambda: _maybe_pid(master))
    master.kill()
    assert master.wait_left() == 0


def test_who_is_stopped_while_certificates_are_made_leaves_in_order(start_master):
    master = start_master(tunnel(), tunnel(), tls=True)
    wait_until(partial(_catches, master.pid, signal.SIGTERM))
    master.kill()
    assert master.wait_left() == 0
    assert "master left" in master.log()


def _catches(pid, number):
    """Say whether a process handles a signal itself; see proc(5)."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = int(status.split("SigCgt:")[1].split()[0], 16)
    return bool(caught >> (number - 1) & 1)


def test_a_worker_has_only_what_is_its_own(start_master):
    tunnels = [tunnel() for _ in range(3)]
    master = start_master(*tunnels, tls=True)
    master.wait_ready()
    first = master.tunnel(1)["pid"]
    os.kill(first, signal.SIGKILL)  # its successor is born beside all the others' channels
    pid = wait_until(partial(_other_pid, master, first, 1))
    master.wait_state("running", 1)
    links = sorted(_links(pid))
    assert sum("memfd:counters" in link for link in links) == 2  # and its mapping's own
    assert {link for link in links if "memfd:" in link} == {
        f"/memfd:{kind}-{tunnels[1].remote_port} (deleted)"
        for kind in ("certificate", "counters", "memory")
    }
    assert sum(link.startswith("socket:") for link in links) == 2, "channel and listener"
    maps = Path(f"/proc/{pid}/maps").read_text()
    assert f"counters-{tunnels[1].remote_port}" in maps
    assert f"counters-{tunnels[0].remote_port}" not in maps
    limits = Path(f"/proc/{pid}/limits").read_text()
    assert "Max core file size        0 " in limits


def _other_pid(master, old, index=0):
    pid = _maybe_pid(master, index)
    return pid if pid != old else None


def _links(pid: int) -> list[str]:
    found = []
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.append(str(fd.readlink()))
    return found


def test_deaths_leave_nothing_behind_in_the_master(start_master):
    one = tunnel()
    master = start_master(one)
    master.wait_ready()
    before = len(_links(master.pid))
    pid = master.tunnel()["pid"]
    for _ in range(4):
        os.kill(pid, signal.SIGKILL)
        pid = wait_until(partial(_other_pid, master, pid))
    master.wait_state("running")
    # The connection of our own question may have been open when we counted first.
    wait_until(lambda: len(_links(master.pid)) <= before)
    wait_until(lambda: master.family() == {master.tunnel()["pid"]}, 5)


def test_unknown_children_are_reaped(start_master):
    def leave_a_child_behind():
        if os.fork() == 0:  # noqa: TID251 - the stranger
            signal.pause()
            os._exit(0)

    master = start_master(tunnel(), prepare=leave_a_child_behind)
    master.wait_ready()
    (stranger,) = master.family() - {master.tunnel()["pid"]}
    os.kill(stranger, signal.SIGKILL)
    wait_until(lambda: gone(stranger))
    wait_until(lambda: "1 processes that are not ours" in master.log())


def test_a_client_looks_names_up_for_its_workers(start_master):
    one = TunnelConfig(remote_port=60001, local_port=80, name="asks")
    master = start_master(one, role=Role.CLIENT)
    master.wait_ready()
    peer = wait_until(lambda: master.log().partition("link up")[2])
    assert "127.0.0.1" in peer
    assert (master.folders.state / "host_id").stat().st_mode & 0o777 == 0o600
    wait_until(lambda: master.family() == {master.tunnel()["pid"]}, 5, "the helper is gone")


def test_the_log_folder_may_vanish_while_it_runs(start_master):
    one = tunnel()
    master = start_master(one)
    master.wait_ready()
    for path in master.folders.log.iterdir():
        path.unlink()
    master.folders.log.rmdir()
    killed = master.tunnel()["pid"]
    os.kill(killed, signal.SIGKILL)
    assert visit(one.remote_port) != killed
    master.kill()
    assert master.wait_left() == 0


def test_when_it_is_gone_nobody_answers(start_master):
    master = start_master(tunnel())
    master.wait_ready()
    master.kill()
    master.wait_left()
    with pytest.raises(NotRunning):
        ask(master.folders.run, {"op": "status"})
