from __future__ import annotations

import dis
import random
import signal
from types import SimpleNamespace

import pytest

from tests.support.instants import Instant, arm, disarm, functions_of, is_armed

FILL = "protocol.stream:Stream.fill"


def test_behind_a_call_is_before_its_result_is_stored():
    instant = Instant.behind(FILL, "receive_into")
    found = {one.offset: one for one in dis.get_instructions(instant.code())}
    assert found[instant.offset].argval == "count"
    with pytest.raises(ValueError, match="does not call"):
        Instant.behind(FILL, "shutdown")


def test_within_a_function_every_instruction_may_be_meant():
    chance = random.Random(1)
    met = {Instant.within(FILL, chance).offset for _ in range(2000)}
    code = Instant.within(FILL, chance).code()
    assert code.co_name == "fill"
    all_of_it = {one.offset for one in dis.get_instructions(code) if one.opname != "RESUME"}
    assert met == all_of_it


def test_the_functions_of_a_module_are_its_own():
    found = functions_of(["protocol.stream", "relay.verdict"])
    assert FILL in found
    assert "relay.verdict:judge" in found
    assert not any("ring_bytes" in one or "dataclass" in one for one in found)
    for function in found:  # each can be meant
        Instant.within(function, random.Random(1))


def test_one_that_is_armed_is_a_file_that_the_worker_finds(tmp_path):
    master = SimpleNamespace(log_dir=tmp_path)
    instant = Instant.behind(FILL, "receive_into", signal.SIGSEGV, 3)
    arm(master, 60001, instant)
    assert is_armed(master, 60001)
    assert not is_armed(master, 60002)
    assert disarm(master, 60001)
    assert not disarm(master, 60001)
    assert not is_armed(master, 60001)
    assert str(instant).startswith("SEGV in Stream.fill, instruction ")
