"""An exception that leaves a block does not wait for a running handler, which may itself be waiting for the body."""

from __future__ import annotations

import math
import os
import signal
import socket as stdlib_socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from mozsocket import MozTCPSocket, TCPServerSocket, TCPSocket

from ..peers import PEER_TIMEOUT, blocking, dial, port_of

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

pytestmark = pytest.mark.anyio


class BodyError(Exception):
    pass


class Handlers:
    """Handlers that wait for the body.

    :ivar ends: how the handlers that began have ended
    """

    def __init__(self) -> None:
        self.ends: list[str] = []
        self._begun = anyio.Event()
        self._body = anyio.Event()

    async def wait(self, event: Any) -> None:
        self._begun.set()
        try:
            await self._body.wait()
        except BaseException as exc:
            self.ends.append(type(exc).__name__)
            raise

    async def begun(self) -> None:
        with anyio.fail_after(PEER_TIMEOUT):
            await self._begun.wait()


class Blocks:
    """Every kind of block in which a handler can be waiting.

    :ivar handlers: the waiting handlers
    :ivar types: the events that a plain function has received
    """

    def __init__(self, listener: stdlib_socket.socket) -> None:
        self._listener = listener
        self.handlers = Handlers()
        self.types: list[str] = []

    def _prepare(self, socket: TCPSocket, type_: str) -> None:
        socket.addEventListener("close", lambda event: self.types.append("close"))
        socket.addEventListener(type_, self.handlers.wait)

    async def socket(self, body: Callable[[], Any]) -> None:
        async with TCPSocket("127.0.0.1", port_of(self._listener)) as socket:
            self._prepare(socket, "open")
            await self.handlers.begun()
            await body()

    async def opened_by_a_scope(self, body: Callable[[], Any]) -> None:
        async with MozTCPSocket() as tcp, tcp.open("127.0.0.1", port_of(self._listener)) as socket:
            self._prepare(socket, "open")
            await self.handlers.begun()
            await body()

    async def scope(self, body: Callable[[], Any]) -> None:
        async with MozTCPSocket() as tcp:
            self._prepare(tcp.open("127.0.0.1", port_of(self._listener)), "open")
            await self.handlers.begun()
            await body()

    async def server(self, body: Callable[[], Any]) -> None:
        async with TCPServerSocket(0, host="127.0.0.1") as server:
            await self._serve(server, body)

    async def listening_in_a_scope(self, body: Callable[[], Any]) -> None:
        async with MozTCPSocket() as tcp, tcp.listen(0, host="127.0.0.1") as server:
            await self._serve(server, body)

    async def accepted(self, body: Callable[[], Any]) -> None:
        """The block of an accepted socket, entered by a task other than its own."""
        sockets = []
        async with TCPServerSocket(0, host="127.0.0.1") as server:
            server.onconnect = lambda event: sockets.append(event.socket)
            server.addEventListener("connect", lambda event: self._prepare(event.socket, "data"))
            with await dial(server.localPort) as peer:
                peer.sendall(b"data")
                await self.handlers.begun()
                server.close()
                async with sockets[0]:
                    await body()

    async def _serve(self, server: TCPServerSocket, body: Callable[[], Any]) -> None:
        server.onconnect = lambda event: self._prepare(event.socket, "data")
        with await dial(server.localPort) as peer:
            peer.sendall(b"data")
            await self.handlers.begun()
            await body()


BLOCKS = ["socket", "opened_by_a_scope", "scope", "server", "listening_in_a_scope", "accepted"]


