"""What a TCPSocket knows, without any I/O: its ready state, what it has yet to send, how often it is suspended.

The rules, each of which is one line below:

- A socket goes from connecting to open, closing and closed; it may leave out any, and never goes back.
- ``send()`` gives False, and a ``drain`` is owed, once more than 65536 bytes are buffered.
- ``send()`` beyond the limit takes nothing, and a ``drain`` is owed, if one can come.
- ``send()`` after ``send_eof()`` is an error.
- An owed ``drain`` is due when nothing is buffered. If more was buffered before it was taken, it is due later.
- Suspensions count: as often resumed as suspended.
"""

from __future__ import annotations

import sys
from collections import deque
from enum import Enum
from typing import TypeAlias

from ._errors import InvalidStateError

__all__ = ("BUFFER_THRESHOLD", "Chunk", "ReadyState", "SendBuffer", "SuspendCount", "octets")

BUFFER_THRESHOLD = 65536
"""Bytes buffered above which :meth:`TCPSocket.send` gives False (Gecko's ``BUFFER_SIZE``)."""

_JOIN_BELOW = 4096  # bytes: copying a chunk this small costs less than telling the kernel where it is
_JOIN_UP_TO = 262_144  # bytes joined at most: what one call to the kernel is likely to take
_JOIN_AT_ONCE_BELOW = 1024  # bytes: to each that it keeps Python adds some 45, which is little beside this many
_VECTOR = 64  # chunks given to one call to the kernel; POSIX allows at least 16, every system of ours 1024


class ReadyState(str, Enum):
    """The states of a TCPSocket (MDN's ``readyState``). Each equals its name as a ``str``."""

    CONNECTING = "connecting"
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"

    __str__ = str.__str__

    def precedes(self, other: ReadyState) -> bool:
        """Whether a socket in this state can go on to the other."""
        return _ORDER.index(self) < _ORDER.index(other)


_ORDER = tuple(ReadyState)


Chunk: TypeAlias = "bytes | bytearray | memoryview"

_NO_CHUNKS: deque[Chunk] = deque()
"""Of the buffers that were never used, as a deque takes 760 bytes."""


class SendBuffer:
    """What was given to ``send()`` and not yet handed to the operating system.

    :ivar amount: its size in bytes: ``bufferedAmount``
    :ivar awaited: how many of these come first, up to the end of what was appended by :meth:`append_awaited`
    :ivar dropped: whether bytes were thrown away unsent
    :ivar finished: whether the program has said that this is all
    """

    __slots__ = ("_chunks", "_drain_owed", "_ended", "_limit", "_little", "amount", "awaited", "dropped", "finished")

    def __init__(self, limit: int | None = None) -> None:
        self._chunks = _NO_CHUNKS
        self._drain_owed = False
        self._ended = False
        self._limit = limit
        self._little = self._at_first_little()  # up to how many bytes every chunk is kept as it is, which costs least
        self.amount = 0
        self.awaited = 0
        self.dropped = False
        self.finished = False

    def append(self, data: bytes) -> bool:
        """Take data to be sent.

        :return: False if more than :data:`BUFFER_THRESHOLD` bytes are now buffered: a drain is owed
        :raises BufferError: if that would be more than the limit; nothing is taken, but a drain is owed
        :raises InvalidStateError: if it was said that there is no more
        """
        if self._ended:
            if self.finished:
                raise InvalidStateError("send() after send_eof(): the peer has been told that no more will come")
            return True
        amount = self.amount + len(data)
        if amount > self._little:
            return self._append_to_more(data, amount)
        if data:
            if self._chunks is _NO_CHUNKS:
                self._chunks = deque()
            self._chunks.append(data)
            self.amount = amount
        return True

    def _append_to_more(self, data: bytes, amount: int) -> bool:
        """Where it is not a little that is buffered, or some has to wait."""
        if self._limit is not None and amount > self._limit:
            self._drain_owed = self._drain_owed or self.amount > 0
            raise BufferError(
                f"max_buffered_amount is {self._limit} bytes: {self.amount} are buffered, {len(data)} more do not fit"
            )
        if not self.amount:
            self._chunks = deque((data,))
            self._little = self._at_first_little()
        elif len(data) >= _JOIN_AT_ONCE_BELOW or self.amount <= self._little:
            self._chunks.append(data)
        elif data:
            self._tail().extend(data)
        self.amount = amount
        if amount > BUFFER_THRESHOLD:
            self._drain_owed = True
            return False
        return True

    def _at_first_little(self) -> int:
        return BUFFER_THRESHOLD if self._limit is None else min(self._limit, BUFFER_THRESHOLD)

    def _tail(self) -> bytearray:
        """What small chunks are joined in as they come, so that little more is held than was given."""
        chunks = self._chunks
        tail = chunks[-1]
        if not isinstance(tail, bytearray) or len(tail) >= _JOIN_UP_TO:
            tail = bytearray()
            if self.amount < min(_JOIN_UP_TO, _JOIN_AT_ONCE_BELOW * len(chunks)):  # as a rule, and no loop
                tail = tail.join(chunks)
                chunks.clear()
            chunks.append(tail)
        return tail

    def append_awaited(self, data: bytes) -> None:
        """Take data whose sender waits until it is handed over: it counts to no limit, and no drain is owed for it."""
        if data and not self._ended:
            self._chunks = self._chunks or deque()
            self._chunks.append(data)
            self.amount += len(data)
            self.awaited = self.amount

    def finish(self) -> None:
        """Take no more: what is buffered is all."""
        self.finished = self._ended = True

    def next_write(self, limit: int = sys.maxsize) -> list[Chunk]:
        """What to hand over next, in one call: some large chunks as they are, or many small ones joined.

        :param limit: how many bytes at most
        """
        chunks = self._chunks
        if len(chunks) > 1 and len(chunks[0]) < _JOIN_BELOW:
            chunks.appendleft(b"".join(self._pop_small()))
        first = list(chunks) if len(chunks) <= _VECTOR else [chunks[i] for i in range(_VECTOR)]
        return first if self.amount <= limit else _cut(first, limit)

    def _pop_small(self) -> list[Chunk]:
        chunks = self._chunks
        small: list[Chunk] = []
        if self.amount <= min(_JOIN_UP_TO, _JOIN_BELOW * len(chunks)):  # the usual case, and no loop
            small.extend(chunks)
            chunks.clear()
            return small
        size = 0
        while chunks and len(chunks[0]) < _JOIN_BELOW and size < _JOIN_UP_TO:
            size += len(chunks[0])
            small.append(chunks.popleft())
        return small

    def advance(self, count: int) -> None:
        """Count bytes as handed over: the first of what :meth:`next_write` gave."""
        self.amount -= count
        if self.amount:
            self._little = 0  # what comes now has to wait
        if self.awaited:
            self.awaited = max(self.awaited - count, 0)
        chunks = self._chunks
        while count:
            chunk = chunks.popleft()
            if len(chunk) > count:
                chunks.appendleft(memoryview(chunk)[count:])
                return
            count -= len(chunk)

    @property
    def drain_owed(self) -> bool:
        """Whether a drain is to come, or was until :meth:`drop`."""
        return self._drain_owed

    @property
    def drain_due(self) -> bool:
        """Whether a drain is owed and nothing is buffered."""
        return self._drain_owed and not self.amount

    def take_drain(self) -> bool:
        """Whether a drain is due; if so it counts as delivered."""
        due = self._drain_owed and not self.amount
        if due:
            self._drain_owed = False
        return due

    def drop(self) -> None:
        """Throw away what is buffered, and whatever comes: the connection is lost, or wanted no more."""
        self.dropped = self.dropped or self.amount > 0
        self._ended = True
        self._chunks.clear()
        self.amount = self.awaited = 0
        self._drain_owed = False


