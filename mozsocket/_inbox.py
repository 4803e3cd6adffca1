"""What has been read and cannot be delivered yet: the bounded channel from the reader to the dispatcher."""

from __future__ import annotations

import math
from collections import deque

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

__all__ = ("QUEUED_READ_SIZE", "Inbox")

QUEUED_READ_SIZE = 65_536
"""Bytes read at once, when they have to be queued."""

LIMIT = 262_144
"""Bytes that it holds before there is no room. Then nothing more is read, and TCP holds the peer back."""

LIMIT_AT_THE_END = 1 << 24
"""The same when nothing more can come than what the operating system has already: more than that is, as a rule."""

_JOIN_BELOW = 4096  # bytes: reads as small as this are joined, so that the limit means memory

_NOTHING: deque[bytes | bytearray] = deque()
"""What is left of those that were never used, as a deque takes 760 bytes."""


class Inbox:
    """A memory-object channel of reads, ``b""`` for the peer's end; made when it is first needed, as most never are.
    True while something is queued.

    A read is in it at once, and its reader waits for room before the next: none is ever on its way to it, where
    ``upgradeToSecure()`` would not find it.

    :ivar used: whether anything was ever queued
    """

    __slots__ = ("_count", "_left", "_limit", "_receiver", "_rest", "_room", "_sender", "_size", "_tail", "used")

    def __init__(self) -> None:
        self.used = False
        self._count = 0
        self._size = 0  # in bytes
        self._limit = LIMIT
        self._rest: bytes | memoryview = b""  # of the first read, of which part was taken
        self._left = _NOTHING  # what was in the channel when that was closed
        self._tail: bytearray | None = None  # the last read, if it is small and others can be joined to it
        self._room: anyio.Event | None = None  # what the reader waits for
        self._sender: MemoryObjectSendStream[bytes | bytearray]
        self._receiver: MemoryObjectReceiveStream[bytes | bytearray]

    def put(self, data: bytes) -> None:
        """To be called while there is room. What is put in after :meth:`discard` is discarded too."""
        if not self.used:
            self.used = True
            self._sender, self._receiver = anyio.create_memory_object_stream[bytes | bytearray](math.inf)
        if data and self._tail is not None and len(self._tail) + len(data) <= QUEUED_READ_SIZE:
            self._tail += data
        else:
            self._tail = bytearray(data) if 0 < len(data) < _JOIN_BELOW else None
            try:
                self._sender.send_nowait(data if self._tail is None else self._tail)
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                self._tail = None
                return
            self._count += 1
        self._size += len(data)

    async def wait_for_room(self) -> None:
        while self._size >= self._limit:
            self._room = anyio.Event()
            await self._room.wait()

    def make_room(self) -> None:
        """Take more than usual: the peer is gone, and what it has sent is to be kept."""
        self._limit = LIMIT_AT_THE_END
        self._let_reader_look()

    def take(self, size: int = QUEUED_READ_SIZE) -> bytes | None:
        """The next of it, at most ``size`` bytes; None if there is none, or it was discarded."""
        if not self._count:
            return None
        data = self._rest or self._next()
        if len(data) > size:
            self._rest = memoryview(data)[size:]
            data = data[:size]
        else:
            self._rest = b""
            self._count -= 1
        self._size -= len(data)
        self._let_reader_look()
        return bytes(data)

    def _next(self) -> bytes | bytearray:
        data = self._left.popleft() if self._left else self._receiver.receive_nowait()
        if data is self._tail:
            self._tail = None
        return data

    def put_back(self, data: bytes) -> None:
        """Put what was taken, or would have been the next, back before all else."""
        if not self._rest:
            self._count += 1
        self._rest = data + bytes(self._rest)
        self._size += len(data)

    def __bool__(self) -> bool:
        return self._count > 0

    def discard(self) -> None:
        """Forget what is queued, and let who waits for room go."""
        if self.used:
            self._receiver.close()
        self._rest, self._left, self._tail = b"", _NOTHING, None
        self._count = self._size = 0
        self._let_reader_look()

    def close(self) -> None:
        """Put nothing in any more. What is queued can still be taken."""
        if self.used:
            queued = self._count - bool(self._rest) - len(self._left)
            if queued:
                self._left = deque(self._receiver.receive_nowait() for _ in range(queued))
            self._receiver.close()
            self._sender.close()
        self._tail = None
        self._let_reader_look()

    def _let_reader_look(self) -> None:
        if self._room is not None:
            self._room.set()
            self._room = None
