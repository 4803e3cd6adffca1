"""upgradeToSecure() in both roles, and attacks on the plaintext before TLS."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from mozsocket import InvalidStateError, MozTCPSocket, TCPServerSocket, TCPSocket, TCPSocketError
from mozsocket._transport import Transport
from mozsocket.testing import EventRecorder

from ..certificates import client_context, server_context
from ..peers import (
    PEER_TIMEOUT,
    Accepting,
    EarlyHello,
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
)

pytestmark = pytest.mark.anyio

BIG = bytes(range(256)) * 40_000  # 10 MB: more than the operating system buffers


def contexts(role: str, version: ssl.TLSVersion | None = None) -> tuple[dict[str, Any], ssl.SSLContext]:
    """The arguments of upgradeToSecure() in a role, and the peer's context."""
    if role == "client":
        return {"ssl_context": client_context(version=version), "server_hostname": "localhost"}, server_context(
            version=version
        )
    return {"ssl_context": server_context(version=version)}, client_context(version=version)


async def go_secure(peer: socket.socket, role: str, context: ssl.SSLContext) -> ssl.SSLSocket:
    return await secure(peer, context, server_side=role == "client")


async def test_plaintext_before_and_tls_after(role: str, version: ssl.TLSVersion, listener: socket.socket) -> None:
    arguments, theirs = contexts(role, version)
    async with MozTCPSocket() as tcp:
        socket_, recorder, peer = await connected(tcp, role, listener)
        socket_.send(b"plain")
        assert not socket_.ssl
        socket_.upgradeToSecure(**arguments)
        assert socket_.ssl
        socket_.send(b"secret")
        assert await blocking(read_exactly, peer, 5) == b"plain"
        with await go_secure(peer, role, theirs) as peer:
            await socket_.secured()
            await recorder.first("secure")
            assert await blocking(read_exactly, peer, 6) == b"secret"
            peer.sendall(b"answer")
            await recorder.first("data")
            socket_.upgradeToSecure()  # does nothing
            socket_.close()
            assert await blocking(read_all, peer) == b""
    assert recorder.data == b"answer"
    assert recorder.types[-3:] == ["secure", "data", "close"]
    assert recorder.types.count("secure") == 1


@pytest.mark.parametrize("sends", [False, True])
@pytest.mark.parametrize("half_open", [False, True])
async def test_an_end_that_was_read_before_the_upgrade_cuts_tls_off(half_open: bool, sends: bool, role: str) -> None:
    """The handler waits meanwhile, so the end is not delivered when TLS begins."""
    arguments, _ = contexts(role, ssl.TLSVersion.TLSv1_3)
    has_begun, has_ended = anyio.Event(), anyio.Event()

    async def upgrade(event: Any) -> None:
        has_begun.set()
        await has_ended.wait()
        event.target.upgradeToSecure(**arguments)
        if sends:
            event.target.send(b"secret")

    async with joined("plain", role, allow_half_open=half_open) as (sock, recorder, peer):
        sock.ondata = upgrade
        peer.sendall(b"STARTTLS")
        peer.shutdown(socket.SHUT_WR)
        await has_begun.wait()
        await all_blocked()
        has_ended.set()
        error = (await recorder.first("error")).error
        await recorder.first("close")
    assert error.name == "NetworkInterruptError"
    assert recorder.types == ["open"] * (role == "client") + ["data", "error", "close"]


async def test_upgrade_in_the_middle_of_a_blocked_send(
    role: str, version: ssl.TLSVersion, listener: socket.socket
) -> None:
    arguments, theirs = contexts(role, version)
    async with MozTCPSocket() as tcp:
        socket_, recorder, peer = await connected(tcp, role, listener)
        socket_.send(BIG)
        await all_blocked()
        assert socket_.bufferedAmount > 0
        socket_.upgradeToSecure(**arguments)
        socket_.send(BIG[::-1])
        socket_.close()
        assert await blocking(read_exactly, peer, len(BIG)) == BIG
        with await go_secure(peer, role, theirs) as peer:
            assert await blocking(read_exactly, peer, len(BIG)) == BIG[::-1]
            assert await blocking(read_all, peer) == b""
        await recorder.first("close")
    assert recorder.types[-2:] == ["drain", "close"]
    assert socket_.bufferedAmount == 0


