"""Busy visitors: downloads, uploads, and downloads that are never read.

``python -m benchmark.load HOST:PORT --down 4 --up 0 --stalled 1`` runs until its standard
input ends. For each line there it says how many bytes were downloaded until now, and the
time. It wants a :mod:`benchmark.target`.
"""

from __future__ import annotations

import argparse
import os
import selectors
import socket
import sys
import time
from contextlib import suppress

from benchmark.reference_relay import address

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
BLOCK = memoryview(bytes(64 * 1024))
STALLED_BUFFER_BYTES = 64 * 1024
"""What the kernel takes for a visitor that never reads."""


def visit(where: tuple[str, int], wish: bytes) -> socket.socket:
    """Come and say what is wanted."""
    sock = socket.socket()
    if wish == b"d":
        sock.settimeout(20)
    sock.connect(where)
    sock.sendall(wish)
    sock.setblocking(False)
    return sock


def main() -> None:
    """Run the load."""
    parser = argparse.ArgumentParser()
    parser.add_argument("where", type=address)
    for name in ("down", "up", "stalled"):
        parser.add_argument(f"--{name}", type=int, default=0)
    settings = parser.parse_args()
    selector = selectors.DefaultSelector()
    stalled = [socket.socket() for _ in range(settings.stalled)]
    for sock in stalled:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, STALLED_BUFFER_BYTES)
        sock.connect(settings.where)
        sock.sendall(b"d")
    for _ in range(settings.down):
        selector.register(visit(settings.where, b"d"), READ)
    for _ in range(settings.up):
        selector.register(visit(settings.where, b"u"), WRITE)
    selector.register(sys.stdin, READ)
    downloaded = 0
    buffer = bytearray(1 << 18)
    while True:
        for key, events in selector.select():
            if key.fileobj is sys.stdin:
                if not os.read(key.fd, 100):
                    return
                sys.stdout.write(f"{downloaded} {time.monotonic()}\n")
                sys.stdout.flush()
                continue
            visitor = key.fileobj
            assert isinstance(visitor, socket.socket)
            with suppress(BlockingIOError):
                size = visitor.recv_into(buffer) if events & READ else visitor.send(BLOCK)
                if not size:
                    raise ConnectionError("a busy visitor was sent away")
                downloaded += size if events & READ else 0


if __name__ == "__main__":
    main()
