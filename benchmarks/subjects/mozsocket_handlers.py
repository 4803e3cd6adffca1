"""mozsocket with plain functions as handlers, which send more on ``drain`` as MDN shows."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import count as counting
from typing import Any

import anyio

from mozsocket import MozTCPSocket, TCPSocket, TCPSocketEvent

from .. import redis
from . import base
from .base import HOST, Arrival, check_echo, echo_by_events


class Client(base.Client):
    def __init__(self, socket: TCPSocket) -> None:
        self._socket = socket

    async def send(self, chunk: bytes, count: int) -> None:
        socket, left = self._socket, count
        done = anyio.Event()

        def pump(event: Any) -> None:
            nonlocal left
            while left:
                left -= 1
                if not socket.send(chunk):
                    return
            done.set()

        socket.ondrain = pump
        pump(None)
        await done.wait()
        await socket.drained()

    async def echo(self, message: bytes, stamps: list[float]) -> None:
        await echo_by_events(self._socket, message, stamps)

    async def close(self) -> None:
        self._socket.close()
        await self._socket.closed()


class Subject(base.RedisServer):
    _tcp: MozTCPSocket

    @asynccontextmanager
    async def echoing(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
        def on_connect(event: Any) -> None:
            event.socket.ondata = lambda event: event.target.send(event.data)

        async with self._serving(on_connect, tls) as port:
            yield port

    @asynccontextmanager
    async def receiving(
        self, arrival: Arrival, tls: ssl.SSLContext | None = None
    ) -> AsyncIterator[tuple[int, Callable[[], Awaitable[None]]]]:
        done = anyio.Event()

        def on_data(event: TCPSocketEvent) -> None:
            arrival.take(event.data)
            if not arrival.missing:
                done.set()

        def on_connect(event: Any) -> None:
            event.socket.ondata = on_data

        async with self._serving(on_connect, tls) as port:
            yield port, done.wait

    @asynccontextmanager
    async def serving_redis(self) -> AsyncIterator[int]:
        store: redis.Store = {}

        def on_connect(event: Any) -> None:
            answer = redis.Session(store).answer
            event.socket.ondata = lambda event: event.target.send(answer(event.data))

        async with self._serving(on_connect, None) as port:
            yield port

    @asynccontextmanager
    async def _serving(self, on_connect: Callable[[Any], None], tls: ssl.SSLContext | None) -> AsyncIterator[int]:
        async with MozTCPSocket() as tcp:
            self._tcp = tcp
            server = tcp.listen(0, host=HOST, useSecureTransport=tls is not None, ssl_context=tls)
            server.onconnect = on_connect
            yield server.localPort
            tcp.cancel_scope.cancel()

    async def connect(self, port: int, tls: ssl.SSLContext | None = None) -> Client:
        socket = self._tcp.open(HOST, port, useSecureTransport=tls is not None, ssl_context=tls)
        await socket.opened()
        return Client(socket)

    async def churn(self, port: int, message: bytes, count: int) -> None:
        done = anyio.Event()
        numbers = counting(1)

        def connect(event: Any) -> None:
            if next(numbers) > count:
                done.set()
                return
            socket = self._tcp.open(HOST, port)
            socket.onopen = lambda event: socket.send(message)
            socket.ondata = on_data
            socket.onclose = connect

        def on_data(event: TCPSocketEvent) -> None:
            check_echo(event.data, message)
            event.target.close()

        connect(None)
        await done.wait()