@pytest.mark.parametrize("reader", ["handlers", "stream"])
async def test_a_drain_that_is_owed_since_the_handshake(
    reader: str, role: str, version: ssl.TLSVersion, listener: socket.socket
) -> None:
    """The kernel takes all of the buffer at once when the handshake ends."""
    arguments, theirs = contexts(role, version)
    async with MozTCPSocket() as tcp:
        socket_, recorder, peer = await connected(tcp, role, listener)
        socket_.upgradeToSecure(**arguments)
        assert not socket_.send(b"x" * 70_000)
        if reader == "stream":
            tcp.start_soon(socket_.stream().receive)
        with await go_secure(peer, role, theirs) as peer:
            assert await blocking(read_exactly, peer, 70_000) == b"x" * 70_000
            await recorder.first("drain")
            assert socket_.bufferedAmount == 0
            tcp.cancel_scope.cancel()


async def test_nothing_sent_after_it_goes_out_unencrypted(role: str, listener: socket.socket) -> None:
    """The peer never answers: it gets none of the data, and the program gets an error."""
    arguments, _ = contexts(role)
    async with MozTCPSocket() as tcp:
        socket_, recorder, peer = await connected(tcp, role, listener, handshake_timeout=0.1)
        with peer:
            socket_.send(b"plain")
            socket_.upgradeToSecure(**arguments)
            socket_.send(b"SECRET" * 1000)
            assert socket_.bufferedAmount == 6005
            socket_.close()
            seen = await blocking(read_all, peer)
        error = await recorder.first("error")
    assert seen.startswith(b"plain")
    assert b"SECRET" not in seen
    assert (error.name, error.error.__class__) == ("NetworkTimeoutError", TCPSocketError)
    assert recorder.types[-2:] == ["error", "close"]


async def test_plaintext_takes_what_time_it_takes(role: str, listener: socket.socket) -> None:
    """Only the handshake after the plaintext is limited; here its limit is close to zero."""
    arguments, _ = contexts(role)
    async with MozTCPSocket() as tcp:
        socket_, recorder, peer = await connected(tcp, role, listener, handshake_timeout=0)
        with peer:
            socket_.send(BIG)
            socket_.upgradeToSecure(**arguments)
            await all_blocked()
            assert socket_.bufferedAmount
            assert await blocking(read_exactly, peer, len(BIG)) == BIG
            error = await recorder.first("error")
            await recorder.first("close")
    assert error.name == "NetworkTimeoutError"


@pytest.mark.usefixtures("impatient")
async def test_plaintext_that_is_not_read_does_not_hold_up_the_handshake_for_ever(
    role: str, listener: socket.socket
) -> None:
    arguments, _ = contexts(role)
    async with MozTCPSocket() as tcp:
        socket_, recorder, peer = await connected(tcp, role, listener, handshake_timeout=0.1)
        with peer:
            socket_.send(BIG)
            socket_.upgradeToSecure(**arguments)
            with pytest.raises(TCPSocketError, match="before TLS"):
                await socket_.secured()
            await recorder.first("close")
    assert recorder.of("error")[-1].name == "NetworkTimeoutError"


@pytest.mark.usefixtures("impatient")
async def test_plaintext_that_is_read_by_drops_is_bounded_too(listener: socket.socket) -> None:
    arguments, _ = contexts("client")
    async with MozTCPSocket() as tcp:
        socket_, recorder, peer = await connected(tcp, "client", listener, handshake_timeout=0.1)
        with peer:
            socket_.send(BIG)
            socket_.upgradeToSecure(**arguments)
            with anyio.fail_after(PEER_TIMEOUT):
                while "close" not in recorder.types:
                    await blocking(peer.recv, 1)
    assert recorder.of("error")[-1].name == "NetworkTimeoutError"


async def test_a_peer_that_stalls_in_the_handshake(role: str, listener: socket.socket) -> None:
    arguments, _ = contexts(role)
    async with MozTCPSocket() as tcp:
        socket_, recorder, peer = await connected(tcp, role, listener, handshake_timeout=0.05)
        with peer:
            socket_.upgradeToSecure(**arguments)
            with pytest.raises(TCPSocketError, match="no TLS handshake within"):
                await socket_.secured()
            await recorder.first("close")


