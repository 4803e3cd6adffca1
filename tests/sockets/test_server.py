"""TCPServerSocket: binding, accepting, errors of both, and the accepted sockets."""

from __future__ import annotations

import errno
import logging
import os
import re
import socket as stdlib_socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import SocketAttribute

from mozsocket import MozTCPSocket, TCPServerSocket, TCPServerSocketEvent, TCPSocket, TCPSocketError, _acceptor
from mozsocket.testing import EventRecorder

from ..certificates import client_context, server_context
from ..conftest import open_descriptors
from ..failures import leaves
from ..peers import (
    PEER_TIMEOUT,
    Accepting,
    all_blocked,
    blocking,
    dial,
    listening,
    port_of,
    read_all,
    read_exactly,
    reset,
    secure,
    unused_port,
)

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

pytestmark = pytest.mark.anyio

LOOPBACK = "127.0.0.1"


class Arrivals:
    """An ``onconnect`` handler that counts.

    :ivar sockets: the accepted sockets
    """

    def __init__(self) -> None:
        self.sockets: list[TCPSocket[bytes | str]] = []
        self._more = anyio.Event()

    def __call__(self, event: TCPServerSocketEvent[bytes | str]) -> None:
        self.sockets.append(event.socket)
        self._more.set()

    async def until(self, count: int) -> None:
        with anyio.fail_after(PEER_TIMEOUT):
            while len(self.sockets) < count:
                await self._more.wait()
                self._more = anyio.Event()


class Faulty(stdlib_socket.socket):
    """A listener on loopback whose ``accept()`` first fails with these errors."""

    def __init__(self, *errors: int) -> None:
        super().__init__(stdlib_socket.AF_INET, stdlib_socket.SOCK_STREAM)
        self.errors = list(errors)
        self.bind((LOOPBACK, 0))
        self.listen()

    def accept(self) -> tuple[stdlib_socket.socket, Any]:
        if self.errors:
            code = self.errors.pop(0)
            raise OSError(code, os.strerror(code))
        return super().accept()


def echo(event: Any) -> None:
    event.socket.ondata = lambda event: event.target.send(event.data)


async def answers(port: int, host: str = LOOPBACK) -> bool:
    """Whether an echo server listens on a port."""
    try:
        peer = await dial(port, host)
    except ConnectionRefusedError:
        return False
    with peer:
        await blocking(peer.sendall, b"echo")
        return await blocking(read_exactly, peer, 4) == b"echo"


# Binding


async def test_listens_when_the_call_returns() -> None:
    async with MozTCPSocket() as tcp:
        server = tcp.listen(0)
        port = server.localPort
        assert 0 < port <= 65535
        with stdlib_socket.create_connection((LOOPBACK, port), PEER_TIMEOUT) as peer:  # nothing has been awaited yet
            server.onconnect = echo
            await blocking(peer.sendall, b"early")
            assert await blocking(read_exactly, peer, 5) == b"early"
        server.close()
        assert server.localPort == port


async def test_listens_on_a_given_port() -> None:
    async with MozTCPSocket() as tcp:
        first = tcp.listen(0)
        port = first.localPort
        first.onconnect = lambda event: event.socket.close()
        with await dial(port) as peer:
            assert await blocking(read_all, peer) == b""
        first.close()
        second = tcp.listen(port)  # although the first one's connection, closed from this side, is in TIME_WAIT
        second.onconnect = echo
        assert second.localPort == port
        assert await answers(port)
        second.close()


async def test_ipv4_and_ipv6_on_the_same_port() -> None:
    async with MozTCPSocket() as tcp:
        server = tcp.listen(0)
        arrivals = Arrivals()
        server.onconnect = arrivals
        peers = [await dial(server.localPort, LOOPBACK), await dial(server.localPort, "::1")]
        await arrivals.until(2)
        assert sorted((socket.host, socket.port) for socket in arrivals.sockets) == sorted(
            (LOOPBACK if sock.family == stdlib_socket.AF_INET else "::1", port_of(sock)) for sock in peers
        )
        for peer in peers:
            peer.close()
        server.close()


@pytest.mark.parametrize(("host", "other"), [(LOOPBACK, "::1"), ("::1", LOOPBACK)])
async def test_on_one_address_only(host: str, other: str) -> None:
    async with MozTCPSocket() as tcp:
        server = tcp.listen(0, host=host)
        server.onconnect = echo
        assert await answers(server.localPort, host)
        assert not await answers(server.localPort, other)
        server.close()


async def test_on_every_address_of_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve = stdlib_socket.getaddrinfo

    def localhost(host: str, port: int, *args: Any, **options: Any) -> Any:
        if host != "localhost":
            return resolve(host, port, *args, **options)
        found = [
            ("::1", port, 0, 0),
            (LOOPBACK, port),
            (LOOPBACK, port),
        ]  # one of them twice, as resolvers may return it
        families = {2: stdlib_socket.AF_INET, 4: stdlib_socket.AF_INET6}
        return [(families[len(address)], stdlib_socket.SOCK_STREAM, 6, "", address) for address in found]

    async with MozTCPSocket() as tcp:
        with monkeypatch.context() as patch:
            patch.setattr(stdlib_socket, "getaddrinfo", localhost)
            server = tcp.listen(0, host="localhost")
        server.onconnect = echo
        assert await answers(server.localPort, LOOPBACK)
        assert await answers(server.localPort, "::1")
        server.close()


