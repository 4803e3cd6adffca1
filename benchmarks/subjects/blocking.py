"""Blocking sockets with a thread at each end: ``sendall`` and ``recv_into``. An upper bound for one connection."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

import anyio.to_thread
from anyio import CapacityLimiter

from . import base
from .base import HOST, READ_SIZE, Arrival, check_echo, stamp

Handler = Callable[[socket.socket], None]


async def in_thread(function: Callable[[], object]) -> None:
    await anyio.to_thread.run_sync(function, limiter=CapacityLimiter(1), abandon_on_cancel=True)


class Client(base.Client):
    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    async def send(self, chunk: bytes, count: int) -> None:
        def run() -> None:
            for _ in range(count):
                self._sock.sendall(chunk)

        await in_thread(run)

    async def echo(self, message: bytes, stamps: list[float]) -> None:
        def run() -> None:
            for index in range(len(stamps)):
                self._sock.sendall(message)
                check_echo(self._sock.recv(READ_SIZE), message)
                stamps[index] = stamp()

        await in_thread(run)

    async def close(self) -> None:
        self._sock.close()


class Subject(base.Subject):
    @asynccontextmanager
    async def echoing(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
        with _serving(_echo, tls) as port:
            yield port

    @asynccontextmanager
    async def receiving(
        self, arrival: Arrival, tls: ssl.SSLContext | None = None
    ) -> AsyncIterator[tuple[int, Callable[[], Awaitable[None]]]]:
        done = threading.Event()

        def receive(sock: socket.socket) -> None:
            view = memoryview(bytearray(READ_SIZE))
            with suppress(ConnectionError):
                while arrival.missing and (count := sock.recv_into(view)):
                    arrival.take(view[:count])
            done.set()

        with _serving(receive, tls) as port:
            yield port, lambda: in_thread(done.wait)

    async def connect(self, port: int, tls: ssl.SSLContext | None = None) -> Client:
        return Client(_dial(port, tls))

    async def churn(self, port: int, message: bytes, count: int) -> None:
        def run() -> None:
            for _ in range(count):
                with _dial(port, None) as sock:
                    sock.sendall(message)
                    check_echo(sock.recv(READ_SIZE), message)

        await in_thread(run)


def _dial(port: int, tls: ssl.SSLContext | None) -> socket.socket:
    sock = socket.create_connection((HOST, port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock if tls is None else tls.wrap_socket(sock, server_hostname=HOST)


def _echo(sock: socket.socket) -> None:
    with suppress(ConnectionError):
        while data := sock.recv(READ_SIZE):
            sock.sendall(data)


@contextmanager
def _serving(handler: Handler, tls: ssl.SSLContext | None) -> Iterator[int]:
    listener = socket.create_server((HOST, 0), backlog=4096)

    def handle(accepted: socket.socket) -> None:
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with tls.wrap_socket(accepted, server_side=True) if tls is not None else accepted as sock:
            handler(sock)

    def accept() -> None:
        with suppress(OSError):
            while True:
                accepted, _ = listener.accept()
                threading.Thread(target=handle, args=(accepted,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    with listener:
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