@pytest.mark.parametrize("error", [BodyError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("block", BLOCKS)
async def test_the_body_raises(block: str, error: type[BaseException], listener: stdlib_socket.socket) -> None:
    blocks = Blocks(listener)
    raised = error()

    async def fail() -> None:
        raise raised

    left: Any = None
    with anyio.fail_after(PEER_TIMEOUT):
        try:
            await getattr(blocks, block)(fail)
        except BaseException as exc:
            left = exc
    if "scope" in block and isinstance(left, BaseExceptionGroup):
        (left,) = left.exceptions
    assert left is raised
    assert len(blocks.handlers.ends) == 1  # it has been cancelled
    if block in ("socket", "server", "accepted"):
        assert blocks.types == ["close"]  # plain functions are still called


@pytest.mark.parametrize("block", BLOCKS)
async def test_the_body_is_cancelled(block: str, listener: stdlib_socket.socket) -> None:
    blocks = Blocks(listener)
    ended: list[bool] = []

    async def wait() -> None:
        with anyio.CancelScope() as inner:
            inner.cancel()
            await anyio.sleep(math.inf)
        scope.cancel()
        try:
            await anyio.sleep(math.inf)
        finally:
            ended.append(True)

    with anyio.fail_after(PEER_TIMEOUT), anyio.CancelScope() as scope:
        await getattr(blocks, block)(wait)
    assert scope.cancelled_caught
    assert ended == [True]
    assert len(blocks.handlers.ends) == 1


@pytest.mark.parametrize("what", ["socket", "server"])
async def test_the_body_of_an_inner_block_is_cancelled_alone(what: str, listener: stdlib_socket.socket) -> None:
    """The block that owns it continues, and at its end does not wait for the handler."""
    handlers = Handlers()
    with anyio.fail_after(PEER_TIMEOUT):
        async with MozTCPSocket() as tcp:
            with anyio.CancelScope() as scope:
                if what == "socket":
                    async with tcp.open("127.0.0.1", port_of(listener)) as socket:
                        socket.onopen = handlers.wait
                        await handlers.begun()
                        scope.cancel()
                        await anyio.sleep(math.inf)
                else:
                    async with tcp.listen(0, host="127.0.0.1") as server:
                        server.onconnect = handlers.wait
                        with await dial(server.localPort):
                            await handlers.begun()
                            scope.cancel()
                            await anyio.sleep(math.inf)
            assert scope.cancelled_caught
    assert len(handlers.ends) == 1


@pytest.mark.parametrize("error", [BodyError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("owner", ["socket", "scope"])
async def test_a_handler_raises_and_the_next_waits(
    owner: str, error: type[BaseException], listener: stdlib_socket.socket
) -> None:
    handlers = Handlers()
    raised = error()

    def fail(event: Any) -> None:
        raise raised

    async def run(socket: TCPSocket) -> None:
        socket.onopen = fail
        socket.onclose = handlers.wait
        await anyio.sleep(math.inf)

    left: Any = None
    with anyio.fail_after(PEER_TIMEOUT):
        try:
            if owner == "socket":
                async with TCPSocket("127.0.0.1", port_of(listener)) as socket:
                    await run(socket)
            else:
                async with MozTCPSocket() as tcp:
                    await run(tcp.open("127.0.0.1", port_of(listener)))
        except BaseException as exc:
            left = exc
    if isinstance(left, BaseExceptionGroup):
        (left,) = left.exceptions
    assert left is raised


async def test_the_block_of_a_server_with_many_waiting_handlers() -> None:
    begun = 0
    ended = 0
    body = anyio.Event()
    all_begun = anyio.Event()

    async def wait(event: Any) -> None:
        nonlocal begun, ended
        begun += 1
        if begun == 5:
            all_begun.set()
        try:
            await body.wait()
        finally:
            ended += 1

    peers = []
    with pytest.raises(BodyError), anyio.fail_after(PEER_TIMEOUT):  # noqa: PT012
        async with TCPServerSocket(0, host="127.0.0.1") as server:
            server.onconnect = wait
            peers += [await dial(server.localPort) for _ in range(5)]
            await all_begun.wait()
            raise BodyError
    assert ended == 5
    for peer in peers:
        peer.close()


async def test_what_a_cancelled_handler_raises_is_logged(
    listener: stdlib_socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    begun = anyio.Event()

    async def clean_up_badly(event: Any) -> None:
        begun.set()
        try:
            await anyio.sleep(math.inf)
        finally:
            raise ZeroDivisionError

    with pytest.raises(BodyError):  # noqa: PT012
        async with TCPSocket("127.0.0.1", port_of(listener)) as socket:
            socket.onopen = clean_up_badly
            await begun.wait()
            raise BodyError
    (record,) = caplog.records
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ZeroDivisionError)


async def test_a_group_of_the_body_s_with_a_cancellation_of_the_block_s_own(listener: stdlib_socket.socket) -> None:
    """On Trio they are raised in one group: the block removes the cancellation from it."""

    def fail(event: Any) -> None:
        raise ZeroDivisionError

    async def clean_up_badly() -> None:
        try:
            await anyio.sleep(math.inf)
        finally:
            raise BodyError

    left: Any = None
    try:
        async with TCPSocket("127.0.0.1", port_of(listener)) as socket:
            socket.onopen = fail
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(clean_up_badly)
                tasks.start_soon(anyio.sleep, math.inf)
                await anyio.sleep(math.inf)
    except BaseExceptionGroup as group:
        left = group
    assert [type(exc) for exc in left.exceptions] == [BodyError]


PROGRAM = """
import anyio, socket, sys
from mozsocket import MozTCPSocket, TCPServerSocket, TCPSocket

async def wait(event):
    print("waiting", flush=True)
    await anyio.sleep(60)

async def opened():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with TCPSocket("127.0.0.1", listener.getsockname()[1]) as sock:
            sock.onopen = wait
            await anyio.sleep(60)

async def accepted():
    async with TCPServerSocket(0, host="127.0.0.1") as server:
        server.onconnect = wait
        with socket.create_connection(("127.0.0.1", server.localPort)):
            await anyio.sleep(60)

async def in_scope():
    async with MozTCPSocket() as tcp:
        server = tcp.listen(0, host="127.0.0.1")
        async with server:
            server.onconnect = wait
            with socket.create_connection(("127.0.0.1", server.localPort)):
                await anyio.sleep(60)

try:
    anyio.run({main}, backend={backend!r}, backend_options={options!r})
except KeyboardInterrupt:
    sys.exit(5)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows sends signals in another way")
@pytest.mark.parametrize("main", ["opened", "accepted", "in_scope"])
async def test_ctrl_c_ends_the_program_at_once(main: str, anyio_backend: tuple[str, dict[str, Any]]) -> None:
    backend, options = anyio_backend
    if backend == "asyncio" and sys.version_info < (3, 11):
        pytest.skip("anyio.run() then always ends with CancelledError")
    program = PROGRAM.format(main=main, backend=backend, options=options)

    def run() -> tuple[int, bytes]:
        with subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"waiting\n"
            # Python notices a signal that comes just before it waits in the system only when that wait ends; on asyncio
            # nothing ends it. So it is given time to begin to wait.
            time.sleep(0.2)
            process.send_signal(signal.SIGINT)
            try:
                _, errors = process.communicate(timeout=PEER_TIMEOUT)
            finally:
                process.kill()
            return process.returncode, errors

    assert await blocking(run) == (5, b"")


@pytest.mark.parametrize("kind", ["scope", "socket", "server"])
async def test_ctrl_c_in_the_moment_of_leaving(
    kind: str, listener: stdlib_socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Trio it can be raised between any two lines, so also before the tasks of the block are waited for."""

    def interrupted(exc: BaseException | None) -> Any:
        raise KeyboardInterrupt

    block: MozTCPSocket | TCPSocket | TCPServerSocket = MozTCPSocket()
    if kind == "socket":
        block = TCPSocket("127.0.0.1", port_of(listener))
    elif kind == "server":
        block = TCPServerSocket(0, host="127.0.0.1")

    async def leave() -> None:
        async with block:
            await anyio.lowlevel.checkpoint()
            monkeypatch.setattr("mozsocket._scope.is_of_cancellation", interrupted)
            monkeypatch.setattr("mozsocket._lifetime.split_exception", interrupted)

    with anyio.fail_after(PEER_TIMEOUT), pytest.raises(KeyboardInterrupt):
        await leave()
    await anyio.lowlevel.checkpoint()
