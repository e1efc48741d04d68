"""Asking a master over its control socket, without the cost of starting a command."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["ask", "ask_status"]


def ask_status(run_dir: Path) -> dict[str, Any]:
    """Return the status of the master that lives in ``run_dir``.

    Raises:
        OSError: If it does not answer.
    """
    return ask(run_dir, {"op": "status"})


def ask(run_dir: Path, request: dict[str, object]) -> dict[str, Any]:
    """Return the answer of that master to a request.

    Raises:
        OSError: If it does not answer.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(10)
        sock.connect(os.fspath(run_dir / "control.sock"))
        _send(sock, request)
        return _receive(sock)


def _send(sock: socket.socket, message: dict[str, object]) -> None:
    data = orjson.dumps(message)
    sock.sendall(len(data).to_bytes(4, "big") + data)


def _receive(sock: socket.socket) -> dict[str, Any]:
    length = int.from_bytes(_exactly(sock, 4), "big")
    answer: dict[str, Any] = orjson.loads(_exactly(sock, length))
    return answer


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            raise ConnectionError("the master closed the control socket")
        data += piece
    return bytes(data)
