"""Peers that send hand-made TLS records: floods of records without data, and faults in the middle of a stream."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import ByteStream, SocketAttribute

from mozsocket import MozTCPSocket, TCPSocket, TCPSocketError
from mozsocket.testing import EventRecorder

from ..certificates import VERSIONS, client_context, server_context
from ..peers import (
    PEER_TIMEOUT,
    Accepting,
    accept,
    all_blocked,
    blocking,
    dial,
    listening,
    port_of,
    read_all,
    reset,
    send_all,
)
from ..records import ALERT, CHANGE_CIPHER_SPEC, DATA, HANDSHAKE, RecordPeer, alert, plain, recorded

pytestmark = pytest.mark.anyio

TLS12, TLS13 = VERSIONS.values()


@asynccontextmanager
async def met(
    role: str, version: ssl.TLSVersion = TLS13, **options: Any
) -> AsyncIterator[tuple[TCPSocket, EventRecorder, RecordPeer]]:
    """Our socket, its recorder, and such a peer, in TLS."""
    options["useSecureTransport"] = True
    with listening() as listener:
        async with MozTCPSocket() as tcp:
            if role == "client":
                options |= {"ssl_context": client_context(), "server_hostname": "localhost"}
                ours = tcp.open("127.0.0.1", port_of(listener), **options)
                recorder = EventRecorder(ours)
                with await accept(listener) as sock:
                    peer = await recorded(sock, server_context(version=version), server_side=True)
                    await ours.opened()
                    yield ours, recorder, peer
            else:
                accepting = Accepting(tcp.listen(0, host="127.0.0.1", ssl_context=server_context(), **options))
                with await dial(accepting.server.localPort) as sock:
                    peer = await recorded(sock, client_context(version=version), server_side=False)
                    ours, recorder = await accepting.first()
                    accepting.server.close()
                    yield ours, recorder, peer


async def until_received(recorder: EventRecorder, size: int) -> int:
    """Wait until this much data was received.

    :return: how many turns of the event loop it took
    """
    turns = 0
    with anyio.fail_after(PEER_TIMEOUT):
        while len(recorder.data) < size:
            await anyio.lowlevel.checkpoint()
            turns += 1
    return turns


# Records that need an answer, from a peer that does not read


def key_update(peer: RecordPeer) -> bytes:
    return peer.key_update()


def refused_renegotiation(peer: RecordPeer) -> bytes:
    """A ClientHello. Only its type is examined."""
    return peer.record(b"\1\0\0\x20" + bytes(32), HANDSHAKE)


ANSWERED = {
    "KeyUpdate to a client": ("client", TLS13, key_update),
    "KeyUpdate to a server": ("server", TLS13, key_update),
    "renegotiation": ("server", TLS12, refused_renegotiation),
}
answered = pytest.mark.parametrize(("role", "version", "make"), ANSWERED.values(), ids=ANSWERED.keys())
Make = Callable[[RecordPeer], bytes]


@asynccontextmanager
async def close_by(
    role: str, version: ssl.TLSVersion, **options: Any
) -> AsyncIterator[tuple[TCPSocket, EventRecorder, RecordPeer]]:
    """Like :func:`met`, over a socketpair with small buffers and without TCP's timers."""
    pair = socket.socketpair()
    for sock in pair:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 15)
    with pair[1]:
        pair[1].settimeout(PEER_TIMEOUT)
        context = client_context() if role == "client" else server_context()
        name = "localhost" if role == "client" else None
        ours = TCPSocket.from_socket(
            pair[0], useSecureTransport=True, ssl_context=context, server_hostname=name, **options
        )
        recorder = EventRecorder(ours)
        theirs = server_context(version=version) if role == "client" else client_context(version=version)
        async with ours:
            peer = await recorded(pair[1], theirs, server_side=role == "client")
            await ours.opened()
            yield ours, recorder, peer


async def send_until_held(sock: socket.socket, data: bytes) -> bytes:
    """Send until no more is accepted.

    :return: the remaining data
    """
    sock.setblocking(False)
    for _ in range(10):
        with suppress(BlockingIOError):
            while data:
                data = data[sock.send(data) :]
                await anyio.lowlevel.checkpoint()
        await all_blocked()
    sock.settimeout(PEER_TIMEOUT)
    return data


