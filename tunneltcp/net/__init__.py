"""Bytes and time: sockets, the loop, addresses. Knows no frames."""
