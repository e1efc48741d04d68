"""The stream table: what is known of each stream, in memory that outlives its worker.

Layout (64-bit words in the machine's own order; the memory never leaves the machine)::

    header, 4096 bytes                    record, 64 bytes, 65,536 of them
    0  layout version                     0  SO_COOKIE of the socket; 0: none yet
    1  session id, first half             1  stream id; 0: the record is free
    2  session id, second half            2  ring word (arena.py); 0: no ring
    3  epoch                              3  bytes read from the socket
    4  last attempt                       4  flags: 1 end of input read, 2 error seen,
    5  next stream id                        4 the peer has answered
    6  stream in hand                     5  final offset of the FIN relayed, plus 1; 0: none
    7  records ever used                  6  client: the visitor's address, 16 bytes in
    8  who has the session (server), or      two words; its family (4, 6; 0: not known)
       where names lead (client):            in bits 8 to 15 of the flags, its port in
       OWNER_WORDS words, as its worker      bits 16 to 31; both sides: when the
       lays them out                         visitor came, in bits 32 to 63
   40  stream that was in hand when its worker crashed, how many bytes of it had moved by
       then, and how many workers in a row crashed so: three words

A word is stored after each call on a socket and before the next one, so that whoever finds
this memory after a crash knows how far its owner came. Stream ids come from the counter in
the header, which is raised before an id is used: no id is ever used twice.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from tunneltcp.protocol.errors import LocalProtocolError

__all__ = ["HEADER_WORDS", "LAYOUT_VERSION", "RECORD_WORDS", "Record", "StreamTable"]

LAYOUT_VERSION: Final = 3
HEADER_WORDS: Final = 4096 // 8
RECORD_WORDS: Final = 8

COOKIE: Final = 0
STREAM_ID: Final = 1
RING_WORD: Final = 2
BYTES_READ: Final = 3
FLAGS: Final = 4
FIN_OFFSET: Final = 5
_ADDRESS: Final = 6

_ADDRESS_LAYOUTS: Final = {4: struct.Struct("!B4sH"), 6: struct.Struct("!B16sH")}
"""How OPEN carries an address, by its family."""
_TWO_WORDS: Final = struct.Struct("=QQ")

END_READ: Final = 1
ERROR_SEEN: Final = 2
CONFIRMED: Final = 4

_CAME_SHIFT: Final = 32
_CAME_MASK: Final = 0xFFFFFFFF
_TICKS_A_SECOND: Final = 16
"""32 bits of these are 8 years of a machine that is never started anew."""

OWNER_WORDS: Final = 32
"""Words for who has the session: 256 bytes."""
_OWNER: Final = 8

_VERSION, _SESSION, _EPOCH, _ATTEMPT, _NEXT_ID, _USED = 0, 1, 3, 4, 5, 7

IN_HAND: Final = 6
"""Where the id of the stream is stored whose event is about to be handled; 0: none. What
handles it stores through ``words``, as it does into records."""
_BLAME: Final = _OWNER + OWNER_WORDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What a dead worker left of one stream; checked by nobody yet."""

    index: int
    cookie: int
    stream_id: int
    ring_word: int
    bytes_read: int
    flags: int
    fin_offset: int

    @property
    def final_offset(self) -> int | None:
        """Where the FIN that was relayed stood; None if none was."""
        return self.fin_offset - 1 if self.fin_offset else None