@answered
async def test_who_does_not_read_the_answers_is_held(role: str, version: ssl.TLSVersion, make: Make) -> None:
    """Receiving stops, and continues when the peer reads. Without data in between, such records end a connection."""
    async with close_by(role, version) as (ours, recorder, peer):
        rest = await send_until_held(peer.sock, b"".join(make(peer) + peer.record(b"x") for _ in range(8000)))
        assert rest
        # 64 KiB of answers belong to about 2,500 records; the others are in the operating system.
        assert len(recorder.data) < 6000
        assert ours.readyState == "open"
        ours.send(b"hello")

        async def send_rest() -> None:
            await send_all(peer.sock, rest)
            await until_received(recorder, 8000)
            ours.close()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send_rest)
            seen = await blocking(read_all, peer.sock)
        peer.sock.close()
        await recorder.first("close")
    assert recorder.types.count("error") == 0
    if version is TLS13:  # in TLS 1.2 OpenSSL treats a refusal as a failure
        assert peer.open(seen) == b"hello"


@answered
async def test_a_stream_of_who_does_not_read_the_answers(role: str, version: ssl.TLSVersion, make: Make) -> None:
    async with close_by(role, version) as (ours, _, peer):
        stream = ours.stream()
        received = bytearray()

        async def receive() -> None:
            while len(received) < 8000:
                received.extend(await stream.receive())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(receive)
            rest = await send_until_held(peer.sock, b"".join(make(peer) + peer.record(b"x") for _ in range(8000)))
            assert rest
            assert len(received) < 6000
            tasks.start_soon(blocking, drain, peer.sock)
            await send_all(peer.sock, rest)
            while len(received) < 8000:
                await anyio.lowlevel.checkpoint()
            await stream.aclose()
            peer.sock.shutdown(socket.SHUT_WR)


def drain(sock: socket.socket) -> None:
    with suppress(OSError):
        read_all(sock)


@answered
async def test_closing_does_not_wait_for_who_does_not_read_the_answers(
    role: str, version: ssl.TLSVersion, make: Make
) -> None:
    async with close_by(role, version, linger=0.1) as (ours, recorder, peer):
        assert await send_until_held(peer.sock, b"".join(make(peer) + peer.record(b"x") for _ in range(8000)))
        ours.close()
        await recorder.first("close")
    assert recorder.types[-1] == "close"
    assert "error" not in recorder.types


@answered
async def test_a_reset_by_who_does_not_read_the_answers(role: str, version: ssl.TLSVersion, make: Make) -> None:
    async with close_by(role, version) as (_, recorder, peer):
        assert await send_until_held(peer.sock, b"".join(make(peer) + peer.record(b"x") for _ in range(8000)))
        reset(peer.sock)
        error = await recorder.first("error")
        await recorder.first("close")
    assert error.name == "NetworkInterruptError"


@answered
async def test_what_cannot_be_answered_after_our_end_holds_nothing_up(
    role: str, version: ssl.TLSVersion, make: Make
) -> None:
    async with met(role, version) as (ours, recorder, peer):
        ours.send_eof()
        assert await blocking(peer.read_all) == b""
        await send_all(peer.sock, b"".join(make(peer) + peer.record(b"x") for _ in range(4000)))
        await until_received(recorder, 4000)
        await send_all(peer.sock, peer.record(alert(0, level=1), ALERT))
        peer.sock.close()
        await recorder.first("close")
    assert "error" not in recorder.types


# Successive records without data


@pytest.mark.usefixtures("impatient")
@answered
@pytest.mark.parametrize("reading", [True, False], ids=["reading", "not reading"])
async def test_who_sends_no_data_for_long_is_turned_out(
    role: str, version: ssl.TLSVersion, make: Make, reading: bool
) -> None:
    async with met(role, version) as (ours, recorder, peer):
        await send_all(peer.sock, peer.record(b"before") + b"".join(make(peer) for _ in range(1500)))
        if reading:
            await blocking(drain, peer.sock)
        error = (await recorder.first("error")).error
        await recorder.first("close")
        with pytest.raises(TCPSocketError):
            await ours.closed()
    assert recorder.data == b"before"
    assert (error.name, error.message, error.errorCode) == ("SecurityError", "SecurityProtocol", 0)
    assert "records without data" in error.detail


