"""Agreeing in plaintext to go on in TLS, as each protocol has it: STARTTLS, STLS, AUTH TLS.

Nothing is taken for granted that the other side has not said in the right place, since it may be an attacker's: there
is no going on in plaintext, and what comes behind the last answer belongs to TLS, whose handshake it makes fail.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

import anyio

from .. import InvalidStateError, TCPSocket, TCPSocketError, TCPSocketEvent
from .._buffers import octets
from ._console import TerminalText
from ._loop import Failure
from ._trace import Trace, peer_of

__all__ = ("DIALOGUES", "Negotiation", "RefusedError", "StartTLS")

DIALOGUE_LIMIT = 65_536
"""Bytes that the other side may say in plaintext."""

NEGOTIATION_LIMIT = 30
"""Seconds until TLS must be up, unless the user says otherwise."""

SHOWN = 200
"""Characters of what the other side says that are put into an error message."""

HELLO_NAME = b"[127.0.0.1]"  # a name is asked for, and this one tells nothing of the machine


class RefusedError(Exception):
    """There can be no TLS; why, in words whose subject is the other side."""


def text_of(line: bytes) -> str:
    """What the other side has said, for a terminal."""
    return TerminalText().feed(line, final=True)


def answered(command: bytes, line: bytes) -> RefusedError:
    doing = f"it answered {command.decode()} with" if command else "it greeted with"
    return RefusedError(f"{doing}: {text_of(line)[:SHOWN]}")


# A dialogue yields what to say, b"" to only listen, and is sent the next line. It returns when TLS is to begin, and
# raises RefusedError if that cannot be. The other side speaks first, in all of them.
Dialogue = Generator[bytes, bytes, None]
Answer = Generator[bytes, bytes, list[bytes]]


def reply(command: bytes, code: bytes, *, free_text: bool = False) -> Answer:
    """Say a command and hear the reply of SMTP (RFC 5321, section 4.2) or FTP (RFC 959, section 4.2).

    :param code: that of success
    :param free_text: whether, as in FTP, the lines between the first and the last may be anything
    :return: its lines
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
    """RFC 3207."""
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
    """RFC 4217."""
    yield from reply(b"", b"220", free_text=True)
    yield from reply(b"AUTH TLS", b"234", free_text=True)


def pop3() -> Dialogue:
    """RFC 2595, section 4."""
    for command in (b"", b"STLS"):
        line = yield command
        if line.split()[:1] != [b"+OK"]:
            raise answered(command, line)


def imap() -> Dialogue:
    """RFC 9051, section 6.2.1."""
    greeting = yield b""
    if words_of(greeting)[:2] != [b"*", b"OK"]:  # PREAUTH, where STARTTLS is no longer possible, among them
        raise answered(b"", greeting)
    lines = yield from tagged_answer(b"a001", b"CAPABILITY")
    if not any(words[1:2] == [b"CAPABILITY"] and b"STARTTLS" in words[2:] for words in map(words_of, lines)):
        raise RefusedError("it does not offer STARTTLS")
    yield from tagged_answer(b"a002", b"STARTTLS")


def tagged_answer(tag: bytes, command: bytes) -> Answer:
    """Say a command of IMAP and hear the answer.

    :return: the lines before the last
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
    """A dialogue out of pieces of any size, without the socket.

    :param hear: called with each line of the other side's
    :ivar agreed: whether TLS is to begin
    :ivar leftover: what has come behind the dialogue by then
    """

    def __init__(self, dialogue: Dialogue, hear: Callable[[bytes], None] = lambda line: None) -> None:
        self.agreed = False
        self.leftover = b""
        self._dialogue = dialogue
        self._hear = hear
        self._received = 0
        next(dialogue)

    def receive(self, data: bytes) -> bytes:
        """
        :return: what to say now, if anything
        :raises RefusedError: if there can be no TLS
        """
        self._received += len(data)
        if self._received > DIALOGUE_LIMIT:
            raise RefusedError("it talks without end")
        self.leftover += data
        while not self.agreed and b"\n" in self.leftover:
            line, _, self.leftover = self.leftover.partition(b"\n")
            command = self._answer(line)
            if command:
                if self.leftover:  # no answer to what was not said yet
                    raise RefusedError(f"it said more than it was asked: {text_of(self.leftover)[:SHOWN]}")
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
    """Has a socket agree on TLS, then go on in it.

    :param socket: one whose first data is yet to come. Its ``ondata``, which must be set, gets that of TLS only
    """

    def __init__(self, socket: TCPSocket[bytes | str], protocol: str, trace: Trace) -> None:
        self._socket = socket
        self._trace = trace
        self._negotiation = Negotiation(DIALOGUES[protocol](), lambda line: self._tell("heard", line))
        self._refusal: RefusedError | None = None
        self._awaited = "greeting"
        self._ondata_of_tls = socket.ondata
        socket.ondata = self._on_data

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
            self._socket.upgradeToSecure(leftover=self._negotiation.leftover)

    async def run(self, seconds: float) -> None:
        """Wait until TLS is up.

        :param seconds: how long it may take
        :raises Failure: if there can be no TLS
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
