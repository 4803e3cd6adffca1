"""Trio's socket streams, and its SSLStream."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio

from . import base
from .base import HOST, READ_SIZE, Arrival, check_echo, stamp


class Client(base.Client):
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def send(self, chunk: bytes, count: int) -> None:
        for _ in range(count):
            await self._stream.send_all(chunk)

    async def echo(self, message: bytes, stamps: list[float]) -> None:
        stream = self._stream
        for index in range(len(stamps)):
            await stream.send_all(message)
            check_echo(await stream.receive_some(), message)
            stamps[index] = stamp()

    async def close(self) -> None:
        await self._stream.aclose()


class Subject(base.Subject):
    @asynccontextmanager
    async def echoing(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
        async with _serving(_echo, tls) as port:
            yield port

    @asynccontextmanager
    async def receiving(
        self, arrival: Arrival, tls: ssl.SSLContext | None = None
    ) -> AsyncIterator[tuple[int, Callable[[], Awaitable[None]]]]:
        done = trio.Event()

        async def receive(stream: Any) -> None:
            while arrival.missing:
                arrival.take(await stream.receive_some(READ_SIZE))
            done.set()
            await trio.sleep_forever()

        async with _serving(receive, tls) as port:
            yield port, done.wait

    async def connect(self, port: int, tls: ssl.SSLContext | None = None) -> Client:
        if tls is None:
            return Client(await trio.open_tcp_stream(HOST, port))
        stream = await trio.open_ssl_over_tcp_stream(HOST, port, ssl_context=tls, https_compatible=True)
        await stream.do_handshake()
        return Client(stream)

    async def churn(self, port: int, message: bytes, count: int) -> None:
        for _ in range(count):
            async with await trio.open_tcp_stream(HOST, port) as stream:
                await stream.send_all(message)
                check_echo(await stream.receive_some(), message)


async def _echo(stream: Any) -> None:
    try:
        async for data in stream:
            await stream.send_all(data)
    except trio.BrokenResourceError:
        pass


@asynccontextmanager
async def _serving(handler: Callable[[Any], Awaitable[None]], tls: ssl.SSLContext | None) -> AsyncIterator[int]:
    serve: Any
    if tls is None:
        serve = partial(trio.serve_tcp, handler, 0, host=HOST)
    else:
        serve = partial(trio.serve_ssl_over_tcp, handler, 0, tls, host=HOST, https_compatible=True)
    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(serve)
        while not isinstance(listener, trio.SocketListener):
            listener = listener.transport_listener
        yield listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()
