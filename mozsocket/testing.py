"""For the tests of programs that use mozsocket: connected sockets, a recorder of events, and a peer that misbehaves.

It needs no test framework; with pytest, AnyIO's plugin runs such tests on each event loop::

    async def test_it_answers() -> None:
        async with connected_pair() as (client, server):
            serve(server)
            events = EventRecorder(client)
            client.send(b"PING\\r\\n")
            assert (await events.next("data")).data == b"PONG\\r\\n"
"""

from __future__ import annotations

import socket as stdlib_socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack, asynccontextmanager
from typing import Any, overload

import anyio
import anyio.lowlevel

from ._events import Event, EventTarget, types_of
from ._options import Bytes, Text
from ._socket import TCPSocket
from ._transport import Transport, configure
from ._unique import Referable, Unique

__all__ = ("EventRecorder", "Peer", "connected_pair", "connected_peer")

PATIENCE = 10
"""Seconds that a wait lasts at most, unless it is told otherwise: a test that fails must not hang."""


class EventRecorder(Unique, Referable):
    """Records the events of a socket, or of a server, and can be awaited.

    Those that its object has handlers of go on to them: the recorder listens after them. It sees what happens from its
    making on.

    :param target: what to listen to
    :param timeout: seconds that each wait lasts at most
    :raises TypeError: if the target is neither a socket nor a server
    :ivar events: all events so far, in order
    """

    def __init__(self, target: EventTarget, *, timeout: float = PATIENCE) -> None:
        if not isinstance(target, EventTarget):
            raise TypeError(f"EventRecorder() takes a TCPSocket or a TCPServerSocket, not {type(target).__name__}")
        self.events: list[Any] = []
        self._timeout = timeout
        self._seen = 0  # how many of them next() has passed
        self._more: anyio.Event | None = None  # what those wait for who wait
        for type_ in types_of(target):
            target.addEventListener(type_, self._record)

    def _record(self, event: Event[Any]) -> None:
        self.events.append(event)
        if self._more is not None:
            self._more.set()
            self._more = None

    @property
    def types(self) -> list[str]:
        """The types of the events so far; successive ``data`` counts once, as TCP may cut it anywhere."""
        types: list[str] = []
        for event in self.events:
            if not (event.type == "data" and types and types[-1] == "data"):
                types.append(event.type)
        return types

    @property
    def data(self) -> Any:
        """All data so far, joined: ``bytes``, or ``str`` with ``binaryType="string"``."""
        parts = [event.data for event in self.of("data")]
        return (parts[0][:0] if parts else b"").join(parts)

    def of(self, type: str) -> list[Any]:
        """The events of a type so far, in order."""
        return [event for event in self.events if event.type == type]

    async def next(self, type: str | None = None) -> Any:
        """Wait for the next event, counted from the one that the last call gave; it may have happened already.

        :param type: the type to wait for, which passes over others; None for any
        :return: the event
        :raises TimeoutError: if it does not come
        """

        def found() -> bool:
            while self._seen < len(self.events):
                self._seen += 1
                if type in (None, self.events[self._seen - 1].type):
                    return True
            return False

        await self.until(found)
        return self.events[self._seen - 1]

    async def first(self, type: str) -> Any:
        """Wait for the first event of a type; it may have happened already.

        :return: the event
        :raises TimeoutError: if it does not come
        """
        await self.until(lambda: bool(self.of(type)))
        return self.of(type)[0]

    async def until(self, reached: Callable[[], bool]) -> None:
        """Wait until something is so, looking again with each event.

        :raises TimeoutError: if it does not come to that
        """
        with anyio.move_on_after(self._timeout) as limit:
            while not reached():
                self._more = self._more or anyio.Event()
                await self._more.wait()
        if limit.cancelled_caught:
            raise TimeoutError(f"not within {self._timeout} seconds; so far there was {self.types or 'nothing'}")

    async def data_until_close(self) -> Any:
        """Wait for ``close``, and give all the data there was.

        :raises TCPSocketError: if the connection was lost
        :raises TimeoutError: if it is not closed
        """
        await self.first("close")
        for event in self.of("error"):
            raise event.error
        return self.data


