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

    :ivar used: whether anything was ever queued
    """

    __slots__ = ("_receiver", "_sender", "used")

    def __init__(self) -> None:
        self.used = False
        self._sender: MemoryObjectSendStream[bytes]
        self._receiver: MemoryObjectReceiveStream[bytes]

    def put_nowait(self, data: bytes) -> bool:
        """:return: whether there was room, or it was discarded"""
        if not self.used:
            self.used = True
            self._sender, self._receiver = anyio.create_memory_object_stream[bytes](LENGTH)
        try:
            self._sender.send_nowait(data)
        except anyio.WouldBlock:
            return False
        except anyio.BrokenResourceError:
            pass
        return True

    async def put(self, data: bytes) -> None:
        """Wait for room.

        :raises anyio.BrokenResourceError: if it was discarded
        """
        await self._sender.send(data)

    def take(self) -> bytes | None:
        """The next of it; None if there is none, or it was discarded."""
        if not self.used:
            return None
        try:
            return self._receiver.receive_nowait()
        except (anyio.WouldBlock, anyio.ClosedResourceError):
            return None

    def __bool__(self) -> bool:
        return self.used and self._receiver.statistics().current_buffer_used > 0

    def discard(self) -> None:
        """Forget what is queued, and let who waits for room go."""
        if self.used:
            self._receiver.close()

    def close(self) -> None:
        if self.used:
            self._receiver.close()
            self._sender.close()
