"""The examples, run against the real servers that they are for."""

from __future__ import annotations

import imaplib
import os
import poplib
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.streams.buffered import BufferedByteStream

from mozsocket import TCPSocket, TCPSocketError

from ..certificates import AUTHORITY, client_context
from ..examples import example, file_of, output_of, port_from, said
from ..peers import PEER_TIMEOUT, accept, blocking, dial, listening, port_of, read_all, read_exactly
from ..processes import program
from ..services import MailServer, mail, redis

MESSAGE = b"From: a@localhost\r\nSubject: hello\r\n\r\n.dot\r\n..dots\r\n" + b"x" * 900 + b"\r\n"


@pytest.fixture(scope="module")
def mail_server() -> Iterator[MailServer]:
    with mail() as server:
        yield server


@pytest.fixture(scope="module")
def redis_port() -> Iterator[int]:
    with redis() as port:
        yield port


# Mail


READERS: dict[str, Callable[[MailServer], Awaitable[bytes]]] = {
    "IMAP": lambda server: IMAP.read_message(server),
    "POP3": lambda server: POP3.read_message(server),
    "imaplib": lambda server: blocking(read_by_imap, server),
    "poplib": lambda server: blocking(read_by_pop3, server),
}


@pytest.mark.anyio
@pytest.mark.parametrize("reader", READERS)
async def test_mail_that_is_sent_can_be_read_back(reader: str, mail_server: MailServer) -> None:
    """The readers are clients on mozsocket, and clients of the standard library."""
    send_mail = example("mail")["send_mail"]
    port, address = mail_server.smtp_port, mail_server.address
    await send_mail("localhost", port, "a@localhost", [address], MESSAGE, client_context())
    with anyio.fail_after(PEER_TIMEOUT):
        found = await READERS[reader](mail_server)
    assert found.partition(b"\r\n\r\n")[2] == MESSAGE.partition(b"\r\n\r\n")[2]


class Reader:
    """A client of a mailbox on mozsocket, with handlers of lines. It upgrades to TLS first."""

    def __init__(self, sock: TCPSocket) -> None:
        self.sock = sock
        self.lines = BufferedByteStream(sock.stream())

    async def line(self) -> bytes:
        return await self.lines.receive_until(b"\r\n", 10_000)

    async def send(self, line: str) -> None:
        await self.sock.stream().send(line.encode() + b"\r\n")

    async def upgrade(self) -> None:
        self.sock.upgradeToSecure(ssl_context=client_context(), leftover=self.lines.buffer)
        self.lines = BufferedByteStream(self.sock.stream())
        await self.sock.secured()


class POP3(Reader):
    async def command(self, line: str) -> bytes:
        await self.send(line)
        answer = await self.line()
        assert answer.startswith(b"+OK"), answer
        return answer

    @classmethod
    async def read_message(cls, server: MailServer) -> bytes:
        """Wait for the first message, return it and delete it."""
        while True:
            async with TCPSocket("localhost", server.pop3_port) as sock:
                self = cls(sock)
                await self.line()
                await self.command("STLS")
                await self.upgrade()
                await self.command(f"USER {server.user}")
                await self.command(f"PASS {server.password}")
                if await self.command("STAT") != b"+OK 0 0":
                    await self.command("RETR 1")
                    message = await self.lines.receive_until(b"\r\n.\r\n", 10_000)
                    await self.command("DELE 1")
                    await self.command("QUIT")
                    return message.replace(b"\r\n..", b"\r\n.") + b"\r\n"


class IMAP(Reader):
    async def command(self, line: str) -> list[bytes]:
        """Send a command and return the untagged answers."""
        await self.send(f"a {line}")
        answers = []
        while not (answer := await self.line()).startswith(b"a "):
            answers.append(answer)
            if found := re.search(rb"\{(\d+)\}$", answer):
                answers.append(await self.lines.receive_exactly(int(found[1])))
        assert answer.startswith(b"a OK"), answer
        return answers

    @classmethod
    async def read_message(cls, server: MailServer) -> bytes:
        """Wait for the first message, return it and delete it."""
        async with TCPSocket("localhost", server.imap_port) as sock:
            self = cls(sock)
            await self.line()
            await self.command("STARTTLS")
            await self.upgrade()
            await self.command(f"LOGIN {server.user} {server.password}")
            while b"* 0 EXISTS" in await self.command("SELECT INBOX"):
                pass
            _, message, _ = await self.command("UID FETCH 1:* (BODY.PEEK[])")
            await self.command("STORE 1:* +FLAGS (\\Deleted)")
            await self.command("EXPUNGE")
            await self.command("LOGOUT")
            return message


