"""The transport in plaintext, over socketpairs and over loopback."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import pytest

from mozsocket._transport import Transport, configure

from ..peers import PEER_TIMEOUT, all_blocked, blocking, listening, read_all, read_exactly, reset

pytestmark = pytest.mark.anyio


@contextmanager
def unix_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, peer = socket.socketpair()
    with ours, peer:
        yield ours, peer


@contextmanager
def tcp_pair(host: str = "127.0.0.1") -> Iterator[tuple[socket.socket, socket.socket]]:
    with listening(host) as listener, socket.create_connection(listener.getsockname()[:2]) as ours:
        peer, _ = listener.accept()
        with peer:
            yield ours, peer


@pytest.fixture(params=["unix", "tcp"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Transport, socket.socket]]:
    """A transport, and the blocking socket at its other end."""
    with {"unix": unix_pair, "tcp": tcp_pair}[request.param]() as (ours, peer):
        peer.settimeout(PEER_TIMEOUT)
        configure(ours)
        yield Transport(ours), peer


@pytest.fixture
def unix() -> Iterator[tuple[Transport, socket.socket]]:
    """The same over a UNIX socketpair. Once full it stays full, whereas TCP may still move bytes to the peer's side."""
    with unix_pair() as (ours, peer):
        peer.settimeout(PEER_TIMEOUT)
        configure(ours)
        yield Transport(ours), peer


@pytest.fixture
def tcp() -> Iterator[tuple[Transport, socket.socket]]:
    """The same over TCP."""
    with tcp_pair() as (ours, peer):
        configure(ours)
        yield Transport(ours), peer


async def receive(transport: Transport, size: int = 1 << 16) -> bytes:
    """Wait for the next data."""
    with anyio.fail_after(PEER_TIMEOUT):
        while (data := transport.receive(size)) is None:
            await transport.watched.wait_readable()
    return data


def fill(transport: Transport) -> int:
    """Send until no more is accepted.

    :return: the number of bytes sent
    """
    chunk = bytes(1 << 16)
    sent = 0
    while count := transport.sendmsg([chunk]):
        sent += count
    return sent


# Configuring


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_configure_lets_nothing_wait_on_tcp(host: str) -> None:
    with tcp_pair(host) as (ours, _):
        assert not ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert ours.getblocking()
        configure(ours)
        assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert not ours.getblocking()


def test_configure_works_where_there_is_no_tcp() -> None:
    with unix_pair() as (ours, _):
        configure(ours)
        assert not ours.getblocking()


# Receiving


async def test_receive_gives_none_while_nothing_is_there(pair: tuple[Transport, socket.socket]) -> None:
    transport, peer = pair
    assert transport.receive(10) is None
    peer.sendall(b"hello")
    assert await receive(transport) == b"hello"
    assert transport.receive(10) is None


async def test_receive_gives_no_more_than_it_is_asked_for(pair: tuple[Transport, socket.socket]) -> None:
    transport, peer = pair
    peer.sendall(b"hello")
    assert await receive(transport, 2) == b"he"
    assert await receive(transport, 3) == b"llo"


async def test_receive_gives_nothing_at_the_end_again_and_again(pair: tuple[Transport, socket.socket]) -> None:
    transport, peer = pair
    peer.sendall(b"last")
    peer.close()
    assert await receive(transport) == b"last"
    for _ in range(2):
        assert await receive(transport) == b""
        await transport.watched.wait_readable()


async def test_receive_raises_when_the_connection_is_reset(tcp: tuple[Transport, socket.socket]) -> None:
    transport, peer = tcp
    reset(peer)
    with pytest.raises(ConnectionResetError):
        await receive(transport)


# Sending


async def test_send_returns_how_much_was_taken(pair: tuple[Transport, socket.socket]) -> None:
    transport, peer = pair
    assert transport.sendmsg([b"hello"]) == 5
    assert transport.sendmsg([memoryview(b"hello")[1:3]]) == 2
    assert await blocking(read_exactly, peer, 7) == b"helloel"


async def test_several_chunks_arrive_in_order(pair: tuple[Transport, socket.socket]) -> None:
    transport, peer = pair
    chunks: list[bytes | memoryview] = [b"%d," % i for i in range(64)]
    chunks[1] = memoryview(b"<view>")[1:-1]
    expected = b"".join(chunks)
    assert transport.sendmsg(chunks) == len(expected)
    assert await blocking(read_exactly, peer, len(expected)) == expected


@pytest.mark.parametrize("count", [1, 3])
async def test_send_takes_nothing_where_there_is_no_room(unix: tuple[Transport, socket.socket], count: int) -> None:
    transport, _ = unix
    fill(transport)
    assert transport.sendmsg([bytes(1 << 16)] * count) == 0