def _cut(chunks: list[Chunk], limit: int) -> list[Chunk]:
    """The first bytes of some chunks."""
    first: list[Chunk] = []
    for chunk in chunks:
        if len(chunk) >= limit:
            return [*first, memoryview(chunk)[:limit]]
        first.append(chunk)
        limit -= len(chunk)
    return first


class SuspendCount:
    """How often a socket is suspended.

    :ivar count: the number; an attribute, as it is looked at with every read
    """

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0

    def suspend(self) -> None:
        self.count += 1

    def resume(self) -> None:
        """:raises InvalidStateError: if it is not suspended"""
        if not self.count:
            raise InvalidStateError("resume() without suspend(): the socket is not suspended")
        self.count -= 1


def octets(data: object, byteOffset: int = 0, byteLength: int | None = None, *, what: str = "send() takes") -> bytes:
    """The bytes that a call of ``send(data, byteOffset, byteLength)`` means, as they are now.

    :param data: bytes-like, or a ``str`` of characters up to U+00FF, one a byte
    :param byteOffset: where the slice starts; clamped to the data, as in Gecko
    :param byteLength: its length, likewise clamped; None for all the rest
    :param what: how an error begins
    :raises TypeError: if one of them is of another type
    :raises ValueError: if a number is negative, or a character is above U+00FF
    """
    start = _unsigned("byteOffset", byteOffset)
    stop = None if byteLength is None else start + _unsigned("byteLength", byteLength)
    if isinstance(data, str):
        return _latin1(data, what)[start:stop]
    if isinstance(data, bytes):
        return data[start:stop]
    try:
        view = memoryview(data)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{what} a bytes-like object or a str, not {type(data).__name__}") from None
    with view:
        if not (view.c_contiguous and view.nbytes):  # which a flat view could not be had of
            return view.tobytes()[start:stop]
        with view.cast("B") as flat:
            return bytes(flat[start:stop])  # copied: the program may change it before it is sent


def _unsigned(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")
    if value < 0:
        raise ValueError(f"{name} must not be negative: {value}")
    return value


def _latin1(text: str, what: str) -> bytes:
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError as exc:
        raise ValueError(
            f"{what} str of characters up to U+00FF, one a byte; character {exc.start} is"
            f" U+{ord(text[exc.start]):04X}: encode the text first"
        ) from None
