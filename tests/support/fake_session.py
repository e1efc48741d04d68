"""Two sessions on a fake wire, and endpoints that a test plays."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunneltcp.protocol.arena import Arena
from tunneltcp.protocol.session import Session
from tunneltcp.protocol.table import StreamTable
from tunneltcp.protocol.windows import FIRST_WINDOW_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunneltcp.protocol.stream import Endpoint, Stream

__all__ = ["UNKNOWN_ADDRESSES", "FakeEndpoint", "FakeHandler", "FakeWire"]

UNKNOWN_ADDRESSES = b"\0\0"
"""The payload of an OPEN that says neither who came nor where to."""

_RECORDS_BYTES = 4096 + 64 * 256


class FakeEndpoint:
    """An endpoint that the test plays: it has what the test writes, and keeps what comes."""

    def __init__(self) -> None:
        self.stream: Stream | None = None
        self.received = bytearray()
        self.fins = 0
        self.aborted: int | None = None
        self.closed = False
        self.takes = True
        """Whether it takes what comes; if not, that waits until :meth:`take_all`."""
        self._waiting = 0
        self._out = bytearray()
        self._fin = False

    def write(self, data: bytes) -> None:
        """Read this from "its socket", as far as there is room; the rest when there is."""
        self._out += data
        self.resume_reading()

    def finish(self) -> None:
        """Its socket ends behind what was written."""
        self._fin = True
        self.resume_reading()

    def take_all(self) -> None:
        """Take what waits, and from now on everything."""
        self.takes = True
        waiting, self._waiting = self._waiting, 0
        if waiting and self.stream is not None:
            self.stream.delivered_more(waiting)

    def deliver(self, data: memoryview) -> int:
        """See :class:`~tunneltcp.protocol.endpoint.Endpoint`; so for the others here."""
        self.received += data
        if self.takes:
            return len(data)
        self._waiting += len(data)
        return 0

    def deliver_fin(self) -> None:
        """Count it, and pass it on at once."""
        self.fins += 1
        assert self.stream is not None, "a FIN comes to a stream"
        self.stream.record_fin()
        self.stream.fin_done()

    def resume_reading(self) -> None:
        """Go on with what was written."""
        stream = self.stream
        if stream is None:
            return
        while self._out and stream.fill(self._give) > 0:
            pass
        if not self._out and self._fin:
            self._fin = False
            stream.finish()

    def drop_waiting(self) -> None:
        """Forget what was not taken; it comes again."""
        if self._waiting:
            del self.received[-self._waiting :]
            self._waiting = 0

    def abort(self, code: int) -> None:
        """Remember the code."""
        self.aborted = code

    def close(self) -> None:
        """Remember that it ended well."""
        self.closed = True

    def _give(self, view: memoryview) -> int:
        count = min(len(view), len(self._out))
        view[:count] = self._out[:count]
        del self._out[:count]
        return count


class FakeHandler:
    """What a session calls; ``opener`` makes the endpoint of a stream that was opened."""

    def __init__(self, opener: Callable[[Stream], Endpoint] | None = None) -> None:
        self.opener = opener
        self.endpoints: list[FakeEndpoint] = []
        self.streams: list[Stream] = []
        self.pongs: list[int] = []
        self.goaways: list[int] = []
        self.resumed: list[tuple[int, int]] = []

    def on_open(self, stream: Stream, addresses: bytes) -> Endpoint:
        """Make the endpoint."""
        del addresses
        self.streams.append(stream)
        if self.opener is not None:
            return self.opener(stream)
        endpoint = FakeEndpoint()
        endpoint.stream = stream
        self.endpoints.append(endpoint)
        return endpoint

    def on_pong(self, value: int) -> None:
        """Remember it."""
        self.pongs.append(value)

    def on_goaway(self, code: int) -> None:
        """Remember it."""
        self.goaways.append(code)

    def on_resumed(self, streams: int, again_bytes: int) -> None:
        """Remember them."""
        self.resumed.append((streams, again_bytes))


class FakeWire:
    """The server's session and the client's, and what travels between them."""

    def __init__(
        self,
        opener: Callable[[Stream], Endpoint] | None = None,
        *,
        budget_bytes: int = 16 << 20,
    ) -> None:
        self.server_handler = FakeHandler()
        self.client_handler = FakeHandler(opener)
        self.server = self._session(self.server_handler, budget_bytes, opens=True)
        self.client = self._session(self.client_handler, budget_bytes, opens=False)
        self._kept = {True: b"", False: b""}
        self.is_cut = False
        """Nothing travels while it is."""

    @staticmethod
    def _session(handler: FakeHandler, budget_bytes: int, *, opens: bool) -> Session:
        session = Session(
            handler,
            opens=opens,
            arena=Arena(memoryview(bytearray(budget_bytes)), budget_bytes),
            table=StreamTable(memoryview(bytearray(_RECORDS_BYTES))),
            max_streams=64,
        )
        session.begin(FIRST_WINDOW_BYTES)
        return session

    def open(self, endpoint: Endpoint, cookie: int = 7) -> Stream:
        """Open a stream from the server's side."""
        stream = self.server.open_stream(endpoint, cookie, UNKNOWN_ADDRESSES)
        assert stream is not None, "there is room for it"
        if isinstance(endpoint, FakeEndpoint):
            endpoint.stream = stream
        return stream

    def pump(self) -> None:
        """Let one batch travel each way, and do what is due every 20 ms."""
        if self.is_cut:
            return
        self._carry(self.server, self.client)
        self._carry(self.client, self.server)
        self.server.sweep()
        self.client.sweep()

    def _carry(self, source: Session, target: Session) -> None:
        forward = source is self.server
        data = self._kept[forward] + b"".join(source.data_to_send())
        if data:
            used = target.receive(memoryview(data), len(data))
            self._kept[forward] = data[used:]
