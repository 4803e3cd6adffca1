"""The least that mozsocket's interface costs: a connection as short as Python allows, to see what there is to gain.

It has one epoll that is awaited through AnyIO, an event for each read, handlers in a context of their own, and a
``send()`` that is flushed when the handler has returned. It has no TLS, failures, cancellation, limits or counts, nor
anything but data for its handlers. Real code cannot be faster, so a target that the prototype misses is out of reach.
"""

from __future__ import annotations

import select
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import copy_context
from typing import Any

import anyio
import anyio.lowlevel

from .. import redis
from . import base
from .base import HOST, Arrival, echo_by_events

READ_SIZE = 122_880
BATCH = 64
BATCHES_PER_TURN = 8
EAGER_POLLS = 3
"""How often the epoll is polled again, a turn of the event loop apart, before it is awaited."""


class Event:
    __slots__ = ("data", "target", "type")

    def __init__(self, type: str, target: Connection, data: bytes) -> None:
        self.type = type
        self.target = target
        self.data = data


Handler = Callable[[Event], object]


class Poller:
    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._functions: dict[int, Callable[[], None]] = {}

    def add(self, sock: socket.socket, on_readable: Callable[[], None]) -> None:
        self._functions[sock.fileno()] = on_readable
        self._epoll.register(sock, select.EPOLLIN)

    def close(self, sock: socket.socket) -> None:
        del self._functions[sock.fileno()]
        sock.close()

    async def run(self) -> None:
        idle_polls = 0
        while True:
            if self._handle_ready():
                idle_polls = 0
            else:
                idle_polls += 1
            if idle_polls <= EAGER_POLLS:
                await anyio.lowlevel.checkpoint()
            else:
                await anyio.wait_readable(self._epoll)

    def _handle_ready(self) -> bool:
        functions = self._functions
        for batch in range(BATCHES_PER_TURN):
            found = self._epoll.poll(0, BATCH)
            if not found:
                return batch > 0
            for fd, _ in found:
                if fd in functions:
                    functions[fd]()
        return True


class Connection:
    __slots__ = ("_buffer", "_context", "_handles", "_poller", "_recv", "_send", "_sock", "ondata")

    def __init__(self, sock: socket.socket, poller: Poller, ondata: Handler) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock, self._recv, self._send = sock, sock.recv, sock.send
        self._poller = poller
        self._context = copy_context()
        self._buffer: list[bytes] = []
        self._handles = False
        self.ondata = ondata
        poller.add(sock, self._on_readable)

    def send(self, data: bytes) -> None:
        if self._handles:
            self._buffer.append(data)
        else:
            self._send(data)

    def close(self) -> None:
        self._poller.close(self._sock)

    def _on_readable(self) -> None:
        data = self._recv(READ_SIZE)
        if not data:
            self.close()
            return
        self._handles = True
        self._context.run(self.ondata, Event("data", self, data))
        self._handles = False
        if self._buffer:
            self._send(b"".join(self._buffer))
            self._buffer.clear()


class Client(base.Client):
    def __init__(self, port: int, poller: Poller) -> None:
        self._connection = Connection(socket.create_connection((HOST, port)), poller, _ignore)

    async def send(self, chunk: bytes, count: int) -> None:
        raise NotImplementedError("the prototype does not send more than the kernel takes")

    async def echo(self, message: bytes, stamps: list[float]) -> None:
        await echo_by_events(self._connection, message, stamps)

    async def close(self) -> None:
        self._connection.close()


class Subject(base.RedisServer):
    _poller: Poller

    @asynccontextmanager
    async def echoing(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
        async with self._serving(lambda: lambda event: event.target.send(event.data)) as port:
            yield port

    def receiving(self, arrival: Arrival, tls: ssl.SSLContext | None = None) -> Any:
        raise NotImplementedError("the prototype does not send more than the kernel takes")

    @asynccontextmanager
    async def serving_redis(self) -> AsyncIterator[int]:
        store: redis.Store = {}

        def handler() -> Handler:
            answer = redis.Session(store).answer
            return lambda event: event.target.send(answer(event.data))

        async with self._serving(handler) as port:
            yield port

    @asynccontextmanager
    async def _serving(self, handler: Callable[[], Handler]) -> AsyncIterator[int]:
        self._poller = poller = Poller()
        with socket.create_server((HOST, 0), backlog=4096) as listening:

            def accept() -> None:
                Connection(listening.accept()[0], poller, handler())

            poller.add(listening, accept)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(poller.run)
                yield listening.getsockname()[1]
                tasks.cancel_scope.cancel()

    async def connect(self, port: int, tls: ssl.SSLContext | None = None) -> Client:
        return Client(port, self._poller)

    async def churn(self, port: int, message: bytes, count: int) -> None:
        raise NotImplementedError("the prototype does not open connections without blocking")


def _ignore(event: Event) -> None:
    """What arrives while nobody waits for an echo."""
