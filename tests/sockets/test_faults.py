"""Faults around a connection: a reset at an awkward moment, a resolver that fails or hangs, a clock that jumps."""

from __future__ import annotations

import errno
import itertools
import os
import re
import socket as stdlib_socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from mozsocket import InvalidStateError, MozTCPSocket, TCPSocket, TCPSocketError
from mozsocket.testing import EventRecorder

from ..certificates import client_context, server_context
from ..peers import (
    PEER_TIMEOUT,
    Accepting,
    accept,
    all_blocked,
    blocking,
    connected,
    dial,
    port_of,
    read_all,
    read_exactly,
    reset,
    secure,
    securely_connected,
)

pytestmark = pytest.mark.anyio

ANSWER = bytes(range(256)) * 400  # 100 kB
UNREAD = bytes(100_000)


# The last response: a server answers and closes before it has read everything that the client is still sending.


def answer_and_close(event: Any) -> None:
    event.target.send(ANSWER)
    event.target.close()


@pytest.mark.parametrize("secured", [False, True], ids=["plain", "tls"])
async def test_the_last_response(secured: bool) -> None:
    context = client_context()
    async with MozTCPSocket() as tcp:
        options: dict[str, Any] = {"useSecureTransport": True, "ssl_context": server_context()} if secured else {}
        server = tcp.listen(0, host="127.0.0.1", **options)
        server.onconnect = lambda event: setattr(event.socket, "ondata", answer_and_close)
        for _ in range(100):
            peer = await dial(server.localPort)
            with await secure(peer, context) if secured else peer as client:
                client.sendall(UNREAD)
                await all_blocked()  # the server has answered and closed
                assert await blocking(read_all, client) == ANSWER  # in TLS close_notify has arrived, or it would raise
        server.close()


# Resets


async def test_a_reset_before_it_is_accepted() -> None:
    async with MozTCPSocket() as tcp:
        accepting = Accepting(tcp.listen(0, host="127.0.0.1"))
        for _ in range(20):  # all before the server runs
            reset(stdlib_socket.create_connection(("127.0.0.1", accepting.server.localPort), PEER_TIMEOUT))
        with await dial(accepting.server.localPort) as honest:
            with anyio.fail_after(PEER_TIMEOUT):
                while not any(socket.port == port_of(honest) for socket, _ in accepting.sockets):
                    await anyio.lowlevel.checkpoint()
            for socket, events in accepting.sockets:
                if socket.port == port_of(honest):
                    socket.close()
                else:
                    await events.first("close")
                    assert events.types == ["error", "close"]
                    assert events.of("error")[-1].name == "NetworkInterruptError"
            assert await blocking(read_all, honest) == b""
        accepting.server.close()


