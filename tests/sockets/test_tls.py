"""TLS over a transport alone: over a socketpair or a relay that splits data, with a blocking peer."""

from __future__ import annotations

import random
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import SocketAttribute
from anyio.streams.tls import TLSAttribute

from mozsocket._tls import BATCH_SIZE, TLSTransport
from mozsocket._transport import Transport, configure

from ..certificates import client_context, server_context
from ..peers import PEER_TIMEOUT, all_blocked, blocking, exchange, listening, read_all, read_exactly, reset, secure
from ..records import RecordPeer, recorded

pytestmark = pytest.mark.anyio

MUCH = random.Random(1).randbytes(3_000_000)
CHANGE_CIPHER_SPEC = b"\x14\x03\x03\x00\x01\x01"
SOME = MUCH[:50_000]  # fits into a socketpair's buffer


class Driven:
    """A TLS transport, and what is needed to wait for it."""

    def __init__(self, sock: socket.socket, role: str, *, plaintext: int = 0, standard_compatible: bool = True) -> None:
        configure(sock)
        self.tls = TLSTransport(
            Transport(sock),
            client_context() if role == "client" else server_context(),
            server_side=role == "server",
            server_hostname="localhost",
            standard_compatible=standard_compatible,
            plaintext=plaintext,
        )
        self._received = anyio.Event()

    def look(self) -> bytes | None:
        """Receive without waiting, and wake a task that waits for more data from the peer."""
        try:
            return self.tls.receive(1 << 16)
        finally:
            self._received.set()
            self._received = anyio.Event()

    async def until_receivable(self) -> None:
        if self.tls.choked:
            await self.flush()
        elif self.tls.pending:
            await anyio.lowlevel.checkpoint()
        else:
            await self.tls.watched.wait_readable()

    async def until_sendable(self) -> None:
        if self.tls.blocked:
            await self.tls.watched.wait_writable()
        else:
            await self._received.wait()

    async def do_handshake(self) -> None:
        await self.flush()
        while not self.tls.established:
            await self.until_receivable()
            assert self.look() is None
            await self.flush()

    async def flush(self) -> None:
        while not self.tls.flush():
            await self.until_sendable()

    async def send(self, data: bytes) -> None:
        sent = 0
        while sent < len(data):
            chunk = memoryview(data)[sent:][: self.tls.send_limit]
            while not (count := self.tls.sendmsg([chunk])):
                await self.until_sendable()
            sent += count

    async def end(self) -> None:
        while not self.tls.send_eof():
            await self.until_sendable()

    async def receive(self) -> bytes:
        while (data := self.look()) is None:
            await self.until_receivable()
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
    """The two ends of a relay that forwards data in pieces of any size, often of one byte."""
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


def in_memory(role: str) -> tuple[ssl.SSLObject, ssl.MemoryBIO, ssl.MemoryBIO]:
    """A peer's TLS object, its incoming buffer and its outgoing buffer."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = client_context() if role == "client" else server_context()
    name = "localhost" if role == "client" else None
    tls = context.wrap_bio(incoming, outgoing, server_side=role == "server", server_hostname=name)
    return tls, incoming, outgoing


async def met(engine: Driven, peer: socket.socket, role: str) -> ssl.SSLSocket:
    """Do the handshake of both sides, and return the peer's socket."""
    secured: list[ssl.SSLSocket] = []

    async def shake() -> None:
        secured.append(await secure(peer, their_context(role), server_side=role == "client"))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(shake)
        await engine.do_handshake()
    secured[0].settimeout(PEER_TIMEOUT)
    return secured[0]


async def test_much_both_ways_at_once_through_a_relay_that_dribbles(role: str) -> None:
    with dribbling() as (ours, peer):
        engine = Driven(ours, role)
        received = bytearray()

        async def receive() -> None:
            while data := await engine.receive():
                received.extend(data)
            await engine.end()

        def talk() -> bytes:
            data = exchange(theirs, MUCH, len(MUCH))
            theirs.unwrap()  # it waits for our end
            return data

        with await met(engine, peer, role) as theirs:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(receive)
                tasks.start_soon(engine.send, MUCH)
                assert await blocking(talk) == MUCH
        engine.tls.close()
    assert received == MUCH
    assert engine.tls.established


