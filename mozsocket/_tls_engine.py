"""TLS without I/O: the caller feeds in what has arrived from the peer, and takes out the records to be sent.

:class:`ssl.SSLObject` encrypts and decrypts. :class:`TLSEngine` decides how much of that is done at once, and how long
a peer may keep it busy. There are no callbacks, and nothing waits: the caller goes by what the methods return and by
the attributes. TLS also answers the peer by itself: in the handshake, in a renegotiation, and to a KeyUpdate. These
records go into the same buffer as those of the program, so that all are sent in the order in which they were encrypted.
"""

from __future__ import annotations

import enum
import ssl
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

__all__ = ("Phase", "TLSEngine")

RECORD_SIZE = 16_384
"""The most bytes of data in one record (RFC 8446, section 5.1)."""

HEADER_SIZE = 5
"""The bytes of a record before its encrypted part. The last two are the length of that part."""

RECORDS_AT_ONCE = 16
"""The most records given to OpenSSL at once. Their kind is encrypted, and some cost OpenSSL far more than data does."""

WORK_AT_ONCE = 2048
"""The bytes of records, not counting the data in them, that are decrypted before other tasks run.

They are some 90 records with data, whatever its size. Of records without data they are fewer the longer these are: a
long one may hold hundreds of TLS's own messages.
"""

LONG = 8192
"""The bytes of records without data, given at once, after which a peer's records are given one by one from then on: an
ordinary peer has little need of them.
"""

FRUITLESS_RECORDS = 1000
"""The most records without data that a peer may send in succession. Go's library allows 16, BoringSSL 32."""

MAX_ANSWERS = 65_536
"""The most bytes of TLS's own answers that may wait to be sent. Beyond that nothing more is decrypted."""


class Phase(enum.Enum):
    """The phases of TLS."""

    NEW = enum.auto()
    """No step of the handshake has been taken."""

    HANDSHAKE = enum.auto()
    """The handshake is under way."""

    UP = enum.auto()
    """The handshake is done, and data can be exchanged. A failure ends this phase only when all data before it is read.
    """

    ENDED = enum.auto()
    """The peer has ended TLS: whatever it still sends is discarded. We may go on sending."""

    FAILED = enum.auto()
    """TLS has failed, and the error was raised: whatever the peer still sends is discarded."""


# Looked up once: these are used for each message.
_UP = Phase.UP
_ENDED = Phase.ENDED
_FAILED = Phase.FAILED


def _cut_off() -> ssl.SSLEOFError:
    # OpenSSL is never given the EOF itself: it would refuse to encrypt anything after it.
    return ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "the peer ended the connection without close_notify")


