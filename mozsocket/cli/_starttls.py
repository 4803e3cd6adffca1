"""Upgrading a connection to TLS with the command of each protocol: STARTTLS, STLS, AUTH TLS.

The answers in plaintext may be an attacker's, so only the expected answer at the expected point is accepted. There is
no fallback to plaintext. Anything that follows the last answer is fed to TLS, so injected plaintext makes the
handshake fail.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Generator

import anyio

from .. import Event, InvalidStateError, TCPSocket, TCPSocketError, TCPSocketEvent
from .._buffers import octets
from ._console import TerminalText
from ._loop import Failure
from ._trace import Trace, peer_of

__all__ = ("DIALOGUES", "Negotiation", "RefusedError", "StartTLS")

DIALOGUE_LIMIT = 65_536
"""The most bytes that the other side may send in plaintext."""

NEGOTIATION_LIMIT = 30
"""Default limit, in seconds, for the dialogue and the TLS handshake together."""

SHOWN = 200
"""The most characters of an answer that are quoted in an error message."""

HELLO_NAME = b"[127.0.0.1]"  # a name is required, and this one reveals nothing about the machine


class RefusedError(Exception):
    """TLS was not agreed on. The message says why; its subject, "it", is the other side."""


def text_of(line: bytes) -> str:
    """A line from the other side as text that is safe to print."""
    return TerminalText().feed(line, final=True)


def answered(command: bytes, line: bytes) -> RefusedError:
    """The error for an unexpected answer, or for an unexpected greeting if there was no command."""
    doing = f"it answered {command.decode()} with" if command else "it greeted with"
    return RefusedError(f"{doing}: {text_of(line)[:SHOWN]}")


# A dialogue is a generator. It yields the next command, or b"" to wait for another line, and receives the next line by
# send(). It returns when TLS can begin, and raises RefusedError if it cannot. The server always speaks first.
Dialogue = Generator[bytes, bytes, None]
Answer = Generator[bytes, bytes, list[bytes]]


def reply(command: bytes, code: bytes, *, free_text: bool = False) -> Answer:
    """Send a command and read the reply, of SMTP (RFC 5321, section 4.2) or FTP (RFC 959, section 4.2).

    :param code: the code of a successful reply
    :param free_text: whether, as in FTP, the lines between the first and the last may be any text
    :return: the lines of the reply
    """
    line = yield command
    lines = [line]
    while line[:4] == code + b"-" or (free_text and len(lines) > 1 and line[:4] != code + b" "):
        line = yield b""
        lines.append(line)
    if line[:4] not in (code, code + b" "):
        raise answered(command, line)
    return lines


def mail(hello: bytes) -> Dialogue:
    """The dialogue of SMTP and LMTP (RFC 3207), which differ in the greeting command."""
    yield from reply(b"", b"220")
    _, *offers = yield from reply(hello + b" " + HELLO_NAME, b"250")
    if not any(line[4:].upper().split()[:1] == [b"STARTTLS"] for line in offers):
        raise RefusedError("it does not offer STARTTLS")
    yield from reply(b"STARTTLS", b"220")


def smtp() -> Dialogue:
    return mail(b"EHLO")


def lmtp() -> Dialogue:
    return mail(b"LHLO")


def ftp() -> Dialogue:
    """The dialogue of FTP (RFC 4217)."""
    yield from reply(b"", b"220", free_text=True)
    yield from reply(b"AUTH TLS", b"234", free_text=True)


def pop3() -> Dialogue:
    """The dialogue of POP3 (RFC 2595, section 4)."""
    for command in (b"", b"STLS"):
        line = yield command
        if line.split()[:1] != [b"+OK"]:
            raise answered(command, line)


def imap() -> Dialogue:
    """The dialogue of IMAP (RFC 9051, section 6.2.1)."""
    greeting = yield b""
    if words_of(greeting)[:2] != [b"*", b"OK"]:  # such as PREAUTH, after which STARTTLS is not allowed
        raise answered(b"", greeting)
    lines = yield from tagged_answer(b"a001", b"CAPABILITY")
    if not any(words[1:2] == [b"CAPABILITY"] and b"STARTTLS" in words[2:] for words in map(words_of, lines)):
        raise RefusedError("it does not offer STARTTLS")
    yield from tagged_answer(b"a002", b"STARTTLS")


def tagged_answer(tag: bytes, command: bytes) -> Answer:
    """Send a command of IMAP and read the answer.

    :return: the lines before the last, which has the tag
    """
    lines: list[bytes] = []
    line = yield tag + b" " + command
    while words_of(line)[:1] == [b"*"] and words_of(line)[1:2] != [b"BYE"]:
        lines.append(line)
        line = yield b""
    if line.split()[:1] != [tag] or words_of(line)[1:2] != [b"OK"]:
        raise answered(command, line)
    return lines


def words_of(line: bytes) -> list[bytes]:
    return line.upper().split()


DIALOGUES: dict[str, Callable[[], Dialogue]] = {"smtp": smtp, "imap": imap, "pop3": pop3, "lmtp": lmtp, "ftp": ftp}


class Negotiation:
    """Runs a dialogue on data that arrives in pieces of any size, without the socket.

    :param hear: called with each line from the other side
    :ivar agreed: whether the dialogue has ended and TLS can begin
    :ivar leftover: the bytes received after the last line; once agreed, they belong to TLS
    """

    def __init__(self, dialogue: Dialogue, hear: Callable[[bytes], None] = lambda line: None) -> None:
        self.agreed = False
        self.leftover = b""
        self._dialogue = dialogue
        self._hear = hear
        self._received = 0
        next(dialogue)

    def receive(self, data: bytes) -> bytes:
        """Process received data.

        :return: the command to send now, or ``b""``
        :raises RefusedError: if TLS cannot be agreed on
        """
        self._received += len(data)
        if self._received > DIALOGUE_LIMIT:
            raise RefusedError(f"it sent more than {DIALOGUE_LIMIT} bytes in plaintext")
        self.leftover += data
        while not self.agreed and b"\n" in self.leftover:
            line, _, self.leftover = self.leftover.partition(b"\n")
            command = self._answer(line)
            if command:
                if self.leftover:  # this cannot answer a command that has not been sent yet
                    raise RefusedError(f"it sent more than the answer: {text_of(self.leftover)[:SHOWN]}")
                return command
        return b""

    def _answer(self, line: bytes) -> bytes:
        self._hear(line)
        if not line.endswith(b"\r"):
            raise RefusedError(f"it ended a line without a carriage return: {text_of(line)[:SHOWN]}")
        try:
            return self._dialogue.send(line[:-1])
        except StopIteration:
            self.agreed = True
            return b""


class StartTLS:
    """Upgrades a socket to TLS with the command of a protocol.

    :param socket: a socket that has not received data yet. Its ``ondata``, which must be set, gets only data received
        within TLS
    :param protocol: a key of :data:`DIALOGUES`
    :param context: the TLS context; None for the default, which trusts the authorities of the system
    :param server_hostname: the name or address that the certificate must be for; None for the host
    """

    def __init__(
        self,
        socket: TCPSocket[bytes | str],
        protocol: str,
        context: ssl.SSLContext | None,
        server_hostname: str | None,
        trace: Trace,
    ) -> None:
        self._socket = socket
        self._context = context
        self._server_hostname = server_hostname
        self._trace = trace
        self._negotiation = Negotiation(DIALOGUES[protocol](), lambda line: self._tell("heard", line))
        self._refusal: RefusedError | None = None
        self._awaited = "greeting"
        self._ondata_of_tls = socket.ondata
        socket.ondata = self._on_data
        socket.addEventListener("end", self._on_end)

    def _tell(self, what: str, line: bytes) -> None:
        self._trace.tell("client", what, text_of(line.removesuffix(b"\r")))

    def _on_data(self, event: TCPSocketEvent[bytes | str]) -> None:
        try:
            command = self._negotiation.receive(octets(event.data, 0, None))
        except RefusedError as exc:
            self._refusal = exc
            self._socket.closeImmediately()
            return
        if command:
            self._tell("said", command)
            self._awaited = f"answer to {command.decode()}"
            self._socket.send(command + b"\r\n")
        elif self._negotiation.agreed:
            self._awaited = "TLS handshake"
            self._socket.ondata = self._ondata_of_tls
            self._socket.upgradeToSecure(
                ssl_context=self._context,
                server_hostname=self._server_hostname,
                leftover=self._negotiation.leftover,
            )

    def _on_end(self, event: Event[TCPSocket[bytes | str]]) -> None:
        if not self._negotiation.agreed:  # otherwise the end belongs to TLS, which handles it
            self._socket.closeImmediately()

    async def run(self, seconds: float) -> None:
        """Wait until TLS is up.

        :param seconds: how long it may take
        :raises Failure: if TLS is refused, fails, or is not up in time
        """
        with anyio.move_on_after(seconds) as limit:
            try:
                await self._socket.secured()
            except TCPSocketError as exc:
                raise self._failure(exc.detail) from exc
            except InvalidStateError as exc:
                raise self._failure(str(self._refusal or "it ended the connection")) from exc
        if limit.cancelled_caught:
            raise self._failure(f"no {self._awaited} in time")

    def _failure(self, reason: str) -> Failure:
        return Failure(f"no TLS with {peer_of(self._socket)}: {reason}")