async def test_on_localhost() -> None:
    async with MozTCPSocket() as tcp:
        server = tcp.listen(0, host="localhost")
        server.onconnect = echo
        assert await answers(server.localPort, "localhost")
        server.close()


async def test_connections_are_those_that_are_open() -> None:
    async with MozTCPSocket() as tcp:
        server = tcp.listen(0, host=LOOPBACK)
        assert not server.connections
        arrivals = Arrivals()
        server.onconnect = arrivals
        peers = []
        for count in (1, 2, 3):
            peers.append(await dial(server.localPort))
            await arrivals.until(count)
            assert server.connections == tuple(arrivals.sockets)
        first, second, third = arrivals.sockets
        second.close()
        assert list(server.connections) == [first, third]
        peers[0].close()
        await first.closed()
        assert list(server.connections) == [third]
        server.close()
        assert list(server.connections) == [third]  # it lives on
        third.closeImmediately()
        for peer in peers:
            peer.close()
    assert not server.connections


async def test_a_connection_in_its_handshake_is_not_open() -> None:
    async with MozTCPSocket() as tcp:
        server = tcp.listen(0, host=LOOPBACK, useSecureTransport=True, ssl_context=server_context())
        arrivals = Arrivals()
        server.onconnect = arrivals
        with await dial(server.localPort) as peer:
            await all_blocked()
            assert not server.connections
            with await secure(peer, client_context()):
                await arrivals.until(1)
                assert server.connections == tuple(arrivals.sockets)
                tcp.close()


@pytest.mark.parametrize("host", [None, LOOPBACK])
async def test_a_port_in_use(host: str | None) -> None:
    with listening() as taken:
        async with MozTCPSocket() as tcp:
            before = open_descriptors()
            with pytest.raises(OSError, match="in use") as caught:  # for IPv4, after IPv6 was bound
                tcp.listen(port_of(taken), host=host)
            assert caught.value.errno == errno.EADDRINUSE
            assert str(caught.value).endswith(f": '{host or '0.0.0.0'}:{port_of(taken)}'")
            assert open_descriptors() == before
        with pytest.raises(OSError, match="in use"):
            async with TCPServerSocket(port_of(taken), host=host):
                pytest.fail("entered")


@pytest.mark.parametrize("host", ["192.0.2.1", "name.invalid"])
async def test_a_host_that_is_not_this_machine(host: str) -> None:
    async with MozTCPSocket() as tcp:
        before = open_descriptors()
        with pytest.raises(OSError, match=re.escape(host)):
            tcp.listen(0, host=host)
        assert open_descriptors() == before


def failing_bind(monkeypatch: pytest.MonkeyPatch, fails: Callable[[Any], int]) -> list[Any]:
    """Make ``bind()`` fail with the errno that ``fails`` returns for an address, unless it returns 0.

    :return: the addresses passed to ``bind()`` so far
    """
    bind = stdlib_socket.socket.bind
    addresses: list[Any] = []

    def patched(self: stdlib_socket.socket, address: Any) -> None:
        addresses.append(address)
        if code := fails(address):
            raise OSError(code, os.strerror(code))
        bind(self, address)

    monkeypatch.setattr(stdlib_socket.socket, "bind", patched)
    return addresses


