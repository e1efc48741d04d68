"""Visit the demo's apps as a careful visitor does: every byte is compared.

Each visit returns what it saw in one sentence, or raises :class:`VisitFailed`.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from time import monotonic
from typing import TYPE_CHECKING

from demo_apps import GREETING, HOME, PAGES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["VisitFailed", "visit_echo", "visit_greeter", "visit_pages"]

VISIT_SECONDS = 15.0
"""One visit, from connect to the last byte. Three in a row stay under the demo's minute."""

ECHO_BYTES = 4 * 1024 * 1024
"""More than any window on the way, so credit has to come back for it to get through."""

WORD_BYTES = 8
"""Each word of the echo's bytes is made from its position, so none fits elsewhere."""

ODD = 0x9E3779B97F4A7C15
"""Odd, so that multiplying by it modulo 2**64 gives each position a word of its own."""

HOST = "127.0.0.1"


class VisitFailed(Exception):
    """A tunnel did not deliver what its app sends."""


async def visit_pages(port: int) -> str:
    """Fetch the first page and compare its body."""
    async with connect(port) as (reader, writer):
        writer.write(
            f"GET {HOME} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode()
        )
        head, _, body = (await reader.read(-1)).partition(b"\r\n\r\n")
    status = head.partition(b"\r\n")[0].decode("latin-1")
    if status != "HTTP/1.1 200 OK":
        raise VisitFailed(f'answered "{status}"')
    differ(body, PAGES[HOME])
    return f"GET {HOME} gave {status.partition(' ')[2]} and the page, all {len(body):,} bytes"


async def visit_echo(port: int) -> str:
    """Send bytes while reading them back, then finish and expect the end."""
    sent = b"".join(
        (word * ODD % 2**64).to_bytes(WORD_BYTES, "big")
        for word in range(ECHO_BYTES // WORD_BYTES)
    )
    began = monotonic()
    async with connect(port) as (reader, writer):
        writer.write(sent)
        writer.write_eof()
        received = await reader.read(-1)
    differ(received, sent)
    seconds = monotonic() - began
    return (
        f"{len(sent) / 2**20:.0f} MiB came back, each byte in its place, in {seconds:.2f} s; "
        "then our end was answered by theirs"
    )


async def visit_greeter(port: int) -> str:
    """Say nothing until greeted; then ask for a saying and leave."""
    async with connect(port) as (reader, writer):
        began = monotonic()
        greeting = await reader.readline()
        waited_ms = (monotonic() - began) * 1000
        differ(greeting, GREETING)
        writer.write(b"\r\n")
        saying = await reader.readline()
        writer.write(b"QUIT\r\n")
        farewell = await reader.read(-1)
    if not (saying.startswith(b"250 ") and farewell.startswith(b"221 ")):
        raise VisitFailed(f"the greeting was right, but then came {saying!r}, {farewell!r}")
    text = saying[4:].decode().strip()
    return f'it greeted us unasked after {waited_ms:.0f} ms; asked, it said "{text}"'


@asynccontextmanager
async def connect(
    port: int,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """One connection to a public port, for one visit and no longer."""
    writer = None
    try:
        async with asyncio.timeout(VISIT_SECONDS):
            reader, writer = await asyncio.open_connection(HOST, port)
            yield reader, writer
    except TimeoutError:
        raise VisitFailed(f"not done within {VISIT_SECONDS:.0f} s") from None
    except OSError as error:
        raise VisitFailed(str(error)) from error
    finally:
        if writer is not None:
            writer.transport.abort()


def differ(received: bytes, expected: bytes) -> None:
    """Raise, naming the first position, if the two are not the same."""
    if received == expected:
        return
    pairs = enumerate(zip(received, expected, strict=False))
    shorter = min(len(received), len(expected))
    position = next((at for at, (one, other) in pairs if one != other), shorter)
    raise VisitFailed(
        f"{len(received):,} bytes came instead of {len(expected):,}, "
        f"and from position {position:,} on they are not the same"
    )
