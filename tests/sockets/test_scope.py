"""MozTCPSocket owns its sockets and servers as a task group owns tasks."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import math
import socket as stdlib_socket
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio

from mozsocket import InvalidStateError, MozTCPSocket, TCPServerSocket, TCPServerSocketEvent, TCPSocket, TCPSocketError
from mozsocket.testing import EventRecorder

from ..conftest import open_descriptors
from ..failures import MUCH, BodyError, HandlerError, both_kinds, leaves, raising
from ..peers import (
    Accepting,
    accept,
    all_blocked,
    blocking,
    connected,
    dial,
    port_of,
    read_all,
    read_exactly,
    reset,
    unused_port,
)

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

pytestmark = pytest.mark.anyio

LOOPBACK = "127.0.0.1"


# The scope's own tasks


async def test_the_block_waits_for_its_tasks() -> None:
    done = []

    async def task(first: int, second: str) -> None:
        await anyio.sleep(0.05)
        done.append((first, second, anyio.get_current_task().name))

    async with MozTCPSocket() as tcp:
        tcp.start_soon(task, 1, "two", name="a timer")
        tcp.close()  # closes sockets and servers, not tasks
    assert done == [(1, "two", "a timer")]


async def test_a_task_started_by_a_handler_delays_no_event(role: str, listener: stdlib_socket.socket) -> None:
    release = anyio.Event()

    async def hold() -> None:
        await release.wait()
        sock.close()

    async with MozTCPSocket() as tcp:
        sock, recorder, peer = await connected(tcp, role, listener)
        sock.addEventListener("data", lambda event: tcp.start_soon(hold), once=True)
        with peer:
            for data in (b"first", b"second"):
                await blocking(peer.sendall, data)
                await recorder.until(partial(ends_with, recorder, data))
            assert sock.readyState == "open"
            release.set()
            assert await blocking(read_all, peer) == b""


def ends_with(recorder: EventRecorder, data: bytes) -> bool:
    return bool(recorder.data.endswith(data))


async def test_what_a_task_raises_ends_the_scope(listener: stdlib_socket.socket) -> None:
    async def fail() -> None:
        raise HandlerError("a timer's")

    with leaves(ExceptionGroup) as caught:
        async with MozTCPSocket() as tcp:
            sock = tcp.open("127.0.0.1", port_of(listener))
            await sock.opened()
            tcp.start_soon(fail)
            await anyio.sleep(math.inf)
    assert [str(each) for each in caught.value.exceptions] == ["a timer's"]
    assert sock.readyState == "closed"


async def test_tasks_are_started_within_the_block_only() -> None:
    tcp = MozTCPSocket()
    with pytest.raises(RuntimeError, match=r"start_soon\(\) outside the block"):
        tcp.start_soon(anyio.lowlevel.checkpoint)
    async with tcp:
        tcp.cancel_scope.cancel()
        tcp.start_soon(anyio.lowlevel.checkpoint)
    with pytest.raises(RuntimeError, match=r"start_soon\(\) outside the block"):
        tcp.start_soon(anyio.lowlevel.checkpoint)


# Cancelled before its tasks have begun


async def test_a_connect_that_fails_as_an_outer_scope_is_cancelled() -> None:
    """The outer scope ends as any cancelled one does, without an ExceptionGroup."""
    with anyio.CancelScope() as around:
        async with MozTCPSocket() as tcp:
            sock = tcp.open("127.0.0.1", unused_port(), local_host="::1")
            sock.onerror = lambda event: None
            around.cancel()
    assert around.cancelled_caught
    assert sock.readyState == "closed"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # its coroutine was never awaited
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
async def test_a_server_whose_task_is_cancelled_before_it_has_begun(anyio_backend_name: str) -> None:
    if anyio_backend_name == "trio":
        pytest.skip("Trio cannot cancel a single task")
    server: TCPServerSocket | None = None

    async def program() -> None:
        nonlocal server
        before = asyncio.all_tasks()
        async with MozTCPSocket() as tcp:
            server = tcp.listen(0, host=LOOPBACK)
            for task in asyncio.all_tasks() - before:
                task.cancel()
            await anyio.sleep(math.inf)

    task = asyncio.ensure_future(program())
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert server is not None
    with anyio.fail_after(10):
        await server.closed()
    with pytest.raises(ConnectionRefusedError):
        await dial(server.localPort)


# The block


async def test_outside_the_block() -> None:
    tcp = MozTCPSocket()
    for _ in range(2):
        before = open_descriptors()
        with pytest.raises(RuntimeError, match=r"open\(\) outside the block: enter it with `async with MozTCPSocket"):
            tcp.open("localhost", 80)
        with pytest.raises(RuntimeError, match=r"listen\(\) outside the block"):
            tcp.listen(0)
        with pytest.raises(RuntimeError, match="cancel_scope outside the block"):
            _ = tcp.cancel_scope
        tcp.close()
        assert open_descriptors() == before
        async with tcp as same:
            assert same is tcp


async def test_after_a_block_that_failed() -> None:
    tcp = MozTCPSocket()
    with pytest.raises(ExceptionGroup):
        async with tcp:
            raise BodyError
    with pytest.raises(RuntimeError, match="outside the block"):
        tcp.open("localhost", 80)


async def test_entering_twice() -> None:
    async with MozTCPSocket() as tcp:
        with pytest.raises(RuntimeError, match="entered already"):
            async with tcp:
                pytest.fail("entered")
        server = tcp.listen(0)  # the first block is unaffected
        server.close()


async def test_an_empty_block() -> None:
    async with MozTCPSocket():
        pass


async def test_the_block_waits_for_all(listener: stdlib_socket.socket) -> None:
    left = anyio.Event()
    made: list[Any] = []

    async def program() -> None:
        async with MozTCPSocket() as tcp:
            made.extend([tcp.open(LOOPBACK, port_of(listener)), tcp.listen(0)])
            made[1].onconnect = lambda event: made.append(event.socket)
        left.set()

    async def still_there() -> bool:
        await all_blocked()
        return not left.is_set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(program)
        outward = await accept(listener)
        inward = await dial(made[1].localPort)
        assert await still_there()
        outward.close()
        await made[0].closed()
        assert await still_there()
        while len(made) < 3:
            await anyio.lowlevel.checkpoint()
        made[1].close()
        assert await still_there()
        inward.close()
        await left.wait()
    assert [socket.readyState for socket in (made[0], made[2])] == ["closed", "closed"]


async def test_the_block_waits_for_slow_handlers(listener: stdlib_socket.socket) -> None:
    finished = []

    async def slow(event: Any) -> None:
        await all_blocked()
        finished.append(event.type)

    async with MozTCPSocket() as tcp:
        socket = tcp.open(LOOPBACK, port_of(listener))
        socket.onopen = socket.onclose = slow
        (await accept(listener)).close()
    assert finished == ["open", "close"]


async def test_close_closes_all(listener: stdlib_socket.socket, clogged: int) -> None:
    async with MozTCPSocket() as tcp:
        accepting = Accepting(tcp.listen(0))
        outward, outward_events, outward_peer = await connected(tcp, "client", listener)
        inward_peer = await dial(accepting.server.localPort)
        inward, inward_events = await accepting.first()
        attempt = tcp.open(LOOPBACK, clogged)
        attempt_events = EventRecorder(attempt)
        await all_blocked()
        for socket in (outward, inward):
            socket.send(b"last words")
        tcp.close()
        assert [socket.readyState for socket in (outward, inward, attempt)] == ["closing"] * 3
        with pytest.raises(ConnectionRefusedError):
            await dial(accepting.server.localPort)
        for peer in (outward_peer, inward_peer):
            with peer:
                assert await blocking(read_all, peer) == b"last words"
        tcp.close()
    assert [events.types for events in (outward_events, inward_events, attempt_events)] == [
        ["open", "close"],
        ["close"],
        ["close"],
    ]
    tcp.close()


async def test_after_close_the_scope_goes_on(listener: stdlib_socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        first = tcp.open(LOOPBACK, port_of(listener))
        tcp.close()
        second, events, peer = await connected(tcp, "client", listener)
        await first.closed()
        with peer:
            second.send(b"here")
            assert await blocking(read_exactly, peer, 4) == b"here"
            assert second.readyState == "open"
            tcp.close()
            assert await blocking(read_all, peer) == b""
    assert events.types == ["open", "close"]


async def test_two_scopes_at_once_and_one_in_the_other(listener: stdlib_socket.socket) -> None:
    async with MozTCPSocket() as outer:
        first, _, first_peer = await connected(outer, "client", listener)
        async with MozTCPSocket() as inner:
            second, _, second_peer = await connected(inner, "client", listener)
            second.onclose = lambda event: outer_opened.append(outer.open(LOOPBACK, port_of(listener)))
            outer_opened: list[TCPSocket] = []
            inner.close()
            second_peer.close()
        assert (first.readyState, second.readyState) == ("open", "closed")
        with await accept(listener):
            await outer_opened[0].opened()
            outer.close()
        first_peer.close()


async def test_a_failure_in_the_inner_scope_leaves_the_outer_alone(listener: stdlib_socket.socket) -> None:
    async with MozTCPSocket() as outer:
        socket, _, peer = await connected(outer, "client", listener)
        with leaves(ExceptionGroup) as caught:
            async with MozTCPSocket() as inner:
                inner.open(LOOPBACK, unused_port())
                await anyio.sleep_forever()
        assert [type(exc) for exc in caught.value.exceptions] == [TCPSocketError]
        socket.send(b"alive")
        with peer:
            assert await blocking(read_exactly, peer, 5) == b"alive"


async def test_what_has_closed_is_forgotten(listener: stdlib_socket.socket) -> None:
    def remembered(cls: type) -> int:
        gc.collect()
        return sum(type(thing) is cls for thing in gc.get_objects())

    before = remembered(TCPSocket), remembered(TCPServerSocket)
    async with MozTCPSocket() as tcp:
        server = tcp.listen(0)
        closed: list[int] = []

        def connect(event: TCPServerSocketEvent) -> None:
            event.socket.onclose = lambda event: closed.append(1)

        server.onconnect = connect
        for _ in range(3):
            tcp.open(LOOPBACK, port_of(listener)).onclose = lambda event: closed.append(1)
            (await accept(listener)).close()
            (await dial(server.localPort)).close()
        while len(closed) < 6:
            await all_blocked()
        await all_blocked()
        assert remembered(TCPSocket) == before[0]
        tcp.close()
        await server.closed()
        await all_blocked()
        del server
        assert remembered(TCPServerSocket) == before[1]


# Opening in handlers


def proxy_to(tcp: MozTCPSocket, port: int) -> Callable[[TCPServerSocketEvent], None]:
    """An ``onconnect`` that forwards data in both directions, and suspends a side that sends too fast."""

    def couple(source: TCPSocket, sink: TCPSocket) -> None:
        held = False

        def forward(event: Any) -> None:
            nonlocal held
            if not sink.send(event.data) and not held:
                held = True
                source.suspend()

        def close_now(event: Any) -> None:
            nonlocal held
            if held:
                held = False
                source.resume()

        source.ondata = forward
        sink.ondrain = close_now
        source.onclose = lambda event: sink.close()

    def connect(event: TCPServerSocketEvent) -> None:
        client = event.socket
        upstream = tcp.open(LOOPBACK, port)
        client.suspend()
        upstream.onopen = lambda event: client.resume()
        couple(client, upstream)
        couple(upstream, client)

    return connect


@pytest.mark.parametrize("body", ["waits", "has ended"])
async def test_a_proxy(body: str, listener: stdlib_socket.socket) -> None:
    port: list[int] = []
    ready = anyio.Event()

    async def program() -> None:
        async with MozTCPSocket() as tcp:
            server = tcp.listen(0)
            server.onconnect = proxy_to(tcp, port_of(listener))
            port.append(server.localPort)
            servers.append(server)
            ready.set()
            if body == "waits":
                await server.closed()

    servers: list[TCPServerSocket] = []
    request, response = bytes(range(256)) * 4096, bytes(range(255, -1, -1)) * 8192

    def serve(upstream: stdlib_socket.socket) -> None:
        with upstream:
            assert read_exactly(upstream, len(request)) == request
            upstream.sendall(response)

    def ask(client: stdlib_socket.socket) -> bytes:
        with client:
            client.sendall(request)
            return read_all(client)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(program)
        await ready.wait()
        for _ in range(2):
            client = await dial(port[0])
            upstream = await accept(listener)
            async with anyio.create_task_group() as talking:
                talking.start_soon(blocking, serve, upstream)
                assert await blocking(ask, client) == response
        servers[0].close()


async def test_listening_in_a_handler(listener: stdlib_socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        socket = tcp.open(LOOPBACK, port_of(listener))
        servers: list[TCPServerSocket] = []

        async def listen(event: Any) -> None:
            servers.append(tcp.listen(0))
            servers[0].onconnect = lambda event: tcp.close()
            socket.send(str(servers[0].localPort))
            socket.close()

        socket.onopen = listen
        with await accept(listener) as peer:
            port = int(await blocking(read_all, peer))
        with await dial(port) as second:
            assert await blocking(read_all, second) == b""


async def test_opening_in_the_last_handler_of_all(listener: stdlib_socket.socket) -> None:
    later = []
    async with MozTCPSocket() as tcp:
        first = tcp.open(LOOPBACK, port_of(listener))

        def again(event: Any) -> None:
            later.append(tcp.open(LOOPBACK, port_of(listener), linger=0))
            later[0].onopen = lambda event: event.target.close()

        first.onclose = again
        first.close()
    assert later[0].readyState == "closed"


# Ports for certified apps


@pytest.mark.parametrize("port", [1, 80, 1023])
async def test_low_ports_are_for_certified_apps(port: int) -> None:
    async with MozTCPSocket() as tcp:
        before = open_descriptors()
        with pytest.raises(PermissionError, match=rf"port {port}: .*MozTCPSocket\(certified=True\)"):
            tcp.listen(port)
        assert open_descriptors() == before


async def test_with_certified_the_system_decides() -> None:
    async with MozTCPSocket(certified=True) as tcp:
        refusals = []
        for port in range(1023, 0, -1):
            try:
                server = tcp.listen(port, host=LOOPBACK)
            except OSError as exc:
                refusals.append(exc)
                if exc.errno == errno.EADDRINUSE:
                    continue
            else:
                assert server.localPort == port
                server.close()
            break
        assert all("certified" not in str(exc) for exc in refusals)
        tcp.listen(0).close()


async def test_the_port_is_checked_before_the_privilege() -> None:
    async with MozTCPSocket() as tcp:
        for port in (0, 1024):
            try:
                tcp.listen(port).close()
            except PermissionError:
                pytest.fail("not allowed")
            except OSError:
                pass  # another program uses it
        with pytest.raises(TypeError, match="port must be an int"):
            tcp.listen("80")  # type: ignore[call-overload]


@pytest.mark.parametrize("certified", [1, None, "yes"])
async def test_certified_is_a_bool(certified: Any) -> None:
    with pytest.raises(TypeError, match="certified must be"):
        MozTCPSocket(certified=certified)


# Failures and exceptions


async def test_an_unobserved_failure_ends_the_block(listener: stdlib_socket.socket) -> None:
    ended = []
    with leaves(ExceptionGroup) as caught:
        async with MozTCPSocket() as tcp:
            sibling, events, peer = await connected(tcp, "client", listener)
            server = tcp.listen(0)
            tcp.open(LOOPBACK, unused_port())
            try:
                await anyio.sleep_forever()
            finally:
                ended.append("body")
    assert ended == ["body"]
    (error,) = caught.value.exceptions
    assert type(error) is TCPSocketError
    assert error.name == "ConnectionRefusedError"
    assert sibling.readyState == "closed"
    assert events.types == ["open"]
    assert "closed" in repr(server)
    with peer:
        assert await blocking(read_all, peer) == b""


async def test_an_unobserved_loss_ends_the_block(listener: stdlib_socket.socket) -> None:
    with leaves(ExceptionGroup) as caught:
        async with MozTCPSocket() as tcp:
            socket = tcp.open(LOOPBACK, port_of(listener))
            await socket.opened()
            reset(await accept(listener))
            await anyio.sleep_forever()
    assert [exc.name for exc in caught.value.exceptions if isinstance(exc, TCPSocketError)] == ["NetworkInterruptError"]


@pytest.mark.parametrize("observer", ["onerror", "async onerror", "listener", "once"])
async def test_a_failure_that_was_observed_does_not(observer: str) -> None:
    seen = []

    async def note_later(event: Any) -> None:
        await anyio.lowlevel.checkpoint()
        seen.append(event)

    async with MozTCPSocket() as tcp:
        socket = tcp.open(LOOPBACK, unused_port())
        if observer == "onerror":
            socket.onerror = seen.append
        elif observer == "async onerror":
            socket.onerror = note_later
        else:
            socket.addEventListener("error", seen.append, once=observer == "once")
        closed = anyio.Event()
        socket.onclose = lambda event: closed.set()
        await closed.wait()
        await all_blocked()
    assert [event.name for event in seen] == ["ConnectionRefusedError"]


@pytest.mark.parametrize("what", ["opened", "closed"])
async def test_a_failure_that_was_awaited_does_not(what: str) -> None:
    async with MozTCPSocket() as tcp:
        socket = tcp.open(LOOPBACK, unused_port())
        with pytest.raises(TCPSocketError, match="ConnectionRefusedError"):
            await getattr(socket, what)()
        await all_blocked()
        server = tcp.listen(0)  # the scope continues
        server.close()


async def test_a_loss_that_was_awaited_does_not(listener: stdlib_socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        socket, _, peer = await connected(tcp, "client", listener)
        reset(peer)
        with pytest.raises(TCPSocketError, match="NetworkInterruptError"):
            await socket.closed()
        await all_blocked()


async def test_an_awaited_failure_leaves_by_the_awaiter_once() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with MozTCPSocket() as tcp:
            await tcp.open(LOOPBACK, unused_port()).opened()
    (error,) = caught.value.exceptions
    assert isinstance(error, TCPSocketError)


@both_kinds
async def test_a_handler_that_raises(make_handler: Callable[[Exception], Any], listener: stdlib_socket.socket) -> None:
    error = HandlerError()
    with leaves(ExceptionGroup) as caught:
        async with MozTCPSocket() as tcp:
            sibling, events, peer = await connected(tcp, "client", listener)
            socket = tcp.open(LOOPBACK, port_of(listener))
            socket.onopen = make_handler(error)
            await anyio.sleep_forever()
    assert caught.value.exceptions == (error,)
    assert (socket.readyState, sibling.readyState) == ("closed", "closed")
    assert events.types == ["open"]
    peer.close()


@both_kinds
@pytest.mark.parametrize("type_", ["data", "drain", "close"])
async def test_a_handler_of_any_event_that_raises(
    type_: str, make_handler: Callable[[Exception], Any], listener: stdlib_socket.socket
) -> None:
    error = HandlerError()
    with leaves(ExceptionGroup) as caught:
        async with MozTCPSocket() as tcp:
            socket = tcp.open(LOOPBACK, port_of(listener))
            socket.onopen = lambda event: event.target.send(MUCH)
            socket.addEventListener(type_, make_handler(error))
            with await accept(listener) as peer:
                await blocking(read_exactly, peer, len(MUCH))
                peer.sendall(b"data")
            await anyio.sleep_forever()
    assert caught.value.exceptions == (error,)


async def test_an_error_handler_that_raises() -> None:
    error = HandlerError()
    with leaves(ExceptionGroup) as caught:
        async with MozTCPSocket() as tcp:
            tcp.open(LOOPBACK, unused_port()).onerror = raising(error)
            await anyio.sleep_forever()
    assert caught.value.exceptions == (error,)


async def test_the_rest_of_the_listeners_is_not_called_after_one_that_raises(listener: stdlib_socket.socket) -> None:
    called: list[Any] = []
    with leaves(ExceptionGroup):
        async with MozTCPSocket() as tcp:
            socket = tcp.open(LOOPBACK, port_of(listener))
            socket.onopen = raising(HandlerError())
            socket.addEventListener("open", called.append)
            socket.addEventListener("close", called.append)
    assert [event.type for event in called] == ["close"]


async def test_exceptions_of_two_handlers_and_the_body(
    listener: stdlib_socket.socket,
) -> None:
    errors = [HandlerError("first"), HandlerError("second")]
    with leaves(ExceptionGroup) as caught:
        async with MozTCPSocket() as tcp:
            sockets = [tcp.open(LOOPBACK, port_of(listener)) for _ in errors]
            for socket in sockets:
                await socket.opened()
            peers = [await accept(listener) for _ in errors]
            for socket, error in zip(sockets, errors, strict=True):
                socket.ondata = raising(error)
            for peer in peers:
                peer.sendall(b"data")
            try:
                await anyio.sleep_forever()
            finally:
                raise BodyError
    # The second handler may be cancelled before its data arrives, but no exception is lost.
    raised = [type(exc) for exc in caught.value.exceptions]
    assert BodyError in raised
    assert HandlerError in raised
    for peer in peers:
        peer.close()


async def test_an_exception_of_the_body(role: str, listener: stdlib_socket.socket) -> None:
    error = BodyError()
    with leaves(ExceptionGroup) as caught:
        async with MozTCPSocket() as tcp:
            socket, events, peer = await connected(tcp, role, listener)
            socket.send(MUCH)
            raise error
    assert caught.value.exceptions == (error,)
    assert socket.readyState == "closed"
    assert "close" not in events.types
    with peer:
        assert len(await blocking(read_all, peer)) < len(MUCH)


# Cancellation


@pytest.mark.parametrize("scene", ["idle", "buffered", "lingering", "slow handler", "suspended"])
async def test_cancelling_closes_at_once(scene: str, role: str, listener: stdlib_socket.socket) -> None:
    handled: list[str] = []

    async def slow(event: Any) -> None:
        handled.append("begun")
        await anyio.sleep_forever()
        handled.append("ended")

    before = len(open_descriptors())
    async with MozTCPSocket() as tcp:
        socket, events, peer = await connected(tcp, role, listener)
        if scene == "buffered":
            socket.send(MUCH)
        elif scene == "lingering":
            socket.send(b"bye")
            socket.close()
        elif scene == "suspended":
            socket.suspend()
            await blocking(peer.sendall, bytes(1 << 19))
        elif scene == "slow handler":
            socket.ondata = slow
            await blocking(peer.sendall, b"data")
        await all_blocked()
        seen = list(events.events)
        tcp.cancel_scope.cancel()
    assert events.events == seen
    assert handled == (["begun"] if scene == "slow handler" else [])
    assert socket.readyState == "closed"
    assert socket.bufferedAmount == 0
    assert len(open_descriptors()) == before + 1
    peer.close()
    with pytest.raises(InvalidStateError):
        socket.send(b"")


async def test_cancelling_while_connecting(clogged: int) -> None:
    before = open_descriptors()
    async with MozTCPSocket() as tcp:
        socket = tcp.open(LOOPBACK, clogged)
        events = EventRecorder(socket)
        await all_blocked()
        tcp.cancel_scope.cancel()
    assert (socket.readyState, events.types) == ("closed", [])
    assert open_descriptors().keys() == before.keys()


async def test_cancelling_before_anything_has_begun(listener: stdlib_socket.socket) -> None:
    before = open_descriptors()
    async with MozTCPSocket() as tcp:
        socket = tcp.open(LOOPBACK, port_of(listener))
        events = EventRecorder(socket)
        server = tcp.listen(0)
        tcp.cancel_scope.cancel()
        late_server = tcp.listen(0)
        late = tcp.open(LOOPBACK, port_of(listener))
        late_events = EventRecorder(late)
    assert (socket.readyState, late.readyState) == ("closed", "closed")
    assert events.types + late_events.types == []
    assert "closed" in repr(server) and "closed" in repr(late_server)
    assert open_descriptors().keys() == before.keys()


async def test_cancelling_while_full(role: str, listener: stdlib_socket.socket) -> None:
    """Some of the peer's data waits in the channel behind a slow handler, and more of it in the kernel."""
    handled = []
    begun = anyio.Event()

    async def slow(event: Any) -> None:
        handled.append(event)
        begun.set()
        await anyio.sleep_forever()

    async with MozTCPSocket() as tcp:
        socket, _, peer = await connected(tcp, role, listener)
        socket.ondata = slow
        peer.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                peer.send(bytes(1 << 16))
        await begun.wait()
        await all_blocked()
        tcp.cancel_scope.cancel()
    peer.close()
    assert len(handled) == 1


