"""What is to be sent, and what was received and cannot be delivered yet: the bounded channel to the dispatcher.

The rules of sending, each of which is one line below:

- ``send()`` gives False, and a ``drain`` is owed, once more than 65536 bytes are buffered.
- ``send()`` beyond the limit takes nothing, and a ``drain`` is owed, if one can come.
- An owed ``drain`` is due when nothing is buffered. If more was buffered before it was taken, it is due later.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from typing import Any, Protocol, TypeAlias

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

__all__ = ("BUFFER_THRESHOLD", "QUEUED_READ_SIZE", "Chunk", "Held", "Inbox", "SendBuffer", "octets")

BUFFER_THRESHOLD = 65536
"""Bytes buffered above which :meth:`TCPSocket.send` gives False (Gecko's ``BUFFER_SIZE``)."""

_JOIN_BELOW = 4096  # bytes: copying a chunk this small costs less than telling the kernel where it is
_JOIN_UP_TO = 262_144  # bytes joined at most: what one call to the kernel is likely to take
_JOIN_AT_ONCE_BELOW = 1024  # bytes: to each that it keeps Python adds some 45, which is little beside this many
_VECTOR = 64  # chunks given to one call to the kernel; POSIX allows at least 16, every system of ours 1024

QUEUED_READ_SIZE = 65_536
"""Bytes read at once, when they have to be queued."""

LIMIT = 262_144
"""Bytes that it holds before there is no room. Then nothing more is read, and TCP holds the peer back."""

LIMIT_AT_THE_END = 1 << 24
"""The same when nothing more can come than what the operating system has already: more than that is, as a rule."""

_QUEUE_JOINED_BELOW = 4096  # bytes: reads as small as this are joined, so that the limit means memory

MAX_RETAKEN = 4096
"""Bytes to take at once of what was taken back. A handler that takes one line of it, and has the rest taken back again,
has so much copied each time.
"""

_NOTHING: deque[bytes | bytearray] = deque()
"""What is left of those that were never used, as a deque takes 760 bytes."""

Chunk: TypeAlias = "bytes | bytearray | memoryview"

_NO_CHUNKS: deque[Chunk] = deque()
"""Of the buffers that were never used, as a deque takes 760 bytes."""

_NOTHING_FIRST: list[Chunk] = []
"""Of those in which nothing was ever put back."""


class SendBuffer:
    """What was given to ``send()`` and not yet handed to the operating system.

    :ivar amount: its size in bytes: ``bufferedAmount``
    :ivar sole: all of it, where that is one chunk that nobody awaits, as most often it is; else None
    :ivar awaited: how many of these come first, up to the end of what was appended by :meth:`append_awaited`
    :ivar drain_owed: whether a drain is to come, or was until :meth:`drop`
    :ivar dropped: whether bytes were thrown away unsent
    :ivar sent: how many bytes were handed over so far
    """

    __slots__ = (
        "_chunks",
        "_ended",
        "_limit",
        "_little",
        "amount",
        "awaited",
        "drain_owed",
        "dropped",
        "only_chunk",
        "sent",
    )

    def __init__(self, limit: int | None = None) -> None:
        self._chunks = _NO_CHUNKS  # but for the sole one
        self.only_chunk: bytes | None = None
        self.drain_owed = False
        self._ended = False
        self._limit = limit
        self._little = self._at_first_little()  # up to how many bytes every chunk is kept as it is, which costs least
        self.amount = 0
        self.awaited = 0
        self.dropped = False
        self.sent = 0

    def append(self, data: bytes) -> bool:
        """Take data to be sent.

        :return: False if more than :data:`BUFFER_THRESHOLD` bytes are now buffered: a drain is owed
        :raises BufferError: if that would be more than the limit; nothing is taken, but a drain is owed
        """
        if self._ended:
            return True
        amount = self.amount + len(data)
        if amount > self._little:
            return self._append_to_more(data, amount)
        if data:
            if not self.amount:
                self.only_chunk = data
            else:
                if self.only_chunk is not None:
                    self._keep_only_chunk()
                self._chunks.append(data)
            self.amount = amount
        return True

    def _keep_only_chunk(self) -> None:
        """It is one of many."""
        if self.only_chunk is not None:
            self._chunks = deque((self.only_chunk,))
            self.only_chunk = None

    def _append_to_more(self, data: bytes, amount: int) -> bool:
        """Where it is not a little that is buffered, or some has to wait."""
        if self._limit is not None and amount > self._limit:
            self.drain_owed = self.drain_owed or self.amount > 0
            raise BufferError(
                f"max_buffered_amount is {self._limit} bytes: {self.amount} are buffered, {len(data)} more do not fit"
            )
        self._keep_only_chunk()
        if not self.amount:
            self._chunks = deque((data,))
            self._little = self._at_first_little()
        elif len(data) >= _JOIN_AT_ONCE_BELOW or self.amount <= self._little:
            self._chunks.append(data)
        elif data:
            self._tail().extend(data)
        self.amount = amount
        if amount > BUFFER_THRESHOLD:
            self.drain_owed = True
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

    def only_chunk_is_sent(self) -> None:
        """The sole chunk was handed over as a whole."""
        self.only_chunk = None
        self.sent += self.amount
        self.amount = 0

    def append_awaited(self, data: bytes) -> None:
        """Take data whose sender waits until it is handed over: it counts to no limit, and no drain is owed for it."""
        if data and not self._ended:
            self._keep_only_chunk()
            self._chunks = self._chunks or deque()
            self._chunks.append(data)
            self.amount += len(data)
            self.awaited = self.amount

    def next_write(self, limit: int = sys.maxsize) -> list[Chunk]:
        """What to hand over next, in one call: some large chunks as they are, or many small ones joined.

        :param limit: how many bytes at most
        """
        self._keep_only_chunk()
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
        self._keep_only_chunk()
        self.sent += count
        self.amount -= count
        if self.awaited:
            self.awaited = max(self.awaited - count, 0)
        if not self.amount:
            self._chunks = _NO_CHUNKS
            return
        self._little = 0  # what comes now has to wait
        chunks = self._chunks
        while count:
            chunk = chunks.popleft()
            if len(chunk) > count:
                chunks.appendleft(memoryview(chunk)[count:])
                return
            count -= len(chunk)

    @property
    def drain_is_pending(self) -> bool:
        """Whether a drain is owed and nothing is buffered."""
        return self.drain_owed and not self.amount

    def take_drain(self) -> bool:
        """Whether a drain is due; if so it counts as delivered."""
        due = self.drain_owed and not self.amount
        if due:
            self.drain_owed = False
        return due

    def drop(self) -> None:
        """Throw away what is buffered, and whatever comes: the connection is lost, or wanted no more."""
        self.dropped = self.dropped or self.amount > 0
        self._ended = True
        self._chunks, self.only_chunk = _NO_CHUNKS, None
        self.amount = self.awaited = 0
        self.drain_owed = False


def _cut(chunks: list[Chunk], limit: int) -> list[Chunk]:
    """The first bytes of some chunks."""
    first: list[Chunk] = []
    for chunk in chunks:
        if len(chunk) >= limit:
            return [*first, memoryview(chunk)[:limit]]
        first.append(chunk)
        limit -= len(chunk)
    return first


class Held(Protocol):
    """What the handler of data was given and has not taken: some whole lines, say, and what there is of the next."""

    @property
    def is_pending(self) -> bool:
        """Whether there is something that it can take now."""

    @property
    def is_unfinished(self) -> bool:
        """Whether there is something that it can take only together with what comes behind it."""

    def finish(self, event: Any) -> object:
        """A handler, for an event of data without any: nothing comes behind it."""

    def take_back(self) -> bytes:
        """All of it. Then it is empty, and its handler, if that is running, is done."""


class Inbox:
    """A memory-object channel of reads; made when it is first needed, as most never are.

    A read is in it at once, and nothing more is read while there is no room: none is ever on its way to it, where
    ``upgradeToSecure()`` would not find it.

    :ivar count: how many pieces of it are queued
    :ivar used: whether anything was ever queued
    :ivar held: what was taken out of it, or was never in it, and the handler of data holds
    :ivar retaken: how many bytes come first that were taken back from there
    """

    __slots__ = (
        "_first",
        "_left",
        "_limit",
        "_receiver",
        "_sender",
        "_size",
        "_tail",
        "count",
        "held",
        "retaken",
        "used",
    )

    def __init__(self) -> None:
        self.used = False
        self.count = 0
        self._size = 0  # in bytes
        self._limit = LIMIT
        self._first = _NOTHING_FIRST  # what comes before all that, the next last: rests of reads, and what was put back
        self._left = _NOTHING  # what was in the channel when that was closed
        self._tail: bytearray | None = None  # the last read, if it is small and others can be joined to it
        self.held: Held | None = None
        self.retaken = 0
        self._sender: MemoryObjectSendStream[bytes | bytearray]
        self._receiver: MemoryObjectReceiveStream[bytes | bytearray]

    def put(self, data: bytes) -> None:
        """To be called while there is room. What is put in after :meth:`discard` is discarded too."""
        if not self.used:
            self.used = True
            self._sender, self._receiver = anyio.create_memory_object_stream[bytes | bytearray](math.inf)
        if self._tail is not None and len(self._tail) + len(data) <= QUEUED_READ_SIZE:
            self._tail += data
        else:
            self._tail = bytearray(data) if len(data) < _QUEUE_JOINED_BELOW else None
            try:
                self._sender.send_nowait(data if self._tail is None else self._tail)
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                self._tail = None
                return
            self.count += 1
        self._size += len(data)

    @property
    def has_room(self) -> bool:
        """Whether more may be put in."""
        return self._size < self._limit

    def make_room(self) -> None:
        """Take more than usual: the peer is gone, and what it has sent is to be kept."""
        self._limit = LIMIT_AT_THE_END

    def take(self, size: int = QUEUED_READ_SIZE) -> bytes | None:
        """The next of it, at most ``size`` bytes; None if there is none, or it was discarded."""
        if not self.count:
            return None
        data = self._first.pop() if self._first else self._next()
        if len(data) > size:
            self._put_first(memoryview(data)[size:])
            data = data[:size]
        else:
            self.count -= 1
        self._size -= len(data)
        self.retaken = max(self.retaken - len(data), 0)
        return bytes(data)

    def _put_first(self, data: Chunk) -> None:
        if self._first is _NOTHING_FIRST:
            self._first = []
        self._first.append(data)

    def _next(self) -> bytes | bytearray:
        data = self._left.popleft() if self._left else self._receiver.receive_nowait()
        if data is self._tail:
            self._tail = None
        return data

    def put_back(self, data: bytes) -> None:
        """Put what was taken, or would have been the next, back before all else."""
        self._put_first(data)
        self.count += 1
        self._size += len(data)

    def take_back(self) -> int:
        """Put back what the handler of data holds: it is for another now, or has to wait.

        :return: how many bytes
        """
        data = b"" if self.held is None else self.held.take_back()
        if data:
            self.put_back(data)
            self.retaken += len(data)
        return len(data)

    def discard(self) -> None:
        """Forget what is queued, and what is held."""
        if self.used:
            self._receiver.close()
        if self.held is not None:
            self.held.take_back()
            self.held = None
        self._first, self._left, self._tail = _NOTHING_FIRST, _NOTHING, None
        self.count = self._size = self.retaken = 0

    def close(self) -> None:
        """Put nothing in any more. What is queued can still be taken."""
        if self.used:
            queued = self.count - len(self._first) - len(self._left)
            if queued:
                self._left = deque(self._receiver.receive_nowait() for _ in range(queued))
            self._receiver.close()
            self._sender.close()
        self._tail = None


def octets(
    data: object,
    byteOffset: int = 0,
    byteLength: int | None = None,
    *,
    ascii_only: bool = False,
    what: str = "send() takes",
) -> bytes:
    """The bytes that a call of ``send(data, byteOffset, byteLength)`` means, as they are now.

    :param data: bytes-like, or a ``str`` of characters up to U+00FF, one a byte
    :param ascii_only: whether a ``str`` has to be ASCII, so that nobody has to ask which encoding is meant
    :param byteOffset: where the slice starts; clamped to the data, as in Gecko
    :param byteLength: its length, likewise clamped; None for all the rest
    :param what: how an error begins
    :raises TypeError: if one of them is of another type
    :raises ValueError: if a number is negative, or a character is not one of those
    """
    start = _unsigned("byteOffset", byteOffset)
    stop = None if byteLength is None else start + _unsigned("byteLength", byteLength)
    if isinstance(data, str):
        return _encoded(data, ascii_only, what)[start:stop]
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


def _encoded(text: str, ascii_only: bool, what: str) -> bytes:
    try:
        return text.encode("ascii" if ascii_only else "latin-1")
    except UnicodeEncodeError as exc:
        accepted = 'ASCII, or with binaryType="string" of ' if ascii_only else ""
        raise ValueError(
            f"{what} str of {accepted}characters up to U+00FF, one a byte; character {exc.start} is"
            f" U+{ord(text[exc.start]):04X}: encode the text first, as by text.encode()"
        ) from None
