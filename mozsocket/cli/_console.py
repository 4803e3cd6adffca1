"""Standard input and output.

One thread reads the input and another writes the output, as both may block. The reading thread passes its input on
through a socketpair: the event loop waits for that as for any socket, and the thread need not know whether the loop
still runs.
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

__all__ = ("Console", "LineEnds", "TerminalText", "occupy_standard_descriptors")

READ_SIZE = 262_144
"""The most bytes that one read takes from standard input."""

JOB_CHANGE = 0.2
"""Seconds between a background job's checks whether it is now in the foreground."""


def occupy_standard_descriptors() -> None:
    """Open the null device in place of standard input, output and error, as far as they are closed.

    Otherwise a socket gets the number: libuv, within uvloop, aborts the process when it closes that, and what is
    printed may reach a peer.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it gets the lowest number that is free, which is this one


class TerminalText:
    """Decodes bytes to text that is safe to print on a terminal.

    The bytes are decoded as UTF-8; invalid bytes and control characters, except line ends and tabs, are escaped. An
    incomplete character or a final carriage return is held back until more arrives, as its meaning depends on that.
    """

    _CONTROL = re.compile(r"\r(?!\n)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        self._held = ""

    def feed(self, data: bytes, *, final: bool = False) -> str:
        """
        Decode the next bytes.

        :param final: whether they are the last, so that nothing is held back
        :return: the text that can be shown now
        """
        text = self._held + self._decoder.decode(data, final)
        self._held = "\r" if text.endswith("\r") and not final else ""
        return self._CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text.removesuffix(self._held))


class LineEnds:
    """Turns each line feed into carriage return and line feed, as SMTP, HTTP and others end their lines.

    A line feed that already follows a carriage return is left alone.
    """

    def __init__(self) -> None:
        self._after_return = False  # whether the last byte was a carriage return

    def feed(self, data: bytes) -> bytes:
        """Convert the next bytes."""
        ended = re.sub(rb"(?<!\r)\n", b"\r\n", data)
        if self._after_return and data.startswith(b"\n"):
            ended = ended[1:]
        if data:
            self._after_return = data.endswith(b"\r")
        return ended


class Console:
    """Standard input and output, used without blocking the event loop.

    :param crlf: whether the lines of the input are to end with carriage return and line feed
    :ivar writing: whether output is being written; still True after the event loop has ended if nobody reads it
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
        """A block at whose end the input is closed."""
        try:
            yield
        finally:
            if self._source is not None:
                self._source.close()

    async def peek(self) -> bytes:
        """Wait for the next input and return it, again and again until :meth:`take` is called.

        :return: the bytes, or ``b""`` at the end of the input
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
        """Mark the input that :meth:`peek` returned as used."""
        self._next = None

    def _start_reading(self) -> socket.socket:
        self._source, sink = socket.socketpair()
        # So that one read fits into the buffer, and is passed on without waiting.
        sink.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * READ_SIZE)
        # A daemon: it may still be blocked in a read when everything else has ended.
        threading.Thread(target=self._read, args=(sink,), name="standard input", daemon=True).start()
        return self._source

    def _read(self, sink: socket.socket) -> None:
        if hasattr(signal, "SIGTTIN"):  # it would stop a background job that reads, and its connection too
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTIN})
        with sink:
            try:
                while chunk := read(self._input):
                    if not passed_on(sink, chunk):
                        return
            except OSError as exc:
                self._trouble = exc

    async def write(self, data: bytes) -> None:
        """Write all the bytes to standard output.

        :raises Failure: if it cannot be written, such as when its reader has closed
        """
        self.writing = True
        try:
            await anyio.to_thread.run_sync(write, self._output, data, abandon_on_cancel=True)
        except OSError as exc:
            raise Failure(f"standard output: {words(exc)}") from exc
        self.writing = False

    def bytes_to_send(self) -> int | None:
        """The number of bytes that will be sent, if known in advance; else None."""
        return self.input_size() if self._line_ends is None else None

    def input_size(self) -> int | None:
        """The number of bytes left in the input if it is a file; else None."""
        if self._input is None:
            return None
        status = os.fstat(self._input)
        return status.st_size - os.lseek(self._input, 0, os.SEEK_CUR) if stat.S_ISREG(status.st_mode) else None

    def is_terminal(self) -> bool:
        return self._output is not None and os.isatty(self._output)


def descriptor(stream: Any) -> int | None:
    """The file descriptor of a standard stream, or None if the stream is closed.

    ``sys.stdin`` and ``sys.stdout`` are None then, and descriptor 0 or 1 may belong to another file.
    """
    try:
        return int(stream.fileno())
    except (AttributeError, OSError):
        return None


def read(fd: int | None) -> bytes:
    """Read the next bytes, or ``b""`` at the end. Blocks."""
    while fd is not None:
        try:
            return os.read(fd, READ_SIZE)
        except BlockingIOError:  # another process that shares the file has made it non-blocking
            select.select([fd], [], [])
        except OSError as exc:
            if exc.errno != errno.EIO or not is_of_another_job(fd):
                raise
            threading.Event().wait(JOB_CHANGE)
    return b""


def is_of_another_job(fd: int) -> bool:
    """Whether the descriptor is a terminal that another job reads from: this process runs in its background."""
    try:
        return os.tcgetpgrp(fd) != os.getpgrp()
    except OSError:
        return False


def passed_on(sink: socket.socket, chunk: bytes) -> bool:
    """Send a chunk to the event loop's side; False if that side is closed. Blocks."""
    try:
        sink.sendall(chunk)
    except OSError:
        return False
    return True


def write(fd: int | None, data: bytes) -> None:
    """Write all the bytes. Blocks."""
    if fd is None:
        raise OSError("it is closed")
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            select.select([], [fd], [])
