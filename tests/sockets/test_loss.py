"""When a connection is lost, the data that arrived before is delivered, and then an error that names the cause."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import ssl
import termios
from contextlib import suppress
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import SocketAttribute

from mozsocket import InvalidStateError, MozTCPSocket, TCPSocket, TCPSocketError
from mozsocket.testing import EventRecorder

from ..certificates import client_context, server_context
from ..peers import (
    PEER_TIMEOUT,
    accept,
    all_blocked,
    blocking,
    joined,
    port_of,
    reset,
    secure,
    send_all,
)

pytestmark = pytest.mark.anyio

MUCH = bytes(range(256)) * 4000  # a megabyte: more than is queued


def at_once(peer: socket.socket) -> None:
    """Send small data without delay, even if earlier data is not acknowledged yet."""
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


async def until_closed(descriptor: int) -> None:
    with anyio.fail_after(PEER_TIMEOUT):
        while is_open(descriptor):
            await all_blocked()


# Suspended, or with a slow handler


@pytest.mark.parametrize("pieces", [[b"one"], [b"1", b"2", b"3"], [b"1", b"2", b"3", b"4"], [bytes(7)] * 40])
async def test_a_loss_comes_behind_what_came_before_it(pieces: list[bytes], layer: str, role: str) -> None:
    async with joined(layer, role) as (sock, recorder, peer):
        descriptor = sock.extra(SocketAttribute.raw_socket).fileno()
        before = list(recorder.types)
        sock.suspend()
        at_once(peer)
        for piece in pieces:
            peer.sendall(piece)
            await all_blocked()
        reset(peer)
        await until_closed(descriptor)
        await all_blocked()
        assert recorder.types == before
        sock.resume()
        await recorder.first("close")
        assert recorder.data == b"".join(pieces)
        assert recorder.types == [*before, "data", "error", "close"]
        assert recorder.of("error")[-1].name == "NetworkInterruptError"


async def test_a_loss_behind_more_than_is_queued(layer: str, role: str) -> None:
    """Nothing is read while the queue is full, but the loss is noticed."""
    async with joined(layer, role) as (sock, recorder, peer):
        raw = sock.extra(SocketAttribute.raw_socket)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2 * len(MUCH))
        sock.suspend()
        await send_all(peer, MUCH)
        await blocking(until_sent, peer)
        descriptor = raw.fileno()
        reset(peer)
        await until_closed(descriptor)
        assert "error" not in recorder.types
        sock.resume()
        await recorder.first("close")
        assert recorder.data == MUCH
        assert recorder.types[-3:] == ["data", "error", "close"]


def until_sent(peer: socket.socket) -> None:
    """Wait until everything has arrived at the other end's system; a reset would discard it."""
    while int.from_bytes(fcntl.ioctl(peer, termios.TIOCOUTQ, bytes(4)), "little"):
        select.select([], [], [], 0.01)


async def test_a_loss_behind_a_slow_handler(layer: str, role: str) -> None:
    async with joined(layer, role) as (sock, recorder, peer):
        descriptor = sock.extra(SocketAttribute.raw_socket).fileno()
        entered, leave = anyio.Event(), anyio.Event()

        async def slow(event: Any) -> None:
            entered.set()
            await leave.wait()

        sock.ondata = slow
        at_once(peer)
        peer.sendall(b"first")
        await entered.wait()
        for number in range(10):
            peer.sendall(b"%d" % number)
            await all_blocked()
        reset(peer)
        await until_closed(descriptor)
        leave.set()
        await recorder.first("close")
        assert recorder.data == b"first0123456789"
        assert recorder.types[-3:] == ["data", "error", "close"]


async def test_with_nothing_before_it_a_loss_is_reported_immediately(layer: str, role: str) -> None:
    async with joined(layer, role) as (sock, recorder, peer):
        sock.suspend()
        reset(peer)
        await recorder.first("close")
        assert recorder.types[-2:] == ["error", "close"]


async def test_the_loss_of_a_suspended_connection_is_raised_where_it_matters(role: str) -> None:
    async with joined("plain", role) as (sock, recorder, peer):
        descriptor = sock.extra(SocketAttribute.raw_socket).fileno()
        sock.suspend()
        peer.sendall(b"held")
        await all_blocked()
        reset(peer)
        await until_closed(descriptor)
        with pytest.raises(TCPSocketError) as caught:
            await sock.drained()
        assert caught.value.name == "NetworkInterruptError"
        assert "error" not in recorder.types
        assert sock.readyState == "open"
        assert sock.send(b"into the void")
        assert sock.bufferedAmount == 0
        sock.resume()
        await recorder.first("close")
        assert recorder.data == b"held"


async def test_who_has_suspended_until_a_drain_that_cannot_come_is_not_left_waiting(layer: str, role: str) -> None:
    """For example, an echo server whose peer sends, never reads, and disappears."""
    async with joined(layer, role) as (sock, recorder, peer):

        def echo(event: Any) -> None:
            if not sock.send(event.data):
                sock.suspend()

        sock.ondata = echo
        sock.ondrain = lambda event: sock.resume()
        peer.setblocking(False)
        with suppress(BlockingIOError, ssl.SSLWantWriteError):
            while True:
                peer.send(bytes(65_536))
                await anyio.lowlevel.checkpoint()
        await all_blocked()
        assert sock.bufferedAmount
        reset(peer)
        await recorder.first("close")
        assert recorder.types[-2:] == ["error", "close"]


