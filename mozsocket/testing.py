"""Helpers for testing programs that use mozsocket: connected sockets, a recorder of events, and a misbehaving peer.

No test framework is needed. With pytest, AnyIO's plugin runs asynchronous tests on each event loop::

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
"""Default limit of each wait, in seconds: a test that fails must not hang."""


class EventRecorder(Unique, Referable):
    """Records the events of a socket or a server, and lets a test wait for them.

    The recorder uses ``addEventListener()``, so the object's own handlers still run, and run first. Events from before
    the recorder was created are not recorded.

    :param target: the socket or server whose events are recorded
    :param timeout: the limit of each wait, in seconds
    :raises TypeError: if the target is neither a socket nor a server
    :ivar events: all events so far, in order
    """

    def __init__(self, target: EventTarget, *, timeout: float = PATIENCE) -> None:
        if not isinstance(target, EventTarget):
            raise TypeError(f"EventRecorder() takes a TCPSocket or a TCPServerSocket, not {type(target).__name__}")
        self.events: list[Any] = []
        self._timeout = timeout
        self._seen = 0  # how many of the events next() has passed
        self._more: anyio.Event | None = None  # set at the next event, if anyone waits
        self._types = types_of(target)
        for type_ in self._types:
            target.addEventListener(type_, self._record)

    def _check_type(self, type: str) -> None:
        if type not in self._types:
            raise ValueError(f"there are no {type!r} events here, only {', '.join(self._types)}")

    def _record(self, event: Event[Any]) -> None:
        self.events.append(event)
        if self._more is not None:
            self._more.set()
            self._more = None

    @property
    def types(self) -> list[str]:
        """The types of the events so far. Successive ``data`` events count once, as TCP may split data anywhere."""
        types: list[str] = []
        for event in self.events:
            if not (event.type == "data" and types and types[-1] == "data"):
                types.append(event.type)
        return types

    @property
    def data(self) -> Any:
        """All data received so far, joined: ``bytes``, or ``str`` with ``binaryType="string"``."""
        chunks = [event.data for event in self.events if event.type == "data"]
        return (chunks[0][:0] if chunks else b"").join(chunks)

    def of(self, type: str) -> list[Any]:
        """The events of one type so far, in order.

        :raises ValueError: if the target has no events of that type
        """
        self._check_type(type)
        return [event for event in self.events if event.type == type]

    async def next(self, type: str | None = None) -> Any:
        """Wait for the next event after the one that the last call returned; it may have been recorded already.

        :param type: the type to wait for, skipping events of other types; None for any
        :return: the event
        :raises TimeoutError: if it does not occur in time
        :raises ValueError: if the target has no events of that type
        """
        if type is not None:
            self._check_type(type)

        def found() -> bool:
            while self._seen < len(self.events):
                self._seen += 1
                if type in (None, self.events[self._seen - 1].type):
                    return True
            return False

        await self.until(found)
        return self.events[self._seen - 1]

    async def first(self, type: str) -> Any:
        """Wait for the first event of a type; it may have been recorded already.

        :return: the event
        :raises TimeoutError: if it does not occur in time
        :raises ValueError: if the target has no events of that type
        """
        await self.until(lambda: bool(self.of(type)))
        return self.of(type)[0]

    async def until(self, reached: Callable[[], bool]) -> None:
        """Wait until a condition is true. It is checked now and after each event.

        :param reached: a function that returns whether the condition is true
        :raises TimeoutError: if it is not true in time
        """
        with anyio.move_on_after(self._timeout) as limit:
            while not reached():
                self._more = self._more or anyio.Event()
                await self._more.wait()
        if limit.cancelled_caught:
            raise TimeoutError(f"not within {self._timeout} seconds; events so far: {self.types or 'none'}")

    async def data_until_close(self) -> Any:
        """Wait for ``close``, and return all the data received.

        :raises TCPSocketError: if the connection was lost
        :raises TimeoutError: if it is not closed in time
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
    """Two open sockets that are connected to each other, within this process and without the network's delays.

    Leaving the block closes both: gracefully, or immediately if it is left by an exception.

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
    """The other end of a connection, which the test controls and can make misbehave.

    It is a plain socket without handlers, buffers or tasks: it reads and sends only when the test calls a method. It is
    created by :func:`connected_peer`.

    :param sock: a connected socket, which the peer owns from then on
    """

    def __init__(self, sock: stdlib_socket.socket) -> None:
        configure(sock)
        self._transport = Transport(sock)

    async def send(self, data: bytes) -> None:
        """Send data, and wait until the operating system has accepted all of it.

        :raises OSError: if the connection was lost
        :raises anyio.ClosedResourceError: if the peer was closed
        """
        await self._begin()
        view = memoryview(data)
        while view:
            sent = self._transport.sendmsg([view])
            view = view[sent:]
            if not sent:
                await self._transport.watched.wait_writable()

    async def _begin(self) -> None:
        await anyio.lowlevel.checkpoint()
        if self._transport.closed:
            raise anyio.ClosedResourceError

    async def trickle(self, data: bytes, pause: float = 0) -> None:
        """Send data one byte at a time.

        :param pause: seconds after each byte; with 0 only other tasks run in between, and may read each byte separately
        """
        for index in range(len(data)):
            await self.send(data[index : index + 1])
            await anyio.sleep(pause)

    async def receive(self, size: int = 65536) -> bytes:
        """Wait for data, and return what has arrived.

        :param size: the most bytes to return
        :return: at least one byte, or ``b""`` at EOF
        :raises ConnectionResetError: if the connection was reset
        :raises anyio.ClosedResourceError: if the peer was closed
        """
        await self._begin()
        while (data := self._transport.receive(size)) is None:
            await self._transport.watched.wait_readable()
        return data

    async def receive_exactly(self, size: int) -> bytes:
        """Receive this number of bytes.

        :raises EOFError: if the connection ends before that
        """
        data = bytearray()
        while len(data) < size:
            chunk = await self.receive(size - len(data))
            if not chunk:
                raise EOFError(f"the connection ended after {len(data)} of {size} bytes")
            data += chunk
        return bytes(data)

    async def receive_all(self) -> bytes:
        """Receive everything up to EOF."""
        chunks = []
        while chunk := await self.receive(1 << 20):
            chunks.append(chunk)
        return b"".join(chunks)

    async def clog(self) -> None:
        """Send until the operating system accepts no more, as the other side does not read."""
        while self._transport.sendmsg([bytes(65536)]):
            await anyio.lowlevel.checkpoint()

    def send_eof(self) -> None:
        """Half-close: send EOF, and keep receiving."""
        self._transport.send_eof()

    def reset(self) -> None:
        """Close with a reset (RST): the other side loses what it has not read yet. Harmless when closed already."""
        self._transport.reset()

    def close(self) -> None:
        """Close without ``shutdown()``; if data is unread, this is a reset. Harmless when closed already."""
        self._transport.close(tell=False)


@overload
def connected_peer(
    *, binaryType: Bytes = ..., **options: Any
) -> AbstractAsyncContextManager[tuple[TCPSocket, Peer]]: ...
@overload
def connected_peer(*, binaryType: Text, **options: Any) -> AbstractAsyncContextManager[tuple[TCPSocket[str], Peer]]: ...
@asynccontextmanager
async def connected_peer(**options: Any) -> AsyncIterator[tuple[TCPSocket[Any], Peer]]:
    """An open socket and the peer that it is connected to.

    They are connected over TCP on this machine, as a socketpair cannot reset a connection. Leaving the block closes
    both: the socket gracefully if everything sent was handed to the operating system, else immediately.

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
