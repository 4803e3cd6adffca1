"""TLS between two buffers, without any input or output: what has arrived is fed to it, and what is to be sent is taken.

:class:`ssl.SSLObject` encrypts and decrypts; here is what decides how much of that is done at once, and for how long a
peer may keep it busy. Nothing is called back, and nothing waits: who uses it looks at what the methods give, and at the
attributes. What TLS answers by itself, in a handshake, a renegotiation or a KeyUpdate, is made into the same records as
what the program sends, so that the order is always that in which they were encrypted.
"""

from __future__ import annotations

import enum
import ssl
import sys
from collections.abc import Iterable
from typing import Any

__all__ = ("Phase", "TLSEngine")

RECORD_SIZE = 16_384
"""Bytes in a record at most (RFC 8446, section 5.1)."""

HEADER_SIZE = 5
"""Bytes of a record before what is encrypted, of which the last two are the length of the rest."""

RECORDS_AT_ONCE = 16
"""Records given to OpenSSL at once: what is in them is not to be seen, and some cost it far more than data does."""

WORK_AT_ONCE = 2048
"""Bytes of records, beside the data in them, that are decrypted before other tasks run: some 90 records, however little
is in each; of those without data fewer the longer they are, as in one there may be hundreds of messages.
"""

LONG = 8192
"""Bytes of records without data, given at once, after which a peer's are given one by one: there is little need."""

FRUITLESS_RECORDS = 1000
"""Records without data, one after the other, that a peer may send: Go's library bears 16, BoringSSL 32."""

MAX_ANSWERS = 65_536
"""Bytes of what TLS answers by itself that may wait to be sent. Beyond that nothing more is decrypted."""


class Phase(enum.Enum):
    """How far TLS has come."""

    NEW = enum.auto()
    """There has been no step of the handshake."""

    HANDSHAKE = enum.auto()
    """The handshake is going on."""

    UP = enum.auto()
    """It is done: there is data. Also while what came before a failure is yet to be opened."""

    ENDED = enum.auto()
    """The peer has ended TLS: what still comes is nothing to us. We may go on sending."""

    FAILED = enum.auto()
    """TLS has failed, which has been told: what still comes is nothing to us."""


# For what is called often.
_UP = Phase.UP
_ENDED = Phase.ENDED
_FAILED = Phase.FAILED


def _cut_off() -> ssl.SSLEOFError:
    # OpenSSL is not told of the end of stream, as after that it would not encrypt any more.
    return ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "the peer ended the connection without close_notify")


