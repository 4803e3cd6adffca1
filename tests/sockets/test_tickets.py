"""A server's session tickets (TLS 1.3): a client that does not read them loses nothing, one that does can resume."""

from __future__ import annotations

import random
import socket
import ssl
from typing import Any

import anyio
import pytest
from anyio.abc import ByteStream

from mozsocket import MozTCPSocket, TCPSocket
from mozsocket.testing import EventRecorder

from ..certificates import VERSIONS, client_context, server_context
from ..peers import PEER_TIMEOUT, Accepting, blocking, dial, port_of, read_all, read_exactly, secure
from ..records import ALERT, RecordPeer, alert, recorded

pytestmark = pytest.mark.anyio

MUCH = random.Random(7).randbytes(2_000_000)
TLS13 = VERSIONS["TLS 1.3"]
STARTING = pytest.mark.parametrize("upgrading", [False, True], ids=["from the start", "upgrade"])


async def accepted(tcp: MozTCPSocket, *, upgrading: bool, **options: Any) -> tuple[Accepting, socket.socket]:
    """A TLS server and a connection to it. To upgrade, the first accepted socket must call upgradeToSecure()."""
    context = server_context()
    if not upgrading:
        options |= {"useSecureTransport": True, "ssl_context": context}
    server = tcp.listen(0, host="127.0.0.1", **options)
    accepting = Accepting(server)
    sock = await dial(server.localPort)
    if upgrading:
        (await accepting.first())[0].upgradeToSecure(ssl_context=context)
    return accepting, sock


def send_and_close(peer: RecordPeer, *, notify: bool) -> None:
    """Send and close without ever reading; `ssl` would read when it sends close_notify. Blocks."""
    records = [peer.record(MUCH[at : at + 16_000]) for at in range(0, len(MUCH), 16_000)]
    if notify:
        records.append(peer.record(alert(0, level=1), ALERT))
    peer.sock.sendall(b"".join(records))
    peer.sock.close()


@STARTING
@pytest.mark.parametrize("notify", [True, False], ids=["close_notify", "cut off"])
async def test_a_client_that_only_sends(upgrading: bool, notify: bool, version: ssl.TLSVersion) -> None:
    async with MozTCPSocket() as tcp:
        accepting, sock = await accepted(tcp, upgrading=upgrading)
        peer = await recorded(sock, client_context(version=version), server_side=False)
        await blocking(lambda: send_and_close(peer, notify=notify))
        ours, recorder = await accepting.first()
        await recorder.first("close")
        accepting.server.close()
    assert recorder.data == MUCH
    assert [error.error.errorCode for error in recorder.of("error")] == ([] if notify else [294])
    assert ours.bufferedAmount == 0


@STARTING
@pytest.mark.parametrize("notify", [True, False], ids=["close_notify", "cut off"])
async def test_a_stream_of_a_client_that_only_sends(upgrading: bool, notify: bool, version: ssl.TLSVersion) -> None:
    async def all_of(stream: ByteStream) -> bytes:
        received = bytearray()
        with pytest.raises(anyio.EndOfStream if notify else anyio.BrokenResourceError):  # noqa: PT012
            while True:
                received += await stream.receive()
        return bytes(received)

    async with MozTCPSocket() as tcp:
        accepting, sock = await accepted(tcp, upgrading=upgrading)
        peer = await recorded(sock, client_context(version=version), server_side=False)
        ours, _ = await accepting.first()
        stream = ours.stream()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(blocking, lambda: send_and_close(peer, notify=notify))
            assert await all_of(stream) == MUCH
        await stream.aclose()
        accepting.server.close()


async def test_a_client_that_only_sends_and_ends_where_that_is_no_error() -> None:
    async with MozTCPSocket() as tcp:
        accepting, sock = await accepted(tcp, upgrading=False, tls_standard_compatible=False)
        peer = await recorded(sock, client_context(), server_side=False)
        await blocking(lambda: send_and_close(peer, notify=False))
        _, recorder = await accepting.first()
        await recorder.first("close")
        accepting.server.close()
    assert recorder.data == MUCH
    assert recorder.types[-1] == "close" and "error" not in recorder.types


