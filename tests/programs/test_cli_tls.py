"""TLS on the command line: the program in separate processes, against blocking TLS sockets and OpenSSL's program."""

from __future__ import annotations

import logging
import os
import re
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mozsocket import cli
from mozsocket.cli import _demo
from mozsocket.cli._contexts import client_context as context_of_options
from mozsocket.cli._loop import Complaints
from mozsocket.cli._starttls import DIALOGUE_LIMIT, DIALOGUES, Negotiation, RefusedError

from ..certificates import certificate, client_context, server_context
from ..command_line import (
    LIMIT,
    MIB,
    Program,
    connected,
    dialled,
    dialled_securely,
    events_of,
    fails,
    in_thread,
    invoke,
    on_each_backend,
    on_posix,
    pipes_both_ways,
    program,
    without,
    write_all,
)
from ..peers import PEER_TIMEOUT, listening, port_of, read_all, read_exactly

PROTOCOLS: dict[str, list[tuple[bytes, bytes]]] = {
    "smtp": [
        (b"", b"220-mail.example\r\n220 ready\r\n"),
        (b"EHLO [127.0.0.1]\r\n", b"250-mail.example\r\n250-SIZE 1000\r\n250-starttls\r\n250 DSN\r\n"),
        (b"STARTTLS\r\n", b"220 go\r\n"),
    ],
    "lmtp": [
        (b"", b"220 ready\r\n"),
        (b"LHLO [127.0.0.1]\r\n", b"250-mail.example\r\n250 STARTTLS\r\n"),
        (b"STARTTLS\r\n", b"220-\r\n220\r\n"),
    ],
    "imap": [
        (b"", b"* OK [CAPABILITY IMAP4rev1] ready\r\n"),
        (b"a001 CAPABILITY\r\n", b"* CAPABILITY IMAP4rev2 starttls LOGINDISABLED\r\na001 OK done\r\n"),
        (b"a002 STARTTLS\r\n", b"* OK a remark\r\na002 ok go\r\n"),
    ],
    "pop3": [
        (b"", b"+OK ready <1@mail.example>\r\n"),
        (b"STLS\r\n", b"+OK\r\n"),
    ],
    "ftp": [
        (b"", b"220-welcome\r\nto all\r\n 220 of you\r\n221 or more\r\n220 ready\r\n"),
        (b"AUTH TLS\r\n", b"234 go\r\n"),
    ],
}
"""For each protocol, in order: the command that must be sent, and the other side's answer."""

on_each_protocol = pytest.mark.parametrize("protocol", PROTOCOLS)
# Tests that involve the event loop run on each; the dialogues do not depend on it.
on_each_protocol_and_backend = pytest.mark.parametrize(
    ("protocol", "backend"), [*((protocol, "asyncio") for protocol in PROTOCOLS), ("smtp", "uvloop"), ("imap", "trio")]
)


# The dialogues


def answers_of(protocol: str) -> list[bytes]:
    return [answer for _, answer in PROTOCOLS[protocol]]


def negotiate(protocol: str, *pieces: bytes) -> tuple[Negotiation, bytes]:
    """Feed received data to a dialogue.

    :return: the dialogue, and everything that it sends
    """
    negotiation = Negotiation(DIALOGUES[protocol]())
    said = b"".join(command + b"\r\n" for piece in pieces if (command := negotiation.receive(piece)))
    return negotiation, said


@on_each_protocol
def test_dialogue(protocol: str) -> None:
    answers = answers_of(protocol)
    commands = b"".join(command for command, _ in PROTOCOLS[protocol])
    for pieces in (answers, [bytes([byte]) for byte in b"".join(answers)]):
        for count in range(len(pieces)):
            negotiation, said = negotiate(protocol, *pieces[:count])
            assert not negotiation.agreed
            assert commands.startswith(said)
        negotiation, said = negotiate(protocol, *pieces)
        assert negotiation.agreed
        assert said == commands
        assert negotiation.leftover == b""


@on_each_protocol
def test_what_comes_behind_the_last_answer_is_left_over(protocol: str) -> None:
    *first, last = answers_of(protocol)
    for injected in (b"\r\n", b"220 injected\r\n", b"\x16\x03\x01\0", b"a" * 1000):
        negotiation, _ = negotiate(protocol, *first, last + injected)
        assert negotiation.agreed
        assert negotiation.leftover == injected


