"""A quiet visitor: a few bytes at a steady pace, and how long each one took to come back.

``python -m benchmark.probe HOST:PORT --seconds 5 --every-ms 10`` prints the round trips in
milliseconds on one line; it begins after a first answer. Bytes are sent whether or not the
earlier ones are back, so a second of silence counts a hundred times, as it does for who
types. What is not back 5 s after the last was sent counts with the time that it has waited.
"""

from __future__ import annotations

import argparse
import select
import socket
import struct
import sys
import time

from benchmark.reference_relay import address

STAMP = struct.Struct("!d")
LAST_SECONDS = 5.0


def main() -> None:
    """Type, and watch."""
    parser = argparse.ArgumentParser()
    parser.add_argument("where", type=address)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--every-ms", type=float, default=10)
    settings = parser.parse_args()
    sock = socket.create_connection(settings.where, timeout=20)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(b"e" + bytes(STAMP.size))
    if not sock.recv(STAMP.size, socket.MSG_WAITALL):
        raise ConnectionError("the quiet visitor was sent away")
    count = max(1, int(settings.seconds * 1000 / settings.every_ms))
    begin = time.monotonic()
    sent: list[float] = []
    trips: list[float] = []
    waiting = b""
    last = begin + settings.seconds + LAST_SECONDS
    while len(trips) < count and (now := time.monotonic()) < last:
        due = begin + len(sent) * settings.every_ms / 1000
        if len(sent) < count and now >= due:
            sock.sendall(STAMP.pack(now))
            sent.append(now)
            continue
        until = due if len(sent) < count else last
        if select.select([sock], [], [], max(0.0, until - now))[0]:
            waiting += sock.recv(1 << 16)
            now = time.monotonic()
            while len(waiting) >= STAMP.size:
                trips.append((now - STAMP.unpack_from(waiting)[0]) * 1000)
                waiting = waiting[STAMP.size :]
    now = time.monotonic()
    trips += [(now - one) * 1000 for one in sent[len(trips) :]]
    sys.stdout.write(" ".join(f"{trip:.3f}" for trip in trips) + "\n")


if __name__ == "__main__":
    main()
