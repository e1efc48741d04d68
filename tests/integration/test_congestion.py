"""The setting ``congestion`` reaches the links of real masters."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.support.processes import TunnelPair
from tests.support.require import require_program

pytestmark = pytest.mark.slow


def test_each_tunnel_has_its_own(apps, tmp_path):
    ss = require_program("ss")
    echo = apps.add("echo")
    targets = [{"local_port": echo, "congestion": name} for name in ("reno", "system")]
    with TunnelPair(targets, tmp_path) as pair:
        found = []
        for port in pair.ports:
            command = [ss, "-tinH", f"( sport = :{port} or dport = :{port} )"]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            found.append(set(re.findall(r"\b(reno|cubic|bbr)\b", said)))
    assert found[0] == {"reno"}
    assert len(found[1]) == 1
