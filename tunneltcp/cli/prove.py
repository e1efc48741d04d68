"""Ask a server whether a token is good: one handshake, after which nothing stays."""

from __future__ import annotations

import socket
from secrets import token_hex
from typing import TYPE_CHECKING, Final

from tunneltcp.advice import Trouble, link_trouble
from tunneltcp.net.address import format_address
from tunneltcp.net.loop import Loop
from tunneltcp.net.tls import ClientTls, client_context
from tunneltcp.protocol.messages import Hello, Refusal, RefusedCode, Welcome
from tunneltcp.protocol.preface import port_key
from tunneltcp.workers.claims import AGENT
from tunneltcp.workers.dial import Attempt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunneltcp.net.address import SocketAddress

__all__ = ["prove"]

_MAX_ADDRESSES: Final = 8
"""Of one name, asked side by side: a name with more is not that of a server of ours."""

_WINDOW: Final = 1 << 16
"""Of streams that will not come."""


def prove(host: str, port: int, token: str, *, tls: bool = True) -> str:
    """Return why a server does not vouch for a token; empty if it does.

    Blocks as long as a handshake may take, and holds the token: for the command line alone.
    """
    where = format_address((host, port))
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        detail = str(getattr(error, "strerror", None) or "not a host name").lower()
        return link_trouble(Trouble.NAMELESS, host, port, detail=detail)
    addresses = [(family, address) for family, _, _, _, address in found[:_MAX_ADDRESSES]]
    probe = _Probe(port_key(token, port), port, tls=tls)
    trouble, detail = probe.ask(addresses)
    if trouble is Trouble.PROBED:
        return ""
    return link_trouble(trouble, where, port, detail=detail)


class _Probe:
    """Shakes hands with all addresses of a server, side by side."""

    def __init__(self, key: bytes, port: int, *, tls: bool) -> None:
        self._loop = Loop()
        self._key = key
        self._port = port
        self._tls = ClientTls(context=client_context(verify=False)) if tls else None
        self._open: set[Attempt] = set()
        self._trouble = Trouble.SILENT
        self._detail = ""

    def ask(self, addresses: Sequence[SocketAddress]) -> tuple[Trouble, str]:
        """Return PROBED if one of them vouches for the key; what is wrong with one, if none."""
        for address in addresses:
            hello = Hello(
                agent=AGENT,
                host_id=token_hex(16),
                run_id=token_hex(16),
                port=self._port,
                window=_WINDOW,
                session=None,
                attempt=1,
                probe=True,
            )
            try:
                attempt = Attempt(self._loop, address, hello, self._key, self, tls=self._tls)
            except OSError:  # no such address family
                continue
            self._open.add(attempt)
            attempt.start()
        while self._open and self._trouble is not Trouble.PROBED:
            self._loop.turn()  # each attempt has its own deadline
        for attempt in self._open:
            attempt.cancel()
        return self._trouble, self._detail

    def on_challenged(self, attempt: Attempt) -> None:
        """The server shows what it has when it knows that we have it too."""
        attempt.prove()

    def on_welcome(self, attempt: Attempt, welcome: Welcome, rest: bytes) -> None:
        """A server that knows no probes; it holds the key."""
        del welcome, rest
        attempt.transport.close()
        self._open.discard(attempt)
        self._trouble = Trouble.PROBED

    def on_failure(
        self, attempt: Attempt, trouble: Trouble, detail: str, refusal: Refusal | None
    ) -> None:
        """Refused: by one that took our proof and gave its own, or not?"""
        self._open.discard(attempt)
        if self._trouble is Trouble.PROBED:
            return
        if refusal is not None and refusal.proven:
            # Also one that is stopping, or whose port is taken, holds the key.
            trouble, detail = Trouble.PROBED, ""
        elif refusal is not None and refusal.code is RefusedCode.PROBED:
            trouble, detail = Trouble.FORGED, "it answers without a proof"
        self._trouble, self._detail = trouble, detail
