"""The interface of subjects, and what they share: TLS contexts, and checks of received data."""

from __future__ import annotations

import os
import ssl
import time
from abc import ABC, abstractmethod
from contextlib import AbstractAsyncContextManager
from typing import Any

import anyio

__all__ = (
    "HOST",
    "READ_SIZE",
    "Arrival",
    "Client",
    "Foreign",
    "RedisServer",
    "Subject",
    "check_echo",
    "client_context",
    "echo_by_events",
    "server_context",
    "stamp",
)

HOST = "127.0.0.1"

READ_SIZE = 262_144
"""The most bytes of one read, for subjects that can set it."""

stamp = time.perf_counter


class Arrival:
    """Checks a received stream that repeats one chunk.

    Only the first and the last byte of each piece are checked, which costs the same for every subject.

    :ivar missing: the number of bytes yet to arrive
    """

    def __init__(self, chunk: bytes, count: int) -> None:
        self._chunk = chunk
        self._received = 0
        self.missing = len(chunk) * count

    def take(self, data: bytes | bytearray | memoryview) -> None:
        """Count and check a received piece.

        :raises ValueError: if it differs from what was sent
        """
        chunk, size = self._chunk, len(self._chunk)
        begin = self._received
        self._received = end = begin + len(data)
        self.missing -= len(data)
        if data[0] != chunk[begin % size] or data[-1] != chunk[(end - 1) % size] or self.missing < 0:
            raise ValueError("what arrived is not what was sent")


def check_echo(data: bytes, message: bytes) -> None:
    """Check the answer to a message.

    :raises ValueError: if it differs from the message
    """
    if data != message:
        raise ValueError("the echo is not what was sent")


async def echo_by_events(socket: Any, message: bytes, stamps: list[float]) -> None:
    """As :meth:`Client.echo`, by a socket with ``send()`` and ``ondata``."""
    last, index = len(stamps) - 1, 0
    done = anyio.Event()

    def on_data(event: Any) -> None:
        nonlocal index
        check_echo(event.data, message)
        stamps[index] = stamp()
        if index == last:
            done.set()
        else:
            index += 1
            socket.send(message)

    socket.ondata = on_data
    socket.send(message)
    await done.wait()


class Client(ABC):
    """A connection that the subject has opened."""

    @abstractmethod
    async def send(self, chunk: bytes, count: int) -> None:
        """Send a chunk ``count`` times, no faster than the connection accepts it."""

    @abstractmethod
    async def echo(self, message: bytes, stamps: list[float]) -> None:
        """Send a message and wait for its echo, once for each element of ``stamps``.

        :param stamps: filled with the time at which each echo arrived
        """

    @abstractmethod
    async def close(self) -> None: ...


class Subject(ABC):
    """One way to use sockets. A TLS context of None means plaintext.

    :ivar pid: the process ID of its servers
    """

    pid = os.getpid()

    @abstractmethod
    def echoing(self, tls: ssl.SSLContext | None = None) -> AbstractAsyncContextManager[int]:
        """A server, within the block, that sends back what it receives. Gives its port."""

    @abstractmethod
    def receiving(self, arrival: Arrival, tls: ssl.SSLContext | None = None) -> AbstractAsyncContextManager[Any]:
        """A server for one stream. Gives its port, and a function that waits until all has arrived."""

    @abstractmethod
    async def connect(self, port: int, tls: ssl.SSLContext | None = None) -> Client: ...

    @abstractmethod
    async def churn(self, port: int, message: bytes, count: int) -> None:
        """Connect, have one message echoed and close, ``count`` times in sequence."""


class Foreign(ABC):
    """A subject that is not written in Python. It runs whole scenarios by itself, and a server for our clients.

    :ivar pid: the process ID of that server
    """

    pid = 0

    @abstractmethod
    def echoing(self, tls: ssl.SSLContext | None = None) -> AbstractAsyncContextManager[int]:
        """A server, as :meth:`Subject.echoing` gives."""

    @abstractmethod
    async def run(self, scenario: str, **parameters: Any) -> Any:
        """Run a scenario. The result is that of the function of this name in :mod:`benchmarks.scenarios`."""


class RedisServer(Subject):
    """A subject that also has a Redis server."""

    @abstractmethod
    def serving_redis(self) -> AbstractAsyncContextManager[int]:
        """A server of :mod:`benchmarks.redis`, with one store for all connections. Gives its port."""


def server_context() -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(os.environ["BENCHMARKS_CERTIFICATE"])
    return context


def client_context() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=os.environ["BENCHMARKS_AUTHORITY"])
