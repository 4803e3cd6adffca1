"""``socket.stream()``: behaviour beyond the general contract of a stream, which test_trio_contract.py checks."""

from __future__ import annotations

import socket
import ssl
import sys
from contextlib import suppress
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import ByteStream, SocketAttribute
from anyio.streams.buffered import BufferedByteStream
from anyio.streams.text import TextStream
from anyio.streams.tls import TLSAttribute, TLSStream

from mozsocket import InvalidStateError, MozTCPSocket, TCPSocket, TCPSocketError
from mozsocket._machine import PeerSide
from mozsocket._socket import connection_of
from mozsocket._tls import BATCH_SIZE
from mozsocket._transport import Transport
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
    joined,
    port_of,
    read_all,
    read_exactly,
    reset,
    secure,
    securely_connected,
    send_all,
    unused_port,
)

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("impatient")]

MUCH = bytes(range(256)) * 65536  # 16 MiB: more than the kernel buffers between two sockets of this machine


async def receive_exactly(stream: ByteStream, size: int) -> bytes:
    return await BufferedByteStream(stream).receive_exactly(size)


async def send_on(stream: ByteStream) -> None:
    while True:
        await stream.send(b"x" * 1000)


async def receive_all(stream: ByteStream) -> bytes:
    return b"".join([part async for part in stream])


