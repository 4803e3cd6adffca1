"""Relays between a socket and standard input and output.

Neither side is read faster than the other accepts data: input is not read until the socket has drained, and the socket
is suspended while much output is yet to be written.
"""

from __future__ import annotations

import math

import anyio

from .. import Event, InvalidStateError, TCPSocket, TCPSocketError, TCPSocketErrorEvent, TCPSocketEvent
from .._buffers import octets
from ._console import Console, TerminalText
from ._loop import ConnectionLost
from ._progress import Progress
from ._trace import Trace, peer_of

__all__ = ("Relay",)

UNWRITTEN = 524_288
"""The socket is suspended when this many bytes wait for the writing thread, which may be writing as many."""


class Relay:
    """Sends standard input to a socket, and writes what it receives to standard output.

    :param socket: a socket that has not received data yet. With ``allow_half_open`` all of the input is sent even if
        the peer ends its side first
    :param name: the name of the socket in the trace
    :param end_with_input: whether to half-close the socket at the end of the input; the peer can still answer
    """

    def __init__(
        self,
        socket: TCPSocket[bytes | str],
        name: str,
        console: Console,
        progress: Progress,
        trace: Trace,
        *,
        end_with_input: bool,
    ) -> None:
        self._socket = socket
        self._name = name
        self._trace = trace
        self._console = console
        self._progress = progress
        self._end_with_input = end_with_input
        self._input_ended = False
        self._failure: TCPSocketError | None = None
        # Without a limit in items, as _on_data() limits the bytes in it.
        self._received_in, self._received = anyio.create_memory_object_stream[bytes](math.inf)
        self._unwritten = 0  # bytes in that stream
        self._is_held_back = False
        socket.ondata = self._on_data
        socket.onend = self._on_end
        socket.onerror = self._on_error
        socket.onclose = lambda event: self._received_in.close()

    def _on_data(self, event: TCPSocketEvent[bytes | str]) -> None:
        data = octets(event.data)
        self._received_in.send_nowait(data)
        self._unwritten += len(data)
        if self._unwritten >= UNWRITTEN and not self._is_held_back:
            self._is_held_back = True
            self._socket.suspend()

    def _take_received(self, data: bytes) -> bytes:
        """Add everything received so far to the data: one call of the writing thread then writes it all."""
        pieces = [data]
        try:
            while True:
                pieces.append(self._received.receive_nowait())
        except (anyio.WouldBlock, anyio.EndOfStream):
            pass
        self._unwritten = 0
        if self._is_held_back:
            self._is_held_back = False
            self._socket.resume()
        return b"".join(pieces)

    def _on_end(self, event: Event[TCPSocket[bytes | str]]) -> None:
        self._end_with_input = True
        if self._input_ended:
            self._socket.send_eof()

    def _on_error(self, event: TCPSocketErrorEvent[TCPSocket[bytes | str]]) -> None:
        self._failure = event.error

    def close(self) -> None:
        """Release what is held; needed if :meth:`run` may not have been called."""
        self._received.close()

    async def run(self) -> None:
        """Relay until the socket has closed and everything it received is written.

        :raises ConnectionLost: if the connection fails
        :raises ExceptionGroup: of a :exc:`Failure`, if the input or the output fails
        """
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._send_input)
            await self._write_received()
            tasks.cancel_scope.cancel()
        if self._failure is not None:
            raise ConnectionLost(f"connection with {peer_of(self._socket)}: {self._failure.detail}")

    async def _send_input(self) -> None:
        try:
            while chunk := await self._console.peek():
                has_room = self._socket.send(chunk)
                self._console.take()
                self._progress.count("sent", len(chunk))
                self._trace.sent(self._name, chunk)
                if not has_room:
                    await self._socket.drained()
            self._input_ended = True
            if self._end_with_input:
                self._socket.send_eof()
        except (InvalidStateError, TCPSocketError):
            pass  # the connection has ended, which its events report

    async def _write_received(self) -> None:
        text = TerminalText() if self._console.is_terminal() else None
        with self._received:
            async for first in self._received:
                data = self._take_received(first)
                await self._console.write(data if text is None else text.feed(data).encode())
                self._progress.count("received", len(data))
        if text is not None:
            await self._console.write(text.feed(b"", final=True).encode())