@pytest.mark.parametrize("end", [lambda peer: peer.close(), reset], ids=["close", "reset"])
async def test_a_peer_that_ends_in_the_handshake(
    role: str, end: Callable[[socket.socket], None], listener: socket.socket
) -> None:
    arguments, _ = contexts(role)
    async with MozTCPSocket() as tcp:
        socket_, recorder, peer = await connected(tcp, role, listener)
        socket_.upgradeToSecure(**arguments)
        if role == "client":
            await blocking(peer.recv, 100)
        end(peer)
        error = await recorder.first("error")
        await recorder.first("close")
    assert error.name == "NetworkInterruptError"


@pytest.mark.parametrize("method", ["close", "closeImmediately"])
async def test_closing_in_the_handshake(role: str, method: str, listener: socket.socket) -> None:
    arguments, _ = contexts(role)
    async with MozTCPSocket() as tcp:
        socket_, recorder, peer = await connected(tcp, role, listener)
        with peer:
            socket_.upgradeToSecure(**arguments)
            getattr(socket_, method)()
            if method == "close":
                peer.close()
            with pytest.raises(InvalidStateError, match="closed first"):
                await socket_.secured()
            await recorder.first("close")
    assert "error" not in recorder.types


async def test_cancelling_at_each_turn(role: str, listener: socket.socket) -> None:
    """Wherever it is cancelled, nothing leaks and no event follows; in some turn the handshake is done already."""
    arguments, theirs = contexts(role)
    for turns in range(0, 60, 3):
        async with MozTCPSocket() as tcp:
            socket_, recorder, peer = await connected(tcp, role, listener)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(shake, peer, role, theirs)
                socket_.upgradeToSecure(**arguments)
                socket_.send(b"x")
                for _ in range(turns):
                    await anyio.lowlevel.checkpoint()
                count = len(recorder.events)
                tcp.cancel_scope.cancel()
        assert socket_.readyState == "closed"
        assert recorder.events[count:] == []


async def shake(peer: socket.socket, role: str, context: ssl.SSLContext) -> None:
    with anyio.CancelScope(shield=True):
        try:
            with await go_secure(peer, role, context) as secured:
                await blocking(read_all, secured)
        except OSError:
            peer.close()


async def test_a_raising_secure_handler(listener: socket.socket) -> None:
    arguments, theirs = contexts("client")
    with pytest.raises(BaseException) as raised:  # noqa: PT011, PT012
        async with MozTCPSocket() as tcp:
            socket_, _, peer = await connected(tcp, "client", listener)
            socket_.onsecure = lambda event: 1 / 0
            socket_.upgradeToSecure(**arguments)
            await shake(peer, "client", theirs)
    assert [type(exc) for exc in raised.value.exceptions] == [ZeroDivisionError]  # type: ignore[attr-defined]


async def test_secure_comes_before_data_though_handlers_are_slow(role: str, listener: socket.socket) -> None:
    arguments, theirs = contexts(role)
    order = []

    async def slow(event: Any) -> None:
        order.append(event.type)
        await anyio.lowlevel.checkpoint()
        order.append(f"{event.type} done")

    async with MozTCPSocket() as tcp:
        socket_, recorder, peer = await connected(tcp, role, listener)
        socket_.onsecure = socket_.ondata = slow
        socket_.upgradeToSecure(**arguments)
        with await go_secure(peer, role, theirs) as peer:
            peer.sendall(b"data")
            await recorder.first("data")
            socket_.close()
    assert order == ["secure", "secure done", "data", "data done"]


async def test_not_open(listener: socket.socket) -> None:
    tcp_socket = TCPSocket("127.0.0.1", port_of(listener))
    with pytest.raises(InvalidStateError, match="connecting: it must be open"):
        tcp_socket.upgradeToSecure()
    async with MozTCPSocket() as tcp:
        socket_, recorder, peer = await connected(tcp, "client", listener)
        with peer:
            socket_.close()
            with pytest.raises(InvalidStateError, match="closing"):
                socket_.upgradeToSecure()
        await recorder.first("close")
        with pytest.raises(InvalidStateError, match="closed"):
            socket_.upgradeToSecure()


