"""Streams whose users give up: cancelled sends, and closing without waiting for the peer."""

from __future__ import annotations

import itertools
import os
import socket
import ssl
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

import anyio
import pytest
from anyio.abc import ByteStream, SocketAttribute

from mozsocket import MozTCPSocket, TCPSocket
from mozsocket.testing import EventRecorder

from ..certificates import VERSIONS, client_context, server_context
from ..conftest import open_descriptors
from ..peers import (
    PEER_TIMEOUT,
    accept,
    all_blocked,
    blocking,
    connected,
    dial,
    exchange,
    joined,
    port_of,
    read_all,
    read_exactly,
    reset,
    secure,
    unused_port,
)

if sys.version_info < (3, 11):  # a dependency of AnyIO
    from exceptiongroup import ExceptionGroup

pytestmark = pytest.mark.anyio

MUCH = bytes(range(256)) * 40_000  # 10 MB: more than the kernel buffers between two sockets of this machine

LONG = 60  # seconds of `linger` that no test could wait for


async def give_up(call: Callable[..., Coroutine[Any, Any, object]], *args: object) -> None:
    """Cancel a call once it waits."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call, *args)
        await all_blocked()
        tasks.cancel_scope.cancel()


# The next send waits for the remainder of the cancelled one


@pytest.mark.usefixtures("impatient")
async def test_sends_that_are_given_up_do_not_pile_up(layer: str, role: str) -> None:
    async with joined(layer, role) as (sock, _, peer):
        stream = sock.stream()
        for number in range(8):
            await give_up(stream.send, MUCH if number == 0 else bytes([number]) * len(MUCH))
            assert 0 < sock.bufferedAmount <= len(MUCH)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stream.send, b"the end")
            assert await blocking(read_exactly, peer, len(MUCH) + 7) == MUCH + b"the end"
        await stream.send_eof()
        assert await blocking(read_all, peer) == b""
        await stream.aclose()


async def test_sends_that_time_out_one_after_another(role: str, listener: socket.socket) -> None:
    """As in a program that tries again."""
    async with MozTCPSocket() as tcp:
        sock, _, peer = await connected(tcp, role, listener, max_buffered_amount=1_000_000)
        with peer:
            stream = sock.stream()
            for _ in range(8):
                with anyio.move_on_after(0.02) as limit:
                    await stream.send(MUCH)
                assert limit.cancelled_caught
                assert sock.bufferedAmount <= len(MUCH)
                with pytest.raises(BufferError):
                    sock.send(b"x")
            sock.closeImmediately()


@pytest.mark.usefixtures("impatient")
async def test_an_end_that_is_given_up_was_not_sent(layer: str, role: str) -> None:
    async with joined(layer, role) as (sock, _, peer):
        stream = sock.stream()
        await give_up(stream.send, MUCH)
        await give_up(stream.send_eof)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stream.send, b"more")
            assert await blocking(read_exactly, peer, len(MUCH) + 4) == MUCH + b"more"
        await stream.send_eof()
        assert await blocking(read_all, peer) == b""
        await stream.aclose()


@pytest.mark.usefixtures("impatient")
async def test_an_end_waits_for_what_is_left(layer: str, role: str) -> None:
    async with joined(layer, role) as (sock, _, peer):
        stream = sock.stream()
        await give_up(stream.send, MUCH)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stream.send_eof)
            assert await blocking(read_all, peer) == MUCH
        with pytest.raises(anyio.ClosedResourceError):
            await stream.send(b"x")
        await stream.aclose()


@pytest.mark.usefixtures("impatient")
async def test_after_the_end_nothing_waits(role: str, listener: socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        sock, _, peer = await connected(tcp, role, listener)
        with peer:
            stream = sock.stream()
            await give_up(stream.send, MUCH)
            sock.send_eof()
            with anyio.fail_after(PEER_TIMEOUT), pytest.raises(anyio.ClosedResourceError):
                await stream.send(b"x")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(stream.send_eof)
                assert await blocking(read_all, peer) == MUCH
            await stream.aclose()


@pytest.mark.usefixtures("impatient")
async def test_before_a_handshake(role: str, version: ssl.TLSVersion, listener: socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        ours, theirs = client_context(version=version), server_context(version=version)
        if role == "server":
            ours, theirs = server_context(version=version), client_context(version=version)
        sock, _, peer = await connected(tcp, role, listener)
        stream = sock.stream()
        sock.upgradeToSecure(ssl_context=ours, server_hostname="localhost")
        await give_up(stream.send, b"once")
        await give_up(stream.send, b"never")
        await give_up(stream.send_eof)
        assert sock.bufferedAmount == 4
        with await secure(peer, theirs, server_side=role == "client") as tls:
            await stream.send(b", and again")
            await stream.send_eof()
            assert await blocking(exchange, tls, b"", 15) == b"once, and again"
            assert await blocking(tls.recv, 1) == b""
            await stream.aclose()


async def test_while_connecting(clogged: int) -> None:
    async with MozTCPSocket() as tcp:
        sock = tcp.open("127.0.0.1", clogged)
        stream = sock.stream()
        for call, args in ((stream.send, (b"never",)), (stream.send_eof, ()), (stream.receive, ())):
            await give_up(call, *args)
        assert sock.bufferedAmount == 0
        await stream.aclose()


async def test_what_was_given_up_before_the_connection_was_there(listener: socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        stream = tcp.open(
            "127.0.0.1", port_of(listener), useSecureTransport=True, ssl_context=client_context()
        ).stream()
        with await accept(listener) as peer:
            await give_up(stream.send, b"never")
            await give_up(stream.send_eof)
            with await secure(peer, server_context(), server_side=True) as tls:
                await stream.send(b"hello")
                assert await blocking(read_exactly, tls, 5) == b"hello"
                await stream.aclose()


async def test_what_is_left_is_lost_with_the_connection(layer: str, role: str) -> None:
    async with joined(layer, role) as (sock, recorder, peer):
        stream = sock.stream()
        await give_up(stream.send, MUCH)

        async def broken() -> None:
            with pytest.raises(anyio.BrokenResourceError):
                await stream.send(b"never")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(broken)
            await all_blocked()
            reset(peer)
        await stream.aclose()
        await recorder.first("close")


# Together with handlers that send on the same socket


@pytest.mark.usefixtures("impatient")
async def test_a_send_waits_for_its_own_and_not_for_what_is_sent_behind_it(layer: str, role: str) -> None:
    async with joined(layer, role) as (sock, _, peer):
        stream = sock.stream()
        sent = anyio.Event()

        async def send() -> None:
            await stream.send(MUCH)
            sent.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send)
            await all_blocked()
            sock.send(5 * MUCH)  # more than the two systems buffer, even after these buffers have grown
            assert await blocking(read_exactly, peer, len(MUCH)) == MUCH
            with anyio.fail_after(PEER_TIMEOUT):
                await sent.wait()
            assert sock.bufferedAmount > 0
            await give_up(stream.send, b"behind that")
            assert await blocking(read_exactly, peer, 5 * len(MUCH) + 11) == 5 * MUCH + b"behind that"
        assert sock.bufferedAmount == 0
        await stream.aclose()


@pytest.mark.usefixtures("impatient")
async def test_what_is_given_up_does_not_hold_up_the_handlers(role: str, listener: socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        sock, recorder, peer = await connected(tcp, role, listener)
        with peer:
            await give_up(sock.stream().send, MUCH)
            assert not sock.send(b"from a handler")
            assert await blocking(read_exactly, peer, len(MUCH) + 14) == MUCH + b"from a handler"
            await recorder.first("drain")
            await sock.stream().aclose()


# Closing


def descriptor_of(sock: TCPSocket) -> tuple[int, str]:
    """The number of the socket's descriptor and what it refers to, as the number may soon be reused."""
    number = sock.extra(SocketAttribute.raw_socket).fileno()
    return number, open_descriptors().get(number, "")


