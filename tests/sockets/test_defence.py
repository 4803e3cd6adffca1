"""Exceptions that end the program do so, whatever else is raised; any other exception ends one connection at most."""

from __future__ import annotations

import asyncio
import io
import logging
import math
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from mozsocket import MozTCPSocket, TCPServerSocket, TCPSocket
from mozsocket.testing import EventRecorder

from ..peers import PEER_TIMEOUT, accept, all_blocked, blocking, dial, echo_to, port_of, read_all, read_exactly, reset

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

pytestmark = pytest.mark.anyio

PROMPTLY = PEER_TIMEOUT / 4


class BodyError(Exception):
    pass


class HandlerError(Exception):
    pass


class BareError(BaseException):
    pass


def exiting(event: Any) -> None:
    sys.exit(3)


def failing(event: Any) -> None:
    raise HandlerError


async def is_served(port: int) -> None:
    """Check that a new connection to an echo server works."""
    with await dial(port) as peer:
        peer.sendall(b"hello")
        assert await blocking(read_exactly, peer, 5) == b"hello"


# Exceptions that end the program


OWNERS = ["socket", "scope", "server", "scope's server"]
owners = pytest.mark.parametrize("owner", OWNERS)


async def run_with(
    owner: str, handlers: dict[str, Callable[[Any], object]], body: Callable[[], Any], listener: socket.socket
) -> None:
    """A block whose socket, opened or accepted, has some handlers; the key ``"open"`` stands for its first event."""

    def set_handlers(sock: TCPSocket) -> None:
        for type_, handler in handlers.items():
            setattr(sock, f"on{type_}", handler)

    def onconnect(event: Any) -> Any:
        set_handlers(event.socket)
        return handlers["open"](event)

    if owner == "socket":
        async with TCPSocket("127.0.0.1", port_of(listener)) as sock:
            set_handlers(sock)
            await body()
    elif owner == "scope":
        async with MozTCPSocket() as tcp:
            set_handlers(tcp.open("127.0.0.1", port_of(listener)))
            await body()
    elif owner == "server":
        async with TCPServerSocket(0, host="127.0.0.1") as server:
            server.onconnect = onconnect
            (await dial(server.localPort)).close()
            await body()
    else:
        async with MozTCPSocket() as tcp:
            server = tcp.listen(0, host="127.0.0.1")
            server.onconnect = onconnect
            (await dial(server.localPort)).close()
            await body()


async def wait_long() -> None:
    await anyio.sleep(math.inf)


async def wait_and_fail() -> None:
    try:
        await anyio.sleep(math.inf)
    finally:
        raise BodyError


def logged(caplog: pytest.LogCaptureFixture) -> list[type[BaseException]]:
    found: list[type[BaseException]] = []
    for record in caplog.records:
        assert record.exc_info and record.exc_info[1]
        inner = getattr(record.exc_info[1], "exceptions", (record.exc_info[1],))
        found += [type(exc) for exc in inner]
    return found