async def test_another_port_when_the_other_family_has_it_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    refusals = [errno.EADDRINUSE, errno.EADDRINUSE]
    async with MozTCPSocket() as tcp:
        before = len(open_descriptors())
        with monkeypatch.context() as patch:
            tried = failing_bind(patch, lambda address: refusals.pop() if address[1] and refusals else 0)
            server = tcp.listen(0)
        server.onconnect = echo
        assert len(open_descriptors()) == before + 2
        assert len(tried) >= 6  # more, if other programs use some of the ports
        assert [address[1] == 0 for address in tried] == [True, False] * (len(tried) // 2)
        assert await answers(server.localPort, LOOPBACK)
        assert await answers(server.localPort, "::1")
        server.close()


async def test_no_port_that_is_free_in_both_families(monkeypatch: pytest.MonkeyPatch) -> None:
    async with MozTCPSocket() as tcp:
        before = open_descriptors()
        failing_bind(monkeypatch, lambda address: errno.EADDRINUSE if address[1] else 0)
        with pytest.raises(OSError, match="in use"):
            tcp.listen(0)
        assert open_descriptors() == before


async def test_a_given_port_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with MozTCPSocket() as tcp:
        tried = failing_bind(monkeypatch, lambda address: errno.EADDRINUSE)
        with pytest.raises(OSError, match="in use"):
            tcp.listen(4711)
    assert len(tried) == 1


FAMILIES = {"IPv4": ("0.0.0.0", LOOPBACK), "IPv6": ("::", "::1")}


@pytest.mark.parametrize("missing", FAMILIES)
async def test_a_machine_without_addresses_of_one_family(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (there,) = FAMILIES.keys() - {missing}
    async with MozTCPSocket() as tcp:
        before = len(open_descriptors())
        with monkeypatch.context() as patch:
            failing_bind(patch, lambda address: errno.EADDRNOTAVAIL * (address[0] == FAMILIES[missing][0]))
            server = tcp.listen(0)
        assert len(open_descriptors()) == before + 1
        server.onconnect = echo
        assert await answers(server.localPort, FAMILIES[there][1])
        server.close()


def without_families(monkeypatch: pytest.MonkeyPatch, *families: int) -> None:
    init = stdlib_socket.socket.__init__

    def patched(self: stdlib_socket.socket, family: int = -1, *args: Any, **options: Any) -> None:
        if family in families:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        init(self, family, *args, **options)

    monkeypatch.setattr(stdlib_socket.socket, "__init__", patched)


async def test_a_machine_that_knows_no_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    async with MozTCPSocket() as tcp:
        with monkeypatch.context() as patch:
            without_families(patch, stdlib_socket.AF_INET6)
            server = tcp.listen(0)
        server.onconnect = echo
        assert await answers(server.localPort)
        server.close()


async def test_a_machine_without_any_address(monkeypatch: pytest.MonkeyPatch) -> None:
    async with MozTCPSocket() as tcp:
        before = open_descriptors()
        with monkeypatch.context() as patch:
            without_families(patch, stdlib_socket.AF_INET, stdlib_socket.AF_INET6)
            with pytest.raises(OSError, match="not supported") as caught:
                tcp.listen(0)
        assert caught.value.errno == errno.EAFNOSUPPORT
        with monkeypatch.context() as patch:
            failing_bind(patch, lambda address: errno.EADDRNOTAVAIL)
            with pytest.raises(OSError, match="annot assign"):
                tcp.listen(0)
        assert open_descriptors() == before


@pytest.mark.skipif(not hasattr(stdlib_socket, "SO_REUSEPORT"), reason="the system has no SO_REUSEPORT")
async def test_two_servers_on_one_port() -> None:
    async with MozTCPSocket() as tcp:
        first = tcp.listen(0, reuse_port=True)
        second = tcp.listen(first.localPort, reuse_port=True)
        assert first.localPort == second.localPort
        with pytest.raises(OSError, match="in use"):
            tcp.listen(first.localPort)
        served = {first: 0, second: 0}

        def count(event: Any) -> None:
            served[event.target] += 1
            event.socket.close()

        first.onconnect = second.onconnect = count
        while not all(served.values()):  # the system distributes them at random
            with await dial(first.localPort) as peer:
                assert await blocking(read_all, peer) == b""
            assert sum(served.values()) < 500
        first.close()
        with await dial(second.localPort) as peer:
            assert await blocking(read_all, peer) == b""
        second.close()


@pytest.mark.parametrize(("backlog", "given"), [(0, 65535), (1, 1), (128, 128), (65535, 65535)])
async def test_backlog(backlog: int, given: int, monkeypatch: pytest.MonkeyPatch) -> None:
    listen = stdlib_socket.socket.listen
    backlogs = []

    def patched(self: stdlib_socket.socket, backlog: int) -> None:
        backlogs.append(backlog)
        listen(self, backlog)

    monkeypatch.setattr(stdlib_socket.socket, "listen", patched)
    async with MozTCPSocket() as tcp:
        server = tcp.listen(0, backlog=backlog)
        server.onconnect = echo
        assert await answers(server.localPort)
        server.close()
    assert set(backlogs) == {given}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"port": -1}, ValueError, "port must be from 0 to 65535, not -1"),
        ({"port": 65536}, ValueError, "port must be from 0 to 65535"),
        ({"port": "80"}, TypeError, "port must be an int, not str"),
        ({"port": False}, TypeError, "port must be an int, not bool"),
        ({"port": None}, TypeError, "port must be an int"),
        ({"host": ""}, ValueError, "host must be a host name or an IP address, not ''"),
        ({"host": "a\0b"}, ValueError, "host must be"),
        ({"host": b"localhost"}, TypeError, "host must be a str"),
        ({"binaryType": "blob"}, ValueError, 'binaryType must be "arraybuffer" or "string"'),
        ({"binaryType": None}, ValueError, "binaryType must be"),
        ({"backlog": -1}, ValueError, "backlog must be from 0 to 65535, not -1"),
        ({"backlog": 65536}, ValueError, "backlog must be from 0 to 65535"),
        ({"backlog": 1.5}, TypeError, "backlog must be an int"),
        ({"max_connections": 0}, ValueError, "max_connections must be at least 1, not 0"),
        ({"max_connections": True}, TypeError, "max_connections must be an int"),
        ({"reuse_port": 1}, TypeError, "reuse_port must be"),
        ({"max_buffered_amount": 0}, ValueError, "max_buffered_amount must be at least 1"),
        ({"linger": -1}, ValueError, "linger must be a number of seconds"),
        ({"linger": "5"}, TypeError, "linger must be a number of seconds"),
    ],
)
async def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"port": 0} | arguments
    before = open_descriptors()
    with pytest.raises(error, match=message):
        TCPServerSocket(**arguments)
    async with MozTCPSocket() as tcp:
        with pytest.raises(error, match=message):
            tcp.listen(**arguments)
        assert open_descriptors().items() >= before.items()


