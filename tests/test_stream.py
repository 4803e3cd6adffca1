"""``socket.stream()``: the same contract as that of other streams, and what only ours has: handlers beside it."""

from __future__ import annotations

import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import SocketAttribute

from mozsocket import InvalidStateError, MozTCPSocket, TCPSocket, TCPSocketError

from .certificates import client_context, server_context
from .peers import (
    PEER_TIMEOUT,
)

if sys.version_info < (3, 11):
    pass

pytestmark = pytest.mark.anyio

BIG = bytes(range(256)) * 4096 * 16  # 16 MiB


@asynccontextmanager
async def pair(**options: Any) -> AsyncIterator[tuple[TCPSocket, TCPSocket]]:
    """Two sockets of ours, connected to each other."""
    with anyio.fail_after(PEER_TIMEOUT):
        async with AsyncExitStack() as stack:
            sockets = [TCPSocket.from_socket(sock, **options) for sock in socket.socketpair()]
            for sock in sockets:
                await stack.enter_async_context(sock)
                sock.onerror = lambda event: None
            yield sockets[0], sockets[1]


# Trio's own checks


class TestTrioContract:
    """Against ``trio.testing.check_two_way_stream`` and ``check_half_closeable_stream``."""

    @pytest.fixture
    def anyio_backend(self) -> str:
        return "trio"

    @pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
    async def test_half_closeable(self, tls: bool) -> None:
        trio = pytest.importorskip("trio")
        import trio.testing

        class Adapter(trio.abc.HalfCloseableStream):  # type: ignore[name-defined, misc]
            """Trio's names for AnyIO's methods, and Trio's exceptions for AnyIO's."""

            def __init__(self, sock: TCPSocket) -> None:
                self.sock = sock
                self.stream = sock.stream()
                self.sending = anyio.ResourceGuard("sending to")
                self.closed = False

            async def _call(self, function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
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

            async def send_all(self, data: bytes) -> None:
                await self._call(self._send, self.stream.send, data)

            async def wait_send_all_might_not_block(self) -> None:
                if self.closed:
                    raise trio.ClosedResourceError
                await self._call(self._send, self.sock.drained)

            async def _send(self, function: Callable[..., Awaitable[None]], *args: bytes) -> None:
                with self.sending:  # AnyIO has no such waiting, which Trio counts as sending
                    await function(*args)

            async def receive_some(self, max_bytes: int | None = None) -> Any:
                return await self._call(self.stream.receive, 65536 if max_bytes is None else max_bytes)

            async def send_eof(self) -> None:
                await self._call(self._send, self.stream.send_eof)

            async def aclose(self) -> None:
                self.closed = True
                await self._call(self.stream.aclose)

        async with MozTCPSocket() as tcp:
            listener = tcp.listen(0, host="127.0.0.1", linger=0, useSecureTransport=tls, ssl_context=server_context())

            async def maker() -> tuple[Any, Any]:
                accepted: list[Adapter] = []
                came = anyio.Event()

                def onconnect(event: Any) -> None:
                    accepted.append(Adapter(event.socket))
                    came.set()

                listener.onconnect = onconnect
                options: dict[str, Any] = {}
                if tls:
                    options = {"useSecureTransport": True, "ssl_context": client_context()}
                sock = tcp.open("localhost", listener.localPort, linger=0, **options)
                sock.onerror = lambda event: None
                client = Adapter(sock)
                await came.wait()
                accepted[0].sock.onerror = lambda event: None
                await sock.opened()
                return client, accepted[0]

            async def clogged() -> tuple[Any, Any]:
                client, server = await maker()
                for adapter in client, server:
                    raw = adapter.sock.extra(SocketAttribute.raw_socket)
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)  # a size of its own, which does not grow
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
                for adapter in client, server:
                    with anyio.move_on_after(0.1):
                        while True:
                            await adapter.stream.send(bytes(1 << 20))
                return client, server

            await trio.testing.check_half_closeable_stream(maker, clogged)
            listener.close()