@pytest.mark.parametrize("protocol", ["imap", "pop3", "smtp"])
def test_the_command_line_asks_for_tls_and_gets_the_whole_answer(
    protocol: str, mail_server: MailServer, tmp_path: Path
) -> None:
    AUTHORITY.cert_pem.write_to_path(tmp_path / "ca.pem")
    port, commands, answer = {
        "imap": (mail_server.imap_port, "a LOGIN someone secret\r\nb LOGOUT\r\n", r"\* BYE .*\r\nb OK .*\r\n$"),
        "pop3": (mail_server.pop3_port, "USER someone\r\nPASS secret\r\nQUIT\r\n", r"\+OK Logged in.\r\n.*\+OK"),
        "smtp": (mail_server.smtp_port, "EHLO localhost\r\nQUIT\r\n", r"250 HELP\r\n221 .*\r\n$"),
    }[protocol]
    options = "--starttls", protocol, "--cafile", str(tmp_path / "ca.pem")
    # Exim treats commands that are sent ahead of its answers as an attack, so each is sent alone. The servers end the
    # connection.
    with subprocess.Popen(
        [sys.executable, "-m", "mozsocket", "connect", "localhost", str(port), *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        output = b""
        for command in commands.splitlines(keepends=True):
            process.stdin.write(command.encode())
            process.stdin.flush()
            last = rb"(?:[ab] \w+ |\+OK|\d{3} )"
            while not re.match(last, line := process.stdout.readline()):
                assert line, (output, process.stderr.read() if process.stderr else b"")
                output += line
            output += line
        process.stdin.close()
        output += process.stdout.read()
    assert re.search(answer.encode(), output, re.DOTALL), output


def read_by_imap(server: MailServer) -> bytes:
    """Wait for the first message, return it and delete it."""
    client = imaplib.IMAP4("localhost", server.imap_port)
    client.starttls(client_context())
    client.login(server.user, server.password)
    while client.select()[1] == [b"0"]:
        client.noop()
    answer: Any = client.fetch("1", "(RFC822)")[1][0]
    client.store("1", "+FLAGS", r"\Deleted")
    client.expunge()
    client.logout()
    return bytes(answer[1])


def read_by_pop3(server: MailServer) -> bytes:
    """Wait for the first message, return it and delete it."""
    message = b""
    while not message:
        client = poplib.POP3("localhost", server.pop3_port)
        client.stls(client_context())
        client.user(server.user)
        client.pass_(server.password)
        if client.stat()[0]:
            message = b"\r\n".join(client.retr(1)[1]) + b"\r\n"
            client.dele(1)
        client.quit()
    return message


@pytest.mark.anyio
async def test_mail_that_is_refused(mail_server: MailServer) -> None:
    names = example("mail")
    with pytest.raises(names["SMTPError"], match=r"RCPT TO:<someone@elsewhere\.example>: 550"):
        await names["send_mail"](
            "localhost", mail_server.smtp_port, "a@localhost", ["someone@elsewhere.example"], MESSAGE, client_context()
        )


@pytest.mark.anyio
async def test_mail_to_a_server_that_is_not_trusted(mail_server: MailServer) -> None:
    send_mail = example("mail")["send_mail"]
    with pytest.raises(TCPSocketError, match="certificate"):
        await send_mail("localhost", mail_server.smtp_port, "a@localhost", [mail_server.address], MESSAGE)


@pytest.fixture
def trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the started programs trust the tests' authority as if it were one of the system's."""
    AUTHORITY.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))


@pytest.mark.usefixtures("trust")
def test_the_program_that_asks_a_mail_server(mail_server: MailServer, tmp_path: Path) -> None:
    """Exim offers STARTTLS only until it is used, so the answer shown must be the one within TLS."""
    command = file_of(tmp_path, "starttls"), "localhost", str(mail_server.smtp_port)
    output = output_of(tmp_path, *command)
    assert re.fullmatch(r"secure\n250-localhost Hello .*\n(250-.*\n)+250 HELP\n", output)
    assert "STARTTLS" not in output


def test_the_program_that_asks_a_mail_server_that_is_not_trusted(mail_server: MailServer, tmp_path: Path) -> None:
    command = file_of(tmp_path, "starttls"), "localhost", str(mail_server.smtp_port)
    output = output_of(tmp_path, *command, status=1)
    assert "SecurityUntrustedCertificateIssuerError" in output
    assert "250" not in output


@pytest.mark.usefixtures("trust")
def test_the_program_that_sends_mail(mail_server: MailServer, tmp_path: Path) -> None:
    command = file_of(tmp_path, "mail"), "localhost", str(mail_server.smtp_port), "a@localhost"
    message = MESSAGE.decode().replace("\r\n", "\n")  # with the line ends of a file
    refused = output_of(tmp_path, *command, mail_server.address, "you@elsewhere.example", status=1, stdin=message)
    assert "SMTPError: RCPT TO:<you@elsewhere.example>: 550" in refused
    assert output_of(tmp_path, *command, mail_server.address, stdin=message) == ""
    assert read_by_pop3(mail_server).partition(b"\r\n\r\n")[2] == MESSAGE.partition(b"\r\n\r\n")[2]


# Redis


def test_the_program_that_asks_redis(redis_port: int, tmp_path: Path) -> None:
    command = file_of(tmp_path, "redis"), "127.0.0.1", str(redis_port)
    assert re.fullmatch(r"visits: \d+000\n", output_of(tmp_path, *command))


@pytest.mark.anyio
async def test_redis_is_asked_everything_before_it_answers_anything(capsys: pytest.CaptureFixture[str]) -> None:
    with listening() as listener:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(example("redis")["main"], "127.0.0.1", port_of(listener))
            with await accept(listener) as peer:
                await said(peer, b"*2\r\n$4\r\nINCR\r\n$6\r\nvisits\r\n" * 1000)
                peer.sendall(b"".join(b":%d\r\n" % visits for visits in range(1, 1001)))
                assert await blocking(read_all, peer) == b""
    assert capsys.readouterr().out == "visits: 1000\n"


@pytest.mark.anyio
async def test_redis_pipelined(redis_port: int, capsys: pytest.CaptureFixture[str]) -> None:
    names = example("redis")
    await names["main"]("127.0.0.1", redis_port)
    assert re.fullmatch(r"visits: \d+000\n", capsys.readouterr().out)
    async with TCPSocket("127.0.0.1", redis_port) as sock:
        client = names["Redis"](sock)
        await sock.opened()
        replies = [
            client.command("SET", "key", b"\r\n\0value"),
            client.command("GET", "key"),
            client.command("GET", "nothing"),
            client.command("NO SUCH COMMAND"),
            client.command("DEL", "key"),
        ]
        assert [await replies[index].get() for index in (0, 1, 2, 4)] == [b"OK", b"\r\n\0value", None, 1]
        with pytest.raises(names["RedisError"], match="ERR unknown command"):
            await replies[3].get()
        client.command("QUIT")
        late = client.command("PING")
        with pytest.raises(ConnectionError):
            await late.get()


# Servers as separate processes


@contextmanager
def running(where: Path, *command: str) -> Iterator[int]:
    """A running program. Gives the port that it listens on."""
    command = sys.executable, *command
    with subprocess.Popen(command, cwd=where, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = re.fullmatch(r"listening on (\d+)\n", process.stdout.readline())
            assert found
            yield int(found[1])
        finally:
            process.send_signal(signal.SIGKILL)
            assert process.communicate()[1] == ""


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_the_line_server(loop: str, tmp_path: Path) -> None:
    with running(tmp_path, file_of(tmp_path, "line_server"), loop, "0") as port:
        with socket.create_connection(("127.0.0.1", port), PEER_TIMEOUT) as peer:
            peer.sendall(b"a\nb")
            assert read_exactly(peer, 4) == b"1 a\n"
            peer.sendall(b"c\nrest")
            assert read_exactly(peer, 5) == b"2 bc\n"
            peer.shutdown(socket.SHUT_WR)
            assert read_all(peer) == b""
        with socket.create_connection(("127.0.0.1", port), PEER_TIMEOUT) as peer:
            peer.sendall(b"x" * 65537)
            assert read_exactly(peer, 9) == b"a line of"


def test_the_programs_that_talk_to_a_server(tmp_path: Path) -> None:
    """The programs run unchanged, except for the port."""
    (tmp_path / "README.md").write_bytes(os.urandom(1_000_000))
    with running(tmp_path, file_of(tmp_path, "echo_server", port=0)) as port:
        assert output_of(tmp_path, file_of(tmp_path, "client", port=port)) == "b'hello'\n"


@pytest.mark.parametrize("name", ["awaiting", "upload"])
def test_the_programs_that_send_to_a_server(name: str, tmp_path: Path) -> None:
    """The server sends nothing, as the programs have no handler for data."""
    (tmp_path / "README.md").write_bytes(os.urandom(1_000_000))
    received: list[int] = []

    def serve() -> None:
        with listener.accept()[0] as peer:
            peer.settimeout(PEER_TIMEOUT)
            received.append(len(read_all(peer)))

    with listening() as listener:
        server = threading.Thread(target=serve)
        server.start()
        assert output_of(tmp_path, file_of(tmp_path, name, port=port_of(listener))) == ""
        server.join()
    assert received == [1_000_000]


def test_the_program_that_is_a_proxy(tmp_path: Path) -> None:
    with listening() as listener:
        command = file_of(tmp_path, "proxy"), "0", "localhost", str(port_of(listener))
        with (
            running(tmp_path, *command) as port,
            socket.create_connection(("127.0.0.1", port), PEER_TIMEOUT) as client,
            listener.accept()[0] as upstream,
        ):
            upstream.settimeout(PEER_TIMEOUT)
            client.sendall(b"question")
            assert read_exactly(upstream, 8) == b"question"
            upstream.sendall(b"answer")
            assert read_exactly(client, 6) == b"answer"


def test_the_program_that_is_a_chat_server(tmp_path: Path) -> None:
    with (
        running(tmp_path, file_of(tmp_path, "chat"), "0") as port,
        socket.create_connection(("127.0.0.1", port), PEER_TIMEOUT) as peer,
    ):
        peer.sendall(b"NICK ann\r\nQUIT\r\n")
        assert read_all(peer) == b"001 ann :Welcome\r\n"


@pytest.mark.anyio
async def test_the_chat_server(capsys: pytest.CaptureFixture[str]) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(example("chat")["main"], 0)
        port = await port_from(capsys)
        with await dial(port) as ann, await dial(port) as bob:
            ann.sendall(b"PRIVMSG #a :x\r\nNICK ann\r\nJOIN #a\r\n")
            await said(ann, b"451 :You have not registered\r\n001 ann :Welcome\r\n:ann JOIN #a\r\n")
            bob.sendall(b"NICK ann\r\nNICK bob\r\nJOIN #a\r\nPING 1\r\nWHAT\r\n")
            await said(
                bob,
                b"433 ann :Nickname is already in use\r\n001 bob :Welcome\r\n:bob JOIN #a\r\nPONG 1\r\n"
                b"421 WHAT :Unknown command\r\n",
            )
            await said(ann, b":bob JOIN #a\r\n")
            for octet in b"PRIVMSG #a :hello all\r\n":
                ann.sendall(bytes([octet]))
            await said(bob, b":ann PRIVMSG #a :hello all\r\n")
            bob.sendall(b"PRIVMSG ann :hello you\r\nQUIT\r\n")
            await said(ann, b":bob PRIVMSG ann :hello you\r\n:bob QUIT\r\n")
            assert await blocking(read_all, bob) == b""
            ann.sendall(b"x" * 600)
            with suppress(ConnectionResetError):  # or EOF, if the server had read everything
                assert await blocking(read_all, ann) == b""
        tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_the_chat_server_throws_out_who_does_not_read(capsys: pytest.CaptureFixture[str]) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(example("chat")["main"], 0)
        port = await port_from(capsys)
        with await dial(port) as ann, await dial(port) as bob:
            bob.sendall(b"NICK bob\r\n")
            await said(bob, b"001 bob :Welcome\r\n")
            ann.sendall(b"NICK ann\r\nJOIN #a\r\n")
            await said(ann, b"001 ann :Welcome\r\n:ann JOIN #a\r\n")
            line = b"PRIVMSG bob :" + b"x" * 400 + b"\r\n"
            await blocking(ann.sendall, line * 50_000)
            await blocking(ann.sendall, b"PRIVMSG bob :still here?\r\nPING 1\r\n")
            await said(ann, b"PONG 1\r\n")
            try:
                assert len(await blocking(read_all, bob)) < len(line) * 50_000
            except ConnectionResetError:
                pass
        tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_nc_through_the_proxy_gets_its_whole_answer(capsys: pytest.CaptureFixture[str]) -> None:
    """nc ends its side as soon as it has sent its request."""
    nc = program("nc")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(example("echo_server")["main"], 0)
        upstream = await port_from(capsys)
        tasks.start_soon(example("proxy")["main"], 0, "127.0.0.1", upstream)
        port = await port_from(capsys)
        data = os.urandom(5_000_000)
        for number in (upstream, port):
            result = await anyio.run_process([nc, "-N", "127.0.0.1", str(number)], input=data)
            assert result.stdout == data
        tasks.cancel_scope.cancel()


# A library


def test_the_library_passes_its_own_tests(tmp_path: Path) -> None:
    tests = ["--pyargs", "mozsocket.examples.test_whois"]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "--strict-markers", "-p", "no:cacheprovider", *tests],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert "12 passed" in result.stdout, result.stdout
    assert result.returncode == 0
