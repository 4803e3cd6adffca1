"""asyncio's streams."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from . import base
from .base import HOST, READ_SIZE, Arrival, check_echo, stamp

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Client(base.Client):
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, chunk: bytes, count: int) -> None:
        for _ in range(count):
            self._writer.write(chunk)
            await self._writer.drain()

    async def echo(self, message: bytes, stamps: list[float]) -> None:
        reader, writer = self._reader, self._writer
        for index in range(len(stamps)):
            writer.write(message)
            check_echo(await reader.readexactly(len(message)), message)
            stamps[index] = stamp()

    async def close(self) -> None:
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()


class Subject(base.Subject):
    @asynccontextmanager
    async def echoing(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
        async with _serving(_echo, tls) as port:
            yield port

    @asynccontextmanager
    async def receiving(
        self, arrival: Arrival, tls: ssl.SSLContext | None = None
    ) -> AsyncIterator[tuple[int, Callable[[], Awaitable[object]]]]:
        done = asyncio.Event()

        async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(asyncio.CancelledError):  # asyncio would log it when the process ends
                while arrival.missing and (data := await reader.read(READ_SIZE)):
                    arrival.take(data)
                done.set()
            writer.close()

        async with _serving(receive, tls) as port:
            yield port, done.wait

    async def connect(self, port: int, tls: ssl.SSLContext | None = None) -> Client:
        return Client(*await asyncio.open_connection(HOST, port, ssl=tls, limit=READ_SIZE))

    async def churn(self, port: int, message: bytes, count: int) -> None:
        for _ in range(count):
            client = await self.connect(port)
            await client.echo(message, [0])
            await client.close()


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError, asyncio.CancelledError):
        while data := await reader.read(READ_SIZE):
            writer.write(data)
            await writer.drain()
    writer.close()


@asynccontextmanager
async def _serving(handler: Handler, tls: ssl.SSLContext | None) -> AsyncIterator[int]:
    server = await asyncio.start_server(handler, HOST, 0, ssl=tls, limit=READ_SIZE, backlog=4096)
    yield server.sockets[0].getsockname()[1]
    server.close()
