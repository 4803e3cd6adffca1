"""Adopting sockets that other code has created: a socketpair, a SOCKS library, a service manager."""

from __future__ import annotations

import inspect
import os
import re
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import anyio
import pytest
from python_socks.sync import Proxy

from mozsocket import MozTCPSocket, TCPServerSocket, TCPSocket, listen_fds
from mozsocket._options import SocketOptions
from mozsocket._server import acceptor_of
from mozsocket._socket import connection_of
from mozsocket.testing import EventRecorder

from ..certificates import client_context
from ..parameters import on_one_loop
from ..peers import (
    accept,
    all_blocked,
    blocking,
    dial,
    listening,
    port_of,
    read_all,
    reset,
    send_all,
    unused_port,
    wait_until_it_listens,
)
from ..processes import program

pytestmark = pytest.mark.anyio
unix = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="the system has no UNIX-domain sockets")


async def talk(sock: TCPSocket, peer: socket.socket) -> None:
    recorder = EventRecorder(sock)
    await recorder.first("open")
    sock.send(b"hello")
    sock.send_eof()
    assert await blocking(read_all, peer) == b"hello"
    await send_all(peer, b"world")
    peer.close()
    await recorder.first("close")
    assert recorder.data == b"world"


async def test_one_of_a_socketpair() -> None:
    ours, peer = socket.socketpair()
    async with TCPSocket.from_socket(ours) as sock:
        assert sock.port == 0 or sys.platform == "win32"
        assert (
            re.fullmatch(r"<TCPSocket #\d+ a socket without an address connecting>", repr(sock))
            or sys.platform == "win32"
        )
        await talk(sock, peer)


@unix
async def test_a_unix_domain_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as ours:
        listener.bind(path)
        listener.listen()
        ours.connect(path)
        peer, _ = listener.accept()
        async with TCPSocket.from_socket(ours.dup()) as sock:
            assert (sock.host, sock.port) == (path, 0)
            assert re.fullmatch(rf"<TCPSocket #\d+ {re.escape(str(path))} connecting>", repr(sock))
            await talk(sock, peer)


async def test_through_a_socks_proxy(listener: socket.socket) -> None:
    """python-socks talks to the proxy, microsocks, and passes us the connected socket."""
    with socks_proxy() as port:
        ours = await blocking(Proxy.from_url(f"socks5://127.0.0.1:{port}").connect, "127.0.0.1", port_of(listener))
        peer = await accept(listener)
        async with TCPSocket.from_socket(ours) as sock:
            recorder = EventRecorder(sock)
            await sock.opened()
            sock.send(b"hello")
            assert await blocking(peer.recv, 5) == b"hello"
            await send_all(peer, b"world")
            peer.close()
            await recorder.first("close")
            assert recorder.data == b"world"


@contextmanager
def socks_proxy() -> Iterator[int]:
    port = unused_port()
    with subprocess.Popen([program("microsocks"), "-i", "127.0.0.1", "-p", str(port)], stderr=subprocess.DEVNULL) as it:
        try:
            wait_until_it_listens(port)
            yield port
        finally:
            it.terminate()


@pytest.mark.parametrize("words", [b"", b"last words"], ids=["nothing", "last words"])
@pytest.mark.parametrize("reports", [False, True], ids=["unreported", "reported"])
async def test_a_socket_that_the_peer_has_reset(words: bytes, reports: bool, listener: socket.socket) -> None:
    """Data that can still be read is delivered, and then the loss."""
    with socket.create_connection(listener.getsockname()) as ours:
        peer, _ = listener.accept()
        peer.sendall(words)
        reset(peer)
        if reports:
            ours.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        adopted = TCPSocket.from_socket(socket.socket(fileno=ours.detach()))
    assert (adopted.host, adopted.port) == ("", 0)
    recorder = EventRecorder(adopted)
    async with adopted:
        await recorder.first("close")
    assert recorder.data == words
    if reports:  # the error was reported to whoever asked first, and is no longer available
        assert "error" not in recorder.types
    else:
        assert recorder.types[-2:] == ["error", "close"]
        assert recorder.of("error")[0].name == "NetworkInterruptError"


async def test_a_socket_that_both_sides_have_ended(listener: socket.socket) -> None:
    ours = socket.create_connection(listener.getsockname())
    peer, _ = listener.accept()
    peer.sendall(b"last words")
    peer.shutdown(socket.SHUT_WR)
    ours.shutdown(socket.SHUT_WR)
    assert await blocking(read_all, peer) == b""
    peer.close()
    async with TCPSocket.from_socket(ours) as adopted:
        assert await EventRecorder(adopted).data_until_close() == b"last words"