@pytest.mark.parametrize("call", ["close", "closeImmediately"])
async def test_closing_does_not_wait_to_be_resumed(call: str, layer: str, role: str) -> None:
    async with joined(layer, role) as (sock, recorder, peer):
        descriptor = sock.extra(SocketAttribute.raw_socket).fileno()
        sock.suspend()
        at_once(peer)
        peer.sendall(b"held")
        await all_blocked()
        reset(peer)
        await until_closed(descriptor)
        getattr(sock, call)()
        await recorder.first("close")
        assert "data" not in recorder.types
        assert recorder.types[-2:] == ["error", "close"]


async def test_the_block_of_a_lost_and_suspended_socket_ends(listener: socket.socket) -> None:
    with pytest.raises(TCPSocketError, match="NetworkInterruptError"):  # noqa: PT012
        async with TCPSocket("127.0.0.1", port_of(listener)) as sock:
            peer = await accept(listener)
            await sock.opened()
            descriptor = sock.extra(SocketAttribute.raw_socket).fileno()
            sock.suspend()
            peer.sendall(b"held")
            await all_blocked()
            reset(peer)
            await until_closed(descriptor)


async def test_suspending_again_between_the_rest_and_the_loss(role: str) -> None:
    async with joined("plain", role) as (sock, recorder, peer):
        descriptor = sock.extra(SocketAttribute.raw_socket).fileno()
        sock.suspend()
        await send_all(peer, bytes(200_000))
        await blocking(until_sent, peer)
        reset(peer)
        await until_closed(descriptor)
        sock.addEventListener("data", lambda event: sock.suspend())
        while len(recorder.data) < 200_000:
            assert "error" not in recorder.types
            sock.resume()
            await recorder.next("data")
            await all_blocked()
        await recorder.first("close")  # with nothing queued before it, suspended or not
        assert recorder.types[-3:] == ["data", "error", "close"]


async def test_an_end_that_was_queued_comes_before_what_is_lost_later(role: str) -> None:
    async with joined("plain", role, allow_half_open=True) as (sock, recorder, peer):
        sock.suspend()
        peer.sendall(b"all")
        peer.shutdown(socket.SHUT_WR)
        await all_blocked()
        reset(peer)
        with suppress(TCPSocketError, InvalidStateError):
            while True:
                sock.send(b"x")
                await sock.drained()
                await all_blocked()
        sock.resume()
        await recorder.first("close")
        assert recorder.data == b"all"
        assert recorder.types[-4:] == ["data", "end", "error", "close"]


async def test_what_waits_for_the_program_is_bounded_in_bytes(role: str) -> None:
    """This holds however small the received pieces are."""
    async with joined("plain", role) as (sock, recorder, peer):
        sock.suspend()
        at_once(peer)
        for _ in range(300):
            peer.sendall(b"x")
            await anyio.lowlevel.checkpoint()
            await anyio.lowlevel.checkpoint()
        await all_blocked()
        peer.setblocking(False)
        sent = 0
        with suppress(BlockingIOError):
            while sent < 50_000_000:
                sent += peer.send(bytes(65_536))
                await anyio.lowlevel.checkpoint()
        peer.settimeout(PEER_TIMEOUT)
        assert sent < 20_000_000  # what the two systems buffer, and 320 KiB
        sock.resume()
        peer.shutdown(socket.SHUT_WR)
        await recorder.first("close")
        assert recorder.data == b"x" * 300 + bytes(sent)


# A reset is not an EOF


async def test_a_reset_that_sending_met_first_is_no_end(role: str) -> None:
    """The system reports a reset only once, here to send()."""
    async with joined("plain", role, allow_half_open=True) as (sock, recorder, peer):

        def ondata(event: Any) -> None:
            reset(peer)
            sock.send(b"x")  # sent when this returns, before anything is read

        sock.ondata = ondata
        peer.sendall(b"data")
        await recorder.first("close")
        assert recorder.types[-3:] == ["data", "error", "close"]
        assert recorder.of("error")[-1].name == "NetworkInterruptError"


async def test_an_end_before_a_reset_is_one(role: str) -> None:
    async with joined("plain", role, allow_half_open=True) as (sock, recorder, peer):

        def ondata(event: Any) -> None:
            peer.shutdown(socket.SHUT_WR)
            reset(peer)
            sock.send(b"x")

        sock.ondata = ondata
        peer.sendall(b"data")
        await recorder.first("close")
        assert recorder.types[-4:] == ["data", "end", "error", "close"]