async def test_receives_and_sends(role: str, listener: socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        sock, recorder, peer = await connected(tcp, role, listener)
        with peer:
            async with sock.stream() as stream:
                assert isinstance(stream, ByteStream)
                await send_all(peer, b"hello")
                assert await stream.receive() == b"hello"
                await stream.send(b"world")
                mutable: Any = bytearray(b"!")
                await stream.send(mutable)
                assert await blocking(read_exactly, peer, 6) == b"world!"
            assert sock.readyState == "closing"
            assert await blocking(read_all, peer) == b""
        await sock.closed()
        assert recorder.types[-1] == "close"
        assert "data" not in recorder.types


async def test_gives_at_most_what_is_asked_for(role: str, listener: socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        sock, _, peer = await connected(tcp, role, listener)
        with peer:
            sock.suspend()
            await send_all(peer, b"queued")
            while not connection_of(sock).inbox.count:
                await all_blocked()
            stream = sock.stream()
            assert stream is sock.stream()
            assert await stream.receive(4) == b"queu"
            assert await stream.receive(1) == b"e"
            await send_all(peer, b"more")
            assert await stream.receive(9) == b"d"  # queued data comes first, in a separate piece
            assert await stream.receive(3) == b"mor"
            assert await stream.receive(3) == b"e"
            await stream.aclose()


async def test_what_came_before_the_connection_was_known_is_not_lost(listener: socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        sock = tcp.open("127.0.0.1", port_of(listener))
        stream = sock.stream()
        with await accept(listener) as peer:
            await send_all(peer, b"220 ready\r\n")
            await sock.opened()
            await all_blocked()
            assert await stream.receive() == b"220 ready\r\n"
            await stream.aclose()


async def test_the_first_calls_wait_for_the_connection(listener: socket.socket) -> None:
    async with TCPSocket("127.0.0.1", port_of(listener)) as sock:
        stream = sock.stream()
        await stream.send(b"hello")
        with await accept(listener) as peer:
            assert await blocking(read_exactly, peer, 5) == b"hello"
            await stream.send_eof()
            assert await blocking(peer.recv, 1) == b""


@pytest.mark.parametrize("turns", range(6))
async def test_receiving_after_a_failure_that_is_yet_to_be_told(turns: int) -> None:
    """It raises, and does not hold up the event loop until the asynchronous ``onerror`` begins."""
    async with MozTCPSocket() as tcp:
        sock = tcp.open("127.0.0.1", unused_port())

        async def on_error(event: Any) -> None:
            await all_blocked()

        sock.onerror = on_error
        stream = sock.stream()
        for _ in range(turns):
            await anyio.lowlevel.checkpoint()
        with pytest.raises(anyio.BrokenResourceError):
            await stream.receive()


@pytest.mark.parametrize("call", ["receive", "send", "send_eof"])
async def test_a_connection_that_fails_is_reported_by_the_call(call: str) -> None:
    async with TCPSocket("127.0.0.1", unused_port()) as sock:  # the block raises nothing else
        stream = sock.stream()
        with pytest.raises(anyio.BrokenResourceError, match="refused") as caught:
            await getattr(stream, call)(*[b"x"][: call == "send"])
        assert isinstance(caught.value.__cause__, TCPSocketError)
        assert caught.value.__cause__.name == "ConnectionRefusedError"


async def test_the_peer_s_end_closes_nothing(role: str, listener: socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        sock, recorder, peer = await connected(tcp, role, listener)
        with peer:
            stream = sock.stream()
            await send_all(peer, b"question")
            peer.shutdown(socket.SHUT_WR)
            assert await receive_all(stream) == b"question"
            with pytest.raises(anyio.EndOfStream):
                await stream.receive()
            await all_blocked()
            assert sock.readyState == "open"
            await stream.send(b"answer")
            await stream.send_eof()
            assert await blocking(read_all, peer) == b"answer"
            assert sock.readyState == "open"
            with pytest.raises(anyio.ClosedResourceError):
                await stream.send(b"x")
            await stream.aclose()
        await sock.closed()
        assert recorder.types[-1] == "close"


async def test_an_end_that_was_queued(listener: socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        sock, _, peer = await connected(tcp, "client", listener)
        with peer:
            sock.suspend()
            await send_all(peer, b"all")
            peer.shutdown(socket.SHUT_WR)
            while connection_of(sock).machine.peer_side is PeerSide.OPEN:
                await all_blocked()
            assert await receive_all(sock.stream()) == b"all"
            await sock.stream().send(b"answer")
            await sock.stream().aclose()
            assert await blocking(read_all, peer) == b"answer"


async def test_a_lost_connection_is_broken(role: str, listener: socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        sock, recorder, peer = await connected(tcp, role, listener)
        stream = sock.stream()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(receive_broken, stream)
            await all_blocked()
            reset(peer)
        await recorder.first("close")
        assert recorder.types[-2:] == ["error", "close"]
        with pytest.raises(anyio.BrokenResourceError):
            await stream.send(b"x")
        await stream.aclose()
        with pytest.raises(anyio.ClosedResourceError):
            await stream.receive()


async def receive_broken(stream: ByteStream) -> None:
    with pytest.raises(anyio.BrokenResourceError) as caught:
        await stream.receive()
    assert isinstance(caught.value.__cause__, TCPSocketError)
    assert caught.value.__cause__.name == "NetworkInterruptError"


async def test_a_loss_that_the_stream_has_raised_is_no_news_to_the_block(listener: socket.socket) -> None:
    async with TCPSocket("127.0.0.1", port_of(listener)) as sock:
        stream = sock.stream()
        reset(await accept(listener))
        await receive_broken(stream)


@pytest.mark.parametrize("size", [1, 100_000, BATCH_SIZE, BATCH_SIZE + 1])
async def test_each_send_arrives_once_however_little_the_system_takes_of_it(size: int, layer: str, role: str) -> None:
    """TLS encrypts at most this much in one step, so sizes around it take different code paths."""
    async with joined(layer, role) as (sock, recorder, peer):
        sock.extra(SocketAttribute.raw_socket).setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        stream = sock.stream()
        sent = [bytes([number]) * size for number in range(3)]

        async def send() -> None:
            for data in sent:
                await stream.send(data)
                assert sock.bufferedAmount == 0
            await stream.send_eof()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send)
            await all_blocked()
            if size > 1:
                assert 0 < sock.bufferedAmount <= size
            assert await blocking(read_all, peer) == b"".join(sent)
        await stream.aclose()
        assert "drain" not in recorder.types


async def test_a_send_that_fails_raises_it(layer: str, role: str) -> None:
    async with joined(layer, role) as (sock, recorder, peer):
        stream = sock.stream()
        reset(peer)
        with anyio.fail_after(PEER_TIMEOUT), pytest.raises(anyio.BrokenResourceError) as caught:
            await send_on(stream)
        assert isinstance(caught.value.__cause__, TCPSocketError)
        assert caught.value.__cause__.name == "NetworkInterruptError"
        await stream.aclose()
        await recorder.first("close")
        assert recorder.types[-2:] == ["error", "close"]


async def test_after_a_failed_send_what_came_is_still_received(role: str, listener: socket.socket) -> None:
    """For example, an HTTP server refuses a long request, answers, and closes."""
    async with MozTCPSocket() as tcp:
        sock, recorder, peer = await connected(tcp, role, listener)
        stream = sock.stream()
        await send_all(peer, b"413 Content Too Large")
        peer.shutdown(socket.SHUT_WR)
        await stream.send(b"unread")
        await blocking(peer.recv, 1)
        peer.close()  # with unread input: RST
        with pytest.raises(anyio.BrokenResourceError):
            await send_on(stream)
        assert await receive_all(stream) == b"413 Content Too Large"
        await recorder.first("close")  # without aclose(), as EOF has been received
        assert recorder.types[-2:] == ["error", "close"]


async def test_a_send_that_fails_after_the_first_part_of_it(listener: socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        sock, _, peer = await securely_connected(tcp, "client", listener)
        reset(peer)
        with pytest.raises(anyio.BrokenResourceError):
            await sock.stream().send(MUCH)
        await sock.stream().aclose()


async def test_a_failed_send_ends_a_connection_that_nobody_receives_from() -> None:
    """This is a server that only sends, and whose handler has returned without closing."""
    async with MozTCPSocket() as tcp:
        server = tcp.listen(0, host="127.0.0.1", max_connections=1)
        recorders: list[EventRecorder] = []

        async def onconnect(event: Any) -> None:
            recorders.append(EventRecorder(event.socket))
            with suppress(anyio.BrokenResourceError):
                await send_on(event.socket.stream())

        server.onconnect = onconnect
        for number in range(2):
            with await dial(server.localPort) as peer:
                await blocking(peer.recv, 1)
                reset(peer)
            assert len(recorders) == number + 1
            await recorders[number].first("close")
            assert recorders[number].types == ["error", "close"]
        server.close()


async def test_what_was_queued_before_the_loss_comes_before_it() -> None:
    """The connection's handler takes its time before it asks for the stream."""
    received: list[bytes] = []
    accepted: list[TCPSocket] = []
    lost = anyio.Event()

    async def onconnect(event: Any) -> None:
        accepted.append(event.socket)
        await lost.wait()
        stream = event.socket.stream()
        received.append(await stream.receive())
        await receive_broken(stream)

    async with MozTCPSocket() as tcp:
        server = tcp.listen(0, host="127.0.0.1")
        server.onconnect = onconnect
        peer = await dial(server.localPort)
        await send_all(peer, b"request")
        await all_blocked()
        reset(peer)
        while not connection_of(accepted[0]).machine.shut:
            await all_blocked()
        lost.set()
        server.close()
    assert received == [b"request"]


async def test_one_receives_and_one_sends_at_a_time(role: str, listener: socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        sock, _, peer = await connected(tcp, role, listener)
        with peer:
            stream = sock.stream()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(stream.receive)
                tasks.start_soon(stream.send, MUCH)
                await all_blocked()
                for call, args in ((stream.receive, ()), (stream.send, (b"x",)), (stream.send_eof, ())):
                    with pytest.raises(anyio.BusyResourceError):
                        await call(*args)
                tasks.cancel_scope.cancel()
            sock.closeImmediately()


async def test_a_cancelled_receive_loses_nothing(role: str, listener: socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        sock, _, peer = await connected(tcp, role, listener)
        with peer:
            stream = sock.stream()
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(stream.receive)
                    await all_blocked()
                    scope.cancel()
                    peer.sendall(b"all of it")
            with anyio.CancelScope() as scope:
                scope.cancel()
                await stream.receive()
            assert await receive_exactly(stream, 9) == b"all of it"
            await stream.aclose()


async def test_a_cancelled_send_is_sent_all_the_same(role: str, listener: socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        sock, _, peer = await connected(tcp, role, listener)
        with peer:
            stream = sock.stream()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(stream.send, MUCH)
                await all_blocked()
                assert sock.bufferedAmount
                tasks.cancel_scope.cancel()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(stream.send, b"the end")
                assert await blocking(read_exactly, peer, len(MUCH) + 7) == MUCH + b"the end"
            await stream.aclose()


async def test_sending_waits_for_the_peer_and_counts_to_no_limit(role: str, listener: socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        sock, recorder, peer = await connected(tcp, role, listener, max_buffered_amount=1000)
        with peer:
            stream = sock.stream()
            sent = anyio.Event()

            async def send() -> None:
                await stream.send(MUCH)
                sent.set()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(send)
                await all_blocked()
                assert not sent.is_set()
                assert await blocking(read_exactly, peer, len(MUCH)) == MUCH
            assert sock.bufferedAmount == 0
            await stream.aclose()
        await sock.closed()
        assert "drain" not in recorder.types


async def test_a_send_that_is_cancelled_before_it_begins_sends_nothing(listener: socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        sock, _, peer = await connected(tcp, "client", listener)
        with peer:
            with anyio.CancelScope() as scope:
                scope.cancel()
                await sock.stream().send(b"x")
            await sock.stream().aclose()
            assert await blocking(read_all, peer) == b""


async def test_ending_waits_for_what_is_buffered(listener: socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        sock, _, peer = await connected(tcp, "client", listener)
        with peer:
            stream = sock.stream()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(stream.send, MUCH)
                await all_blocked()
                tasks.cancel_scope.cancel()
            ended = anyio.Event()

            async def end() -> None:
                await stream.send_eof()
                ended.set()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(end)
                await all_blocked()
                assert not ended.is_set()
                assert await blocking(read_all, peer) == MUCH
            await stream.aclose()


async def test_closing_the_stream_wakes_who_sends(listener: socket.socket) -> None:
    """Unsent data is dropped, as the peer may never read it."""
    async with MozTCPSocket() as tcp:
        sock, _, peer = await connected(tcp, "client", listener)
        with peer:
            stream = sock.stream()

            async def send() -> None:
                with pytest.raises(anyio.ClosedResourceError):
                    await stream.send(MUCH)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(send)
                await all_blocked()
                tasks.start_soon(stream.aclose)


async def test_what_a_cancelled_receive_puts_back_stays_the_stream_s(listener: socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        sock, recorder, peer = await connected(tcp, "client", listener)
        with peer:
            stream = sock.stream()
            await send_all(peer, b"hello")
            with anyio.CancelScope() as scope:
                scope.cancel()
                await stream.receive()
            sock.send(b"x" * 200_000)
            assert await blocking(read_exactly, peer, 200_000) == b"x" * 200_000
            await recorder.first("drain")  # data for handlers would be delivered with it
            assert await stream.receive() == b"hello"
            assert "data" not in recorder.types
            await stream.aclose()


@pytest.mark.parametrize("call", ["send", "send_eof"])
async def test_closing_immediately_wakes_who_waits_for_room(call: str, layer: str, role: str) -> None:
    async with joined(layer, role) as (sock, _, _):
        stream = sock.stream()

        async def wait() -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await getattr(stream, call)(*[MUCH][: call == "send"])

        if call == "send_eof":
            sock.send(MUCH)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await all_blocked()
            sock.closeImmediately()


@pytest.mark.parametrize("close", ["socket.close", "socket.closeImmediately", "stream.aclose"])
async def test_closing_wakes_who_waits(close: str, role: str, listener: socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        sock, _, peer = await connected(tcp, role, listener)
        with peer:
            stream = sock.stream()

            async def receive() -> None:
                with pytest.raises(anyio.ClosedResourceError):
                    await stream.receive()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(receive)
                await all_blocked()
                if close == "stream.aclose":
                    await stream.aclose()
                else:
                    getattr(sock, close.partition(".")[2])()
            for call, args in ((stream.receive, ()), (stream.send, (b"x",)), (stream.send_eof, ())):
                with pytest.raises(anyio.ClosedResourceError):
                    await call(*args)


async def test_closing_does_not_wait_for_the_peer_but_the_scope_does(role: str, listener: socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        sock, _, peer = await connected(tcp, role, listener, linger=PEER_TIMEOUT)
        await sock.stream().send(b"all")
        await sock.stream().aclose()
        assert sock.readyState == "closing"
        assert await blocking(read_all, peer) == b"all"
        peer.close()


async def test_a_cancelled_close_is_immediate(role: str, listener: socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        sock, _, peer = await connected(tcp, role, listener)
        with peer:
            with anyio.CancelScope() as scope:
                scope.cancel()
                await sock.stream().aclose()
            await sock.closed()


async def test_closing_in_an_asynchronous_handler() -> None:
    """A server that reads as a sequence."""

    async def onconnect(event: Any) -> None:
        async with event.socket.stream() as stream:
            buffered = BufferedByteStream(stream)
            name = await buffered.receive_until(b"\n", 100)
            await stream.send(b"hello " + name)

    async with MozTCPSocket() as tcp:
        server = tcp.listen(0, host="127.0.0.1")
        server.onconnect = onconnect
        with await dial(server.localPort) as peer:
            await send_all(peer, b"wor")
            await all_blocked()
            await send_all(peer, b"ld\n")
            assert await blocking(read_all, peer) == b"hello world"
        server.close()


async def test_upgrading_while_receiving(role: str, listener: socket.socket) -> None:
    """The handshake happens while receive() waits, and everything after it is decrypted."""
    async with MozTCPSocket() as tcp:
        context = client_context() if role == "client" else server_context()
        sock, recorder, peer = await connected(tcp, role, listener)
        stream = sock.stream()
        got: list[bytes] = []

        async def receive() -> None:
            got.append(await stream.receive())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(receive)
            await all_blocked()
            sock.upgradeToSecure(ssl_context=context, server_hostname="localhost" if role == "client" else None)
            tasks.start_soon(stream.send, b"encrypted")
            if role == "client":
                tls = await secure(peer, server_context(), server_side=True)
            else:
                tls = await secure(peer, client_context())
            with tls:
                assert await blocking(read_exactly, tls, 9) == b"encrypted"
                await sock.secured()
                await send_all(tls, b"too")
                while not got:
                    await all_blocked()
                assert got == [b"too"]
                assert stream.extra(TLSAttribute.tls_version).startswith("TLS")
                await stream.aclose()
                assert await blocking(tls.recv, 1) == b""
        assert "secure" in recorder.types


async def test_receiving_waits_for_a_handshake_that_takes_its_time(listener: socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        sock, _, peer = await connected(tcp, "client", listener)
        with peer:
            stream = sock.stream()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(stream.receive)
                await all_blocked()
                sock.upgradeToSecure(ssl_context=client_context(), server_hostname="localhost")
                assert await blocking(peer.recv, 10)
                await all_blocked()
                tasks.cancel_scope.cancel()
            sock.closeImmediately()


async def test_our_end_while_records_wait_to_be_decrypted(version: ssl.TLSVersion, listener: socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        sock, _, peer = await securely_connected(tcp, "client", listener, version)
        with peer:
            stream = sock.stream()
            await send_all(peer, b"x" * 60_000)
            assert await stream.receive(7) == b"x" * 7
            await stream.send_eof()
            assert await receive_exactly(stream, 59_993) == b"x" * 59_993
            await stream.aclose()


async def test_over_tls(role: str, version: ssl.TLSVersion, listener: socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        sock, _, peer = await securely_connected(tcp, role, listener, version)
        with peer:
            stream = sock.stream()
            await send_all(peer, b"x" * 100_000)
            assert await stream.receive(7) == b"x" * 7  # a part of a record
            assert await receive_exactly(stream, 99_993) == b"x" * 99_993
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(stream.send, MUCH)
                assert await blocking(read_exactly, peer, len(MUCH)) == MUCH
            await stream.aclose()
            assert await blocking(peer.recv, 1) == b""


async def test_a_record_is_read_whole_however_little_of_it_is_wanted(
    version: ssl.TLSVersion, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a protocol that first gives the length of a message."""
    sizes = []
    receive = Transport.receive

    def note(self: Transport, size: int) -> bytes | None:
        sizes.append(size)
        return receive(self, size)

    async with MozTCPSocket() as tcp:
        sock, _, peer = await securely_connected(tcp, "client", listener, version)
        with peer:
            stream = BufferedByteStream(sock.stream())
            await send_all(peer, b"\0\0\x40\0" + b"x" * 0x4000)
            monkeypatch.setattr(Transport, "receive", note)
            size = int.from_bytes(await stream.receive_exactly(4), "big")
            assert await stream.receive_exactly(size) == b"x" * 0x4000
            assert min(sizes) > 0x4000
            await stream.aclose()


async def test_however_much_may_be_received(listener: socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        sock, _, peer = await connected(tcp, "client", listener)
        with peer:
            stream = sock.stream()
            await send_all(peer, b"hello")
            assert await stream.receive(sys.maxsize) == b"hello"
            await stream.aclose()


async def test_being_cut_off_in_tls_is_no_end(listener: socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        sock, recorder, peer = await securely_connected(tcp, "client", listener)
        stream = sock.stream()
        peer.shutdown(socket.SHUT_WR)
        with pytest.raises(anyio.BrokenResourceError, match="close_notify"):
            await stream.receive()
        peer.close()
        await recorder.first("close")


async def test_only_of_a_socket_that_lives(listener: socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        sock, _, peer = await connected(tcp, "client", listener)
        with peer:
            sock.close()
            with pytest.raises(InvalidStateError, match=r"stream\(\) on a socket that is closing"):
                sock.stream()


async def test_bad_arguments(listener: socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        sock, _, peer = await connected(tcp, "client", listener)
        with peer:
            stream: Any = sock.stream()
            with pytest.raises(ValueError, match="max_bytes must be at least 1, not 0"):
                await stream.receive(0)
            with pytest.raises(TypeError, match="max_bytes must be an int, not str"):
                await stream.receive("1")
            with pytest.raises(TypeError, match="bytes-like object, not str"):
                await stream.send("text")
            with pytest.raises(TypeError, match="bytes-like object, not int"):
                await stream.send(1)
            await stream.aclose()


# Beneath other libraries' wrappers of AnyIO streams


async def test_typed_attributes(role: str, listener: socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        sock, _, peer = await connected(tcp, role, listener)
        with peer:
            stream = sock.stream()
            assert stream.extra(SocketAttribute.remote_address) == peer.getsockname()
            assert stream.extra(SocketAttribute.local_port) == peer.getpeername()[1]
            await stream.aclose()


async def test_the_address_of_a_peer_that_has_reset(role: str, listener: socket.socket) -> None:
    """The system forgets the address at the reset, before anyone has read."""
    async with MozTCPSocket() as tcp:
        sock, _, peer = await connected(tcp, role, listener)
        stream = sock.stream()
        reset(peer)
        for attribute in SocketAttribute.remote_address, SocketAttribute.remote_port:
            assert stream.extra(attribute, None) is None
            with pytest.raises(anyio.TypedAttributeLookupError):
                sock.extra(attribute)
        assert stream.extra(SocketAttribute.local_port)
        await receive_broken(stream)


async def test_under_a_text_stream(role: str, listener: socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        sock, _, peer = await connected(tcp, role, listener)
        with peer:
            text = TextStream(sock.stream())
            await text.send("größer")
            assert await blocking(read_exactly, peer, 8) == "größer".encode()
            for octet in "größer".encode():
                await send_all(peer, bytes([octet]))
            got = ""
            while got != "größer":
                got += await text.receive()
            await text.aclose()


async def test_under_anyio_s_tls(role: str, listener: socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        sock, _, peer = await connected(tcp, role, listener)
        stream = sock.stream()  # before anything can arrive
        context = client_context() if role == "client" else server_context()
        tls: dict[str, TLSStream] = {}

        async def wrap() -> None:
            tls["ours"] = await TLSStream.wrap(
                stream,
                hostname="localhost" if role == "client" else None,
                ssl_context=context,
                server_side=role == "server",
            )

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wrap)
            if role == "client":
                theirs = await secure(peer, server_context(), server_side=True)
            else:
                theirs = await secure(peer, client_context())
        with theirs:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(tls["ours"].send, MUCH[:1_000_000])
                assert await blocking(read_exactly, theirs, 1_000_000) == MUCH[:1_000_000]
            await send_all(theirs, b"hello")
            assert await tls["ours"].receive() == b"hello"
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(tls["ours"].aclose)
                assert await blocking(theirs.recv, 1) == b""
                await blocking(theirs.unwrap)


async def test_handlers_of_two_sockets_and_a_stream_between() -> None:
    """A program may use both, each on its own socket."""
    async with MozTCPSocket() as tcp:
        accepting = Accepting(tcp.listen(0, host="127.0.0.1"))
        sock = tcp.open("127.0.0.1", accepting.server.localPort)
        stream = sock.stream()
        await stream.send(b"one")
        _, recorder = await accepting.first()
        await recorder.first("data")
        accepted, _ = accepting.sockets[0]
        accepted.send(b"two")
        assert await stream.receive() == b"two"
        await stream.aclose()
        await recorder.first("close")
        assert recorder.data == b"one"
        accepting.server.close()


async def test_what_was_queued_before_the_first_receive(listener: socket.socket) -> None:
    """Data that arrived before the handshake's end, for example, is found without waiting."""
    async with MozTCPSocket() as tcp:
        sock = tcp.open("127.0.0.1", port_of(listener))
        stream = sock.stream()
        with await accept(listener):
            connection_of(sock).inbox.put(b"queued")
            with anyio.fail_after(PEER_TIMEOUT):
                assert await stream.receive() == b"queued"
            await stream.aclose()


async def test_what_a_cancelled_receive_had_read_belongs_to_tls(listener: socket.socket) -> None:
    """Injected plaintext must not be delivered later as if it had been encrypted."""
    async with MozTCPSocket() as tcp:
        sock, recorder, peer = await connected(tcp, "client", listener)
        with peer:
            stream = sock.stream()
            await send_all(peer, b"injected")
            with anyio.CancelScope() as scope:
                scope.cancel()
                await stream.receive()
            sock.upgradeToSecure(ssl_context=client_context(), server_hostname="localhost")
            with pytest.raises(anyio.BrokenResourceError):
                await stream.receive()
        await recorder.first("close")
        assert recorder.types == ["open", "error", "close"]