async def test_handlers_are_checked() -> None:
    server = TCPServerSocket(0)
    with pytest.raises(TypeError, match="onconnect must be a function that takes one event"):
        server.onconnect = 5  # type: ignore[assignment]
    with pytest.raises(ValueError, match="unknown event type 'open': it must be one of connect, error"):
        server.addEventListener("open", print)


# Accepted connections


async def test_the_connect_event_and_its_socket() -> None:
    events: list[TCPServerSocketEvent[str]] = []
    states = []
    happened = anyio.Event()

    def connect(event: TCPServerSocketEvent[str]) -> None:
        events.append(event)
        states.append(event.socket.readyState)
        happened.set()

    async with MozTCPSocket() as tcp:
        server = tcp.listen(0, host=LOOPBACK, binaryType="string")
        server.onconnect = connect
        with await dial(server.localPort) as peer:
            await happened.wait()
            (event,) = events
            socket = event.socket
            assert type(event) is TCPServerSocketEvent
            assert (event.type, event.target) == ("connect", server)
            assert repr(event) == f"<TCPServerSocketEvent connect {socket!r}, {server!r}>"
            with pytest.raises(AttributeError):
                event.socket = socket  # type: ignore[misc]
            assert states == ["open"]
            assert (socket.host, socket.port) == peer.getsockname()
            assert (socket.ssl, socket.binaryType, socket.bufferedAmount) == (False, "string", 0)
            ends = f"{LOOPBACK}:{server.localPort}->{LOOPBACK}:{port_of(peer)}"
            assert re.fullmatch(rf"<TCPSocket #\d+ {ends} open>", repr(socket))
            await socket.opened()
        server.close()


async def test_no_open_event_on_an_accepted_socket() -> None:
    async with MozTCPSocket() as tcp:
        accepting = Accepting(tcp.listen(0))
        with await dial(accepting.server.localPort) as peer:
            await blocking(peer.sendall, b"data")
        socket, events = await accepting.first()
        await events.first("close")
        assert events.types == ["data", "close"]
        assert events.data == b"data"
        assert all(event.target is socket for event in events.events)
        accepting.server.close()


async def test_listeners_of_connect_after_the_handler() -> None:
    called = []
    async with MozTCPSocket() as tcp:
        server = tcp.listen(0)
        server.addEventListener("connect", lambda event: called.append("listener"))
        server.addEventListener("connect", lambda event: event.socket.close())
        server.onconnect = lambda event: called.append("handler")
        with await dial(server.localPort) as peer:
            assert await blocking(read_all, peer) == b""
        server.close()
    assert called == ["handler", "listener"]


async def test_options_are_those_of_the_accepted_sockets() -> None:
    async with MozTCPSocket() as tcp:
        server = tcp.listen(0, max_buffered_amount=10, linger=0)
        arrivals = Arrivals()
        server.onconnect = arrivals
        with await dial(server.localPort):
            await arrivals.until(1)
            (socket,) = arrivals.sockets
            with pytest.raises(BufferError, match="max_buffered_amount is 10 bytes"):
                socket.send(bytes(11))
            socket.close()
            await socket.closed()  # although the peer has not closed: linger=0
        server.close()


async def test_what_is_sent_in_onconnect() -> None:
    async with MozTCPSocket() as tcp:
        server = tcp.listen(0)

        def greet(event: TCPServerSocketEvent) -> None:
            event.socket.send(b"welcome")
            event.socket.close()

        server.onconnect = greet
        with await dial(server.localPort) as peer:
            assert await blocking(read_all, peer) == b"welcome"
        server.close()


async def test_data_waits_for_an_async_onconnect_and_other_connections_do_not() -> None:
    async with MozTCPSocket() as tcp:
        server = tcp.listen(0)
        admitted = anyio.Event()
        order: list[str] = []
        seen: list[EventRecorder] = []

        async def connect(event: TCPServerSocketEvent) -> None:
            echo(event)
            if not order:
                order.append("in")
                seen.append(EventRecorder(event.socket))
                await admitted.wait()
                order.append("out")

        server.onconnect = connect
        with await dial(server.localPort) as first:
            await blocking(first.sendall, b"early")
            first.shutdown(stdlib_socket.SHUT_WR)
            assert await answers(server.localPort)
            assert await answers(server.localPort)
            await all_blocked()
            assert order == ["in"]
            assert seen[0].events == []
            admitted.set()
            assert await blocking(read_all, first) == b"early"
        assert order == ["in", "out"]
        server.close()
    assert seen[0].types == ["data", "close"]


async def raises_later(event: Any) -> None:
    await anyio.lowlevel.checkpoint()
    raise ValueError("no such luck")