async def test_an_accepted_connection_that_is_reset_before_it_is_served(listener: socket.socket) -> None:
    """The address of its peer is known nevertheless."""
    with socket.create_connection(listener.getsockname()) as peer:
        address = peer.getsockname()
        peer.sendall(b"last words")
        reset(peer)
    recorders, seen = [], []

    def onconnect(event: Any) -> None:
        recorders.append(EventRecorder(event.socket))
        seen.append((event.socket.host, event.socket.port))
        event.socket.addEventListener("close", lambda event: server.close())

    async with TCPServerSocket.from_socket(listener.dup()) as server:
        server.onconnect = onconnect
        await server.closed()
    assert seen == [address]
    assert recorders[0].types == ["data", "error", "close"]
    assert recorders[0].data == b"last words"


async def test_a_socketpair_whose_other_end_is_closed() -> None:
    ours, peer = socket.socketpair()
    peer.sendall(b"last words")
    peer.close()
    async with TCPSocket.from_socket(ours) as adopted:
        recorder = EventRecorder(adopted)
        await recorder.first("close")
    assert recorder.types == ["open", "data", "close"]
    assert recorder.data == b"last words"


@pytest.mark.parametrize("state", ["new", "bound", "listening", "connecting", "refused", "ended"])
def test_a_socket_that_was_never_connected_is_refused(state: str, clogged: int) -> None:
    with socket.socket() as sock:
        sock.setblocking(False)
        if state == "connecting":
            sock.connect_ex(("127.0.0.1", clogged))
        elif state == "refused":  # the error was not read from the socket yet
            sock.connect_ex(("127.0.0.1", unused_port()))
        elif state == "ended":  # the call fails, but makes the socket readable on Linux
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        elif state != "new":
            sock.bind(("127.0.0.1", 0))
        if state == "listening":
            sock.listen()
        with pytest.raises(ValueError, match="connected"):
            TCPSocket.from_socket(sock)
        assert sock.fileno() != -1


def test_a_socket_that_does_tls_already_is_refused() -> None:
    ours, peer = socket.socketpair()
    context = client_context()
    tls = context.wrap_socket(ours, server_hostname="localhost", do_handshake_on_connect=False)
    with peer, tls, pytest.raises(ValueError, match="takes a plain socket, and does TLS itself"):
        TCPSocket.from_socket(tls)


async def test_closing_a_listener_is_no_end_of_it_for_others_who_have_it(listener: socket.socket) -> None:
    """Other processes, such as a service manager, may share the listener, which must stay usable for them."""
    async with TCPServerSocket.from_socket(listener.dup()) as server:
        server.onconnect = lambda event: event.socket.close()
        with await dial(server.localPort) as peer:
            assert await blocking(read_all, peer) == b""
    with await dial(port_of(listener)) as peer, await accept(listener):
        pass


async def test_a_cancelled_server_leaves_the_listener_to_others(listener: socket.socket) -> None:
    with anyio.CancelScope() as scope:
        async with TCPServerSocket.from_socket(listener.dup()):
            await all_blocked()
            scope.cancel()
    with await dial(port_of(listener)), await accept(listener):
        pass


OPTIONS: dict[str, Any] = {
    "binaryType": "string",
    "max_buffered_amount": 1,
    "linger": 1,
    "handshake_timeout": 1,
    "tls_standard_compatible": False,
    "allow_half_open": True,
}


def options_of(made: TCPSocket | TCPServerSocket) -> SocketOptions:
    return connection_of(made).options if isinstance(made, TCPSocket) else acceptor_of(made).options


@pytest.mark.parametrize("name", [*OPTIONS, "server_hostname", "proxy_protocol"])
def test_every_option_reaches_the_connections(name: str, listener: socket.socket) -> None:
    value = {"server_hostname": "localhost", "proxy_protocol": True, **OPTIONS}[name]
    options = {name: value, "useSecureTransport": name == "server_hostname"}
    ours, peer = socket.socketpair()
    with listener, ours, peer:
        makers: dict[Any, Any] = {
            TCPSocket.from_socket: ours,
            TCPServerSocket.from_socket: listener,
            TCPServerSocket: 0,
        }
        for make, argument in makers.items():
            if name in inspect.signature(make).parameters:
                assert getattr(options_of(make(argument, **options)), name) == value


def test_a_socket_that_is_refused_stays_as_it_was() -> None:
    ours, peer = socket.socketpair()
    with ours, peer:
        ours.settimeout(7)
        with pytest.raises(ValueError, match="server_hostname is needed"):
            TCPSocket.from_socket(ours, useSecureTransport=True)
        assert ours.gettimeout() == 7


