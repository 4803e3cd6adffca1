"""The TLS engine alone, over a socketpair or a relay that dribbles, with a blocking peer."""

from __future__ import annotations

import random
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import pytest

from mozsocket._tls import BATCH_SIZE, TLSTransport
from mozsocket._transport import Transport, configure

from .certificates import client_context, server_context
from .peers import PEER_TIMEOUT, all_blocked, blocking, exchange, read_all, read_exactly, secure

pytestmark = pytest.mark.anyio

MUCH = random.Random(1).randbytes(3_000_000)
SOME = MUCH[:50_000]  # what a socketpair holds


class Engine:
    """One, over a transport, and what it has called back.

    :ivar established: how often it has said that the handshake is done
    :ivar woken: how often it has asked for the writer
    :ivar plaintext_sent: how often it has said that what goes before TLS is sent
    """

    def __init__(self, sock: socket.socket, role: str, *, plaintext: int = 0, standard_compatible: bool = True) -> None:
        self.established = self.woken = self.plaintext_sent = 0
        configure(sock)
        self.tls = TLSTransport(
            Transport(sock),
            client_context() if role == "client" else server_context(),
            server_side=role == "server",
            server_hostname="localhost",
            standard_compatible=standard_compatible,
            plaintext=plaintext,
            on_plaintext_sent=self._note_plaintext_sent,
            wake_writer=self._wake,
            on_established=self._establish,
        )

    def _note_plaintext_sent(self) -> None:
        self.plaintext_sent += 1

    def _establish(self) -> None:
        self.established += 1

    def _wake(self) -> None:
        self.woken += 1

    async def send(self, data: bytes) -> None:
        sent = 0
        while sent < len(data):
            chunk = memoryview(data)[sent:][: self.tls.send_limit]
            while not (count := self.tls.send([chunk])):
                await self.tls.wait_writable()
            sent += count

    async def end(self) -> None:
        while not self.tls.send_eof():
            await self.tls.wait_writable()

    async def receive(self) -> bytes:
        while (data := self.tls.receive(1 << 16)) is None:
            await self.tls.wait_readable()
        return data

    async def receive_exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            part = await self.receive()
            assert part
            data += part
        return bytes(data)


@contextmanager
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, peer = socket.socketpair()
    with ours, peer:
        peer.settimeout(PEER_TIMEOUT)
        yield ours, peer


@contextmanager
def dribbling() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The two ends of a relay that passes on what it is sent in pieces of any size, often of one byte."""
    with pair() as (ours, near), pair() as (far, peer):

        def relay(source: socket.socket, target: socket.socket, sizes: random.Random) -> None:
            while data := source.recv(4096):
                while data:
                    size = sizes.choice((1, 2, 4, 5, 6, 100, 2000))
                    target.sendall(data[:size])
                    data = data[size:]
            target.shutdown(socket.SHUT_WR)

        ways = [(near, far), (far, near)]
        threads = [threading.Thread(target=relay, args=(*way, random.Random(7))) for way in ways]
        for thread in threads:
            thread.start()
        yield ours, peer
        ours.close()
        peer.close()
        for thread in threads:
            thread.join()


def their_context(role: str) -> ssl.SSLContext:
    return server_context() if role == "client" else client_context()


async def met(engine: Engine, peer: socket.socket, role: str) -> ssl.SSLSocket:
    """The peer's socket, after the handshake of both."""
    secured: list[ssl.SSLSocket] = []

    async def shake() -> None:
        secured.append(await secure(peer, their_context(role), server_side=role == "client"))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(shake)
        await engine.tls.handshake()
    secured[0].settimeout(PEER_TIMEOUT)
    return secured[0]


async def test_much_both_ways_at_once_through_a_relay_that_dribbles(role: str) -> None:
    with dribbling() as (ours, peer):
        engine = Engine(ours, role)
        received = bytearray()

        async def receive() -> None:
            while data := await engine.receive():
                received.extend(data)
            await engine.end()

        def talk() -> bytes:
            data = exchange(theirs, MUCH, len(MUCH))
            theirs.unwrap()  # which waits for our end
            return data

        with await met(engine, peer, role) as theirs:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(receive)
                tasks.start_soon(engine.send, MUCH)
                assert await blocking(talk) == MUCH
        engine.tls.close()
    assert received == MUCH
    assert engine.established == 1


async def test_all_or_nothing_is_taken_and_nothing_is_encrypted_twice(role: str) -> None:
    """However often it is offered."""
    chunks: list[bytes | memoryview] = [b"first", memoryview(MUCH)[: BATCH_SIZE - 5]]
    with pair() as (ours, peer):
        engine = Engine(ours, role)
        taken: list[int] = []

        async def send_four_times() -> None:
            while len(taken) < 4:
                if count := engine.tls.send(chunks):
                    taken.append(count)
                else:
                    await engine.tls.wait_writable()

        with await met(engine, peer, role) as theirs:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(send_four_times)
                assert await blocking(read_exactly, theirs, BATCH_SIZE * 4) == b"".join(chunks) * 4
        engine.tls.close()
    assert taken == [BATCH_SIZE] * 4


