"""TLS from the start, in both roles and TLS versions, with blocking ssl sockets as peers."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
import trustme
from anyio.streams.tls import TLSAttribute

from mozsocket import InvalidStateError, MozTCPSocket, TCPServerSocket, TCPSocket, TCPSocketError
from mozsocket._tls import TLSTransport
from mozsocket._transport import Transport
from mozsocket.testing import EventRecorder

from ..certificates import AUTHORITY, certificate, client_context, server_context
from ..peers import (
    Accepting,
    accept,
    all_blocked,
    blocking,
    dial,
    do_handshake,
    exchange,
    listening,
    port_of,
    read_all,
    read_exactly,
    reset,
    secure,
    securely_connected,
)

pytestmark = pytest.mark.anyio

DATA = bytes(range(256)) * 12_000  # 3 MB


# Data


async def test_data_goes_both_ways_at_once(role: str, version: ssl.TLSVersion, listener: socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        socket_, recorder, peer = await securely_connected(tcp, role, listener, version)
        with peer:
            assert socket_.send(DATA) is False
            assert await blocking(exchange, peer, DATA, len(DATA)) == DATA
            await recorder.until(lambda: len(recorder.data) == len(DATA))
            assert recorder.data == DATA
            await recorder.first("drain")
            socket_.close()
            assert await blocking(read_all, peer) == b""
    assert "error" not in recorder.types
    assert recorder.types[-1] == "close"


async def test_it_is_encrypted(listener: socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        tcp_socket = tcp.open("127.0.0.1", port_of(listener), useSecureTransport=True, ssl_context=client_context())
        tcp_socket.onerror = lambda event: None
        assert tcp_socket.ssl
        with await accept(listener) as peer:
            hello = await blocking(peer.recv, 5)
            assert hello[:2] == b"\x16\x03"  # a handshake record
            tcp_socket.close()


async def test_bytes_that_come_one_at_a_time(role: str, version: ssl.TLSVersion, listener: socket.socket) -> None:
    """The peer uses memory buffers, and its records are sent byte by byte through a plain socket."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    server_side = role == "client"
    context = server_context(version=version) if server_side else client_context(version=version)
    tls = context.wrap_bio(incoming, outgoing, server_side, None if server_side else "localhost")

    def dribble(peer: socket.socket, sent: bytes) -> bytes:
        """Do the handshake, send data, and receive up to EOF, all like a blocking socket."""
        received = []
        steps: list[Any] = [tls.do_handshake, lambda: tls.write(sent), lambda: tls.read(100)]
        while steps:
            try:
                result = steps[0]()
            except ssl.SSLWantReadError:
                for byte in outgoing.read():
                    peer.send(bytes([byte]))
                incoming.write(peer.recv(65536))
                continue
            if len(steps) > 1 or not result:
                steps.pop(0)
            else:
                received.append(result)
        return b"".join(received)

    options: dict[str, Any] = {"useSecureTransport": True, "linger": 0.1}
    async with MozTCPSocket() as tcp:
        if role == "client":
            socket_ = tcp.open("127.0.0.1", port_of(listener), ssl_context=client_context(version=version), **options)
            recorder = EventRecorder(socket_)
            socket_.addEventListener("data", lambda event: event.target.close())
            socket_.onopen = lambda event: event.target.send(b"hello")
            peer = await accept(listener)
        else:
            server = tcp.listen(0, ssl_context=server_context(version=version), **options)

            def on_connect(event: Any) -> None:
                nonlocal recorder
                recorder = EventRecorder(event.socket)
                event.socket.ondata = lambda event: event.target.close()
                event.socket.send(b"hello")
                server.close()

            server.onconnect = on_connect
            peer = await dial(server.localPort)
        with peer:
            assert await blocking(dribble, peer, b"one byte at a time") == b"hello"
    assert recorder.data == b"one byte at a time"
    assert "error" not in recorder.types