def raises(event: Any) -> None:
    raise ValueError("no such luck")


both_kinds = pytest.mark.parametrize("handler", [raises, raises_later])


def check_logged(record: logging.LogRecord) -> None:
    """Check that a record reports the exception of ``raises``, with its traceback."""
    assert (record.name, record.levelno) == ("mozsocket", logging.ERROR)
    assert record.exc_info is not None
    error = record.exc_info[1]
    assert isinstance(error, ValueError)
    names = []
    traceback = error.__traceback__
    while traceback is not None:
        names.append(traceback.tb_frame.f_code.co_name)
        traceback = traceback.tb_next
    assert names[-1] in ("raises", "raises_later")


@both_kinds
async def test_onconnect_that_raises(handler: Callable[[Any], object], caplog: pytest.LogCaptureFixture) -> None:
    async with MozTCPSocket() as tcp:
        server = tcp.listen(0)
        server.onconnect = handler
        with await dial(server.localPort) as peer:
            assert await blocking(read_all, peer) == b""
        server.onconnect = echo
        assert await answers(server.localPort)
        server.close()
    (record,) = caplog.records
    check_logged(record)


def len_of(event: Any) -> int:
    return len(event.data)


@both_kinds
@pytest.mark.parametrize("type_", ["data", "close"])
async def test_a_handler_of_an_accepted_socket_that_raises(
    type_: str, handler: Callable[[Any], object], caplog: pytest.LogCaptureFixture
) -> None:
    async with MozTCPSocket() as tcp:
        server = tcp.listen(0)
        arrivals = Arrivals()
        server.onconnect = arrivals
        server.addEventListener("connect", lambda event: event.socket.addEventListener("data", len_of))
        server.addEventListener("connect", lambda event: event.socket.addEventListener(type_, handler))
        with await dial(server.localPort) as peer:
            await blocking(peer.sendall, b"data")
            peer.shutdown(stdlib_socket.SHUT_WR)
            assert await blocking(read_all, peer) == b""
        server.onconnect = None
        server.removeEventListener("connect", arrivals)
        server.close()
    (record,) = caplog.records
    check_logged(record)


async def test_a_handler_s_exception_is_logged_before_a_cancellation_too(caplog: pytest.LogCaptureFixture) -> None:
    async with MozTCPSocket() as tcp:
        server = tcp.listen(0)

        def cancel_and_raise(event: Any) -> None:
            tcp.cancel_scope.cancel()
            raises(event)

        server.onconnect = cancel_and_raise
        (await dial(server.localPort)).close()
    (record,) = caplog.records
    check_logged(record)


async def test_without_onconnect(caplog: pytest.LogCaptureFixture) -> None:
    async with MozTCPSocket() as tcp:
        server = tcp.listen(0)
        with await dial(server.localPort) as peer:
            port = port_of(peer)
            assert await blocking(read_all, peer) == b""
        server.onconnect = echo
        assert await answers(server.localPort)
        server.close()
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("mozsocket", logging.WARNING)
    assert vars(record)["event"] == "no onconnect"
    assert vars(record)["peer"] == f"127.0.0.1:{port}"
    assert f"{server!r} has no onconnect".replace("closed", "listening") in caplog.text


async def test_a_reset_is_logged_if_nobody_listens(caplog: pytest.LogCaptureFixture) -> None:
    async with MozTCPSocket() as tcp:
        server = tcp.listen(0)
        arrivals = Arrivals()
        server.onconnect = arrivals
        peer = await dial(server.localPort)
        await arrivals.until(1)
        (socket,) = arrivals.sockets
        closed = anyio.Event()
        socket.onclose = lambda event: closed.set()
        reset(peer)
        await closed.wait()
        assert socket.readyState == "closed"
        server.onconnect = echo
        assert await answers(server.localPort)
        server.close()
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("mozsocket", logging.WARNING)
    assert "was lost: NetworkInterruptError" in record.getMessage()


