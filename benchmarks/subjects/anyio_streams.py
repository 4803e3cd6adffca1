"""AnyIO's socket streams and listeners."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import anyio.abc
from anyio.abc import SocketAttribute
from anyio.streams.tls import TLSListener

from . import base
from .base import HOST, READ_SIZE, Arrival, check_echo, stamp

Handler = Callable[[anyio.abc.ByteStream], Awaitable[None]]


class Client(base.Client):
    def __init__(self, stream: anyio.abc.ByteStream) -> None:
        self._stream = stream

    async def send(self, chunk: bytes, count: int) -> None:
        for _ in range(count):
            await self._stream.send(chunk)

    async def echo(self, message: bytes, stamps: list[float]) -> None:
        stream = self._stream
        for index in range(len(stamps)):
            await stream.send(message)
            check_echo(await stream.receive(), message)
            stamps[index] = stamp()

    async def close(self) -> None:
        await self._stream.aclose()


class Subject(base.Subject):
    """AnyIO's streams. Subclasses with other sources of such streams override :meth:`serving` and :meth:`open`."""

    @asynccontextmanager
    async def echoing(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
        async with self.serving(_echo, tls) as port:
            yield port

    @asynccontextmanager
    async def receiving(
        self, arrival: Arrival, tls: ssl.SSLContext | None = None
    ) -> AsyncIterator[tuple[int, Callable[[], Awaitable[None]]]]:
        done = anyio.Event()

        async def receive(stream: anyio.abc.ByteStream) -> None:
            async with stream:
                while arrival.missing:
                    arrival.take(await stream.receive(READ_SIZE))
                done.set()
                await anyio.sleep_forever()

        async with self.serving(receive, tls) as port:
            yield port, done.wait

    async def connect(self, port: int, tls: ssl.SSLContext | None = None) -> Client:
        return Client(await self.open(port, tls))

    async def churn(self, port: int, message: bytes, count: int) -> None:
        for _ in range(count):
            async with await self.open(port) as stream:
                await stream.send(message)
                check_echo(await stream.receive(), message)

    @asynccontextmanager
    async def serving(self, handler: Handler, tls: ssl.SSLContext | None) -> AsyncIterator[int]:
        """A server, within the block, that calls the handler for each connection. Gives its port."""
        tcp = await anyio.create_tcp_listener(local_host=HOST)
        port = tcp.extra(SocketAttribute.local_port)
        listener = TLSListener(tcp, tls, standard_compatible=False) if tls is not None else tcp
        async with listener, anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, handler)
            yield port
            tasks.cancel_scope.cancel()

    async def open(self, port: int, tls: ssl.SSLContext | None = None) -> anyio.abc.ByteStream:
        """Connect to a port of this machine."""
        if tls is None:
            return await anyio.connect_tcp(HOST, port)
        return await anyio.connect_tcp(HOST, port, ssl_context=tls, tls_standard_compatible=False)


async def _echo(stream: anyio.abc.ByteStream) -> None:
    async with stream:
        try:
            while True:
                await stream.send(await stream.receive())
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            pass