async def test_all_or_nothing_is_taken_and_nothing_is_encrypted_twice(role: str) -> None:
    """This holds however often the data is offered."""
    chunks: list[bytes | memoryview] = [b"first", memoryview(MUCH)[: BATCH_SIZE - 5]]
    with pair() as (ours, peer):
        engine = Driven(ours, role)
        taken: list[int] = []

        async def send_four_times() -> None:
            while len(taken) < 4:
                if count := engine.tls.sendmsg(chunks):
                    taken.append(count)
                else:
                    await engine.until_sendable()

        with await met(engine, peer, role) as theirs:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(send_four_times)
                assert await blocking(read_exactly, theirs, BATCH_SIZE * 4) == b"".join(chunks) * 4
        engine.tls.close()
    assert taken == [BATCH_SIZE] * 4


async def test_what_goes_before_tls_is_not_encrypted(role: str) -> None:
    with pair() as (ours, peer):
        engine = Driven(ours, role, plaintext=5)
        assert engine.tls.send_limit == 5
        assert not engine.tls.flush()
        assert engine.tls.sendmsg([b"pla"]) == 3
        assert engine.tls.send_limit == 2
        assert engine.tls.plaintext == 2
        assert engine.tls.blocked
        assert engine.tls.sendmsg([b"in"]) == 2
        assert engine.tls.plaintext == 0
        assert not engine.tls.blocked
        assert await blocking(read_exactly, peer, 5) == b"plain"
        assert engine.tls.send_limit == BATCH_SIZE
        assert engine.tls.sendmsg([b"secret"]) == 0
        with await met(engine, peer, role) as theirs:
            await engine.send(b"secret")
            assert await blocking(read_exactly, theirs, 6) == b"secret"
        engine.tls.close()


async def test_what_was_read_before_is_fed_to_it() -> None:
    with pair() as (ours, peer):
        engine = Driven(ours, "server")
        theirs, incoming, outgoing = in_memory("client")
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
        engine = Driven(ours, role)
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
        engine = Driven(ours, role, standard_compatible=standard_compatible)
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
        engine = Driven(ours, role)
        assert engine.tls.sendmsg([b"secret"]) == 0
        went_on = anyio.Event()

        async def write() -> None:
            await engine.send(b"secret")
            went_on.set()

        async def read() -> None:
            while engine.look() is None and not went_on.is_set():
                await engine.until_receivable()

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


async def test_it_begins_the_handshake_when_it_is_flushed() -> None:
    with pair() as (ours, peer):
        tls = Driven(ours, "client").tls
        assert tls.receive(100) is None
        assert (tls.pending, tls.choked, tls.blocked) == (False, False, False)
        assert tls.flush()
        assert peer.recv(1) == b"\x16"
        assert (tls.pending, tls.choked, tls.blocked) == (False, False, False)
        tls.close()


async def test_a_step_of_the_handshake_gives_no_data_though_some_is_behind_it() -> None:
    with pair() as (ours, peer):
        engine = Driven(ours, "server")
        theirs, incoming, outgoing = in_memory("client")
        with pytest.raises(ssl.SSLWantReadError):
            theirs.do_handshake()
        peer.sendall(outgoing.read())
        await engine.until_receivable()
        assert engine.look() is None
        incoming.write(peer.recv(1 << 16))
        theirs.do_handshake()
        theirs.write(b"early")
        peer.sendall(outgoing.read())
        await engine.until_receivable()
        assert engine.look() is None
        assert engine.tls.established
        assert engine.tls.pending
        assert engine.look() == b"early"
        assert not engine.tls.pending
        engine.tls.close()