async def test_a_handler_that_cancels_is_the_last(role: str, listener: stdlib_socket.socket) -> None:
    """This holds for all pending events of this socket and of others: data, a drain, EOF."""
    async with MozTCPSocket() as tcp:
        first, first_events, first_peer = await connected(tcp, role, listener)
        second, second_events, second_peer = await connected(tcp, role, listener)
        before = len(first_events.events) + len(second_events.events)
        for socket in (first, second):
            socket.addEventListener("data", lambda event: tcp.cancel_scope.cancel())
        for peer in (first_peer, second_peer):
            peer.sendall(bytes(1 << 18))
            peer.close()
        await anyio.sleep_forever()  # meanwhile both become readable
    assert len(first_events.events) + len(second_events.events) == before + 1


async def test_a_handler_that_cancels_and_sends(role: str, listener: stdlib_socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        socket, events, peer = await connected(tcp, role, listener)

        def answer(event: Any) -> None:
            socket.send(bytes(70_000))
            socket.close()
            tcp.cancel_scope.cancel()

        socket.addEventListener("data", answer)
        await blocking(peer.sendall, b"data")
        await anyio.sleep_forever()
    peer.close()
    assert events.types[-1] == "data"


async def test_nothing_follows_a_shielded_handler(role: str, listener: stdlib_socket.socket) -> None:
    """A shielded handler continues after the cancellation, but no other handler runs after it."""
    begun, may_end = anyio.Event(), anyio.Event()
    ended = []

    async def shielded(event: Any) -> None:
        begun.set()
        with anyio.CancelScope(shield=True):
            await may_end.wait()
            ended.append(event.type)

    async def let_it_end() -> None:
        await all_blocked()
        ended.append(socket.readyState)
        may_end.set()

    async with anyio.create_task_group() as tasks, MozTCPSocket() as tcp:
        socket, events, peer = await connected(tcp, role, listener)
        socket.addEventListener("data", shielded)
        peer.sendall(b"data")
        await begun.wait()
        tasks.start_soon(let_it_end)
        tcp.cancel_scope.cancel()
    peer.close()
    assert ended == ["closed", "data"]
    assert events.types[-1] == "data"


async def test_a_handler_that_cancels_and_is_to_be_awaited(listener: stdlib_socket.socket) -> None:
    """Its awaitable is never awaited. That is not the program's fault, so there must be no warning."""

    async def rest() -> None:
        pytest.fail("it ran")

    def cancel(event: Any) -> Any:
        tcp.cancel_scope.cancel()
        return rest()

    async with MozTCPSocket() as tcp:
        socket = tcp.open(LOOPBACK, port_of(listener))
        socket.onopen = cancel
        await anyio.sleep_forever()


async def test_nobody_is_left_waiting_after_a_cancellation(listener: stdlib_socket.socket) -> None:
    outcomes = []

    async def wait(what: Callable[[], Awaitable[None]]) -> None:
        try:
            await what()
        except InvalidStateError as exc:
            outcomes.append(str(exc).partition("(")[0])
        else:
            outcomes.append("closed")

    async with anyio.create_task_group() as tasks, MozTCPSocket() as tcp:
        socket, _, peer = await connected(tcp, "client", listener)
        server = tcp.listen(0)
        socket.send(MUCH)
        for what in (socket.drained, socket.closed, server.closed):
            tasks.start_soon(wait, what)
        await all_blocked()
        tcp.cancel_scope.cancel()
    peer.close()
    assert sorted(outcomes) == ["closed", "closed", "drained"]


async def test_a_time_limit_around_it(listener: stdlib_socket.socket) -> None:
    with anyio.move_on_after(math.inf) as limit:
        async with MozTCPSocket() as tcp:
            socket, events, peer = await connected(tcp, "client", listener)
            limit.deadline = anyio.current_time() + 0.01
            await anyio.sleep_forever()
    assert limit.cancelled_caught
    assert (socket.readyState, events.types) == ("closed", ["open"])
    with peer:
        assert await blocking(read_all, peer) == b""


async def test_a_time_limit_while_the_block_waits(listener: stdlib_socket.socket) -> None:
    with anyio.move_on_after(0.05) as limit:
        async with MozTCPSocket() as tcp:
            socket = tcp.open(LOOPBACK, port_of(listener))
            server = tcp.listen(0)
    assert limit.cancelled_caught
    assert socket.readyState == "closed"
    assert "closed" in repr(server)


# Different ways to run it


async def the_program() -> list[str]:
    said: list[str] = []
    async with MozTCPSocket() as tcp:
        server = tcp.listen(0)

        def connect(event: TCPServerSocketEvent) -> None:
            event.socket.ondata = lambda event: event.target.send(event.data.upper())
            server.close()

        server.onconnect = connect
        socket = tcp.open("localhost", server.localPort, binaryType="string")
        socket.onopen = lambda event: socket.send("hello")

        async def received(event: Any) -> None:
            said.append(event.data)
            socket.close()

        socket.ondata = received
        socket.onclose = lambda event: said.append(socket.readyState)
    return said


@pytest.mark.parametrize(
    "run",
    [
        lambda: trio.run(the_program),
        lambda: asyncio.run(the_program()),
        lambda: anyio.run(the_program, backend="asyncio"),
        lambda: anyio.run(the_program, backend="trio"),
        lambda: anyio.run(the_program, backend="asyncio", backend_options={"use_uvloop": True}),
        lambda: asyncio.run(the_program(), debug=True),
    ],
    ids=["trio.run", "asyncio.run", "anyio.run-asyncio", "anyio.run-trio", "anyio.run-uvloop", "asyncio.run-debug"],
)
def test_the_same_program_everywhere(run: Callable[[], list[str]]) -> None:
    assert run() == ["HELLO", "closed"]


def test_several_loops_one_after_the_other_and_a_scope_that_is_used_again() -> None:
    tcp = MozTCPSocket()

    async def use() -> int:
        async with tcp:
            server = tcp.listen(0)
            with await dial(server.localPort) as peer:
                server.onconnect = lambda event: event.socket.close()
                assert await blocking(read_all, peer) == b""
            server.close()
            return server.localPort

    assert asyncio.run(use()) and trio.run(use)
