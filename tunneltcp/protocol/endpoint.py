"""What a stream moves bytes to and from, as far as the protocol knows of it."""

from __future__ import annotations

from typing import Final, Protocol

__all__ = ["DISCARD", "Endpoint", "take_nothing"]


class Endpoint(Protocol):
    """What a stream moves bytes to and from: a socket, or a test's model of one."""

    def deliver(self, data: memoryview) -> int:
        """Take ``data``; return how many bytes the socket took at once.

        An endpoint that has nothing to keep may set :attr:`.Stream.send`, which is tried first.

        The rest is the endpoint's to keep (copied: the memory is reused at once) and to
        report later with :meth:`.Stream.delivered_more`.
        """

    def deliver_fin(self) -> None:
        """The peer has finished: say so behind all bytes; see :meth:`.Stream.fin_done`."""

    def resume_reading(self) -> None:
        """There is room again, after :meth:`.Stream.fill` found none."""

    def drop_waiting(self) -> None:
        """The link is lost: forget the bytes kept, and a FIN behind them; both come again."""

    def abort(self, code: int) -> None:
        """The stream is over by RESET: reset the socket and let go of it."""

    def close(self) -> None:
        """Both directions have finished and both sides know it: let go of the socket."""


class _Discard:
    """The endpoint of a stream that is over: whatever still comes is dropped."""

    def deliver(self, data: memoryview) -> int:
        del data
        return 0

    def deliver_fin(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def drop_waiting(self) -> None:
        pass

    def abort(self, code: int) -> None:
        del code

    def close(self) -> None:
        pass


DISCARD: Final[Endpoint] = _Discard()


def take_nothing(data: memoryview) -> int:
    """Be :attr:`.Stream.send` where all has to go through the endpoint."""
    del data
    return 0