async def test_another_connection_s_loss_that_a_handler_raises_is_logged_as_the_handler_s(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As in a proxy whose upstream server is down."""
    async with MozTCPSocket() as tcp:
        server = tcp.listen(0)

        async def connect_onwards(event: Any) -> None:
            await tcp.open("127.0.0.1", unused_port()).opened()

        server.onconnect = connect_onwards
        with await dial(server.localPort) as peer:
            assert await blocking(peer.recv, 1) == b""
        server.close()
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("mozsocket", logging.ERROR)
    assert re.search(r"a handler of <TCPSocket #\d+ 127\.0\.0\.1:", record.getMessage())
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], TCPSocketError)


@pytest.mark.parametrize("observer", ["onerror", "awaiter"])
async def test_a_reset_is_not_logged_if_somebody_handles_it(observer: str, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[str] = []
    async with MozTCPSocket() as tcp:
        server = tcp.listen(0)
        arrivals = Arrivals()
        server.onconnect = arrivals
        peer = await dial(server.localPort)
        await arrivals.until(1)
        (socket,) = arrivals.sockets
        if observer == "onerror":
            socket.onerror = lambda event: seen.append(event.name)
            socket.onclose = lambda event: server.close()
            reset(peer)
        else:
            reset(peer)
            with pytest.raises(TCPSocketError) as caught:
                await socket.closed()
            seen.append(caught.value.name)
            server.close()
    assert seen == ["NetworkInterruptError"]
    assert caplog.records == []


# A limit of connections


@pytest.mark.parametrize("host", [LOOPBACK, "::1"])
async def test_max_connections(host: str) -> None:
    async with MozTCPSocket() as tcp:
        server = tcp.listen(0, max_connections=2)
        arrivals = Arrivals()
        server.onconnect = arrivals
        peers = [await dial(server.localPort, address) for address in (LOOPBACK, host, LOOPBACK, host)]
        await arrivals.until(2)
        await all_blocked()
        assert len(arrivals.sockets) == 2
        arrivals.sockets[0].closeImmediately()
        await arrivals.until(3)
        await all_blocked()
        assert len(arrivals.sockets) == 3
        for peer in peers:
            peer.close()
        await arrivals.until(4)
        server.close()


async def test_a_server_can_be_closed_while_it_is_full() -> None:
    async with MozTCPSocket() as tcp:
        server = tcp.listen(0, max_connections=1)
        arrivals = Arrivals()
        server.onconnect = arrivals
        with await dial(server.localPort):
            await arrivals.until(1)
            server.close()
            await server.closed()
            assert arrivals.sockets[0].readyState == "open"


async def test_connections_that_nobody_wants_do_not_count(caplog: pytest.LogCaptureFixture) -> None:
    async with MozTCPSocket() as tcp:
        server = tcp.listen(0, max_connections=1)
        for _ in range(2):
            with await dial(server.localPort) as peer:
                assert await blocking(read_all, peer) == b""
        server.onconnect = raises
        for _ in range(2):
            with await dial(server.localPort) as peer:
                assert await blocking(read_all, peer) == b""
        server.close()
    assert len(caplog.records) == 4


# Closing


async def test_accepted_sockets_outlive_the_server() -> None:
    async with MozTCPSocket() as tcp:
        server = tcp.listen(0)
        server.onconnect = echo
        with await dial(server.localPort) as peer:
            await blocking(peer.sendall, b"before")
            assert await blocking(read_exactly, peer, 6) == b"before"
            assert re.fullmatch(rf"<TCPServerSocket #\d+ \*:{server.localPort} listening>", repr(server))
            server.close()
            server.close()
            assert re.fullmatch(rf"<TCPServerSocket #\d+ \*:{server.localPort} closed>", repr(server))
            assert not await answers(server.localPort)
            await server.closed()
            await blocking(peer.sendall, b"after")
            assert await blocking(read_exactly, peer, 5) == b"after"


async def test_closing_at_once() -> None:
    async with MozTCPSocket() as tcp:
        before = open_descriptors()
        server = tcp.listen(0)
        server.close()
        assert open_descriptors() == before
        await server.closed()


async def test_closed_waits() -> None:
    order: list[str] = []

    async def wait(server: TCPServerSocket) -> None:
        await server.closed()
        order.append("closed")

    async with MozTCPSocket() as tcp, anyio.create_task_group() as tasks:
        server = tcp.listen(0)
        tasks.start_soon(wait, server)
        await all_blocked()
        order.append("close")
        server.close()
    assert order == ["close", "closed"]


async def test_a_server_of_its_own_block_waits_for_its_connections() -> None:
    async with TCPServerSocket(0, host=LOOPBACK) as server:
        server.onconnect = echo
        peer = await dial(server.localPort)
        await blocking(peer.sendall, b"1")
        await blocking(read_exactly, peer, 1)
        async with anyio.create_task_group() as tasks:

            async def talk_on() -> None:
                await server.closed()
                with peer:
                    await blocking(peer.sendall, b"after")
                    assert await blocking(read_exactly, peer, 5) == b"after"

            tasks.start_soon(talk_on)
            server.close()
    assert not await answers(server.localPort)


async def test_an_exception_leaves_a_server_s_own_block_as_itself() -> None:
    error = ValueError()
    with leaves(ValueError) as caught:
        async with TCPServerSocket(0, host=LOOPBACK) as server:
            arrivals = Arrivals()
            server.onconnect = arrivals
            peer = await dial(server.localPort)
            await arrivals.until(1)
            arrivals.sockets[0].send(bytes(8 << 20))  # nobody reads it, and the block does not wait for that
            raise error
    assert caught.value is error
    assert arrivals.sockets[0].readyState == "closed"
    peer.close()


# Adopting a listener


async def test_from_a_tcp_listener() -> None:
    listener = stdlib_socket.create_server((LOOPBACK, 0))
    port = port_of(listener)
    async with TCPServerSocket.from_socket(listener, binaryType="string") as server:
        assert server.localPort == port
        arrivals = Arrivals()
        server.onconnect = arrivals
        server.addEventListener("connect", echo)
        assert await answers(port)
        assert [socket.binaryType for socket in arrivals.sockets] == ["string"]
    assert listener.fileno() == -1


@pytest.mark.skipif(not hasattr(stdlib_socket, "AF_UNIX"), reason="the system has no UNIX-domain sockets")
async def test_from_a_unix_domain_listener(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    listener = stdlib_socket.socket(stdlib_socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    async with TCPServerSocket.from_socket(listener) as server:
        assert server.localPort == 0
        arrivals = Arrivals()
        server.onconnect = arrivals
        server.addEventListener("connect", echo)
        with stdlib_socket.socket(stdlib_socket.AF_UNIX) as peer:
            peer.settimeout(PEER_TIMEOUT)
            peer.connect(path)
            await blocking(peer.sendall, b"echo")
            assert await blocking(read_exactly, peer, 4) == b"echo"
            (socket,) = arrivals.sockets
            assert (socket.host, socket.port) == ("", 0)


async def test_from_what_is_no_listener() -> None:
    with stdlib_socket.socket() as silent, pytest.raises(ValueError, match="call its listen"):
        TCPServerSocket.from_socket(silent)
    with stdlib_socket.socket(type=stdlib_socket.SOCK_DGRAM) as datagrams, pytest.raises(ValueError, match="stream"):
        TCPServerSocket.from_socket(datagrams)
    with listening() as listener:
        for wrong in (listener.fileno(), None, "socket"):
            with pytest.raises(TypeError, match=r"takes a socket\.socket, not"):
                TCPServerSocket.from_socket(wrong)  # type: ignore[call-overload]
        with pytest.raises(ValueError, match="max_connections"):
            TCPServerSocket.from_socket(listener, max_connections=0)
        assert listener.fileno() != -1  # the listener was not taken
    with pytest.raises(ValueError, match="from_socket"):
        TCPServerSocket.from_socket(listener)  # it is closed now


@pytest.mark.skipif(sys.platform != "linux", reason="SOCK_SEQPACKET of UNIX-domain sockets")
async def test_from_a_listener_without_a_stream(tmp_path: Path) -> None:
    with stdlib_socket.socket(stdlib_socket.AF_UNIX, stdlib_socket.SOCK_SEQPACKET) as packets:
        packets.bind(str(tmp_path / "socket"))
        packets.listen()
        with pytest.raises(ValueError, match="stream"):
            TCPServerSocket.from_socket(packets)


# Errors of accept()


@pytest.fixture
def short_pause(monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(_acceptor, "ACCEPT_PAUSE", 0.02)
    return 0.02


NO_ROOM = [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM]


async def test_no_room_is_logged_and_waited_out(short_pause: float, caplog: pytest.LogCaptureFixture) -> None:
    start = anyio.current_time()
    async with TCPServerSocket.from_socket(Faulty(*NO_ROOM)) as server:
        server.onconnect = echo
        assert await answers(server.localPort)
    assert anyio.current_time() - start > 0.9 * len(NO_ROOM) * short_pause
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 4
    for record, code in zip(caplog.records, NO_ROOM, strict=True):
        assert record.name == "mozsocket"
        assert "cannot accept" in record.getMessage()
        assert os.strerror(code) in record.getMessage()


async def test_closing_while_there_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_acceptor, "ACCEPT_PAUSE", 1000)
    async with TCPServerSocket.from_socket(Faulty(errno.EMFILE)) as server:
        await all_blocked()
    await server.closed()


SCARCE = """
import logging, os, resource, sys
import anyio
from mozsocket import MozTCPSocket

soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

class Relief(logging.Handler):
    def emit(self, record):
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        messages.append(record.getMessage())

messages = []
logging.getLogger("mozsocket").addHandler(Relief())

async def main():
    async with MozTCPSocket() as tcp:
        server = tcp.listen(0, host="127.0.0.1")
        def greet(event):
            event.socket.send("\\n".join(messages))
            event.socket.close()
            server.close()
        server.onconnect = greet
        await anyio.wait_all_tasks_blocked()
        free = os.dup(0)
        os.close(free)
        print(server.localPort, flush=True)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))

