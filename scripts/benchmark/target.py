"""A target whose visitor says with its first byte what it wants.

``e``: sends back what comes, ``d``: sends for ever, ``u``: takes for ever.

``python -m benchmark.target HOST:PORT`` says, for each line on its standard input, how many
bytes were taken by ``u`` until now, and the time.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time

from benchmark.reference_relay import address

BLOCK = bytes(64 * 1024)


class Target(asyncio.Protocol):
    """One connection."""

    transport: asyncio.Transport
    wish = b""
    may_write = True
    taken = 0
    """Bytes, of all connections."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A visitor is here."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.set_write_buffer_limits(high=2 * len(BLOCK))

    def data_received(self, data: bytes) -> None:
        """The wish, then bytes."""
        if not self.wish:
            self.wish, data = data[:1], data[1:]
            if self.wish == b"d":
                self.fill()
        if self.wish == b"e":
            self.transport.write(data)
        elif self.wish == b"u":
            Target.taken += len(data)

    def pause_writing(self) -> None:
        """Enough for now."""
        self.may_write = False

    def resume_writing(self) -> None:
        """Go on."""
        self.may_write = True
        if self.wish == b"d":
            self.fill()

    def fill(self) -> None:
        """Write until it is enough."""
        while self.may_write and not self.transport.is_closing():
            self.transport.write(BLOCK)


def tell() -> None:
    """Somebody asks how much was taken."""
    if not os.read(sys.stdin.fileno(), 100):
        asyncio.get_running_loop().remove_reader(sys.stdin)
        return
    sys.stdout.write(f"{Target.taken} {time.monotonic()}\n")
    sys.stdout.flush()


async def main() -> None:
    """Serve."""
    host, port = address(sys.argv[1])
    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin, tell)
    server = await loop.create_server(Target, host, port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
