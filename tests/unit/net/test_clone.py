"""Which call is made depends on the program too, not on the kernel alone."""

from __future__ import annotations

import platform
import sys

import pytest

from tunneltcp.net import clone


@pytest.mark.parametrize(
    ("machine", "number"), [("x86_64", 56), ("aarch64", 220), ("armv7l", None)]
)
def test_a_program_of_32_bits_has_no_number_of_64(monkeypatch, machine, number):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(sys, "maxsize", (1 << 63) - 1)
    assert clone._number() == number
    monkeypatch.setattr(sys, "maxsize", (1 << 31) - 1)
    assert clone._number() is None
