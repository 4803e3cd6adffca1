"""A socket with its own block: how it begins and ends, and that cancelling it at any point leaves nothing behind."""

from __future__ import annotations

import errno
import itertools
import logging
import math
import socket as stdlib_socket
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from mozsocket import InvalidStateError, MozTCPSocket, TCPServerSocket, TCPSocket, TCPSocketError
from mozsocket.testing import EventRecorder

from ..conftest import open_descriptors
from ..failures import MUCH, BodyError, HandlerError, both_kinds, leaves, raising
from ..peers import (
    PEER_TIMEOUT,
    Accepting,
    accept,
    all_blocked,
    blocking,
    dial,
    port_of,
    read_all,
    read_exactly,
    reset,
    unused_port,
)

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup, ExceptionGroup

pytestmark = pytest.mark.anyio


def sockets() -> int:
    """The number of sockets that this process has open."""
    return sum(name.startswith("socket:") for name in open_descriptors().values())


# The normal course


async def test_a_new_socket_holds_nothing(listener: stdlib_socket.socket) -> None:
    before = open_descriptors()
    socket = TCPSocket("127.0.0.1", port_of(listener))
    await all_blocked()
    assert open_descriptors() == before
    assert socket.readyState == "connecting"
    listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        listener.accept()


async def test_a_new_server_holds_nothing() -> None:
    before = open_descriptors()
    server = TCPServerSocket(0, host="127.0.0.1")
    assert (open_descriptors(), server.localPort) == (before, 0)
    async with server:
        assert server.localPort != 0
        (await dial(server.localPort)).close()
        server.close()
    assert open_descriptors() == before


async def test_leaving_the_block_waits_for_the_buffer_and_the_peer(listener: stdlib_socket.socket) -> None:
    left = anyio.Event()

    async def program() -> None:
        async with TCPSocket("127.0.0.1", port_of(listener)) as socket:
            events = EventRecorder(socket)
            await socket.opened()
            socket.send(MUCH)
        assert socket.readyState == "closed"
        assert events.types == ["open", "drain", "close"]
        assert socket.bufferedAmount == 0
        left.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(program)
        with await accept(listener) as peer:
            await all_blocked()
            assert not left.is_set()
            assert len(await blocking(read_all, peer)) == len(MUCH)
            await all_blocked()
            assert not left.is_set()  # the peer has not closed yet
        await left.wait()


async def test_leaving_the_block_waits_for_the_last_handler(listener: stdlib_socket.socket) -> None:
    finished = []

    async def slow(event: Any) -> None:
        await all_blocked()
        finished.append(event.type)

    async with TCPSocket("127.0.0.1", port_of(listener)) as socket:
        socket.onclose = slow
        (await accept(listener)).close()
    assert finished == ["close"]


async def test_leaving_the_block_while_connecting(clogged: int) -> None:
    before = sockets()
    async with TCPSocket("127.0.0.1", clogged) as socket:
        events = EventRecorder(socket)
        await all_blocked()
    assert events.types == ["close"]
    assert sockets() == before


async def test_leaving_the_block_without_awaiting_once(listener: stdlib_socket.socket) -> None:
    async with TCPSocket("127.0.0.1", port_of(listener)) as socket:
        events = EventRecorder(socket)
    assert events.types == ["close"]
    assert socket.readyState == "closed"


@pytest.mark.parametrize("how", ["close", "closeImmediately"])
async def test_closing_right_after_entering(how: str, listener: stdlib_socket.socket) -> None:
    async with TCPSocket("127.0.0.1", port_of(listener)) as socket:
        events = EventRecorder(socket)
        getattr(socket, how)()
        assert socket.readyState == "closing"
        with pytest.raises(InvalidStateError, match=r"opened\(\).* was closed first"):
            await socket.opened()
        await socket.closed()
        assert events.types == ["close"]


@pytest.mark.parametrize("how", ["close", "closeImmediately"])
async def test_closing_an_adopted_socket_right_after_entering(how: str) -> None:
    ours, theirs = stdlib_socket.socketpair()
    async with TCPSocket.from_socket(ours) as socket:
        events = EventRecorder(socket)
        getattr(socket, how)()
        await socket.closed()
        assert events.types == ["close"]
    with theirs:
        assert theirs.recv(1) == b""


