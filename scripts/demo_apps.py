"""Three small apps to reach through tunnels: web pages, an echo, and one that speaks first.

They stand for what runs on somebody's laptop and know nothing of tunnels.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from itertools import cycle

__all__ = ["GREETING", "HOME", "PAGES", "ServeOne", "echo", "greeter", "pages", "start"]

ServeOne = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
"""What an app does with one connection."""

MAX_PIECE_BYTES = 64 * 1024
"""Most that an app takes at once. A longer request or line ends the connection."""

QUIET_SECONDS = 300.0
"""An app hangs up on who says nothing for so long."""

STYLE = """
  body { font: 17px/1.6 system-ui, sans-serif; margin: 0; color: #1d2b3a; background: #f4f1ea }
  header { background: #1d2b3a; color: #f4f1ea; padding: 3rem 0 }
  main, header div { max-width: 40rem; margin: auto; padding: 0 1.5rem }
  h1 { margin: 0; font-size: 2.4rem } a { color: #b3541e } header a { color: #f0b38d }
  code { background: #e6dfd1; padding: .1em .4em; border-radius: .3em }
  .way { display: flex; gap: .6rem; flex-wrap: wrap; padding: 0; list-style: none }
  .way li { background: #fff; border: 1px solid #d9d0be; border-radius: .5rem }
  .way li { padding: .3rem .8rem }
"""

FRAME = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>{style}</style>
<header><div>
<h1>{title}</h1>
<nav><a href="/">Home</a> · <a href="/how">How it works</a></nav>
</div></header>
<main>{body}</main>
</html>
"""

HOME = "/"
"""Path of the page to look at first."""

TEXTS = {
    HOME: (
        "You are through",
        """<p>This page comes from a small app that listens on loopback only. You did not ask
        the app: you asked the <em>public port</em> of a tunnel, and it was carried here.</p>
        <ul class="way"><li>you</li><li>public port</li><li>server worker</li>
        <li>one lasting link</li><li>client worker</li><li>this app</li></ul>
        <p>The two neighbours of this tunnel are an echo and a service that speaks first. Try
        them with <code>nc</code>; the terminal says where they are.</p>""",
    ),
    "/how": (
        "How it works",
        """<p>One tunnel is one public port, one process on each side, and one TCP connection
        between the two, which all visitors of that port share.</p>
        <p>The client's worker opened it by dialling the public port itself. Its first eight
        bytes told it apart from visitors like you.</p>""",
    ),
}

PAGES = {
    path: FRAME.format(title=title, style=STYLE, body=body).encode()
    for path, (title, body) in TEXTS.items()
}
"""Body of each page by its path."""

GREETING = b"220 almanac ready: send an empty line for a saying, QUIT to leave\r\n"
"""What the greeter says before it was asked anything."""

SAYINGS = (
    b"A port that is always the same needs no map.",
    b"Who waits politely is served whole.",
    b"The shortest way home is the one that stays open.",
    b"Count what arrived, not what was sent.",
)


def start(serve_one: ServeOne) -> Awaitable[asyncio.Server]:
    """Listen on a free port of loopback."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve_one(reader, writer)
            writer.close()
            await writer.wait_closed()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            writer.transport.abort()

    return asyncio.start_server(serve, "127.0.0.1", 0, limit=MAX_PIECE_BYTES)


async def pages(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer HTTP requests, one after the other on the same connection."""
    while True:
        async with asyncio.timeout(QUIET_SECONDS):
            head = await reader.readuntil(b"\r\n\r\n")
        method, path, *_ = [*head.split(b"\r\n", 1)[0].decode("latin-1").split(), "", ""]
        status, body = HTTPStatus.OK, PAGES.get(path.partition("?")[0])
        if method not in ("GET", "HEAD"):
            # What may follow such a request is not read: no other request can be found.
            status, body = HTTPStatus.METHOD_NOT_ALLOWED, b"Only GET and HEAD here.\n"
        elif body is None:
            status, body = HTTPStatus.NOT_FOUND, b"No such page.\n"
        last = status == HTTPStatus.METHOD_NOT_ALLOWED or b"connection: close" in head.lower()
        kind = "text/html" if status == HTTPStatus.OK else "text/plain"
        writer.write(
            f"HTTP/1.1 {status.value} {status.phrase}\r\n"
            f"Content-Type: {kind}; charset=utf-8\r\n"
            f"Content-Length: {len(body)}\r\n"
            f"Connection: {'close' if last else 'keep-alive'}\r\n\r\n".encode()
        )
        if method != "HEAD":
            writer.write(body)
        await writer.drain()
        if last:
            return


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send everything back, and the end too."""
    while data := await reader.read(MAX_PIECE_BYTES):
        writer.write(data)
        await writer.drain()


async def greeter(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Speak first, then give a saying for each line."""
    writer.write(GREETING)
    for saying in cycle(SAYINGS):
        await writer.drain()
        async with asyncio.timeout(QUIET_SECONDS):
            line = await reader.readline()
        if not line or line.strip().upper() == b"QUIT":
            writer.write(b"221 until next time\r\n")
            return
        writer.write(b"250 " + saying + b"\r\n")
