"""The verdict over real connections: whatever was done, and wherever its worker died.

A model of a worker does random things to one end of a real connection and keeps its record as
the product does; the other end does random things too. The worker dies after a call that it did
not record any more. Then the verdict must say exactly how much was read and written, must not
take a reset for an end, and must not reset what had ended or goes on.
"""

from __future__ import annotations

import random
import socket
import struct
from contextlib import suppress

import pytest

from tunneltcp.net.tcp_counters import TcpCounters, TcpState, read_counters
from tunneltcp.protocol.arena import MAX_RING_BYTES, MIN_RING_BYTES
from tunneltcp.protocol.table import CONFIRMED, END_READ, ERROR_SEEN, Record
from tunneltcp.relay.verdict import Fate, judge

LINGER_RST = struct.pack("ii", 1, 0)
RING = 1 << 8 | 6
"""The word of a ring of 1 MiB."""


def record(**changes) -> Record:
    fields = {
        "index": 512,
        "cookie": 7,
        "stream_id": 1,
        "ring_word": RING,
        "bytes_read": 0,
        "flags": CONFIRMED,
        "fin_offset": 0,
    }
    return Record(**{**fields, **changes})


class History:
    """One connection, from its beginning to the death of its worker."""

    def __init__(self, chance: random.Random, *, connected: bool) -> None:
        self.chance = chance
        self.connected = connected
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.peer = socket.create_connection(server.getsockname())
            self.sock, _ = server.accept()
        if connected:
            self.sock, self.peer = self.peer, self.sock
        self.sock.setblocking(False)
        self.peer.setblocking(False)
        # What is stored, and what is true.
        self.bytes_read = self.flags = self.fin_offset = 0
        self.read = self.written = 0
        self.finished = False
        self.peer_sent = 0
        self.peer_reset = self.peer_finished = False
        self.peer_dropped = False
        self.said: list[str] = []

    def run(self) -> None:
        steps = ["read"] * 3 + ["write"] * 2 + ["peer writes"] * 2 + ["peer reads", "finish"]
        self.chance.shuffle(steps)
        end = self.chance.choice(["peer finishes", "peer closes", "peer resets", "read"])
        steps.insert(self.chance.randrange(2, len(steps) + 1), end)
        steps.append("read")
        dies = self.chance.randrange(1, len(steps) + 1)
        for number, step in enumerate(steps[:dies]):
            self.said.append(step)
            getattr(self, "do_" + step.replace(" ", "_"))(is_last=number == dies - 1)
            if self.flags & ERROR_SEEN:
                return

    # What the worker does; its last call is not recorded.

    def do_read(self, *, is_last: bool) -> None:
        if self.flags & END_READ:
            return
        try:
            data = self.sock.recv(self.chance.choice([1, 30, 5000]))
        except BlockingIOError:
            return
        except OSError:
            if not is_last:
                self.flags |= ERROR_SEEN
            return
        self.read += len(data)
        if is_last:
            return
        self.bytes_read = self.read
        if not data:
            self.flags |= END_READ

    def do_write(self, *, is_last: bool) -> None:
        if self.fin_offset:
            return
        try:
            self.written += self.sock.send(b"w" * self.chance.choice([1, 5, 500, 70_000]))
        except BlockingIOError:
            return
        except OSError:
            if not is_last:
                self.flags |= ERROR_SEEN

    def do_finish(self, *, is_last: bool) -> None:
        if self.fin_offset:
            return
        self.fin_offset = self.written + 1
        if is_last and self.chance.random() < 0.5:
            return  # it died before the call
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            if not is_last:
                self.flags |= ERROR_SEEN
        else:
            self.finished = True

    # What the other end does.

    def do_peer_writes(self, *, is_last: bool) -> None:
        with suppress(OSError):
            self.peer_sent += self.peer.send(b"p" * self.chance.choice([1, 2, 50, 3000]))

    def do_peer_reads(self, *, is_last: bool) -> None:
        with suppress(OSError):
            while self.peer.recv(1 << 20):
                pass

    def do_peer_finishes(self, *, is_last: bool) -> None:
        with suppress(OSError):
            self.peer.shutdown(socket.SHUT_WR)
            self.peer_finished = True

    def do_peer_closes(self, *, is_last: bool) -> None:
        if self.chance.random() < 0.5:
            self.do_peer_reads(is_last=is_last)
        self.peer.close()
        self.peer_finished = self.peer_dropped = True

    def do_peer_resets(self, *, is_last: bool) -> None:
        self.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RST)
        self.peer.close()
        self.peer_reset = self.peer_dropped = True

    # The end of it.

    def check(self) -> Fate:
        kernel = read_counters(self.sock)
        was = record(bytes_read=self.bytes_read, flags=self.flags, fin_offset=self.fin_offset)
        was = Record(
            **{
                **{name: getattr(was, name) for name in was.__slots__},
                "flags": self.flags | CONFIRMED,
            }
        )
        verdict = judge(was, kernel, connected=self.connected)
        told = f"{self.said} {was} {kernel} {verdict}, read {self.read} wrote {self.written}"
        if self.flags & ERROR_SEEN:
            assert verdict.fate is Fate.RESET, told
        elif verdict.fate is Fate.GOES_ON:
            assert verdict.head == self.read, told
            assert verdict.delivered == self.written, told
            assert verdict.fin_delivered == self.finished, told
            if self.peer_reset and kernel.state == TcpState.CLOSE:
                raise AssertionError(f"a reset was taken for an end: {told}")
        else:
            assert verdict.fate is Fate.RESET, told
            assert self.peer_dropped, f"reset for nothing: {told}"
            if not self.peer_reset and kernel.state == TcpState.CLOSE and not kernel.error:
                # It closed, and a RST came only if we wrote to it, or it had not read all.
                assert not (self.finished and kernel.unacked == 0 and self._is_clean(kernel)), (
                    told
                )
        return verdict.fate

    def _is_clean(self, kernel: TcpCounters) -> bool:
        syn = int(self.connected)
        return kernel.acked == self.written + 1 + syn and kernel.received == self.peer_sent + 1

    def close(self) -> None:
        self.sock.close()
        self.peer.close()