class StreamTable:
    """The header and the records of one tunnel.

    Args:
        memory: The header and the records; its size says how many there are.
    """

    def __init__(self, memory: memoryview) -> None:
        self.words = memory.cast("B").cast("Q")
        """The table itself. A stream stores into its record through it, at
        ``record + word``; going through a method would cost more than the store."""
        self.capacity = (len(self.words) - HEADER_WORDS) // RECORD_WORDS
        self._free: list[int] = []
        if self.words[_VERSION] != LAYOUT_VERSION:
            self.clear()
            self.words[_NEXT_ID] = max(1, self.words[_NEXT_ID])
            self.words[_VERSION] = LAYOUT_VERSION

    def clear(self) -> None:
        """Free every record, and forget the session; the counter of stream ids goes on."""
        used = min(self.words[_USED], self.capacity)
        for record in range(HEADER_WORDS, HEADER_WORDS + used * RECORD_WORDS, RECORD_WORDS):
            self.give(record)
        self.words[_USED] = 0
        self._free.clear()
        self.words[IN_HAND] = 0
        self.set_blame(0, 0, 0, 0)
        self.set_session(bytes(16), 0)

    def records(self) -> list[Record]:
        """Return what a dead worker left, and go on with it: whatever is not given back stays.

        Records of one and the same stream, or socket, say nothing sure: only the first is
        returned, the others are freed.
        """
        words = self.words
        used = min(words[_USED], self.capacity)
        words[_USED] = used
        self._free.clear()
        found: list[Record] = []
        ids: set[int] = set()
        cookies: set[int] = set()
        for index in range(HEADER_WORDS, HEADER_WORDS + used * RECORD_WORDS, RECORD_WORDS):
            cookie, stream_id = words[index + COOKIE], words[index + STREAM_ID]
            if not 0 < stream_id < words[_NEXT_ID] or stream_id in ids or cookie in cookies:
                self.give(index)
                continue
            ids.add(stream_id)
            if cookie:
                cookies.add(cookie)
            found.append(
                Record(
                    index=index,
                    cookie=cookie,
                    stream_id=stream_id,
                    ring_word=words[index + RING_WORD],
                    bytes_read=words[index + BYTES_READ],
                    flags=words[index + FLAGS],
                    fin_offset=words[index + FIN_OFFSET],
                )
            )
        return sorted(found, key=lambda record: record.stream_id)

    def set_address(self, record: int, packed: bytes) -> None:
        """Store where a visitor comes from: the first address of what OPEN carries."""
        layout = _ADDRESS_LAYOUTS.get(packed[0])
        if layout is not None and len(packed) >= layout.size:
            family, host, port = layout.unpack_from(packed)
            words, at = self.words, record + _ADDRESS
            words[at], words[at + 1] = _TWO_WORDS.unpack(host.ljust(16, b"\0"))
            words[record + FLAGS] |= family << 8 | port << 16

    def address(self, record: int) -> bytes:
        """Return what :meth:`set_address` stored; of unknown family if it stored nothing."""
        flags = self.words[record + FLAGS]
        family = flags >> 8 & 0xFF
        host = self.words[record + _ADDRESS : record + _ADDRESS + 2].tobytes()
        port = (flags >> 16 & 0xFFFF).to_bytes(2, "big")
        size = {4: 4, 6: 16}.get(family, 0)
        return bytes([family]) + host[:size] + port if size else b"\0"

    def set_came(self, record: int, seconds: float) -> None:
        """Store when a visitor came, on a clock that its worker's successor has too."""
        ticks = min(max(1, int(seconds * _TICKS_A_SECOND)), _CAME_MASK)
        self.words[record + FLAGS] |= ticks << _CAME_SHIFT

    def came(self, record: int) -> float | None:
        """Return what :meth:`set_came` stored, to a sixteenth of a second; None if nothing."""
        ticks = self.words[record + FLAGS] >> _CAME_SHIFT
        return ticks / _TICKS_A_SECOND if ticks else None

    @property
    def last_id(self) -> int:
        """The highest id that may have been used; 0: none."""
        return max(0, self.words[_NEXT_ID] - 1)

    def next_stream_id(self) -> int:
        """Return an id that was never used, and make sure it never will be again."""
        stream_id = self.words[_NEXT_ID]
        self.words[_NEXT_ID] = stream_id + 1
        return stream_id

    def note_id(self, stream_id: int) -> None:
        """The peer opened this stream; its record is complete."""
        self.words[_NEXT_ID] = stream_id + 1

    def set_session(self, session_id: bytes, epoch: int) -> None:
        """Store which session the records belong to, and which of its links this is."""
        self.words[_SESSION] = int.from_bytes(session_id[:8], "big")
        self.words[_SESSION + 1] = int.from_bytes(session_id[8:16], "big")
        self.words[_EPOCH] = epoch

    @property
    def session_id(self) -> bytes:
        """The session that the records belong to; zeros: none."""
        halves = self.words[_SESSION], self.words[_SESSION + 1]
        return b"".join(half.to_bytes(8, "big") for half in halves)

    @property
    def owner(self) -> bytes:
        """What :meth:`set_owner` stored, padded with zeros."""
        return self.words[_OWNER : _OWNER + OWNER_WORDS].tobytes()

    def set_owner(self, owner: bytes) -> None:
        """Store who has the session: at most ``OWNER_WORDS`` words, more is cut off."""
        padded = owner[: OWNER_WORDS * 8].ljust(OWNER_WORDS * 8, b"\0")
        self.words[_OWNER : _OWNER + OWNER_WORDS] = memoryview(padded).cast("Q")

    @property
    def blame(self) -> tuple[int, int, int, int]:
        """What :meth:`set_blame` stored."""
        stream_id, moved, crashes, at_seconds = self.words[_BLAME : _BLAME + 4]
        return stream_id, moved, crashes, at_seconds

    def set_blame(self, stream_id: int, moved: int, crashes: int, at_seconds: int) -> None:
        """Store that so many workers in a row crashed with this stream in hand.

        ``moved`` says how many of its bytes had moved by then, at ``at_seconds`` (monotonic).
        """
        for at, value in enumerate((stream_id, moved, crashes, at_seconds)):
            self.words[_BLAME + at] = value

    @property
    def epoch(self) -> int:
        """Which link of its session the last one was, counted from 1."""
        return self.words[_EPOCH]

    @property
    def attempt(self) -> int:
        """Client: the number in the last HELLO. Server: that of the last right PROOF."""
        return self.words[_ATTEMPT]

    def set_attempt(self, attempt: int) -> None:
        """Store the number of an attempt that has proven the key; before WELCOME."""
        self.words[_ATTEMPT] = attempt

    def raise_attempt(self) -> int:
        """Return a number for the next HELLO, higher than all before it."""
        self.words[_ATTEMPT] += 1
        return self.words[_ATTEMPT]

    def take(self, stream_id: int, cookie: int) -> int:
        """Return the index of a record for this stream: of its first word.

        Raises:
            LocalProtocolError: If all records are in use; the bound on visitors is lower.
        """
        words = self.words
        if self._free:
            record = self._free.pop()
        elif words[_USED] < self.capacity:
            record = HEADER_WORDS + words[_USED] * RECORD_WORDS
            words[_USED] += 1
        else:
            raise LocalProtocolError("no free record in the stream table")
        words[record + COOKIE] = cookie
        words[record + STREAM_ID] = stream_id
        return record

    def give(self, record: int) -> None:
        """Free a record."""
        words = self.words
        words[record + STREAM_ID] = 0
        words[record + COOKIE] = 0
        words[record + RING_WORD] = 0
        words[record + BYTES_READ] = 0
        words[record + FLAGS] = 0
        words[record + FIN_OFFSET] = 0
        self._free.append(record)
