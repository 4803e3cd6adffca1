"""The PROXY protocol on accepted sockets: the load balancer's header gives the client's address."""

from __future__ import annotations

import logging
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mozsocket import MozTCPSocket, TCPServerSocket
from mozsocket._proxy_protocol import Header, parse
from mozsocket._server import acceptor_of

from ..certificates import client_context, server_context
from ..peers import Accepting, all_blocked, blocking, dial, read_all, reset, secure, send_all

V2 = b"\r\n\r\n\0\r\nQUIT\n"


def v2(command: int, family: int, block: bytes) -> bytes:
    return V2 + struct.pack("!2BH", command, family, len(block)) + block


TCP4 = socket.inet_aton("192.0.2.1") + socket.inet_aton("192.0.2.2") + struct.pack("!2H", 56324, 443)
PORTS = struct.pack("!2H", 56324, 443)
TCP6 = socket.inet_pton(socket.AF_INET6, "2001:db8::1") + socket.inet_pton(socket.AF_INET6, "2001:db8::2") + PORTS
MAPPED = socket.inet_pton(socket.AF_INET6, "::ffff:192.0.2.1") + socket.inet_pton(socket.AF_INET6, "::1") + PORTS
UNIX = b"/run/client".ljust(108, b"\0") + b"/run/server".ljust(108, b"\0")

HEADERS = {
    b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n": ("192.0.2.1", 56324),
    b"PROXY TCP6 2001:DB8::1 ::1 56324 443\r\n": ("2001:db8::1", 56324),
    b"PROXY TCP6 ::ffff:192.0.2.1 ::1 0 65535\r\n": ("192.0.2.1", 0),
    b"PROXY UNKNOWN\r\n": None,
    b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n": None,
    b"PROXY UNKNOWN " + b"x" * 91 + b"\r\n": None,  # the longest that is allowed
    v2(0x21, 0x11, TCP4): ("192.0.2.1", 56324),
    v2(0x21, 0x21, TCP6): ("2001:db8::1", 56324),
    v2(0x21, 0x11, TCP4 + b"\x04\x00\x02\x00\x00"): ("192.0.2.1", 56324),  # with an extension
    v2(0x21, 0x21, MAPPED): ("192.0.2.1", 56324),
    v2(0x21, 0x31, UNIX): ("/run/client", 0),
    v2(0x21, 0x31, b"/\xff".ljust(216, b"\0")): ("/\udcff", 0),
    v2(0x20, 0xFF, b"whatever"): None,
    v2(0x20, 0x00, b""): None,  # LOCAL: the load balancer's own connection
    v2(0x20, 0x11, TCP4): None,
    v2(0x21, 0x00, b"whatever"): None,  # unspecified family
    v2(0x21, 0x12, TCP4): None,  # datagrams
    v2(0x21, 0x32, b""): None,
}

MALFORMED = [
    b"GET / HTTP/1.1\r\n",
    b"PROXY TCP5 1 2 3 4\r\n",
    b"PROXY  TCP4 192.0.2.1 192.0.2.2 56324 443\r\n",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 56324\r\n",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443 1\r\n",
    b"PROXY TCP4 192.0.2.256 192.0.2.2 56324 443\r\n",
    b"PROXY TCP4 192.0.2.1 192.0.2.256 56324 443\r\n",
    b"PROXY TCP4 ::1 ::1 56324 443\r\n",
    b"PROXY TCP6 ::1%\n\x1b[31mroot ::1 56324 443\r\n",
    b"PROXY TCP6 192.0.2.1 192.0.2.2 56324 443\r\n",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 65536 443\r\n",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 0123 443\r\n",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 -1 443\r\n",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 \xb2 443\r\n",
    b"PROXY \r\n",
    b"PROXY " + b"x" * 101,
    b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n",
    b"\r\n\r\n\0\r\nQUIX\n",
    v2(0x11, 0x11, TCP4),
    v2(0x22, 0x11, TCP4),
    v2(0x21, 0x11, TCP4[:-1]),
    v2(0x21, 0x21, TCP4),
    v2(0x21, 0x31, UNIX[:-1]),
    v2(0x21, 0x13, TCP4),
    v2(0x21, 0x41, TCP4),
    v2(0x21, 0xFF, TCP4),
]


@pytest.mark.parametrize("data", HEADERS)
def test_a_header(data: bytes) -> None:
    assert parse(data) == parse(data + b"more") == Header(len(data), HEADERS[data])
    for size in range(len(data)):
        assert parse(data[:size]) is None


@pytest.mark.parametrize("data", MALFORMED)
def test_no_header(data: bytes) -> None:
    for more in b"", b"more" * 100:  # further data cannot make up for what the header lacks
        with pytest.raises(OSError, match="not a header of the PROXY protocol: "):
            parse(data + more)


@given(st.one_of(st.binary(), st.builds(bytes.__add__, st.sampled_from([b"PROXY TCP4 ", V2, V2 + b"!"]), st.binary())))
def test_any_bytes_are_a_header_or_not(data: bytes) -> None:
    try:
        header = parse(data)
    except OSError:
        return
    assert header is None or header.size <= len(data)


# On accepted sockets

V1 = b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n"


@asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[Accepting]:
    async with MozTCPSocket() as tcp:
        accepting = Accepting(tcp.listen(0, host="127.0.0.1", proxy_protocol=True, **options))
        yield accepting
        accepting.server.close()


@pytest.mark.anyio
@pytest.mark.parametrize("header", HEADERS)
async def test_the_client_is_whom_the_header_names(header: bytes) -> None:
    async with serving() as accepting:
        with await dial(accepting.server.localPort) as peer:
            await send_all(peer, header + b"data")
            sock, recorder = await accepting.first()
            assert (sock.host, sock.port) == (HEADERS[header] or peer.getsockname())
            await recorder.first("data")
            assert recorder.data == b"data"
            sock.close()


@pytest.mark.anyio
@pytest.mark.parametrize("header", [V1, v2(0x21, 0x21, TCP6)], ids=["v1", "v2"])
async def test_one_byte_at_a_time(header: bytes) -> None:
    async with serving() as accepting:
        with await dial(accepting.server.localPort) as peer:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for octet in header + b"data":
                assert not accepting.sockets or octet in b"data"
                await send_all(peer, bytes([octet]))
                await all_blocked()
            sock, recorder = await accepting.first()
            await recorder.until(lambda: recorder.data == b"data")
            assert sock.port == 56324
            sock.close()


@pytest.mark.anyio
@pytest.mark.parametrize("end", ["malformed", "ended", "silent"])
async def test_a_connection_without_a_header_is_closed_and_logged(end: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "mozsocket")
    async with serving(handshake_timeout=0.2 if end == "silent" else 30) as accepting:
        with await dial(accepting.server.localPort) as peer:
            if end == "malformed":
                await send_all(peer, b"hello" * 10)
            elif end == "ended":
                await send_all(peer, V1[:20])
                peer.shutdown(socket.SHUT_WR)
            else:
                await send_all(peer, V1[:20])
            try:
                assert await blocking(peer.recv, 1) == b""
            except ConnectionResetError:
                assert end == "malformed"  # more data was there, unread
        while "PROXY protocol" not in caplog.text:
            await all_blocked()
        assert not accepting.sockets


@pytest.mark.anyio
async def test_the_header_comes_before_tls() -> None:
    async with serving(useSecureTransport=True, ssl_context=server_context()) as accepting:
        with await dial(accepting.server.localPort) as plain:
            await send_all(plain, V1)
            with await secure(plain, client_context()) as peer:
                sock, recorder = await accepting.first()
                assert (sock.host, sock.port, sock.ssl) == ("192.0.2.1", 56324, True)
                await send_all(peer, b"hello")
                await recorder.first("data")
                sock.close()
                assert await blocking(read_all, peer) == b""


@pytest.mark.anyio
async def test_the_header_and_the_client_hello_in_one_segment() -> None:
    import ssl

    from ..peers import do_handshake

    async with serving(useSecureTransport=True, ssl_context=server_context()) as accepting:
        with await dial(accepting.server.localPort) as peer:
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = client_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
            with pytest.raises(ssl.SSLWantReadError):
                tls.do_handshake()
            await send_all(peer, V1 + outgoing.read())
            await blocking(do_handshake, tls, incoming, outgoing, peer)
            sock, _ = await accepting.first()
            assert sock.host == "192.0.2.1"
            sock.closeImmediately()


@pytest.mark.anyio
async def test_data_behind_the_header_waits_for_a_stream() -> None:
    async def onconnect(event: Any) -> None:
        async with event.socket.stream() as stream:
            await stream.send(await stream.receive())

    async with TCPServerSocket(0, host="127.0.0.1", proxy_protocol=True) as server:
        server.onconnect = onconnect
        with await dial(server.localPort) as peer:
            await send_all(peer, V1 + b"hello")
            assert await blocking(read_all, peer) == b"hello"


@pytest.mark.anyio
async def test_cancelled_before_the_header() -> None:
    async with MozTCPSocket() as tcp:
        accepting = Accepting(tcp.listen(0, host="127.0.0.1", proxy_protocol=True))
        with await dial(accepting.server.localPort):
            while not acceptor_of(accepting.server).has_connections:
                await anyio.lowlevel.checkpoint()
            tcp.cancel_scope.cancel()
    assert not accepting.sockets


@pytest.mark.anyio
async def test_a_path_that_would_be_lines_of_a_log(caplog: pytest.LogCaptureFixture) -> None:
    path = b"/run/x\n2026-11-25 ERROR \x1b[2Jhacked"
    header = v2(0x21, 0x31, path.ljust(108, b"\0") + bytes(108))
    async with MozTCPSocket() as tcp:
        accepting = Accepting(tcp.listen(0, host="127.0.0.1", proxy_protocol=True))
        with await dial(accepting.server.localPort) as peer:
            await send_all(peer, header)
            socket_, recorder = await accepting.first()
            reset(peer)
            await recorder.first("close")
        accepting.server.close()
    assert socket_.host == path.decode()
    for shown in (repr(socket_), repr(recorder.events), str(recorder.of("error")[0].error), caplog.text.strip()):
        assert "\n" not in shown
        assert "\x1b" not in shown


def test_it_is_a_flag() -> None:
    with pytest.raises(TypeError, match="proxy_protocol must be a bool, not str"):
        TCPServerSocket(0, proxy_protocol="v1")  # type: ignore[call-overload]
