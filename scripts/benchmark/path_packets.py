"""A path between two network namespaces that carries packets: delay, rate, queue and loss.

What a relay cannot do happens here: packets are lost, and the kernels at both ends see the
delay and the queue of the path. Each direction is one queue with a bound in bytes; what does
not fit is dropped (drop-tail). It needs root, and /dev/net/tun.

``python -m benchmark.path_packets --delay-ms 10 --mbit 100 --queue 250000 --loss 0 A B``

makes the namespaces A (10.214.7.1) and B (10.214.7.2), says ``ready``, and removes them at the
end of its standard input.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import os
import random
import select
import signal
import struct
import subprocess
import sys
import time
from collections import deque
from contextlib import suppress
from pathlib import Path

__all__ = ["ADDRESSES", "Queue"]

ADDRESSES = ("10.214.7.1", "10.214.7.2")
"""Of the two ends; they exist only inside the two namespaces."""

MTU = 1500
TUNSETIFF = 0x400454CA
IFF_TUN_NO_PI = 0x1001
CLONE_NEWNET = 0x40000000
BATCH = 64
"""Packets read from one end before the other has its turn."""

BUFFER_BYTES = "4096 262144 67108864"
"""Kernel buffers at both ends: no window of the kernel's is the limit of any path here."""

libc = ctypes.CDLL(None, use_errno=True)


class Queue:
    """One direction: a bound in bytes, a rate, a delay and a share of packets that vanish."""

    def __init__(
        self, rate: float, delay: float, limit: int, loss: float, chance: random.Random
    ) -> None:
        """Prepare it.

        Args:
            rate: Bytes per second; 0 means no limit.
            delay: Seconds, one way.
            limit: Bytes that may wait.
            loss: From 0 to 1.
            chance: Where losses come from.
        """
        self.rate, self.delay, self.limit, self.loss = rate, delay, limit, loss
        self.chance = chance
        self.free_at = 0.0
        self.flying: deque[tuple[float, bytes]] = deque()
        self.dropped = 0

    def put(self, packet: bytes, now: float) -> None:
        """Take a packet, or lose it."""
        leaves = max(now, self.free_at)
        is_full = (leaves - now) * self.rate + len(packet) > self.limit
        if is_full or (self.loss and self.chance.random() < self.loss):
            self.dropped += 1
            return
        if self.rate:
            self.free_at = leaves = leaves + len(packet) / self.rate
        self.flying.append((leaves + self.delay, packet))


def run(*words: str) -> None:
    """Run a program; its complaint ends us."""
    subprocess.run(words, check=True)


def open_end(namespace: str, address: str, peer: str, congestion: str) -> int:
    """Make one end: a namespace with a TUN device whose other side is ours.

    The congestion control is set on the route: a namespace may not choose one that the
    machine reserves for root, and the machine's own choice is not ours to change.
    """
    run("ip", "netns", "add", namespace)
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    there = os.open(f"/var/run/netns/{namespace}", os.O_RDONLY)
    try:
        enter(there)
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22s", b"path", IFF_TUN_NO_PI, b""))
        settings = {
            "tcp_rmem": BUFFER_BYTES,
            "tcp_wmem": BUFFER_BYTES,
            "tcp_no_metrics_save": "1",
        }
        for key, value in settings.items():
            Path(f"/proc/sys/net/ipv4/{key}").write_text(value)
    finally:
        enter(home)
        os.close(home)
        os.close(there)
    ip = ("ip", "-n", namespace)
    run(*ip, "link", "set", "lo", "up")
    run(*ip, "addr", "add", address, "peer", peer, "dev", "path")
    run(*ip, "link", "set", "path", "up", "mtu", str(MTU), "txqueuelen", "5000")
    if congestion:
        run(*ip, "route", "replace", peer, "dev", "path", "src", address, "congctl", congestion)
    return device


def enter(namespace: int) -> None:
    if libc.setns(namespace, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def carry(devices: tuple[int, int], queues: tuple[Queue, Queue]) -> None:
    """Carry packets until the standard input ends."""
    poller = select.epoll()
    for fd in (*devices, sys.stdin.fileno()):
        poller.register(fd, select.EPOLLIN)
    ways = {devices[0]: queues[0], devices[1]: queues[1]}
    sinks = ((queues[0], devices[1]), (queues[1], devices[0]))
    while True:
        due = [queue.flying[0][0] for queue in queues if queue.flying]
        wait = max(0.0, min(due) - time.monotonic()) if due else 1.0
        for fd, _events in poller.poll(wait):
            if fd == sys.stdin.fileno():
                return
            now, put = time.monotonic(), ways[fd].put
            with suppress(BlockingIOError):
                for _ in range(BATCH):
                    put(os.read(fd, MTU + 100), now)
        now = time.monotonic()
        for queue, device in sinks:
            flying = queue.flying
            while flying and flying[0][0] <= now:
                with suppress(BlockingIOError):
                    os.write(device, flying.popleft()[1])


def main() -> None:
    """Make the path, carry, remove it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--delay-ms", type=float, default=0, help="one way")
    parser.add_argument("--mbit", type=float, default=0, help="Mbit/s, each way; 0: no limit")
    parser.add_argument("--queue", type=int, default=1 << 30, help="bytes, each way")
    parser.add_argument(
        "--loss", type=float, default=0, help="percent of the packets, each way"
    )
    parser.add_argument("--congestion", default="", help="such as cubic; the machine's own")
    parser.add_argument("namespaces", nargs=2)
    settings = parser.parse_args()
    chance = random.Random(7)
    one, other = (
        Queue(
            settings.mbit * 1e6 / 8,
            settings.delay_ms / 1000,
            settings.queue,
            settings.loss / 100,
            chance,
        )
        for _direction in range(2)
    )
    # The end of the standard input is the signal to go, also when our parent dies; another
    # one in the middle of the removal would leave half of it behind.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    names, (first, second) = settings.namespaces, ADDRESSES
    try:
        near = open_end(names[0], first, second, settings.congestion)
        far = open_end(names[1], second, first, settings.congestion)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        carry((near, far), (one, other))
    finally:
        for name in names:
            with suppress(subprocess.CalledProcessError):
                run("ip", "netns", "del", name)


if __name__ == "__main__":
    main()