async def test_bad_arguments_change_nothing(listener: socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        for role, wrong in (("client", server_context()), ("server", client_context())):
            socket_, _, peer = await connected(tcp, role, listener)
            with peer:
                with pytest.raises(ValueError, match="other side of TLS"):
                    socket_.upgradeToSecure(ssl_context=wrong)
                with pytest.raises(TypeError, match=r"ssl\.SSLContext"):
                    socket_.upgradeToSecure(ssl_context="x")  # type: ignore[arg-type]
                with pytest.raises(TypeError, match="server_hostname"):
                    socket_.upgradeToSecure(server_hostname=b"x")  # type: ignore[arg-type]
                with pytest.raises(TypeError, match="leftover must be a bytes-like object or a str, not int"):
                    socket_.upgradeToSecure(leftover=1)  # type: ignore[arg-type]
                with pytest.raises(ValueError, match="leftover") as raised:
                    socket_.upgradeToSecure(leftover="\x16\x03\x01\x80")
                assert str(raised.value) == (
                    'leftover must be a str of ASCII, or with binaryType="string" of characters up to U+00FF, one per'
                    " byte; character 3 is U+0080: encode the text first, as by text.encode()"
                )
                if role == "server":
                    with pytest.raises(ValueError, match="accepted socket needs an ssl_context"):
                        socket_.upgradeToSecure()
                assert not socket_.ssl
                socket_.send(b"still plain")
                assert await blocking(read_exactly, peer, 11) == b"still plain"
                socket_.close()


async def test_a_connection_without_a_host_needs_a_name_to_check() -> None:
    ours, peer = socket.socketpair()
    with peer:
        async with TCPSocket.from_socket(ours) as socket_:
            await socket_.opened()
            with pytest.raises(ValueError, match="server_hostname is needed"):
                socket_.upgradeToSecure(ssl_context=client_context())
            socket_.closeImmediately()


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="the system has no UNIX-domain sockets")
async def test_the_path_of_a_unix_domain_socket_is_no_name_to_check(tmp_path: Path) -> None:
    """The path of the client, which may contain any characters, is not checked either."""
    path, client_path = str(tmp_path / "server"), str(tmp_path / "größer")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(path)
        listener.listen()
        client.bind(client_path)
        client.connect(path)
        secure_client: dict[str, Any] = {"useSecureTransport": True, "ssl_context": client_context()}
        with pytest.raises(ValueError, match="server_hostname is needed"):
            TCPSocket.from_socket(client, **secure_client)
        server = TCPServerSocket.from_socket(
            listener.dup(), useSecureTransport=True, ssl_context=server_context(), linger=0
        )
        async with server, TCPSocket.from_socket(client.dup(), server_hostname="localhost", **secure_client) as ours:
            client.close()
            accepting = Accepting(server)
            await ours.opened()
            accepted, _ = await accepting.first()
            assert (accepted.host, accepted.port) == (client_path, 0)
            ours.close()


# STARTTLS as programs use it


class Starttls:
    """The server's side of a protocol of lines: it answers "STARTTLS" with "220", then starts TLS."""

    def __init__(self, socket_: TCPSocket, *, keep_leftover: bool) -> None:
        self.lines: list[tuple[bool, bytes]] = []  # each line, and whether it was encrypted
        self._socket = socket_
        self._keep_leftover = keep_leftover
        self._rest = b""
        socket_.ondata = self._on_data
        self.recorder = EventRecorder(socket_)

    def _on_data(self, event: Any) -> None:
        *lines, self._rest = (self._rest + event.data).split(b"\r\n")
        for number, line in enumerate(lines):
            if line == b"STARTTLS" and not self._socket.ssl:
                self._socket.send(b"220 go ahead\r\n")
                leftover = b"\r\n".join([*lines[number + 1 :], self._rest])
                self._socket.upgradeToSecure(
                    ssl_context=server_context(), leftover=leftover if self._keep_leftover else b""
                )
                self._rest = b""
                return
            self.lines.append((self._socket.ssl, line))
            self._socket.send(b"250 " + line + b"\r\n")


async def serve_starttls(tcp: MozTCPSocket, *, keep_leftover: bool) -> tuple[socket.socket, Starttls]:
    made = []
    done = anyio.Event()

    def on_connect(event: Any) -> None:
        made.append(Starttls(event.socket, keep_leftover=keep_leftover))
        server.close()
        done.set()

    server = tcp.listen(0, host="127.0.0.1")
    server.onconnect = on_connect
    peer = await dial(server.localPort)
    await done.wait()
    return peer, made[0]


