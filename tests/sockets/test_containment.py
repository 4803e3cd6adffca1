"""An exception of one connection, or of the program's code in it, affects only that connection; and an exception that
leaves a block leaves it without delay.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import socket
import ssl
import subprocess
import sys
from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from mozsocket import MozTCPSocket, TCPServerSocket, TCPSocket
from mozsocket.testing import EventRecorder

from ..certificates import certificate, client_context
from ..peers import (
    LOOPS,
    PEER_TIMEOUT,
    Accepting,
    accept,
    all_blocked,
    blocking,
    dial,
    echo_to,
    listening,
    port_of,
    read_all,
    read_exactly,
    reset,
    secure,
)

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

pytestmark = pytest.mark.anyio


# Exceptions that fail when they are modified, copied or formatted


@dataclass(frozen=True)
class FrozenError(Exception):
    code: int = 7


@dataclass(frozen=True, slots=True)
class SlottedError(Exception):
    code: int = 7


class GuardedError(Exception):
    def __setattr__(self, name: str, value: object) -> None:
        raise RuntimeError("not to be changed")


class NotedError(Exception):
    __notes__ = "no list"  # type: ignore[assignment]


class UnshownError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not to be shown")

    __repr__ = __str__


class BareError(BaseException):
    pass


class UnshownBareError(BaseException):
    def __repr__(self) -> str:
        raise UnshownBareError


AWKWARD = [FrozenError, SlottedError, GuardedError, NotedError, UnshownError, BareError]
awkward = pytest.mark.parametrize("kind", AWKWARD)


def raising(error: BaseException) -> Callable[[Any], None]:
    def handler(event: Any) -> None:
        raise error

    return handler


def raising_later(error: BaseException) -> Callable[[Any], Awaitable[None]]:
    async def handler(event: Any) -> None:
        await anyio.lowlevel.checkpoint()
        raise error

    return handler


class Unawaitable:
    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __await__(self) -> Generator[Any, Any, None]:
        raise self._error


def giving_what_cannot_be_awaited(error: BaseException) -> Callable[[Any], Unawaitable]:
    return lambda event: Unawaitable(error)


every_kind_of_handler = pytest.mark.parametrize("make", [raising, raising_later, giving_what_cannot_be_awaited])


@contextmanager
def left_by(error: BaseException, *, in_group: bool = False) -> Iterator[None]:
    """Check that an exception leaves a block, alone or in a group. Unlike ``pytest.raises()`` it does not touch the
    exception.
    """
    left: BaseException | None = None
    try:
        yield
    except BaseException as exc:
        left = exc
    if in_group:
        assert isinstance(left, BaseExceptionGroup)
        assert left.exceptions == (error,)
    else:
        assert left is error


async def is_served(port: int) -> None:
    """Check that a new connection to an echo server works."""
    with await dial(port) as peer:
        peer.sendall(b"hello")
        assert await blocking(read_exactly, peer, 5) == b"hello"


@awkward
@every_kind_of_handler
async def test_a_server_outlives_what_a_handler_raises(
    make: Callable[[BaseException], Any], kind: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    error = kind()
    async with TCPServerSocket(0, host="127.0.0.1") as server:
        server.onconnect = echo_to
        with await dial(server.localPort) as other:
            other.sendall(b"before")
            assert await blocking(read_exactly, other, 6) == b"before"
            server.onconnect = lambda event: setattr(event.socket, "ondata", make(error))
            with await dial(server.localPort) as peer:
                peer.sendall(b"x")
                assert await blocking(peer.recv, 1) == b""
            other.sendall(b"after")
            assert await blocking(read_exactly, other, 5) == b"after"
        server.onconnect = echo_to
        await is_served(server.localPort)
        server.close()
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert record.exc_info[1] is error
    assert re.match(r"a handler of <TCPSocket #\d+ 127\.0\.0\.1:", record.getMessage())
    assert record.getMessage().endswith(", on 'data'")


class Unbound:
    """What a handler may return: a proxy whose object is missing raises whatever is asked of it."""

    @property
    def __class__(self) -> Any:
        raise LookupError("no object")

    @__class__.setter
    def __class__(self, value: Any) -> None: ...


@pytest.mark.parametrize("role", ["client", "server"])
async def test_a_result_that_cannot_be_examined(
    role: str, listener: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    closed: list[str] = []
    left: BaseException | None = None

    def listen(sock: TCPSocket) -> None:
        sock.ondata = lambda event: Unbound()
        sock.onclose = lambda event: closed.append(role)

    try:
        async with MozTCPSocket() as tcp:
            if role == "client":
                listen(tcp.open("127.0.0.1", port_of(listener)))
                peer = await accept(listener)
            else:
                server = tcp.listen(0, host="127.0.0.1")
                server.onconnect = lambda event: listen(event.socket)
                peer = await dial(server.localPort)
            with peer:
                peer.sendall(b"x")
                assert await blocking(read_all, peer) == b""
            tcp.close()
    except BaseExceptionGroup as group:
        (left,) = group.exceptions
    assert closed == [role]
    assert isinstance(left, LookupError) if role == "client" else "no object" in caplog.text


async def test_a_server_outlives_an_exception_that_raises_another_when_it_is_shown() -> None:
    async with MozTCPSocket() as tcp:
        server = tcp.listen(0, host="127.0.0.1")
        server.onconnect = lambda event: setattr(event.socket, "ondata", raising(UnshownBareError()))
        with await dial(server.localPort) as peer:
            peer.sendall(b"x")
            assert await blocking(read_all, peer) == b""
        server.onconnect = echo_to
        await is_served(server.localPort)
        server.close()
        served = True
    assert served


@awkward
@every_kind_of_handler
async def test_what_a_handler_raises_leaves_as_itself(
    make: Callable[[BaseException], Any], kind: type[BaseException], listener: socket.socket
) -> None:
    error = kind()
    with left_by(error):
        async with TCPSocket("127.0.0.1", port_of(listener)) as sock:
            sock.onopen = make(error)
            await anyio.sleep(math.inf)


@awkward
@every_kind_of_handler
async def test_what_a_handler_raises_leaves_a_scope_in_a_group(
    make: Callable[[BaseException], Any], kind: type[BaseException], listener: socket.socket, anyio_backend_name: str
) -> None:
    if kind is UnshownError and anyio_backend_name == "trio":
        pytest.skip("Trio itself prints the exceptions of a nursery's tasks")
    error = kind()
    with left_by(error, in_group=True):
        async with MozTCPSocket() as tcp:
            tcp.open("127.0.0.1", port_of(listener)).onopen = make(error)
            await anyio.sleep(math.inf)


@awkward
@pytest.mark.parametrize("block", ["socket", "server", "inner", "scope"])
async def test_what_the_body_raises_leaves_as_itself(
    block: str, kind: type[BaseException], listener: socket.socket, anyio_backend_name: str
) -> None:
    if kind is UnshownError and block in ("scope", "inner") and anyio_backend_name == "trio":
        pytest.skip("Trio itself prints the exceptions that leave a nursery's block")
    error = kind()
    with left_by(error, in_group=block in ("scope", "inner")):
        if block == "socket":
            async with TCPSocket("127.0.0.1", port_of(listener)) as sock:
                await sock.opened()
                raise error
        elif block == "server":
            async with TCPServerSocket(0, host="127.0.0.1"):
                raise error
        else:
            async with MozTCPSocket() as tcp:
                if block == "scope":
                    raise error
                with left_by(error):
                    async with tcp.open("127.0.0.1", port_of(listener)) as sock:
                        await sock.opened()
                        raise error
                raise error


async def test_an_exception_of_many_handlers_does_not_grow(caplog: pytest.LogCaptureFixture) -> None:
    error = ValueError("always the same")
    async with TCPServerSocket(0, host="127.0.0.1") as server:
        server.onconnect = raising(error)
        for _ in range(20):
            with await dial(server.localPort) as peer:
                assert await blocking(peer.recv, 1) == b""
        server.close()
    assert [record.levelname for record in caplog.records] == ["ERROR"] * 10 + ["WARNING"]
    left_out = caplog.records[-1].getMessage()
    assert left_out.endswith("10 more like this were not logged one by one: a handler raised ValueError")
    assert not getattr(error, "__notes__", [])


# Other code of the program


@pytest.mark.parametrize("what", ["handler", "filter"])
async def test_logging_that_fails_ends_nothing(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    class Failing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise RuntimeError("the disk is full")

    def refuse(record: logging.LogRecord) -> bool:
        raise RuntimeError("a filter fails")

    logger, handler = logging.getLogger("mozsocket"), Failing()
    if what == "handler":
        logger.addHandler(handler)
    else:
        logger.addFilter(refuse)
    try:
        async with TCPServerSocket(0, host="127.0.0.1") as server:
            await dial_and_be_closed(server)  # dial and close: the server has no onconnect
            server.onconnect = echo_to
            accepting = Accepting(server)
            reset(await dial(server.localPort))
            _, recorder = await accepting.first()
            await recorder.first("close")
            server.onconnect = raising(ValueError())
            await dial_and_be_closed(server)
            server.onconnect = echo_to
            await is_served(server.localPort)
            server.close()
    finally:
        logger.removeHandler(handler)
        logger.removeFilter(refuse)
    assert "RuntimeError" in capsys.readouterr().err  # the failure is still reported


async def dial_and_be_closed(server: TCPServerSocket) -> None:
    with await dial(server.localPort) as peer:
        assert await blocking(peer.recv, 1) == b""


class RaisingContext(ssl.SSLContext):
    """A context that fails once."""

    error: BaseException | None = None

    def wrap_bio(self, *args: Any, **options: Any) -> Any:
        error, self.error = self.error, None
        if error is not None:
            raise error
        return super().wrap_bio(*args, **options)


@awkward
@pytest.mark.parametrize("way", ["start", "upgrade"])
async def test_a_server_outlives_what_its_context_raises(
    way: str, kind: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    context = RaisingContext(ssl.PROTOCOL_TLS_SERVER)
    certificate().configure_cert(context)
    context.error = kind()
    options: dict[str, Any] = {"useSecureTransport": True, "ssl_context": context} if way == "start" else {}
    async with TCPServerSocket(0, host="127.0.0.1", **options) as server:

        def onconnect(event: Any) -> None:
            if way == "upgrade":
                event.socket.upgradeToSecure(ssl_context=context)
            echo_to(event)

        server.onconnect = onconnect
        await dial_and_be_closed(server)
        with await secure(await dial(server.localPort), client_context()) as peer:
            peer.sendall(b"hello")
            assert await blocking(read_exactly, peer, 5) == b"hello"
        server.close()
    assert [record.levelno for record in caplog.records if record.levelno == logging.ERROR] == [logging.ERROR]


async def test_what_a_client_s_context_raises_leaves_its_block(listener: socket.socket) -> None:
    context = RaisingContext(ssl.PROTOCOL_TLS_CLIENT)
    context.error = error = FrozenError()
    with left_by(error):
        async with TCPSocket(
            "127.0.0.1", port_of(listener), useSecureTransport=True, ssl_context=context, server_hostname="localhost"
        ) as sock:
            recorder = EventRecorder(sock)
            await anyio.sleep(math.inf)
    assert recorder.types == ["close"]


async def test_a_listener_that_cannot_be_compared() -> None:
    class Incomparable:
        def __eq__(self, other: object) -> bool:
            raise RuntimeError("not to be compared")

        __hash__ = None  # type: ignore[assignment]

        def __call__(self, event: Any) -> None:
            seen.append(event.type)

    seen: list[str] = []
    async with TCPServerSocket(0, host="127.0.0.1") as server:

        def onconnect(event: Any) -> None:
            event.socket.addEventListener("data", Incomparable(), once=True)
            event.socket.addEventListener("close", Incomparable())
            event.socket.ondata = lambda event: event.target.send(event.data)

        server.onconnect = onconnect
        await is_served(server.localPort)
        server.close()
    assert seen == ["data", "close"]


# A block that an exception leaves waits for no handler


class BodyError(Exception):
    pass


@pytest.mark.parametrize("error", [BodyError(), KeyboardInterrupt(), SystemExit(3)], ids=repr)
@pytest.mark.parametrize("block", ["socket", "server", "inner", "scope", "scope's server"])
async def test_the_body_s_exception_is_not_held_back_by_a_handler(
    block: str, error: BaseException, listener: socket.socket
) -> None:
    running, ends = anyio.Event(), []

    async def wait(event: Any) -> None:
        running.set()
        try:
            await anyio.sleep(math.inf)
        finally:
            ends.append("cancelled")

    async def body(sock: TCPSocket) -> None:
        sock.onopen = sock.onclose = wait
        await running.wait()
        raise error

    async def server_body(server: TCPServerSocket) -> None:
        server.onconnect = wait
        with await dial(server.localPort):
            await running.wait()
        raise error

    in_group = block not in ("socket", "server") and isinstance(error, Exception)
    with anyio.fail_after(PEER_TIMEOUT), left_by(error, in_group=in_group):
        if block == "socket":
            async with TCPSocket("127.0.0.1", port_of(listener)) as sock:
                await body(sock)
        elif block == "server":
            async with TCPServerSocket(0, host="127.0.0.1") as server:
                await server_body(server)
        else:
            async with MozTCPSocket() as tcp:
                if block == "inner":
                    with left_by(error):
                        async with tcp.open("127.0.0.1", port_of(listener)) as sock:
                            await body(sock)
                    raise error
                if block == "scope":
                    await body(tcp.open("127.0.0.1", port_of(listener)))
                else:
                    await server_body(tcp.listen(0, host="127.0.0.1"))
    assert ends == ["cancelled"]


async def test_what_a_handler_raises_is_not_held_back_by_another(listener: socket.socket) -> None:
    async def wait(event: Any) -> None:
        await anyio.sleep(math.inf)

    error = BodyError()
    with anyio.fail_after(PEER_TIMEOUT), left_by(error):
        async with TCPSocket("127.0.0.1", port_of(listener)) as sock:
            sock.onopen = raising(error)
            sock.onclose = wait
            await anyio.sleep(math.inf)


async def test_an_accepted_socket_s_last_handler_finishes_after_another_has_raised() -> None:
    """The handler may have to clean up, and nobody waits for it."""
    tidied = []

    async def tidy(event: Any) -> None:
        await anyio.lowlevel.checkpoint()
        tidied.append(event.type)

    def onconnect(event: Any) -> None:
        event.socket.onclose = tidy
        raise BodyError

    async with TCPServerSocket(0, host="127.0.0.1") as server:
        server.onconnect = onconnect
        await dial_and_be_closed(server)
        server.close()
    assert tidied == ["close"]


# Exceptions that end the program leave as themselves


PLACES = ["socket", "scope", "server", "scope's server"]


async def raise_in_a_handler(place: str, make: Callable[[BaseException], Any], error: BaseException, port: int) -> None:
    if place == "socket":
        async with TCPSocket("127.0.0.1", port) as sock:
            sock.onopen = make(error)
            await anyio.sleep(math.inf)
    elif place == "scope":
        async with MozTCPSocket() as tcp:
            tcp.open("127.0.0.1", port).onopen = make(error)
            await anyio.sleep(math.inf)
    elif place == "server":
        async with TCPServerSocket(0, host="127.0.0.1") as server:
            server.onconnect = make(error)
            with socket.create_connection(("127.0.0.1", server.localPort)):
                await anyio.sleep(math.inf)
    else:
        async with MozTCPSocket() as tcp:
            server = tcp.listen(0, host="127.0.0.1")
            server.onconnect = make(error)
            with socket.create_connection(("127.0.0.1", server.localPort)):
                await anyio.sleep(math.inf)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("place", PLACES)
@every_kind_of_handler
@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()], ids=repr)
def test_what_ends_the_program_is_in_no_group(
    error: BaseException, make: Callable[[BaseException], Any], place: str, loop: str, caplog: pytest.LogCaptureFixture
) -> None:
    backend, options = LOOPS[loop]
    with listening() as listener, pytest.raises(type(error)) as caught:
        anyio.run(raise_in_a_handler, place, make, error, port_of(listener), backend=backend, backend_options=options)
    assert caught.value is error
    assert not caplog.records


EXITING = """
import sys
import anyio
from mozsocket import MozTCPSocket