async def test_answers_that_are_not_taken_choke_it(role: str) -> None:
    """Reading stops until the answers are sent."""
    with pair() as (ours, sock):
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 12)
        engine = Driven(ours, role)
        peers: list[RecordPeer] = []

        async def shake() -> None:
            peers.append(await recorded(sock, their_context(role), server_side=role == "client"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(shake)
            await engine.do_handshake()
        (peer,) = peers
        asked = b"".join(peer.key_update() + peer.record(b"x") for _ in range(6000))

        async def ask() -> None:
            await blocking(sock.sendall, asked)

        received = 0
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            while not engine.tls.choked:
                received += len(await engine.receive())
            assert received < 6000
            assert engine.tls.blocked
            assert engine.tls.receive(100) is None
            tasks.start_soon(blocking, peer.read_all)
            await engine.until_receivable()
            assert not engine.tls.choked
            await engine.receive_exactly(6000 - received)
            await engine.end()
        engine.tls.close()


async def test_an_answer_that_cannot_be_handed_over_is_no_matter_of_who_receives() -> None:
    with listening() as listener, socket.create_connection(listener.getsockname()) as ours:
        peer, _ = listener.accept()
        engine = Driven(ours, "client")
        reset(peer)
        await engine.tls.watched.wait_readable()
        engine.tls.feed(b"no TLS")
        with pytest.raises(ssl.SSLError):  # it is answered by an alert
            engine.look()
        assert engine.tls.blocked
        with pytest.raises(ConnectionError):
            engine.tls.flush()
        engine.tls.close()


def test_closing_closes_what_is_below() -> None:
    with pair() as (ours, peer):
        tls = Driven(ours, "client").tls
        assert not tls.closed
        tls.close()
        assert tls.closed
        assert tls.watched.closed
        assert peer.recv(1) == b""


def test_closing_need_not_notify_who_has_the_socket_too() -> None:
    with pair() as (ours, peer), ours.dup():
        tls = Driven(ours, "client").tls
        tls.close(tell=False)
        peer.setblocking(False)
        with pytest.raises(BlockingIOError):
            peer.recv(1)


async def test_the_end_waits_for_room_and_nothing_comes_behind_it(role: str) -> None:
    with pair() as (ours, peer):
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 12)
        engine = Driven(ours, role)
        with await met(engine, peer, role) as theirs:
            assert engine.tls.sendmsg([SOME]) == 0
            assert not engine.tls.send_eof()
            assert not engine.tls.send_eof()
            assert engine.tls.blocked
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(engine.end)
                assert await blocking(read_all, theirs) == SOME
            assert engine.tls.flush()
            assert engine.tls.send_eof()
            assert not engine.tls.blocked
        engine.tls.close()


async def test_the_next_read_reports_that_a_connection_was_lost() -> None:
    with listening() as listener, socket.create_connection(listener.getsockname()) as ours:
        peer, _ = listener.accept()
        engine = Driven(ours, "client")
        assert engine.tls.flush()
        reset(peer)
        await engine.tls.watched.wait_readable()
        assert engine.tls.send_eof()
        with pytest.raises(ConnectionResetError):
            engine.tls.receive(100)
        engine.tls.close()


async def test_its_attributes(role: str) -> None:
    with pair() as (ours, peer):
        engine = Driven(ours, role)
        assert TLSAttribute.tls_version not in engine.tls.attributes
        with await met(engine, peer, role) as theirs:
            values = {key: get() for key, get in engine.tls.attributes.items()}
            assert values[TLSAttribute.cipher] == theirs.cipher()
            assert values[TLSAttribute.tls_version] == theirs.version()
            assert values[TLSAttribute.server_side] is (role == "server")
            assert values[TLSAttribute.standard_compatible]
            assert (values[TLSAttribute.shared_ciphers] is None) is (role == "client")
            assert values[SocketAttribute.raw_socket] is ours
            assert bool(engine.tls.shown_certificates()) is (role == "client")
        engine.tls.close()


async def test_the_last_step_of_a_handshake_gives_no_data() -> None:
    """The handlers of that step may suspend the socket, or make a stream of it, before any data is delivered."""
    with pair() as (ours, peer):
        driven = Driven(ours, "server")
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = client_context(version=ssl.TLSVersion.TLSv1_3)
        client = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
        with pytest.raises(ssl.SSLWantReadError):
            client.do_handshake()
        peer.sendall(outgoing.read())
        assert driven.look() is None
        incoming.write(peer.recv(1 << 16))
        client.do_handshake()
        peer.sendall(CHANGE_CIPHER_SPEC * 31 + outgoing.read())  # more records than are taken at once
        assert driven.look() is None
        assert not driven.tls.established
        client.write(b"early data")
        peer.sendall(outgoing.read())
        assert driven.look() is None
        assert driven.tls.established
        assert driven.look() == b"early data"
