"""What has been read and cannot be delivered yet: the bounded channel from the reader to the dispatcher."""

from __future__ import annotations

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

__all__ = ("QUEUED_READ_SIZE", "Inbox")

QUEUED_READ_SIZE = 65_536
"""Bytes read at once, when they have to be queued."""

LENGTH = 4
"""Reads that it holds. When it is full nothing more is read, and TCP holds the peer back."""


class Inbox:
    """A memory-object channel of reads, ``b""`` for the peer's end; made when it is first needed, as most never are.
    True while something is queued.

    A read is in it at once, and its reader waits for room before the next: none is ever on its way to it, where
    ``upgradeToSecure()`` would not find it.

    :ivar used: whether anything was ever queued
    """

    __slots__ = ("_count", "_receiver", "_rest", "_room", "_sender", "used")

    def __init__(self) -> None:
        self.used = False
        self._count = 0
        self._rest: bytes | memoryview = b""  # of the first read, of which part was taken
        self._room: anyio.Event | None = None  # what the reader waits for
        self._sender: MemoryObjectSendStream[bytes]
        self._receiver: MemoryObjectReceiveStream[bytes]

    def put(self, data: bytes) -> None:
        """To be called while there is room. What is put in after :meth:`discard` is discarded too."""
        if not self.used:
            self.used = True
            self._sender, self._receiver = anyio.create_memory_object_stream[bytes](LENGTH)
        try:
            self._sender.send_nowait(data)
        except anyio.BrokenResourceError:
            return
        self._count += 1

    async def wait_for_room(self) -> None:
        while self._count >= LENGTH:
            self._room = anyio.Event()
            await self._room.wait()

    def take(self, size: int = QUEUED_READ_SIZE) -> bytes | None:
        """The next of it, at most ``size`` bytes; None if there is none, or it was discarded."""
        if not self._count:
            return None
        data = self._rest or self._receiver.receive_nowait()
        if len(data) > size:
            self._rest = memoryview(data)[size:]
            return bytes(data[:size])
        self._rest = b""
        self._set_count(self._count - 1)
        return bytes(data)

    def put_back(self, data: bytes) -> None:
        """Put what was taken, or would have been the next, back before all else."""
        if not self._rest:
            self._count += 1
        self._rest = data + bytes(self._rest)

    def __bool__(self) -> bool:
        return self._count > 0

    def discard(self) -> None:
        """Forget what is queued, and let who waits for room go."""
        if self.used:
            self._receiver.close()
        self._rest = b""
        self._set_count(0)

    def close(self) -> None:
        self.discard()
        if self.used:
            self._sender.close()

    def _set_count(self, count: int) -> None:
        self._count = count
        if self._room is not None:
            self._room.set()
            self._room = None
