"""A connection as an AnyIO stream: what ``receive()`` and ``send()`` do in place of the handlers.

Whoever calls them does the reading and writing, with no task switch. What the operating system would not take at once
is left to the writer, as for the handlers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
from anyio import BrokenResourceError, BusyResourceError, ClosedResourceError, EndOfStream
from anyio.abc import ByteStream

from ._eagerness import Eagerness
from ._errors import InvalidStateError, TCPSocketError
from ._options import check_count
from ._state import ReadyState, octets
from ._unique import Unique

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from ._socket import TCPSocket

__all__ = ("SocketStream",)

MAX_READ = 262_144
"""Bytes read at once, however many may be received: to have room for more costs more than to read again."""

PEER_PATIENCE = 0.25
"""Seconds that closing waits for the peer to close too. As a rule it has done so after one round trip."""

_CONNECTING = ReadyState.CONNECTING
_OPEN = ReadyState.OPEN


class SocketStream(Unique, ByteStream):
    """What :meth:`TCPSocket.stream` gives. For what the methods raise see there."""

    __slots__ = ("_closed", "_eagerness", "_ended", "_sending", "_socket", "receiving")

    def __init__(self, socket: TCPSocket) -> None:
        self._socket = socket
        self.receiving = False  # whether a task is
        self._sending = False
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
        if self.receiving:
            raise BusyResourceError("receiving from")
        self.receiving = True
        try:
            data = await self._receive(max_bytes)
        finally:
            self.receiving = False
        if not data:
            raise EndOfStream
        return data

    async def _receive(self, max_bytes: int) -> bytes:
        """What has arrived; ``b""`` at the peer's end."""
        socket = self._socket
        waited = self._eagerness.look()  # every call is a checkpoint: where something is expected by then, before it
        if waited:
            await anyio.lowlevel.checkpoint()
        while True:
            if not (socket._is_streaming() or self._is_something_left()):
                await self._until_there_is_something()
            try:
                data = self._look(max_bytes)
            except OSError as exc:
                await socket._lose(exc)
                continue  # which tells
            if data is None:
                await self._wait()
            elif waited:
                return data
            else:  # and else after it; one that is cancelled there loses nothing
                if data:
                    socket._inbox.put_back(data)
                await anyio.lowlevel.checkpoint()
                if not data:
                    return data  # the end, whatever has become of the connection meanwhile
            waited = True

    async def _wait(self) -> None:
        """Wait until there may be something."""
        if self._eagerness.look():
            await anyio.lowlevel.checkpoint()
            return
        assert self._socket._transport is not None
        try:
            await self._socket._transport.wait_readable()
        except ClosedResourceError:
            pass  # which the next look tells

    async def _until_there_is_something(self) -> None:
        socket = self._socket
        while not (socket._is_streaming() or self._is_something_left()):
            self._raise_if_over()
            if socket._failure is None:
                await self._connected()
            else:  # what the peer sent before is being read
                await socket._wait_until(lambda: self._is_something_left() or socket._is_shut())

    def _is_something_left(self) -> bool:
        """Whether there is something to be had of a connection that is lost: what came before, or that it had ended."""
        socket = self._socket
        if self._closed or not (socket._state is _OPEN or socket._failure is not None):
            return False
        return self._ended or (bool(socket._inbox) and (socket._tls is None or socket._tls.established))

    def _look(self, max_bytes: int) -> bytes | None:
        """What has arrived; ``b""`` at the peer's end, None if nothing is there.

        :raises OSError: if the connection was lost
        """
        if self._ended:
            return b""
        socket = self._socket
        assert socket._transport is not None
        data = socket._inbox.take(max_bytes)
        if data is None:
            data = socket._transport.receive(min(max_bytes, MAX_READ))
            if data is None:
                return None
        self._eagerness.found()
        if not data:
            self._end()
        return data

    def _end(self) -> None:
        self._ended = self._socket._peer_ended = True
        self._socket._notify()

    async def send(self, item: Buffer) -> None:
        """Send bytes, and wait until the operating system has taken them all.

        A ``send()`` that is cancelled while it waits for room is sent all the same: nothing is torn out of the stream.
        The next one waits until nothing is left of it; cancelled in that wait, it has sent nothing.

        :param item: bytes-like
        :raises anyio.BusyResourceError: if another task is sending
        """
        data = item if type(item) is bytes else _octets(item)
        self._begin_sending()
        try:
            await anyio.lowlevel.checkpoint_if_cancelled()
            if not self._may_send():
                await self._ready_to_send()
            if self._socket._buffer.finished:
                raise ClosedResourceError("send() after send_eof()")
            if self._socket._hand_over(data):
                await anyio.lowlevel.checkpoint()  # only now: so the answer is here sooner
            else:
                await self._until(lambda: not self._socket._buffer.awaited)
        finally:
            self._sending = False

    def _begin_sending(self) -> None:
        if self._sending:
            raise BusyResourceError("sending to")
        self._sending = True

    async def send_eof(self) -> None:
        """Tell the peer that no more will come, when everything is sent; receiving goes on.

        It waits until nothing is left of a :meth:`send` that was cancelled; cancelled in that wait it has told nothing.

        :raises anyio.BusyResourceError: if another task is sending
        """
        self._begin_sending()
        try:
            await anyio.lowlevel.checkpoint()
            await self._ready_to_send()
            self._socket.send_eof()
            await self._until(lambda: self._socket._eof_sent)
        finally:
            self._sending = False

    def _may_send(self) -> bool:
        """Whether there is nothing to wait for first, nor to raise."""
        socket = self._socket
        return socket._state is _OPEN and socket._failure is None and not (self._closed or socket._buffer.awaited)

    async def _ready_to_send(self) -> None:
        """Wait until there is a connection, and nothing is left of a send() that was given up."""
        buffer = self._socket._buffer
        if self._socket._state is _CONNECTING:
            await self._connected()
        await self._until(lambda: buffer.finished or not buffer.awaited)
        await anyio.lowlevel.checkpoint_if_cancelled()  # which may have come in the turn that it was reached in

    async def _until(self, reached: Callable[[], bool]) -> None:
        socket = self._socket
        await socket._wait_until(lambda: socket._is_shut() or self._closed or (socket._failure is None and reached()))
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
        """Close the socket in order, so that what was sent arrives, but within ``linger`` seconds, whatever the peer
        does: what it has not taken by then is dropped. If something is left of a :meth:`send`, which was cancelled or
        is waiting still, it closes immediately, and so it does when it is cancelled itself.

        The socket is closed when it returns. Only where nothing is missing but that the peer closes too, and that takes
        its time, it goes on waiting for that by itself, within ``linger``.
        """
        self._closed = True
        lingers = False
        try:
            await anyio.lowlevel.checkpoint()
            lingers = await self._close_in_order()
        finally:
            if not lingers:
                with anyio.CancelScope(shield=True):
                    await self._close_now()

    async def _close_in_order(self) -> bool:
        """:return: whether it is only the peer's end that is missing, for which nobody need wait"""
        socket = self._socket
        if socket._state is _CONNECTING or socket._is_shut() or socket._buffer.awaited:
            return False  # there is nothing to close in order, or a peer that may never take what is left
        socket.close()
        socket._send_last()  # for once, before there is any time limit
        with anyio.move_on_after(socket._options.linger):
            await socket._wait_until(lambda: socket._eof_sent or socket._is_shut())
            with anyio.move_on_after(PEER_PATIENCE):
                await socket._wait_until(socket._is_shut)
            return not socket._is_shut()
        return False

    async def _close_now(self) -> None:
        """Close immediately what is not closed yet, and wait for the few turns until the descriptor is closed too."""
        socket = self._socket
        socket.closeImmediately()
        await socket._wait_until(lambda: socket._attempt is None)
        socket._shut()
        if socket._transport is not None:
            await socket._transport.wait_closed()


def _octets(item: object) -> bytes:
    """:raises TypeError: if it is not bytes-like"""
    if not isinstance(item, str):
        try:
            return octets(item)
        except TypeError:
            pass
    raise TypeError(f"send() takes a bytes-like object, not {type(item).__name__}")