@on_each_protocol
def test_an_answer_before_the_question_is_refused(protocol: str) -> None:
    """It could be an attacker's, which would make the server's answers appear to belong to later commands."""
    answers = answers_of(protocol)
    for at in range(len(answers) - 1):
        for early in (answers[at + 1], b"2", b"\r\n"):
            with pytest.raises(RefusedError, match="it sent more than the answer: "):
                negotiate(protocol, *answers[:at], answers[at] + early)


REFUSALS: dict[str, list[tuple[list[bytes], str]]] = {
    "smtp": [
        ([b"554 no service\r\n"], "it greeted with: 554 no service"),
        ([b"\r\n"], "it greeted with: "),
        ([b"SSH-2.0-OpenSSH_9.6\r\n"], "it greeted with: SSH-2.0-OpenSSH_9.6"),
        ([b"220\tready\r\n"], "it greeted with: 220\tready"),
        ([b"2200 ready\r\n"], "it greeted with: 2200 ready"),
        ([b"220-one\r\n250 two\r\n"], "it greeted with: 250 two"),
        ([b"220-one\r\ntwo\r\n220 three\r\n"], "it greeted with: two"),
        ([b"220 \r\n", b"502 what?\r\n"], "it answered EHLO [127.0.0.1] with: 502 what?"),
        ([b"220 \r\n", b"250 mail.example\r\n"], "it does not offer STARTTLS"),
        ([b"220 \r\n", b"250-mail.example\r\n250-XSTARTTLS\r\n250 AUTH STARTTLS\r\n"], "it does not offer STARTTLS"),
        ([b"220 \r\n", b"250-STARTTLS greets you\r\n250 SIZE\r\n"], "it does not offer STARTTLS"),
        ([b"220 \r\n", b"250-\r\n250 STARTTLS\r\n", b"454 not now\r\n"], "it answered STARTTLS with: 454 not now"),
        ([b"220 \r\n", b"250-\r\n250 STARTTLS\r\n", b"250 ok\r\n"], "it answered STARTTLS with: 250 ok"),
        ([b"220 \r\n", b"250-\r\n250 STARTTLS\r\n", b"220-a\r\n454 b\r\n"], "it answered STARTTLS with: 454 b"),
    ],
    "lmtp": [
        ([b"220 \r\n", b"500 what?\r\n"], "it answered LHLO [127.0.0.1] with: 500 what?"),
    ],
    "imap": [
        ([b"* PREAUTH welcome back\r\n"], "it greeted with: * PREAUTH welcome back"),
        ([b"* BYE later\r\n"], "it greeted with: * BYE later"),
        ([b"+ OK\r\n"], "it greeted with: + OK"),
        ([b"\r\n"], "it greeted with: "),
        ([b"* OK\r\n", b"a001 OK\r\n"], "it does not offer STARTTLS"),
        ([b"* OK\r\n", b"* CAPABILITY IMAP4rev1 XSTARTTLS\r\na001 OK\r\n"], "it does not offer STARTTLS"),
        ([b"* OK\r\n", b"* OK STARTTLS\r\n* STATUS STARTTLS\r\na001 OK STARTTLS\r\n"], "it does not offer STARTTLS"),
        ([b"* OK\r\n", b"* CAPABILITY STARTTLS\r\na001 NO\r\n"], "it answered CAPABILITY with: a001 NO"),
        ([b"* OK\r\n", b"* CAPABILITY STARTTLS\r\nA001 OK\r\n"], "it answered CAPABILITY with: A001 OK"),
        ([b"* OK\r\n", b"* BYE STARTTLS\r\n"], "it answered CAPABILITY with: * BYE STARTTLS"),
        ([b"* OK\r\n", b"\r\n"], "it answered CAPABILITY with: "),
        (
            [b"* OK\r\n", b"* CAPABILITY STARTTLS\r\na001 OK\r\n", b"a001 OK\r\n"],
            "it answered STARTTLS with: a001 OK",
        ),
        (
            [b"* OK\r\n", b"* CAPABILITY STARTTLS\r\na001 OK\r\n", b"a002 BAD no\r\n"],
            "it answered STARTTLS with: a002 BAD no",
        ),
        ([b"* OK\r\n", b"* CAPABILITY STARTTLS\r\na001 OK\r\n", b"+ go\r\n"], "it answered STARTTLS with: + go"),
    ],
    "pop3": [
        ([b"-ERR busy\r\n"], "it greeted with: -ERR busy"),
        ([b"+OKAY\r\n"], "it greeted with: +OKAY"),
        ([b"\r\n"], "it greeted with: "),
        ([b"+OK\r\n", b"-ERR no\r\n"], "it answered STLS with: -ERR no"),
    ],
    "ftp": [
        ([b"421 busy\r\n"], "it greeted with: 421 busy"),
        ([b"220 \r\n", b"334 Kerberos\r\n"], "it answered AUTH TLS with: 334 Kerberos"),
        ([b"220 \r\n", b"502-no\r\n"], "it answered AUTH TLS with: 502-no"),
    ],
}


