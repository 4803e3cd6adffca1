"""Peers for the tests: blocking sockets of the standard library, which share no code with the package.

Tests call them in a worker thread with :func:`blocking`, so that the event loop keeps running.
"""

from __future__ import annotations

import select
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread
from typing_extensions import TypeVarTuple, Unpack

from mozsocket import MozTCPSocket, TCPServerSocket, TCPSocket
from mozsocket.testing import EventRecorder

from .certificates import VERSIONS, client_context, server_context

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

LOOPS: dict[str, tuple[str, dict[str, Any]]] = {
    "asyncio": ("asyncio", {}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}
"""The event loops, each as AnyIO's backend and its options."""

PEER_TIMEOUT = 20  # seconds after which a blocking peer gives up, so that a failing test ends


async def blocking(function: Callable[[Unpack[Ts]], T], *args: Unpack[Ts]) -> T:
    """Call a blocking function in a worker thread."""

    def call() -> T:
        _forget_tls_errors()
        return function(*args)

    return await anyio.to_thread.run_sync(call)


def _forget_tls_errors() -> None:
    """Empty OpenSSL's queue of errors of this thread.

    A call for one connection may leave an error there, as one that raises BrokenPipeError does in Python 3.15, and a
    later call in the same worker thread would report it for another connection, in place of EOF.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    with suppress(OSError):
        context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO()).do_handshake()  # which wants to read


async def all_blocked() -> None:
    """``anyio.wait_all_tasks_blocked()``, which on asyncio sleeps for 0.1 s if a task is not blocked yet."""
    for _ in range(10):
        await anyio.lowlevel.checkpoint()
    await anyio.wait_all_tasks_blocked()


@contextmanager
def listening(host: str = "127.0.0.1", *, backlog: int = 16) -> Iterator[socket.socket]:
    """A blocking socket that listens on a free port of loopback."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family, backlog=backlog) as listener:
        listener.settimeout(PEER_TIMEOUT)
        yield listener


def port_of(sock: socket.socket) -> int:
    port: int = sock.getsockname()[1]
    return port


async def accept(listener: socket.socket) -> socket.socket:
    """Accept the next connection as a blocking socket."""
    peer, _ = await blocking(listener.accept)
    peer.settimeout(PEER_TIMEOUT)
    return peer


async def dial(port: int, host: str = "127.0.0.1") -> socket.socket:
    """Connect a blocking socket to a port of this machine."""
    return await blocking(socket.create_connection, (host, port), PEER_TIMEOUT)


def unused_port() -> int:
    """A port of loopback on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return port_of(listener)


def wait_until_it_listens(port: int, *, while_running: subprocess.Popen[bytes] | None = None) -> None:
    """Wait until a started program listens on loopback. Blocks.

    :raises ConnectionError: if it does not listen in time, or ends
    """
    deadline = time.monotonic() + PEER_TIMEOUT
    while True:
        ended = while_running is not None and while_running.poll() is not None
        try:
            socket.create_connection(("127.0.0.1", port), PEER_TIMEOUT).close()
        except ConnectionRefusedError:
            if ended or time.monotonic() > deadline:
                raise
            threading.Event().wait(0.02)
        else:
            if ended:  # such as when the port is taken
                raise ConnectionError(f"the program has ended, and another listens on port {port}")
            return


async def send_all(sock: socket.socket, data: bytes) -> None:
    """Send data with a blocking socket, in a worker thread."""
    await blocking(sock.sendall, data)


def read_all(sock: socket.socket) -> bytes:
    """Read everything up to EOF. Blocks."""
    parts = []
    with suppress(ssl.SSLZeroReturnError):  # an SSLSocket that has ended its own side reports EOF like this
        while part := sock.recv(1 << 20):
            parts.append(part)
    return b"".join(parts)


def read_exactly(sock: socket.socket, size: int) -> bytes:
    """Read this number of bytes. Blocks."""
    data = bytearray()
    while len(data) < size:
        part = sock.recv(size - len(data))
        assert part, f"the stream ended after {len(data)} of {size} bytes"
        data += part
    return bytes(data)


def exchange(sock: socket.socket, data: bytes, size: int) -> bytes:
    """Send data and meanwhile receive ``size`` bytes, in one thread, as an SSLSocket cannot be used by two. Blocks."""
    received = bytearray()
    sock.setblocking(False)
    unsent = memoryview(data)
    while unsent or len(received) < size:
        assert any(select.select([sock], [sock] if unsent else [], [], PEER_TIMEOUT)), "nothing happens any more"
        with suppress(BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            while unsent:
                unsent = unsent[sock.send(unsent[:65536]) :]
        with suppress(BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            while len(received) < size:
                part = sock.recv(min(65536, size - len(received)))
                assert part, f"the stream ended after {len(received)} of {size} bytes"
                received += part
    sock.settimeout(PEER_TIMEOUT)
    return bytes(received)


def reset(sock: socket.socket) -> None:
    """Close the socket with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def echo_to(event: Any) -> None:
    """An ``onconnect`` handler that sends back what the socket receives."""
    event.socket.ondata = lambda event: event.target.send(event.data)


class Accepting:
    """A server whose accepted sockets are recorded.

    :ivar server: the server
    :ivar sockets: the accepted sockets, with their recorders
    """

    def __init__(self, server: TCPServerSocket) -> None:
        self.server = server
        self.sockets: list[tuple[TCPSocket, EventRecorder]] = []
        self._more = anyio.Event()
        server.onconnect = self._accepted

    def _accepted(self, event: Any) -> None:
        self.sockets.append((event.socket, EventRecorder(event.socket)))
        self._more.set()

    async def first(self) -> tuple[TCPSocket, EventRecorder]:
        """Wait for the first accepted socket."""
        await self.until(1)
        return self.sockets[0]

    async def until(self, count: int) -> None:
        """Wait until ``count`` sockets were accepted."""
        with anyio.fail_after(PEER_TIMEOUT):
            while len(self.sockets) < count:
                self._more = anyio.Event()
                await self._more.wait()


async def connected(
    tcp: MozTCPSocket, role: str, listener: socket.socket, **options: Any
) -> tuple[TCPSocket, EventRecorder, socket.socket]:
    """An open TCPSocket in a role, its recorder, and the blocking socket at its other end.

    :param role: ``"client"`` if the program opens the socket, ``"server"`` if it accepts it
    :param listener: the listener that the client role connects to
    """
    if role == "client":
        socket_ = tcp.open("127.0.0.1", port_of(listener), **options)
        recorder = EventRecorder(socket_)
        peer = await accept(listener)
        await socket_.opened()
    else:
        accepting = Accepting(tcp.listen(0, host="127.0.0.1", **options))
        peer = await dial(accepting.server.localPort)
        socket_, recorder = await accepting.first()
        accepting.server.close()
    return socket_, recorder, peer


async def secure(peer: socket.socket, context: ssl.SSLContext, *, server_side: bool = False) -> ssl.SSLSocket:
    """Do the TLS handshake in a worker thread, and return a blocking socket that replaces the one given.

    If it is cut off without close_notify, it raises :exc:`ssl.SSLEOFError`.
    """
    name = None if server_side else "localhost"
    return await blocking(
        lambda: context.wrap_socket(peer, server_side=server_side, server_hostname=name, suppress_ragged_eofs=False)
    )


def do_handshake(tls: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, sock: socket.socket) -> None:
    """Do the handshake of a peer with memory buffers, so that the test controls what it sends. Blocks."""
    done = False
    while not done:
        with suppress(ssl.SSLWantReadError):
            tls.do_handshake()
            done = True
        sock.sendall(outgoing.read())
        if not done:
            incoming.write(sock.recv(65536))


async def securely_connected(
    tcp: MozTCPSocket, role: str, listener: socket.socket, version: ssl.TLSVersion | None = None, **options: Any
) -> tuple[TCPSocket, EventRecorder, ssl.SSLSocket]:
    """Like :func:`connected`, with TLS from the start.

    :param version: the only TLS version that both sides speak
    """
    options["useSecureTransport"] = True
    if role == "client":
        options.setdefault("ssl_context", client_context(version=version))
        options.setdefault("server_hostname", "localhost")
        socket_ = tcp.open("127.0.0.1", port_of(listener), **options)
        recorder = EventRecorder(socket_)
        peer = await secure(await accept(listener), server_context(version=version), server_side=True)
        await socket_.opened()
    else:
        options.setdefault("ssl_context", server_context(version=version))
        accepting = Accepting(tcp.listen(0, host="127.0.0.1", **options))
        peer = await secure(await dial(accepting.server.localPort), client_context(version=version))
        socket_, recorder = await accepting.first()
        accepting.server.close()
    return socket_, recorder, peer


@asynccontextmanager
async def joined(
    layer: str, role: str, **options: Any
) -> AsyncIterator[tuple[TCPSocket, EventRecorder, socket.socket]]:
    """Our socket, its recorder and a blocking peer, in plaintext or in TLS."""
    with listening() as listener:
        async with MozTCPSocket() as tcp:
            if layer == "plain":
                sock, recorder, peer = await connected(tcp, role, listener, **options)
            else:
                sock, recorder, peer = await securely_connected(tcp, role, listener, VERSIONS[layer], **options)
            with peer:
                yield sock, recorder, peer


class EarlyHello:
    """A client whose ClientHello the test sends by hand."""

    def __init__(self) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = client_context().wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")
        with suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()
        self.hello = self.outgoing.read()

    def go_on(self, peer: socket.socket) -> None:
        while True:
            try:
                self.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                peer.sendall(self.outgoing.read())
                self.incoming.write(peer.recv(65536))
        self.tls.write(b"encrypted\r\n")
        peer.sendall(self.outgoing.read())