def is_open(descriptor: tuple[int, str]) -> bool:
    number, name = descriptor
    if sys.platform == "linux":
        return open_descriptors().get(number) == name
    with suppress(OSError):
        os.fstat(number)
        return True
    return False


@pytest.mark.parametrize("sending", ["given up", "in progress"])
async def test_closing_waits_for_no_peer_that_does_not_read(sending: str, layer: str, role: str) -> None:
    """This is closing in clean-up code, where it is shielded from cancellation."""
    async with joined(layer, role, linger=LONG) as (sock, recorder, _):
        stream = sock.stream()
        descriptor = descriptor_of(sock)
        async with anyio.create_task_group() as tasks:

            async def send() -> None:
                with pytest.raises(anyio.ClosedResourceError):
                    await stream.send(MUCH)

            if sending == "given up":
                await give_up(stream.send, MUCH)
            else:
                tasks.start_soon(send)
                await all_blocked()
            began = time.monotonic()
            with anyio.CancelScope(shield=True):
                await stream.aclose()
            assert not is_open(descriptor)
            assert sock.bufferedAmount == 0
            assert time.monotonic() - began < PEER_TIMEOUT
        await recorder.first("close")
        assert "error" not in recorder.types


@pytest.mark.parametrize("linger", [0, 0.2])
async def test_closing_lasts_no_longer_than_linger(linger: float, layer: str, role: str) -> None:
    async with joined(layer, role, linger=linger) as (sock, recorder, _):
        stream = sock.stream()
        descriptor = descriptor_of(sock)
        sock.send(MUCH)
        await all_blocked()
        began = time.monotonic()
        await stream.aclose()
        assert linger - 0.05 <= time.monotonic() - began < PEER_TIMEOUT / 2  # uvloop's clock stands still within a turn
        assert not is_open(descriptor)
        await recorder.first("close")
        assert "error" not in recorder.types


