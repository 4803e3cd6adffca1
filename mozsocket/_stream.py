"""A connection as an AnyIO stream: what ``receive()`` and ``send()`` do in place of the handlers.

Whoever calls them does the reading and writing, with no task switch. What the operating system would not take at once
is left to the writer, as for the handlers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
from anyio import BrokenResourceError, ClosedResourceError, EndOfStream, ResourceGuard
from anyio.abc import ByteStream

from ._eagerness import Eagerness
from ._errors import InvalidStateError, TCPSocketError
from ._options import check_count
from ._state import ReadyState, octets

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from ._socket import TCPSocket

__all__ = ("SocketStream",)

_CONNECTING = ReadyState.CONNECTING
_OPEN = ReadyState.OPEN


class SocketStream(ByteStream):
    """What :meth:`TCPSocket.stream` gives. For what the methods raise see there."""

    __slots__ = ("_closed", "_eagerness", "_ended", "_receiving", "_sending", "_socket")

    def __init__(self, socket: TCPSocket) -> None:
        self._socket = socket
        self._receiving = ResourceGuard("receiving from")
        self._sending = ResourceGuard("sending to")
        self._eagerness = Eagerness()
        self._ended = False  # whether the peer has
        self._closed = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._socket!r}>"

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """Those of the socket."""
        return self._socket.extra_attributes

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """What has arrived, of which some is waited for.

        :param max_bytes: bytes at most
        :raises anyio.EndOfStream: at the peer's end
        :raises anyio.BusyResourceError: if another task is receiving
        """
        if type(max_bytes) is not int or max_bytes < 1:
            check_count("max_bytes", max_bytes, 1)
        with self._receiving:
            waited = False
            while (data := await self._receive(max_bytes)) is None or not waited:
                if data is None:
                    await self._wait()
                else:  # every call is a checkpoint; one that is cancelled there loses nothing
                    if data:
                        self._socket._inbox.put_back(data)
                    await anyio.lowlevel.checkpoint()
                waited = True
        if not data:
            raise EndOfStream
        return data

    async def _receive(self, max_bytes: int) -> bytes | None:
        """What has arrived; ``b""`` at the peer's end, None if nothing is there."""
        socket = self._socket
        while not socket._is_streaming():
            self._raise_if_over()
            await self._connected()
        assert socket._transport is not None
        if self._ended:
            return b""
        data = socket._inbox.take(max_bytes)
        if data is None:
            try:
                data = socket._transport.receive(max_bytes)
            except OSError as exc:
                await socket._lose(exc)
                self._raise_if_over()
        if data is not None:
            self._eagerness.found()
            if not data:
                self._end()
        return data

    async def _wait(self) -> None:
        """Wait until there may be something."""
        transport = self._socket._transport
        if self._eagerness.look() or transport is None or transport.closed:
            await anyio.lowlevel.checkpoint()
            return
        try:
            await transport.wait_readable()
        except ClosedResourceError:
            pass  # which the next look tells

    def _end(self) -> None:
        self._ended = self._socket._peer_ended = True
        self._socket._notify()

    async def send(self, item: Buffer) -> None:
        """Send bytes, and wait until the operating system has taken them all.

        A cancelled ``send()`` is sent all the same: nothing is torn out of the stream.

        :param item: bytes-like
        :raises anyio.BusyResourceError: if another task is sending
        """
        if isinstance(item, str):
            raise TypeError("send() takes a bytes-like object, not str")
        data = octets(item, 0, None)
        with self._sending:
            await anyio.lowlevel.checkpoint_if_cancelled()
            if not self._may_send():
                await self._ready_to_send()
            buffer = self._socket._buffer
            if buffer.finished:
                raise ClosedResourceError("send() after send_eof()")
            buffer.add(data)
            self._socket._flush_soon()
            if buffer.amount or self._socket._failure is not None:
                await self._until(lambda: not buffer.amount)
            else:
                await anyio.lowlevel.checkpoint()  # only now: so the answer is here sooner

    async def send_eof(self) -> None:
        """Tell the peer that no more will come, when everything is sent; receiving goes on.

        :raises anyio.BusyResourceError: if another task is sending
        """
        with self._sending:
            await anyio.lowlevel.checkpoint()
            await self._ready_to_send()
            self._socket.send_eof()
            await self._until(lambda: self._socket._eof_sent)

    def _may_send(self) -> bool:
        socket = self._socket
        return socket._state is _OPEN and socket._failure is None and not self._closed

    async def _ready_to_send(self) -> None:
        if self._socket._state is _CONNECTING:
            await self._connected()
        self._raise_if_over()
        if self._socket._failure is not None:
            self._raise_lost()

    async def _until(self, reached: Callable[[], bool]) -> None:
        socket = self._socket
        await socket._wait_until(lambda: socket._failure is not None or self._closed or reached())
        self._raise_if_over()
        if socket._failure is not None:
            self._raise_lost()

    async def _connected(self) -> None:
        """Wait until there is a connection to read from."""
        socket = self._socket
        try:
            await socket.opened()
            if socket.ssl:
                await socket.secured()
        except TCPSocketError as exc:
            raise BrokenResourceError(str(exc)) from exc
        except InvalidStateError:
            raise ClosedResourceError from None

    def _raise_if_over(self) -> None:
        """:raises anyio.BrokenResourceError: if the connection is lost
        :raises anyio.ClosedResourceError: if it, or the stream, was closed
        """
        socket = self._socket
        if self._closed:
            raise ClosedResourceError
        if socket._state is _CONNECTING or (socket._state is _OPEN and not socket._is_shut()):
            return
        if socket._failure is None:
            raise ClosedResourceError
        self._raise_lost()

    def _raise_lost(self) -> None:
        assert self._socket._failure is not None
        self._socket._failure_seen = True
        raise BrokenResourceError(str(self._socket._failure)) from self._socket._failure.again()

    async def aclose(self) -> None:
        """Close the socket, in order: what was sent arrives. It goes on closing by itself once all is sent, for
        ``linger`` seconds at most. Cancelled, it closes immediately.
        """
        socket = self._socket
        self._closed = True
        socket.close()
        try:
            await anyio.lowlevel.checkpoint()
            await socket._wait_until(lambda: socket._eof_sent or socket._is_shut())
        except anyio.get_cancelled_exc_class():
            socket.closeImmediately()
            raise
