"""Code for the type checkers, which is checked and never run.

Each ``assert_type`` is a type that they must infer. Each comment that ignores an error marks an error that they must
report: a comment that ignores nothing is an error too. test_types.py runs the checkers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from socket import socket as stdlib_socket
from typing import TYPE_CHECKING, Any

from mozsocket import (
    BinaryType,
    Event,
    MozTCPSocket,
    TCPServerSocket,
    TCPServerSocketEvent,
    TCPSocket,
    TCPSocketErrorEvent,
    TCPSocketEvent,
)
from mozsocket.testing import connected_pair, connected_peer

if TYPE_CHECKING:
    from typing_extensions import assert_type

# Handlers of each kind


def on_bytes(event: TCPSocketEvent) -> None:
    assert_type(event.data, bytes)
    assert_type(event.target, TCPSocket[bytes])


async def on_bytes_later(event: TCPSocketEvent) -> None: ...


def on_text(event: TCPSocketEvent[str]) -> None:
    assert_type(event.data, str)
    assert_type(event.target, TCPSocket[str])


def on_either(event: TCPSocketEvent[bytes | str]) -> None:
    event.target.send(event.data)


def on_any(event: Event[Any]) -> None: ...


def on_event(event: Event[TCPSocket]) -> None: ...


def on_error(event: TCPSocketErrorEvent[TCPSocket]) -> None: ...


def on_connect(event: TCPServerSocketEvent) -> None:
    assert_type(event.socket, TCPSocket[bytes])
    assert_type(event.target, TCPServerSocket[bytes])
    event.socket.ondata = on_bytes


def on_text_connect(event: TCPServerSocketEvent[str]) -> None:
    event.socket.ondata = on_text


# Constructors and functions


def made_in_a_scope(tcp: MozTCPSocket, kind: BinaryType) -> None:
    assert_type(tcp.open("localhost", 1), TCPSocket[bytes])
    assert_type(tcp.open("localhost", 1, linger=1, binaryType="arraybuffer"), TCPSocket[bytes])
    assert_type(tcp.open("localhost", 1, linger=1, binaryType="string"), TCPSocket[str])
    assert_type(tcp.open("localhost", 1, binaryType=kind), TCPSocket[bytes | str])
    assert_type(tcp.listen(0), TCPServerSocket[bytes])
    assert_type(tcp.listen(0, backlog=1, binaryType="string"), TCPServerSocket[str])
    assert_type(tcp.listen(0, binaryType=kind), TCPServerSocket[bytes | str])
    assert_type(partial(tcp.open, "localhost")(1), TCPSocket[bytes])


def made_alone(options: dict[str, Any]) -> None:
    assert_type(TCPSocket("localhost", 1), TCPSocket[bytes])
    assert_type(TCPSocket("localhost", 1, binaryType="arraybuffer"), TCPSocket[bytes])
    assert_type(TCPSocket[str]("localhost", 1, binaryType="string"), TCPSocket[str])
    assert_type(TCPServerSocket(0), TCPServerSocket[bytes])
    assert_type(TCPServerSocket[str](0, binaryType="string"), TCPServerSocket[str])
    text: TCPSocket[str] = TCPSocket("localhost", 1, binaryType="string")
    text.ondata = on_text
    from_options: TCPSocket = TCPSocket("localhost", 1, **options)
    from_options.ondata = on_bytes


def adopted(sock: stdlib_socket) -> None:
    assert_type(TCPSocket.from_socket(sock), TCPSocket[bytes])
    assert_type(TCPSocket.from_socket(sock, binaryType="string"), TCPSocket[str])
    assert_type(TCPServerSocket.from_socket(sock), TCPServerSocket[bytes])
    assert_type(TCPServerSocket.from_socket(sock, binaryType="string"), TCPServerSocket[str])


class Mine(TCPSocket):
    def __init__(self, host: str) -> None:
        super().__init__(host, 1, linger=1)
        self.ondata = self.received

    def received(self, event: TCPSocketEvent) -> None: ...


class MineOfText(TCPSocket[str]):
    def __init__(self, host: str) -> None:
        super().__init__(host, 1, binaryType="string")
        self.ondata = self.received

    def received(self, event: TCPSocketEvent[str]) -> None: ...


async def made_of_subclasses(sock: stdlib_socket) -> None:
    assert_type(Mine("localhost"), Mine)
    assert_type(Mine.from_socket(sock), Mine)
    async with MineOfText("localhost") as socket:
        assert_type(socket, MineOfText)


async def made_for_tests() -> None:
    async with connected_pair() as (ours, theirs), connected_peer(linger=1) as (socket, _):
        assert_type((ours, theirs, socket), tuple[TCPSocket[bytes], TCPSocket[bytes], TCPSocket[bytes]])
    async with connected_pair(binaryType="string") as (ours_, _), connected_peer(binaryType="string") as (socket_, _):
        assert_type((ours_, socket_), tuple[TCPSocket[str], TCPSocket[str]])


# Handlers


def handlers(socket: TCPSocket, text: TCPSocket[str], either: TCPSocket[bytes | str]) -> None:
    assert_type(socket.ondata, Callable[[TCPSocketEvent[bytes]], object] | None)
    socket.ondata = on_bytes
    socket.ondata = on_bytes_later
    socket.ondata = on_either
    socket.ondata = on_any
    socket.ondata = on_event
    socket.ondata = None
    socket.ondata = lambda event: socket.send(assert_type(event.data, bytes))
    socket.ondata = lambda event: assert_type(event.target, TCPSocket[bytes]).suspend()
    socket.onerror = lambda event: print(assert_type(event.name, str), event.error.errorCode)
    socket.onopen = socket.onclose = lambda event: assert_type(event.target, TCPSocket[bytes]).send(b"")
    text.ondata = on_text
    text.ondata = on_either
    text.ondata = lambda event: assert_type(event.data, str).split(",")
    either.ondata = on_either
    either.ondata = lambda event: either.send(event.data)
    socket.ondata = on_text  # type: ignore[assignment]
    text.ondata = on_bytes  # type: ignore[assignment]
    socket.ondata = on_connect  # type: ignore[assignment]
    socket.ondata = "echo"  # type: ignore[assignment]
    socket.onopen = lambda event: event.data  # type: ignore[attr-defined]
    socket.ondata = lambda event: event.data.encode()  # type: ignore[attr-defined]


def handlers_of_servers(server: TCPServerSocket, text: TCPServerSocket[str]) -> None:
    server.onconnect = on_connect
    server.onconnect = lambda event: setattr(assert_type(event.socket, TCPSocket[bytes]), "ondata", on_bytes)
    server.onerror = lambda event: print(assert_type(event.message, str))
    assert_type(server.connections, tuple[TCPSocket[bytes], ...])
    assert_type(text.connections, tuple[TCPSocket[str], ...])
    text.onconnect = on_text_connect
    text.onconnect = lambda event: setattr(assert_type(event.socket, TCPSocket[str]), "ondata", on_text)
    server.onconnect = on_bytes  # type: ignore[assignment]
    server.onconnect = on_text_connect  # type: ignore[assignment]


def listeners(socket: TCPSocket, text: TCPSocket[str], name: str) -> None:
    socket.addEventListener("data", on_bytes)
    socket.addEventListener("data", on_bytes_later, once=True)
    socket.addEventListener("data", on_event)
    socket.addEventListener("data", lambda event: socket.send(event.data + b"\n"), once=True)
    socket.addEventListener("drain", lambda event: event.target.resume(), once=True)
    socket.addEventListener("error", on_error)
    socket.addEventListener("error", lambda event: print(event.errorCode + 1))
    socket.addEventListener(name, on_any)
    socket.addEventListener(name, on_event)
    socket.removeEventListener("data", on_bytes)
    text.addEventListener("data", lambda event: event.data.split(","))
    socket.addEventListener("data", lambda event: event.data.encode())  # type: ignore[attr-defined]
    socket.addEventListener("error", lambda event: event.data)  # type: ignore[attr-defined]
    socket.addEventListener("open", lambda event: event.data)  # type: ignore[attr-defined]
    socket.addEventListener("data", on_text)  # type: ignore[arg-type]
    socket.addEventListener("error", on_bytes)  # type: ignore[arg-type]
    socket.addEventListener("open", on_bytes)  # type: ignore[arg-type]


def listeners_of_servers(server: TCPServerSocket, name: str) -> None:
    server.addEventListener("connect", on_connect)
    server.addEventListener("connect", lambda event: event.socket.send(b"hello"), once=True)
    server.addEventListener("error", lambda event: print(event.error.name))
    server.addEventListener(name, lambda event: print(event.type, event.target.localPort))
    server.addEventListener("connect", on_bytes)  # type: ignore[arg-type]


# Options


def wrong_options(tcp: MozTCPSocket, sock: stdlib_socket) -> None:
    tcp.open("localhost")  # type: ignore[call-overload]
    tcp.open("localhost", 1, backlog=1)  # type: ignore[call-overload]
    tcp.open("localhost", 1, binaryType="text")  # type: ignore[call-overload]
    tcp.listen("8007")  # type: ignore[call-overload]
    TCPSocket("localhost", 1, linger="1")  # type: ignore[call-overload]
    TCPServerSocket(0, connect_timeout=1)  # type: ignore[call-overload]
    TCPSocket.from_socket(sock, connect_timeout=1)  # type: ignore[call-overload]
