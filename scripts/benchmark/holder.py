"""Many visitors that have been answered once and then are silent.

``python -m benchmark.holder HOST:PORT COUNT`` says ``held`` when all are there, and lets them
go at the end of its standard input. It wants a :mod:`benchmark.target` at the other end.
"""

from __future__ import annotations

import socket
import sys

from benchmark.reference_relay import address

BATCH = 100
"""Visitors that come at the same moment."""

ANSWER_SECONDS = 30.0
"""For one batch."""


def main() -> None:
    """Come, wait, go."""
    where, count = address(sys.argv[1]), int(sys.argv[2])
    held: list[socket.socket] = []
    while len(held) < count:
        batch = [
            socket.create_connection(where, timeout=ANSWER_SECONDS)
            for _ in range(min(BATCH, count - len(held)))
        ]
        for sock in batch:
            sock.sendall(b"e?")
        for sock in batch:
            if sock.recv(1) != b"?":
                raise ConnectionError(f"visitor {len(held)} was not answered")
        held += batch
    sys.stdout.write("held\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main()