class Records:
    """Gives OpenSSL what has arrived by so many records at once. By itself it would not stop before there is data, or
    nothing more.

    Nothing is held back until a record is whole, so that what is none is refused as soon as it can be.

    :ivar at_once: how many are given at once
    :ivar waiting: what is yet to be given
    :ivar fruitless: how many were given since one had data, which is for who reads it to say
    """

    __slots__ = ("_header", "_lacking", "_target", "at_once", "fruitless", "waiting")

    def __init__(self, target: ssl.MemoryBIO) -> None:
        self._target = target
        self.at_once = RECORDS_AT_ONCE
        self._lacking = 0  # bytes of a record of which a part was given
        self._header = b""  # what was given of a record, if its length is not yet known
        self.fruitless = 0
        self.waiting: bytes | memoryview = b""

    def add(self, data: bytes) -> None:
        """Give it, as far as it is not too much or behind other."""
        size = len(data) - HEADER_SIZE
        if self.waiting or self._target.pending:
            self.waiting = bytes(self.waiting) + data
        elif size < 0 or size != data[3] << 8 | data[4] or self._lacking or self._header:
            self.waiting = data
            self.give()
        else:  # just a record, as most messages are
            self.fruitless += 1
            self._target.write(data)

    def give(self) -> int:
        """Give the next of what waits.

        :return: its size
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
        """How much of it to give: up to the end of a record, or all."""
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
    """One side of a connection in TLS.

    :param context: keys, certificates and what is demanded of the peer
    :param server_side: whether this is the server's side of TLS
    :param server_hostname: what the peer's certificate must be for, in the client's role
    :param standard_compatible: whether an end of stream without close_notify is an error
    :ivar phase: how far it has come
    :ivar established: whether the handshake was done, whatever has become of TLS since
    :ivar closed: whether :meth:`close` was called
    :ivar pending: whether :meth:`open` may have something to do though nothing more is fed
    :ivar outgoing: the records that are made; ``outgoing.pending`` tells how much is to be had by :meth:`take`
    :ivar answers: bytes of them that TLS has made by itself in :meth:`open`, since :meth:`forget_answers`
    :ivar choked: whether these are so many that :meth:`open` does nothing before that is called
    :ivar standard_compatible: as given
    :ivar ssl_object: what encrypts and decrypts, to ask for what has been agreed
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
        self._tickets = b""  # records that go before the next of ours, whenever there is one
        self._ahead = b""  # what is decrypted already, and comes first
        self._full = False  # whether OpenSSL may hold decrypted bytes, for which there was no room
        self._eof = False  # whether the peer has ended the stream
        self._error: ssl.SSLError | None = None  # what the next open() raises

    # What comes from the peer

    def feed(self, data: bytes) -> None:
        """Take bytes from the peer; ``b""`` is its end."""
        if not data:
            self._eof = self.pending = True
        elif self.phase is not _ENDED and self.phase is not _FAILED:
            self._records.add(data)
            self.pending = True

    def open(self, size: int) -> bytes | None:
        """Go on with what was fed: a step of the handshake, which gives None, or some data.

        :return: the data of as many records as it came in, at most ``size`` bytes; ``b""`` at the peer's end; None if
            there is none, or :attr:`choked`
        :raises ssl.SSLError: if TLS fails; after that, what still comes is discarded
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

    def _go_on_without_data(self) -> bytes | None:
        """Take a step of the handshake, or tell of the peer's end or of what went wrong, or of nothing."""
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
        """What is in the records that are here, up to the peer's end or an error, which is for the next call."""
        incoming, records, parts = self._incoming, self._records, []
        if self._ahead:
            parts.append(self._ahead[:size])
            self._ahead = self._ahead[size:]
            size -= len(parts[0])
        left, full, work = incoming.pending, self._full, WORK_AT_ONCE
        # That there is nothing, an exception would tell as well, but it takes a microsecond or two.
        while size and work > 0 and (left or full or records.waiting):
            if not (left or full):
                left = records.give()
            try:
                part = self.ssl_object.read(min(RECORD_SIZE, size))
            except ssl.SSLError as exc:
                part = self._judge(exc)
            else:
                parts.append(part)
                records.fruitless = 0
                if not part:
                    self._stop()
            size -= len(part)
            before, left = left, incoming.pending
            if size:
                spent = 0 if full else before - left - len(part)
                work -= spent
                full = False
                if spent > LONG:
                    records.at_once = 1
            else:
                full = self.ssl_object.pending() > 0
        self._full = full
        if not (self._eof or self._error or self.phase is _ENDED):  # which the next call tells
            self.pending = bool(left or full or records.waiting or self._ahead)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _judge(self, exc: ssl.SSLError) -> bytes:
        """Why there was no data, which is given."""
        fruitless = self._records.fruitless
        if not isinstance(exc, (ssl.SSLWantReadError, ssl.SSLZeroReturnError)):
            self._stop(exc)
        elif isinstance(exc, ssl.SSLZeroReturnError):
            self._stop()
        elif fruitless > FRUITLESS_RECORDS:
            words = f"the peer sent {fruitless} records without data, one after the other"
            self._stop(ssl.SSLError(ssl.SSL_ERROR_SSL, words))
        return b""

    def _stop(self, error: ssl.SSLError | None = None) -> None:
        """The peer has ended TLS, or it has failed: what comes behind is nothing to us."""
        self._error = error
        if error is None:
            self.phase = _ENDED
        self._incoming.read()
        self._records.waiting = b""

    def _fail(self) -> None:
        """TLS has failed, which is being told."""
        self.phase = _FAILED
        self.pending = self._eof
        self.forget_answers()  # there will be no more

    def _answered(self, before: int) -> None:
        """
        :param before: how many bytes had been made before that
        """
        if self.closed:  # nothing may follow the end
            made = self.outgoing.read(before)
            self.outgoing.read()
            self.outgoing.write(made)
        else:
            self.answers += self.outgoing.pending - before
            self.choked = self.answers > MAX_ANSWERS

    # What goes to the peer

    def seal(self, chunks: Iterable[bytes | bytearray | memoryview]) -> int:
        """Make records of bytes.

        :return: how many of them; fewer than all if more of the peer's is needed first, for a handshake
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
        """The records that are made, to be handed over."""
        tickets, self._tickets = self._tickets, b""
        return tickets + self.outgoing.read()

    def forget_answers(self) -> None:
        """All that TLS has answered has been handed over, or nobody gets it."""
        self.answers = 0
        self.choked = False

    def close(self) -> None:
        """Make close_notify, unless TLS is not there or has failed. It is the last record: nothing is made after it."""
        if not self.closed:
            self.closed = True
            if self.phase is _UP or self.phase is _ENDED:
                self._notify_close()

    def _notify_close(self) -> None:
        """Have close_notify made. `ssl` then looks for the peer's, and fails for good if it finds data in its place: so
        it must not find any.
        """
        self._ahead += self.ssl_object.read(self.ssl_object.pending()) if self.ssl_object.pending() else b""
        undecrypted = self._incoming.read()
        try:
            self.ssl_object.unwrap()
        except ssl.SSLError:
            pass  # it wants the peer's too, for which we do not wait
        self._incoming.write(undecrypted)

    # The handshake

    def do_handshake(self) -> None:
        """Take the handshake as far as the peer's bytes allow, or as goes at once. :meth:`open` does so too, when there
        are any.

        :raises ssl.SSLError: if it fails
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
        """:return: whether it was the last"""
        waiting = self.outgoing.pending
        try:
            self.ssl_object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError:
            self._fail()
            raise
        if self.ssl_object.server_side and self.ssl_object.version() == "TLSv1.3" and not waiting:
            # What the last step makes are the tickets, by which the client may come back quicker. One that only sends
            # and closes does not read them, and so its close would be a reset, which destroys what it has sent.
            self._tickets = self.outgoing.read()
        return True

    def shown_certificates(self) -> tuple[bytes, ...]:
        """The certificates that the peer has sent, trusted or not, in DER: its own, then those that vouch for it."""
        if sys.version_info >= (3, 13):
            return tuple(self.ssl_object.get_unverified_chain())
        private: Any = self.ssl_object  # until then that was not public
        chain = private._sslobj.get_unverified_chain()
        return tuple(ssl.PEM_cert_to_DER_cert(certificate.public_bytes()) for certificate in chain or ())