backend, uvloop = sys.argv[1], sys.argv[2] == "True"
anyio.run(main, backend=backend, backend_options={"use_uvloop": True} if uvloop else {})
"""


@pytest.mark.skipif(sys.platform == "win32", reason="RLIMIT_NOFILE")
async def test_no_room_for_real(anyio_backend: tuple[str, dict[str, Any]]) -> None:
    name, options = anyio_backend
    command = [sys.executable, "-c", SCARCE, name, str(options.get("use_uvloop", False))]
    start = partial(subprocess.Popen, command, stdout=subprocess.PIPE, text=True)
    with await blocking(start) as process:
        assert process.stdout is not None
        port = int(await blocking(process.stdout.readline))
        with await dial(port) as peer:
            messages = (await blocking(read_all, peer)).decode().splitlines()
        assert await blocking(process.wait) == 0
    assert len(messages) == 1
    assert os.strerror(errno.EMFILE) in messages[0]


async def test_no_room_is_not_told_as_max_connections(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mozsocket")
    async with TCPServerSocket.from_socket(Faulty(errno.EMFILE), max_connections=3) as server:
        server.onconnect = echo
        assert await answers(server.localPort)
        await all_blocked()
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


async def test_connections_lost_before_they_are_accepted(caplog: pytest.LogCaptureFixture) -> None:
    lost = [errno.ECONNABORTED, errno.EPROTO, errno.ECONNRESET]
    async with TCPServerSocket.from_socket(Faulty(*lost)) as server:
        server.onconnect = echo
        assert await answers(server.localPort)
    assert caplog.records == []


async def test_a_fatal_error_is_an_event() -> None:
    events = []
    async with MozTCPSocket() as tcp:
        listener = Faulty(errno.EINVAL)
        async with TCPServerSocket.from_socket(listener) as server:
            happened = anyio.Event()

            def note(event: Any) -> None:
                events.append(event)
                assert listener.fileno() == -1
                happened.set()

            server.onerror = note
            await happened.wait()
            assert "closed" in repr(server)
        other = tcp.listen(0)
        other.onconnect = echo
        assert await answers(other.localPort)
        other.close()
    (event,) = events
    assert (event.type, event.target) == ("error", server)
    assert (event.name, event.message, event.errorCode) == ("NetworkError", "Network", errno.EINVAL)
    assert isinstance(event.error, TCPSocketError)


async def test_a_fatal_error_is_raised_by_closed() -> None:
    async with TCPServerSocket.from_socket(Faulty(errno.EINVAL)) as server:
        with pytest.raises(TCPSocketError) as caught:
            await server.closed()
    assert caught.value.errorCode == errno.EINVAL


async def test_a_fatal_error_that_nobody_handles_leaves_the_block() -> None:
    with leaves(TCPSocketError) as caught:
        async with TCPServerSocket.from_socket(Faulty(errno.EINVAL)) as server:
            await all_blocked()
            server.onconnect = echo
    assert caught.value.errorCode == errno.EINVAL


async def in_a_scope(listener: stdlib_socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scope whose server uses the listener, until something ends the scope."""
    monkeypatch.setattr(_acceptor, "listen", lambda *args: [listener])
    async with MozTCPSocket() as tcp:
        listener.setblocking(False)
        tcp.listen(0).onconnect = echo
        await anyio.sleep_forever()


