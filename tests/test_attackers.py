"""Those who want a server to serve nobody else."""

from __future__ import annotations

import logging
import socket as stdlib_socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

from mozsocket import MozTCPSocket
from mozsocket.testing import EventRecorder

from .certificates import AUTHORITY, client_context, server_context
from .peers import PEER_TIMEOUT, all_blocked, blocking, dial, echo_to, read_all, read_exactly, secure
from .programs import s_client

pytestmark = pytest.mark.anyio

CROWD = 400
HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500)  # a ClientHello, as far as it goes


@contextmanager
def crowd(port: int, size: int = CROWD) -> Iterator[list[stdlib_socket.socket]]:
    """So many that connect and then say nothing."""
    with ExitStack() as resources:
        yield [
            resources.enter_context(stdlib_socket.create_connection(("127.0.0.1", port), PEER_TIMEOUT))
            for _ in range(size)
        ]


async def is_served(port: int) -> None:
    with await secure(await dial(port), client_context()) as honest:
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
    assert len(caplog.records) == CROWD
    assert all("no TLS handshake within 0.5 seconds" in record.getMessage() for record in caplog.records)


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


async def test_max_connections_is_shared_in_turn(caplog: pytest.LogCaptureFixture) -> None:
    """Who is silent takes a place for ``handshake_timeout`` at most."""
    async with MozTCPSocket() as tcp:
        server = secure_server(tcp, handshake_timeout=0.2, max_connections=20)
        with crowd(server.localPort, 100):
            await is_served(server.localPort)  # after five times 0.2 s, as it is the last to come
        server.close()
    assert len(caplog.records) == 100


async def test_the_memory_of_a_silent_connection() -> None:
    async with MozTCPSocket() as tcp:
        server = secure_server(tcp, handshake_timeout=600)
        await is_served(server.localPort)
        with crowd(server.localPort, 100):  # what is allocated once
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
            pass  # it is not listened to any more

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
    """It is data like any other there; the client is told."""
    async with MozTCPSocket() as tcp:
        server = tcp.listen(0, host="127.0.0.1")
        server.onconnect = echo_to
        client = tcp.open("127.0.0.1", server.localPort, useSecureTransport=True, ssl_context=client_context())
        error = await EventRecorder(client).first("error")
        tcp.close()
    assert error.name == "SecurityError"


# Storms: what costs the server more than it costs the client.


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
            with suppress(BrokenPipeError):  # renegotiation is refused, and ends the attacker
                for _ in range(100):
                    await attacker.send(order)
                    await anyio.sleep(0.005)
            await is_served(server.localPort)
        assert psutil.Process().memory_info().rss - before < 20_000_000
        tcp.close()