@on_each_protocol
def test_refusals(protocol: str) -> None:
    for answers, message in REFUSALS[protocol]:
        *before, last = answers
        for pieces in (answers, [*before, *(bytes([byte]) for byte in last)]):
            with pytest.raises(RefusedError) as caught:
                negotiate(protocol, *pieces)
            assert str(caught.value) == message


@on_each_protocol
def test_every_line_ends_with_carriage_return_and_line_feed(protocol: str) -> None:
    answers = answers_of(protocol)
    for at, answer in enumerate(answers):
        with pytest.raises(RefusedError, match="it ended a line without a carriage return: "):
            negotiate(protocol, *answers[:at], answer.replace(b"\r\n", b"\n"))


@pytest.mark.parametrize(
    ("protocol", "answers", "endless"),
    [
        ("smtp", [], b"220-more\r\n"),
        ("smtp", [], b"220 more " * 16),
        ("smtp", [b"220 \r\n"], b"250-STARTTLS\r\n"),
        ("ftp", [b"220-\r\n"], b"more\r\n"),
        ("imap", [b"* OK\r\n"], b"* OK more\r\n"),
        ("pop3", [], b"+OK " * 64),
    ],
)
def test_talk_without_end_is_refused(protocol: str, answers: list[bytes], endless: bytes) -> None:
    before = sum(map(len, answers))
    count = (DIALOGUE_LIMIT - before) // len(endless)
    negotiation, _ = negotiate(protocol, *answers, *[endless] * count)
    assert not negotiation.agreed
    with pytest.raises(RefusedError, match="it sent more than 65536 bytes in plaintext"):
        negotiation.receive(endless)


def test_what_is_refused_with_is_short_and_without_control_characters() -> None:
    with pytest.raises(RefusedError) as caught:
        negotiate("smtp", b"554 \x1b]0;title\x07\r\xff" + b"a" * 1000 + b"\r\n")
    message = str(caught.value)
    assert message.startswith(r"it greeted with: 554 \x1b]0;title\x07\x0d\xffaaa")
    assert len(message) < 250


def test_hears_each_line_of_the_dialogue_and_nothing_else() -> None:
    heard: list[bytes] = []
    negotiation = Negotiation(DIALOGUES["pop3"](), heard.append)
    for piece in (b"+OK re", b"ady\r\n", b"+OK go\r\ninjected\r\n"):
        negotiation.receive(piece)
    assert heard == [b"+OK ready\r", b"+OK go\r"]


# What the processes are given, and their peers


def answer_in_plaintext(peer: socket.socket, protocol: str, *, behind: bytes = b"") -> None:
    """Send the server's side of a dialogue, each answer in one piece.

    :param behind: what is sent in one piece with the last answer
    """
    *first, (command, answer) = PROTOCOLS[protocol]
    for command_, answer_ in [*first, (command, answer + behind)]:
        assert read_exactly(peer, len(command_)) == command_
        peer.sendall(answer_)


@contextmanager
def secured(peer: socket.socket, context: ssl.SSLContext | None = None) -> Iterator[ssl.SSLSocket]:
    """The server's side of TLS. It is an error if the client ends without close_notify."""
    context = context or server_context()
    with context.wrap_socket(peer, server_side=True, suppress_ragged_eofs=False) as secure_peer:
        yield secure_peer


def relays(client: Program, peer: ssl.SSLSocket, *, end: bool = True) -> None:
    """Check that the client relays in both directions within TLS.

    :param end: whether it ends its side at the end of its input
    """
    client.stdin.write(b"to the peer")
    assert read_exactly(peer, 11) == b"to the peer"
    peer.sendall(b"to the client")
    assert client.reads(13) == b"to the client"
    if end:
        client.stdin.close()
        assert peer.recv(1) == b""  # EOF by close_notify
        peer.unwrap()  # without it the client would report an error: the answer could have been cut off


# connect --tls


@on_each_backend
@pytest.mark.parametrize("binary_type", ["arraybuffer", "string"])
def test_connect(files: SimpleNamespace, backend: str, binary_type: str) -> None:
    options = ("--tls", "--cafile", files.authority, "--backend", backend, "--binary-type", binary_type)
    with connected(*options, stdin=subprocess.PIPE) as (client, peer), secured(peer) as secure_peer:
        relays(client, secure_peer)
        secure_peer.close()
        assert client.ends() == (0, "")


