"""Race conditions that programs rarely hit. Each of these was a bug once."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import socket as stdlib_socket
import sys
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
    Accepting,
    accept,
    all_blocked,
    blocking,
    connected,
    dial,
    port_of,
    read_all,
    reset,
    send_all,
)

pytestmark = pytest.mark.anyio

CONTEXTS = {"client": client_context(), "server": server_context()}
MANY = 8 << 20  # bytes that no kernel buffers between two sockets of this machine


async def test_reopening_when_the_old_connection_is_stuck(listener: stdlib_socket.socket) -> None:
    """The new socket may get the old one's descriptor number while tasks still wait for the old one."""
    async with MozTCPSocket() as tcp:
        old, _, peer = await connected(tcp, "client", listener)
        old.send(bytes(MANY))
        await all_blocked()
        new = tcp.open("127.0.0.1", port_of(listener))
        old.closeImmediately()
        with anyio.fail_after(5):
            await new.opened()
        peer.close()
        (await accept(listener)).close()


async def test_a_port_can_be_listened_on_again_at_once() -> None:
    async with MozTCPSocket() as tcp:
        first = tcp.listen(0)
        await all_blocked()
        first.close()
        second = tcp.listen(first.localPort)
        accepting = Accepting(second)
        with await dial(second.localPort) as peer:
            await accepting.first()
            peer.shutdown(stdlib_socket.SHUT_WR)
            assert await blocking(read_all, peer) == b""
        second.close()


async def test_an_upgrade_when_the_connection_is_lost_and_that_is_not_reported_yet(
    role: str, listener: stdlib_socket.socket
) -> None:
    async def slow(event: Any) -> None:
        await anyio.lowlevel.checkpoint()

    for turns in range(20):
        async with MozTCPSocket() as tcp:
            socket, events, peer = await connected(tcp, role, listener)
            socket.ondata = slow  # so that events are delivered by a separate task
            reset(peer)
            for _ in range(turns):
                await anyio.lowlevel.checkpoint()
            with suppress(InvalidStateError):
                socket.upgradeToSecure(ssl_context=CONTEXTS[role])
            await events.first("close")
            assert events.types[-2:] == ["error", "close"]
            assert events.of("error")[-1].name == "NetworkInterruptError"


# Asynchronous handlers begin in the same step in which their event is taken from the queue.


@pytest.mark.parametrize("call", ["close", "closeImmediately", "suspend"])
async def test_no_async_handler_begins_after(call: str, listener: stdlib_socket.socket) -> None:
    """This holds whenever the call happens between the arrival of data and the handler."""
    for turns in range(12):
        async with MozTCPSocket() as tcp:
            socket, _, peer = await connected(tcp, "client", listener, linger=0)
            called = False
            late = []

            async def ondata(event: Any) -> None:
                if called:  # noqa: B023
                    late.append(event)  # noqa: B023

            socket.ondata = ondata
            peer.sendall(b"data")
            for _ in range(turns):
                await anyio.lowlevel.checkpoint()
            getattr(socket, call)()
            called = True
            await all_blocked()
            peer.close()
            assert late == []
            socket.closeImmediately()


async def test_an_async_drain_begins_with_nothing_buffered(listener: stdlib_socket.socket) -> None:
    for turns in range(12):
        async with MozTCPSocket() as tcp:
            socket, _, peer = await connected(tcp, "client", listener, linger=0)
            amounts = []

            async def ondrain(event: Any) -> None:
                amounts.append(event.target.bufferedAmount)  # noqa: B023

            socket.ondrain = ondrain
            socket.send(bytes(70_000))
            for _ in range(turns):
                await anyio.lowlevel.checkpoint()
            socket.send(bytes(MANY))
            await all_blocked()
            socket.closeImmediately()
            peer.close()
            assert set(amounts) <= {0}


# A CancelledError that is not a cancellation


@pytest.fixture(params=["function", "async function"])
def cancelled_result(request: pytest.FixtureRequest, anyio_backend: tuple[str, dict[str, Any]]) -> Any:
    """A handler that reads the result of its own, cancelled future."""
    if anyio_backend[0] != "asyncio":
        pytest.skip("only asyncio lets a program raise a cancellation by accident")

    def take(event: Any) -> None:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        future.result()

    async def await_it(event: Any) -> None:
        task = asyncio.ensure_future(asyncio.sleep(9))
        task.cancel()
        await task

    return take if request.param == "function" else await_it


