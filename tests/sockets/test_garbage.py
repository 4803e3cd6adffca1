"""Objects that are no longer needed are freed without the garbage collector: there are no reference cycles.

The exception is whatever a cancellation has passed through, as AnyIO on asyncio, and contextlib, create cycles.
"""

from __future__ import annotations

import gc
import logging
import socket
import sys
import weakref
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from importlib.metadata import version
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from mozsocket import MozTCPSocket, TCPServerSocket, TCPSocket, TCPSocketError

from ..certificates import client_context, server_context
from ..peers import (
    accept,
    all_blocked,
    blocking,
    dial,
    listening,
    port_of,
    read_all,
    reset,
    secure,
    send_all,
    unused_port,
)

if sys.version_info < (3, 11):  # a dependency of AnyIO
    from exceptiongroup import ExceptionGroup

pytestmark = pytest.mark.anyio

Refs = list["weakref.ref[Any]"]


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    logging.disable()  # pytest keeps log records, and they refer to our objects
    yield
    logging.disable(logging.NOTSET)
    gc.enable()


async def refused(refs: Refs) -> None:
    async with MozTCPSocket() as tcp:
        sock = tcp.open("127.0.0.1", unused_port())
        refs.append(weakref.ref(sock))
        sock.onerror = lambda event: None


async def refused_by_each_address(refs: Refs) -> None:
    async with MozTCPSocket() as tcp:
        sock = tcp.open("localhost", unused_port())
        refs.append(weakref.ref(sock))
        sock.onerror = lambda event: None


async def refused_and_awaited(refs: Refs) -> None:
    async with MozTCPSocket() as tcp:
        sock = tcp.open("127.0.0.1", unused_port())
        refs.append(weakref.ref(sock))
        with suppress(TCPSocketError):
            await sock.opened()


async def refused_and_unhandled(refs: Refs) -> None:
    with suppress(ExceptionGroup):
        async with MozTCPSocket() as tcp:
            refs.append(weakref.ref(tcp.open("127.0.0.1", unused_port())))


async def refused_in_its_own_block(refs: Refs) -> None:
    with suppress(TCPSocketError):
        async with TCPSocket("127.0.0.1", unused_port()) as sock:
            refs.append(weakref.ref(sock))
            await sock.closed()


async def refused_and_unhandled_in_its_own_block(refs: Refs) -> None:
    with suppress(TCPSocketError):
        async with TCPSocket("127.0.0.1", unused_port()) as sock:
            refs.append(weakref.ref(sock))
            await all_blocked()


async def refused_to_a_stream(refs: Refs) -> None:
    async with MozTCPSocket() as tcp:
        sock = tcp.open("127.0.0.1", unused_port())
        refs.append(weakref.ref(sock))
        with suppress(anyio.BrokenResourceError):
            await sock.stream().send(b"x")
        await sock.stream().aclose()


async def closed_in_order(refs: Refs) -> None:
    with listening() as listener:
        async with MozTCPSocket() as tcp:
            sock = tcp.open("127.0.0.1", port_of(listener))
            refs.append(weakref.ref(sock))
            sock.ondata = lambda event: event.target.send(event.data)
            with await accept(listener) as peer:
                await send_all(peer, b"hello")
                await blocking(peer.recv, 5)
                sock.close()


async def closed_with_much_to_send_and_asynchronous_handlers(refs: Refs) -> None:
    async def ondata(event: Any) -> None:
        await anyio.lowlevel.checkpoint()
        event.target.send(event.data * 1_000_000)
        event.target.close()

    with listening() as listener:
        async with TCPSocket("127.0.0.1", port_of(listener)) as sock:
            refs.append(weakref.ref(sock))
            sock.ondata = ondata
            with await accept(listener) as peer:
                await send_all(peer, b"hello")
                await blocking(read_all, peer)


