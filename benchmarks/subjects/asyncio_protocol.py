"""asyncio's transports and protocols."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import cast

from .. import redis
from . import base
from .base import HOST, Arrival, check_echo, stamp


class Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)


class Redis(asyncio.Protocol):
    def __init__(self, store: redis.Store) -> None:
        self._answer = redis.Session(store).answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass

    def data_received(self, data: bytes) -> None:
        self._transport.write(self._answer(data))


class Receiver(asyncio.Protocol):
    def __init__(self, arrival: Arrival, done: asyncio.Event) -> None:
        self._arrival = arrival
        self._done = done

    def data_received(self, data: bytes) -> None:
        self._arrival.take(data)
        if not self._arrival.missing:
            self._done.set()


class Client(asyncio.Protocol, base.Client):
    _transport: asyncio.Transport

    def __init__(self) -> None:
        self._done = asyncio.Event()
        self._lost = asyncio.Event()
        self._paused = False
        self._chunk = self._message = b""
        self._left = self._index = 0
        self._stamps: list[float] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost.set()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._pump()

    def _pump(self) -> None:
        while self._left and not self._paused:
            self._left -= 1
            self._transport.write(self._chunk)
        if not self._left and not self._paused:
            self._done.set()

    def data_received(self, data: bytes) -> None:
        check_echo(data, self._message)
        self._stamps[self._index] = stamp()
        self._index += 1
        if self._index == len(self._stamps):
            self._done.set()
        else:
            self._transport.write(self._message)

    async def send(self, chunk: bytes, count: int) -> None:
        self._chunk, self._left = chunk, count
        self._done.clear()
        self._pump()
        await self._done.wait()

    async def echo(self, message: bytes, stamps: list[float]) -> None:
        self._message, self._stamps, self._index = message, stamps, 0
        self._done.clear()
        self._transport.write(message)
        await self._done.wait()

    async def close(self) -> None:
        self._transport.close()
        await self._lost.wait()


class Churn(asyncio.Protocol):
    """Makes short connections, one after another."""

    def __init__(self, message: bytes) -> None:
        self._message = message
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass
        self._transport.write(self._message)

    def data_received(self, data: bytes) -> None:
        check_echo(data, self._message)
        self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(None)


class Subject(base.RedisServer):
    @asynccontextmanager
    async def echoing(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
        async with _serving(Echo, tls) as port:
            yield port

    @asynccontextmanager
    async def receiving(
        self, arrival: Arrival, tls: ssl.SSLContext | None = None
    ) -> AsyncIterator[tuple[int, Callable[[], Awaitable[object]]]]:
        done = asyncio.Event()
        async with _serving(lambda: Receiver(arrival, done), tls) as port:
            yield port, done.wait

    @asynccontextmanager
    async def serving_redis(self) -> AsyncIterator[int]:
        store: redis.Store = {}
        async with _serving(lambda: Redis(store), None) as port:
            yield port

    async def connect(self, port: int, tls: ssl.SSLContext | None = None) -> Client:
        loop = asyncio.get_running_loop()
        _, client = await loop.create_connection(Client, HOST, port, ssl=tls)
        return client

    async def churn(self, port: int, message: bytes, count: int) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(count):
            _, protocol = await loop.create_connection(lambda: Churn(message), HOST, port)
            await protocol.lost


@asynccontextmanager
async def _serving(factory: Callable[[], asyncio.Protocol], tls: ssl.SSLContext | None) -> AsyncIterator[int]:
    server = await asyncio.get_running_loop().create_server(factory, HOST, 0, ssl=tls, backlog=4096)
    yield server.sockets[0].getsockname()[1]
    server.close()
