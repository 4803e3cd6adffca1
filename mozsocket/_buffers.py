"""The two buffers of a connection: data to be sent, and received data that cannot be delivered yet.

The send buffer decides when the event ``drain`` fires. Its rules:

- ``send()`` returns False once more than 65536 bytes are buffered, and a ``drain`` is owed.
- ``send()`` beyond the limit accepts nothing. A ``drain`` is owed then too, if anything is buffered.
- An owed ``drain`` is pending when nothing is buffered. If the program buffers more before it is delivered, it is
  postponed until that too was sent.

The inbox is the bounded channel from the reader to the dispatcher.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from typing import Any, Protocol, TypeAlias

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

__all__ = ("BUFFER_THRESHOLD", "QUEUED_READ_SIZE", "Chunk", "Endpoint", "Held", "Inbox", "SendBuffer", "octets")

BUFFER_THRESHOLD = 65536
"""The number of buffered bytes above which :meth:`TCPSocket.send` returns False (Gecko's ``BUFFER_SIZE``)."""

_JOIN_BELOW = 4096  # bytes: smaller chunks are joined, as copying one costs less than passing one more to the kernel
_JOIN_UP_TO = 262_144  # bytes joined at most: what one call to the kernel is likely to take
_JOIN_AT_ONCE_BELOW = 1024  # bytes: smaller chunks are joined when appended, as each object takes some 45 bytes more
_VECTOR = 64  # chunks given to one call to the kernel; POSIX allows at least 16, every supported system 1024

QUEUED_READ_SIZE = 65_536
"""The most bytes to read by one call, when they have to be queued."""

LIMIT = 262_144
"""Bytes that the inbox holds before it is full. Then nothing more is read, and TCP holds the peer back."""

LIMIT_AT_THE_END = 1 << 24
"""The same limit when the peer can send no more: it is usually more than the operating system can still hold."""

_QUEUE_JOINED_BELOW = 4096  # bytes: reads smaller than this are joined, so that the limit bounds memory

MAX_RETAKEN = 4096
"""The most bytes to take at once of data that was taken back. A handler may use one line of them and have the remainder
taken back again, which copies up to this many bytes per line.
"""

_NOTHING: deque[bytes | bytearray] = deque()
"""Shared by all inboxes that were never closed while data was queued, as a deque takes 760 bytes. It stays empty."""

Chunk: TypeAlias = "bytes | bytearray | memoryview"

_NO_CHUNKS: deque[Chunk] = deque()
"""Shared by all send buffers without queued chunks, as a deque takes 760 bytes. It stays empty."""

_NOTHING_FIRST: list[Chunk] = []
"""Shared by all inboxes in which nothing was put back. It stays empty."""


class Endpoint(Protocol):
    """What bytes are read from and sent to: a non-blocking socket, or TLS over one."""

    def recv(self, size: int, /) -> bytes: ...
    def send(self, chunk: bytes, /) -> int: ...


class SendBuffer:
    """Data that was given to ``send()`` and not yet handed to the operating system.

    :param limit: the most bytes that :meth:`append` accepts (``max_buffered_amount``); None for no limit
    :ivar amount: its size in bytes: ``bufferedAmount``
    :ivar only_chunk: all of the data, if it is one chunk that no sender awaits, as is usual; else None
    :ivar awaited: the number of bytes up to the end of those that were appended by :meth:`append_awaited`
    :ivar drain_owed: whether a drain has to be delivered; False after :meth:`drop`
    :ivar dropped: whether bytes were dropped unsent
    :ivar sent: the number of bytes handed to the operating system so far
    :ivar flush_is_due: whether somebody is going to send it
    :ivar filling_thread: the identifier of the thread in which a handler runs that is followed by a flush: there
        ``send()`` just appends; 0 while no such handler runs
    :ivar error: the error of :meth:`send_only_chunk`: the connection was lost
    :ivar waiters: the number of tasks that wait until it is empty
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
        "error",
        "filling_thread",
        "flush_is_due",
        "only_chunk",
        "sent",
        "waiters",
    )

    def __init__(self, limit: int | None = None) -> None:
        self._chunks = _NO_CHUNKS  # all chunks, unless there is only_chunk
        self.only_chunk: bytes | None = None
        self.drain_owed = False
        self._ended = False  # whether drop() was called
        self._limit = limit
        self._little = self._at_first_little()  # bytes up to which append() just adds a chunk, which costs least
        self.amount = 0
        self.awaited = 0
        self.dropped = False
        self.sent = 0
        self.flush_is_due = False
        self.filling_thread = 0
        self.waiters = 0
        self.error: OSError | None = None

    def append(self, data: bytes) -> bool:
        """Append data to be sent.

        :return: False if more than :data:`BUFFER_THRESHOLD` bytes are now buffered: a drain is owed
        :raises BufferError: if that would exceed the limit; nothing is appended, but a drain is owed if anything is
            buffered
        """
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
        """Move the only chunk into the queue of chunks."""
        if self.only_chunk is not None:
            self._chunks = deque((self.only_chunk,))
            self.only_chunk = None

    def _append_to_more(self, data: bytes, amount: int) -> bool:
        """Append data if much is buffered, the operating system has not taken all, or :meth:`drop` was called."""
        if self._ended:
            return True
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
        """The bytes up to which neither the limit nor a drain has to be considered."""
        return BUFFER_THRESHOLD if self._limit is None else min(self._limit, BUFFER_THRESHOLD)

    def _tail(self) -> bytearray:
        """The last chunk, in which small chunks are joined, so that memory is little more than the bytes buffered."""
        chunks = self._chunks
        tail = chunks[-1]
        if not isinstance(tail, bytearray) or len(tail) >= _JOIN_UP_TO:
            tail = bytearray()
            if self.amount < min(_JOIN_UP_TO, _JOIN_AT_ONCE_BELOW * len(chunks)):  # usual: all of them are small
                tail = tail.join(chunks)
                chunks.clear()
            chunks.append(tail)
        return tail

    def send_only_chunk(self, endpoint: Endpoint) -> bool:
        """Hand over the only chunk, if there is such, by one call; for the fast path, as nobody is notified of it.

        :return: whether nothing is left. If not, the caller has to send it otherwise, or to take :attr:`error`
        """
        chunk = self.only_chunk
        if chunk is None or self.drain_owed or self.waiters:
            return False
        try:
            count = endpoint.send(chunk)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as exc:
            self.error = exc
            return False
        if count < len(chunk):
            self.advance(count)
            return False
        self.flush_is_due = False
        self.only_chunk = None
        self.sent += count
        self.amount = 0
        return True

    def append_awaited(self, data: bytes) -> None:
        """Append data whose sender waits until it is handed over. It counts towards no limit, and no drain is owed."""
        if data and not self._ended:
            self._keep_only_chunk()
            self._chunks = self._chunks or deque()
            self._chunks.append(data)
            self.amount += len(data)
            self.awaited = self.amount

    def next_write(self, limit: int = sys.maxsize) -> list[Chunk]:
        """The chunks to hand to the operating system next, in one call. Small chunks are joined, large ones are not.

        :param limit: the most bytes to hand over
        """
        self._keep_only_chunk()
        chunks = self._chunks
        if len(chunks) > 1 and len(chunks[0]) < _JOIN_BELOW:
            chunks.appendleft(b"".join(self._pop_small()))
        first = list(chunks) if len(chunks) <= _VECTOR else [chunks[i] for i in range(_VECTOR)]
        return first if self.amount <= limit else _cut(first, limit)

    def _pop_small(self) -> list[Chunk]:
        """Take the small chunks at the beginning, as many as are to be joined."""
        chunks = self._chunks
        small: list[Chunk] = []
        if self.amount <= min(_JOIN_UP_TO, _JOIN_BELOW * len(chunks)):  # usual: all of them are small
            small.extend(chunks)
            chunks.clear()
            return small
        size = 0
        while chunks and len(chunks[0]) < _JOIN_BELOW and size < _JOIN_UP_TO:
            size += len(chunks[0])
            small.append(chunks.popleft())
        return small

    def advance(self, count: int) -> None:
        """Count bytes as handed over, and drop them. They are the first of those that :meth:`next_write` has given."""
        self._keep_only_chunk()
        self.sent += count
        self.amount -= count
        if self.awaited:
            self.awaited = max(self.awaited - count, 0)
        if not self.amount:
            self._chunks = _NO_CHUNKS
            return
        self._little = 0  # the operating system takes no more for now: further chunks are joined
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
        """Whether a drain is pending; if so, it counts as delivered."""
        pending = self.drain_owed and not self.amount
        if pending:
            self.drain_owed = False
        return pending

    def drop(self) -> None:
        """Drop what is buffered, and whatever is appended later: the connection is lost, or closed immediately."""
        self.dropped = self.dropped or self.amount > 0
        self._ended = True
        self._little = -1
        self._chunks, self.only_chunk = _NO_CHUNKS, None
        self.amount = self.awaited = 0
        self.drain_owed = False


def _cut(chunks: list[Chunk], limit: int) -> list[Chunk]:
    """The first bytes of some chunks, up to a limit."""
    first: list[Chunk] = []
    for chunk in chunks:
        if len(chunk) >= limit:
            return [*first, memoryview(chunk)[:limit]]
        first.append(chunk)
        limit -= len(chunk)
    return first


class Held(Protocol):
    """Data that the handler of ``data`` was given and has not used, such as some lines and the beginning of another."""

    @property
    def is_pending(self) -> bool:
        """Whether the handler can use some of the data now, such as a whole line."""

    @property
    def is_unfinished(self) -> bool:
        """Whether some of the data can be used only with more, such as the beginning of a line."""

    def finish(self, event: Any) -> object:
        """A handler for the last ``data`` event, which has no data: the peer has ended, and no more will follow."""

    def take_back(self) -> bytes:
        """Take all of the data back. A running handler gets no more of it."""


class Inbox:
    """A queue of received data that cannot be delivered yet: a memory-object channel, which is made when it is first
    needed, as most connections never do.

    The reader puts each read into it immediately, and reads nothing while it is full. So no data is ever on the way to
    it, where ``upgradeToSecure()`` would not find it.

    :ivar count: the number of chunks that are queued
    :ivar used: whether anything was ever queued
    :ivar held: the data that the handler of ``data`` was given, queued before or not, and has not used
    :ivar retaken: the number of bytes at the beginning of the queue that were taken back from the handler
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
        self._size = 0  # the bytes that are queued
        self._limit = LIMIT
        # Data that comes before the channel's, in reverse order: what was put back, and remainders of reads.
        self._first = _NOTHING_FIRST
        self._left = _NOTHING  # the data that was in the channel when that was closed
        self._tail: bytearray | None = None  # the last chunk, if others can be joined to it
        self.held: Held | None = None
        self.retaken = 0
        self._sender: MemoryObjectSendStream[bytes | bytearray]
        self._receiver: MemoryObjectReceiveStream[bytes | bytearray]

    def put(self, data: bytes) -> None:
        """Queue data; to be called only while the inbox is not full. After :meth:`discard` it is discarded too."""
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
        """Whether more may be queued."""
        return self._size < self._limit

    def make_room(self) -> None:
        """Raise the limit: the connection is lost, and all that the peer has sent before is to be kept."""
        self._limit = LIMIT_AT_THE_END

    def take(self, size: int = QUEUED_READ_SIZE) -> bytes | None:
        """Take the first data of the queue, at most ``size`` bytes; None if nothing is queued."""
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
        """Queue data before all other: data that was taken, or that belongs before what is queued."""
        self._put_first(data)
        self.count += 1
        self._size += len(data)

    def take_back(self) -> int:
        """Queue the data again that the handler of ``data`` holds: it is for another handler now, or has to wait.

        :return: the number of bytes
        """
        data = b"" if self.held is None else self.held.take_back()
        if data:
            self.take_back_some(data)
        return len(data)

    def take_back_some(self, data: bytes) -> None:
        """Queue data again that the handler of ``data`` was given."""
        self.put_back(data)
        self.retaken += len(data)

    def discard(self) -> None:
        """Drop what is queued, what is held by the handler, and whatever is queued later."""
        if self.used:
            self._receiver.close()
        if self.held is not None:
            self.held.take_back()
            self.held = None
        self._first, self._left, self._tail = _NOTHING_FIRST, _NOTHING, None
        self.count = self._size = self.retaken = 0

    def close(self) -> None:
        """Close the channel: nothing more is queued, but what is queued can still be taken."""
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
    """The bytes that ``send(data, byteOffset, byteLength)`` has to send, as they are now.

    :param data: bytes-like, or a ``str`` of characters up to U+00FF, one per byte
    :param byteOffset: where the slice starts, in bytes; clamped to the data, as in Gecko
    :param byteLength: its length in bytes, likewise clamped; None for everything after the offset
    :param ascii_only: whether a ``str`` has to be ASCII, which is the same in all usual encodings
    :param what: the beginning of an error message
    :raises TypeError: if an argument is of another type
    :raises ValueError: if a number is negative, or a character is not allowed
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
        if not (view.c_contiguous and view.nbytes):  # cast() refuses such a view
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
            f"{what} a str of {accepted}characters up to U+00FF, one per byte; character {exc.start} is"
            f" U+{ord(text[exc.start]):04X}: encode the text first, as by text.encode()"
        ) from None
