"""Attackers that try to keep a server from serving others."""

from __future__ import annotations

import errno
import logging
import os
import socket as stdlib_socket
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

from mozsocket import MozTCPSocket, TCPServerSocket
from mozsocket.testing import EventRecorder

from ..certificates import AUTHORITY, client_context, server_context
from ..peers import PEER_TIMEOUT, Accepting, all_blocked, blocking, dial, echo_to, read_all, read_exactly, reset, secure
from ..processes import s_client

pytestmark = pytest.mark.anyio

CROWD = 400
HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500)  # the beginning of a ClientHello


@contextmanager
def crowd(port: int, size: int = CROWD) -> Iterator[list[stdlib_socket.socket]]:
    """Many connections that say nothing."""
    with ExitStack() as resources:
        yield [
            resources.enter_context(stdlib_socket.create_connection(("127.0.0.1", port), PEER_TIMEOUT))
            for _ in range(size)
        ]


async def is_served(port: int, before: bytes = b"") -> None:
    peer = await dial(port)
    peer.sendall(before)
    with await secure(peer, client_context()) as honest:
        honest.sendall(b"honest")
        assert await blocking(read_exactly, honest, 6) == b"honest"
        (await blocking(honest.unwrap)).close()


def secure_server(tcp: MozTCPSocket, **options: Any) -> Any:
    server = tcp.listen(0, host="127.0.0.1", useSecureTransport=True, ssl_context=server_context(), **options)
    server.onconnect = echo_to
    return server


async def test_those_who_never_speak_tls_keep_nobody_out() -> None:
    async with MozTCPSocket() as tcp:
        server = secure_server(tcp, handshake_timeout=600)
        with crowd(server.localPort):
            for _ in range(3):
                await is_served(server.localPort)
        server.close()


async def test_those_who_never_speak_tls_are_turned_out(caplog: pytest.LogCaptureFixture) -> None:
    async with MozTCPSocket() as tcp:
        server = secure_server(tcp, handshake_timeout=0.5)
        with crowd(server.localPort) as silent:
            for sock in silent:
                assert await blocking(sock.recv, 1) == b""
        server.close()
    *each, rest = (record.getMessage() for record in caplog.records)
    assert len(each) == 10  # ten a minute, not one for each connection
    assert all("no TLS handshake within 0.5 seconds" in message for message in each)
    assert f"{CROWD - 10} more like this" in rest
    assert "NetworkTimeoutError" in rest


async def test_a_byte_now_and_then_is_no_handshake(caplog: pytest.LogCaptureFixture) -> None:
    async with MozTCPSocket() as tcp:
        server = secure_server(tcp, handshake_timeout=0.5)
        began = time.monotonic()
        with await dial(server.localPort) as slow:

            def dribble() -> None:
                for byte in HELLO:
                    slow.send(bytes([byte]))
                    time.sleep(0.05)

            with pytest.raises(OSError, match=r"reset|pipe"):
                await blocking(dribble)
        assert time.monotonic() - began < 5
        server.close()
    assert "no TLS handshake within 0.5 seconds" in caplog.text


@pytest.mark.parametrize("proxy_protocol", [False, True], ids=["TLS", "PROXY"])
async def test_those_who_are_silent_take_no_place_of_max_connections(proxy_protocol: bool) -> None:
    async with MozTCPSocket() as tcp:
        server = secure_server(tcp, handshake_timeout=600, max_connections=20, proxy_protocol=proxy_protocol)
        with crowd(server.localPort, 25):
            began = time.monotonic()
            await is_served(server.localPort, b"PROXY UNKNOWN\r\n" if proxy_protocol else b"")
            assert time.monotonic() - began < 5
            tcp.close()


@pytest.mark.parametrize("proxy_protocol", [False, True], ids=["TLS", "PROXY"])
async def test_beyond_max_handshakes_the_oldest_gives_way(
    proxy_protocol: bool, caplog: pytest.LogCaptureFixture
) -> None:
    header = b"PROXY UNKNOWN\r\n" if proxy_protocol else b""
    async with MozTCPSocket() as tcp:
        server = secure_server(tcp, handshake_timeout=600, max_handshakes=3, proxy_protocol=proxy_protocol)
        with crowd(server.localPort, 5) as silent:
            for oldest in silent[:2]:
                assert await blocking(oldest.recv, 1) == b""
            await is_served(server.localPort, header)
            assert await blocking(silent[2].recv, 1) == b""
            await is_served(server.localPort, header)  # the one before is open, and no longer counts as a handshake
            for sock in silent[3:]:
                sock.setblocking(False)
                with pytest.raises(BlockingIOError):
                    sock.recv(1)
            tcp.close()
    assert sum("max_handshakes" in record.getMessage() for record in caplog.records) == 3


