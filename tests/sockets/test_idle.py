"""``idle_timeout`` fails a connection on which nothing happens so long; ``keep_alive`` makes TCP probe the peer."""

from __future__ import annotations

import socket
import time

import anyio
import pytest

from mozsocket import MozTCPSocket, TCPSocketError
from mozsocket._limits import Idleness

from ..peers import (
    Accepting,
    accept,
    all_blocked,
    blocking,
    connected,
    dial,
    joined,
    port_of,
    read_all,
    reset,
    send_all,
)

pytestmark = pytest.mark.anyio

SOON = 0.15


def test_the_time_is_over_when_nothing_has_moved_for_so_long() -> None:
    idleness = Idleness(8, now=100)
    assert idleness.deadline == 101
    assert not idleness.check(0, 101)
    assert idleness.deadline == 102
    assert not idleness.check(0, 107.9)
    assert idleness.deadline == 108
    assert idleness.check(0, 108)


def test_the_time_begins_again_when_something_has_moved() -> None:
    idleness = Idleness(8, now=100)
    assert not idleness.check(5, 101)
    assert idleness.deadline == 102
    assert not idleness.check(5, 102)
    assert not idleness.check(5, 108)
    assert idleness.deadline == 109
    assert not idleness.check(6, 109)  # just in time
    assert idleness.deadline == 110
    assert not idleness.check(6, 110)
    assert idleness.check(6, 117)


def test_it_is_found_an_eighth_late_at_most() -> None:
    """This holds even if something happens just after a check."""
    for moved_at in (0.01, 0.99, 1.01, 3.5, 7.99):
        idleness, moved = Idleness(8, now=0), 0
        while True:
            now = idleness.deadline
            moved = int(now >= moved_at)
            if idleness.check(moved, now):
                break
        assert moved_at + 8 <= now <= moved_at + 9


@pytest.mark.parametrize("what", ["data", "end", "reset"])
async def test_what_comes_as_a_deadline_passes(what: str, role: str) -> None:
    """The event loop is held up meanwhile, so both are found in the same turn."""
    async with joined("plain", role, idle_timeout=8 * SOON) as (sock, recorder, peer):
        sock.ondata = lambda event: event.target.close()
        await anyio.sleep(SOON / 2)
        if what == "reset":
            reset(peer)
        elif what == "data":
            peer.sendall(b"x")
        else:
            peer.shutdown(socket.SHUT_WR)
        time.sleep(SOON)
        peer.close()
        await recorder.first("close")
    assert ("error" in recorder.types) is (what == "reset")


async def test_what_has_come_while_the_loop_was_held_up_counts(layer: str, role: str) -> None:
    async with joined(layer, role, idle_timeout=2 * SOON) as (sock, recorder, peer):
        peer.sendall(b"x")
        await recorder.until(lambda: recorder.data == b"x")
        await anyio.sleep(SOON / 2)  # for a check that notes it
        peer.sendall(b"y")
        time.sleep(3 * SOON)
        await recorder.until(lambda: recorder.data == b"xy")
        assert "error" not in recorder.types
        sock.closeImmediately()


async def test_silence_fails_the_connection(layer: str, role: str) -> None:
    async with joined(layer, role, idle_timeout=SOON) as (_sock, recorder, _peer):
        begun = time.monotonic()
        error = (await recorder.first("error")).error
        assert SOON * 0.6 < time.monotonic() - begun < SOON * 10  # in TLS the handshake has taken some of the time
        assert error.name == "NetworkTimeoutError"
        assert error.detail == f"nothing was received, and nothing taken by the peer, for {SOON} seconds"
        await recorder.first("close")
        assert recorder.types[-2:] == ["error", "close"]


@pytest.mark.parametrize("who", ["peer", "we"])
async def test_who_sends_now_and_then_goes_on(who: str, role: str) -> None:
    async with joined("plain", role, idle_timeout=SOON) as (sock, recorder, peer):
        for _ in range(12):
            await anyio.sleep(SOON / 4)
            if who == "peer":
                await send_all(peer, b"x")
            else:
                sock.send(b"x")
        assert sock.readyState == "open"
        assert "error" not in recorder.types
        await recorder.first("error")


async def test_a_suspended_socket_is_idle_too(role: str) -> None:
    async with joined("plain", role, idle_timeout=SOON) as (sock, recorder, peer):
        sock.suspend()
        await send_all(peer, b"x")
        assert await blocking(peer.recv, 1) == b""
        sock.resume()
        await recorder.first("error")
        assert recorder.data == b"x"


async def test_a_peer_that_does_not_read_frees_its_place() -> None:
    """Closing waits until all is sent, however long the peer takes; ``linger`` limits only the time after that."""
    async with MozTCPSocket() as tcp:
        server = tcp.listen(0, host="127.0.0.1", max_connections=1, idle_timeout=SOON)
        accepting = Accepting(server)
        with await dial(server.localPort), await dial(server.localPort):
            first, recorder = await accepting.first()
            first.send(bytes(64 << 20))
            first.close()
            await recorder.first("close")
            assert recorder.types == ["error", "close"]
            await accepting.until(2)
        server.close()
        for sock, _ in accepting.sockets:
            sock.closeImmediately()


async def test_closing_a_silent_connection_is_no_failure(role: str) -> None:
    """All is sent, and the socket was only waiting for the peer's EOF."""
    async with joined("plain", role, idle_timeout=SOON, linger=3600) as (sock, recorder, peer):
        sock.send(b"all")
        sock.close()
        await recorder.first("close")
        assert "error" not in recorder.types
        assert await blocking(read_all, peer) == b"all"


async def test_a_stream_raises_it(role: str) -> None:
    async with joined("plain", role, idle_timeout=SOON) as (sock, _, _peer):
        stream = sock.stream()
        with pytest.raises(anyio.BrokenResourceError, match="NetworkTimeoutError"):
            await stream.receive()


async def test_silence_in_a_handshake_counts(listener: socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        sock = tcp.open("127.0.0.1", port_of(listener), useSecureTransport=True, idle_timeout=SOON)
        with await accept(listener), pytest.raises(TCPSocketError, match="nothing was received") as raised:
            await sock.opened()
        assert raised.value.name == "NetworkTimeoutError"


async def test_a_long_time_is_not_waited_for(role: str) -> None:
    async with joined("plain", role, idle_timeout=3600) as (sock, recorder, peer):
        await send_all(peer, b"x")
        await recorder.until(lambda: recorder.data == b"x")
        await all_blocked()
        sock.close()
        peer.close()
        await recorder.first("close")


@pytest.mark.skipif(not hasattr(socket, "TCP_KEEPIDLE"), reason="this system has another name for it")
async def test_keep_alive(role: str, listener: socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        for seconds in (None, 77):
            sock, _, peer = await connected(tcp, role, listener, keep_alive=seconds)
            raw = sock.extra(anyio.abc.SocketAttribute.raw_socket)
            assert bool(raw.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)) is (seconds is not None)
            if seconds is not None:
                assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == seconds
            sock.closeImmediately()
            peer.close()
