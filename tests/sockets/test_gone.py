"""A program learns why a connection was lost, and can catch all such exceptions as one group: CONNECTION_LOST."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio.streams.buffered import BufferedByteStream

from mozsocket import (
    CONNECTION_LOST,
    ConnectionLostError,
    InvalidStateError,
    MozTCPSocket,
    TCPServerSocket,
    TCPSocket,
    TCPSocketError,
)

from ..peers import (
    Accepting,
    accept,
    all_blocked,
    blocking,
    dial,
    joined,
    listening,
    port_of,
    read_all,
    reset,
    send_all,
    unused_port,
)

pytestmark = pytest.mark.anyio

CALLS: dict[str, Callable[[TCPSocket], object]] = {
    "send()": lambda sock: sock.send(b"x"),
    "send_eof()": lambda sock: sock.send_eof(),
    "stream()": lambda sock: sock.stream(),
    "upgradeToSecure()": lambda sock: sock.upgradeToSecure(),
}
each_call = pytest.mark.parametrize("call", CALLS)


def refuses(sock: TCPSocket, call: str) -> InvalidStateError:
    with pytest.raises(InvalidStateError) as raised:
        CALLS[call](sock)
    return raised.value


@each_call
async def test_a_connection_that_was_lost(call: str, role: str) -> None:
    async with joined("plain", role) as (sock, recorder, peer):
        reset(peer)
        await recorder.first("close")
        error = refuses(sock, call)
        assert isinstance(error, ConnectionLostError)
        assert isinstance(error.__cause__, TCPSocketError)
        assert str(error) == (f"{call} on a socket that is closed: it must be open; it was lost: {error.__cause__}")
        assert error.__cause__.name == "NetworkInterruptError"


@each_call
async def test_a_connection_that_the_peer_has_ended(call: str, role: str) -> None:
    async with joined("plain", role) as (sock, recorder, peer):
        peer.close()
        await recorder.first("close")
        error = refuses(sock, call)
        assert isinstance(error, ConnectionLostError)
        assert str(error) == f"{call} on a socket that is closed: it must be open; the peer has ended it"


@each_call
@pytest.mark.parametrize("how", ["close", "closeImmediately", "reset"])
async def test_a_socket_that_the_program_has_closed(call: str, how: str, role: str) -> None:
    async with joined("plain", role) as (sock, recorder, peer):
        getattr(sock, how)()
        error = refuses(sock, call)
        assert type(error) is InvalidStateError
        assert str(error) == f"{call} on a socket that is closing: it must be open; it was closed here"
        peer.close()
        await recorder.first("close")
        assert str(refuses(sock, call)).endswith("that is closed: it must be open; it was closed here")


@each_call
async def test_a_socket_whose_handler_has_raised(call: str) -> None:
    """The socket is accepted, and other connections may use it, as in a chat server."""
    failure = ValueError("no such luck")

    def fail(event: Any) -> None:
        raise failure

    async with TCPServerSocket(0, host="127.0.0.1") as server:
        accepting = Accepting(server)
        with await dial(server.localPort) as peer:
            sock, recorder = await accepting.first()
            sock.addEventListener("data", fail)
            causes = []
            sock.addEventListener("close", lambda event: causes.append(refuses(sock, call).__cause__))
            await send_all(peer, b"x")
            await recorder.first("close")
            await all_blocked()
        server.close()
    assert causes == [failure]
    error = refuses(sock, call)
    assert type(error) is InvalidStateError
    assert str(error) == (
        f"{call} on a socket that is closed: it must be open; a handler raised ValueError('no such luck'), on 'data'"
    )


async def test_a_socket_whose_block_was_cancelled(listener: socket.socket) -> None:
    with anyio.CancelScope() as scope:
        async with TCPSocket("127.0.0.1", listener.getsockname()[1]) as sock:
            await sock.opened()
            scope.cancel()
            await anyio.lowlevel.checkpoint()
    assert str(refuses(sock, "send()")).endswith("it must be open; its block was cancelled, or has ended")


@pytest.mark.parametrize("what", ["opened", "secured", "drained"])
async def test_who_awaits_what_the_peer_has_made_impossible(what: str) -> None:
    async with joined("plain", "client") as (sock, recorder, peer):
        sock.suspend()
        if what == "drained":
            sock.send(bytes(64 << 20))
        async with anyio.create_task_group() as tasks:
            if what != "opened":
                tasks.start_soon(lost, getattr(sock, what))
            await all_blocked()
            reset(peer)
            await recorder.first("close")
        assert "error" in recorder.types
        with pytest.raises(TCPSocketError):
            await sock.closed()


async def lost(wait: Callable[[], Awaitable[None]]) -> None:
    with pytest.raises(CONNECTION_LOST):
        await wait()


async def test_secured_after_the_peer_s_end() -> None:
    async with joined("plain", "client") as (sock, _, peer), anyio.create_task_group() as tasks:
        tasks.start_soon(lost, sock.secured)
        await all_blocked()
        peer.close()


async def test_a_connection_that_cannot_be_made() -> None:
    sock = TCPSocket("127.0.0.1", unused_port())
    with pytest.raises(CONNECTION_LOST):
        async with sock:
            await sock.opened()


async def test_a_scope_s_failure() -> None:
    """The exception is caught with ``except*``."""
    with pytest.raises(BaseException) as raised:  # noqa: PT011
        async with MozTCPSocket() as tcp:
            tcp.open("127.0.0.1", unused_port())
    assert raised.value.subgroup(CONNECTION_LOST) is not None  # type: ignore[attr-defined]


@pytest.mark.parametrize("how", ["end", "reset"])
async def test_by_a_stream(how: str, role: str) -> None:
    async with joined("plain", role) as (sock, _, peer):
        stream = BufferedByteStream(sock.stream())
        await send_all(peer, b"half a li")
        await all_blocked()
        if how == "end":
            peer.close()
        else:
            reset(peer)
        with pytest.raises(CONNECTION_LOST):
            await stream.receive_until(b"\n", 100)
        with pytest.raises(CONNECTION_LOST):
            await sock.stream().receive()
        await stream.aclose()


async def test_a_loss_after_close_is_not_that_of_a_connection_in_use(role: str) -> None:
    """A program that reconnects after each loss would otherwise reconnect forever."""
    async with joined("plain", role) as (sock, recorder, peer):
        sock.send(bytes(64 << 20))
        sock.close()
        await all_blocked()
        reset(peer)
        await recorder.first("close")
        assert "error" in recorder.types
        error = refuses(sock, "send()")
        assert type(error) is InvalidStateError
        assert isinstance(error.__cause__, TCPSocketError)


# Failures without a listener


@asynccontextmanager
async def without_handlers(role: str, **options: Any) -> AsyncIterator[tuple[TCPSocket, socket.socket]]:
    """An open socket without handlers, and a blocking peer."""
    async with MozTCPSocket() as tcp:
        with listening() as listener:
            if role == "client":
                sock = tcp.open("127.0.0.1", port_of(listener), **options)
                peer = await accept(listener)
                await sock.opened()
            else:
                accepted: list[TCPSocket] = []
                server = tcp.listen(0, host="127.0.0.1", **options)
                server.onconnect = lambda event: accepted.append(event.socket)
                peer = await dial(server.localPort)
                await all_blocked()
                (sock,) = accepted
                server.close()
        with peer:
            yield sock, peer


async def test_data_that_nobody_listens_to_is_logged_once(role: str, caplog: pytest.LogCaptureFixture) -> None:
    async with without_handlers(role) as (sock, peer):
        for _ in range(2):
            await send_all(peer, b"x")
            await all_blocked()
        (record,) = caplog.records
        assert record.levelname == "WARNING"
        assert "has 'data', and nothing that listens to it: set its ondata" in record.getMessage()
        assert sock.bytes_received == 2
        sock.closeImmediately()


@pytest.mark.parametrize("how", ["handler", "listener", "once"])
async def test_data_that_nobody_listens_to_any_more_is_logged(
    how: str, role: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with without_handlers(role) as (sock, peer):
        got = anyio.Event()

        def listen(event: Any) -> None:
            got.set()

        if how == "handler":
            sock.ondata = listen
        else:
            sock.addEventListener("data", listen, once=how == "once")
        await send_all(peer, b"x")
        await got.wait()
        if how == "handler":
            sock.ondata = None
        elif how == "listener":
            sock.removeEventListener("data", listen)
        await send_all(peer, b"x")
        await all_blocked()
        assert len(caplog.records) == 1
        sock.closeImmediately()


async def test_data_that_was_held_back_is_delivered_too(role: str, caplog: pytest.LogCaptureFixture) -> None:
    async with without_handlers(role) as (sock, peer):
        sock.suspend()
        await send_all(peer, b"x")
        await all_blocked()
        assert not caplog.records
        sock.resume()
        await all_blocked()
        assert len(caplog.records) == 1
        sock.closeImmediately()


async def test_data_for_a_handler_is_no_news(role: str, caplog: pytest.LogCaptureFixture) -> None:
    async with without_handlers(role) as (sock, peer):
        sock.ondata = lambda event: event.target.close()
        await send_all(peer, b"x")
        assert await blocking(read_all, peer) == b""
    assert not caplog.records


async def test_what_comes_after_close_is_no_news(role: str, caplog: pytest.LogCaptureFixture) -> None:
    async with without_handlers(role) as (sock, peer):
        sock.close()
        await send_all(peer, b"x")
    assert not caplog.records


@pytest.mark.parametrize("listens", [False, True])
async def test_an_end_that_nobody_listens_to_is_logged(
    listens: bool, role: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with without_handlers(role, allow_half_open=True) as (sock, peer):
        if listens:
            sock.onend = lambda event: None
        peer.shutdown(socket.SHUT_WR)
        await all_blocked()
        reports = [record.getMessage() for record in caplog.records]
        assert len(reports) == (0 if listens else 1)
        assert all("has 'end', and" in each and "it stays open until close()" in each for each in reports)
        sock.close()


async def test_an_end_is_no_news_where_it_closes_the_socket(role: str, caplog: pytest.LogCaptureFixture) -> None:
    async with without_handlers(role) as (_sock, peer):
        peer.shutdown(socket.SHUT_WR)
        assert await blocking(read_all, peer) == b""
    assert not caplog.records


async def test_a_stream_takes_the_end(role: str, caplog: pytest.LogCaptureFixture) -> None:
    async with without_handlers(role, allow_half_open=True) as (sock, peer):
        stream = sock.stream()
        await send_all(peer, b"x")
        peer.shutdown(socket.SHUT_WR)
        assert await stream.receive() == b"x"
        with pytest.raises(anyio.EndOfStream):
            await stream.receive()
        await stream.aclose()
    assert not caplog.records


# Reporting to the stream's user


@pytest.mark.parametrize("kind", ["sending", "receiving", "idle"])
async def test_a_failure_that_a_stream_has_raised_keeps_the_scope(
    kind: str, role: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The scope does not raise the loss again, and nothing is logged."""
    options = {"idle_timeout": 0.1} if kind == "idle" else {}
    async with without_handlers(role, **options) as (sock, peer):
        stream = sock.stream()

        async def use() -> None:
            with pytest.raises(CONNECTION_LOST):
                await (stream.send(bytes(64 << 20)) if kind == "sending" else stream.receive())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(use)
            await all_blocked()
            if kind != "idle":
                reset(peer)
        await all_blocked()
    assert not caplog.records
