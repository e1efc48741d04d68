"""Ask a server whether a token is good: one handshake, after which nothing stays."""

from __future__ import annotations

import errno
import os
import socket
import time
from secrets import token_hex
from typing import Final

from tunneltcp.advice import Trouble, connect_trouble, link_trouble, spoken
from tunneltcp.net.address import format_address
from tunneltcp.net.sockopt import is_connected_to_itself
from tunneltcp.protocol.errors import RemoteProtocolError
from tunneltcp.protocol.handshake import MAX_HANDSHAKE_BYTES, ClientHandshake, Stage
from tunneltcp.protocol.messages import Hello, RefusedCode
from tunneltcp.protocol.preface import port_key
from tunneltcp.workers.claims import AGENT

__all__ = ["prove"]

_SECONDS: Final = 10.0
"""For all addresses of the server together, after its name has been looked up."""

_WINDOW: Final = 1 << 16
"""Of streams that will not come."""


def prove(host: str, port: int, token: str) -> str:
    """Return why a server does not vouch for a token; empty if it does.

    Blocks, and holds the token: for the command line alone.
    """
    where = format_address((host, port))
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        detail = str(getattr(error, "strerror", None) or "not a host name").lower()
        return link_trouble(Trouble.NAMELESS, host, port, detail=detail)
    deadline = time.monotonic() + _SECONDS
    trouble, detail = Trouble.SILENT, ""
    for left, (family, _, _, _, address) in zip(range(len(found), 0, -1), found, strict=True):
        # Each has its share of the time, or one that is silent has all of it.
        share = (deadline - time.monotonic()) / left
        trouble, detail = _try(family, address, port_key(token, port), port, max(share, 0.1))
        if trouble is Trouble.PROBED:
            return ""
        if trouble in (Trouble.DENIED, Trouble.VERSION, Trouble.TLS):
            break  # that was our server: no need to ask another address
    return link_trouble(trouble, where, port, detail=detail)


def _try(
    family: int, address: object, key: bytes, port: int, seconds: float
) -> tuple[Trouble, str]:
    """Dial one address; return what came of it, PROBED if all is well."""
    deadline = time.monotonic() + seconds
    connected = False
    try:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.settimeout(seconds)
            sock.connect(address)  # type: ignore[arg-type]
            if is_connected_to_itself(sock):
                return Trouble.REFUSES, ""
            connected = True
            return _shake_hands(sock, key, port, deadline)
    except TimeoutError:
        return (Trouble.MUTE if connected else Trouble.SILENT), ""
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, "")
        return connect_trouble(name), str(error.strerror or "?").lower()


def _shake_hands(
    sock: socket.socket, key: bytes, port: int, deadline: float
) -> tuple[Trouble, str]:
    hello = Hello(
        agent=AGENT,
        host_id=token_hex(16),
        run_id=token_hex(16),
        port=port,
        window=_WINDOW,
        session=None,
        attempt=1,
        probe=True,
    )
    handshake = ClientHandshake(hello, key, os.urandom(48))
    while True:
        sock.settimeout(max(0.01, deadline - time.monotonic()))
        sock.sendall(handshake.data_to_send())
        data = sock.recv(MAX_HANDSHAKE_BYTES)
        if not data:
            return Trouble.HANGS_UP, ""
        try:
            handshake.receive(data)
        except RemoteProtocolError:
            return Trouble.FOREIGN, spoken(data)
        if handshake.stage is Stage.CHALLENGED:
            handshake.prove()
        refusal = handshake.refusal
        if refusal is not None:
            if refusal.code is RefusedCode.PROBED and not refusal.proven:
                return Trouble.FOREIGN, "without the server's proof"
            # A server that is stopping, or whose port is taken, has taken the proof.
            if refusal.proven:
                return Trouble.PROBED, ""
            return Trouble(refusal.code.value), ""
        if handshake.stage is Stage.WELCOMED:
            return Trouble.PROBED, ""