async def test_many_records_read_at_once_are_one_data(
    role: str, version: ssl.TLSVersion, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with MozTCPSocket() as tcp:
        socket_, recorder, peer = await securely_connected(tcp, role, listener, version)
        with peer:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # or the system might delay all but the first
            monkeypatch.setattr(Transport, "receive", lambda self, size: None)  # nothing is read from the system
            monkeypatch.setattr(TLSTransport, "recv", lambda self, size: b"")
            for number in range(20):
                peer.send(bytes([number]) * 10)
            await anyio.lowlevel.checkpoint()
            monkeypatch.undo()
            await recorder.until(lambda: recorder.data.endswith(bytes([19]) * 10))
            # The system may deliver the last of them slightly later.
            assert len([event for event in recorder.events if event.type == "data"]) < 10
            socket_.close()


async def test_a_large_send_is_few_system_calls(
    role: str, version: ssl.TLSVersion, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    send = Transport.send

    def count(self: Transport, chunk: Any) -> int:
        calls.append(len(chunk))
        return send(self, chunk)

    async with MozTCPSocket() as tcp:
        socket_, _, peer = await securely_connected(tcp, role, listener, version)
        with peer:
            monkeypatch.setattr(Transport, "send", count)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(blocking, read_exactly, peer, 1 << 20)
                await all_blocked()
                socket_.send(bytes(1 << 20))
                await socket_.drained()
            assert max(calls) > 200_000, "records are handed over together"
            socket_.close()


async def test_buffered_amount_counts_what_tls_holds(
    role: str, version: ssl.TLSVersion, listener: socket.socket
) -> None:
    async with MozTCPSocket() as tcp:
        socket_, recorder, peer = await securely_connected(tcp, role, listener, version)
        with peer:
            sent = 0
            while socket_.bufferedAmount < 600_000:
                socket_.send(bytes(100_000))
                sent += 100_000
                await anyio.lowlevel.checkpoint()
            assert socket_.bufferedAmount <= sent
            assert await blocking(read_exactly, peer, sent) == bytes(sent)
            await recorder.first("drain")
            assert socket_.bufferedAmount == 0
            socket_.close()


async def send_until_full(peer: ssl.SSLSocket) -> int:
    """Send on a non-blocking socket until it accepts no more."""
    sent = 0
    for _ in range(2000):
        try:
            sent += peer.send(bytes(65536))
        except ssl.SSLWantWriteError:
            return sent
        await anyio.lowlevel.checkpoint()
    raise AssertionError("the peer was never held back")


async def test_a_suspended_socket_holds_the_peer_back(
    role: str, version: ssl.TLSVersion, listener: socket.socket
) -> None:
    async with MozTCPSocket() as tcp:
        socket_, recorder, peer = await securely_connected(tcp, role, listener, version)
        with peer:
            socket_.suspend()
            peer.setblocking(False)
            sent = await send_until_full(peer)
            assert recorder.data == b""
            socket_.resume()
            await recorder.until(lambda: len(recorder.data) >= sent)
            socket_.close()


# The end of the connection


async def test_closing_says_so(role: str, version: ssl.TLSVersion, listener: socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        socket_, recorder, peer = await securely_connected(tcp, role, listener, version)
        with peer:
            socket_.send(b"the last")
            socket_.close()
            # Without close_notify the peer, which is strict, would raise SSLEOFError.
            assert await blocking(read_all, peer) == b"the last"
        await recorder.first("close")
    assert "error" not in recorder.types


@pytest.mark.parametrize("answers", [0, 1, 5])
async def test_an_end_in_the_segment_of_the_last_data(answers: int, version: ssl.TLSVersion) -> None:
    """The peer sends nothing until our EOF, so nothing else arrives that could wake the reader."""
    async with MozTCPSocket() as tcp:
        server = tcp.listen(0, useSecureTransport=True, ssl_context=server_context(version=version))
        accepting = Accepting(server)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = client_context(version=version).wrap_bio(incoming, outgoing, server_hostname="localhost")

        with await dial(server.localPort) as peer:
            await blocking(do_handshake, tls, incoming, outgoing, peer)
            _, recorder = await accepting.first()
            for number in range(answers):
                tls.write(b"x")
                peer.sendall(outgoing.read())
                await recorder.until(lambda number=number: len(recorder.data) > number)  # type: ignore[misc]
            tls.write(b"last")
            with pytest.raises(ssl.SSLWantReadError):
                tls.unwrap()
            peer.sendall(outgoing.read())
            await blocking(read_all, peer)
        server.close()
    assert recorder.data == b"x" * answers + b"last"
    assert recorder.types[-1] == "close"
    assert "error" not in recorder.types


async def test_closing_does_not_wait_for_the_peer(role: str, listener: socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        socket_, recorder, peer = await securely_connected(tcp, role, listener, linger=0.01)
        with peer:
            socket_.close()
            await recorder.first("close")


async def test_the_peers_end_is_answered(role: str, version: ssl.TLSVersion, listener: socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        socket_, recorder, peer = await securely_connected(tcp, role, listener, version)
        socket_.ondata = lambda event: event.target.send(DATA)
        peer.sendall(b"?")
        assert await blocking(read_exactly, peer, len(DATA)) == DATA
        plain = await blocking(peer.unwrap)  # sends close_notify, and waits for ours
        with plain:
            await recorder.first("close")
    assert "error" not in recorder.types


async def test_a_failure_of_other_tls_in_the_thread_is_not_ours(role: str, listener: socket.socket) -> None:
    """OpenSSL keeps errors in a queue of the thread, and Python 3.15 leaves EPIPE there."""
    meet = partial(client_context().wrap_socket, server_hostname="localhost")
    async with MozTCPSocket() as tcp:
        _, recorder, peer = await securely_connected(tcp, role, listener)
        with peer:
            plain, other = socket.socketpair()
            meeting = threading.Thread(target=lambda: meet(other).close())
            meeting.start()
            with server_context().wrap_socket(plain, server_side=True) as lost:
                meeting.join()
                with pytest.raises((BrokenPipeError, ssl.SSLEOFError)):
                    lost.sendall(b"nobody is there")
            await blocking(peer.unwrap)
            await recorder.first("close")
    assert "error" not in recorder.types


async def test_what_is_buffered_is_sent_after_the_peers_end(
    role: str, version: ssl.TLSVersion, listener: socket.socket
) -> None:
    async with MozTCPSocket() as tcp:
        socket_, recorder, peer = await securely_connected(tcp, role, listener, version, tls_standard_compatible=False)
        with peer:
            socket_.send(DATA)
            socket.socket.shutdown(peer, socket.SHUT_WR)  # TCP's EOF without close_notify
            assert await blocking(read_exactly, peer, len(DATA)) == DATA
            await recorder.first("close")
    assert "error" not in recorder.types


async def test_being_cut_off_is_an_error_after_the_data(
    role: str, version: ssl.TLSVersion, listener: socket.socket
) -> None:
    async with MozTCPSocket() as tcp:
        _, recorder, peer = await securely_connected(tcp, role, listener, version)
        with peer:
            peer.sendall(DATA[:100_000])
            socket.socket.shutdown(peer, socket.SHUT_WR)
            error = await recorder.first("error")
        await recorder.first("close")
    assert recorder.data == DATA[:100_000]
    assert (error.name, error.message, error.errorCode) == ("NetworkInterruptError", "Network", 294)
    assert "close_notify" in str(error.error)
    assert recorder.types[-2:] == ["error", "close"]


async def test_a_reset(role: str, version: ssl.TLSVersion, listener: socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        _, recorder, peer = await securely_connected(tcp, role, listener, version)
        reset(peer)
        error = await recorder.first("error")
    assert (error.name, error.message) == ("NetworkInterruptError", "Network")


async def test_closing_immediately_drops_what_is_buffered(role: str, listener: socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        socket_, recorder, peer = await securely_connected(tcp, role, listener)
        with peer:
            socket_.send(bytes(10_000_000))
            socket_.closeImmediately()
            await recorder.first("close")


@pytest.mark.usefixtures("impatient")
async def test_garbage_in_the_middle(role: str, version: ssl.TLSVersion, listener: socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        _, recorder, peer = await securely_connected(tcp, role, listener, version)
        with socket.socket(fileno=peer.detach()) as plain:
            plain.settimeout(5)
            plain.sendall(b"this is not TLS at all")
            error = await recorder.first("error")
            await blocking(read_all, plain)  # the alert and EOF, not a reset
    assert error.message == "SecurityProtocol"
    assert recorder.data == b""


# The handshake


async def test_a_peer_that_never_answers(listener: socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        tcp_socket = tcp.open("127.0.0.1", port_of(listener), useSecureTransport=True, handshake_timeout=0.05)
        recorder = EventRecorder(tcp_socket)
        with await accept(listener):
            await recorder.first("close")
    assert recorder.types == ["error", "close"]
    error = recorder.events[0]
    assert (error.name, error.message) == ("NetworkTimeoutError", "Network")
    assert "no TLS handshake within 0.05 seconds" in str(error.error)


async def test_connect_timeout_covers_tls(listener: socket.socket) -> None:
    with pytest.raises(TCPSocketError, match="not connected within") as raised:
        async with TCPSocket("127.0.0.1", port_of(listener), useSecureTransport=True, connect_timeout=0.05) as socket_:
            await socket_.opened()
    assert raised.value.name == "NetworkTimeoutError"


async def test_connect_timeout_covers_tls_in_a_scope(listener: socket.socket) -> None:
    """The poller connects the socket itself, and its time limit goes on."""
    async with MozTCPSocket() as tcp:
        sock = tcp.open("127.0.0.1", port_of(listener), useSecureTransport=True, connect_timeout=0.05)
        recorder = EventRecorder(sock)
        assert (await recorder.next("error")).name == "NetworkTimeoutError"
        await recorder.next("close")


@pytest.mark.parametrize("in_scope", [True, False], ids=["scope", "block"])
@pytest.mark.parametrize("begin", [TCPSocket.upgradeToSecure, TCPSocket.close], ids=["upgrade", "close"])
async def test_connect_timeout_ends_with_connecting(
    begin: Callable[[TCPSocket], None], in_scope: bool, listener: socket.socket
) -> None:
    """What ``onopen`` begins has a time limit of its own."""
    async with MozTCPSocket() as tcp:
        make = tcp.open if in_scope else TCPSocket
        sock = make("127.0.0.1", port_of(listener), connect_timeout=0.05, handshake_timeout=0.2, linger=0.2)
        sock.onopen = lambda event: begin(event.target)
        recorder = EventRecorder(sock)
        begun = anyio.current_time()
        async with sock:
            with await accept(listener):
                await recorder.first("close")
        assert anyio.current_time() - begun > 0.15
    errors = [str(event.error) for event in recorder.events if event.type == "error"]
    assert len(errors) == (begin is TCPSocket.upgradeToSecure)
    assert all("no TLS handshake within 0.2 seconds" in error for error in errors)


async def test_a_client_that_never_says_hello(caplog: pytest.LogCaptureFixture) -> None:
    async with MozTCPSocket() as tcp:
        server = tcp.listen(
            0, host="127.0.0.1", useSecureTransport=True, ssl_context=server_context(), handshake_timeout=0.05
        )
        accepting = Accepting(server)
        with await dial(server.localPort) as silent:
            assert await blocking(silent.recv, 1) == b""
        # Others are still served.
        with await secure(await dial(server.localPort), client_context()):
            socket_, _ = await accepting.first()
            socket_.close()
        server.close()
    assert len(accepting.sockets) == 1
    (record,) = caplog.records
    assert "NetworkTimeoutError: no TLS handshake within" in record.getMessage()


@pytest.mark.parametrize("method", ["close", "closeImmediately"])
async def test_closing_during_the_handshake(method: str, listener: socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        tcp_socket = tcp.open("127.0.0.1", port_of(listener), useSecureTransport=True)
        recorder = EventRecorder(tcp_socket)
        with await accept(listener) as peer:
            await blocking(peer.recv, 5)
            getattr(tcp_socket, method)()
            assert tcp_socket.readyState == "closing"
            await recorder.first("close")
    assert recorder.types == ["close"]


async def test_cancelling_the_handshake(role: str, listener: socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        if role == "client":
            tcp.open("127.0.0.1", port_of(listener), useSecureTransport=True)
            peer = await accept(listener)
            await blocking(peer.recv, 5)
        else:
            server = tcp.listen(0, host="127.0.0.1", useSecureTransport=True, ssl_context=server_context())
            server.onconnect = lambda event: pytest.fail("connect, though there was no handshake")
            peer = await dial(server.localPort)
            await all_blocked()
        tcp.cancel_scope.cancel()
    with peer:
        await blocking(read_all, peer)


async def test_a_reset_during_the_handshake(listener: socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        recorder = EventRecorder(tcp.open("127.0.0.1", port_of(listener), useSecureTransport=True))
        peer = await accept(listener)
        await blocking(peer.recv, 5)
        reset(peer)
        await recorder.first("close")
    assert [event.type for event in recorder.events] == ["error", "close"]
    assert recorder.events[0].name == "NetworkInterruptError"


# Options


async def connects(leaf: Any, host: str, listener: socket.socket, **options: Any) -> str | None:
    """Whether a client connects to a server with this certificate; if not, the error's name."""
    async with MozTCPSocket() as tcp:
        options.setdefault("ssl_context", client_context())
        tcp_socket = tcp.open(host, port_of(listener), useSecureTransport=True, **options)
        recorder = EventRecorder(tcp_socket)
        tcp_socket.onopen = lambda event: event.target.close()
        peer = await accept(listener)
        try:
            with await secure(peer, server_context(leaf), server_side=True) as peer:
                await blocking(read_all, peer)
        except ssl.SSLError:
            peer.close()
        await recorder.first("close")
    return recorder.events[0].name if recorder.types[0] == "error" else None


async def test_names_and_addresses_are_checked(listener: socket.socket) -> None:
    mismatch = "SecurityCertificateDomainMismatchError"
    for names, options, expected in (
        (("127.0.0.1",), {}, None),
        (("localhost",), {}, mismatch),
        (("127.0.0.2",), {}, mismatch),
        (("localhost",), {"server_hostname": "localhost"}, None),
        (("localhost",), {"server_hostname": "localhost."}, None),
        (("::1",), {"server_hostname": "::1"}, None),
        (("fe80::1",), {"server_hostname": "fe80::1%eth0"}, None),
        (("xn--fa-hia.example",), {"server_hostname": "faß.example"}, None),
        (("fass.example",), {"server_hostname": "faß.example"}, mismatch),
    ):
        assert await connects(certificate(*names), "127.0.0.1", listener, **options) == expected, (names, options)


async def test_the_default_context_trusts_the_systems_authorities(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """The trusted authorities are the system's current ones, even if a connection was made before they changed."""

    async def outcome() -> str | None:
        return await connects(certificate(), "127.0.0.1", listener, ssl_context=None)

    untrusted = "SecurityUntrustedCertificateIssuerError"
    assert await outcome() == untrusted
    AUTHORITY.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    assert await outcome() is None
    another = trustme.CA().cert_pem
    another.write_to_path(str(tmp_path / "ca.pem"))
    assert await outcome() == untrusted
    AUTHORITY.cert_pem.write_to_path(str(tmp_path / "ca.pem"), append=True)
    assert await outcome() is None
    monkeypatch.delenv("SSL_CERT_FILE")
    assert await outcome() == untrusted
    AUTHORITY.cert_pem.write_to_path(str(tmp_path / f"{subject_hash(tmp_path / 'ca.pem')}.0"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    assert await outcome() is None


def subject_hash(path: Path) -> str:
    """The file name by which OpenSSL finds an authority in a folder, for the last one in the file."""
    last = path.read_text().rpartition("-----BEGIN CERTIFICATE-----")
    command = ["openssl", "x509", "-noout", "-subject_hash"]
    return subprocess.run(command, input=last[1] + last[2], capture_output=True, text=True, check=True).stdout.strip()


async def test_sni_is_sent_for_names_only(listener: socket.socket) -> None:
    for name, expected in (("localhost", "localhost"), ("127.0.0.1", None)):
        seen = []
        context = server_context()
        context.sni_callback = lambda sock, name, ctx: seen.append(name)  # noqa: B023
        async with MozTCPSocket() as tcp:
            tcp_socket = tcp.open(
                "127.0.0.1",
                port_of(listener),
                useSecureTransport=True,
                ssl_context=client_context(),
                server_hostname=name,
            )
            with await secure(await accept(listener), context, server_side=True):
                await tcp_socket.opened()
                tcp_socket.close()
        assert seen == [expected]


async def test_typed_attributes(role: str, version: ssl.TLSVersion, listener: socket.socket) -> None:
    server, client = (
        server_context(version=version, ask_for_certificate=True),
        client_context(certificate("me"), version=version),
    )
    for context in (server, client):
        context.set_alpn_protocols(["smtp", "imap"])
    async with MozTCPSocket() as tcp:
        if role == "client":
            socket_ = tcp.open("127.0.0.1", port_of(listener), useSecureTransport=True, ssl_context=client)
            assert TLSAttribute.cipher not in socket_.extra_attributes
            peer = await secure(await accept(listener), server, server_side=True)
            await socket_.opened()
        else:
            accepting = Accepting(tcp.listen(0, host="127.0.0.1", useSecureTransport=True, ssl_context=server))
            peer = await secure(await dial(accepting.server.localPort), client)
            socket_, _ = await accepting.first()
            accepting.server.close()
        with peer:
            attributes = {
                name: socket_.extra(getattr(TLSAttribute, name))
                for name in dir(TLSAttribute)
                if not name.startswith("_")
            }
            theirs, cipher = peer.getpeercert(True), peer.cipher()
            socket_.close()
    assert attributes["alpn_protocol"] == "smtp"
    assert attributes["server_side"] is (role == "server")
    assert attributes["tls_version"] == {ssl.TLSVersion.TLSv1_2: "TLSv1.2"}.get(version, "TLSv1.3")
    assert attributes["cipher"] == cipher
    assert attributes["standard_compatible"] is True
    assert isinstance(attributes["ssl_object"], ssl.SSLObject)
    assert (attributes["shared_ciphers"] is None) is (role == "client")
    names = [value for kind, value in attributes["peer_certificate"]["subjectAltName"]]
    assert names == (["localhost", "127.0.0.1", "0:0:0:0:0:0:0:1"] if role == "client" else ["me"])
    assert isinstance(attributes["peer_certificate_binary"], bytes)
    assert theirs != attributes["peer_certificate_binary"]
    if version is ssl.TLSVersion.TLSv1_2:
        assert attributes["channel_binding_tls_unique"]


async def test_a_socketpair_by_the_contexts_role() -> None:
    ours, theirs = socket.socketpair()
    async with MozTCPSocket():
        server = TCPSocket.from_socket(ours, useSecureTransport=True, ssl_context=server_context())
        client = TCPSocket.from_socket(
            theirs, useSecureTransport=True, ssl_context=client_context(), server_hostname="localhost"
        )
        received = EventRecorder(server)
        async with server, client:
            await client.opened()
            client.send(b"hello")
            await received.first("data")
    assert received.data == b"hello"


def bad(call: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        call()


async def test_bad_options() -> None:
    bad(lambda: TCPSocket("localhost", 1, ssl_context=object()), TypeError, "must be an ssl.SSLContext")  # type: ignore[call-overload]
    bad(
        lambda: TCPSocket("localhost", 1, useSecureTransport=True, ssl_context=server_context()),
        ValueError,
        "other side of TLS",
    )
    bad(lambda: TCPSocket("localhost", 1, useSecureTransport=1), TypeError, "must be a bool")  # type: ignore[call-overload]
    bad(lambda: TCPSocket("localhost", 1, handshake_timeout=-1), ValueError, "0 or more")
    bad(lambda: TCPSocket("localhost", 1, tls_standard_compatible=None), TypeError, "must be a bool")  # type: ignore[call-overload]
    bad(lambda: TCPSocket("localhost", 1, server_hostname=""), ValueError, "server_hostname")
    for name in "a..b", f"{'x' * 64}.test", "größer..test":
        bad(partial(TCPSocket, "localhost", 1, server_hostname=name), ValueError, "server_hostname must be a host name")
    bad(lambda: TCPSocket("localhost", 1, server_hostname=".x"), ValueError, "dot")
    bad(lambda: TCPSocket("localhost", 1, server_hostname="\u2024\u2024"), ValueError, "not allowed")
    bad(lambda: TCPServerSocket(0, useSecureTransport=True), ValueError, "needs an ssl_context")
    bad(
        lambda: TCPServerSocket(0, useSecureTransport=True, ssl_context=client_context()),
        ValueError,
        "other side of TLS",
    )
    ours, theirs = socket.socketpair()
    with ours, theirs:
        bad(lambda: TCPSocket.from_socket(ours, useSecureTransport=True), ValueError, "server_hostname")


@contextmanager
def calls(tcp: MozTCPSocket) -> Iterator[tuple[list[Callable[..., Any]], list[Callable[..., Any]]]]:
    """The calls that accept TLS options: those that make clients, and those that make servers."""
    client: Any = TCPSocket
    server: Any = TCPServerSocket
    scope: Any = tcp
    ours, theirs = socket.socketpair()
    with ours, theirs, listening() as listener:
        address = "127.0.0.1", port_of(listener)
        yield (
            [partial(client, *address), partial(scope.open, *address), partial(client.from_socket, ours)],
            [partial(server, 0), partial(scope.listen, 0), partial(server.from_socket, listener)],
        )


@pytest.mark.parametrize("said", [{}, {"useSecureTransport": False}], ids=["unsaid", "said"])
@pytest.mark.parametrize("context", [client_context, server_context])
async def test_an_option_of_tls_where_there_is_none(context: Callable[[], ssl.SSLContext], said: Any) -> None:
    """A program that passes such an option expects encryption."""
    message = (
        "{0} alone encrypts nothing: pass useSecureTransport=True too or, for STARTTLS, give {0} to upgradeToSecure()"
        " instead"
    )
    async with MozTCPSocket() as tcp:
        with calls(tcp) as (of_clients, of_servers):
            for call in of_clients + of_servers:
                with pytest.raises(ValueError, match="encrypts nothing") as raised:
                    call(ssl_context=context(), **said)
                assert str(raised.value) == message.format("ssl_context")
            for call in of_clients:
                with pytest.raises(ValueError, match="encrypts nothing") as raised:
                    call(server_hostname="localhost", **said)
                assert str(raised.value) == message.format("server_hostname")
            for call in of_clients + of_servers:
                call().close()  # a socket that was to be adopted is unchanged


async def test_an_option_of_tls_that_is_none() -> None:
    """So a program can decide about TLS at run time."""
    async with MozTCPSocket() as tcp:
        with calls(tcp) as (of_clients, of_servers):
            made = [call(ssl_context=None, server_hostname=None) for call in of_clients]
            made += [call(ssl_context=None) for call in of_servers]
            for each in made:
                each.close()
    assert not any(each.ssl for each in made if isinstance(each, TCPSocket))


async def test_secured_raises_when_it_never_will_be(listener: socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        tcp_socket = tcp.open("127.0.0.1", port_of(listener))
        (await accept(listener)).close()
        with pytest.raises(InvalidStateError, match="closed first"):
            await tcp_socket.secured()


async def test_what_is_added_while_records_wait_for_room_is_sent_behind_them(
    role: str, version: ssl.TLSVersion, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This holds even if the buffer has space again when they are added, and nothing waits any more."""
    async with MozTCPSocket() as tcp:
        socket_, _, peer = await securely_connected(tcp, role, listener, version)
        send = Transport.send

        def send_little(transport: Transport, chunk: bytes | memoryview) -> int:
            monkeypatch.setattr(Transport, "send", send)
            socket_.send(b"more")
            return send(transport, memoryview(chunk)[:10])

        monkeypatch.setattr(Transport, "send", send_little)
        with peer:
            peer.settimeout(5)
            socket_.send(b"some")
            assert await blocking(read_exactly, peer, 8) == b"somemore"
            socket_.close()
            assert await blocking(read_all, peer) == b""


async def test_the_end_of_a_handshake_goes_with_what_the_handlers_send(
    version: ssl.TLSVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are sent in one piece. In TLS 1.3 the client sends the end of the handshake, in TLS 1.2 the server."""
    sent: dict[str, int] = {"client": 0, "server": 0}
    real_send = Transport.send

    def send(self: Transport, chunk: bytes | memoryview) -> int:
        sent["server" if self.socket.getsockname()[1] == server.localPort else "client"] += 1
        return real_send(self, chunk)

    monkeypatch.setattr(Transport, "send", send)
    context = client_context()
    context.maximum_version = version
    async with MozTCPSocket() as tcp:
        server = tcp.listen(0, host="127.0.0.1", useSecureTransport=True, ssl_context=server_context())
        server.onconnect = lambda event: event.socket.send(b"hello") and None
        client = tcp.open("localhost", server.localPort, useSecureTransport=True, ssl_context=context)
        client.onopen = lambda event: client.send(b"hello") and None
        recorder = EventRecorder(client)
        assert (await recorder.next("data")).data == b"hello"
        await client.drained()
        expected = {"client": 2, "server": 2}  # the hello, and the remainder
        if version is ssl.TLSVersion.TLSv1_2:
            expected["client"] += 1  # it cannot send before the server has finished the handshake
        assert sent == expected
        tcp.close()