@on_each_backend
def test_connect_to_openssl(files: SimpleNamespace, backend: str) -> None:
    """OpenSSL's s_server answers each line with the line reversed."""
    with openssl("s_server", "-accept", "0", "-naccept", "1", "-cert", files.both, "-rev") as server:
        while not (port := re.fullmatch(rb"ACCEPT \S+:(\d+)\n", line := server.stdout.readline())):
            assert line, server.stderr.read()
        options = ("--tls", "--cafile", files.authority, "--backend", backend)
        with program("connect", "localhost", int(port[1]), *options, stdin=subprocess.PIPE) as client:
            client.stdin.write(b"abc\n")
            assert client.reads(4) == b"cba\n"
            client.stdin.close()
            assert client.ends() == (0, "")
        assert server.process.wait(LIMIT) == 0


@contextmanager
def openssl(*args: object, **options: Any) -> Iterator[Program]:
    command = ["openssl", *map(str, args)]
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    with subprocess.Popen(command, bufsize=0, **options) as process:
        try:
            yield Program(process)
        finally:
            process.kill()


@on_each_backend
def test_a_certificate_that_is_not_trusted(backend: str) -> None:
    """The authority is not among the system's."""
    with connected("--tls", "--backend", backend, stdin=subprocess.PIPE) as (client, peer):
        port = port_of(peer)
        client.stdin.write(b"secret")
        with pytest.raises(ssl.SSLError, match="unknown ca"), secured(peer):
            pass
        assert client.ends() == (1, refusal("cannot connect to", port, "unable to get local issuer certificate"))
        assert client.stdout.read() == b""


def refusal(doing: str, port: int, why: str, host: str = "127.0.0.1") -> str:
    return f"mozsocket: error: {doing} {host} port {port}: the peer's certificate is not accepted: {why}\n"


NO_TLS = "TLS failed: wrong version number (does the peer speak TLS?)"
MISMATCH = "IP address mismatch, certificate is not valid for '127.0.0.1'."


def test_a_certificate_for_another_host(files: SimpleNamespace) -> None:
    with connected("--tls", "--cafile", files.authority) as (client, peer):
        port = port_of(peer)
        with pytest.raises(ssl.SSLError), secured(peer, server_context(certificate("other.example"))):
            pass
        assert client.ends() == (1, refusal("cannot connect to", port, MISMATCH))


@pytest.mark.parametrize("starttls", [False, True])
def test_server_hostname(files: SimpleNamespace, starttls: bool) -> None:
    """The option sets the name that the certificate must be for, and the name sent to the server (SNI)."""
    asked_for: list[str | None] = []
    context = server_context(certificate("other.example"))
    context.sni_callback = lambda sock, name, context: asked_for.append(name)
    options = (*(["--starttls", "pop3"] if starttls else ["--tls"]), "--server-hostname", "other.example")
    with connected(*options, "--cafile", files.authority, stdin=subprocess.PIPE) as (client, peer):
        if starttls:
            answer_in_plaintext(peer, "pop3")
        with secured(peer, context) as secure_peer:
            relays(client, secure_peer)
            secure_peer.close()
        assert client.ends() == (0, "")
    assert asked_for == ["other.example"]


def test_cafile_takes_the_place_of_the_system_s(files: SimpleNamespace) -> None:
    context = context_of_options(str(files.authority), insecure=False)
    assert context is not None
    assert len(context.get_ca_certs()) == 1
    assert context.check_hostname and context.verify_mode is ssl.CERT_REQUIRED


@on_each_backend
@pytest.mark.parametrize("starttls", [False, True])
def test_insecure_works_and_says_so(backend: str, starttls: bool) -> None:
    """The certificate is neither trusted nor for the host."""
    options = (*(["--starttls", "imap"] if starttls else ["--tls"]), "--insecure", "--backend", backend)
    with connected(*options, stdin=subprocess.PIPE) as (client, peer):
        assert client.stderr.readline() == (
            b"mozsocket: warning: --insecure: the certificate of 127.0.0.1 is not checked, so anyone may be at the"
            b" other end\n"
        )
        if starttls:
            answer_in_plaintext(peer, "imap")
        with secured(peer, server_context(certificate("other.example"))) as secure_peer:
            relays(client, secure_peer)
            secure_peer.close()
        assert client.ends() == (0, "")