class Scarce(stdlib_socket.socket):
    """A listener on a system without free descriptors, where ``accept()`` fails even if nobody waits to be accepted."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self._room = room
        self._accepted: list[stdlib_socket.socket] = []
        self.bind(("127.0.0.1", 0))
        self.listen()

    def accept(self) -> tuple[stdlib_socket.socket, Any]:
        if sum(sock.fileno() != -1 for sock in self._accepted) >= self._room:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        sock, peer = super().accept()
        self._accepted.append(sock)
        return sock, peer


async def test_the_oldest_gives_way_for_want_of_descriptors_too(caplog: pytest.LogCaptureFixture) -> None:
    """The limit of descriptors may be lower than ``max_handshakes``."""
    options: dict[str, Any] = {"useSecureTransport": True, "ssl_context": server_context(), "handshake_timeout": 600}
    async with TCPServerSocket.from_socket(Scarce(10), **options) as server:
        server.onconnect = echo_to
        with crowd(server.localPort, 10) as silent:
            await all_blocked()
            silent[0].setblocking(False)
            with pytest.raises(BlockingIOError):
                silent[0].recv(1)  # still connected, as nobody else needs its place yet
            with crowd(server.localPort, 30):
                began = time.monotonic()
                await is_served(server.localPort)
                assert time.monotonic() - began < 5
                assert silent[0].recv(1) == b""
            server.close()
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert 0 < len(errors) <= 10
    given_up = [record.getMessage() for record in caplog.records if "given up" in record.getMessage()]
    assert given_up
    assert all("the system has no descriptors left" in message for message in given_up)


async def test_no_more_are_open_than_may_be_when_handshakes_end_at_once() -> None:
    """Connections with finished handshakes wait in turn, and are served when others have closed."""
    async with MozTCPSocket() as tcp:
        accepting = Accepting(
            tcp.listen(0, host="127.0.0.1", useSecureTransport=True, ssl_context=server_context(), max_connections=2)
        )
        peers = [await dial(accepting.server.localPort) for _ in range(2)]
        await all_blocked()  # both were accepted, as none was open yet, and more are accepted before these are
        more = [await dial(accepting.server.localPort) for _ in range(3)]
        await all_blocked()
        clients = [await secure(peer, client_context()) for peer in (*peers, *more)]
        opened = 0
        while clients:
            await all_blocked()
            served = accepting.sockets[opened:]
            assert len(served) == min(2, len(clients))
            opened += len(served)
            for socket, recorder in served:
                client = next(client for client in clients if client.getsockname()[1] == socket.port)
                clients.remove(client)
                client.close()
                await recorder.first("close")
        accepting.server.close()


async def test_closing_while_waiting_to_be_open() -> None:
    async with MozTCPSocket() as tcp:
        server = secure_server(tcp, max_connections=1)
        peers = [await dial(server.localPort) for _ in range(2)]
        await all_blocked()
        with await secure(peers[0], client_context()) as first, await secure(peers[1], client_context()) as second:
            first.sendall(b"served")
            assert await blocking(read_exactly, first, 6) == b"served"
            tcp.close()
            for client in (first, second):
                with suppress(ssl.SSLEOFError):
                    assert await blocking(client.recv, 1) == b""


async def test_warnings_of_one_kind_hold_back_none_of_another(caplog: pytest.LogCaptureFixture) -> None:
    async with MozTCPSocket() as tcp:
        server = tcp.listen(0, host="127.0.0.1")
        for _ in range(30):
            with await dial(server.localPort) as peer:
                assert await blocking(peer.recv, 1) == b""
        server.onconnect = echo_to
        reset(await dial(server.localPort))
        await all_blocked()
        server.close()
    messages = [record.getMessage() for record in caplog.records]
    assert [message for message in messages if "from 127.0.0.1:" in message] == messages[:10]
    assert "NetworkInterruptError" in messages[10]
    assert "20 more like this" in messages[11]
    assert len(messages) == 12


async def test_after_a_minute_warnings_are_logged_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    monkeypatch.setattr("mozsocket._log.time.monotonic", lambda: now)
    async with MozTCPSocket() as tcp:
        server = tcp.listen(0, host="127.0.0.1")
        for count in (12, 1):
            for _ in range(count):
                with await dial(server.localPort) as peer:
                    assert await blocking(peer.recv, 1) == b""
            now += 61
        server.close()
    messages = [record.getMessage() for record in caplog.records]
    assert "2 more like this" in messages[10]
    assert "from 127.0.0.1:" in messages[11]
    assert len(messages) == 12


@pytest.mark.parametrize("bad", [0, -1, True, None, 1.0])
def test_max_handshakes_is_a_number(bad: Any, listener: stdlib_socket.socket) -> None:
    with pytest.raises((TypeError, ValueError), match="max_handshakes must be"):
        TCPServerSocket(0, max_handshakes=bad)
    with pytest.raises((TypeError, ValueError), match="max_handshakes must be"):
        TCPServerSocket.from_socket(listener, max_handshakes=bad)


async def test_the_memory_of_a_silent_connection() -> None:
    async with MozTCPSocket() as tcp:
        server = secure_server(tcp, handshake_timeout=600)
        await is_served(server.localPort)
        with crowd(server.localPort, 100):  # warm up: allocate what is allocated once
            await all_blocked()
            before = psutil.Process().memory_info().rss
            with crowd(server.localPort):
                await all_blocked()
                grown = psutil.Process().memory_info().rss - before
        tcp.cancel_scope.cancel()
    assert grown / CROWD < 100_000


NONSENSE = {
    "a record of the greatest length": b"\x16\x03\x03\x40\x00" + bytes(1 << 14),
    "a record that is too long": b"\x16\x03\x03\xff\xff" + bytes(1 << 16),
    "endless": b"\x16\x03\x01\x00\x01\x01" * 200_000,
    "a request of HTTP": b"GET / HTTP/1.1\r\n\r\n" * 1000,
}


@pytest.mark.parametrize("nonsense", NONSENSE.values(), ids=NONSENSE.keys())
async def test_nonsense_is_logged_and_others_are_served(nonsense: bytes, caplog: pytest.LogCaptureFixture) -> None:
    def talk(peer: stdlib_socket.socket) -> None:
        try:
            peer.sendall(nonsense)
            read_all(peer)
        except OSError:
            pass  # nothing listens there any more

    async with MozTCPSocket() as tcp:
        server = secure_server(tcp)
        for _ in range(5):
            with await dial(server.localPort) as peer:
                await blocking(talk, peer)
        await is_served(server.localPort)
        server.close()
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 5
    assert all("SecurityError" in record.getMessage() for record in caplog.records)


async def test_tls_to_a_server_in_plaintext() -> None:
    """The server receives TLS as plain data; the client gets an error."""
    async with MozTCPSocket() as tcp:
        server = tcp.listen(0, host="127.0.0.1")
        server.onconnect = echo_to
        client = tcp.open("127.0.0.1", server.localPort, useSecureTransport=True, ssl_context=client_context())
        error = await EventRecorder(client).first("error")
        tcp.close()
    assert error.name == "SecurityError"


# Floods that cost the server more than the client


@pytest.mark.parametrize(
    ("flag", "order"), [("-tls1_2", b"R\n"), ("-tls1_3", b"K\n")], ids=["renegotiation", "KeyUpdate"]
)
async def test_storms(flag: str, order: bytes, tmp_path: Path) -> None:
    AUTHORITY.cert_pem.write_to_path(tmp_path / "ca.pem")
    async with MozTCPSocket() as tcp:
        server = secure_server(tcp)
        before = psutil.Process().memory_info().rss
        with s_client(tmp_path, server.localPort, flag) as attacker:
            await attacker.until(rb"(Verify return code: 0|Verification: OK)")
            with suppress(BrokenPipeError):  # renegotiation is refused, which ends the attacker's connection
                for _ in range(100):
                    await attacker.send(order)
                    await anyio.sleep(0.005)
            await is_served(server.localPort)
        assert psutil.Process().memory_info().rss - before < 20_000_000
        tcp.close()
