"""``reset()`` closes with RST: the peer learns that the connection was cut off."""

from __future__ import annotations

import socket

import anyio
import pytest

from mozsocket import MozTCPSocket, TCPSocket
from mozsocket.testing import EventRecorder

from ..peers import accept, all_blocked, blocking, joined, port_of, read_all, read_exactly, send_all

pytestmark = pytest.mark.anyio


def sees_reset(peer: socket.socket) -> None:
    """Check that the peer gets a reset. The bare socket is read, as `ssl` would report the end of TLS first."""
    with pytest.raises(ConnectionResetError):
        read_bare(peer)


def read_bare(peer: socket.socket) -> None:
    while socket.socket.recv(peer, 65536):
        pass


async def test_the_peer_receives_a_reset(layer: str, role: str) -> None:
    async with joined(layer, role) as (sock, recorder, peer):
        sock.reset()
        assert sock.readyState in ("closing", "closed")
        await recorder.first("close")
        assert "error" not in recorder.types
        await blocking(sees_reset, peer)
        sock.reset()  # harmless
    assert recorder.types.count("close") == 1


async def test_what_is_buffered_is_dropped(role: str) -> None:
    async with joined("plain", role) as (sock, recorder, peer):
        sock.send(bytes(64 << 20))  # more than the system buffers
        await all_blocked()
        assert sock.bufferedAmount > 0
        sock.reset()
        assert sock.bufferedAmount == 0
        await recorder.first("close")
        assert "drain" not in recorder.types
        await blocking(sees_reset, peer)


async def test_it_is_a_reset_though_all_was_read(role: str) -> None:
    """closeImmediately() would be an orderly end here."""
    async with joined("plain", role) as (sock, recorder, peer):
        await send_all(peer, b"ping")
        await recorder.until(lambda: recorder.data == b"ping")
        sock.send(b"pong")
        assert await blocking(read_exactly, peer, 4) == b"pong"
        sock.reset()
        await blocking(sees_reset, peer)


async def test_in_a_handler(role: str) -> None:
    async with joined("plain", role) as (sock, recorder, peer):
        sock.addEventListener("data", lambda event: event.target.reset())
        await send_all(peer, b"enough")
        await blocking(sees_reset, peer)
        await recorder.first("close")
        assert recorder.data == b"enough"


async def test_while_it_closes_in_order(role: str) -> None:
    """It waits for the peer's EOF, which would take longer than the test may."""
    async with joined("plain", role, linger=3600) as (sock, recorder, peer):
        sock.close()
        assert await blocking(read_all, peer) == b""
        assert recorder.types[-1:] != ["close"]
        sock.reset()
        await recorder.first("close")
        with pytest.raises(BrokenPipeError):  # Linux's error for a reset after EOF
            await send_all(peer, b"x")


async def test_while_connecting(clogged: int) -> None:
    async with MozTCPSocket() as tcp:
        sock = tcp.open("127.0.0.1", clogged)
        recorder = EventRecorder(sock)
        await all_blocked()
        sock.reset()
        await recorder.first("close")
        assert recorder.types == ["close"]


async def test_in_a_handshake(listener: socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        sock = tcp.open("127.0.0.1", port_of(listener), useSecureTransport=True)
        recorder = EventRecorder(sock)
        peer = await accept(listener)
        with peer:
            assert await blocking(peer.recv, 1) == b"\x16"
            sock.reset()
            await blocking(sees_reset, peer)
            await recorder.first("close")
            assert recorder.types == ["close"]


async def test_before_it_is_entered() -> None:
    sock = TCPSocket("127.0.0.1", 1)
    sock.reset()
    assert sock.readyState == "closed"


async def test_a_stream_raises_that_it_is_closed() -> None:
    async with joined("plain", "client") as (sock, _, peer):
        stream = sock.stream()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(all_blocked_then_reset, sock)
            with pytest.raises(anyio.ClosedResourceError):
                await stream.receive()
        await blocking(sees_reset, peer)


async def all_blocked_then_reset(sock: TCPSocket) -> None:
    await all_blocked()
    sock.reset()


async def test_a_unix_domain_socket_is_closed() -> None:
    ours, peer = socket.socketpair()
    peer.settimeout(20)
    with peer:
        async with TCPSocket.from_socket(ours) as sock:
            await sock.opened()
            sock.reset()
        assert await blocking(peer.recv, 1) == b""