def test_a_peer_that_speaks_plaintext() -> None:
    with connected("--tls", stdin=subprocess.PIPE) as (client, peer):
        client.stdin.write(b"secret")
        peer.sendall(b"220 in plaintext\r\n")
        assert b"secret" not in read_all(peer)
        port = port_of(peer)
        peer.close()
        assert client.ends() == (1, f"mozsocket: error: cannot connect to 127.0.0.1 port {port}: {NO_TLS}\n")
        assert client.stdout.read() == b""


@on_each_backend
def test_a_connection_that_is_cut_off(files: SimpleNamespace, backend: str) -> None:
    """What arrived before is printed, and an error says that more may have been cut off."""
    options = ("--tls", "--cafile", files.authority, "--backend", backend)
    with connected(*options, stdin=subprocess.PIPE) as (client, peer), secured(peer) as secure_peer:
        secure_peer.sendall(b"the first half")
        port = port_of(secure_peer)
        secure_peer.close()  # without unwrap(), which sends close_notify
        why = "the peer ended the connection without close_notify"
        assert client.ends() == (1, f"mozsocket: error: connection with 127.0.0.1 port {port}: {why}\n")
        assert client.stdout.read() == b"the first half"


# connect --starttls


@on_each_protocol_and_backend
def test_starttls(files: SimpleNamespace, protocol: str, backend: str) -> None:
    options = ("--starttls", protocol, "--cafile", files.authority, "--backend", backend)
    with connected(*options, stdin=subprocess.PIPE) as (client, peer):
        answer_in_plaintext(peer, protocol)
        with secured(peer) as secure_peer:
            relays(client, secure_peer)
            secure_peer.close()
        assert client.ends() == (0, "")
        assert client.stdout.read() == b""


@on_each_backend
@pytest.mark.parametrize("binary_type", ["arraybuffer", "string"])
def test_nothing_is_lost_behind_the_handshake(files: SimpleNamespace, backend: str, binary_type: str) -> None:
    """The server sends much data immediately, and the input is available from the start."""
    options = ("--starttls", "smtp", "--cafile", files.authority, "--backend", backend, "--binary-type", binary_type)
    there, back = os.urandom(MIB + 1), os.urandom(MIB + 3)
    with connected(*options, stdin=subprocess.PIPE) as (client, peer), in_thread(write_all, client.stdin, there):
        answer_in_plaintext(peer, "smtp")
        with secured(peer) as secure_peer:
            secure_peer.sendall(back)
            assert client.reads(len(back)) == back
            assert read_exactly(secure_peer, len(there)) == there
            secure_peer.unwrap()
        assert client.ends() == (0, "")
        assert client.stdout.read() == b""


@on_each_protocol_and_backend
def test_injected_plaintext_makes_the_handshake_fail(files: SimpleNamespace, protocol: str, backend: str) -> None:
    """CVE-2011-0411, against the client: data in one piece with the last answer must not be treated as encrypted."""
    options = ("--starttls", protocol, "--cafile", files.authority, "--backend", backend)
    with connected(*options, stdin=subprocess.PIPE) as (client, peer):
        client.stdin.write(b"secret")
        port = port_of(peer)
        answer_in_plaintext(peer, protocol, behind=b"* injected\r\n")
        with pytest.raises((ssl.SSLError, ConnectionError)), secured(peer) as secure_peer:
            secure_peer.recv(1)
        assert client.ends() == (1, f"mozsocket: error: no TLS with 127.0.0.1 port {port}: {NO_TLS}\n")
        assert client.stdout.read() == b""


@on_each_backend
def test_plaintext_injected_after_the_switch(backend: str) -> None:
    with connected("--starttls", "smtp", "--backend", backend, stdin=subprocess.PIPE) as (client, peer):
        client.stdin.write(b"secret")
        answer_in_plaintext(peer, "smtp")
        assert read_exactly(peer, 1) == b"\x16"  # the start of the ClientHello
        peer.sendall(b"250 injected\r\n")
        assert b"secret" not in read_all(peer)
        peer.close()
        status, errors = client.ends()
        assert status == 1
        assert errors.startswith("mozsocket: error: no TLS with 127.0.0.1 port ") and errors.count("\n") == 1
        assert client.stdout.read() == b""