async def main():
    async with MozTCPSocket() as tcp:
        server = tcp.listen(0, host="127.0.0.1")
        server.onconnect = lambda event: sys.exit(3)
        tcp.open("127.0.0.1", server.localPort)

options = {"use_uvloop": True} if sys.argv[1] == "uvloop" else {}
anyio.run(main, backend="trio" if sys.argv[1] == "trio" else "asyncio", backend_options=options)
"""


@pytest.mark.parametrize("loop", LOOPS)
def test_the_status_of_a_program_that_a_handler_ends(loop: str) -> None:
    result = subprocess.run([sys.executable, "-c", EXITING, loop], capture_output=True, text=True, timeout=PEER_TIMEOUT)
    assert (result.returncode, result.stderr) == (3, "")


# asyncio's own cancellation


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("order", [1, -1])
def test_cancelling_all_tasks_is_no_error_of_a_handler(
    order: int, place: str, loop: str, caplog: pytest.LogCaptureFixture
) -> None:
    running = anyio.Event()
    ends: list[str] = []

    def make(error: BaseException) -> Callable[[Any], Awaitable[None]]:
        async def wait(event: Any) -> None:
            running.set()
            try:
                await anyio.sleep(math.inf)
            finally:
                ends.append("cancelled")

        return wait

    async def main(port: int) -> None:
        program = asyncio.current_task()
        watcher = asyncio.create_task(cancel_all(program))
        try:
            await raise_in_a_handler(place, make, BodyError(), port)
        finally:
            watcher.cancel()

    async def cancel_all(program: Any) -> None:
        await running.wait()
        await all_blocked()
        for task in list(asyncio.all_tasks())[::order]:
            if task is not asyncio.current_task():
                task.cancel()

    backend, options = LOOPS[loop]
    with listening() as listener, pytest.raises(asyncio.CancelledError):
        anyio.run(main, port_of(listener), backend=backend, backend_options=options)
    assert ends == ["cancelled"]
    assert not caplog.records


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("later", [False, True], ids=["functions", "async functions"])
def test_no_handler_runs_once_all_tasks_are_cancelled(later: bool, order: int, loop: str) -> None:
    types: list[str] = []
    opened: list[TCPSocket] = []
    count = 10
    all_received = anyio.Event()

    def handle(event: Any) -> None:
        types.append(event.type)
        if types == ["data"] * count:
            all_received.set()

    async def handle_later(event: Any) -> None:
        handle(event)
        await anyio.sleep(math.inf)

    def set_handlers(sock: TCPSocket) -> None:
        opened.append(sock)
        sock.ondata = handle_later if later else handle
        sock.onclose = handle

    async def use() -> None:
        async with MozTCPSocket() as tcp:
            server = tcp.listen(0, host="127.0.0.1")
            server.onconnect = lambda event: set_handlers(event.socket)
            for _ in range(count):
                sock = tcp.open("127.0.0.1", server.localPort)
                set_handlers(sock)
                await sock.opened()
                sock.send(b"x")

    async def main() -> None:
        program = asyncio.create_task(use())
        await all_received.wait()
        for task in list(asyncio.all_tasks())[::order]:  # as asyncio.run() does at the end
            if task is not asyncio.current_task():
                task.cancel()
        await asyncio.wait([program])

    backend, options = LOOPS[loop]
    anyio.run(main, backend=backend, backend_options=options)
    assert types == ["data"] * count
    assert [sock.readyState for sock in opened] == ["closed"] * 2 * count


# Calls from places where AnyIO can neither start nor wake a task


CALLS: dict[str, Callable[[Any, Any, Any], object]] = {
    "close": lambda tcp, server, sock: sock.close(),
    "closeImmediately": lambda tcp, server, sock: sock.closeImmediately(),
    "send": lambda tcp, server, sock: sock.send(b"x"),
    "send_eof": lambda tcp, server, sock: sock.send_eof(),
    "suspend": lambda tcp, server, sock: sock.suspend(),
    "resume": lambda tcp, server, sock: sock.resume(),
    "stream": lambda tcp, server, sock: sock.stream(),
    "upgradeToSecure": lambda tcp, server, sock: sock.upgradeToSecure(server_hostname="localhost"),
    "server.close": lambda tcp, server, sock: server.close(),
    "tcp.close": lambda tcp, server, sock: tcp.close(),
    "tcp.open": lambda tcp, server, sock: tcp.open("127.0.0.1", server.localPort),
    "tcp.listen": lambda tcp, server, sock: tcp.listen(0, host="127.0.0.1"),
}


async def from_callback(call: Callable[[], object]) -> None:
    asyncio.get_running_loop().call_soon(call)
    await all_blocked()


@pytest.mark.parametrize("suspended", [False, True], ids=["reading", "suspended"])
@pytest.mark.parametrize("where", ["callback", "thread"])
@pytest.mark.parametrize("name", CALLS)
async def test_after_a_call_from_elsewhere_nothing_is_half_done(
    name: str, where: str, suspended: bool, listener: socket.socket, anyio_backend_name: str
) -> None:
    if where == "callback" and anyio_backend_name == "trio":
        pytest.skip("Trio has no callbacks")
    if where == "thread" and name == "send":
        pytest.skip("this call can only raise RuntimeError, and only when it must start a task")

    async with MozTCPSocket() as tcp:
        server = tcp.listen(0, host="127.0.0.1")
        server.onconnect = echo_to
        sock = tcp.open("127.0.0.1", port_of(listener))
        recorder = EventRecorder(sock)
        with await accept(listener) as peer:
            await sock.opened()
            if suspended:
                sock.suspend()
                peer.sendall(b"queued")
                await all_blocked()
            elif name == "resume":
                sock.suspend()
            raised: list[BaseException] = []

            def call() -> None:
                try:
                    CALLS[name](tcp, server, sock)
                except BaseException as exc:
                    raised.append(exc)

            await (from_callback(call) if where == "callback" else blocking(call))
            assert all(type(exc) is RuntimeError for exc in raised)
            with anyio.fail_after(PEER_TIMEOUT):
                if raised and "close" in name:
                    assert sock.readyState == "open"
                    await is_served(server.localPort)
                if name == "resume" and raised and suspended:
                    sock.resume()
                    await recorder.first("data")
                tcp.close()
                if sock.readyState != "closed":
                    sock.closeImmediately()
                await recorder.first("close")
                await server.closed()
                await sock.closed()
