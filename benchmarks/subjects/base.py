"""What a subject has to be able to do, and what they share: the contexts of TLS, and the check of what arrives."""

from __future__ import annotations

import os
import ssl
import time
from abc import ABC, abstractmethod
from contextlib import AbstractAsyncContextManager
from typing import Any

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
    "server_context",
    "stamp",
)

HOST = "127.0.0.1"

READ_SIZE = 262_144
"""Bytes to read at once, for those that are told."""

stamp = time.perf_counter


class Arrival:
    """Checks a stream that repeats one chunk, at its first and last byte of each arrival, which costs all the same.

    :ivar missing: how many bytes are still to come
    """

    def __init__(self, chunk: bytes, count: int) -> None:
        self._chunk = chunk
        self._received = 0
        self.missing = len(chunk) * count

    def take(self, data: bytes | bytearray | memoryview) -> None:
        """:raises ValueError: if it is not what was sent"""
        chunk, size = self._chunk, len(self._chunk)
        begin = self._received
        self._received = end = begin + len(data)
        self.missing -= len(data)
        if data[0] != chunk[begin % size] or data[-1] != chunk[(end - 1) % size] or self.missing < 0:
            raise ValueError("what arrived is not what was sent")


def check_echo(data: bytes, message: bytes) -> None:
    """:raises ValueError: if the answer is not the message"""
    if data != message:
        raise ValueError("the echo is not what was sent")


class Client(ABC):
    """A connection of one's own making."""

    @abstractmethod
    async def send(self, chunk: bytes, count: int) -> None:
        """Send a chunk so often, as fast as it is taken, and no faster."""

    @abstractmethod
    async def echo(self, message: bytes, stamps: list[float]) -> None:
        """Send a message and await its echo, as often as there is room for the time when it came.

        :param stamps: is filled with these times
        """

    @abstractmethod
    async def close(self) -> None: ...


class Subject(ABC):
    """One way to use sockets. The contexts it is given are None where there is to be no TLS.

    :ivar pid: of the process of its servers
    """

    pid = os.getpid()

    @abstractmethod
    def echoing(self, tls: ssl.SSLContext | None = None) -> AbstractAsyncContextManager[int]:
        """A server that sends back what it receives; of that, the port."""

    @abstractmethod
    def receiving(self, arrival: Arrival, tls: ssl.SSLContext | None = None) -> AbstractAsyncContextManager[Any]:
        """A server for one stream; of that, the port, and a function that waits until nothing is missing."""

    @abstractmethod
    async def connect(self, port: int, tls: ssl.SSLContext | None = None) -> Client: ...

    @abstractmethod
    async def churn(self, port: int, message: bytes, count: int) -> None:
        """Connect, have one message echoed, close; one after another."""


class Foreign(ABC):
    """A subject that is no Python: it runs whole scenarios by itself, and a server to be met by others.

    :ivar pid: of the process of that server
    """

    pid = 0

    @abstractmethod
    def echoing(self, tls: ssl.SSLContext | None = None) -> AbstractAsyncContextManager[int]:
        """As of :class:`Subject`."""

    @abstractmethod
    async def run(self, scenario: str, **parameters: Any) -> Any:
        """What the function of that name in :mod:`benchmarks.scenarios` gives."""


class RedisServer(Subject):
    """A subject that has a Redis server too."""

    @abstractmethod
    def serving_redis(self) -> AbstractAsyncContextManager[int]:
        """A server that answers as :mod:`benchmarks.redis` has it, with one store for all connections; its port."""


def server_context() -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(os.environ["BENCHMARKS_CERTIFICATE"])
    return context


def client_context() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=os.environ["BENCHMARKS_AUTHORITY"])