@on_each_backend
def test_starttls_that_is_refused(backend: str) -> None:
    """There is no fallback to plaintext."""
    with connected("--starttls", "smtp", "--backend", backend, stdin=subprocess.PIPE) as (client, peer):
        client.stdin.write(b"secret")
        port = port_of(peer)
        peer.sendall(b"220 ready\r\n")
        assert read_exactly(peer, 18) == b"EHLO [127.0.0.1]\r\n"
        peer.sendall(b"250-\r\n250 STARTTLS\r\n")
        assert read_exactly(peer, 10) == b"STARTTLS\r\n"
        peer.sendall(b"454 not now\r\n")
        assert read_all(peer) == b""
        assert client.ends() == (
            1,
            f"mozsocket: error: no TLS with 127.0.0.1 port {port}: it answered STARTTLS with: 454 not now\n",
        )
        assert client.stdout.read() == b""


@on_each_backend
def test_starttls_with_a_certificate_that_is_not_trusted(backend: str) -> None:
    with connected("--starttls", "smtp", "--backend", backend) as (client, peer):
        port = port_of(peer)
        answer_in_plaintext(peer, "smtp")
        with pytest.raises(ssl.SSLError, match="unknown ca"), secured(peer):
            pass
        assert client.ends() == (1, refusal("no TLS with", port, "unable to get local issuer certificate"))


@on_each_backend
def test_starttls_with_a_peer_that_ends(backend: str) -> None:
    with connected("--starttls", "smtp", "--backend", backend) as (client, peer):
        port = port_of(peer)
        peer.sendall(b"220-hello, and good")
        peer.close()
        assert client.ends() == (
            1,
            f"mozsocket: error: no TLS with 127.0.0.1 port {port}: it ended the connection\n",
        )


@pytest.mark.parametrize(
    ("answered", "awaited"), [(0, "greeting"), (1, "answer to EHLO [127.0.0.1]"), (3, "TLS handshake")]
)
def test_starttls_with_a_peer_that_says_nothing(answered: int, awaited: str) -> None:
    with listening() as listener:
        port = port_of(listener)

        def answer() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.settimeout(PEER_TIMEOUT)
                for command, text in PROTOCOLS["smtp"][:answered]:
                    read_exactly(peer, len(command))
                    peer.sendall(text)
                read_all(peer)

        with in_thread(answer):
            status, output = invoke(
                "connect", "127.0.0.1", port, "--starttls", "smtp", "--insecure", "--connect-timeout", 0.5
            )
    assert status == 1
    assert output.splitlines()[1:] == [f"mozsocket: error: no TLS with 127.0.0.1 port {port}: no {awaited} in time"]


def test_starttls_has_a_time_limit_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "NEGOTIATION_LIMIT", 0.1)
    with listening() as listener:
        port = port_of(listener)
        status, output = invoke("connect", "127.0.0.1", port, "--starttls", "smtp")
    assert (status, output) == (1, f"mozsocket: error: no TLS with 127.0.0.1 port {port}: no greeting in time\n")


@on_each_backend
def test_verbose_starttls(files: SimpleNamespace, backend: str) -> None:
    """The trace shows the dialogue, without control characters, and the TLS version agreed on."""
    options = ("--starttls", "pop3", "--cafile", files.authority, "-v", "--backend", backend)
    with connected(*options, stdin=subprocess.PIPE) as (client, peer):
        peer.sendall(b"+OK \x1b[2J\r\n")
        assert read_exactly(peer, 6) == b"STLS\r\n"
        peer.sendall(b"+OK\r\n")
        with secured(peer, server_context(version=ssl.TLSVersion.TLSv1_2)) as secure_peer:
            cipher = secure_peer.cipher()
            relays(client, secure_peer)
            secure_peer.close()
        assert cipher is not None
        assert events_of(client.ends()) == [
            "client open",
            r"client heard +OK \x1b[2J",
            "client said STLS",
            "client data 10 B",
            "client heard +OK",
            "client data 5 B",
            f"client secure TLSv1.2, {cipher[0]}",
            "client data 13 B",
            "client close",
        ]


# listen --tls


@on_each_backend
def test_listen(files: SimpleNamespace, backend: str) -> None:
    options = ("--tls", "--certfile", files.both, "--backend", backend)
    with program("listen", 0, *options, stdin=subprocess.PIPE) as server:
        with dialled_securely(server.port()) as peer:
            relays(server, peer, end=False)
            peer.unwrap()
        assert server.ends() == (0, "")
        assert server.stdout.read() == b""


@on_each_backend
def test_pipes_both_ways(files: SimpleNamespace, backend: str, tmp_path: Path) -> None:
    server_options = ("--tls", "--certfile", files.certificate, "--keyfile", files.key, "--backend", backend)
    pipes_both_ways(server_options, ("--tls", "--cafile", files.authority, "--backend", backend), tmp_path)


