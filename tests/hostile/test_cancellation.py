"""Cancelling a scope at each point where the package suspends: nothing leaks or hangs, and no event follows."""

from __future__ import annotations

import itertools
import socket
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio.streams.memory import MemoryObjectSendStream

from mozsocket import MozTCPSocket, TCPSocket
from mozsocket.testing import EventRecorder

from ..certificates import client_context, server_context
from ..peers import PEER_TIMEOUT, blocking, listening, port_of, read_all, read_exactly

pytestmark = pytest.mark.anyio

MUCH = bytes(range(256)) * 40_000  # more than the system buffers
GREETING = b"hello"
ANSWER = b"answer" * 10_000

ENOUGH = 3
"""The number of runs in a row with fewer suspensions than requested after which all points were tried.

How often a run suspends depends on the speed of the peer's thread, so one such run alone may be one that never had to
wait.
"""


class Suspensions:
    """Counts the suspensions of the package, and calls a function when the requested one begins.

    :ivar count: the number of suspensions so far
    """

    FUNCTIONS: tuple[tuple[Any, str], ...] = (
        (anyio, "getaddrinfo"),
        (anyio, "sleep"),
        (anyio, "wait_readable"),
        (anyio, "wait_writable"),
        (anyio.lowlevel, "checkpoint"),
        (anyio.lowlevel, "checkpoint_if_cancelled"),
        (MemoryObjectSendStream, "send"),
    )

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self._at = 0
        self._then: Callable[[], object] = int
        for place, name in (*self.FUNCTIONS, (type(anyio.Event()), "wait")):
            monkeypatch.setattr(place, name, self._counted(getattr(place, name)))

    def at(self, number: int, then: Callable[[], object]) -> None:
        self.count, self._at, self._then = 0, number, then

    def _counted(self, function: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        def counting(*args: Any, **options: Any) -> Awaitable[Any]:
            if sys._getframe(1).f_globals["__name__"].startswith("mozsocket."):
                self.count += 1
                if self.count == self._at:
                    self._then()
            return function(*args, **options)

        return counting


class Exchange:
    """One connection: the peer greets, the program sends much data, the peer answers, the program closes.

    Linux may fail to reset a connection whose listener is closed at that moment. The peer notices, as it sends first.

    :param role: the program's
    :param security: ``"plain"``, ``"tls"`` from the start, or ``"upgrade"``
    """

    def __init__(self, role: str, security: str) -> None:
        self._role = role
        self._security = security
        contexts = client_context(), server_context()
        self._context, self._peers_context = contexts if role == "client" else contexts[::-1]
        self._socket: TCPSocket | None = None
        self._recorder: EventRecorder | None = None
        self._received_by_peer = b""
        self._peer: threading.Thread | None = None

    async def run(self, suspensions: Suspensions, number: int) -> bool:
        """Run it, and cancel it at the suspension of this number.

        :return: whether it was cancelled
        """
        seen: int | None = None

        def cancel() -> None:
            nonlocal seen
            seen = self._count_events()
            tcp.cancel_scope.cancel()

        tasks = len(anyio.get_running_tasks())
        with listening() as listener:
            async with MozTCPSocket() as tcp:
                suspensions.at(number, cancel)
                self._start(tcp, listener)
            assert self._count_events() == seen or seen is None
            assert self._socket is None or self._socket.readyState == "closed"
            assert len(anyio.get_running_tasks()) == tasks
            socket.create_connection(listener.getsockname()).close()  # for a peer that still waits in accept()
            assert self._peer
            await blocking(self._peer.join, PEER_TIMEOUT)
            assert not self._peer.is_alive()
        return seen is not None

    def check_whole(self) -> None:
        assert self._recorder
        assert self._recorder.data == GREETING + ANSWER
        assert self._recorder.types[-1] == "close"
        assert "error" not in self._recorder.types
        assert self._received_by_peer == MUCH

    def _count_events(self) -> int:
        return len(self._recorder.events) if self._recorder else 0

    # The program's side

    def _start(self, tcp: MozTCPSocket, listener: socket.socket) -> None:
        secure = self._security == "tls"
        context = self._context if secure else None
        if self._role == "client":
            self._start_peer(lambda: listener.accept()[0])
            opened = tcp.open("localhost", port_of(listener), useSecureTransport=secure, ssl_context=context)
            self._recorder = EventRecorder(opened)
            self._talk(opened)
        else:
            server = tcp.listen(0, host="127.0.0.1", useSecureTransport=secure, ssl_context=context)
            address = ("127.0.0.1", server.localPort)
            self._start_peer(lambda: socket.create_connection(address, PEER_TIMEOUT))

            def on_connect(event: Any) -> Any:
                server.close()
                self._recorder = EventRecorder(event.socket)
                return self._talk(event.socket)

            server.onconnect = on_connect

    def _talk(self, socket_: TCPSocket) -> Any:
        self._socket = socket_
        missing = len(ANSWER)

        def on_greeting(event: Any) -> None:
            if self._security == "upgrade":
                socket_.send(b"upgrade")
                socket_.upgradeToSecure(ssl_context=self._context)
            socket_.send(MUCH)
            socket_.ondata = on_answer

        def on_answer(event: Any) -> None:
            nonlocal missing
            missing -= len(event.data)
            if not missing:
                socket_.close()

        socket_.ondata = on_greeting

    # The peer's side

    def _start_peer(self, connect: Callable[[], socket.socket]) -> None:
        self._peer = threading.Thread(target=self._answer, args=(connect,))
        self._peer.start()

    def _answer(self, connect: Callable[[], socket.socket]) -> None:
        try:
            with connect() as sock:
                sock.settimeout(PEER_TIMEOUT)
                if self._security == "tls":
                    sock = self._secured(sock)
                sock.sendall(GREETING)
                if self._security == "upgrade":
                    read_exactly(sock, len(b"upgrade"))
                    sock = self._secured(sock)
                with sock:
                    received = read_exactly(sock, len(MUCH))
                    sock.sendall(ANSWER)
                    read_all(sock)
                    self._received_by_peer = received
        except (OSError, AssertionError):
            pass  # the program was cancelled

    def _secured(self, sock: socket.socket) -> socket.socket:
        is_server = self._role == "client"
        return self._peers_context.wrap_socket(
            sock, server_side=is_server, server_hostname=None if is_server else "localhost"
        )


class StreamExchange(Exchange):
    """The same with the socket's stream, in an asynchronous handler."""

    def __init__(self, role: str, security: str) -> None:
        super().__init__(role, security)
        self._received = b""

    def check_whole(self) -> None:
        assert self._recorder
        assert self._received == GREETING + ANSWER
        assert [name for name in self._recorder.types if name in ("data", "error", "close")] == ["close"]
        assert self._received_by_peer == MUCH

    def _talk(self, socket_: TCPSocket) -> Any:
        self._socket = socket_
        if socket_.readyState == "open":
            return self._converse(socket_)
        socket_.stream()
        socket_.onopen = lambda event: self._converse(socket_)
        return None

    async def _converse(self, socket_: TCPSocket) -> None:
        async with socket_.stream() as stream:
            while len(self._received) < len(GREETING):
                self._received += await stream.receive()
            if self._security == "upgrade":
                await stream.send(b"upgrade")
                socket_.upgradeToSecure(ssl_context=self._context)
            await stream.send(MUCH)
            while len(self._received) < len(GREETING + ANSWER):
                self._received += await stream.receive()
            await stream.send_eof()


@pytest.mark.parametrize("kind", [Exchange, StreamExchange], ids=["handlers", "stream"])
@pytest.mark.parametrize("security", ["plain", "tls", "upgrade"])
async def test_a_connection_cancelled_wherever_it_suspends(
    kind: type[Exchange], security: str, role: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    suspensions = Suspensions(monkeypatch)
    cancelled = missed = 0
    for number in itertools.count(1):
        exchange = kind(role, security)
        if await exchange.run(suspensions, number):
            cancelled, missed = cancelled + 1, 0
        else:
            exchange.check_whole()
            missed += 1
            if missed == ENOUGH:
                break
    assert cancelled > ENOUGH
    assert not caplog.records
