"""How things look in a line: foreign text, and lists of ports.

Imports nothing: the command line shows such lines and starts in half the time without a log.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["CONTROL", "escape", "ranges"]

CONTROL: Final = {
    code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
    for code in (
        *range(0x20),
        *range(0x7F, 0xA0),
        *range(0x2028, 0x202F),
        *range(0x2066, 0x206A),
    )
}
"""C0, DEL, C1, line and paragraph separators, and what reorders text on a terminal."""


def escape(text: str) -> str:
    """Return text with its control characters made visible: it stays on its line."""
    return text.translate(CONTROL)


def ranges(ports: Sequence[int]) -> str:
    """Return ports in order, with runs shortened: 60001-60003, 60007."""
    runs: list[list[int]] = []
    for port in sorted(set(ports)):
        if runs and port == runs[-1][1] + 1:
            runs[-1][1] = port
        else:
            runs.append([port, port])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
