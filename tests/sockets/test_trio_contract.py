"""``socket.stream()`` passes Trio's own checks of streams, with a thin adapter."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
import trio
import trio.testing
from anyio.abc import SocketAttribute

from mozsocket import InvalidStateError, MozTCPSocket, TCPSocket, TCPSocketError

from ..certificates import client_context, server_context

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("impatient")]


@pytest.fixture
def anyio_backend() -> str:
    return "trio"


class TrioStream(trio.abc.HalfCloseableStream):
    """Adapts our stream to Trio's method names and exceptions."""

    def __init__(self, sock: TCPSocket) -> None:
        sock.onerror = lambda event: None
        self.sock = sock
        self.stream: Any = sock.stream()
        self.waiting = False  # for writability: AnyIO's streams have no method for it, and it counts as sending
        self.closed = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.send(self.stream.send, data)

    async def wait_send_all_might_not_block(self) -> None:
        if self.closed:
            raise trio.ClosedResourceError
        if self.waiting or self.stream._sending:
            raise trio.BusyResourceError
        self.waiting = True
        try:
            await call(self.sock.drained)
        finally:
            self.waiting = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        data: bytes = await call(self.stream.receive, 65536 if max_bytes is None else max_bytes)
        return data

    async def send_eof(self) -> None:
        await self.send(self.stream.send_eof)

    async def aclose(self) -> None:
        self.closed = True
        await call(self.stream.aclose)

    async def send(self, function: Callable[..., Awaitable[None]], *args: Any) -> None:
        if self.waiting:
            raise trio.BusyResourceError
        await call(function, *args)

    def clog(self) -> None:
        """Make the operating system's buffers small and fixed."""
        raw = self.sock.extra(SocketAttribute.raw_socket)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)


async def call(function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    try:
        return await function(*args)
    except anyio.EndOfStream:
        return b""
    except (anyio.ClosedResourceError, InvalidStateError) as exc:
        raise trio.ClosedResourceError from exc
    except (anyio.BrokenResourceError, TCPSocketError) as exc:
        raise trio.BrokenResourceError from exc
    except anyio.BusyResourceError as exc:
        raise trio.BusyResourceError from exc


class Maker:
    """Makes pairs of connected streams."""

    def __init__(self, tcp: MozTCPSocket, *, tls: bool) -> None:
        self.tcp = tcp
        self.tls = tls
        self.server = tcp.listen(0, host="127.0.0.1", **self.options(server_context()))
        self.server.onconnect = lambda event: self.accepted.append(TrioStream(event.socket))
        self.accepted: list[TrioStream] = []

    def options(self, context: ssl.SSLContext) -> dict[str, Any]:
        return {"linger": 0, "useSecureTransport": self.tls, "ssl_context": context if self.tls else None}

    async def pair(self) -> tuple[TrioStream, TrioStream]:
        sock = self.tcp.open("localhost", self.server.localPort, **self.options(client_context()))
        client = TrioStream(sock)
        await client.sock.opened()
        while not self.accepted:
            await trio.testing.wait_all_tasks_blocked()
        return client, self.accepted.pop()

    async def clogged(self) -> tuple[TrioStream, TrioStream]:
        pair = await self.pair()
        for end in pair:
            end.clog()
        for end in pair:
            with anyio.move_on_after(0.1):
                while True:
                    await end.stream.send(bytes(1 << 20))
            assert end.sock.bufferedAmount
        return pair


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
async def test_trio_s_own_checks_of_a_half_closeable_stream(tls: bool) -> None:
    async with MozTCPSocket() as tcp:
        maker = Maker(tcp, tls=tls)
        await trio.testing.check_half_closeable_stream(maker.pair, maker.clogged)
        maker.server.close()