# Socket activation

ACTIVATED = """
    import os, sys, anyio
    from mozsocket import TCPServerSocket, listen_fds

    async def main():
        sockets = listen_fds(*sys.argv[2:])
        print(len(sockets), len(listen_fds()), flush=True)
        assert not [name for name in os.environ if name.startswith("LISTEN_")]
        assert not any(sock.get_inheritable() for sock in sockets)
        for sock in sockets:
            async with TCPServerSocket.from_socket(sock) as server:
                def onconnect(event):
                    event.socket.send(b"%d" % server.localPort)
                    event.socket.close()
                    server.close()
                server.onconnect = onconnect
                await server.closed()

    anyio.run(main, backend=sys.argv[1])
"""


MANAGER = """
import os, sys
for index, descriptor in enumerate(map(int, sys.argv[1].split(","))):
    os.dup2(descriptor, 3 + index)
os.environ.setdefault("LISTEN_PID", str(os.getpid()))
os.execv(sys.executable, [sys.executable, "-W", "error", "-c", *sys.argv[2:]])
"""


def activate(
    sockets: Sequence[socket.socket | IO[str]], arguments: list[str], **environment: str
) -> subprocess.Popen[bytes]:
    """Start a program as a service manager does: with the sockets as its descriptors from 3 on."""
    descriptors = [sock.fileno() for sock in sockets]
    given = ",".join(map(str, descriptors))
    return subprocess.Popen(
        [sys.executable, "-c", MANAGER, given, textwrap.dedent(ACTIVATED), *arguments],
        env={**os.environ, "LISTEN_FDS": str(len(sockets)), **environment},
        pass_fds=descriptors,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


@unix
async def test_socket_activation(backend: str) -> None:
    arguments = [backend.replace("uvloop", "asyncio")]
    with listening() as first, listening() as second, activate([first, second], arguments) as process:
        assert process.stdout is not None
        assert await blocking(process.stdout.readline) == b"2 0\n"
        for sock in first, second:
            with await dial(port_of(sock)) as peer:
                assert await blocking(read_all, peer) == str(port_of(sock)).encode()
        assert await blocking(process.wait) == 0


@unix
async def test_the_sockets_of_a_name() -> None:
    with (
        listening() as first,
        listening() as second,
        activate([first, second], ["asyncio", "admin"], LISTEN_FDNAMES="web:admin") as process,
    ):
        assert process.stdout is not None
        assert await blocking(process.stdout.readline) == b"1 0\n"
        with await dial(port_of(second)) as peer:
            assert await blocking(read_all, peer) == str(port_of(second)).encode()
        assert await blocking(process.stdout.read) == b""
        assert await blocking(process.wait) == 0


@unix
@on_one_loop
async def test_those_of_another_process_are_none_of_ours() -> None:
    with listening() as sock, activate([sock], ["asyncio"], LISTEN_PID="1") as process:
        assert process.stdout is not None
        assert await blocking(process.stdout.read) == b"0 0\n"


@unix
@on_one_loop
async def test_a_descriptor_that_is_no_socket(tmp_path: Path) -> None:
    with listening() as sock, (tmp_path / "file").open("w") as file, activate([sock, file], ["asyncio"]) as process:
        assert process.stdout is not None
        output = await blocking(process.stdout.read)
        assert b"OSError: [Errno 88] Socket operation on non-socket" in output or sys.platform != "linux"
        assert b"ResourceWarning" not in output


@pytest.mark.parametrize("given", [{}, {"LISTEN_PID": str(os.getpid())}])
def test_without_socket_activation_there_are_none(given: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LISTEN_PID", "LISTEN_FDS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert listen_fds() == []


@pytest.mark.parametrize("variable", ["LISTEN_PID", "LISTEN_FDS"])
def test_malformed_variables(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv(variable, "one")
    with pytest.raises(ValueError, match=f"{variable} must be a number, not 'one'"):
        listen_fds()


def test_a_name_is_a_str() -> None:
    wrong: Any = 1
    with pytest.raises(TypeError, match="name must be a str, not int"):
        listen_fds(wrong)


# Several processes on one port


async def test_reuse_port_shares_a_port() -> None:
    async with MozTCPSocket() as tcp:
        first = tcp.listen(0, host="127.0.0.1", reuse_port=True)
        second = TCPServerSocket(first.localPort, host="127.0.0.1", reuse_port=True)
        async with second:
            assert second.localPort == first.localPort
        first.close()
