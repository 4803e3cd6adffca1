"""TLS with widely used programs: aiosmtpd, curl, and OpenSSL's s_client and s_server.

In CI each must be installed; elsewhere the tests of a missing one are skipped.
"""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from aiosmtpd.controller import Controller

from mozsocket import MozTCPSocket, TCPServerSocket, TCPSocket
from mozsocket.testing import EventRecorder

from ..certificates import AUTHORITY, certificate, client_context, server_context
from ..peers import PEER_TIMEOUT, Accepting
from ..processes import OpenSSL, program, s_client, s_server

pytestmark = pytest.mark.anyio

MAIL = b"".join(
    (
        b"Subject: test\r\n\r\n",
        *(b"line %d of the mail\r\n" % number for number in range(500)),
        b".\r\n..two dots\r\n",  # must be doubled (RFC 5321, section 4.5.2), or it would end the mail
        bytes(range(128, 256)) + b"\r\n",
    )
)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with the authority's certificate, a server's certificate and key, and a mail."""
    AUTHORITY.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    certificate().private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
    (tmp_path / "mail").write_bytes(MAIL)
    return tmp_path


# Our client with their server


class Mailbox:
    """The handler of an aiosmtpd server, which records the mails and whether each arrived over TLS."""

    def __init__(self) -> None:
        self.delivered: list[tuple[bool, bytes]] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
        self.delivered.append((session.ssl is not None, envelope.content))
        return "250 delivered"


@contextmanager
def smtp_server(mailbox: Mailbox) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    controller = Controller(
        mailbox, hostname="127.0.0.1", port=port, tls_context=server_context(), require_starttls=True
    )
    controller.start()
    try:
        yield port
    finally:
        controller.stop()


def deliver(socket_: TCPSocket, context: ssl.SSLContext, mail: bytes) -> None:
    """Send a mail by SMTP with STARTTLS, then close."""
    dialogue: list[tuple[bytes, bytes | None]] = [
        (b"220", b"EHLO client.example\r\n"),
        (b"250", b"STARTTLS\r\n"),
        (b"220", None),
        (b"250", b"MAIL FROM:<me@client.example>\r\n"),
        (b"250", b"RCPT TO:<you@localhost>\r\n"),
        (b"250", b"DATA\r\n"),
        (b"354", re.sub(rb"(?m)^\.", b"..", mail) + b".\r\n"),
        (b"250", b"QUIT\r\n"),
        (b"221", b""),
    ]
    reply = bytearray()

    def on_data(event: Any) -> None:
        reply.extend(event.data)
        last = bytes(reply).splitlines()[-1]
        if not reply.endswith(b"\r\n") or last[3:4] == b"-":
            return
        code, command = dialogue.pop(0)
        assert last.startswith(code), bytes(reply)
        reply.clear()
        if command is None:
            socket_.upgradeToSecure(ssl_context=context, server_hostname="localhost")
            command = b"EHLO client.example\r\n"
        if command:
            socket_.send(command)
        else:
            socket_.close()

    socket_.ondata = on_data


async def test_a_mail_is_delivered_to_a_real_server() -> None:
    mailbox = Mailbox()
    with smtp_server(mailbox) as port:
        async with MozTCPSocket() as tcp:
            client = tcp.open("127.0.0.1", port)
            deliver(client, client_context(), MAIL)
    assert mailbox.delivered == [(True, MAIL)]


async def test_no_mail_is_delivered_to_a_server_that_is_not_trusted() -> None:
    mailbox = Mailbox()
    with smtp_server(mailbox) as port:
        async with MozTCPSocket() as tcp:
            client = tcp.open("127.0.0.1", port)
            recorder = EventRecorder(client)
            deliver(client, client_context(trusting=False), MAIL)
            error = await recorder.first("error")
    assert error.name == "SecurityUntrustedCertificateIssuerError"
    assert mailbox.delivered == []


# Our server with their clients


class Smtp:
    """One connection of a minimal SMTP server."""

    def __init__(self, socket_: TCPSocket, delivered: list[tuple[bool, bytes]]) -> None:
        self._socket = socket_
        self._delivered = delivered
        self._received = b""
        self._mail: list[bytes] | None = None
        socket_.ondata = self._on_data
        socket_.send(b"220 localhost ESMTP\r\n")

    def _on_data(self, event: Any) -> None:
        self._received += event.data
        while b"\r\n" in self._received:
            line, self._received = self._received.split(b"\r\n", 1)
            self._on_line(line)

    def _on_line(self, line: bytes) -> None:
        answers = {b"DATA": b"354 go on\r\n", b"QUIT": b"221 bye\r\n", b"STARTTLS": b"220 go on\r\n"}
        command = line.split(b" ")[0].upper()
        if self._mail is not None:
            self._on_mail_line(line)
        elif command == b"EHLO":
            self._socket.send(
                b"250-localhost\r\n" + (b"" if self._socket.ssl else b"250-STARTTLS\r\n") + b"250 HELP\r\n"
            )
        else:
            self._socket.send(answers.get(command, b"250 fine\r\n"))
        if command == b"STARTTLS":
            leftover, self._received = self._received, b""
            self._socket.upgradeToSecure(ssl_context=server_context(), leftover=leftover)
        elif command == b"DATA":
            self._mail = []
        elif command == b"QUIT":
            self._socket.close()

    def _on_mail_line(self, line: bytes) -> None:
        assert self._mail is not None
        if line != b".":
            self._mail.append(line.removeprefix(b".") + b"\r\n")
            return
        self._delivered.append((self._socket.ssl, b"".join(self._mail)))
        self._mail = None
        self._socket.send(b"250 delivered\r\n")


def imap(socket_: TCPSocket) -> None:
    """Just enough of IMAP to start TLS and to log out."""

    def on_data(event: Any) -> None:
        tag, command = event.data.split()[:2]
        if command.upper() == b"CAPABILITY":
            socket_.send(b"* CAPABILITY IMAP4rev1 STARTTLS\r\n")
        socket_.send(tag + b" OK done\r\n")
        if command.upper() == b"STARTTLS":
            socket_.upgradeToSecure(ssl_context=server_context())
        elif command.upper() == b"LOGOUT":
            socket_.close()

    socket_.ondata = on_data
    socket_.send(b"* OK IMAP4rev1\r\n")


def pop3(socket_: TCPSocket) -> None:
    """Just enough of POP3 to start TLS and to quit."""

    def on_data(event: Any) -> None:
        socket_.send(b"+OK\r\n")
        if event.data.upper() == b"STLS\r\n":
            socket_.upgradeToSecure(ssl_context=server_context())
        elif event.data.upper() == b"QUIT\r\n":
            socket_.close()

    socket_.ondata = on_data
    socket_.send(b"+OK POP3\r\n")


@contextmanager
def serving(tcp: MozTCPSocket, handle: Callable[[TCPSocket], object], **options: Any) -> Iterator[TCPServerSocket]:
    server = tcp.listen(0, host="127.0.0.1", **options)
    server.onconnect = lambda event: handle(event.socket) and None
    yield server
    server.close()


async def run(*command: str | Path, stdin: bytes = b"") -> tuple[int, bytes, bytes]:
    with anyio.fail_after(PEER_TIMEOUT):
        done = await anyio.run_process([program(str(command[0])), *map(str, command[1:])], input=stdin, check=False)
    return done.returncode, done.stdout, done.stderr


async def send_with_curl(files: Path, *options: str | Path) -> tuple[int, bytes, list[tuple[bool, bytes]]]:
    """Have curl send the mail to our server.

    :return: curl's exit status, its error output, and the mails delivered
    """
    delivered: list[tuple[bool, bytes]] = []
    async with MozTCPSocket() as tcp:
        with serving(tcp, lambda socket_: Smtp(socket_, delivered)) as server:
            addresses = ("--mail-from", "me@localhost", "--mail-rcpt", "you@localhost")
            target = f"smtp://127.0.0.1:{server.localPort}"
            status, _, errors = await run(
                "curl", "-sS", "--ssl-reqd", *addresses, "-T", files / "mail", *options, target
            )
    return status, errors, delivered


async def test_curl_delivers_a_mail(files: Path) -> None:
    assert await send_with_curl(files, "--cacert", files / "ca.pem") == (0, b"", [(True, MAIL)])


async def test_curl_does_not_trust_everyone(files: Path, caplog: pytest.LogCaptureFixture) -> None:
    status, _, delivered = await send_with_curl(files)
    assert status == 60  # curl's code for "peer certificate cannot be authenticated"
    assert delivered == []
    # Not every version of curl says why.
    assert re.search("SecurityUntrustedCertificateIssuerError: the peer refused|NetworkInterruptError", caplog.text)


@pytest.mark.parametrize("flag", ["-tls1_2", "-tls1_3"])
@pytest.mark.parametrize(
    ("protocol", "handle", "stdin", "expected"),
    [
        (
            "smtp",
            lambda socket_: Smtp(socket_, []),
            b"EHLO me\r\nQUIT\r\n",
            b"250-localhost\r\n250 HELP\r\n221 bye\r\n",
        ),
        ("imap", imap, b"x LOGOUT\r\n", b"x OK done\r\n"),
        ("pop3", pop3, b"QUIT\r\n", b"+OK\r\n"),
    ],
    ids=["smtp", "imap", "pop3"],
)
async def test_s_client_starts_tls(
    protocol: str, handle: Callable[[TCPSocket], object], stdin: bytes, expected: bytes, flag: str, files: Path
) -> None:
    async with MozTCPSocket() as tcp:
        with serving(tcp, handle) as server:
            where: list[str | Path] = ["-connect", f"127.0.0.1:{server.localPort}", "-CAfile", files / "ca.pem"]
            trust = ["-verify_return_error", "-verify_ip", "127.0.0.1", "-quiet", flag]
            status, output, errors = await run(
                "openssl", "s_client", "-starttls", protocol, *where, *trust, stdin=stdin
            )
    assert (status, output) == (0, expected), errors


# TLS from the start

FLAGS = ["-tls1_2", "-tls1_3"]
BINARY = bytes(range(256)) * 4000


def reversing(socket_: TCPSocket) -> None:
    """Answer the data of the test with its reverse, then close."""
    received = bytearray()

    def on_data(event: Any) -> None:
        received.extend(event.data)
        if len(received) == len(BINARY):
            socket_.send(received[::-1])
            socket_.close()

    socket_.ondata = on_data


@pytest.mark.parametrize("flag", FLAGS)
async def test_s_client_sends_and_receives(flag: str, files: Path) -> None:
    demanding = server_context(ask_for_certificate=True)
    async with MozTCPSocket() as tcp:
        with serving(tcp, reversing, useSecureTransport=True, ssl_context=demanding) as server:
            where: list[str | Path] = ["-connect", f"127.0.0.1:{server.localPort}", "-CAfile", files / "ca.pem"]
            trust: list[str | Path] = ["-verify_return_error", "-verify_hostname", "localhost", "-quiet", flag]
            known: list[str | Path] = ["-cert", files / "server.pem"]
            status, output, errors = await run("openssl", "s_client", *where, *trust, *known, stdin=BINARY)
    assert status == 0, errors
    assert output == BINARY[::-1]


@pytest.mark.parametrize("flag", FLAGS)
async def test_s_client_refuses_a_certificate_for_another_host(
    flag: str, files: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with MozTCPSocket() as tcp:
        with serving(tcp, reversing, useSecureTransport=True, ssl_context=server_context()) as server:
            where: list[str | Path] = ["-connect", f"127.0.0.1:{server.localPort}", "-CAfile", files / "ca.pem"]
            trust = ["-verify_return_error", "-verify_hostname", "other.example", "-quiet", flag]
            status, output, errors = await run("openssl", "s_client", *where, *trust, stdin=b"secret")
    assert (status, output) == (1, b"")
    assert b"certificate verify failed" in errors
    (record,) = caplog.records
    assert "SecurityBadCertificateError: the peer refused TLS: " in record.getMessage()


@pytest.mark.parametrize("flag", FLAGS)
async def test_s_server_sends_and_receives(flag: str, files: Path) -> None:
    lines = b"".join(b"line %d\n" % number for number in range(50_000))
    with s_server(files, flag) as server:
        port = await server.port()
        async with MozTCPSocket() as tcp:
            client = tcp.open("127.0.0.1", port, useSecureTransport=True, ssl_context=client_context())
            recorder = EventRecorder(client)
            await client.opened()
            client.send(lines + b"the last line\n")
            await server.until(b"(the last line\n)")
            await server.send(lines)
            await recorder.until(lambda: len(recorder.data) >= len(lines))
            client.close()
        await server.wait()
    assert lines in bytes(server.output)
    assert recorder.data == lines
    assert recorder.types[-1] == "close"
    assert "error" not in recorder.types


@pytest.mark.parametrize("flag", FLAGS)
async def test_s_server_receives_the_alert_that_it_is_not_trusted(flag: str, files: Path) -> None:
    with s_server(files, flag) as server:
        port = await server.port()
        async with MozTCPSocket() as tcp:
            context = client_context(trusting=False)
            recorder = EventRecorder(tcp.open("127.0.0.1", port, useSecureTransport=True, ssl_context=context))
            await recorder.first("close")
        await server.wait()
    assert b"alert unknown ca" in server.output
    assert recorder.types == ["error", "close"]
    assert recorder.events[0].name == "SecurityUntrustedCertificateIssuerError"


@pytest.mark.parametrize("flag", FLAGS)
async def test_s_server_refuses_a_client_without_a_certificate(flag: str, files: Path) -> None:
    with s_server(files, "-Verify", "1", "-verify_return_error", flag) as server:
        port = await server.port()
        async with MozTCPSocket() as tcp:
            recorder = EventRecorder(tcp.open("127.0.0.1", port, useSecureTransport=True, ssl_context=client_context()))
            error = await recorder.first("error")
        await server.wait()
    expected = {"-tls1_2": ("SecurityError", 1040), "-tls1_3": ("SecurityNoCertificateError", 1116)}
    assert (error.name, error.errorCode) == expected[flag]
    assert error.message == "SecurityProtocol"


# Key updates during large transfers

ORDERS = {
    # An s_client or s_server flag, its command, and what the peer sends and receives for it.
    "renegotiation": ("-tls1_2", "r", ">>> TLS 1.2, Handshake [length 0004], HelloRequest", "], Finished"),
    "KeyUpdate": ("-tls1_3", "k", ">>> TLS 1.3, Handshake [length 0005], KeyUpdate", None),
    "KeyUpdate asked for": (
        "-tls1_3",
        "K",
        ">>> TLS 1.3, Handshake [length 0005], KeyUpdate",
        "<<< TLS 1.3, Handshake [length 0005], KeyUpdate",
    ),
}
MUCH = b"".join(b"line %d, of many\n" % number for number in range(800_000))  # more than the system buffers


async def talk_with_new_keys(program: OpenSSL, socket_: TCPSocket, order: str, given: str, taken: str | None) -> None:
    expected = b""
    for count in (1, 2, 3):
        # OpenSSL loses what it is just printing when it is halted: so it has to have printed all that came before.
        last = b"the last line of %d\n" % count
        expected += MUCH + last
        async with program.halted(order):
            socket_.send(MUCH + last)
            await anyio.sleep(0.1)
            assert socket_.bufferedAmount > 0  # the system does not take all of it
        await program.until_message(given, count)
        if taken:
            await program.until_message(taken, count)
        await thanked(program, socket_)
        await socket_.drained()
        await program.until(b"(%b)" % last)
    said = re.sub(rb"(SSL_do_handshake -> 1|Read BLOCK|KEYUPDATE)\n", b"", program.output)
    assert said.endswith(expected)


async def thanked(program: OpenSSL, socket_: TCPSocket) -> None:
    """Check that data from the peer arrives even while much is being sent to it."""
    recorder = EventRecorder(socket_)
    await program.send(b"thank you\n")
    await recorder.until(lambda: recorder.data == b"thank you\n")


@pytest.mark.parametrize(("flag", "order", "given", "taken"), ORDERS.values(), ids=ORDERS.keys())
async def test_new_keys_that_s_server_asks_for(
    flag: str, order: str, given: str, taken: str | None, files: Path
) -> None:
    with s_server(files, flag) as server:
        port = await server.port()
        async with MozTCPSocket() as tcp:
            client = tcp.open("127.0.0.1", port, useSecureTransport=True, ssl_context=client_context())
            await client.opened()
            await talk_with_new_keys(server, client, order, given, taken)
            client.close()
        await server.wait()


@pytest.mark.parametrize(
    ("flag", "order", "given", "taken"), [ORDERS["KeyUpdate"], ORDERS["KeyUpdate asked for"]], ids=["k", "K"]
)
async def test_new_keys_that_s_client_asks_for(
    flag: str, order: str, given: str, taken: str | None, files: Path
) -> None:
    async with MozTCPSocket() as tcp:
        accepting = Accepting(tcp.listen(0, host="127.0.0.1", useSecureTransport=True, ssl_context=server_context()))
        with s_client(files, accepting.server.localPort, flag) as client:
            accepted, _ = await accepting.first()
            await talk_with_new_keys(client, accepted, order, given, taken)
            accepted.close()
            accepting.server.close()
            await client.wait()
