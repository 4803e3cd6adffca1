"""Standard input and output.

Input is read by a thread and output is written by one, as both may block. The thread that reads passes its input on
through a socketpair: the event loop waits for that as for any socket, and the thread need not know whether the loop
is still there.
"""

from __future__ import annotations

import codecs
import errno
import os
import re
import select
import signal
import socket
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import anyio.to_thread

from ._loop import Failure, words

__all__ = ("Console", "LineEnds", "TerminalText")

READ_SIZE = 262_144
"""Bytes read from standard input at once."""

JOB_CHANGE = 0.2
"""Seconds after which a job in the background looks whether it is in the foreground."""


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


class LineEnds:
    """Bytes with each line feed as carriage return and line feed, as SMTP, HTTP and others end their lines.

    Where there is a carriage return before it already, none is added.
    """

    def __init__(self) -> None:
        self._after_return = False  # whether the last byte was one

    def feed(self, data: bytes) -> bytes:
        """
        :param data: the next bytes
        :return: what they become
        """
        ended = re.sub(rb"(?<!\r)\n", b"\r\n", data)
        if self._after_return and data.startswith(b"\n"):
            ended = ended[1:]
        if data:
            self._after_return = data.endswith(b"\r")
        return ended


class Console:
    """Standard input and output, neither of which holds up the event loop.

    :param crlf: whether the lines of the input are to end with carriage return and line feed
    :ivar writing: while output is being written; still so after the event loop, if nobody reads it
    """

    def __init__(self, *, crlf: bool = False) -> None:
        self.writing: bool = False
        self._line_ends = LineEnds() if crlf else None
        self._input = descriptor(sys.stdin)
        self._output = descriptor(sys.stdout)
        self._source: socket.socket | None = None
        self._trouble: OSError | None = None
        self._next: bytes | None = None

    @contextmanager
    def open(self) -> Iterator[None]:
        try:
            yield
        finally:
            if self._source is not None:
                self._source.close()

    async def peek(self) -> bytes:
        """Wait for the next input, which stays the next until it is taken; ``b""`` is the end.

        :raises Failure: if it cannot be read
        """
        if self._next is None:
            source = self._source or self._start_reading()
            await anyio.wait_readable(source)
            chunk = source.recv(READ_SIZE)
            if self._trouble and not chunk:
                raise Failure(f"standard input: {words(self._trouble)}")
            self._next = chunk if self._line_ends is None else self._line_ends.feed(chunk)
        return self._next

    def take(self) -> None:
        self._next = None

    def _start_reading(self) -> socket.socket:
        self._source, sink = socket.socketpair()
        # What is read at once is then passed on at once.
        sink.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * READ_SIZE)
        # A daemon: it may be stuck in a read when everything else is over.
        threading.Thread(target=self._read, args=(sink,), name="standard input", daemon=True).start()
        return self._source

    def _read(self, sink: socket.socket) -> None:
        if hasattr(signal, "SIGTTIN"):  # by which a job in the background would be stopped, its connection with it
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTIN})
        with sink:
            try:
                while chunk := read(self._input):
                    if not passed_on(sink, chunk):
                        return
            except OSError as exc:
                self._trouble = exc

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

    def bytes_to_send(self) -> int | None:
        """How many bytes the input will be, where that is known; else None."""
        return self.input_size() if self._line_ends is None else None

    def input_size(self) -> int | None:
        """How many bytes of input there are, where it is a file; else None."""
        if self._input is None:
            return None
        status = os.fstat(self._input)
        return status.st_size - os.lseek(self._input, 0, os.SEEK_CUR) if stat.S_ISREG(status.st_mode) else None

    def is_terminal(self) -> bool:
        return self._output is not None and os.isatty(self._output)


def descriptor(stream: Any) -> int | None:
    """Of a standard stream; None if it is closed, when Python has None for it and the number may be another file's."""
    try:
        return int(stream.fileno())
    except (AttributeError, OSError):
        return None


def read(fd: int | None) -> bytes:
    """The next bytes, ``b""`` at the end. Blocks."""
    while fd is not None:
        try:
            return os.read(fd, READ_SIZE)
        except BlockingIOError:  # whoever shares the file has made it non-blocking
            select.select([fd], [], [])
        except OSError as exc:
            if exc.errno != errno.EIO or not is_of_another_job(fd):
                raise
            threading.Event().wait(JOB_CHANGE)
    return b""


def is_of_another_job(fd: int) -> bool:
    """Whether it is a terminal whose input is for another job: this one runs in the background, for now."""
    try:
        return os.tcgetpgrp(fd) != os.getpgrp()
    except OSError:
        return False


def passed_on(sink: socket.socket, chunk: bytes) -> bool:
    """Whether anybody is left to take it. Blocks."""
    try:
        sink.sendall(chunk)
    except OSError:
        return False
    return True


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
