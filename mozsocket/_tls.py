"""TLS over the same transport: the engine, and what it is given to check the peer by.

:class:`ssl.SSLObject` encrypts and decrypts between memory and two buffers; here is what carries those to and from the
transport. It knows nothing of tasks: the reader and the writer drive it as they drive a plain transport, and each may
do so while the other waits. What TLS answers by itself, in a handshake, a renegotiation or a KeyUpdate, goes into the
same queue of records as what the program sends, so that the order is always that in which they were encrypted.
"""

from __future__ import annotations

import ssl
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import anyio
import anyio.lowlevel
from anyio.streams.tls import TLSAttribute

from ._state import Chunk
from ._transport import Transport

__all__ = ("TLSTransport",)

BATCH_SIZE = 262_144
"""Bytes encrypted at once, to be handed over in one call."""

RECORD_SIZE = 16_384
"""Bytes in a record at most (RFC 8446, section 5.1)."""

READ_SIZE = 65_536
"""Bytes read at once, at least: several records."""

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
"""Bytes of what TLS answers by itself that may wait to be sent. Beyond that nothing more is decrypted or read."""

ALERT_PATIENCE = 1
"""Seconds that a peer is given to read why TLS failed: to close with unread input would destroy the alert (RST)."""


def _ignore() -> None:
    pass


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