async def test_a_stray_cancellation_on_an_accepted_socket(
    cancelled_result: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with MozTCPSocket() as tcp:
        accepting = Accepting(tcp.listen(0, host="127.0.0.1"))
        with await dial(accepting.server.localPort) as peer:
            socket, events = await accepting.first()
            socket.ondata = cancelled_result
            peer.sendall(b"data")
            await events.first("close")
        with await dial(accepting.server.localPort):  # the server continues
            await all_blocked()
            assert len(accepting.sockets) == 2
        accepting.server.close()
    assert "a handler raised CancelledError, though nothing had cancelled it" in caplog.text


async def test_a_stray_cancellation_leaves_the_block(cancelled_result: Any, listener: stdlib_socket.socket) -> None:
    with pytest.raises(RuntimeError, match="a handler raised CancelledError") as caught:  # noqa: PT012
        async with TCPSocket("127.0.0.1", port_of(listener)) as socket:
            socket.onopen = cancelled_result
            (await accept(listener)).close()
            await anyio.sleep_forever()
    assert isinstance(caught.value.__cause__, asyncio.CancelledError)


# Whether a failure was reported to somebody


async def test_awaiting_a_state_that_was_reached_reports_no_failure(listener: stdlib_socket.socket) -> None:
    """The connection opens and is lost in one step: opened() returns, and the loss leaves the block."""
    socket = TCPSocket.from_socket(await dial(port_of(listener)))
    reset(await accept(listener))
    with pytest.raises(TCPSocketError, match="NetworkInterruptError"):  # noqa: PT012
        async with socket:
            await socket.opened()
            await all_blocked()


async def test_no_failure_is_reported_to_an_awaiter_that_gave_up(listener: stdlib_socket.socket) -> None:
    leave = anyio.Event()

    async def onclose(event: Any) -> None:
        await leave.wait()

    with pytest.raises(TCPSocketError, match="NetworkInterruptError"):  # noqa: PT012
        async with TCPSocket("127.0.0.1", port_of(listener)) as socket:
            socket.onclose = onclose
            reset(await accept(listener))
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(socket.closed)
                    await all_blocked()
                    scope.cancel()
            leave.set()


# After a failed write


async def test_what_had_come_is_delivered_to_a_slow_handler_whatever_linger(listener: stdlib_socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        socket, events, peer = await connected(tcp, "client", listener, linger=0)

        async def slow(event: Any) -> None:
            for _ in range(20):
                await anyio.lowlevel.checkpoint()

        socket.ondata = slow
        socket.suspend()
        # The system must hold what is not queued; if it is read in small pieces, that is nearly all of it.
        socket.extra(SocketAttribute.raw_socket).setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_RCVBUF, 400_000)
        await blocking(peer.sendall, bytes(340_000))  # more than is queued
        while unsent(peer):
            await anyio.lowlevel.checkpoint()
        socket.send(bytes(MANY))
        await all_blocked()
        socket.resume()
        peer.close()  # with unread input: the system sends RST
        await events.first("close")
        assert len(events.data) == 340_000
        assert events.types[-2:] == ["error", "close"]


def unsent(sock: stdlib_socket.socket) -> int:
    """The bytes that have not arrived at the other end's system; a reset would discard them."""
    return int.from_bytes(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


@pytest.mark.usefixtures("impatient")
async def test_suspending_after_a_failure_holds_what_came_before_and_the_error(anyio_backend_name: str) -> None:
    """Only writing has failed on this connection; the peer's EOF has not arrived."""
    ours, peer = stdlib_socket.socketpair()
    with peer:
        socket = TCPSocket.from_socket(ours)
        entered, leave = anyio.Event(), anyio.Event()

        async def ondata(event: Any) -> None:
            entered.set()
            await leave.wait()
            socket.suspend()

        socket.ondata = ondata
        events = EventRecorder(socket)
        async with anyio.create_task_group() as tasks, socket:
            await socket.opened()
            peer.sendall(b"1")
            await entered.wait()
            tasks.start_soon(send_all_or_fail, peer, bytes(MANY))
            await all_blocked()
            ours.shutdown(stdlib_socket.SHUT_WR)
            socket.send(b"x")
            await all_blocked()
            leave.set()
            with pytest.raises(TCPSocketError):
                await socket.drained()
            assert events.types == ["open", "data"]
            socket.ondata = None
            socket.resume()
            with anyio.fail_after(5):
                error = await events.first("error")
            assert error.errorCode == errno.EPIPE
            await events.first("close")


async def send_all_or_fail(sock: stdlib_socket.socket, data: bytes) -> None:
    with suppress(BrokenPipeError, ConnectionResetError):
        await send_all(sock, data)


@pytest.mark.usefixtures("impatient")
async def test_a_failure_is_reported_though_the_peer_never_ends(listener: stdlib_socket.socket) -> None:
    ours, peer = stdlib_socket.socketpair()
    with peer:
        async with TCPSocket.from_socket(ours) as socket:
            await socket.opened()
            events = EventRecorder(socket)
            ours.shutdown(stdlib_socket.SHUT_WR)
            socket.send(b"x")
            await events.first("close")
            assert events.types == ["error", "close"]


# Incorrect use


async def test_leaving_a_block_in_another_task(listener: stdlib_socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        socket, _, peer = await connected(tcp, "client", listener)

        async def leave() -> None:
            with pytest.raises(RuntimeError, match="is left in another task than it was entered in"):
                await socket.__aexit__(None, None, None)

        async with socket:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(leave)
            peer.close()


def test_a_subclass_cannot_hide_a_handler() -> None:
    with pytest.raises(
        TypeError, match=r"Mine\.ondata would hide the attribute: assign ondata in __init__\(\) instead"
    ):

        class Mine(TCPSocket):
            def ondata(self, event: Any) -> None:
                pass

    class Fine(TCPSocket):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.ondata = self.received

        def received(self, event: Any) -> None: ...

    assert Fine("localhost", 1).ondata is not None
