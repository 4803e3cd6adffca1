"""The servers of services.py work with clients that do not use mozsocket, and leave no process behind."""

from __future__ import annotations

import http.client
import imaplib
import os
import poplib
import select
import smtplib
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from ..certificates import client_context
from ..peers import PEER_TIMEOUT, listening, port_of, read_all, read_exactly, unused_port
from ..services import MailServer, haproxy, mail, nginx, redis, running


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PEER_TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        threading.Event().wait(0.02)


def in_sessions(leaders: set[int]) -> list[str]:
    """The programs that run in these sessions. Zombies are not counted, as their new parent reaps them at any time."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) in leaders and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.name())
        except (ProcessLookupError, psutil.NoSuchProcess):
            pass  # the process has ended meanwhile
    return found


@contextmanager
def nothing_left() -> Iterator[Callable[[], None]]:
    """Check that no process of the servers is left at the end; the function it gives is called while they run.

    Each server leads a session, in which its children stay even after their parent has ended.
    """
    leaders: set[int] = set()

    def look() -> None:
        leaders.update(os.getsid(child.pid) for child in psutil.Process().children())
        assert in_sessions(leaders)

    yield look
    assert leaders
    assert os.getsid(0) not in leaders
    until(lambda: not in_sessions(leaders), "every process of the server had ended")


def test_redis_keeps_a_value_and_saves_nothing() -> None:
    with nothing_left() as look, redis() as port:
        with socket.create_connection(("127.0.0.1", port), PEER_TIMEOUT) as sock:
            for command, answer in (
                (b"SET key value", b"+OK\r\n"),
                (b"GET key", b"$5\r\nvalue\r\n"),
                (b"CONFIG GET save", b"*2\r\n$4\r\nsave\r\n$0\r\n\r\n"),
            ):
                sock.sendall(command + b"\r\n")
                assert read_exactly(sock, len(answer)) == answer
        look()


def test_nginx_serves_files_over_a_connection_that_stays() -> None:
    with nothing_left() as look, nginx() as web:
        (web.root / "page").write_bytes(b"hello")
        for client in (
            http.client.HTTPConnection("localhost", web.port, PEER_TIMEOUT),
            http.client.HTTPSConnection("localhost", web.tls_port, timeout=PEER_TIMEOUT, context=client_context()),
        ):
            assert get(client, "/page") == (200, b"hello")
            connection = client.sock
            assert get(client, "/nothing")[0] == 404
            assert get(client, "/page") == (200, b"hello")
            assert client.sock is connection
            client.close()
        look()


def get(client: http.client.HTTPConnection, path: str) -> tuple[int, bytes]:
    client.request("GET", path)
    response = client.getresponse()
    return response.status, response.read()


def test_mail_goes_in_by_smtp_and_comes_out_by_imap_and_pop3() -> None:
    with nothing_left() as look, mail() as server:
        assert_plaintext_refused_to_strangers(server)
        with smtplib.SMTP("localhost", server.smtp_port, timeout=PEER_TIMEOUT) as smtp:
            smtp.starttls(context=client_context())
            smtp.sendmail("a@localhost", [server.address], b"Subject: hello\r\n\r\nbody\r\n.dot\r\n")
            with pytest.raises(smtplib.SMTPRecipientsRefused):
                smtp.sendmail("a@localhost", ["someone@example.org"], b"Subject: spam\r\n\r\n")
        assert b"\r\n\r\nbody\r\n.dot\r\n" in by_imap(server)
        assert by_pop3(server)[-3:] == [b"", b"body", b".dot"]
        look()


def assert_plaintext_refused_to_strangers(server: MailServer) -> None:
    """Check that Dovecot refuses plaintext. It trusts clients with its own address regardless, so this client has
    another.
    """
    for port, commands, refusal in (
        (server.imap_port, f"1 LOGIN {server.user} {server.password}\r\n2 LOGOUT\r\n", b"[PRIVACYREQUIRED]"),
        (server.pop3_port, f"USER {server.user}\r\nQUIT\r\n", b"-ERR"),
    ):
        with socket.create_connection(("127.0.0.1", port), PEER_TIMEOUT, ("127.0.0.2", 0)) as sock:
            sock.sendall(commands.encode())
            assert refusal in read_all(sock)


def by_imap(server: MailServer) -> bytes:
    """Wait until the message is delivered, and return it."""
    with imaplib.IMAP4("localhost", server.imap_port, PEER_TIMEOUT) as imap:
        imap.starttls(client_context())
        imap.login(server.user, server.password)
        until(lambda: imap.select(readonly=True)[1] == [b"1"], "the message had been delivered")
        item = imap.fetch("1", "(RFC822)")[1][0]
    assert isinstance(item, tuple)
    message: bytes = item[1]
    return message


def by_pop3(server: MailServer) -> list[bytes]:
    """Return the lines of the message."""
    pop3 = poplib.POP3("localhost", server.pop3_port, PEER_TIMEOUT)
    try:
        pop3.stls(client_context())
        pop3.user(server.user)
        pop3.pass_(server.password)
        assert pop3.stat()[0] == 1
        lines: list[bytes] = pop3.retr(1)[1]
        pop3.quit()
    finally:
        pop3.close()
    return lines


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_haproxy_names_its_clients_to_each_backend(version: str) -> None:
    with nothing_left() as look, ExitStack() as stack:
        backends = [stack.enter_context(listening()) for _ in range(2)]
        front = stack.enter_context(haproxy([port_of(backend) for backend in backends], version))
        asked = set()
        for number in range(4):
            with socket.create_connection(("127.0.0.1", front), PEER_TIMEOUT) as client:
                message = f"hello {number}".encode()
                client.sendall(message)
                client.shutdown(socket.SHUT_WR)
                index, data = delivered(backends, message)
                assert data == proxy_header(version, port_of(client), front) + message
            asked.add(index)
        assert asked == {0, 1}
        look()


def delivered(backends: Sequence[socket.socket], message: bytes) -> tuple[int, bytes]:
    """The number of the backend that receives the message, and everything sent with it.

    The test's wait for HAProxy to listen made a connection too, which a backend may receive first.
    """
    while True:
        ready, _, _ = select.select(backends, [], [], PEER_TIMEOUT)
        assert ready, "HAProxy connects to no backend"
        connection, _ = ready[0].accept()
        with connection:
            connection.settimeout(PEER_TIMEOUT)
            try:
                data = read_all(connection)
            except ConnectionResetError:
                continue
        if data.endswith(message):
            return backends.index(ready[0]), data


def proxy_header(version: str, client: int, front: int) -> bytes:
    if version == "v1":
        return f"PROXY TCP4 127.0.0.1 127.0.0.1 {client} {front}\r\n".encode()
    address = socket.inet_aton("127.0.0.1")
    addresses = address + address + struct.pack("!HH", client, front)
    return b"\r\n\r\n\0\r\nQUIT\n" + b"\x21\x11" + struct.pack("!H", len(addresses)) + addresses


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    failing = sys.executable, "-c", "raise SystemExit('the reason')"
    with pytest.raises(AssertionError, match="the reason"), running(tmp_path, unused_port(), *failing):
        pytest.fail("it seems to run")


def test_a_failure_of_the_test_itself_is_not_taken_for_the_server_s() -> None:
    with pytest.raises(ConnectionResetError, match="of the test"), redis():
        raise ConnectionResetError("of the test")


def test_a_child_that_does_not_mind_is_ended_with_its_server(tmp_path: Path) -> None:
    port = unused_port()
    child = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); signal.pause()"
    server = f"""
import socket, subprocess, sys
subprocess.Popen([sys.executable, "-c", {child!r}], stdout=subprocess.PIPE).stdout.readline()
listener = socket.create_server(("127.0.0.1", {port}))
while True:
    listener.accept()
"""
    with nothing_left() as look, running(tmp_path, port, sys.executable, "-c", server):
        look()