@on_each_backend
def test_listen_to_openssl(files: SimpleNamespace, backend: str) -> None:
    options = ("--tls", "--certfile", files.both, "--backend", backend)
    with program("listen", 0, "--echo", *options) as server:
        arguments = ("-CAfile", files.authority, "-verify_return_error", "-verify_hostname", "localhost", "-quiet")
        with openssl("s_client", "-connect", f"127.0.0.1:{server.port()}", *arguments, stdin=subprocess.PIPE) as client:
            client.stdin.write(b"there and back\n")
            assert client.reads(15) == b"there and back\n"


@on_each_backend
def test_a_failed_handshake_is_reported_and_others_are_served(files: SimpleNamespace, backend: str) -> None:
    """A failed handshake does not count as the one connection."""
    with program("listen", 0, "--tls", "--certfile", files.both, "--backend", backend) as server:
        port = server.port()
        with dialled(port) as peer:
            from_port = port_of(peer)
            peer.sendall(b"GET / HTTP/1.0\r\n\r\n")
            read_all(peer)
        assert server.stderr.readline().decode() == (
            f"mozsocket: error: connection with 127.0.0.1 port {from_port}: TLS failed: http request"
            " (does the peer speak TLS?)\n"
        )
        with (
            pytest.raises(ssl.SSLCertVerificationError),
            dialled_securely(port, client_context(trusting=False)) as failing,
        ):
            failing.recv(1)
        assert server.stderr.readline().endswith(b": the peer refused TLS: tlsv1 alert unknown ca\n")
        with dialled_securely(port) as secure_peer:
            secure_peer.sendall(b"data")
            assert server.reads(4) == b"data"
            secure_peer.unwrap()
        assert server.ends() == (0, "")


@on_posix
def test_a_failed_handshake_that_nobody_handles(files: SimpleNamespace) -> None:
    with program("listen", 0, "--tls", "--certfile", files.both) as server:
        port = server.port()
        server.stderr.close()
        with dialled(port) as peer:
            peer.sendall(b"GET / HTTP/1.0\r\n\r\n")
            read_all(peer)
        with dialled_securely(port) as secure_peer:
            secure_peer.sendall(b"data")
            assert server.reads(4) == b"data"
            secure_peer.unwrap()
        assert server.process.wait(LIMIT) == 0


def test_what_else_the_package_logs(capsys: pytest.CaptureFixture[str]) -> None:
    with Complaints().installed():
        logging.getLogger("mozsocket").error("%s cannot accept", "a server")
    assert capsys.readouterr().err == "mozsocket: error: a server cannot accept\n"


def test_keep_open_takes_one_after_another(files: SimpleNamespace) -> None:
    with program("listen", 0, "--keep-open", "--tls", "--certfile", files.both, stdin=subprocess.PIPE) as server:
        port = server.port()
        for _ in range(2):
            with dialled_securely(port) as peer:
                relays(server, peer, end=False)
                peer.unwrap()


@on_each_backend
def test_verbose(files: SimpleNamespace, backend: str) -> None:
    server_options = ("--tls", "--certfile", files.both, "-v", "--backend", backend)
    client_options = ("--tls", "--cafile", files.authority, "-v", "--backend", backend)
    with program("listen", 0, *server_options) as server:
        with program("connect", "127.0.0.1", server.port(), *client_options, stdin=subprocess.PIPE) as client:
            client.stdin.write(b"hello")
            assert server.reads(5) == b"hello"
            client.stdin.close()
            opened, closed = events_of(client.ends())
        accepted, *others = events_of(server.ends())
    encryption = r"TLSv1\.3, TLS_[A-Z0-9_]+"
    assert re.fullmatch(f"client open {encryption}", opened) and closed == "client close"
    assert re.fullmatch(f"server connect from 127.0.0.1 port N, {encryption}", accepted)
    assert others == ["accepted 1 data 5 B", "accepted 1 close"]