async def test_an_early_client_hello_in_the_segment_of_the_plaintext() -> None:
    async with MozTCPSocket() as tcp:
        peer, server = await serve_starttls(tcp, keep_leftover=True)
        with peer:
            client = EarlyHello()
            peer.sendall(b"STARTTLS\r\n" + client.hello)
            assert await blocking(read_exactly, peer, 14) == b"220 go ahead\r\n"
            await blocking(client.go_on, peer)
            await server.recorder.until(lambda: bool(server.lines))
            tcp.close()
    assert server.lines == [(True, b"encrypted")]


async def test_an_early_client_hello_that_came_as_text(listener: socket.socket) -> None:
    """With binaryType="string" the hello arrives as a str, like the text before it."""
    async with MozTCPSocket() as tcp:
        socket_, recorder, peer = await connected(tcp, "server", listener, binaryType="string")
        with peer:
            client = EarlyHello()
            peer.sendall(b"STARTTLS\r\n" + client.hello)
            await recorder.until(lambda: len(recorder.data) == 10 + len(client.hello))
            leftover = recorder.data.removeprefix("STARTTLS\r\n")
            assert not leftover.isascii()
            socket_.upgradeToSecure(ssl_context=server_context(), leftover=leftover)
            await blocking(client.go_on, peer)
            await recorder.until(lambda: recorder.data.endswith("encrypted\r\n"))
            tcp.close()


async def test_an_early_client_hello_that_waits_to_be_delivered(listener: socket.socket) -> None:
    """Data received while the socket was suspended, before the upgrade, belongs to TLS."""
    async with MozTCPSocket() as tcp:
        socket_, recorder, peer = await connected(tcp, "server", listener)
        with peer:
            socket_.suspend()
            client = EarlyHello()
            peer.sendall(client.hello)
            await all_blocked()
            socket_.upgradeToSecure(ssl_context=server_context())
            socket_.resume()
            await blocking(client.go_on, peer)
            await recorder.first("data")
            socket_.close()
    assert recorder.data == b"encrypted\r\n"


INJECTED = b"MAIL FROM:<attacker@example.com>\r\n"


async def inject_in_the_segment(peer: socket.socket) -> None:
    peer.sendall(b"STARTTLS\r\n" + INJECTED)


async def inject_byte_by_byte(peer: socket.socket) -> None:
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in b"STARTTLS\r\n" + INJECTED:
        peer.send(bytes([byte]))
        await anyio.lowlevel.checkpoint()


async def inject_after_the_switch(peer: socket.socket) -> None:
    peer.sendall(b"STARTTLS\r\n")
    assert await blocking(read_exactly, peer, 14) == b"220 go ahead\r\n"
    peer.sendall(INJECTED)


@pytest.mark.parametrize("inject", [inject_in_the_segment, inject_byte_by_byte, inject_after_the_switch])
async def test_commands_injected_into_the_plaintext(
    inject: Callable[[socket.socket], Any], request: pytest.FixtureRequest
) -> None:
    if inject is not inject_byte_by_byte:  # which takes the time that the peer is given
        request.getfixturevalue("impatient")
    async with MozTCPSocket() as tcp:
        peer, server = await serve_starttls(tcp, keep_leftover=True)
        with peer:
            await inject(peer)
            error = await server.recorder.first("error")
            answer = await blocking(read_all, peer)
        await server.recorder.first("close")
    assert (error.message, error.name) == ("SecurityProtocol", "SecurityError")
    assert server.lines == []
    assert b"250" not in answer


