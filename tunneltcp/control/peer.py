"""Who is at the other end of a control socket."""

from __future__ import annotations

import socket
import struct

__all__ = ["peer_uid"]


def peer_uid(connection: socket.socket) -> int:
    """Return whose process is at the other end (unix(7), SO_PEERCRED).

    Of a client it is who connected, of a server who began to listen: the kernel noted it then.
    """
    packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int(struct.unpack("iii", packed)[1])