@pytest.mark.parametrize("connected", [False, True], ids=["accepted", "connected"])
@pytest.mark.parametrize("seed", range(4))
def test_histories(connected, seed):
    chance = random.Random(f"{connected} {seed}")
    fates = []
    for _ in range(300):
        history = History(chance, connected=connected)
        try:
            history.run()
            fates.append(history.check())
        finally:
            history.close()
    assert fates.count(Fate.GOES_ON) > 50
    assert fates.count(Fate.RESET) > 10


def kernel(state=TcpState.ESTABLISHED, **changes) -> TcpCounters:
    fields = {"acked": 100, "unacked": 0, "received": 200, "unread": 0, "error": 0}
    return TcpCounters(state=state, **{**fields, **changes})


ON = (Fate.GOES_ON, 200, 100, False)


def summary(verdict):
    return verdict.fate, verdict.head, verdict.delivered, verdict.fin_delivered


class TestCases:
    def test_what_lives_goes_on_where_the_kernel_is(self):
        verdict = judge(record(bytes_read=150), kernel(unread=20, unacked=7), connected=False)
        assert summary(verdict) == (Fate.GOES_ON, 180, 107, False)

    def test_the_syn_of_who_connected_counts(self):
        verdict = judge(record(bytes_read=200), kernel(), connected=True)
        assert summary(verdict) == (Fate.GOES_ON, 200, 99, False)

    def test_no_socket_means_it_is_over(self):
        assert judge(record(), None, connected=False).fate is Fate.OVER
        assert judge(record(), None, connected=True).fate is Fate.OVER

    def test_no_cookie_on_a_client_means_connect(self):
        assert judge(record(cookie=0, ring_word=0), None, connected=True).fate is Fate.CONNECT
        assert judge(record(cookie=0, bytes_read=1), None, connected=True).fate is Fate.RESET

    @pytest.mark.parametrize("state", [TcpState.SYN_SENT, TcpState.CLOSE])
    def test_what_never_was_connected_is_connected_again(self, state):
        none = kernel(state, acked=0, received=0)
        assert judge(record(ring_word=0), none, connected=True).fate is Fate.CONNECT
        assert judge(record(ring_word=0), none, connected=False).fate is Fate.RESET

    @pytest.mark.parametrize(
        "changes",
        [
            {"flags": CONFIRMED | ERROR_SEEN},
            {"bytes_read": 201},
            {"bytes_read": (1 << 18) + 300},
            {"ring_word": 0, "bytes_read": 199},
            {"ring_word": RING, "flags": CONFIRMED | END_READ},
            {"fin_offset": 102},
            {"ring_word": (1 << 8) | 99, "bytes_read": 0},
        ],
    )
    def test_what_does_not_fit_is_reset(self, changes):
        was = record(**{"bytes_read": 200, **changes})
        assert judge(was, kernel(), connected=False).fate is Fate.RESET

    @pytest.mark.parametrize("state", [TcpState.LISTEN, TcpState.SYN_RECV, 0, 12, 255])
    def test_states_that_no_stream_has_are_reset(self, state):
        assert judge(record(bytes_read=200), kernel(state), connected=False).fate is Fate.RESET

    def test_a_fin_that_nobody_recorded_is_reset(self):
        was = kernel(TcpState.FIN_WAIT2)
        assert judge(record(bytes_read=200), was, connected=False).fate is Fate.RESET
        known = record(bytes_read=200, fin_offset=100)
        assert summary(judge(known, was, connected=False)) == (Fate.GOES_ON, 200, 99, True)

    @pytest.mark.parametrize(
        ("changes", "found", "fate"),
        [
            ({}, {}, Fate.GOES_ON),
            ({"bytes_read": 40}, {}, Fate.GOES_ON),
            (
                {},
                {"acked": 90, "unacked": 11},
                Fate.RESET,
            ),  # its error may have been told before
            ({}, {"error": 104}, Fate.RESET),
            ({}, {"received": 50}, Fate.RESET),  # no FIN came
            ({}, {"acked": 100}, Fate.RESET),  # ours did not go out
            ({"fin_offset": 0}, {}, Fate.RESET),
            ({"fin_offset": 100}, {}, Fate.RESET),
        ],
    )
    @pytest.mark.parametrize("syn", [0, 1])
    def test_what_is_closed_had_two_fins_or_is_reset(self, changes, found, fate, syn):
        was = record(**{"bytes_read": 50, "fin_offset": 101, **changes})
        seen = {"acked": 101, "received": 51, **found}
        seen["acked"] += syn
        verdict = judge(was, kernel(TcpState.CLOSE, **seen), connected=bool(syn))
        assert verdict.fate is fate
        if fate is Fate.GOES_ON:
            assert summary(verdict) == (Fate.GOES_ON, 50, 100, True)

    def test_an_unanswered_stream_needs_all_its_bytes(self):
        """It may be opened anew, from its first byte."""
        small = MIN_RING_BYTES + 1
        was = record(flags=0, bytes_read=small, ring_word=1 << 8)
        assert judge(was, kernel(received=small), connected=False).fate is Fate.RESET
        was = record(flags=0, bytes_read=small, ring_word=1 << 8 | 1)
        assert judge(was, kernel(received=small), connected=False).fate is Fate.GOES_ON

    def test_nothing_that_is_found_makes_it_fail(self):
        """Whatever lies in the memory, and whatever the kernel might say."""
        chance = random.Random(1)
        words = [0, 1, 2, 7, 100, 101, 1 << 8, RING, 1 << 40, (1 << 64) - 1, MAX_RING_BYTES]
        for _ in range(20_000):
            was = record(
                cookie=chance.choice(words),
                ring_word=chance.choice(words),
                bytes_read=chance.choice(words),
                flags=chance.choice(words),
                fin_offset=chance.choice(words),
            )
            found = kernel(
                chance.randrange(0, 13),
                acked=chance.choice(words),
                unacked=chance.choice(words),
                received=chance.choice(words),
                unread=chance.choice(words),
                error=chance.choice([0, 0, 104]),
            )
            verdict = judge(was, chance.choice([found, None]), connected=chance.random() < 0.5)
            assert verdict.head >= 0
            assert verdict.delivered >= 0