@pytest.mark.parametrize("how", ["close", "closeImmediately"])
async def test_closing_right_after_open(how: str, listener: stdlib_socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        socket = tcp.open("127.0.0.1", port_of(listener))
        events = EventRecorder(socket)
        getattr(socket, how)()
        assert socket.readyState == "closing"
        assert events.types == []
        await socket.closed()
        assert events.types == ["close"]


@pytest.mark.parametrize("how", ["close", "closeImmediately"])
async def test_closing_before_entering(how: str, listener: stdlib_socket.socket) -> None:
    socket = TCPSocket("127.0.0.1", port_of(listener))
    getattr(socket, how)()
    assert socket.readyState == "closed"
    await socket.closed()
    with pytest.raises(InvalidStateError, match="was closed first"):
        await socket.opened()
    events = EventRecorder(socket)
    async with socket:
        pass
    assert socket.readyState == "closed"
    assert events.types == ["close"]
    listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        listener.accept()


async def test_closing_an_adopted_socket_before_entering() -> None:
    ours, theirs = stdlib_socket.socketpair()
    socket = TCPSocket.from_socket(ours)
    socket.close()
    assert ours.fileno() == -1
    with theirs:
        assert theirs.recv(1) == b""


async def test_an_adopted_socket_opens_when_entered() -> None:
    ours, theirs = stdlib_socket.socketpair()
    theirs.settimeout(PEER_TIMEOUT)
    socket = TCPSocket.from_socket(ours)
    events = EventRecorder(socket)
    theirs.sendall(b"early")
    await all_blocked()
    assert (events.types, socket.readyState) == ([], "connecting")
    async with socket:
        assert events.types == []
        await events.first("data")
        socket.send(b"answer")
        with theirs:
            assert await blocking(read_exactly, theirs, 6) == b"answer"
    assert events.types == ["open", "data", "close"]


async def test_closing_a_server_before_entering() -> None:
    server = TCPServerSocket(0, host="127.0.0.1")
    server.close()
    await server.closed()
    before = open_descriptors()
    async with server:
        assert open_descriptors().keys() - before.keys() == set()


# Exceptions


async def test_an_exception_of_the_body_leaves_as_itself(listener: stdlib_socket.socket) -> None:
    error = BodyError()
    with leaves(BodyError) as caught:
        async with TCPSocket("127.0.0.1", port_of(listener)) as socket:
            events = EventRecorder(socket)
            peer = await accept(listener)
            await socket.opened()
            socket.send(MUCH)  # nobody reads it, and the block does not wait for that
            raise error
    assert caught.value is error
    assert error.__context__ is None
    assert socket.readyState == "closed"
    assert events.types == ["open", "close"]
    with peer, leaves(ConnectionResetError):
        # Earlier data is read up to the reset, which may arrive first.
        assert len(await blocking(read_all, peer)) < len(MUCH)
        raise ConnectionResetError


@pytest.mark.parametrize(
    "error", [StopAsyncIteration(), StopIteration(), RuntimeError(), ExceptionGroup("", [OSError()])]
)
async def test_awkward_exceptions_of_the_body(error: Exception, listener: stdlib_socket.socket) -> None:
    with pytest.raises(type(error)) as caught:
        async with TCPSocket("127.0.0.1", port_of(listener)):
            raise error
    assert caught.value is error


async def test_exiting_in_the_body_is_not_wrapped_either(listener: stdlib_socket.socket) -> None:
    with leaves(SystemExit):
        async with TCPSocket("127.0.0.1", port_of(listener)) as socket:
            await socket.opened()
            raise SystemExit
    assert socket.readyState == "closed"


async def test_an_exception_while_connecting(clogged: int) -> None:
    before = sockets()
    with leaves(BodyError):
        async with TCPSocket("127.0.0.1", clogged):
            await all_blocked()
            assert sockets() == before + 1
            raise BodyError
    assert sockets() == before


@both_kinds
async def test_an_exception_of_a_handler_leaves_as_itself_at_once(
    make_handler: Callable[[Exception], Any], listener: stdlib_socket.socket
) -> None:
    error = HandlerError()
    with leaves(HandlerError) as caught:
        async with TCPSocket("127.0.0.1", port_of(listener)) as socket:
            events = EventRecorder(socket)
            socket.onopen = make_handler(error)
            await anyio.sleep(math.inf)
    assert caught.value is error
    assert socket.readyState == "closed"
    assert events.types == ["close"]


@both_kinds
async def test_an_exception_of_onclose_leaves_too(
    make_handler: Callable[[Exception], Any], listener: stdlib_socket.socket
) -> None:
    with pytest.raises(HandlerError):
        async with TCPSocket("127.0.0.1", port_of(listener)) as socket:
            socket.onclose = make_handler(HandlerError())


async def test_an_exception_of_onerror_leaves_and_the_failure_counts_as_reported() -> None:
    with leaves(HandlerError):
        async with TCPSocket("127.0.0.1", unused_port()) as socket:
            socket.onerror = raising(HandlerError())
            await anyio.sleep(math.inf)


async def test_a_second_exception_of_a_handler_is_logged(
    listener: stdlib_socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = HandlerError("first"), HandlerError("second")
    with leaves(HandlerError) as caught:
        async with TCPSocket("127.0.0.1", port_of(listener)) as socket:
            socket.onopen = raising(first)
            socket.onclose = raising(second)
            await anyio.sleep(math.inf)
    assert caught.value is first
    assert [record.exc_info[1] for record in caplog.records if record.exc_info] == [second]


@both_kinds
async def test_exceptions_of_a_handler_and_of_the_body(
    make_handler: Callable[[Exception], Any], listener: stdlib_socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    error = HandlerError()
    with leaves(BodyError):
        async with TCPSocket("127.0.0.1", port_of(listener)) as socket:
            socket.onopen = make_handler(error)
            try:
                await anyio.sleep(math.inf)
            finally:
                raise BodyError
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("mozsocket", logging.ERROR)
    assert record.exc_info is not None
    assert record.exc_info[1] is error


async def test_a_handler_s_exception_is_not_lost_in_a_cancellation(
    listener: stdlib_socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    """It leaves the block or is logged; the cancellation leaves the block too, so both cannot be raised."""
    error = HandlerError()

    def cancel_and_raise(event: Any) -> None:
        scope.cancel()
        raise error

    seen = []
    with anyio.CancelScope() as scope:
        try:
            async with TCPSocket("127.0.0.1", port_of(listener)) as socket:
                socket.onopen = cancel_and_raise
                await anyio.sleep(math.inf)
        except HandlerError as exc:
            seen.append(exc)
    seen += [record.exc_info[1] for record in caplog.records if record.exc_info]  # type: ignore[misc]
    assert seen == [error]


@both_kinds
async def test_nothing_is_written_into_an_exception_of_a_handler(
    make_handler: Callable[[Exception], Any], listener: stdlib_socket.socket
) -> None:
    error = HandlerError()
    for _ in range(3):
        with leaves(HandlerError) as caught:
            async with TCPSocket("127.0.0.1", port_of(listener)) as socket:
                socket.onopen = make_handler(error)
                await anyio.sleep(math.inf)
        assert caught.value is error
    assert vars(error) == {}
    assert error.__cause__ is None


async def test_what_a_handler_s_own_tasks_raise_when_they_are_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    """On Trio it is raised in one group with the cancellation."""

    async def clean_up_badly() -> None:
        try:
            await anyio.sleep(math.inf)
        finally:
            raise HandlerError

    async def onconnect(event: Any) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(clean_up_badly)
            tasks.start_soon(anyio.sleep, math.inf)

    async with MozTCPSocket() as tcp:
        server = tcp.listen(0, host="127.0.0.1")
        server.onconnect = onconnect
        with await dial(server.localPort):
            await all_blocked()
            tcp.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await all_blocked()
    (record,) = caplog.records
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ExceptionGroup)
    assert [type(error) for error in record.exc_info[1].exceptions] == [HandlerError]


# Failures


async def test_an_unobserved_failure_is_not_lost_behind_a_handler_s_exception(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with leaves(HandlerError):
        async with TCPSocket("127.0.0.1", unused_port()) as socket:
            socket.onclose = raising(HandlerError())
            await anyio.sleep(math.inf)
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("mozsocket", logging.WARNING)
    assert "was lost: ConnectionRefusedError" in record.getMessage()


async def test_an_unobserved_failure_leaves_the_block_at_its_end() -> None:
    ended = []
    with leaves(TCPSocketError) as caught:
        async with TCPSocket("127.0.0.1", unused_port()) as socket:
            closed = anyio.Event()
            socket.onclose = lambda event: closed.set()
            await closed.wait()
            ended.append("body")
    assert ended == ["body"]
    assert caught.value.name == "ConnectionRefusedError"
    assert caught.value.errorCode == errno.ECONNREFUSED


async def test_a_lost_connection_leaves_the_block(listener: stdlib_socket.socket) -> None:
    with leaves(TCPSocketError) as caught:
        async with TCPSocket("127.0.0.1", port_of(listener)) as socket:
            closed = anyio.Event()
            socket.onclose = lambda event: closed.set()
            reset(await accept(listener))
            await closed.wait()
    assert caught.value.name == "NetworkInterruptError"


@pytest.mark.parametrize("observer", ["onerror", "addEventListener"])
async def test_a_failure_that_was_observed_stays_in(observer: str) -> None:
    seen: list[Any] = []
    async with TCPSocket("127.0.0.1", unused_port()) as socket:
        if observer == "onerror":
            socket.onerror = seen.append
        else:
            socket.addEventListener("error", seen.append, once=True)
        closed = anyio.Event()
        socket.onclose = lambda event: closed.set()
        await closed.wait()
    assert [event.name for event in seen] == ["ConnectionRefusedError"]


@pytest.mark.parametrize("awaiting", ["opened", "drained", "closed"])
async def test_a_failure_that_was_awaited_stays_in(awaiting: str, listener: stdlib_socket.socket) -> None:
    async with TCPSocket("127.0.0.1", unused_port()) as socket:
        with leaves(TCPSocketError, match="ConnectionRefusedError"):
            if awaiting == "drained":
                await socket.opened()
            else:
                await getattr(socket, awaiting)()
    if awaiting == "drained":
        async with TCPSocket("127.0.0.1", port_of(listener)) as socket:
            peer = await accept(listener)
            await socket.opened()
            socket.send(MUCH)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(blocking, reset, peer)
                with pytest.raises(TCPSocketError, match="NetworkInterruptError"):
                    await socket.drained()


async def test_a_failure_that_was_awaited_later_stays_in() -> None:
    async with TCPSocket("127.0.0.1", unused_port()) as socket:
        closed = anyio.Event()
        socket.onclose = lambda event: closed.set()
        await closed.wait()
        for _ in range(2):  # each await raises it again
            with pytest.raises(TCPSocketError, match="ConnectionRefusedError"):
                await socket.closed()
    with pytest.raises(TCPSocketError, match="ConnectionRefusedError"):
        await socket.closed()


async def test_an_awaited_failure_that_leaves_the_body() -> None:
    with pytest.raises(TCPSocketError, match="ConnectionRefusedError"):
        async with TCPSocket("127.0.0.1", unused_port()) as socket:
            await socket.opened()


async def test_one_failure_is_raised_in_several_awaiters(clogged: int) -> None:
    reports = []

    async def wait(what: Callable[[], Awaitable[None]]) -> None:
        with pytest.raises(TCPSocketError) as caught:
            await what()
        reports.append(caught.value)

    async with TCPSocket("127.0.0.1", clogged, connect_timeout=0.01) as socket, anyio.create_task_group() as tasks:
        for what in (socket.opened, socket.opened, socket.closed):
            tasks.start_soon(wait, what)
    assert [error.name for error in reports] == ["NetworkTimeoutError"] * 3
    assert len({id(error) for error in reports}) == 3  # an exception of several tasks would mix up their tracebacks


async def test_an_unobserved_failure_is_not_lost_behind_the_body_s_exception(
    listener: stdlib_socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    with leaves(BodyError):
        async with TCPSocket("127.0.0.1", port_of(listener)) as socket:
            closed = anyio.Event()
            socket.onclose = lambda event: closed.set()
            reset(await accept(listener))
            await closed.wait()
            raise BodyError
    assert "NetworkInterruptError" in caplog.text


# Cancellation


async def test_cancelling_the_body(listener: stdlib_socket.socket) -> None:
    with anyio.CancelScope() as scope:
        async with TCPSocket("127.0.0.1", port_of(listener)) as socket:
            events = EventRecorder(socket)
            peer = await accept(listener)
            await socket.opened()
            socket.send(MUCH)
            await all_blocked()
            before = sockets()
            scope.cancel()
            await anyio.sleep(math.inf)
    assert scope.cancelled_caught
    assert sockets() == before - 1
    assert socket.readyState == "closed"
    assert socket.bufferedAmount == 0
    assert events.types == ["open"]
    peer.close()


@pytest.mark.parametrize("owner", ["own", "scope", "entered"])
async def test_the_body_s_exception_is_not_lost_in_a_cancellation_of_the_wait(
    owner: str, listener: stdlib_socket.socket
) -> None:
    async def never_return(event: Any) -> None:
        with anyio.CancelScope(shield=owner == "own"):
            await all_blocked()
            scope.cancel()
            await anyio.lowlevel.checkpoint()
        await anyio.sleep(math.inf)

    async def run() -> None:
        if owner == "own":
            async with TCPSocket("127.0.0.1", port_of(listener)) as socket:
                await fail(socket)
        else:
            async with MozTCPSocket() as tcp:
                socket = tcp.open("127.0.0.1", port_of(listener))
                if owner == "scope":
                    await fail(socket)
                else:
                    async with socket:
                        await fail(socket)

    async def fail(socket: TCPSocket) -> None:
        socket.onclose = never_return
        await socket.opened()
        raise BodyError

    with pytest.raises(BaseException) as caught, anyio.CancelScope() as scope:  # noqa: PT011
        await run()
    left: BaseException = caught.value
    while isinstance(left, BaseExceptionGroup):
        (left,) = left.exceptions
    assert isinstance(left, BodyError)


@pytest.mark.parametrize("cancelled", ["around", "own"])
@pytest.mark.parametrize("owner", ["own", "scope", "entered"])
async def test_a_socket_that_a_cancellation_has_closed_says_nothing_of_it(
    owner: str, cancelled: str, listener: stdlib_socket.socket
) -> None:
    """A program that continues after the cancellation must not get an InvalidStateError from it."""

    async def use(socket: TCPSocket, scope: anyio.CancelScope) -> None:
        await socket.opened()
        scope.cancel()
        with anyio.CancelScope(shield=True):
            await socket.closed()
        socket.send(b"x")

    with anyio.CancelScope() as around:
        if owner == "own":
            async with TCPSocket("127.0.0.1", port_of(listener)) as socket:
                await use(socket, around)
        else:
            async with MozTCPSocket() as tcp:
                socket = tcp.open("127.0.0.1", port_of(listener))
                scope = around if cancelled == "around" else tcp.cancel_scope
                if owner == "scope":
                    await use(socket, scope)
                else:
                    async with socket:
                        await use(socket, scope)
    assert socket.readyState == "closed"
    assert around.cancel_called or cancelled == "own"


async def test_cancelling_the_wait_at_the_end(listener: stdlib_socket.socket) -> None:
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:

            async def cancel() -> None:
                await all_blocked()
                scope.cancel()

            async with TCPSocket("127.0.0.1", port_of(listener)) as socket:
                peer = await accept(listener)
                await socket.opened()
                socket.send(MUCH)
                tasks.start_soon(cancel)
    assert scope.cancelled_caught
    assert socket.readyState == "closed"
    peer.close()


async def test_methods_after_a_cancellation_do_nothing(listener: stdlib_socket.socket) -> None:
    with anyio.CancelScope() as scope:
        async with TCPSocket("127.0.0.1", port_of(listener)) as socket:
            await socket.opened()
            socket.suspend()
            with await accept(listener) as peer:
                await blocking(peer.sendall, b"queued")
                await all_blocked()
            scope.cancel()
            await anyio.sleep(math.inf)
    socket.resume()
    socket.close()
    socket.closeImmediately()
    with pytest.raises(InvalidStateError):
        socket.send(b"")


async def test_resuming_a_socket_that_has_ended(listener: stdlib_socket.socket) -> None:
    async with TCPSocket("127.0.0.1", port_of(listener)) as socket:
        events = EventRecorder(socket)
        await socket.opened()
        socket.suspend()
        with await accept(listener) as peer:
            await blocking(peer.sendall, b"queued")
            await all_blocked()
    socket.resume()
    await all_blocked()
    assert events.types == ["open", "close"]


# Entering the socket of a scope, entering twice, entering a socket that has ended


async def test_entering_a_socket_of_a_scope(listener: stdlib_socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        async with tcp.open("127.0.0.1", port_of(listener)) as socket:
            events = EventRecorder(socket)
            peer = await accept(listener)
            await socket.opened()
            socket.send(b"all of it")
            peer.sendall(b"answer")
            await events.first("data")
            peer.shutdown(stdlib_socket.SHUT_WR)
        assert socket.readyState == "closed"
        assert events.types == ["open", "data", "close"]
        with peer:
            assert await blocking(read_all, peer) == b"all of it"


async def test_entering_a_socket_of_a_scope_and_raising(listener: stdlib_socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        other = tcp.open("127.0.0.1", port_of(listener))
        error = BodyError()
        with leaves(BodyError) as caught:
            async with tcp.open("127.0.0.1", port_of(listener)) as socket:
                peers = [await accept(listener), await accept(listener)]
                await socket.opened()
                socket.send(MUCH)
                raise error
        assert caught.value is error
        assert socket.readyState == "closed"
        await other.opened()
        assert other.readyState == "open"  # the scope continues
        other.closeImmediately()
        for peer in peers:
            peer.close()


async def test_entering_a_socket_of_a_scope_and_being_cancelled(listener: stdlib_socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        with anyio.CancelScope() as scope:
            async with tcp.open("127.0.0.1", port_of(listener)) as socket:
                peer = await accept(listener)
                await socket.opened()
                socket.send(MUCH)
                scope.cancel()
                await anyio.sleep(math.inf)
        assert scope.cancelled_caught
        with anyio.fail_after(PEER_TIMEOUT):
            await socket.closed()
        assert not tcp.cancel_scope.cancel_called
        peer.close()


async def test_entering_a_socket_of_a_scope_and_being_cancelled_at_the_end(listener: stdlib_socket.socket) -> None:
    """A task that gives up waiting for the end must not leave behind a connection that nobody closes."""
    async with MozTCPSocket() as tcp:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:

                async def cancel() -> None:
                    await all_blocked()
                    scope.cancel()

                async with tcp.open("127.0.0.1", port_of(listener)) as socket:
                    peer = await accept(listener)
                    await socket.opened()
                    socket.send(MUCH)  # never read
                    tasks.start_soon(cancel)
        assert scope.cancelled_caught
        try:
            with anyio.fail_after(PEER_TIMEOUT / 4):
                await socket.closed()
        finally:
            peer.close()


async def test_a_handler_s_exception_leaves_the_scope_not_the_inner_block(listener: stdlib_socket.socket) -> None:
    error = HandlerError()
    left = []
    with leaves(ExceptionGroup) as caught:
        async with MozTCPSocket() as tcp:
            try:
                async with tcp.open("127.0.0.1", port_of(listener)) as socket:
                    socket.onopen = raising(error)
                    await anyio.sleep(math.inf)
            except Exception as exc:
                left.append(exc)
                raise
    assert left == []
    assert caught.value.exceptions == (error,)


async def test_entering_an_accepted_socket() -> None:
    async with TCPServerSocket(0, host="127.0.0.1") as server:
        accepting = Accepting(server)
        with await dial(server.localPort) as peer:
            socket, _ = await accepting.first()
            async with socket:
                socket.send(b"bye")
                server.close()
                peer.shutdown(stdlib_socket.SHUT_WR)
            assert socket.readyState == "closed"
            assert await blocking(read_all, peer) == b"bye"


async def test_entering_twice_ends_with_the_inner_block(listener: stdlib_socket.socket) -> None:
    async with TCPSocket("127.0.0.1", port_of(listener)) as socket:
        async with socket as same:
            assert same is socket
            await socket.opened()
            (await accept(listener)).close()
        assert socket.readyState == "closed"
        await socket.closed()


async def test_entering_from_another_task_that_outlives_the_block(listener: stdlib_socket.socket) -> None:
    entered, left = anyio.Event(), anyio.Event()
    ends = []

    async def guest(socket: TCPSocket) -> None:
        async with socket:
            entered.set()
            await left.wait()
        ends.append("guest")

    async with anyio.create_task_group() as tasks:
        async with TCPSocket("127.0.0.1", port_of(listener)) as socket:
            tasks.start_soon(guest, socket)
            await entered.wait()
            (await accept(listener)).close()
        assert socket.readyState == "closed"
        ends.append("owner")
        left.set()
    assert ends == ["owner", "guest"]


async def test_an_exception_through_two_blocks(listener: stdlib_socket.socket) -> None:
    error = BodyError()
    with leaves(BodyError) as caught:
        async with TCPSocket("127.0.0.1", port_of(listener)) as socket, socket:
            await socket.opened()
            raise error
    assert caught.value is error


async def test_a_socket_that_has_ended_cannot_be_entered_again(listener: stdlib_socket.socket) -> None:
    async with TCPSocket("127.0.0.1", port_of(listener)) as socket:
        pass
    with pytest.raises(RuntimeError, match=r"<TCPSocket #\d+ .*127.0.0.1:\d+ closed> has ended: make a new one"):
        async with socket:
            pytest.fail("entered")


async def test_a_server_that_has_ended_cannot_be_entered_again() -> None:
    async with TCPServerSocket(0, host="127.0.0.1") as server:
        server.close()
    before = open_descriptors()
    with pytest.raises(RuntimeError, match="has ended"):
        async with server:
            pytest.fail("entered")
    assert open_descriptors() == before


# Waits that could never end, and calls that could never begin


@pytest.mark.parametrize("type_", ["open", "data", "close"])
async def test_awaiting_the_end_in_a_handler_of_one_s_own(type_: str, listener: stdlib_socket.socket) -> None:
    async def wait(event: Any) -> None:
        await event.target.closed()

    with leaves(RuntimeError, match=r"closed\(\) waits for the handlers of <TCPSocket"), anyio.fail_after(10):
        async with TCPSocket("127.0.0.1", port_of(listener)) as socket:
            socket.addEventListener(type_, wait)
            with await accept(listener) as peer:
                peer.sendall(b"data")
            await anyio.sleep(math.inf)


async def test_entering_in_a_handler_of_one_s_own(listener: stdlib_socket.socket) -> None:
    async def enter(event: Any) -> None:
        async with event.target:
            pass

    with leaves(RuntimeError, match="it could never finish"), anyio.fail_after(10):
        async with TCPSocket("127.0.0.1", port_of(listener)) as socket:
            socket.onopen = enter
            await anyio.sleep(math.inf)


@pytest.mark.parametrize("how", ["closed", "enter"])
async def test_an_accepted_socket_s_end_in_onconnect(how: str, caplog: pytest.LogCaptureFixture) -> None:
    async def wait(event: Any) -> None:
        if how == "enter":
            async with event.socket:
                pass
        await event.socket.closed()

    async with TCPServerSocket(0, host="127.0.0.1") as server:
        server.onconnect = wait
        with await dial(server.localPort) as peer, anyio.fail_after(10):
            assert await blocking(read_all, peer) == b""
    assert "it could never finish" in caplog.text


async def test_entering_the_server_in_onconnect_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    """The server's end waits for all connections, and this one waits for its handler."""

    async def enter(event: Any) -> None:
        async with event.target:
            pass

    with anyio.move_on_after(PEER_TIMEOUT / 4) as limit:
        async with TCPServerSocket(0, host="127.0.0.1") as server:
            server.onconnect = enter
            with await dial(server.localPort) as peer:
                await blocking(read_all, peer)
    assert not limit.cancelled_caught
    assert "it could never finish" in caplog.text


async def test_what_can_finish_may_be_awaited_in_a_handler(listener: stdlib_socket.socket) -> None:
    async def handler(event: Any) -> None:
        await event.target.opened()
        event.target.send(MUCH)
        await event.target.drained()
        done.set()

    async with TCPSocket("127.0.0.1", port_of(listener)) as socket:
        done = anyio.Event()
        socket.onopen = handler
        peer = await accept(listener)
        async with anyio.create_task_group() as reading:
            reading.start_soon(blocking, read_exactly, peer, len(MUCH))
            await done.wait()
        peer.close()


async def test_another_socket_s_end_may_be_awaited_in_a_handler(listener: stdlib_socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        first, second = (tcp.open("127.0.0.1", port_of(listener)) for _ in range(2))

        async def handler(event: Any) -> None:
            await second.closed()
            first.close()

        first.onopen = handler
        for _ in range(2):
            (await accept(listener)).close()
    assert first.readyState == second.readyState == "closed"


@pytest.mark.parametrize("awaiting", ["opened", "drained", "closed"])
async def test_awaiting_what_nothing_runs(awaiting: str) -> None:
    ours, theirs = stdlib_socket.socketpair()
    for socket in (TCPSocket("127.0.0.1", 9), TCPSocket.from_socket(ours)):
        if awaiting == "drained":
            await socket.drained()  # returns immediately, as nothing was sent
            continue
        with pytest.raises(RuntimeError, match=rf"^{awaiting}\(\) waits for .* enter it with `async with` first"):
            await getattr(socket, awaiting)()
        socket.close()
    with pytest.raises(RuntimeError, match="enter it"):
        await TCPServerSocket(0).closed()
    ours.close()
    theirs.close()


# Cancellation in every turn of the event loop


class SteppedPeer:
    """A peer that takes one small step per call, in the event loop's thread, so that each trial runs in the same order.

    It accepts or connects, sends its data, reads to EOF, and closes.

    :ivar port: the port that it listens on
    """

    def __init__(self, says: bytes = b"") -> None:
        self._says = says
        self._listener = stdlib_socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.port = port_of(self._listener)
        self._socks: list[stdlib_socket.socket] = []
        self._done = False

    def connect(self, port: int) -> None:
        """Connect to a port instead of listening."""
        sock = stdlib_socket.create_connection(("127.0.0.1", port))
        self._begin(sock)
        sock.shutdown(stdlib_socket.SHUT_WR)

    def _begin(self, sock: stdlib_socket.socket) -> None:
        sock.setblocking(False)
        if self._says:
            sock.send(self._says)
        self._socks.append(sock)

    def turn(self) -> None:
        try:
            self._begin(self._listener.accept()[0])
        except BlockingIOError:
            pass
        for sock in tuple(self._socks):
            try:
                data = sock.recv(1 << 20)
            except BlockingIOError:
                continue
            except ConnectionResetError:
                data = b""
            if not data:
                sock.close()
                self._socks.remove(sock)

    def close(self) -> None:
        self._listener.close()
        for sock in self._socks:
            sock.close()


class Trial:
    """One run of a scenario, which is cancelled in one of its turns.

    :ivar late: the events delivered after the cancellation
    """

    def __init__(self, peer: SteppedPeer) -> None:
        self.peer = peer
        self.late: list[Any] = []
        self._cancelled = False
        self._targets: list[TCPSocket | TCPServerSocket] = []

    def watch(self, target: TCPSocket | TCPServerSocket, *, slowly: bool) -> None:
        """Record the events of a socket or server, by plain functions or by asynchronous ones."""
        self._targets.append(target)
        server = isinstance(target, TCPServerSocket)
        for type_ in ("connect",) if server else ("open", "secure", "drain", "data", "end", "error", "close"):
            target.addEventListener(type_, self._slowly_noted if slowly else self._note)

    def _note(self, event: Any) -> None:
        if self._cancelled:
            self.late.append(event)

    async def _slowly_noted(self, event: Any) -> None:
        self._note(event)
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()

    async def cancel_after(self, turns: int, scope: anyio.CancelScope) -> None:
        for _ in range(turns):
            self.peer.turn()
            await anyio.lowlevel.checkpoint()
        scope.cancel()
        # The scope that is cancelled is not the owner's but one around it. Its cancellation reaches a task at the next
        # checkpoint; a task that was woken in this same turn still passes this turn's checkpoint.
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
        self._cancelled = True

    def check(self) -> None:
        assert self.late == []
        for target in self._targets:
            if isinstance(target, TCPSocket):
                assert target.readyState == "closed"
                assert target.bufferedAmount == 0


Scenario = Callable[[Trial, bool], Awaitable[None]]


async def run_trial(scenario: Scenario, slowly: bool, says: bytes, turns: int) -> bool:
    """Run a scenario and cancel it after this number of turns.

    :return: whether the scenario had ended before
    """
    peer = SteppedPeer(says)
    before = open_descriptors()
    trial = Trial(peer)
    over = False
    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope() as scope:
            tasks.start_soon(trial.cancel_after, turns, scope)
            await scenario(trial, slowly)
            over = not scope.cancel_called
        left = {name for name in open_descriptors().values() if name.startswith("socket:")} - set(before.values())
        tasks.cancel_scope.cancel()
    if not over:
        peer.close()
        assert len(left) <= len(peer._socks)
        trial.check()
    peer.close()
    return over


async def connecting(trial: Trial, slowly: bool) -> None:
    async with TCPSocket("127.0.0.1", trial.peer.port) as socket:
        trial.watch(socket, slowly=slowly)
        await socket.opened()


async def connecting_to_a_name(trial: Trial, slowly: bool) -> None:
    async with TCPSocket("name.test", trial.peer.port) as socket:
        trial.watch(socket, slowly=slowly)
        await socket.opened()


async def being_refused(trial: Trial, slowly: bool) -> None:
    async with TCPSocket("127.0.0.1", unused_port()) as socket:
        trial.watch(socket, slowly=slowly)
        try:
            await socket.closed()
        except TCPSocketError:
            pass


async def sending(trial: Trial, slowly: bool) -> None:
    async with TCPSocket("127.0.0.1", trial.peer.port) as socket:
        trial.watch(socket, slowly=slowly)
        await socket.opened()
        socket.send(bytes(6 << 20))
        await socket.drained()


async def sending_in_a_handler(trial: Trial, slowly: bool) -> None:
    async with MozTCPSocket() as tcp:
        socket = tcp.open("127.0.0.1", trial.peer.port)

        def start(event: Any) -> None:
            socket.send(bytes(6 << 20))
            socket.close()

        socket.onopen = start
        trial.watch(socket, slowly=slowly)


async def receiving(trial: Trial, slowly: bool) -> None:
    async with TCPSocket("127.0.0.1", trial.peer.port) as socket:
        trial.watch(socket, slowly=slowly)
        received = anyio.Event()
        socket.addEventListener("data", lambda event: received.set())
        await received.wait()


async def lingering(trial: Trial, slowly: bool) -> None:
    async with TCPSocket("127.0.0.1", trial.peer.port) as socket:
        trial.watch(socket, slowly=slowly)
        await socket.opened()
        socket.send(b"bye")
        socket.close()
        await socket.closed()


async def adopting(trial: Trial, slowly: bool) -> None:
    sock = stdlib_socket.create_connection(("127.0.0.1", trial.peer.port))
    async with TCPSocket.from_socket(sock) as socket:
        trial.watch(socket, slowly=slowly)
        await socket.opened()
        socket.send(b"hello")


async def accepting(trial: Trial, slowly: bool) -> None:
    async with TCPServerSocket(0, host="127.0.0.1") as server:
        accepted = anyio.Event()

        def begin(event: Any) -> None:
            trial.watch(event.socket, slowly=slowly)
            event.socket.send(b"welcome")
            accepted.set()

        server.onconnect = begin
        trial.watch(server, slowly=slowly)
        trial.peer.connect(server.localPort)
        await accepted.wait()


async def a_whole_scope(trial: Trial, slowly: bool) -> None:
    async with MozTCPSocket() as tcp:
        server = tcp.listen(0, host="127.0.0.1")

        def begin(event: Any) -> None:
            trial.watch(event.socket, slowly=slowly)
            event.socket.ondata = lambda event: event.target.send(event.data)
            server.close()

        server.onconnect = begin
        trial.watch(server, slowly=slowly)
        socket = tcp.open("127.0.0.1", server.localPort)
        socket.onopen = lambda event: socket.send(b"echo")
        socket.ondata = lambda event: socket.close()
        trial.watch(socket, slowly=slowly)


SCENARIOS: list[Scenario] = [
    connecting,
    connecting_to_a_name,
    being_refused,
    sending,
    sending_in_a_handler,
    receiving,
    lingering,
    adopting,
    accepting,
    a_whole_scope,
]


@pytest.mark.parametrize("slowly", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_cancelled_at_every_turn(scenario: Scenario, slowly: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The descriptors are closed, the states are "closed", no handler runs any more, and nothing warns."""

    async def resolve(host: str, port: int, **options: Any) -> Any:
        await anyio.lowlevel.checkpoint()
        return [  # the first of them refuses
            (stdlib_socket.AF_INET6, stdlib_socket.SOCK_STREAM, 6, "", ("::1", port)),
            (stdlib_socket.AF_INET, stdlib_socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
        ]

    monkeypatch.setattr(anyio, "getaddrinfo", resolve)
    says = b"a greeting" if scenario in (receiving, lingering, accepting) else b""
    for turns in itertools.count():
        if await run_trial(scenario, slowly, says, turns):
            break
        assert turns < 1000
    assert turns > 1


@pytest.mark.parametrize("before", range(5))
async def test_closing_in_a_handler_waits_no_longer_than_linger(before: int, listener: stdlib_socket.socket) -> None:
    """This holds for both ways in which the reader waits: trying eagerly at first, then waiting for readiness."""
    async with TCPSocket("127.0.0.1", port_of(listener), linger=0.1) as socket:
        seen: list[bytes] = []
        socket.ondata = lambda event: seen.append(event.data)
        with await accept(listener) as peer:
            for number in range(before):
                peer.sendall(b"x")
                while len(seen) == number:
                    await all_blocked()
            socket.ondata = lambda event: socket.close()
            peer.sendall(b"x")
            with anyio.fail_after(PEER_TIMEOUT / 2):
                await socket.closed()
