"""A cgroup for a small machine: where it is made, what is set, what is read. On plain files."""

from __future__ import annotations

import os

import pytest

from soak_machine import Cgroup, Usage, make_cgroup

LIMIT = 512 << 20


@pytest.fixture
def base(tmp_path):
    (tmp_path / "user/session").mkdir(parents=True)
    (tmp_path / "memory/user").mkdir(parents=True)
    return tmp_path


def own(base, text):
    path = base / "own"
    path.write_text(text)
    return path


def test_in_the_first_layout_it_is_below_ours(base):
    made = make_cgroup(LIMIT, own=own(base, "4:memory:/user\n0::/\n"), base=base)
    folder = base / f"memory/user/soak-{os.getpid()}"

    assert isinstance(made, Cgroup)
    assert (folder / "memory.limit_in_bytes").read_text() == f"{LIMIT}\n"
    assert str(folder / "cgroup.procs") in made.prefix

    for name, value in {
        "memory.usage_in_bytes": 5,
        "memory.kmem.tcp.usage_in_bytes": 6,
        "memory.max_usage_in_bytes": 70,
    }.items():
        (folder / name).write_text(f"{value}\n")
    (folder / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 1\noom_kill 3\n")
    assert made.usage() == Usage(now=11, peak=70, killed=3)


def test_in_the_second_it_is_where_memory_is_handed_down(base):
    (base / "cgroup.subtree_control").write_text("cpu memory\n")
    (base / "user/cgroup.subtree_control").write_text("cpu memory\n")
    (base / "user/session/cgroup.subtree_control").write_text("\n")
    made = make_cgroup(LIMIT, own=own(base, "0::/user/session\n"), base=base)
    folder = base / f"user/soak-{os.getpid()}"

    assert isinstance(made, Cgroup)
    assert (folder / "memory.max").read_text() == f"{LIMIT}\n"

    (folder / "memory.current").write_text("5\n")
    (folder / "memory.peak").write_text("7\n")
    (folder / "memory.events").write_text("low 0\noom 4\noom_kill 2\noom_group_kill 1\n")
    assert made.usage() == Usage(now=5, peak=7, killed=2)


def test_where_none_can_be_made_it_says_why(base):
    assert "none" in str(make_cgroup(LIMIT, own=own(base, "0::/user/session\n"), base=base))

    made = make_cgroup(LIMIT, own=own(base, "4:memory:/nobody\n"), base=base)
    assert isinstance(made, str)
    assert "No such file" in made
