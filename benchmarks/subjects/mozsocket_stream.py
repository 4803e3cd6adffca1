"""mozsocket's ``stream()``, used like AnyIO's own streams."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio.abc

from mozsocket import MozTCPSocket

from . import anyio_streams
from .base import HOST


class Subject(anyio_streams.Subject):
    _tcp: MozTCPSocket

    @asynccontextmanager
    async def serving(self, handler: anyio_streams.Handler, tls: ssl.SSLContext | None) -> AsyncIterator[int]:
        async def on_connect(event: Any) -> None:
            await handler(event.socket.stream())

        async with MozTCPSocket() as tcp:
            self._tcp = tcp
            server = tcp.listen(0, host=HOST, useSecureTransport=tls is not None, ssl_context=tls)
            server.onconnect = on_connect
            yield server.localPort
            tcp.cancel_scope.cancel()

    async def open(self, port: int, tls: ssl.SSLContext | None = None) -> anyio.abc.ByteStream:
        socket = self._tcp.open(HOST, port, useSecureTransport=tls is not None, ssl_context=tls)
        await socket.opened()
        return socket.stream()
