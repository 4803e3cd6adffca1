"""Methods called where tasks cannot be woken: in another thread, or in an asyncio callback outside any task.

Such a call raises before it changes anything: the socket keeps working, and can be closed from a task.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import socket as stdlib_socket
import threading
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest

from mozsocket import MozTCPSocket, TCPServerSocket, TCPSocket
from mozsocket.testing import EventRecorder

from ..certificates import client_context, server_context
from ..conftest import open_descriptors
from ..peers import PEER_TIMEOUT, Accepting, all_blocked, blocking, connected, dial, read_exactly

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["thread", "thread with a loop", "callback"])
def elsewhere(request: pytest.FixtureRequest, anyio_backend_name: str) -> Callable[..., Any]:
    """Calls a function in such a place.

    :return: what the function returned, or the exception it raised
    """
    if request.param == "callback" and anyio_backend_name != "asyncio":
        pytest.skip("only asyncio has callbacks outside tasks")

    async def call(function: Callable[[], Any]) -> Any:
        results: list[Any] = []

        def run() -> None:
            try:
                results.append(function())
            except Exception as exc:
                results.append(exc)

        async def run_in_task() -> None:
            run()

        if request.param == "callback":
            # As in a program that uses asyncio.run(). AnyIO's own run() leaves a mark by which AnyIO recognizes the
            # task.
            asyncio.get_running_loop().call_soon(run, context=contextvars.Context())
            await all_blocked()
        else:
            target = run if request.param == "thread" else lambda: asyncio.run(run_in_task())
            thread = threading.Thread(target=target)
            thread.start()
            thread.join()
        return results[0]

    return call


def state(socket: TCPSocket) -> tuple[Any, ...]:
    return (socket.readyState, socket.bufferedAmount, socket.ssl, repr(socket))


CALLS: dict[str, Callable[[TCPSocket], Any]] = {
    "send": lambda socket: socket.send(b"elsewhere"),
    "suspend": lambda socket: socket.suspend(),
    "close": lambda socket: socket.close(),
    "closeImmediately": lambda socket: socket.closeImmediately(),
    "reset": lambda socket: socket.reset(),
    "send_eof": lambda socket: socket.send_eof(),
    "stream": lambda socket: socket.stream(),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("writing", ["not", "done", "under way"])
async def test_a_socket(call: str, writing: str, role: str, elsewhere: Any, listener: stdlib_socket.socket) -> None:
    with anyio.fail_after(PEER_TIMEOUT):
        async with MozTCPSocket() as tcp:
            socket, events, peer = await connected(tcp, role, listener)
            if writing != "not":
                socket.send(b"first")
            if writing == "done":  # so that the writer exists, and waits
                await all_blocked()
            before = state(socket)
            result = await elsewhere(lambda: CALLS[call](socket))
            assert isinstance(result, RuntimeError)
            assert "has to be called from a task of its event loop" in str(result)
            if writing != "under way":  # otherwise the write has continued
                assert state(socket) == before
            if writing != "not":
                assert await blocking(read_exactly, peer, 5) == b"first"
            await all_blocked()
            socket.send(b"second")
            await blocking(peer.sendall, b"answer")
            assert await blocking(read_exactly, peer, 6) == b"second"
            assert (await events.first("data")).data == b"answer"
            socket.close()
            peer.close()
            await events.first("close")


async def test_a_call_from_another_thread_as_advised(role: str, listener: stdlib_socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        socket, _, peer = await connected(tcp, role, listener)

        async def send(data: bytes) -> bool:
            return socket.send(data)

        assert await anyio.to_thread.run_sync(anyio.from_thread.run, send, b"from a thread")
        assert await blocking(read_exactly, peer, 13) == b"from a thread"
        peer.close()


async def test_an_upgrade(role: str, elsewhere: Any, listener: stdlib_socket.socket) -> None:
    ours = client_context() if role == "client" else server_context()
    theirs = server_context() if role == "client" else client_context()
    with anyio.fail_after(PEER_TIMEOUT):
        async with MozTCPSocket() as tcp:
            socket, events, peer = await connected(tcp, role, listener)
            before = state(socket)
            upgrade = partial(
                socket.upgradeToSecure, ssl_context=ours, server_hostname="localhost" if role == "client" else None
            )
            assert isinstance(await elsewhere(upgrade), RuntimeError)
            assert state(socket) == before
            upgrade()
            name = None if role == "client" else "localhost"
            secured = await blocking(
                lambda: theirs.wrap_socket(peer, server_side=role == "client", server_hostname=name)
            )
            await events.first("secure")
            socket.closeImmediately()
            secured.close()


@pytest.mark.parametrize("call", ["close", "closeImmediately"])
async def test_a_socket_that_connects(call: str, elsewhere: Any, clogged: int) -> None:
    with anyio.fail_after(PEER_TIMEOUT):
        async with TCPSocket("127.0.0.1", clogged) as socket:
            events = EventRecorder(socket)
            await all_blocked()
            assert isinstance(await elsewhere(getattr(socket, call)), RuntimeError)
            assert socket.readyState == "connecting"
            socket.close()
            assert events.types == []
        assert events.types == ["close"]


async def test_resuming(elsewhere: Any, listener: stdlib_socket.socket) -> None:
    with anyio.fail_after(PEER_TIMEOUT):
        async with MozTCPSocket() as tcp:
            socket, events, peer = await connected(tcp, "client", listener)
            socket.suspend()
            await blocking(peer.sendall, b"data")
            await all_blocked()
            assert isinstance(await elsewhere(socket.resume), RuntimeError)
            assert events.types == ["open"]
            socket.resume()
            await events.first("data")
            socket.closeImmediately()
            peer.close()


@pytest.mark.parametrize("owner", ["own", "scope"])
async def test_closing_a_server(owner: str, elsewhere: Any) -> None:
    async def check(server: TCPServerSocket) -> None:
        accepting = Accepting(server)
        await all_blocked()
        assert isinstance(await elsewhere(server.close), RuntimeError)
        with await dial(server.localPort):
            socket, _ = await accepting.first()
            socket.closeImmediately()
        server.close()

    with anyio.fail_after(PEER_TIMEOUT):
        if owner == "own":
            async with TCPServerSocket(0, host="127.0.0.1") as server:
                await check(server)
        else:
            async with MozTCPSocket() as tcp:
                await check(tcp.listen(0, host="127.0.0.1"))


@pytest.mark.parametrize("call", ["open", "listen", "close"])
async def test_a_scope(call: str, elsewhere: Any, listener: stdlib_socket.socket) -> None:
    with anyio.fail_after(PEER_TIMEOUT):
        async with MozTCPSocket() as tcp:
            socket, events, peer = await connected(tcp, "client", listener)
            server = tcp.listen(0, host="127.0.0.1")
            await all_blocked()
            before = open_descriptors()
            calls: dict[str, Callable[[], Any]] = {
                "open": lambda: tcp.open("127.0.0.1", server.localPort),
                "listen": lambda: tcp.listen(0),
                "close": tcp.close,
            }
            assert isinstance(await elsewhere(calls[call]), RuntimeError)
            assert open_descriptors() == before
            assert socket.readyState == "open"
            assert "listening" in repr(server)
            tcp.close()
            peer.close()
            await events.first("close")


@pytest.mark.parametrize("what", ["opened", "drained", "closed"])
async def test_awaiting_in_another_loop(what: str, listener: stdlib_socket.socket) -> None:
    with anyio.fail_after(PEER_TIMEOUT):
        async with MozTCPSocket() as tcp:
            socket, _, peer = await connected(tcp, "client", listener)

            async def wait() -> None:
                await getattr(socket, what)()

            with pytest.raises(RuntimeError, match="runs in another event loop"):
                await blocking(lambda: asyncio.run(wait()))
            socket.closeImmediately()
            peer.close()
        await blocking(lambda: asyncio.run(socket.closed()))  # once closed, it can be awaited anywhere


async def test_sending_what_a_handler_has_begun_to(elsewhere: Any, role: str, listener: stdlib_socket.socket) -> None:
    """The first send continues by itself; data sent meanwhile must not be mixed into it."""
    with anyio.fail_after(PEER_TIMEOUT):
        async with MozTCPSocket() as tcp:
            socket, events, peer = await connected(tcp, role, listener)
            socket.ondata = lambda event: event.target.send(bytes(64 << 20))
            peer.sendall(b"go")
            await events.first("data")
            await all_blocked()
            before = state(socket)
            assert before[1] > 0
            assert isinstance(await elsewhere(lambda: socket.send(b"x")), RuntimeError)
            assert state(socket) == before
            socket.closeImmediately()
            peer.close()


@pytest.mark.parametrize("begins_with", [b"", b"first"])
async def test_sending_while_a_handler_runs(begins_with: bytes, role: str, listener: stdlib_socket.socket) -> None:
    """From a thread that the handler waits for, before or after it has sent something itself."""
    results: list[Any] = []

    def send(socket: TCPSocket) -> None:
        try:
            results.append(socket.send(b"elsewhere"))
        except Exception as exc:
            results.append(exc)

    def handle(event: Any) -> None:
        if begins_with:
            event.target.send(begins_with)
        thread = threading.Thread(target=send, args=(event.target,))
        thread.start()
        thread.join()
        event.target.send(b"last")

    with anyio.fail_after(PEER_TIMEOUT):
        async with MozTCPSocket() as tcp:
            socket, _, peer = await connected(tcp, role, listener)
            socket.ondata = handle
            for _ in range(2):  # the second time by the fast path
                await blocking(peer.sendall, b"go")
                sent = begins_with + b"last"
                assert await blocking(read_exactly, peer, len(sent)) == sent
            assert [type(result) for result in results] == [RuntimeError] * 2
            socket.closeImmediately()
            peer.close()


@pytest.mark.parametrize("call", CALLS)
def test_after_its_loop(call: str) -> None:
    """This is for asyncio only: Trio's loop ends when all of its tasks have."""
    ours, peer = stdlib_socket.socketpair()

    async def enter() -> TCPSocket:
        sock = await TCPSocket.from_socket(ours).__aenter__()
        await sock.opened()
        return sock

    loop = asyncio.new_event_loop()
    with peer:
        sock = loop.run_until_complete(enter())
        before = state(sock)
        with pytest.raises(RuntimeError, match="once its event loop has ended, it is too late"):
            CALLS[call](sock)
        assert state(sock) == before
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.close()


def test_a_loop_that_has_ended_is_gone() -> None:
    """AnyIO keeps the state of an event loop only as long as the loop exists."""
    loops = []

    async def main() -> None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        async with MozTCPSocket() as tcp:
            tcp.listen(0, host="127.0.0.1").close()

    for _ in range(3):
        asyncio.run(main())
    gc.collect()
    assert [loop() for loop in loops] == [None] * 3