async def test_closing_lasts_no_longer_than_linger_before_a_handshake(role: str, listener: socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        context = client_context() if role == "client" else server_context()
        sock, _, peer = await connected(tcp, role, listener, linger=0.2)
        with peer:
            descriptor = descriptor_of(sock)
            sock.upgradeToSecure(ssl_context=context, server_hostname="localhost")
            sock.send(b"secret")
            began = time.monotonic()
            await sock.stream().aclose()
            assert 0.15 <= time.monotonic() - began < PEER_TIMEOUT / 2
            assert not is_open(descriptor)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("linger", [0, LONG])
async def test_closing_sends_all_that_is_taken(linger: float, layer: str, role: str) -> None:
    """EOF is sent as well, however short the time: the peer is not cut off."""
    async with joined(layer, role, linger=linger) as (sock, recorder, peer):
        sock.send(b"all of it")
        await sock.stream().aclose()
        assert await blocking(read_all, peer) == b"all of it"
        peer.close()
        await recorder.first("close")
        assert "error" not in recorder.types


async def test_closing_waits_for_a_peer_that_reads(layer: str, role: str) -> None:
    async with joined(layer, role, linger=LONG) as (sock, recorder, peer):
        descriptor = descriptor_of(sock)
        sock.send(MUCH)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sock.stream().aclose)
            assert await blocking(read_all, peer) == MUCH
            peer.close()
        await recorder.first("close")
        assert not is_open(descriptor)
        assert "error" not in recorder.types


async def test_a_peer_that_closes_too_has_closed_when_it_returns(layer: str, role: str) -> None:
    async with joined(layer, role, linger=LONG) as (sock, _, peer):
        descriptor = descriptor_of(sock)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sock.stream().send, b"bye")
            assert await blocking(read_exactly, peer, 3) == b"bye"
        peer.close()
        await sock.stream().aclose()
        assert not is_open(descriptor)