async def test_a_fatal_error_that_nobody_handles_leaves_the_scope(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        await in_a_scope(Faulty(errno.EINVAL), monkeypatch)
    (error,) = caught.value.exceptions
    assert isinstance(error, TCPSocketError)
    assert error.errorCode == errno.EINVAL


@pytest.mark.skipif(sys.platform != "linux", reason="what shutdown() of a listener does differs")
async def test_a_fatal_error_for_real_leaves_its_connections_alone() -> None:
    listener = stdlib_socket.create_server((LOOPBACK, 0))
    async with TCPServerSocket.from_socket(listener) as server:
        server.onconnect = echo
        happened = anyio.Event()
        server.onerror = lambda event: happened.set()
        with await dial(server.localPort) as peer:
            await blocking(peer.sendall, b"before")
            assert await blocking(read_exactly, peer, 6) == b"before"
            listener.shutdown(stdlib_socket.SHUT_RDWR)
            await happened.wait()
            await blocking(peer.sendall, b"after")
            assert await blocking(read_exactly, peer, 5) == b"after"


def later(handler: Callable[[Any], object]) -> Callable[[Any], Awaitable[None]]:
    async def wrapped(event: Any) -> None:
        await anyio.lowlevel.checkpoint()
        handler(event)

    return wrapped


@both_kinds
async def test_onerror_that_raises(handler: Callable[[Any], object]) -> None:
    with leaves(ValueError, match="no such luck"):
        async with TCPServerSocket.from_socket(Faulty(errno.EINVAL)) as server:
            server.onerror = handler
            await anyio.sleep_forever()


async def test_an_async_onerror_is_waited_for() -> None:
    seen: list[Any] = []
    async with TCPServerSocket.from_socket(Faulty(errno.EINVAL)) as server:
        server.onerror = later(seen.append)
        await all_blocked()
    assert [event.errorCode for event in seen] == [errno.EINVAL]


# Wildcards


@pytest.mark.parametrize(("host", "families"), [("::", "46"), ("0.0.0.0", "4"), (None, "46")])
async def test_who_reaches_a_wildcard(host: str | None, families: str) -> None:
    async with MozTCPSocket() as tcp:
        accepting = Accepting(tcp.listen(0, host=host))
        for family, address in (("4", "127.0.0.1"), ("6", "::1")):
            if family in families:
                with await dial(accepting.server.localPort, address) as peer:
                    socket_, recorder = await accepting.first()
                    assert (socket_.host, socket_.port) == peer.getsockname()[:2]
                    assert socket_.extra(SocketAttribute.local_address) == (address, accepting.server.localPort)
                await recorder.first("close")
                accepting.sockets.clear()
            else:
                with pytest.raises(ConnectionRefusedError):
                    await dial(accepting.server.localPort, address)
        accepting.server.close()