async def test_injected_commands_are_not_looked_at_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The peer still has time to read why TLS failed, and that costs other connections nothing."""
    reads = 0
    receive = Transport.receive

    def count(self: Transport, size: int) -> bytes | None:
        nonlocal reads
        reads += 1
        return receive(self, size)

    monkeypatch.setattr(Transport, "receive", count)
    async with MozTCPSocket() as tcp:
        peer, server = await serve_starttls(tcp, keep_leftover=True)
        with peer:
            await inject_in_the_segment(peer)
            await server.recorder.first("close")
    assert server.lines == []
    assert 0 < reads < 50


async def test_commands_that_the_program_throws_away() -> None:
    """A server that discards what follows STARTTLS, as RFC 3207 requires, continues with the honest client."""
    async with MozTCPSocket() as tcp:
        peer, server = await serve_starttls(tcp, keep_leftover=False)
        await inject_in_the_segment(peer)
        assert await blocking(read_exactly, peer, 14) == b"220 go ahead\r\n"
        with await secure(peer, client_context()) as secured:
            secured.sendall(b"honest\r\n")
            assert await blocking(read_exactly, secured, 12) == b"250 honest\r\n"
            tcp.close()
            assert await blocking(read_all, secured) == b""
    assert server.lines == [(True, b"honest")]


@pytest.mark.usefixtures("impatient")
async def test_commands_injected_while_suspended(listener: socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        socket_, recorder, peer = await connected(tcp, "server", listener)
        with peer:
            socket_.suspend()
            peer.sendall(INJECTED * 20_000)  # more than the channel holds: the reader waits for space in it
            await all_blocked()
            socket_.upgradeToSecure(ssl_context=server_context())
            socket_.resume()
            error = await recorder.first("error")
            await recorder.first("close")
    assert error.message == "SecurityProtocol"
    assert recorder.data == b""


@pytest.mark.usefixtures("impatient")
async def test_an_upgrade_at_any_moment_while_the_channel_fills(listener: socket.socket) -> None:
    """The reader never holds data that is neither delivered nor found by the upgrade."""
    for turns in range(50):
        async with MozTCPSocket() as tcp:
            socket_, recorder, peer = await connected(tcp, "server", listener)
            with peer:
                socket_.suspend()
                peer.sendall(INJECTED * 20_000)
                for _ in range(turns):
                    await anyio.lowlevel.checkpoint()
                socket_.upgradeToSecure(ssl_context=server_context())
                socket_.resume()
                error = await recorder.first("error")
        assert error.message == "SecurityProtocol"
        assert recorder.data == b""


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("together", [True, False], ids=["in the segment", "after the switch"])
async def test_responses_injected_into_the_plaintext(together: bool, listener: socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        client = tcp.open("127.0.0.1", port_of(listener))
        recorder = EventRecorder(client)
        after: list[bytes] = []

        def on_data(event: Any) -> None:
            if client.ssl:
                after.append(event.data)
                return
            _, _, rest = event.data.partition(b"\r\n")
            client.upgradeToSecure(ssl_context=client_context(), server_hostname="localhost", leftover=rest)
            client.send(b"PASSWORD")

        client.ondata = on_data
        with await accept(listener) as peer:
            if together:
                peer.sendall(b"220 go\r\n250 injected\r\n")
            else:
                peer.sendall(b"220 go\r\n")
                await blocking(peer.recv, 5)
                peer.sendall(b"250 injected\r\n")
            error = await recorder.first("error")
            seen = await blocking(read_all, peer)
        await recorder.first("close")
    assert error.message == "SecurityProtocol"
    assert after == []
    assert b"PASSWORD" not in seen


async def test_others_are_served_while_one_never_answers(caplog: pytest.LogCaptureFixture) -> None:
    async with MozTCPSocket() as tcp:
        server = tcp.listen(0, host="127.0.0.1", handshake_timeout=0.2)

        def on_connect(event: Any) -> None:
            event.socket.upgradeToSecure(ssl_context=server_context())
            event.socket.onsecure = lambda event: event.target.close()

        server.onconnect = on_connect
        with await dial(server.localPort) as silent:
            with await secure(await dial(server.localPort), client_context()) as other:
                assert await blocking(read_all, other) == b""
            assert await blocking(read_all, silent) == b""
        server.close()
    (record,) = caplog.records
    assert "NetworkTimeoutError" in record.getMessage()


async def test_the_context_is_that_of_the_call_alone() -> None:
    """Each connection of a server may use a different context."""
    wrong = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # it has no certificate
    async with MozTCPSocket() as tcp:
        accepting = Accepting(tcp.listen(0, host="127.0.0.1"))
        for number, context in enumerate((wrong, server_context()), 1):
            peer = await dial(accepting.server.localPort)
            await accepting.until(number)
            socket_, recorder = accepting.sockets[-1]
            socket_.upgradeToSecure(ssl_context=context)
            if context is wrong:
                with pytest.raises(ssl.SSLError), peer:
                    await secure(peer, client_context())
                await recorder.first("error")
            else:
                with await secure(peer, client_context()):
                    await recorder.first("secure")
                    socket_.close()
        accepting.server.close()