async def test_an_adopted_server(listener: socket.socket) -> None:
    peer = await dial(port_of(listener))
    sock, _ = await blocking(listener.accept)
    ours = TCPSocket.from_socket(sock, useSecureTransport=True, ssl_context=server_context())
    recorder = EventRecorder(ours)
    async with ours:
        tls = await recorded(peer, client_context(), server_side=False)
        await blocking(lambda: send_and_close(tls, notify=True))
        await recorder.first("close")
    assert recorder.data == MUCH


@STARTING
async def test_they_come_with_the_first_data(upgrading: bool, version: ssl.TLSVersion) -> None:
    """The client can resume the session with them."""
    context = client_context(version=version)
    async with MozTCPSocket() as tcp:
        tls: dict[str, Any] = {"ssl_context": server_context(version=version)}
        options = {} if upgrading else {"useSecureTransport": True, **tls}
        server = tcp.listen(0, host="127.0.0.1", **options)

        def on_connect(event: Any) -> None:
            if upgrading:
                event.socket.upgradeToSecure(**tls)
            event.socket.ondata = lambda event: event.target.send(event.data)

        server.onconnect = on_connect
        session = None
        for resumed in (False, True, True):

            def talk(sock: socket.socket, session: ssl.SSLSession | None) -> tuple[bool | None, Any]:
                with context.wrap_socket(sock, server_hostname="localhost", session=session) as tls:
                    for data in (b"hello", b"again"):
                        tls.sendall(data)
                        assert read_exactly(tls, 5) == data
                    found = tls.session_reused, tls.session
                    tls.unwrap().close()
                    return found

            reused, session = await blocking(talk, await dial(server.localPort), session)
            assert reused is resumed
        server.close()


@pytest.mark.parametrize("first", ["data", "KeyUpdate", "end", "close"])
async def test_whatever_comes_first_they_go_before_it(first: str) -> None:
    async with MozTCPSocket() as tcp:
        accepting, sock = await accepted(tcp, upgrading=False, allow_half_open=True)
        with sock:
            sock.settimeout(PEER_TIMEOUT)
            peer = await recorded(sock, client_context(version=TLS13), server_side=False)
            ours, recorder = await accepting.first()
            accepting.server.close()
            if first == "KeyUpdate":
                sock.sendall(peer.key_update() + peer.record(b"hello"))
                await recorder.first("data")
            elif first == "end":
                ours.send_eof()
            elif first == "close":
                ours.close()
            if first in ("data", "KeyUpdate"):
                ours.send(b"x")
                await ours.drained()
                assert ours.bufferedAmount == 0
                assert await blocking(peer.read_exactly, 1) == b"x"
                ours.close()
            assert await blocking(peer.read_all) == b""
            assert peer.ended
            assert peer.tls.session is not None
            sock.close()
        await recorder.first("close")
    assert "error" not in recorder.types or first == "end"  # after EOF, close_notify is still expected


async def test_none_are_sent_before_there_is_something_to_say() -> None:
    async with MozTCPSocket() as tcp:
        accepting, sock = await accepted(tcp, upgrading=False)
        with sock:
            peer = await recorded(sock, client_context(version=TLS13), server_side=False)
            ours, recorder = await accepting.first()
            accepting.server.close()
            sock.sendall(peer.record(b"hello"))
            await recorder.first("data")
            await ours.drained()
            sock.setblocking(False)
            with pytest.raises(BlockingIOError):
                sock.recv(1)
            sock.settimeout(PEER_TIMEOUT)
            ours.close()
            assert await blocking(peer.read_all) == b""
            sock.close()
            await recorder.first("close")


async def test_a_client_that_only_sends_learns_why_it_is_refused() -> None:
    """The tickets can also be sent before an alert."""
    async with MozTCPSocket() as tcp:
        accepting, sock = await accepted(tcp, upgrading=False)
        with await secure(sock, client_context(version=TLS13)) as peer:
            _, recorder = await accepting.first()
            accepting.server.close()
            socket.socket.send(peer, b"\x17\x03\x03\x00\x40" + bytes(64))
            with pytest.raises(ssl.SSLError, match="ALERT_BAD_RECORD_MAC"):
                await blocking(read_all, peer)
        error = (await recorder.first("error")).error
    assert error.errorCode in (281, 313)