async def test_what_goes_before_tls_is_not_encrypted(role: str) -> None:
    with pair() as (ours, peer):
        engine = Engine(ours, role, plaintext=5)
        assert engine.tls.send_limit == 5
        assert not engine.tls.flush()
        assert engine.tls.send([b"pla"]) == 3
        assert engine.tls.send_limit == 2
        assert (engine.tls.plaintext, engine.plaintext_sent) == (2, 0)
        assert engine.tls.send([b"in"]) == 2
        assert (engine.tls.plaintext, engine.plaintext_sent) == (0, 1)
        assert await blocking(read_exactly, peer, 5) == b"plain"
        assert engine.tls.send_limit == BATCH_SIZE
        assert engine.tls.send([b"secret"]) == 0
        with await met(engine, peer, role) as theirs:
            await engine.send(b"secret")
            assert await blocking(read_exactly, theirs, 6) == b"secret"
        engine.tls.close()


async def test_what_was_read_before_is_fed_to_it() -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pair() as (ours, peer):
        engine = Engine(ours, "server")
        theirs = client_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
        with pytest.raises(ssl.SSLWantReadError):
            theirs.do_handshake()
        hello = outgoing.read()
        engine.tls.feed(hello[:10])
        engine.tls.feed(hello[10:])
        assert engine.tls.receive(100) is None
        incoming.write(peer.recv(1 << 16))
        theirs.do_handshake()
        theirs.write(b"early")
        engine.tls.feed(outgoing.read())
        engine.tls.feed(b"")
        assert await engine.receive() == b"early"
        with pytest.raises(ssl.SSLEOFError):
            await engine.receive()
        engine.tls.close()


async def test_an_error_is_raised_once_and_then_all_is_discarded(role: str) -> None:
    with pair() as (ours, peer):
        engine = Engine(ours, role)
        with await met(engine, peer, role) as theirs:
            theirs.sendall(b"good")
            socket.socket.send(theirs, b"\x17\x03\x03\x00\x20" + bytes(32))
            assert await engine.receive_exactly(4) == b"good"
            with pytest.raises(ssl.SSLError, match=r"BAD_RECORD_MAC|RECORD_LAYER_FAILURE"):
                await engine.receive()
            socket.socket.send(theirs, b"anything")
            with anyio.move_on_after(0.05):
                await engine.receive()
            socket.socket.shutdown(theirs, socket.SHUT_WR)
            assert await engine.receive() == b""
            await engine.end()
            with pytest.raises(ssl.SSLError, match="ALERT_BAD_RECORD_MAC"):
                await blocking(read_all, theirs)
        engine.tls.close()


@pytest.mark.parametrize("standard_compatible", [True, False])
async def test_an_end_without_close_notify(standard_compatible: bool, role: str) -> None:
    with pair() as (ours, peer):
        engine = Engine(ours, role, standard_compatible=standard_compatible)
        with await met(engine, peer, role) as theirs:
            theirs.sendall(SOME)
            theirs.shutdown(socket.SHUT_WR)
            assert await engine.receive_exactly(len(SOME)) == SOME
            if standard_compatible:
                with pytest.raises(ssl.SSLEOFError):
                    await engine.receive()
            else:
                assert await engine.receive() == b""
        engine.tls.close()


async def test_a_writer_waits_for_the_peer_in_the_handshake(role: str) -> None:
    with pair() as (ours, peer):
        engine = Engine(ours, role)
        assert engine.tls.send([b"secret"]) == 0
        went_on = anyio.Event()

        async def write() -> None:
            await engine.send(b"secret")
            went_on.set()

        async def read() -> None:
            while engine.tls.receive(100) is None and not went_on.is_set():
                await engine.tls.wait_readable()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write)
            tasks.start_soon(read)
            await all_blocked()
            assert not went_on.is_set()
            with await secure(peer, their_context(role), server_side=role == "client") as theirs:
                assert await blocking(read_exactly, theirs, 6) == b"secret"
                await went_on.wait()
                theirs.sendall(b"x")
        engine.tls.close()


async def test_closing_wakes_a_writer_that_waits_for_the_peer(role: str) -> None:
    with pair() as (ours, _):
        engine = Engine(ours, role)
        engine.tls.flush()

        async def wait() -> None:
            assert engine.tls.send([b"secret"]) == 0
            with pytest.raises(anyio.ClosedResourceError):
                await engine.tls.wait_writable()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await all_blocked()
            engine.tls.close()
    assert engine.tls.closed