@overload
def connected_pair(
    *, binaryType: Bytes = ..., **options: Any
) -> AbstractAsyncContextManager[tuple[TCPSocket, TCPSocket]]: ...
@overload
def connected_pair(
    *, binaryType: Text, **options: Any
) -> AbstractAsyncContextManager[tuple[TCPSocket[str], TCPSocket[str]]]: ...
@asynccontextmanager
async def connected_pair(**options: Any) -> AsyncIterator[tuple[TCPSocket[Any], TCPSocket[Any]]]:
    """Two open sockets that are connected to each other, in this process and without the network's delays.

    Leaving the block closes both: in order, or immediately if it is left by an exception.

    :param options: of :meth:`TCPSocket.from_socket`, for both
    """
    async with AsyncExitStack() as stack:
        ends = [stack.enter_context(sock) for sock in stdlib_socket.socketpair()]
        pair = [TCPSocket.from_socket(sock, **options) for sock in ends]
        for member in pair:
            await stack.enter_async_context(member)
        for member in pair:
            await member.opened()
        yield pair[0], pair[1]
        for member in pair:
            member.close()


class Peer(Unique, Referable):
    """The other end of a connection, which does as it is told, and be it bad manners. A plain socket, without handlers,
    buffers or tasks: what it is not told to read stays where it is.

    Made by :func:`connected_peer`.

    :param sock: a connected socket, which belongs to it from then on
    """

    def __init__(self, sock: stdlib_socket.socket) -> None:
        configure(sock)
        self._transport = Transport(sock)

    async def send(self, data: bytes) -> None:
        """Send it, and wait until the operating system has taken it.

        :raises OSError: if the connection was lost
        :raises anyio.ClosedResourceError: if the peer was closed
        """
        await self._begin()
        view = memoryview(data)
        while view:
            sent = self._transport.send([view])
            view = view[sent:]
            if not sent:
                await self._transport.watched.wait_writable()

    async def _begin(self) -> None:
        await anyio.lowlevel.checkpoint()
        if self._transport.closed:
            raise anyio.ClosedResourceError

    async def trickle(self, data: bytes, pause: float = 0) -> None:
        """Send it one byte at a time.

        :param pause: seconds between them; with 0 others run, and may read each by itself
        """
        for index in range(len(data)):
            await self.send(data[index : index + 1])
            await anyio.sleep(pause)

    async def receive(self, size: int = 65536) -> bytes:
        """What has arrived, at most so many bytes; ``b""`` at the end. Some is waited for.

        :raises ConnectionResetError: if the connection was reset
        :raises anyio.ClosedResourceError: if the peer was closed
        """
        await self._begin()
        while (data := self._transport.receive(size)) is None:
            await self._transport.watched.wait_readable()
        return data

    async def receive_exactly(self, size: int) -> bytes:
        """So many bytes.

        :raises EOFError: if the connection ends before
        """
        data = bytearray()
        while len(data) < size:
            part = await self.receive(size - len(data))
            if not part:
                raise EOFError(f"the connection ended after {len(data)} of {size} bytes")
            data += part
        return bytes(data)

    async def receive_all(self) -> bytes:
        """Everything up to the end."""
        parts = []
        while part := await self.receive(1 << 20):
            parts.append(part)
        return b"".join(parts)

    async def clog(self) -> None:
        """Send until nothing more is taken: the other side does not read."""
        while self._transport.send([bytes(65536)]):
            await anyio.lowlevel.checkpoint()

    def send_eof(self) -> None:
        """End this side, and go on receiving."""
        self._transport.send_eof()

    def reset(self) -> None:
        """Close with a reset (RST): the other side loses what it has not read yet. Once closed, it does nothing."""
        self._transport.reset()

    def close(self) -> None:
        """Close without a word; if there is something unread, that is a reset. Closing twice does no harm."""
        self._transport.close(tell=False)


@overload
def connected_peer(
    *, binaryType: Bytes = ..., **options: Any
) -> AbstractAsyncContextManager[tuple[TCPSocket, Peer]]: ...
@overload
def connected_peer(*, binaryType: Text, **options: Any) -> AbstractAsyncContextManager[tuple[TCPSocket[str], Peer]]: ...
@asynccontextmanager
async def connected_peer(**options: Any) -> AsyncIterator[tuple[TCPSocket[Any], Peer]]:
    """An open socket and the peer that it is connected to, over TCP on this machine, as not all bad manners can be had
    without. Leaving the block closes both: the socket in order if the peer has taken all that was sent.

    :param options: of :meth:`TCPSocket.from_socket`
    """
    with ExitStack() as stack:
        with stdlib_socket.create_server(("127.0.0.1", 0)) as listener:
            ours = stack.enter_context(stdlib_socket.create_connection(listener.getsockname()))
            peer = Peer(listener.accept()[0])
        stack.callback(peer.close)
        async with TCPSocket.from_socket(ours, **options) as socket:
            await socket.opened()
            yield socket, peer
            if socket.bufferedAmount:
                socket.closeImmediately()
            else:
                socket.close()
            peer.close()