async def a_stream(refs: Refs) -> None:
    with listening() as listener:
        async with MozTCPSocket() as tcp:
            sock = tcp.open("127.0.0.1", port_of(listener))
            stream = sock.stream()
            refs.append(weakref.ref(stream))
            refs.append(weakref.ref(sock))
            await stream.send(b"hello")
            with await accept(listener) as peer:
                await send_all(peer, b"hello")
                await stream.receive()
                await stream.aclose()


async def a_stream_that_is_lost(refs: Refs) -> None:
    with listening() as listener:
        async with MozTCPSocket() as tcp:
            sock = tcp.open("127.0.0.1", port_of(listener))
            refs.append(weakref.ref(sock))
            stream = sock.stream()
            await sock.opened()
            reset(await accept(listener))
            with suppress(anyio.BrokenResourceError):
                await stream.receive()
            await stream.aclose()


async def a_stream_that_never_ran(refs: Refs) -> None:
    sock = TCPSocket("127.0.0.1", 80)
    refs.append(weakref.ref(sock))
    await sock.stream().aclose()


async def lost(refs: Refs) -> None:
    with listening() as listener:
        async with MozTCPSocket() as tcp:
            sock = tcp.open("127.0.0.1", port_of(listener))
            refs.append(weakref.ref(sock))
            sock.onerror = lambda event: None
            await sock.opened()
            reset(await accept(listener))


async def lost_while_sending(refs: Refs) -> None:
    with listening() as listener:
        async with MozTCPSocket() as tcp:
            sock = tcp.open("127.0.0.1", port_of(listener))
            refs.append(weakref.ref(sock))
            sock.onerror = lambda event: None
            await sock.opened()
            peer = await accept(listener)
            sock.send(bytes(10_000_000))
            await all_blocked()
            reset(peer)


async def over_tls(refs: Refs) -> None:
    with listening() as listener:
        async with MozTCPSocket() as tcp:
            sock = tcp.open("127.0.0.1", port_of(listener), ssl_context=client_context(), useSecureTransport=True)
            refs.append(weakref.ref(sock))
            with await secure(await accept(listener), server_context(), server_side=True) as peer:
                await sock.opened()
                sock.close()
                await blocking(read_all, peer)


async def upgraded(refs: Refs) -> None:
    with listening() as listener:
        async with MozTCPSocket() as tcp:
            sock = tcp.open("127.0.0.1", port_of(listener))
            refs.append(weakref.ref(sock))
            peer = await accept(listener)
            await sock.opened()
            sock.upgradeToSecure(ssl_context=client_context(), server_hostname="localhost")
            with await secure(peer, server_context(), server_side=True) as peer:
                await sock.secured()
                sock.close()
                await blocking(read_all, peer)


async def tls_that_fails(refs: Refs) -> None:
    with listening() as listener:
        async with MozTCPSocket() as tcp:
            sock = tcp.open("127.0.0.1", port_of(listener), ssl_context=client_context(), useSecureTransport=True)
            refs.append(weakref.ref(sock))
            sock.onerror = lambda event: None
            with await accept(listener) as peer:
                await send_all(peer, b"HTTP/1.1 400 Bad Request\r\n\r\n")
                peer.shutdown(socket.SHUT_WR)
                await blocking(read_all, peer)


async def an_upgrade_that_fails(refs: Refs) -> None:
    with listening() as listener:
        async with MozTCPSocket() as tcp:
            sock = tcp.open("127.0.0.1", port_of(listener))
            refs.append(weakref.ref(sock))
            sock.onerror = lambda event: None
            await sock.opened()
            sock.upgradeToSecure(ssl_context=client_context(), server_hostname="localhost")
            with await accept(listener) as peer:
                await send_all(peer, b"HTTP/1.1 400 Bad Request\r\n\r\n")
                peer.shutdown(socket.SHUT_WR)
                await blocking(read_all, peer)


async def an_asynchronous_handler_that_raises(refs: Refs) -> None:
    async def onopen(event: Any) -> None:
        await anyio.lowlevel.checkpoint()
        raise ValueError("on purpose")

    with listening() as listener, suppress(ExceptionGroup):
        async with MozTCPSocket() as tcp:
            sock = tcp.open("127.0.0.1", port_of(listener))
            refs.append(weakref.ref(sock))
            sock.onopen = onopen