def _clear_errors() -> None:
    """Clear OpenSSL's queue of errors of this thread. It does that itself when it takes a step of a handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO()).do_handshake()


class Records:
    """Gives OpenSSL what has arrived a few records at a time.

    Given all, OpenSSL would go on until it has found data or used up everything. A record need not be complete to be
    given, so that OpenSSL refuses bytes that are no TLS as soon as possible.

    :param target: the buffer from which OpenSSL reads
    :ivar at_once: the most records that are given at once
    :ivar waiting: the bytes that were not given yet
    :ivar fruitless: the number of records given since the last one with data; the reader of the data sets it to 0
    """

    __slots__ = ("_header", "_lacking", "_target", "at_once", "fruitless", "waiting")

    def __init__(self, target: ssl.MemoryBIO) -> None:
        self._target = target
        self.at_once = RECORDS_AT_ONCE
        self._lacking = 0  # the missing bytes of a record that was given in part
        self._header = b""  # the given part of a record's header, if that is incomplete
        self.fruitless = 0
        self.waiting: bytes | memoryview = b""

    def add(self, data: bytes) -> bool:
        """Add bytes, and give their first records immediately, unless others are still to be given or read.

        :return: whether they are exactly one record, and nothing else was there
        """
        size = len(data) - HEADER_SIZE
        if self.waiting or self._target.pending:
            self.waiting = bytes(self.waiting) + data
        elif size < 0 or size != data[3] << 8 | data[4] or self._lacking or self._header:
            self.waiting = data
            self.give()
        else:  # exactly one record, as most messages are
            self.fruitless += 1
            self._target.write(data)
            return True
        return False

    def give(self) -> int:
        """Give the next records that wait.

        :return: how many bytes were given
        """
        data = self.waiting
        size = self._measure(data)
        if size == len(data):
            self.waiting = b""
            return self._target.write(data)
        view = memoryview(data)
        self.waiting = view[size:]
        return self._target.write(view[:size])

    def _measure(self, data: bytes | memoryview) -> int:
        """The number of bytes to give: up to the end of a record, or all."""
        before = len(self._header)
        if before:
            data = self._header + data
        at, size, count = self._lacking, len(data), 0
        while at + HEADER_SIZE <= size and count < self.at_once:
            at += HEADER_SIZE + (data[at + 3] << 8 | data[at + 4])
            count += 1
        self.fruitless += count
        if count == self.at_once and at <= size:
            self._lacking, self._header = 0, b""
            return at - before
        self._lacking, self._header = max(0, at - size), bytes(data[at:])
        return size - before


class TLSEngine:
    """One side of a TLS connection.

    :param context: keys, certificates and what is demanded of the peer
    :param server_side: whether this is the server's side of TLS
    :param server_hostname: the name that the peer's certificate must be for, in the client's role; None for no check
    :param standard_compatible: whether EOF without close_notify is an error
    :ivar phase: the phase of TLS
    :ivar established: whether the handshake was completed, even if TLS has ended or failed since
    :ivar closed: whether :meth:`close` was called
    :ivar pending: whether :meth:`open` may have something to do even if nothing more is fed
    :ivar outgoing: the buffer of records to be sent, to be emptied by :meth:`take`; ``outgoing.pending`` is its size
    :ivar answers: the bytes of TLS's own answers that :meth:`open` has made since :meth:`forget_answers`
    :ivar choked: whether there are so many answers that :meth:`open` does nothing until :meth:`forget_answers`
    :ivar standard_compatible: as given
    :ivar ssl_object: encrypts and decrypts, and tells what was agreed in the handshake
    """

    __slots__ = (
        "_ahead",
        "_eof",
        "_error",
        "_full",
        "_incoming",
        "_records",
        "_tickets",
        "answers",
        "choked",
        "closed",
        "established",
        "outgoing",
        "pending",
        "phase",
        "ssl_object",
        "standard_compatible",
    )

    def __init__(
        self,
        context: ssl.SSLContext,
        *,
        server_side: bool,
        server_hostname: str | None,
        standard_compatible: bool,
    ) -> None:
        self._incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        self.ssl_object = context.wrap_bio(
            self._incoming,
            self.outgoing,
            server_side=server_side,
            server_hostname=None if server_side else server_hostname,
        )
        self.standard_compatible = standard_compatible
        self.phase = Phase.NEW
        self.established = False
        self.closed = False
        self.pending = False
        self.answers = 0
        self.choked = False
        self._records = Records(self._incoming)
        self._tickets = b""  # records with session tickets, sent together with the next record
        self._ahead = b""  # data that was decrypted early, by close(): the next to be returned
        self._full = False  # whether OpenSSL may hold decrypted data that exceeded the size asked for
        self._eof = False  # whether EOF was fed
        self._error: ssl.SSLError | None = None  # the error that the next open() raises

    # Receiving

    def feed(self, data: bytes) -> None:
        """Take bytes from the peer; ``b""`` is EOF."""
        if not data:
            self._eof = self.pending = True
        elif self.phase is not _ENDED and self.phase is not _FAILED:
            self._records.add(data)
            self.pending = True

    def open(self, size: int) -> bytes | None:
        """Decrypt what was fed, or take a step of the handshake, which returns None.

        :return: the data of one or more records, at most ``size`` bytes; ``b""`` at the peer's end (close_notify or
            EOF); None if there is no data, or if :attr:`choked`
        :raises ssl.SSLError: if TLS fails; whatever is fed after that is discarded
        """
        if self.choked or not self.pending:
            return None
        made = self.outgoing.pending
        try:
            if self.phase is _UP and (data := self._decrypt(size)):
                return data
            return self._go_on_without_data()
        finally:
            if self.outgoing.pending > made:
                self._answered(made)

    def open_one(self, data: bytes) -> bytes:
        """Decrypt what has just arrived, if that is one record with data, as most messages are: the fast path of
        :meth:`feed` and :meth:`open`, while TLS is up and nothing is pending.

        :return: the data; ``b""`` if anything else was fed, which :meth:`open` reports or returns
        """
        part = None
        if self._records.add(data):
            try:
                part = self.ssl_object.read(RECORD_SIZE)
            except OSError as exc:
                part = self._judge(exc, RECORD_SIZE)
            if part:
                self._records.fruitless = 0
            elif part is not None:
                self._stop()
            elif len(data) > LONG:
                self._records.at_once = 1
            if self.outgoing.pending:
                self._answered(0)
        self.pending = not part
        return part or b""

    def _go_on_without_data(self) -> bytes | None:
        """Take a step of the handshake, or report the peer's end, an error, or that there is no data."""
        if self.phase is _ENDED or self.phase is _FAILED:
            return b""
        if self.phase is not _UP:
            self.do_handshake()
            return None
        if self._error is not None:
            self._fail()
            raise self._error
        if not self._eof or self._has_remaining_data():
            return None
        if self.standard_compatible:
            raise _cut_off()
        self.phase = _ENDED
        return b""

    def _has_remaining_data(self) -> bool:
        return bool(self._incoming.pending or self._full or self._records.waiting or self._ahead)

    def _decrypt(self, size: int) -> bytes:
        """The data in the records that were fed, up to the peer's end or an error, which the next call reports."""
        incoming, records, parts = self._incoming, self._records, []
        if self._ahead:
            parts.append(self._ahead[:size])
            self._ahead = self._ahead[size:]
            size -= len(parts[0])
        left, full, work = incoming.pending, self._full, WORK_AT_ONCE
        # The condition saves a last read(), which would raise SSLWantReadError: that takes a microsecond or two.
        while size and work > 0 and (left or full or records.waiting):
            if not (left or full):
                left = records.give()
            try:
                part: bytes | None = self.ssl_object.read(min(RECORD_SIZE, size))
            except OSError as exc:
                part = self._judge(exc, min(RECORD_SIZE, size))
            if part:
                parts.append(part)
                records.fruitless = 0
                size -= len(part)
            elif part is not None:
                self._stop()
            before, left = left, incoming.pending
            if size:
                spent = 0 if full else before - left - len(part or b"")
                work -= spent
                full = False
                if spent > LONG:
                    records.at_once = 1
            else:
                full = self.ssl_object.pending() > 0
        self._full = full
        if not (self._eof or self._error or self.phase is _ENDED):  # else it stays True: the next call reports that
            self.pending = bool(left or full or records.waiting or self._ahead)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _judge(self, exc: OSError, size: int) -> bytes | None:
        """What it means that a read has raised an exception.

        :return: as from the read: the data, or ``b""`` at the peer's end (close_notify); None if there is no data
        """
        if isinstance(exc, ssl.SSLZeroReturnError):
            return b""
        if not isinstance(exc, ssl.SSLWantReadError):
            try:
                return self._read_again(exc, size)
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError as failure:
                self._stop(failure)
                return None
        fruitless = self._records.fruitless
        if fruitless > FRUITLESS_RECORDS:
            words = f"the peer sent {fruitless} records without data, one after the other"
            self._stop(ssl.SSLError(ssl.SSL_ERROR_SSL, words))
        return None

    def _read_again(self, failure: OSError, size: int) -> bytes:
        """Read once more after a failure, as that may not be of this connection.

        OpenSSL keeps errors in a queue of the thread. Other code in it may leave one there: in Python 3.15, a blocking
        ``SSLSocket`` that raises ``BrokenPipeError`` does. Then OpenSSL reports a failure where there is nothing to
        read, or the peer's end.

        :raises ssl.SSLError: if TLS has failed indeed; or if there is no data
        """
        _clear_errors()
        try:
            data = self.ssl_object.read(size)
        except ssl.SSLWantReadError:
            raise
        except ssl.SSLZeroReturnError:
            data = b""
        except ssl.SSLError as again:  # which tells less than the first
            raise (failure if isinstance(failure, ssl.SSLError) else again) from None
        if not data and isinstance(failure, ssl.SSLError) and failure.library == "SSL":
            raise failure  # the alert of an error has ended TLS
        return data

    def _stop(self, error: ssl.SSLError | None = None) -> None:
        """Discard what follows: the peer has ended TLS, or has made it fail."""
        self._error = error
        if error is None:
            self.phase = _ENDED
        else:  # it may never be raised: its traceback would keep the connection alive
            error.__traceback__ = error.__context__ = None
        self._incoming.read()
        self._records.waiting = b""

    def _fail(self) -> None:
        """Note that TLS has failed. The caller raises the error."""
        self.phase = _FAILED
        self.pending = self._eof
        self.forget_answers()  # no more are made

    def _answered(self, before: int) -> None:
        """Count the answers that :meth:`open` has made.

        :param before: how many bytes of records there were before
        """
        if self.closed:  # nothing may follow close_notify
            made = self.outgoing.read(before)
            self.outgoing.read()
            self.outgoing.write(made)
        else:
            self.answers += self.outgoing.pending - before
            self.choked = self.answers > MAX_ANSWERS

    # Sending

    def seal(self, chunks: Iterable[bytes | bytearray | memoryview]) -> int:
        """Encrypt bytes into records.

        :return: how many bytes were encrypted; not all if a handshake needs something from the peer first
        :raises ssl.SSLError: if TLS fails, or has failed
        """
        count = 0
        if not self.established:
            return count
        try:
            for chunk in chunks:
                count += self.ssl_object.write(chunk)
        except ssl.SSLWantReadError:
            pass  # a renegotiation has begun
        except ssl.SSLError as exc:
            self._fail()
            raise (self._error or exc) from None
        return count

    def take(self) -> bytes:
        """Remove and return the records that are to be sent."""
        tickets, self._tickets = self._tickets, b""
        return tickets + self.outgoing.read()

    def forget_answers(self) -> None:
        """Note that all answers of TLS have been handed over, or were dropped."""
        self.answers = 0
        self.choked = False

    def close(self) -> None:
        """Make close_notify, unless TLS is not up or has failed. No record is made after it."""
        if not self.closed:
            self.closed = True
            if self.phase is _UP or self.phase is _ENDED:
                self._notify_close()

    def _notify_close(self) -> None:
        """Make close_notify while OpenSSL has nothing to read.

        ``unwrap()`` also looks for the peer's close_notify, and would make TLS fail if it found data instead.
        """
        self._ahead += self.ssl_object.read(self.ssl_object.pending()) if self.ssl_object.pending() else b""
        undecrypted = self._incoming.read()
        try:
            self.ssl_object.unwrap()
        except OSError:
            pass  # it wants the peer's close_notify too, for which we do not wait
        self._incoming.write(undecrypted)

    # The handshake

    def do_handshake(self) -> None:
        """Take the handshake as far as the next records from the peer allow. :meth:`open` does so too, if it has any.

        :raises ssl.SSLError: if the handshake fails
        """
        self.phase = Phase.HANDSHAKE
        if self._records.waiting:
            self._records.give()
        done = self._take_step()
        left = self._has_remaining_data()
        if self._eof and not (done or left):
            raise _cut_off()
        self.pending = left or self._eof
        if done:
            self.phase = _UP
            self.established = True
            self._records.fruitless = 0

    def _take_step(self) -> bool:
        """Have OpenSSL go on with the handshake.

        :return: whether that has completed it
        """
        waiting = self.outgoing.pending
        try:
            self.ssl_object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError:
            self._fail()
            raise
        if self.ssl_object.server_side and self.ssl_object.version() == "TLSv1.3" and not waiting:
            # The last step makes session tickets, by which the client can connect faster the next time. They are kept
            # back: a client that only sends and closes would not read them, and closing with unread input sends a
            # reset, which destroys what it has sent.
            self._tickets = self.outgoing.read()
        return True

    def shown_certificates(self) -> tuple[bytes, ...]:
        """The certificates that the peer has sent, trusted or not, in DER: its own, then those of its issuers."""
        if sys.version_info >= (3, 13):
            return tuple(self.ssl_object.get_unverified_chain())
        private: Any = self.ssl_object  # before Python 3.13 that method is not public
        chain = private._sslobj.get_unverified_chain()
        return tuple(ssl.PEM_cert_to_DER_cert(certificate.public_bytes()) for certificate in chain or ())