async def test_a_reset_in_the_handshake(role: str, listener: stdlib_socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        if role == "client":
            socket = tcp.open("127.0.0.1", port_of(listener), useSecureTransport=True, ssl_context=client_context())
            events = EventRecorder(socket)
            peer = await accept(listener)
            await blocking(peer.recv, 1)
        else:
            socket, events, peer = await connected(tcp, role, listener)
            socket.upgradeToSecure(ssl_context=server_context())
            peer.sendall(b"\x16\x03\x01")
        reset(peer)
        await events.first("close")
    assert events.types == ["error", "close"]
    assert events.of("error")[-1].name == "NetworkInterruptError"


@pytest.mark.parametrize("secured", [False, True], ids=["plain", "tls"])
async def test_a_reset_while_suspended(secured: bool, role: str, listener: stdlib_socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        socket, events, peer = await (securely_connected if secured else connected)(tcp, role, listener)
        socket.suspend()
        reset(peer)
        await events.first("close")  # nothing is queued before it
        assert events.of("error")[-1].name == "NetworkInterruptError"


@pytest.mark.parametrize("secured", [False, True], ids=["plain", "tls"])
async def test_a_reset_in_the_middle_of_close(secured: bool, role: str, listener: stdlib_socket.socket) -> None:
    """All was sent, and EOF too. If the peer then resets instead of ending, that is no failure."""
    async with MozTCPSocket() as tcp:
        socket, events, peer = await (securely_connected if secured else connected)(tcp, role, listener, linger=60)
        socket.send(b"the last")
        socket.close()
        assert await blocking(read_exactly, peer, 8) == b"the last"
        await all_blocked()
        assert socket.readyState == "closing"
        reset(peer)
        await events.first("close")
        assert "error" not in events.types


async def test_a_peer_that_stops_reading_for_ever(role: str, listener: stdlib_socket.socket) -> None:
    """Data that cannot be sent is kept until the program gives up."""
    async with MozTCPSocket() as tcp:
        socket, events, peer = await connected(tcp, role, listener, linger=0)
        with peer:
            while socket.send(UNREAD) or socket.bufferedAmount < 20_000_000:
                pass
            socket.close()
            await all_blocked()
            assert socket.readyState == "closing"
            socket.closeImmediately()
            await events.first("close")
            assert events.types[-1] == "close"
            assert "error" not in events.types


# Descriptors

WITHOUT_DESCRIPTORS = """
import anyio, os, resource
from mozsocket import MozTCPSocket

async def main():
    async with MozTCPSocket() as tcp:
        resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))
        held = []
        try:
            while True:
                held.append(os.dup(0))
        except OSError:
            pass
        sock = tcp.open("127.0.0.1", 1)
        sock.onerror = lambda event: print(event.name, event.errorCode)
        sock.onclose = lambda event: print(event.type)
        while sock.readyState != "closed":
            await anyio.sleep(0)
        for number in held:
            os.close(number)

anyio.run(main, backend={backend!r})
"""


@pytest.mark.skipif(sys.platform == "win32", reason="RLIMIT_NOFILE")
async def test_the_first_failure_is_that_no_descriptor_is_left(backend: str) -> None:
    """Telling it needs no module that Python would have to open only now."""
    program = WITHOUT_DESCRIPTORS.format(backend="trio" if backend == "trio" else "asyncio")
    done = await blocking(
        lambda: subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PEER_TIMEOUT)
    )
    assert (done.stdout, done.stderr) == (f"NetworkError {errno.EMFILE}\nclose\n", "")


LISTENING = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))
sys.argv[0] = "mozsocket"
runpy.run_module("mozsocket", run_name="__main__")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="RLIMIT_NOFILE")
async def test_more_clients_than_there_are_descriptors(backend: str) -> None:
    """Each is served when others have closed, without intervention."""
    command = [sys.executable, "-c", LISTENING, "listen", "0", "--host", "127.0.0.1", "--echo", "--backend", backend]
    with await blocking(lambda: subprocess.Popen(command, stderr=subprocess.PIPE, text=True)) as process:
        assert process.stderr is not None
        found = re.fullmatch(r"listening on \S+ port (\d+)\n", await blocking(process.stderr.readline))
        assert found
        clients = [await dial(int(found[1])) for _ in range(150)]
        # The listener has to pause, as no client leaves before it does; otherwise clients might leave fast enough.
        complaint = await blocking(process.stderr.readline)
        assert "cannot accept, and tries again" in complaint
        assert os.strerror(errno.EMFILE) in complaint
        for number, client in enumerate(clients):
            client.sendall(b"%4d" % number)
        for number, client in enumerate(clients):
            assert await blocking(read_exactly, client, 4) == b"%4d" % number
            client.close()
        process.terminate()
        await blocking(process.stderr.read)
        assert await blocking(process.wait) == 0


# Names


@pytest.fixture
def hanging_resolver(monkeypatch: pytest.MonkeyPatch, backend: str) -> Iterator[None]:
    """A resolver that answers only when the test is over."""
    if backend == "uvloop":
        pytest.skip("uvloop resolves names with libuv, not with socket.getaddrinfo()")
    real = stdlib_socket.getaddrinfo
    over = threading.Event()

    def getaddrinfo(host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0) -> Any:
        if host == b"peer.example" and not flags & stdlib_socket.AI_NUMERICHOST:
            over.wait()
            raise stdlib_socket.gaierror(stdlib_socket.EAI_NONAME, "in vain")
        return real(host, port, family, type, proto, flags)

    monkeypatch.setattr(stdlib_socket, "getaddrinfo", getaddrinfo)
    releaser = threading.Timer(0.6, over.set)  # asyncio waits for its threads at the end
    releaser.start()
    yield
    over.set()
    releaser.join()


async def test_a_resolver_that_hangs_is_given_up(hanging_resolver: None) -> None:
    began = time.monotonic()
    with pytest.raises(TCPSocketError) as caught:
        async with TCPSocket("peer.example", 80, connect_timeout=0.1) as socket:
            await socket.opened()
    assert caught.value.name == "NetworkTimeoutError"
    assert time.monotonic() - began < 0.5


async def test_closing_while_a_resolver_hangs(hanging_resolver: None) -> None:
    began = time.monotonic()
    async with TCPSocket("peer.example", 80) as socket:
        await all_blocked()
        socket.close()
        with pytest.raises(InvalidStateError):
            await socket.opened()
    assert time.monotonic() - began < 0.5


# The clock


async def test_a_clock_that_jumps(role: str, listener: stdlib_socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time limits use the monotonic clock: setting the system's clock neither triggers nor extends them."""
    real = time.time
    jumps = itertools.cycle([0, 10**8, -(10**8)])
    monkeypatch.setattr(time, "time", lambda: real() + next(jumps))
    monkeypatch.setattr(time, "time_ns", lambda: int((real() + next(jumps)) * 1e9))
    async with MozTCPSocket() as tcp:
        socket, events, peer = await securely_connected(tcp, role, listener, handshake_timeout=30, linger=30)
        socket.ondata = lambda event: socket.send(event.data)
        peer.sendall(b"hello")
        assert await blocking(read_exactly, peer, 5) == b"hello"
        socket.close()
        (await blocking(peer.unwrap)).close()  # receives the program's close_notify, and answers it
        await events.first("close")
        assert "error" not in events.types