@owners
async def test_an_exit_is_not_lost_behind_what_the_body_raises(
    owner: str, listener: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(SystemExit) as caught, anyio.fail_after(PROMPTLY):
        await run_with(owner, {"open": exiting}, wait_and_fail, listener)
    assert caught.value.code == 3
    assert logged(caplog) == [BodyError]


@owners
async def test_an_exit_is_not_lost_in_a_cancellation(owner: str, listener: socket.socket) -> None:
    def cancel_and_exit(event: Any) -> None:
        around.cancel()
        sys.exit(3)

    with pytest.raises(SystemExit), anyio.CancelScope() as around:
        await run_with(owner, {"open": cancel_and_exit}, wait_long, listener)


@owners
async def test_an_exit_is_not_lost_behind_what_an_earlier_handler_raised(
    owner: str, listener: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(SystemExit), anyio.fail_after(PROMPTLY):
        await run_with(owner, {"open": failing, "close": exiting}, wait_long, listener)
    assert logged(caplog) == [HandlerError]


@owners
async def test_an_exit_in_a_group_leaves_it(
    owner: str, listener: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(event: Any) -> None:
        raise BaseExceptionGroup("of a handler's tasks", [HandlerError(), SystemExit(3)])

    with pytest.raises(SystemExit) as caught, anyio.fail_after(PROMPTLY):
        await run_with(owner, {"open": fail}, wait_long, listener)
    assert caught.value.code == 3
    assert HandlerError in logged(caplog)


async def test_a_scope_that_was_left_by_an_exit_can_be_used_again(listener: socket.socket) -> None:
    tcp = MozTCPSocket()
    with pytest.raises(SystemExit):  # noqa: PT012
        async with tcp:
            tcp.open("127.0.0.1", port_of(listener)).onopen = exiting
            await anyio.sleep(math.inf)
    async with tcp:
        await tcp.open("127.0.0.1", port_of(listener)).opened()
        tcp.cancel_scope.cancel()


# Handlers that have not begun yet


@pytest.mark.parametrize("owner", ["socket", "inner"])
async def test_a_block_is_not_held_back_by_a_handler_that_was_yet_to_begin(owner: str, listener: socket.socket) -> None:
    """The task that awaits the handlers is started in the same turn in which the body raises."""
    slept = []

    async def slow(event: Any) -> None:
        await anyio.sleep(math.inf)
        slept.append(event.type)

    async def use(sock: TCPSocket) -> None:
        async with sock:
            sock.onclose = slow
            await sock.opened()
            raise BodyError

    with anyio.fail_after(PROMPTLY):
        async with MozTCPSocket() as tcp:
            port = port_of(listener)
            with pytest.raises(BodyError):
                await use(TCPSocket("127.0.0.1", port) if owner == "socket" else tcp.open("127.0.0.1", port))
    assert not slept


async def test_functions_behind_a_handler_that_is_not_awaited_are_called(listener: socket.socket) -> None:
    async def slow(event: Any) -> None:
        await anyio.sleep(math.inf)

    with pytest.raises(BodyError):  # noqa: PT012
        async with TCPSocket("127.0.0.1", port_of(listener)) as sock:
            sock.onopen = sock.onclose = slow
            events = EventRecorder(sock)
            await sock.opened()
            await all_blocked()
            raise BodyError
    assert events.types == ["close"]


# asyncio's own cancellation


def cancel_own_task(event: Any) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()


async def cancel_own_task_later(event: Any) -> None:
    cancel_own_task(event)
    await anyio.lowlevel.checkpoint()


cancelling = pytest.mark.parametrize("handler", [cancel_own_task, cancel_own_task_later])


@cancelling
@pytest.mark.parametrize("owner", ["own", "scope"])
async def test_a_server_outlives_a_handler_that_cancels_its_task(
    owner: str, handler: Callable[[Any], Any], anyio_backend_name: str
) -> None:
    if anyio_backend_name == "trio":
        pytest.skip("Trio cannot cancel a single task")

    async def use(server: TCPServerSocket) -> None:
        server.onconnect = lambda event: setattr(event.socket, "ondata", handler)
        with await dial(server.localPort) as peer:
            peer.sendall(b"x")
            assert await blocking(read_all, peer) == b""
        server.onconnect = echo_to
        await is_served(server.localPort)
        server.close()
        served.append(server)

    served: list[TCPServerSocket] = []
    if owner == "own":
        async with TCPServerSocket(0, host="127.0.0.1") as server:
            await use(server)
    else:
        async with MozTCPSocket() as tcp:
            await use(tcp.listen(0, host="127.0.0.1"))
    assert served


async def test_a_scope_outlives_a_handler_that_cancels_its_task(
    listener: socket.socket, anyio_backend_name: str
) -> None:
    if anyio_backend_name == "trio":
        pytest.skip("Trio cannot cancel a single task")
    served: list[TCPSocket] = []
    async with MozTCPSocket() as tcp:
        first = tcp.open("127.0.0.1", port_of(listener))
        peer = await accept(listener)
        await first.opened()
        second = tcp.open("127.0.0.1", port_of(listener))
        second.onopen = cancel_own_task
        with await accept(listener) as other:
            assert await blocking(read_all, other) == b""
        assert second.readyState == "closed"
        with peer:
            first.send(b"alive")
            assert await blocking(read_exactly, peer, 5) == b"alive"
            first.closeImmediately()
        served.append(first)
    assert served


@asynccontextmanager
async def connection_of(
    owner: str, listener: socket.socket, set_handlers: Callable[[TCPSocket], None]
) -> AsyncIterator[socket.socket]:
    """The peer of a connection that the owner opens or accepts."""
    if owner == "socket":
        async with TCPSocket("127.0.0.1", port_of(listener)) as sock:
            set_handlers(sock)
            with await accept(listener) as peer:
                yield peer
    elif owner == "scope":
        async with MozTCPSocket() as tcp:
            set_handlers(tcp.open("127.0.0.1", port_of(listener)))
            with await accept(listener) as peer:
                yield peer
    else:
        async with MozTCPSocket() as tcp, TCPServerSocket(0, host="127.0.0.1") as alone:
            server = alone if owner == "server" else tcp.listen(0, host="127.0.0.1")
            server.onconnect = lambda event: set_handlers(event.socket)
            with await dial(server.localPort) as peer:
                yield peer
            server.close()


async def provoke(type_: str, peer: socket.socket) -> None:
    """Have a peer do what the last event before the handler's cancellation needs, and see the connection's end."""
    peer.sendall(b"x")
    if type_ == "error":
        reset(peer)
        return
    if type_ == "close":
        peer.shutdown(socket.SHUT_WR)
    await blocking(read_all, peer)


TYPES = ("open", "data", "drain", "error", "close")


class Cancelling:
    """Handlers for each event of a socket, one of which cancels its task.

    :param type_: the event whose handler does that
    :param cancel: what that handler does
    """

    def __init__(self, type_: str, cancel: Callable[[Any], Any]) -> None:
        self._type, self._cancel = type_, cancel
        self.types: list[str] = []
        self.closed = anyio.Event()

    def plain(self, event: Any) -> Any:
        self.types.append(event.type)
        if event.type == "close":
            self.closed.set()
        return self._cancel(event) if event.type == self._type else None

    async def later(self, event: Any) -> None:
        await anyio.lowlevel.checkpoint()
        result = self.plain(event)
        if result is not None:
            await result

    def listen_to(self, sock: TCPSocket, *, later: tuple[str, ...]) -> None:
        for type_ in TYPES:
            setattr(sock, f"on{type_}", self.later if type_ in later else self.plain)
        if self._type == "drain":
            sock.addEventListener("data", lambda event: event.target.send(bytes(1 << 22)))


@cancelling
@pytest.mark.parametrize("later", [(), ("close",), TYPES], ids=["functions", "and an async onclose", "async functions"])
@pytest.mark.parametrize("type_", TYPES)
@owners
async def test_a_connection_whose_handler_cancels_its_task_gets_its_last_events(
    owner: str,
    type_: str,
    later: tuple[str, ...],
    handler: Callable[[Any], Any],
    listener: socket.socket,
    anyio_backend_name: str,
) -> None:
    if anyio_backend_name == "trio":
        pytest.skip("Trio cannot cancel a single task")
    if type_ == "open" and "server" in owner:
        pytest.skip("an accepted socket gets no such event")
    if handler is cancel_own_task_later and sys.version_info < (3, 11):
        pytest.skip("Python 3.10 does not tell what has raised the cancellation")
    events = Cancelling(type_, handler)
    with anyio.fail_after(PEER_TIMEOUT):
        async with connection_of(owner, listener, partial(events.listen_to, later=later)) as peer:
            await provoke(type_, peer)
            await events.closed.wait()
    assert events.types[-1] == "close"
    assert events.types.count("close") == events.types.count(type_) == 1


@pytest.mark.parametrize("type_", ["open", "data", "drain"])
@pytest.mark.parametrize("owner", OWNERS)
async def test_what_a_handler_has_sent_before_it_cancels_its_task_arrives(
    owner: str, type_: str, listener: socket.socket, anyio_backend_name: str
) -> None:
    if anyio_backend_name == "trio":
        pytest.skip("Trio cannot cancel a single task")
    if type_ == "open" and "server" in owner:
        pytest.skip("an accepted socket gets no such event")

    def send_and_cancel(event: Any) -> None:
        event.target.send(b"last words")
        cancel_own_task(event)

    def set_handlers(sock: TCPSocket) -> None:
        setattr(sock, f"on{type_}", send_and_cancel)
        if type_ == "drain":
            sock.ondata = lambda event: event.target.send(bytes(1 << 22))

    with anyio.fail_after(PEER_TIMEOUT):
        async with connection_of(owner, listener, set_handlers) as peer:
            peer.sendall(b"x")
            received = await blocking(read_all, peer)
    assert received.endswith(b"last words")


# Other code of the program


@pytest.mark.parametrize("where", ["wrap_bio", "do_handshake"])
async def test_a_server_outlives_anything_of_its_context(where: str, caplog: pytest.LogCaptureFixture) -> None:
    class Engine(ssl.SSLObject):
        def do_handshake(self) -> None:
            if where == "do_handshake":
                raise BareError
            super().do_handshake()

    class Context(ssl.SSLContext):
        sslobject_class = Engine

        def wrap_bio(self, *args: Any, **options: Any) -> ssl.SSLObject:
            if where == "wrap_bio":
                raise BareError
            return super().wrap_bio(*args, **options)

    async with TCPServerSocket(
        0, host="127.0.0.1", useSecureTransport=True, ssl_context=Context(ssl.PROTOCOL_TLS_SERVER)
    ) as server:
        server.onconnect = echo_to
        for _ in range(2):
            with await dial(server.localPort) as peer:
                assert await blocking(read_all, peer) == b""
        server.close()
    assert logged(caplog) == [BareError, BareError]


@pytest.mark.parametrize("error", [ValueError(), BareError(), asyncio.CancelledError()], ids=repr)
@pytest.mark.parametrize("stderr", ["writable", "broken"])
async def test_a_server_outlives_anything_of_a_logging_handler(
    stderr: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise error

    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError("nobody reads it")

    monkeypatch.setattr(sys, "stderr", Broken() if stderr == "broken" else io.StringIO())
    handler = Failing()
    logging.getLogger("mozsocket").addHandler(handler)
    try:
        async with TCPServerSocket(0, host="127.0.0.1") as server:
            server.onconnect = failing
            with await dial(server.localPort) as peer:
                assert await blocking(read_all, peer) == b""
            server.onconnect = echo_to
            await is_served(server.localPort)
            server.close()
    finally:
        logging.getLogger("mozsocket").removeHandler(handler)


async def echo_later(event: Any) -> None:
    echo_to(event)


@pytest.mark.filterwarnings("ignore:coroutine")  # older AnyIO leaves it to the garbage collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_connection_whose_task_cannot_be_started_counts_no_more(
    anyio_backend_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    if anyio_backend_name == "trio":
        pytest.skip("Trio has no task factories")
    loop = asyncio.get_running_loop()
    full = [True]

    def factory(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        if full and full.pop():
            raise MemoryError
        return asyncio.Task(coroutine, loop=loop, **options)

    with anyio.fail_after(PROMPTLY):
        async with TCPServerSocket(0, host="127.0.0.1", max_connections=1) as server:
            server.onconnect = echo_later
            await all_blocked()
            loop.set_task_factory(factory)
            try:
                with await dial(server.localPort) as peer:
                    assert await blocking(read_all, peer) == b""
            finally:
                loop.set_task_factory(None)
            await is_served(server.localPort)
            server.close()
    assert logged(caplog) == [MemoryError]


async def test_the_record_of_an_exception_that_is_raised_again_and_again_does_not_grow(
    caplog: pytest.LogCaptureFixture,
) -> None:
    error = HandlerError()

    def onconnect(event: Any) -> None:
        raise error

    formatter = logging.Formatter()
    sizes = []
    async with TCPServerSocket(0, host="127.0.0.1") as server:
        server.onconnect = onconnect
        for _ in range(10):
            with await dial(server.localPort) as peer:
                assert await blocking(read_all, peer) == b""
            await all_blocked()
            record = caplog.records[-1]
            assert record.exc_info
            sizes.append(len(formatter.formatException(record.exc_info)))
        server.close()
    assert len(caplog.records) == 10
    assert len(set(sizes)) == 1