class TLSTransport:
    """Encrypts what goes through a transport, and has the same methods.

    While the handshake lasts, :meth:`receive` drives it and gives nothing, and :meth:`send` takes nothing.

    :param transport: what it goes through
    :param context: keys, certificates and what is demanded of the peer
    :param server_side: whether this is the server's side of TLS
    :param server_hostname: what the peer's certificate must be for, in the client's role
    :param standard_compatible: whether an end of stream without close_notify is an error
    :param plaintext: how many bytes of what is sent first go before TLS, as they are
    :param on_plaintext_sent: called when they are handed over
    :param wake_writer: called when TLS has something to send that the operating system does not take at once
    :param on_established: called when the handshake is done
    :ivar plaintext: how many of those bytes are yet to be handed over
    :ivar established: whether the handshake is done
    :ivar closed: whether it has been closed
    """

    __slots__ = (
        "_ahead",
        "_answers",
        "_begun",
        "_broken",
        "_eof",
        "_eof_sent",
        "_error",
        "_fin_sent",
        "_full",
        "_incoming",
        "_object",
        "_on_established",
        "_on_plaintext_sent",
        "_outgoing",
        "_peer_ended",
        "_progress",
        "_records",
        "_sealed",
        "_standard_compatible",
        "_starved",
        "_taken",
        "_tickets",
        "_transport",
        "_unsent",
        "_wake_writer",
        "closed",
        "established",
        "plaintext",
    )

    read_size = 245_760
    """How many bytes are best read at once: what is measured to be."""

    def __init__(
        self,
        transport: Transport,
        context: ssl.SSLContext,
        *,
        server_side: bool,
        server_hostname: str | None,
        standard_compatible: bool,
        plaintext: int,
        on_plaintext_sent: Callable[[], None],
        wake_writer: Callable[[], None],
        on_established: Callable[[], None],
    ) -> None:
        self._transport = transport
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(
            self._incoming,
            self._outgoing,
            server_side=server_side,
            server_hostname=None if server_side else server_hostname,
        )
        self._standard_compatible = standard_compatible
        self.plaintext = plaintext
        self._on_plaintext_sent = on_plaintext_sent
        self._wake_writer = wake_writer
        self._on_established = on_established
        self.established = False
        self.closed = transport.closed  # of a connection that is lost, which is yet to be told
        self._begun = False  # whether there has been a step of the handshake
        self._sealed = 0  # bytes of the program's that are encrypted, and not yet handed over whole
        self._unsent: memoryview | None = None  # the rest of the records being handed over
        self._tickets = b""  # records that go before the next of ours, whenever there is one
        self._answers = 0  # bytes that TLS has answered by itself since all was handed over
        self._taken: anyio.Event | None = None  # what the reader waits for, when they are too many
        self._records = Records(self._incoming)
        self._starved = True  # whether there is nothing more to be had before more is read
        self._ahead = b""  # what is decrypted already, and comes first
        self._full = False  # whether OpenSSL may hold decrypted bytes, for which there was no room
        self._eof = False  # whether the peer has ended the transport
        self._peer_ended = False  # whether it has ended TLS, as it should before
        self._error: ssl.SSLError | None = None  # what the next receive() raises
        self._broken = False  # whether TLS has failed: nothing is decrypted any more
        self._eof_sent = False  # whether the peer is told that TLS ends
        self._fin_sent = False  # whether it has got everything: it cannot be answered any more
        self._progress: anyio.Event | None = None  # what the writer waits for, when it needs more of the peer

    # Receiving

    def feed(self, data: bytes) -> None:
        """Take bytes from the peer that were read before; ``b""`` is its end."""
        self._starved = False
        if data:
            self._records.add(data)
        else:
            self._eof = True

    def receive(self, size: int) -> bytes | None:
        """What has arrived, of as many records as it came in, at most ``size`` bytes; ``b""`` at the peer's end, None
        if nothing is there yet, or the peer does not take what it is answered.

        :raises ssl.SSLError: if TLS fails; after that, what still comes is discarded
        :raises OSError: if the connection was lost
        """
        if self._broken:
            return b"" if self._transport.receive(size) == b"" else None
        if self._answers > MAX_ANSWERS:
            return None
        before = self._outgoing.pending
        data = None
        try:
            if not self._starved:
                data = self._open(size)
            # If there is more to decrypt it is the next turn's. As of a record there may be part wanted only:
            if data is None and self._starved and self._fill(max(size, READ_SIZE)):
                data = self._open(size)
        finally:
            if self._outgoing.pending:
                self._answer(self._outgoing.pending - before)
            if self._progress is not None:
                self._let_writer_look()
        return data

    def _fill(self, size: int) -> bool:
        """Read once; further reads have to wait for the event loop's next turn, whatever the peer sends."""
        data = self._transport.receive(size)
        if data is not None:
            self.feed(data)
        return data is not None

    def _open(self, size: int) -> bytes | None:
        if not self.established:
            self._shake_hands()
            return None
        data = self._decrypt(size)
        self._starved = not (self._is_something_left() or self._error or self._peer_ended or self._eof)
        if data:
            return data
        if self._error is not None:
            self._broken = True
            raise self._error
        if self._eof and not (self._peer_ended or self._is_something_left()):
            if self._standard_compatible:
                raise _cut_off()
            self._peer_ended = True
        return b"" if self._peer_ended else None

    def _is_something_left(self) -> object:
        return self._incoming.pending or self._full or self._records.waiting or self._ahead

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
                part = self._object.read(min(RECORD_SIZE, size))
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
                full = self._object.pending() > 0
        self._full = full
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
        self._peer_ended = error is None
        self._incoming.read()
        self._records.waiting = b""

    def _answer(self, size: int) -> None:
        """Hand over what TLS has to say for itself; what is not taken at once, and any failure, is the writer's."""
        if self._eof_sent:
            self._outgoing.read()  # nothing may follow the end
            return
        self._answers += size
        try:
            done = self.flush()
        except OSError:
            done = False
        if not done:
            self._wake_writer()

    # Sending

    @property
    def send_limit(self) -> int:
        """How many bytes it takes at once."""
        return self.plaintext or BATCH_SIZE

    def send(self, chunks: Sequence[Chunk]) -> int:
        """Encrypt bytes and hand them to the operating system.

        It takes all of them or none, and remembers what it has encrypted: the next call has to begin with them again.

        :return: how many of them are handed over; 0 if there was no room, or the handshake is not done
        :raises OSError: if the connection was lost
        """
        if self.plaintext:
            count = self._transport.send(chunks)
            self.plaintext -= count
            if not self.plaintext:
                self._on_plaintext_sent()
            return count
        if not self._sealed:
            self._seal(chunks)
        if not self.flush():
            return 0
        count, self._sealed = self._sealed, 0
        return count

    def _seal(self, chunks: Sequence[Chunk]) -> None:
        if not self.established:
            return
        try:
            for chunk in chunks:
                self._sealed += self._object.write(chunk)
        except ssl.SSLWantReadError:
            pass  # a renegotiation has begun, which needs more of the peer
        except ssl.SSLError as exc:
            self._broken = True
            raise (self._error or exc) from None

    def flush(self) -> bool:
        """Hand over the records that are ready, beginning the handshake if nothing goes before it.

        :return: whether nothing of it is left
        :raises ssl.SSLError: if the handshake fails
        :raises OSError: if the connection was lost
        """
        if self.plaintext:
            return False
        if self._fin_sent:
            return True
        if not self._begun:
            self._shake_hands()
        while self._unsent or self._outgoing.pending:
            records = self._unsent = self._unsent or memoryview(self._made())
            try:
                count = self._transport.send([records])
            except OSError:
                self._outgoing.read()  # nobody gets it
                self._let_reader_go_on()
                raise
            self._unsent = records[count:] if count < len(records) else None
            if self._unsent:
                return False
        if self._answers:
            self._let_reader_go_on()
        return True

    def _made(self) -> bytes:
        """The records that are made and not yet being handed over."""
        tickets, self._tickets = self._tickets, b""
        return tickets + self._outgoing.read()

    def _let_reader_go_on(self) -> None:
        self._answers = 0
        if self._taken is not None:
            self._taken.set()
            self._taken = None

    def send_eof(self) -> bool:
        """Tell the peer that no more will come: close_notify or, after a failure, what went wrong, and FIN.

        :return: whether that is done
        """
        if not self._eof_sent:
            if self.established and not self._broken:
                self._notify_close()
            self._eof_sent = self._begun = True
            self._unsent = memoryview(bytes(self._unsent or b"") + self._made())  # it is the last
        try:
            if not self.flush():
                return False
            self._fin_sent = True
            return self._transport.send_eof()
        except OSError:
            return True  # the connection is lost already, which the next read tells

    def _notify_close(self) -> None:
        """Have close_notify sent. `ssl` then looks for the peer's, and fails for good if it finds data in its place: so
        it must not find any.
        """
        self._ahead += self._object.read(self._object.pending()) if self._object.pending() else b""
        undecrypted = self._incoming.read()
        try:
            self._object.unwrap()
        except ssl.SSLError:
            pass  # it wants the peer's too, for which we do not wait
        self._incoming.write(undecrypted)

    # The handshake

    async def handshake(self) -> None:
        """Do the handshake, while nobody else uses the transport.

        :raises ssl.SSLError: if it fails
        :raises OSError: if the connection was lost
        """
        while True:
            self._shake_hands()
            while not self.flush():
                await self._transport.wait_writable()
            if self.established:
                return
            while self._starved and not self._fill(READ_SIZE):
                await self._transport.wait_readable()
            await anyio.lowlevel.checkpoint()

    def _shake_hands(self) -> None:
        """Take the handshake as far as the peer's bytes allow, or as goes at once."""
        self._begun = True
        if self._records.waiting:
            self._records.give()
        done = self._take_step()
        left = self._is_something_left()
        if self._eof and not (done or left):
            raise _cut_off()
        self._starved = not (left or self._eof)
        if done:
            self.established = True
            self._records.fruitless = 0
            self._on_established()

    def _take_step(self) -> bool:
        """:return: whether it was the last"""
        waiting = self._unsent or self._outgoing.pending
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError:
            self._broken = True
            raise
        if self._object.server_side and self._object.version() == "TLSv1.3" and not waiting:
            # What the last step makes are the tickets, by which the client may come back quicker. One that only sends
            # and closes does not read them, and so its close would be a reset, which destroys what it has sent.
            self._tickets = self._outgoing.read()
        return True

    def shown_certificates(self) -> tuple[bytes, ...]:
        """The certificates that the peer has sent, trusted or not, in DER: its own, then those that vouch for it."""
        if sys.version_info >= (3, 13):
            return tuple(self._object.get_unverified_chain())
        private: Any = self._object  # until then that was not public
        chain = private._sslobj.get_unverified_chain()
        return tuple(ssl.PEM_cert_to_DER_cert(certificate.public_bytes()) for certificate in chain or ())

    async def part(self) -> None:
        """After a failure of TLS, tell the peer of it, and let it close first."""
        self.send_eof()
        try:
            with anyio.move_on_after(ALERT_PATIENCE):
                while (data := self._transport.receive(READ_SIZE)) != b"":
                    if data is None:
                        await self._transport.wait_readable()
                    else:
                        await anyio.lowlevel.checkpoint()
        except (OSError, anyio.ClosedResourceError):
            pass  # it has closed, or we have

    # As a transport

    def close(self) -> None:
        self.closed = True
        self._transport.close()
        self._wake_writer = self._on_established = self._on_plaintext_sent = _ignore
        self._let_writer_look()
        self._let_reader_go_on()

    async def wait_closed(self) -> None:
        """After :meth:`close`, wait until nobody uses the socket any more."""
        await self._transport.wait_closed()

    async def wait_readable(self) -> None:
        """:raises anyio.ClosedResourceError: if it is closed meanwhile"""
        if self._broken or (self._starved and self._answers <= MAX_ANSWERS):
            await self._transport.wait_readable()
        elif self._answers <= MAX_ANSWERS:
            await anyio.lowlevel.checkpoint()  # it may have all, and the peer wait for us
        elif not self.closed:
            self._taken = self._taken or anyio.Event()
            await self._taken.wait()
        if self.closed:
            raise anyio.ClosedResourceError

    def wait_hung_up(self) -> Coroutine[Any, Any, None]:
        """As of the transport below."""
        return self._transport.wait_hung_up()

    async def wait_writable(self) -> None:
        """Wait for what holds up sending: the operating system or, in a handshake, the peer.

        :raises anyio.ClosedResourceError: if it is closed meanwhile
        """
        if self.plaintext or self._unsent or self._outgoing.pending:
            await self._transport.wait_writable()
            return
        if not self.closed:
            self._progress = anyio.Event()
            await self._progress.wait()
        if self.closed:
            raise anyio.ClosedResourceError

    def interrupt(self) -> None:
        """Wake who waits, to look again at what to wait for."""
        self._transport.interrupt()
        self._let_writer_look()
        if self._taken is not None:
            self._taken.set()
            self._taken = None

    def _let_writer_look(self) -> None:
        if self._progress is not None:
            self._progress.set()
            self._progress = None

    @property
    def attributes(self) -> dict[Any, Callable[[], Any]]:
        """AnyIO's typed attributes of the connection, those of TLS once the handshake is done."""
        attributes = self._transport.attributes
        if self.established:
            tls = self._object
            attributes |= {
                TLSAttribute.alpn_protocol: tls.selected_alpn_protocol,
                TLSAttribute.channel_binding_tls_unique: tls.get_channel_binding,
                TLSAttribute.cipher: tls.cipher,
                TLSAttribute.peer_certificate: lambda: tls.getpeercert(False),
                TLSAttribute.peer_certificate_binary: lambda: tls.getpeercert(True),
                TLSAttribute.server_side: lambda: tls.server_side,
                TLSAttribute.shared_ciphers: lambda: tls.shared_ciphers() if tls.server_side else None,
                TLSAttribute.ssl_object: lambda: tls,
                TLSAttribute.standard_compatible: lambda: self._standard_compatible,
                TLSAttribute.tls_version: tls.version,
            }
        return attributes