# Options and files


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("connect", "--tls", "--starttls", "smtp"), "--tls and --starttls exclude each other."),
        (("connect", "--tls", "--cafile", __file__, "--insecure"), "--cafile and --insecure exclude each other."),
        (("connect", "--cafile", __file__), "--cafile can only be used with --tls or --starttls."),
        (("connect", "--insecure"), "--insecure can only be used with --tls or --starttls."),
        (("connect", "--server-hostname", "localhost"), "--server-hostname can only be used with --tls or --starttls."),
        (("connect", "--tls", "--server-hostname", "localhost\0"), "server_hostname must be a host name"),
        (("connect", "--starttls", "gopher"), "Invalid value for '--starttls': 'gopher' is not one of"),
        (("connect", "--tls", "--cafile", "nosuch"), "Invalid value for '--cafile': File 'nosuch' does not exist."),
        (("connect", "--tls", "--cafile", "/"), "Invalid value for '--cafile': File '/' is a directory."),
        (("connect", "--tls", "--cafile", __file__), f"'{__file__}' holds no certificates in PEM"),
        (("listen", "--tls"), "--tls needs a --certfile."),
        (("listen", "--certfile", __file__), "--certfile can only be used with --tls."),
        (("listen", "--keyfile", __file__), "--keyfile can only be used with --tls."),
        (("listen", "--tls", "--certfile", "nosuch"), "Invalid value for '--certfile': File 'nosuch' does not exist."),
        (("listen", "--tls", "--certfile", __file__), f"'{__file__}' must hold a certificate and its key in PEM"),
    ],
)
def test_usage_errors(args: tuple[str, ...], message: str) -> None:
    command, *options = args
    status, output = invoke(command, *(["localhost", 1] if command == "connect" else [0]), *options)
    assert status == 2
    assert output.startswith(f"Usage: mozsocket {command}")
    assert message in output.splitlines()[-1] and output.splitlines()[-1].startswith("Error: ")


def test_certificates_that_cannot_be_used(files: SimpleNamespace, tmp_path: Path) -> None:
    encrypted = tmp_path / "encrypted.pem"
    with openssl("ec", "-in", files.key, "-aes256", "-passout", "pass:x", "-out", encrypted) as encrypting:
        assert encrypting.process.wait(LIMIT) == 0
    no_certificate = f"Invalid value for '--certfile': '{files.key}' must hold a certificate and its key in PEM"
    neither = f"Invalid value for '--certfile': '{files.certificate}' and '{files.authority}' must hold a certificate"
    other = f"Invalid value for '--keyfile': '{files.other_key}' holds the key of another certificate"
    for options, message in [
        ([files.certificate], f"'{files.certificate}' must hold a certificate and its key in PEM"),
        ([files.key], no_certificate),
        ([files.certificate, "--keyfile", files.authority], neither),
        ([files.certificate, "--keyfile", files.other_key], other),
        ([files.certificate, "--keyfile", encrypted], "Invalid value for '--keyfile': the key is encrypted"),
    ]:
        status, output = invoke("listen", 0, "--tls", "--certfile", *options)
        assert status == 2
        assert message in output.splitlines()[-1]


def test_files_that_cannot_be_read(files: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files may vanish after the options were checked, which is when they must exist and be readable."""

    def fails_to_load(*args: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", fails_to_load)
    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", fails_to_load)
    for args, option in [
        (("connect", "localhost", 1, "--tls", "--cafile", files.both), "--cafile"),
        (("listen", 0, "--tls", "--certfile", files.both), "--certfile"),
    ]:
        status, output = invoke(*args)
        assert status == 2
        assert output.splitlines()[-1] == f"Error: Invalid value for '{option}': '{files.both}': Permission denied"


def test_refused(files: SimpleNamespace) -> None:
    """The message is the same as without TLS."""
    for options in (("--tls",), ("--starttls", "smtp")):
        with listening() as listener:
            port = port_of(listener)
        fails(f"cannot connect to 127.0.0.1 port {port}: Connection refused", "connect", "127.0.0.1", port, *options)


# The demonstration


def test_demo_says_if_the_certificate_is_not_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    contexts = _demo.Contexts(server_context(), client_context(trusting=False))
    monkeypatch.setattr(_demo.Contexts, "make", lambda: contexts)
    status, output = invoke("demo")
    assert status == 1
    assert "SecurityUntrustedCertificateIssuerError" in output
    wrong = "the connection changed from plaintext to TLS on both sides, the certificate checked"
    for backend in ("asyncio", "uvloop", "trio"):
        assert f"{backend}: {wrong}" in output.splitlines()[-1]


def test_demo_says_if_the_certificate_is_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    context = context_of_options(None, insecure=True)
    assert context is not None
    contexts = _demo.Contexts(server_context(), context)
    monkeypatch.setattr(_demo.Contexts, "make", lambda: contexts)
    without(monkeypatch, "uvloop", "trio")
    assert invoke("demo")[1].splitlines()[-1] == (
        "mozsocket: error: this did not hold: asyncio: the connection changed from plaintext to TLSv1.3 on both sides,"
        " the certificate checked"
    )


def test_demo_needs_trustme(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trustme", None)
    message = "mozsocket: error: the demonstration needs `pip install 'mozsocket[cli]'`\n"
    assert invoke("demo") == (1, message)
