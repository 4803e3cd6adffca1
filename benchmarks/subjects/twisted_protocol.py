"""Twisted's protocols, on its own reactor. The reactor runs in a separate thread, which does all the work."""

from __future__ import annotations

import asyncio
import functools
import os
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from twisted.internet import interfaces
from twisted.internet import reactor as installed
from twisted.internet import ssl as twisted_ssl
from twisted.internet.protocol import ClientFactory, Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer  # type: ignore[import-untyped]

from . import base
from .base import HOST, Arrival, check_echo, stamp

T = TypeVar("T")
reactor: Any = installed


class Wire(Protocol):
    transport: Any  # Twisted types it as None, as it is before connecting


class Echo(Wire):
    def connectionMade(self) -> None:
        self.transport.setTcpNoDelay(True)

    def dataReceived(self, data: bytes) -> None:
        self.transport.write(data)


class Receiver(Wire):
    def __init__(self, arrival: Arrival, done: Future[None]) -> None:
        self._arrival = arrival
        self._done = done

    def dataReceived(self, data: bytes) -> None:
        self._arrival.take(data)
        if not self._arrival.missing:
            self._done.set_result(None)


@implementer(interfaces.IPushProducer)
class Client(Wire, base.Client):
    def __init__(self, made: Future[Client]) -> None:
        self._made = made
        self._done: Future[None] = Future()
        self._lost: Future[None] = Future()
        self._paused = False
        self._chunk = self._message = b""
        self._left = self._index = 0
        self._stamps: list[float] = []

    def connectionMade(self) -> None:
        self.transport.setTcpNoDelay(True)
        self._made.set_result(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._lost.set_result(None)

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        while self._left and not self._paused:
            self._left -= 1
            self.transport.write(self._chunk)
        if not self._left:
            self.transport.unregisterProducer()
            self._done.set_result(None)

    def stopProducing(self) -> None:
        self._left = 0

    def dataReceived(self, data: bytes) -> None:
        check_echo(data, self._message)
        self._stamps[self._index] = stamp()
        self._index += 1
        if self._index == len(self._stamps):
            self._done.set_result(None)
        else:
            self.transport.write(self._message)

    async def send(self, chunk: bytes, count: int) -> None:
        def begin() -> None:
            self._chunk, self._left, self._done = chunk, count, Future()
            self.transport.registerProducer(self, True)
            self.resumeProducing()

        await in_reactor(begin)
        await asyncio.wrap_future(self._done)

    async def echo(self, message: bytes, stamps: list[float]) -> None:
        def begin() -> None:
            self._message, self._stamps, self._index, self._done = message, stamps, 0, Future()
            self.transport.write(message)

        await in_reactor(begin)
        await asyncio.wrap_future(self._done)

    async def close(self) -> None:
        await in_reactor(self.transport.loseConnection)
        await asyncio.wrap_future(self._lost)


class Churn(Wire):
    """Makes short connections, one after another."""

    def __init__(self, message: bytes, next_one: Callable[[], None]) -> None:
        self._message = message
        self._next_one = next_one

    def connectionMade(self) -> None:
        self.transport.setTcpNoDelay(True)
        self.transport.write(self._message)

    def dataReceived(self, data: bytes) -> None:
        check_echo(data, self._message)
        self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._next_one()


async def in_reactor(function: Callable[[], T]) -> T:
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as exc:
            future.set_exception(exc)

    reactor.callFromThread(run)
    return await asyncio.wrap_future(future)


@functools.cache
def start_reactor() -> None:
    threading.Thread(target=reactor.run, kwargs={"installSignalHandlers": False}, daemon=True).start()


class Subject(base.Subject):
    def __init__(self) -> None:
        start_reactor()

    @asynccontextmanager
    async def echoing(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
        async with _serving(Echo, tls) as port:
            yield port

    @asynccontextmanager
    async def receiving(
        self, arrival: Arrival, tls: ssl.SSLContext | None = None
    ) -> AsyncIterator[tuple[int, Callable[[], Awaitable[None]]]]:
        done: Future[None] = Future()
        async with _serving(lambda: Receiver(arrival, done), tls) as port:
            yield port, lambda: asyncio.wrap_future(done)

    async def connect(self, port: int, tls: ssl.SSLContext | None = None) -> Client:
        made: Future[Client] = Future()
        factory = ClientFactory.forProtocol(lambda: Client(made))
        if tls is None:
            await in_reactor(lambda: reactor.connectTCP(HOST, port, factory))
        else:
            trusted = twisted_ssl.Certificate.loadPEM(Path(os.environ["BENCHMARKS_AUTHORITY"]).read_bytes())
            options = twisted_ssl.optionsForClientTLS(HOST, trustRoot=trusted)
            await in_reactor(lambda: reactor.connectSSL(HOST, port, factory, options))
        return await asyncio.wrap_future(made)

    async def churn(self, port: int, message: bytes, count: int) -> None:
        done: Future[None] = Future()
        left = count

        def connect() -> None:
            nonlocal left
            if not left:
                done.set_result(None)
                return
            left -= 1
            reactor.connectTCP(HOST, port, ClientFactory.forProtocol(lambda: Churn(message, connect)))

        await in_reactor(connect)
        await asyncio.wrap_future(done)


@asynccontextmanager
async def _serving(make: Callable[[], Protocol], tls: ssl.SSLContext | None) -> AsyncIterator[int]:
    factory = Factory.forProtocol(make)
    factory.noisy = False

    def listen() -> Any:
        if tls is None:
            return reactor.listenTCP(0, factory, backlog=4096, interface=HOST)
        pem = Path(os.environ["BENCHMARKS_CERTIFICATE"]).read_bytes()
        options = twisted_ssl.PrivateCertificate.loadPEM(pem).options()  # type: ignore[no-untyped-call]
        return reactor.listenSSL(0, factory, options, backlog=4096, interface=HOST)

    port = await in_reactor(listen)
    yield port.getHost().port
    await in_reactor(port.stopListening)