async def test_a_connection_that_was_lost_is_closed(layer: str, role: str) -> None:
    async with joined(layer, role, linger=LONG) as (sock, recorder, peer):
        stream = sock.stream()
        descriptor = descriptor_of(sock)
        await give_up(stream.send, MUCH)
        reset(peer)
        await stream.aclose()
        assert not is_open(descriptor)
        await recorder.first("close")


# The descriptor is closed when aclose() returns

STATES = ["idle", "receiving", "sending", "both", "given up", "ended"]


async def begin(state: str, sock: TCPSocket, tasks: anyio.abc.TaskGroup) -> None:
    """Bring a stream into a state."""

    async def wait(call: Callable[..., Awaitable[object]], *args: object) -> None:
        with suppress(anyio.ClosedResourceError):
            await call(*args)

    stream = sock.stream()
    if state in ("receiving", "both"):
        tasks.start_soon(wait, stream.receive)
    if state in ("sending", "both"):
        tasks.start_soon(wait, stream.send, MUCH)
    if state == "given up":
        await give_up(stream.send, MUCH)
    if state == "ended":
        await stream.send_eof()
        tasks.start_soon(wait, stream.receive)
    if state == "handshake":
        sock.upgradeToSecure(ssl_context=client_context(), server_hostname="localhost")
        tasks.start_soon(wait, stream.receive)
        tasks.start_soon(wait, stream.send, b"secret")
    await all_blocked()


async def close_cancelled(stream: ByteStream) -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        await stream.aclose()


async def close_given_up(stream: ByteStream) -> None:
    with anyio.move_on_after(0.02):
        await stream.aclose()


WAYS = {"forcefully": anyio.aclose_forcefully, "cancelled": close_cancelled, "given up": close_given_up}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("layer", "state"),
    [("plain", "handshake"), *itertools.product(["plain", *VERSIONS], STATES)],
)
async def test_the_descriptor_is_closed_when_it_returns(state: str, way: str, layer: str) -> None:
    async with (
        joined(layer, "client", linger=LONG) as (sock, recorder, _),
        anyio.create_task_group() as tasks,
    ):
        await begin(state, sock, tasks)
        if way == "given up" and state in ("idle", "receiving", "handshake"):
            sock.send(MUCH)  # otherwise it might end too early
        descriptor = descriptor_of(sock)
        await WAYS[way](sock.stream())
        assert not is_open(descriptor)
        await recorder.first("close")
        assert "error" not in recorder.types


def open_sockets() -> set[int]:
    """The descriptors of Internet sockets. The resolver's thread, which continues after a cancellation, has other
    descriptors.
    """
    found = set()
    for number, name in open_descriptors().items():
        if name.startswith("socket:"):
            with suppress(OSError), socket.socket(fileno=os.dup(number)) as sock:  # it may be closed already
                if sock.family in (socket.AF_INET, socket.AF_INET6):
                    found.add(number)
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize("way", [*WAYS, "in order"])
@pytest.mark.parametrize("waiting", [False, True], ids=["alone", "waited for"])
@pytest.mark.parametrize("state", ["at once", "connecting", "several addresses", "shaking hands"])
async def test_no_descriptor_is_left_of_an_attempt(
    state: str, waiting: bool, way: str, clogged: int, listener: socket.socket
) -> None:
    """The attempt is to connect, or to shake hands."""
    async with MozTCPSocket() as tcp, anyio.create_task_group() as tasks:
        before = open_sockets()
        port = port_of(listener) if state == "shaking hands" else clogged
        tls: dict[str, Any] = {}
        if state == "shaking hands":
            tls = {"useSecureTransport": True, "ssl_context": client_context()}
        stream = tcp.open("localhost" if state == "several addresses" else "127.0.0.1", port, **tls).stream()

        async def wait() -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await stream.receive()

        if waiting:
            tasks.start_soon(wait)
        if state != "at once":
            while open_sockets() <= before:  # the resolver takes some time
                await all_blocked()
        if state == "shaking hands":
            peer = await accept(listener)
            before.add(peer.fileno())
        with anyio.CancelScope(shield=True):
            await (stream.aclose() if way == "in order" else WAYS[way](stream))
        assert open_sockets() <= before
        if state == "shaking hands":
            peer.close()