@answered
async def test_some_records_without_data_are_none_too_many(role: str, version: ssl.TLSVersion, make: Make) -> None:
    async with met(role, version) as (_, recorder, peer):
        for _ in range(3):
            await send_all(peer.sock, b"".join(make(peer) for _ in range(900)) + peer.record(b"data"))
        await send_all(peer.sock, b"".join(make(peer) + peer.record(b"more" * 1000) for _ in range(300)))
        await until_received(recorder, 12 + 300 * 4000)
        await send_all(peer.sock, peer.record(alert(0, level=1), ALERT))
        peer.sock.shutdown(socket.SHUT_WR)
        await blocking(drain, peer.sock)
        await recorder.first("close")
    assert recorder.data == b"data" * 3 + b"more" * 300_000
    assert "error" not in recorder.types


# Sharing the event loop: the number of its turns while everything has arrived already


def updates(peer: RecordPeer) -> bytes:
    return b"".join(b"".join(peer.key_update() for _ in range(800)) + peer.record(b"x") for _ in range(5))


def renegotiations(peer: RecordPeer) -> bytes:
    return b"".join(b"".join(refused_renegotiation(peer) for _ in range(400)) + peer.record(b"x") for _ in range(5))


def bytes_alone(peer: RecordPeer) -> bytes:
    return b"".join(peer.record(b"x") for _ in range(4000))


def updates_between(peer: RecordPeer) -> bytes:
    return b"".join(peer.key_update() + peer.record(b"x") for _ in range(2000))


FLOODS = {
    "KeyUpdates to a client": ("client", TLS13, updates, 5, 20),
    "KeyUpdates to a server": ("server", TLS13, updates, 5, 20),
    "KeyUpdates between data": ("server", TLS13, updates_between, 2000, 20),
    "renegotiations": ("server", TLS12, renegotiations, 5, 20),
    "a byte in each, TLS 1.2": ("server", TLS12, bytes_alone, 4000, 20),
    "a byte in each, TLS 1.3": ("client", TLS13, bytes_alone, 4000, 20),
}


@pytest.mark.parametrize(("role", "version", "make", "size", "turns"), FLOODS.values(), ids=FLOODS.keys())
async def test_a_flood_is_taken_a_little_at_a_time(
    role: str, version: ssl.TLSVersion, make: Make, size: int, turns: int
) -> None:
    async with met(role, version) as (ours, recorder, peer):
        ours.extra(SocketAttribute.raw_socket).setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 18)
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)
        peer.sock.settimeout(1)
        peer.sock.sendall(make(peer))  # all is sent before the event loop continues
        assert await until_received(recorder, size) >= turns
        assert recorder.data == b"x" * size
        ours.closeImmediately()


async def test_records_of_many_messages_are_taken_one_at_a_time() -> None:
    """This starts once such a record was seen."""
    tickets = (b"\4\0\0\x0e" + bytes(8) + b"\0\0\1x\0\0") * 900
    async with met("client") as (ours, recorder, peer):
        peer.sock.settimeout(1)
        peer.sock.sendall(peer.record(tickets, HANDSHAKE))
        await all_blocked()
        peer.sock.sendall(b"".join(peer.record(tickets, HANDSHAKE) for _ in range(7)) + peer.record(b"x"))
        assert await until_received(recorder, 1) >= 6
        ours.closeImmediately()


@pytest.mark.parametrize("ends", [False, True], ids=["records", "end"])
async def test_records_that_are_read_while_more_listen(role: str, version: ssl.TLSVersion, ends: bool) -> None:
    """A listener is added between two messages, and is gone behind the first of many records that come at once."""
    async with met(role, version) as (ours, recorder, peer):
        peer.sock.sendall(peer.record(b"x"))
        await until_received(recorder, 1)
        ours.addEventListener("data", lambda event: None, once=True)
        count = 1 if ends else 2000
        records = b"".join(peer.record(b"x") for _ in range(count))
        await send_all(peer.sock, records + (peer.record(alert(0, level=1), ALERT) if ends else b""))
        await until_received(recorder, 1 + count)
        if ends:
            await recorder.first("close")
        ours.closeImmediately()


@pytest.mark.parametrize("ends", [False, True], ids=["records", "end"])
async def test_records_that_arrive_while_a_handler_runs(role: str, version: ssl.TLSVersion, ends: bool) -> None:
    """They are more than is queued for it, so that reading stops. It goes on, though the system has nothing more."""
    async with met(role, version) as (ours, recorder, peer):
        released = anyio.Event()

        async def wait(event: Any) -> None:
            await released.wait()

        ours.ondata = wait
        records = b"".join(peer.record(bytes(70)) for _ in range(4000))
        await send_all(peer.sock, records + (peer.record(alert(0, level=1), ALERT) if ends else b""))
        await all_blocked()
        released.set()
        await until_received(recorder, 280_000)
        if ends:
            await recorder.first("close")
        ours.closeImmediately()