async def a_body_that_raises(refs: Refs) -> None:
    with listening() as listener, suppress(ValueError):
        async with TCPSocket("127.0.0.1", port_of(listener)) as sock:
            refs.append(weakref.ref(sock))
            await sock.opened()
            raise ValueError("on purpose")


async def an_attempt_that_is_given_up(refs: Refs) -> None:
    with listening() as listener:
        async with MozTCPSocket() as tcp:
            sock = tcp.open("127.0.0.1", port_of(listener), useSecureTransport=True, connect_timeout=0.02)
            refs.append(weakref.ref(sock))
            sock.onerror = lambda event: None


async def accepted(refs: Refs) -> None:
    async with MozTCPSocket() as tcp:
        server = tcp.listen(0, host="127.0.0.1")
        refs.append(weakref.ref(server))

        def onconnect(event: Any) -> None:
            refs.append(weakref.ref(event.socket))
            event.socket.ondata = lambda event: event.target.send(event.data)

        server.onconnect = onconnect
        with await dial(server.localPort) as peer:
            await send_all(peer, b"hello")
            await blocking(peer.recv, 5)
        server.close()


async def accepted_and_streamed(refs: Refs) -> None:
    async def onconnect(event: Any) -> None:
        refs.append(weakref.ref(event.socket))
        async with event.socket.stream() as stream:
            await stream.send(await stream.receive())

    async with TCPServerSocket(0, host="127.0.0.1") as server:
        refs.append(weakref.ref(server))
        server.onconnect = onconnect
        with await dial(server.localPort) as peer:
            await send_all(peer, b"hello")
            await blocking(read_all, peer)


async def accepted_and_failed(refs: Refs) -> None:
    def onconnect(event: Any) -> None:
        refs.append(weakref.ref(event.socket))
        raise ValueError("on purpose")

    async with TCPServerSocket(0, host="127.0.0.1") as server:
        refs.append(weakref.ref(server))
        server.onconnect = onconnect
        with await dial(server.localPort) as peer:
            await blocking(read_all, peer)


async def accepted_with_tls_that_fails(refs: Refs) -> None:
    async with MozTCPSocket() as tcp:
        server = tcp.listen(0, host="127.0.0.1", useSecureTransport=True, ssl_context=server_context())
        refs.append(weakref.ref(server))
        server.onconnect = print
        with await dial(server.localPort) as peer:
            await send_all(peer, b"GET / HTTP/1.1\r\n\r\n")
            with suppress(OSError):
                await blocking(read_all, peer)
        server.close()


@pytest.mark.parametrize(
    "scene",
    [
        refused,
        refused_by_each_address,
        refused_and_awaited,
        refused_and_unhandled,
        refused_in_its_own_block,
        refused_and_unhandled_in_its_own_block,
        refused_to_a_stream,
        closed_in_order,
        closed_with_much_to_send_and_asynchronous_handlers,
        a_stream,
        a_stream_that_is_lost,
        a_stream_that_never_ran,
        lost,
        lost_while_sending,
        over_tls,
        upgraded,
        tls_that_fails,
        an_upgrade_that_fails,
        an_asynchronous_handler_that_raises,
        a_body_that_raises,
        an_attempt_that_is_given_up,
        accepted,
        accepted_and_streamed,
        accepted_and_failed,
        accepted_with_tls_that_fails,
    ],
    ids=lambda scene: scene.__name__,
)
async def test_no_garbage(scene: Callable[[Refs], Awaitable[None]], anyio_backend_name: str) -> None:
    if anyio_backend_name == "trio" and tuple(map(int, version("trio").split(".")[:2])) < (0, 28):
        pytest.skip("this Trio looks into each frame for its protection from Ctrl-C, which keeps the variables there")
    refs: Refs = []
    await scene(refs)
    for _ in range(5):
        await anyio.lowlevel.checkpoint()  # its last tasks end
    assert refs
    assert [ref() for ref in refs] == [None] * len(refs)