@pytest.mark.parametrize("way", [*WAYS, "in order"])
async def test_after_a_connection_that_failed(way: str) -> None:
    async with TCPSocket("127.0.0.1", unused_port()) as sock:
        stream = sock.stream()
        with pytest.raises(anyio.BrokenResourceError):
            await stream.send(b"x")
        for _ in range(2):
            await (stream.aclose() if way == "in order" else WAYS[way](stream))


async def test_an_adopted_socket_that_has_not_begun() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        await anyio.aclose_forcefully(TCPSocket.from_socket(ours).stream())
        assert ours.fileno() == -1


async def test_an_adopted_socket_that_is_about_to_begin() -> None:
    for close in (TCPSocket.closeImmediately, TCPSocket.close):
        ours, theirs = socket.socketpair()
        with theirs:
            async with TCPSocket.from_socket(ours) as sock:
                await anyio.aclose_forcefully(sock.stream())
                assert ours.fileno() == -1
                close(sock)
                close(sock)


async def test_closed_again_and_by_several(layer: str, role: str) -> None:
    async with joined(layer, role, linger=LONG) as (sock, recorder, _):
        stream = sock.stream()
        await give_up(stream.send, MUCH)
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(stream.aclose)
        await stream.aclose()
        await recorder.first("close")
        await stream.aclose()
        await anyio.aclose_forcefully(stream)


async def test_within_a_handler_of_the_same_socket() -> None:
    """For example, in a server whose clients do not read: the handler ends, and its connection is closed."""
    closed = anyio.Event()
    recorders: list[EventRecorder] = []

    async def onconnect(event: Any) -> None:
        recorders.append(EventRecorder(event.socket))
        try:
            async with event.socket.stream() as stream:
                with anyio.fail_after(0.1):
                    await stream.send(MUCH)
        except TimeoutError:
            closed.set()

    async with MozTCPSocket() as tcp:
        server = tcp.listen(0, host="127.0.0.1", linger=LONG)
        server.onconnect = onconnect
        with await dial(server.localPort), anyio.fail_after(PEER_TIMEOUT):
            await closed.wait()
            await recorders[0].first("close")
        server.close()


# Blocks that are left while a peer does not read


@pytest.mark.parametrize("block", ["socket", "scope", "socket of a scope", "server"])
@pytest.mark.parametrize("by", ["cancellation", "exception"])
async def test_a_block_that_is_left_early_waits_for_no_peer(block: str, by: str, listener: socket.socket) -> None:
    """This holds whatever data was to be sent, even if the socket was closing already."""
    with (
        anyio.fail_after(PEER_TIMEOUT),
        suppress(KeyError, ExceptionGroup),
    ):
        with anyio.CancelScope() as scope:
            if block == "server":
                async with MozTCPSocket() as tcp:
                    sock, _, peer = await connected(tcp, "server", listener, linger=LONG)
                    await leave(sock, peer, by, scope)
            elif block == "socket":
                async with TCPSocket("127.0.0.1", port_of(listener), linger=LONG) as sock:
                    peer = await accept(listener)
                    await sock.opened()
                    await leave(sock, peer, by, scope)
            else:
                async with MozTCPSocket() as tcp:
                    sock, _, peer = await connected(tcp, "client", listener, linger=LONG)
                    if block == "scope":
                        await leave(sock, peer, by, scope)
                    else:
                        async with sock:
                            await leave(sock, peer, by, scope)


async def leave(sock: TCPSocket, peer: socket.socket, by: str, scope: anyio.CancelScope) -> None:
    sock.send(MUCH)
    sock.close()
    with peer:
        await all_blocked()
        assert sock.readyState == "closing"
        if by == "exception":
            raise KeyError
        scope.cancel()
        await anyio.sleep_forever()
