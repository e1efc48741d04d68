"""The protocol is sans-I/O: nothing that does I/O, tells the time or logs comes with it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import tunneltcp.protocol

FORBIDDEN = {
    "asyncio", "logging", "loguru", "orjson", "psutil", "random", "secrets", "select",
    "selectors", "signal", "socket", "ssl", "subprocess", "threading", "time",
}  # fmt: skip

PROGRAM = """
import sys
before = set(sys.modules)
sys.path.insert(0, sys.argv[1])
for name in sys.argv[2:]:
    __import__("tunneltcp.protocol." + name)
print(set(sys.modules) - before)
"""


def test_a_bare_interpreter_gets_nothing_but_the_protocol():
    folder = Path(tunneltcp.protocol.__file__).parent
    names = sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
    assert "session" in names
    assert len(names) >= 12

    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", PROGRAM, str(folder.parent.parent), *names],
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )

    assert done.returncode == 0, done.stderr
    loaded = set(ast.literal_eval(done.stdout))
    assert {f"tunneltcp.protocol.{name}" for name in names} <= loaded
    assert not loaded & FORBIDDEN
    ours = {name for name in loaded if name.split(".")[0] == "tunneltcp"}
    assert {name for name in ours if not name.startswith("tunneltcp.protocol")} == {"tunneltcp"}