async def test_much_is_taken_at_once(role: str, version: ssl.TLSVersion) -> None:
    async with met(role, version) as (ours, recorder, peer):
        await send_all(peer.sock, b"".join(peer.record(bytes(16384)) for _ in range(6)))
        await until_received(recorder, 6 * 16384)
        assert len(recorder.of("data")) <= 6
        ours.closeImmediately()


@pytest.mark.parametrize("size", [1, 3, 4, 5, 6, 26, 27, 28, 1000])
async def test_records_that_come_in_pieces(role: str, version: ssl.TLSVersion, size: int) -> None:
    """What arrives may end within a header or behind it."""
    async with met(role, version) as (ours, recorder, peer):
        records = b"".join(peer.record(b"%d," % i) for i in range(50)) + peer.record(b"x" * 5000)
        for at in range(0, len(records), size):
            peer.sock.sendall(records[at : at + size])
            if at < 500:
                await anyio.lowlevel.checkpoint()
        expected = b"".join(b"%d," % i for i in range(50)) + b"x" * 5000
        await until_received(recorder, len(expected))
        assert recorder.data == expected
        ours.closeImmediately()


# Faults, followed by valid records


def tampered(peer: RecordPeer) -> bytes:
    record = peer.record(b"tampered")
    return record[:-1] + bytes((record[-1] ^ 1,))


def left_out(peer: RecordPeer) -> bytes:
    peer.record(b"left out")
    return b""


def twice(peer: RecordPeer) -> bytes:
    return peer.record(b"") * 2


FAULTS: dict[str, tuple[Make, tuple[int, ...]]] = {
    "tampered": (tampered, (281,)),
    "left out": (left_out, (281,)),
    "twice": (twice, (281,)),
    "data in plaintext": (lambda peer: plain(DATA, bytes(64)), (281,)),
    "an alert in plaintext": (lambda peer: plain(ALERT, alert(80)), ()),
    "a handshake in plaintext": (lambda peer: plain(HANDSHAKE, bytes(64)), ()),
    "ChangeCipherSpec in plaintext": (lambda peer: plain(CHANGE_CIPHER_SPEC, b"\1") * 40, ()),
    "a wrong ChangeCipherSpec": (lambda peer: plain(CHANGE_CIPHER_SPEC, b"\2"), ()),
    "ChangeCipherSpec": (lambda peer: peer.record(b"\1", CHANGE_CIPHER_SPEC), ()),
    "a record of no type": (lambda peer: plain(99, bytes(64)), ()),
    "what is no record": (lambda peer: b"GET / HTTP/1.1\r\n\r\n", ()),
    "an alert": (lambda peer: peer.record(alert(80), ALERT), (1080,)),
    "another alert": (lambda peer: peer.record(alert(20), ALERT), (1020,)),
    "a refusal": (lambda peer: peer.record(alert(49), ALERT), (1049,)),
    "half an alert": (lambda peer: peer.record(b"\2", ALERT), ()),
    "a message of no type": (lambda peer: peer.record(bytes((99, 0, 0, 0)), HANDSHAKE), ()),
}


@pytest.mark.parametrize(("make", "codes"), FAULTS.values(), ids=FAULTS.keys())
@pytest.mark.parametrize("streaming", [False, True], ids=["handlers", "stream"])
async def test_a_fault_in_the_middle(
    make: Make, codes: tuple[int, ...], streaming: bool, role: str, version: ssl.TLSVersion
) -> None:
    async with met(role, version) as (ours, recorder, peer):
        before = b"".join(peer.record(b"before") for _ in range(20))
        peer.sock.sendall(before + make(peer) + b"".join(peer.record(b"behind") for _ in range(20)))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(blocking, see_end, peer.sock)
            received = await all_of(ours.stream()) if streaming else b""
            error = (await recorder.first("error")).error
            await recorder.first("close")
    assert (received if streaming else recorder.data) == b"before" * 20
    assert error.message == "SecurityProtocol"
    assert error.errorCode in codes or not codes


async def all_of(stream: ByteStream) -> bytes:
    """Receive until the connection is lost."""
    received = b""
    with suppress(anyio.BrokenResourceError):
        while True:
            received += await stream.receive()
    return received


def see_end(sock: socket.socket) -> None:
    drain(sock)
    sock.close()
