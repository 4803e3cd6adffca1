"""Connecting a socket with standard input and output.

Nothing is read that the other side has no room for: input waits until the socket is drained, the socket is suspended
while output is written.
"""

from __future__ import annotations

import anyio

from .. import Event, InvalidStateError, TCPSocket, TCPSocketError, TCPSocketErrorEvent, TCPSocketEvent
from .._buffers import octets
from ._console import Console, TerminalText
from ._loop import ConnectionLost
from ._progress import Progress
from ._trace import peer_of

__all__ = ("Relay",)


class Relay:
    """Standard input to a socket, and the socket to standard output.

    :param socket: one whose first data is yet to come. If it stays open after the peer's end, the input is sent to its
        end all the same
    :param end_with_input: whether the peer is told of the end of the input; what it answers then is received to its end
    """

    def __init__(
        self, socket: TCPSocket[bytes | str], console: Console, progress: Progress, *, end_with_input: bool
    ) -> None:
        self._socket = socket
        self._console = console
        self._progress = progress
        self._end_with_input = end_with_input
        self._input_ended = False
        self._failure: TCPSocketError | None = None
        # One item is enough: the socket is suspended until it is written.
        self._received_in, self._received = anyio.create_memory_object_stream[bytes](1)
        socket.ondata = self._on_data
        socket.onend = self._on_end
        socket.onerror = self._on_error
        socket.onclose = lambda event: self._received_in.close()

    def _on_data(self, event: TCPSocketEvent[bytes | str]) -> None:
        self._socket.suspend()
        self._received_in.send_nowait(octets(event.data))

    def _on_end(self, event: Event[TCPSocket[bytes | str]]) -> None:
        self._end_with_input = True
        if self._input_ended:
            self._socket.send_eof()

    def _on_error(self, event: TCPSocketErrorEvent[TCPSocket[bytes | str]]) -> None:
        self._failure = event.error

    def close(self) -> None:
        """For one that may not have come to run."""
        self._received.close()

    async def run(self) -> None:
        """Until the socket has closed and all that it received is written.

        :raises ConnectionLost: if it fails
        :raises Failure: if the input or the output fails, within a group
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
                if not has_room:
                    await self._socket.drained()
            self._input_ended = True
            if self._end_with_input:
                self._socket.send_eof()
        except (InvalidStateError, TCPSocketError):
            pass  # it has ended, which its events tell

    async def _write_received(self) -> None:
        text = TerminalText() if self._console.is_terminal() else None
        with self._received:
            async for data in self._received:
                await self._console.write(data if text is None else text.feed(data).encode())
                self._progress.count("received", len(data))
                self._socket.resume()
        if text is not None:
            await self._console.write(text.feed(b"", final=True).encode())
