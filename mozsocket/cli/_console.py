"""Standard input and output.

Input is read by a thread and output is written by one, as both may block.
"""

from __future__ import annotations

import codecs
import os
import re
import select
import sys
import threading
from collections.abc import AsyncIterator
from concurrent.futures import CancelledError
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.abc
import anyio.to_thread
from anyio.from_thread import BlockingPortal

from ._loop import Failure, words

__all__ = ("Console", "TerminalText")

READ_SIZE = 262_144
"""Bytes read from standard input at once."""


class TerminalText:
    """Bytes as text that a terminal can be trusted with: UTF-8, without control characters but line ends and tabs.

    What cannot be judged yet, a part of a character or a carriage return, is held back until more comes.
    """

    _CONTROL = re.compile(r"\r(?!\n)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        self._held = ""

    def feed(self, data: bytes, *, final: bool = False) -> str:
        """
        :param data: the next bytes
        :param final: whether they are the last
        :return: the text that can be shown now
        """
        text = self._held + self._decoder.decode(data, final)
        self._held = "\r" if text.endswith("\r") and not final else ""
        return self._CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text.removesuffix(self._held))


class Console:
    """Standard input and output, neither of which holds up the event loop.

    :ivar writing: while output is being written; still so after the event loop, if nobody reads it
    """

    def __init__(self) -> None:
        self.writing: bool = False
        self._input = descriptor(sys.stdin)
        self._output = descriptor(sys.stdout)
        self._portal: BlockingPortal | None = None
        self._chunks_in: anyio.abc.ObjectSendStream[bytes | OSError]
        self._chunks: anyio.abc.ObjectReceiveStream[bytes | OSError]
        self._reading = False
        self._next: bytes | None = None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        # Of length 0: the thread goes on reading when what it has read is asked for.
        self._chunks_in, self._chunks = anyio.create_memory_object_stream[bytes | OSError](0)
        async with self._chunks_in, self._chunks, BlockingPortal() as self._portal:
            try:
                yield
            finally:
                await self._portal.stop(cancel_remaining=True)

    async def peek(self) -> bytes:
        """Wait for the next input, which stays the next until it is taken; ``b""`` is the end.

        :raises Failure: if it cannot be read
        """
        if not self._reading:
            self._reading = True
            # A daemon: it may be stuck in a read when everything else is over.
            threading.Thread(target=self._read, name="standard input", daemon=True).start()
        if self._next is None:
            item = await self._chunks.receive()
            if isinstance(item, OSError):
                raise Failure(f"standard input: {words(item)}")
            self._next = item
        return self._next

    def take(self) -> None:
        self._next = None

    def _read(self) -> None:
        assert self._portal is not None
        item: bytes | OSError = b"-"
        try:
            while item and isinstance(item, bytes):
                item = read(self._input)
                self._portal.call(self._chunks_in.send, item)
        except (RuntimeError, CancelledError):
            pass  # the event loop is over

    async def write(self, data: bytes) -> None:
        """Write all of it.

        :raises Failure: if that cannot be done, such as when nobody will read it
        """
        self.writing = True
        try:
            await anyio.to_thread.run_sync(write, self._output, data, abandon_on_cancel=True)
        except OSError as exc:
            raise Failure(f"standard output: {words(exc)}") from exc
        self.writing = False

    def is_terminal(self) -> bool:
        return self._output is not None and os.isatty(self._output)


def descriptor(stream: Any) -> int | None:
    """Of a standard stream; None if it is closed, when Python has None for it and the number may be another file's."""
    try:
        return int(stream.fileno())
    except (AttributeError, OSError):
        return None


def read(fd: int | None) -> bytes | OSError:
    """The next bytes, ``b""`` at the end, or what is wrong. Blocks."""
    while fd is not None:
        try:
            return os.read(fd, READ_SIZE)
        except BlockingIOError:  # whoever shares the file has made it non-blocking
            select.select([fd], [], [])
        except OSError as exc:
            return exc
    return b""


def write(fd: int | None, data: bytes) -> None:
    """Write all of it. Blocks."""
    if fd is None:
        raise OSError("it is closed")
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            select.select([], [fd], [])