@pytest.mark.parametrize("ended", [False, True], ids=["reset", "ended"])
async def test_a_stream_distinguishes_a_reset_from_an_end(ended: bool, role: str) -> None:
    async with joined("plain", role) as (sock, recorder, peer):
        stream = sock.stream()
        peer.sendall(b"before")
        if ended:
            peer.shutdown(socket.SHUT_WR)
        await blocking(until_sent, peer)
        reset(peer)
        with pytest.raises(anyio.BrokenResourceError):
            await stream.send(b"x")
        assert await stream.receive() == b"before"
        for _ in range(3):
            with pytest.raises(anyio.EndOfStream if ended else anyio.BrokenResourceError):
                await stream.receive()
        await recorder.first("close")
        assert recorder.types[-2:] == ["error", "close"]
        await stream.aclose()
        with pytest.raises(anyio.ClosedResourceError):
            await stream.receive()


async def test_after_the_end_a_failing_send_leaves_it_the_end(role: str) -> None:
    async with joined("plain", role) as (sock, recorder, peer):
        stream = sock.stream()
        peer.sendall(b"all")
        peer.shutdown(socket.SHUT_WR)
        assert await stream.receive() == b"all"
        with pytest.raises(anyio.EndOfStream):
            await stream.receive()
        peer.close()
        with pytest.raises(anyio.BrokenResourceError):  # noqa: PT012
            while True:
                await stream.send(b"x")
                await all_blocked()
        with pytest.raises(anyio.EndOfStream):
            await stream.receive()
        await recorder.first("close")
        with pytest.raises(anyio.EndOfStream):
            await stream.receive()


async def test_a_receive_under_way_gets_what_came_before_a_failed_send(role: str) -> None:
    async with joined("plain", role) as (sock, _, peer):
        stream = sock.stream()
        received = bytearray()

        async def receive() -> None:
            with pytest.raises(anyio.BrokenResourceError):  # noqa: PT012
                while True:
                    received.extend(await stream.receive(3))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(receive)
            await all_blocked()
            peer.sendall(b"all of it")
            await blocking(until_sent, peer)
            reset(peer)
            with pytest.raises(anyio.BrokenResourceError):
                await stream.send(b"x")
        assert received == b"all of it"


# The cause of a loss: the peer's alert arrives after the failure of a send


NO_CERTIFICATE = ("SecurityNoCertificateError", "SecurityError")
"""TLS 1.2 has no alert of its own for a missing certificate."""


@pytest.mark.parametrize("way", ["handlers", "stream", "starttls"])
async def test_the_alert_is_reported_and_not_the_reset_behind_it(
    way: str, version: ssl.TLSVersion, listener: socket.socket
) -> None:
    """A server that demands a certificate refuses a client that has begun to send."""
    context = server_context(version=version, ask_for_certificate=True)
    for _ in range(5):
        async with MozTCPSocket() as tcp:
            tls: dict[str, Any] = {"ssl_context": client_context(version=version), "server_hostname": "localhost"}
            options = {} if way == "starttls" else {"useSecureTransport": True, **tls}
            sock = tcp.open("127.0.0.1", port_of(listener), **options)
            recorder = EventRecorder(sock)
            stream = sock.stream() if way == "stream" else None
            peer = await accept(listener)
            if way == "starttls":
                await sock.opened()
                sock.upgradeToSecure(**tls)
                sock.send(MUCH)
            else:
                sock.onopen = lambda event: event.target.send(MUCH)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(refuse, peer, context)
                if stream is not None:
                    with pytest.raises(anyio.BrokenResourceError) as caught:  # noqa: PT012
                        while True:
                            await stream.send(MUCH)
                    assert isinstance(caught.value.__cause__, TCPSocketError)
                    assert caught.value.__cause__.name in NO_CERTIFICATE
                await recorder.first("close")
            assert recorder.of("error")[-1].name in NO_CERTIFICATE


async def refuse(peer: socket.socket, context: ssl.SSLContext) -> None:
    with suppress(ssl.SSLError), peer:
        (await secure(peer, context, server_side=True)).close()


# Abrupt closing


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork()")
@pytest.mark.parametrize("end", ["closeImmediately", "raise", "cancel", "linger"])
async def test_the_peer_is_notified_though_a_child_has_the_socket_too(
    end: str, layer: str, listener: socket.socket
) -> None:
    options: dict[str, Any] = {}
    if layer != "plain":
        options = {"useSecureTransport": True, "ssl_context": client_context(), "server_hostname": "localhost"}
    inherited: list[int] = []
    with suppress(ZeroDivisionError), anyio.CancelScope() as scope:
        async with TCPSocket("127.0.0.1", port_of(listener), linger=0, **options) as sock:
            peer = await accept(listener)
            if layer != "plain":
                peer = await secure(peer, server_context(), server_side=True)
            await sock.opened()
            inherited.append(os.dup(sock.extra(SocketAttribute.raw_socket).fileno()))  # as a forked child would have it
            if end == "closeImmediately":
                sock.closeImmediately()
                await sock.closed()
            elif end == "raise":
                1 / 0  # noqa: B018
            elif end == "cancel":
                scope.cancel()
                await anyio.sleep_forever()
    with peer:
        peer.settimeout(PEER_TIMEOUT)
        with suppress(ssl.SSLEOFError, ConnectionResetError, BrokenPipeError):  # TLS may still try to send something
            assert await blocking(peer.recv, 1) == b""
    os.close(inherited[0])