@pytest.mark.parametrize("count", [1, 3])
async def test_send_takes_the_first_of_what_it_is_given(tcp: tuple[Transport, socket.socket], count: int) -> None:
    transport, peer = tcp
    chunk = bytes(range(256)) * (1 << 15)
    taken = transport.sendmsg([chunk] * count)
    assert 0 < taken < len(chunk) * count
    transport.send_eof()
    assert await blocking(read_all, peer) == (chunk * count)[:taken]


@pytest.mark.parametrize("count", [1, 2])
async def test_send_raises_when_the_connection_is_lost(tcp: tuple[Transport, socket.socket], count: int) -> None:
    transport, peer = tcp
    reset(peer)
    await transport.watched.wait_readable()
    with pytest.raises(ConnectionError):
        transport.sendmsg([b"hello"] * count)


# Waiting


async def test_waiting_until_something_arrives(pair: tuple[Transport, socket.socket]) -> None:
    transport, peer = pair
    received: list[bytes | None] = []

    async def wait() -> None:
        await transport.watched.wait_readable()
        received.append(transport.receive(10))

    with anyio.fail_after(PEER_TIMEOUT):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await all_blocked()
            assert received == []
            peer.sendall(b"hello")
    assert received == [b"hello"]


async def test_waiting_until_there_is_room(unix: tuple[Transport, socket.socket]) -> None:
    transport, peer = unix
    sent = fill(transport)
    room: list[int] = []

    async def wait() -> None:
        await transport.watched.wait_writable()
        room.append(transport.sendmsg([b"more"]))

    with anyio.fail_after(PEER_TIMEOUT):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await all_blocked()
            assert room == []
            await blocking(read_exactly, peer, sent)
    assert room == [4]


# EOF


async def test_the_peer_receives_the_end_and_may_send_on(pair: tuple[Transport, socket.socket]) -> None:
    transport, peer = pair
    transport.sendmsg([b"last"])
    transport.send_eof()
    assert await blocking(read_all, peer) == b"last"
    peer.sendall(b"answer")
    assert await receive(transport) == b"answer"
    transport.send_eof()  # calling it twice is harmless


async def test_telling_the_end_leaves_a_lost_connection_to_the_next_read(tcp: tuple[Transport, socket.socket]) -> None:
    transport, peer = tcp
    reset(peer)
    await transport.watched.wait_readable()
    transport.send_eof()
    with pytest.raises(ConnectionResetError):
        transport.receive(10)


# Closing; without the event loops, as a socket that never ran is closed too.


def test_closing_what_nobody_waited_for_needs_no_event_loop() -> None:
    with unix_pair() as (ours, peer):
        transport = Transport(ours)
        assert not transport.closed
        assert transport.socket is ours
        transport.close()
        assert transport.closed
        assert ours.fileno() == -1
        assert peer.recv(1) == b""


WAITS = ["wait_readable", "wait_writable"]


@pytest.mark.parametrize("methods", [WAITS[:1], WAITS[1:], WAITS], ids="+".join)
async def test_closing_wakes_who_waits(unix: tuple[Transport, socket.socket], methods: list[str]) -> None:
    transport, _ = unix
    fill(transport)
    woken = []

    async def wait(method: str) -> None:
        with pytest.raises(anyio.ClosedResourceError):
            await getattr(transport.watched, method)()
        woken.append(method)

    with anyio.fail_after(PEER_TIMEOUT):
        async with anyio.create_task_group() as tasks:
            for method in methods:
                tasks.start_soon(wait, method)
            await all_blocked()
            transport.close()
    assert sorted(woken) == methods
    assert transport.socket.fileno() == -1


async def test_closing_wakes_who_waits_over_tcp(tcp: tuple[Transport, socket.socket]) -> None:
    transport, _ = tcp
    woken = anyio.Event()

    async def wait() -> None:
        with pytest.raises(anyio.ClosedResourceError):
            await transport.watched.wait_readable()
        woken.set()

    with anyio.fail_after(PEER_TIMEOUT):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await all_blocked()
            transport.close()
    assert woken.is_set()


async def test_closing_after_waiting(pair: tuple[Transport, socket.socket]) -> None:
    transport, peer = pair
    await transport.watched.wait_writable()
    transport.close()
    assert transport.closed
    assert await blocking(peer.recv, 1) == b""


async def test_closing_twice_touches_no_descriptor_that_is_used_again(
    pair: tuple[Transport, socket.socket],
) -> None:
    transport, _ = pair
    await transport.watched.wait_writable()
    transport.close()
    with unix_pair() as (other, peer):
        transport.close()
        other.sendall(b"still there")
        assert peer.recv(20) == b"still there"


async def test_a_cancelled_wait_leaves_the_transport_usable(pair: tuple[Transport, socket.socket]) -> None:
    transport, peer = pair
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(transport.watched.wait_readable)
        await all_blocked()
        tasks.cancel_scope.cancel()
    peer.sendall(b"hello")
    assert await receive(transport) == b"hello"
