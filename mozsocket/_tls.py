"""TLS over a plain transport: it carries the records of a :class:`TLSEngine` to and from the peer.

Nothing here waits: the connection uses a :class:`TLSTransport` as it uses a plain :class:`Transport`.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from typing import Any

from anyio.streams.tls import TLSAttribute

from ._authorities import default_context
from ._buffers import Chunk
from ._options import check_role, identity
from ._readiness import Watched
from ._tls_engine import Phase, TLSEngine
from ._transport import Transport

__all__ = ("TLSTransport", "tls_over")

BATCH_SIZE = 262_144
"""The most bytes encrypted at once, to be handed to the operating system in one call."""

READ_AT_ONCE = 122_880
"""The most bytes of records to read by one call: more would have :func:`malloc` map memory for each read, and with less
a transfer takes longer (measured).
"""

READ_SIZE = 65_536
"""The least number of bytes asked for in one read: several records."""

_NEW = Phase.NEW
_UP = Phase.UP


class TLSTransport:
    """A transport that encrypts what it sends through a plain transport, and decrypts what it receives.

    During the handshake :meth:`receive` takes its steps and returns None, and :meth:`sendmsg` takes nothing.

    :param transport: the plain transport
    :param context: keys, certificates and what is demanded of the peer
    :param server_side: whether this is the server's side of TLS
    :param server_hostname: the name that the peer's certificate must be for, in the client's role; None for no check
    :param standard_compatible: whether EOF without close_notify is an error
    :param plaintext: the number of bytes that are sent unencrypted before TLS begins
    :ivar plaintext: how many of those bytes are still to be handed over
    :ivar moved: the bytes of records sent and received so far
    :ivar owes_answers: whether answers that TLS has made in :meth:`receive` wait for room in the operating system
    :ivar watched: the socket below, to wait for it
    """

    __slots__ = (
        "_engine",
        "_fin_sent",
        "_sealed",
        "_transport",
        "_unsent",
        "moved",
        "owes_answers",
        "plaintext",
        "watched",
    )

    read_size = 245_760
    """The best number of bytes to read at once (measured)."""

    def __init__(
        self,
        transport: Transport,
        context: ssl.SSLContext,
        *,
        server_side: bool,
        server_hostname: str | None,
        standard_compatible: bool,
        plaintext: int,
    ) -> None:
        self._transport = transport
        self._engine = TLSEngine(
            context,
            server_side=server_side,
            server_hostname=server_hostname,
            standard_compatible=standard_compatible,
        )
        self.plaintext = plaintext
        self.watched: Watched = transport.watched
        self._sealed = 0  # bytes of the program's that are encrypted, but not handed over completely
        self._unsent: memoryview | None = None  # the records that are being handed over, without what was taken of them
        self.owes_answers = False
        self.moved = 0
        self._fin_sent = False  # whether FIN was sent: nothing can be sent any more

    # The state

    @property
    def established(self) -> bool:
        """Whether the handshake was completed, even if TLS has ended or failed since."""
        return self._engine.established

    @property
    def closed(self) -> bool:
        """Whether the socket has been closed."""
        return self.watched.closed

    @property
    def pending(self) -> bool:
        """Whether :meth:`receive` may have something to return or to do (data, EOF, an error, a step of the handshake)
        even if nothing more arrives.
        """
        return self._engine.pending

    @property
    def has_only_data(self) -> bool:
        """Whether TLS is up, and there is nothing left to decrypt, to report or to answer: then :meth:`recv` and
        :meth:`send` can be used as those of a socket.
        """
        engine = self._engine
        return engine.phase is _UP and not (engine.pending or engine.outgoing.pending or self.owes_answers)

    @property
    def choked(self) -> bool:
        """Whether nothing is received, pending or not, before :meth:`flush` has handed over TLS's answers."""
        return self._engine.choked

    @property
    def local(self) -> Any:
        """The socket's own address; None if it is closed."""
        return self._transport.local

    @property
    def blocked(self) -> bool:
        """Whether records, or the plaintext before TLS, wait for room in the operating system. Other bytes that were
        not taken wait until more is received from the peer.
        """
        return bool(self.plaintext or self._unsent or self._engine.outgoing.pending)

    # Receiving

    def feed(self, data: bytes) -> None:
        """Take bytes of the peer that were read before TLS began; ``b""`` is EOF."""
        self._engine.feed(data)

    def receive(self, size: int) -> bytes | None:
        """Read and decrypt what has arrived, or take a step of the handshake, which returns None.

        It reads no more than ``size`` bytes of records, or :data:`READ_SIZE` if that is more, however many the peer
        sends: other tasks have their turn.

        The answers of TLS to the peer are handed over as far as there is room. The next :meth:`flush` hands over the
        remainder and raises the error, if handing over has failed; :attr:`blocked` is True until then. The last step of
        a handshake also leaves its records to ``flush()``, so that what the program sends then can go with them.

        :return: the data of one or more records, at most ``size`` bytes; ``b""`` at EOF; None if nothing has arrived
            yet, or if :attr:`choked`, as the peer does not read the answers of TLS
        :raises ssl.SSLError: if TLS fails; whatever arrives after that is discarded
        :raises OSError: if the connection was lost
        """
        engine = self._engine
        if engine.choked:
            return None
        data, was_established = None, engine.established
        try:
            if engine.pending:
                data = engine.open(size)
            # Not after the last step of the handshake: what its handlers decide counts for all data.
            if data is None and not engine.pending and engine.established is was_established:
                arrived = self._receive_records(max(size, READ_SIZE))
                if arrived is not None:
                    self.moved += len(arrived)
                    engine.feed(arrived)
                    data = engine.open(size)
            return data
        finally:
            if engine.outgoing.pending and engine.established is was_established:
                self._answer()

    def _receive_records(self, size: int) -> bytes | None:
        """Read up to ``size`` bytes of records, in two reads if that is more than the plain transport reads best."""
        first = self._transport.receive(min(size, READ_AT_ONCE))
        if first is None or len(first) < READ_AT_ONCE or size <= READ_AT_ONCE:
            return first
        return self._with_more(first, size - READ_AT_ONCE)

    def _with_more(self, records: bytes, size: int) -> bytes:
        """Read up to ``size`` bytes more."""
        try:
            more = self._transport.receive(size)
        except OSError:
            return records  # the transport raises the error again at the next read; EOF, too, is reported again
        return records + more if more else records

    def recv(self, size: int) -> bytes:
        """Read and decrypt data, as the method of a non-blocking socket does, while :attr:`has_only_data`.

        It is the fast path of :meth:`receive`, and likewise hands over the answers of TLS.

        :param size: the most bytes to return, if that is more than :attr:`read_size`
        :return: the data of one or more records; ``b""`` if there is none, but :meth:`receive` may have something to do
        :raises BlockingIOError: if nothing has arrived yet
        :raises OSError: if the connection was lost, or TLS fails
        """
        engine = self._engine
        records = self._transport.socket.recv(READ_AT_ONCE)
        if len(records) == READ_AT_ONCE:
            records = self._with_more(records, self.read_size - READ_AT_ONCE)
        elif not records:
            return records
        self.moved += len(records)
        try:
            return engine.open_one(records) or engine.open(max(size, self.read_size)) or b""
        finally:
            if engine.outgoing.pending:
                self._answer()

    def _answer(self) -> None:
        try:
            self.owes_answers = not self.flush()
        except OSError:
            pass  # the next flush raises it

    # Sending

    @property
    def send_limit(self) -> int:
        """The most bytes that one call of :meth:`sendmsg` may be given."""
        return self.plaintext or BATCH_SIZE

    def sendmsg(self, chunks: Sequence[Chunk]) -> int:
        """Encrypt bytes and hand them to the operating system.

        It remembers what it has encrypted but not handed over completely. It returns 0 for these bytes, and the next
        call has to begin with them again.

        :return: how many bytes were handed over; 0 if there was no room, or the handshake is not done
        :raises OSError: if the connection was lost
        """
        if self.plaintext:
            count = self._transport.sendmsg(chunks)
            self.plaintext -= count
            return count
        if not self._sealed:
            self._sealed = self._engine.seal(chunks)
        if not self.flush():
            return 0
        count, self._sealed = self._sealed, 0
        return count

    def send(self, chunk: Chunk) -> int:
        """Encrypt one chunk and hand it over: the fast path of :meth:`sendmsg`, while :attr:`has_only_data`."""
        if self._sealed or self._unsent:
            return self.sendmsg((chunk,))
        size = self._engine.seal((chunk,))
        records = self._engine.take()
        count = self._transport.send(records)
        self.moved += count
        if count == len(records):
            return size
        self._sealed, self._unsent = size, memoryview(records)[count:]
        return 0

    def flush(self) -> bool:
        """Hand over the records that are ready. Begin the handshake, unless plaintext has to be sent before it.

        :return: whether no record and no plaintext is left
        :raises ssl.SSLError: if the handshake fails
        :raises OSError: if the connection was lost
        """
        if self.plaintext:
            return False
        if self._fin_sent:
            return True
        engine = self._engine
        if engine.phase is _NEW and not engine.closed:
            engine.do_handshake()
        while self._unsent or engine.outgoing.pending:
            records = self._unsent = self._unsent or memoryview(engine.take())
            try:
                count = self._transport.send(records)
            except OSError:
                engine.take()  # drop them: they cannot be sent any more
                engine.forget_answers()
                raise
            self.moved += count
            self._unsent = records[count:] if count < len(records) else None
            if self._unsent:
                return False
        if engine.answers:
            engine.forget_answers()
        self.owes_answers = False
        return True

    def send_eof(self) -> bool:
        """End our direction: send close_notify or, if TLS has failed, the alert that says why, then FIN.

        :return: whether that is done
        """
        engine = self._engine
        if not engine.closed:
            engine.close()
            self._unsent = memoryview(bytes(self._unsent or b"") + engine.take())  # no record follows these
        try:
            if not self.flush():
                return False
            self._fin_sent = True
            return self._transport.send_eof()
        except OSError:
            return True  # the connection is lost already: the next read raises that

    def close(self, *, tell: bool = True) -> None:
        """Close the transport below, and wake the tasks that wait for it. :meth:`send_eof` has to come first, to end
        TLS in order.

        :param tell: as for the transport below
        """
        self._transport.close(tell=tell)

    def reset(self) -> None:
        """Reset the transport below. TLS sends nothing for that."""
        self._transport.reset()

    # What was agreed in the handshake

    def shown_certificates(self) -> tuple[bytes, ...]:
        """The certificates that the peer has sent, trusted or not, in DER: its own, then those of its issuers."""
        return self._engine.shown_certificates()

    @property
    def attributes(self) -> dict[Any, Callable[[], Any]]:
        """AnyIO's typed attributes of the connection; those of TLS only once the handshake is done."""
        attributes = self._transport.attributes
        if self.established:
            tls, standard_compatible = self._engine.ssl_object, self._engine.standard_compatible
            attributes |= {
                TLSAttribute.alpn_protocol: tls.selected_alpn_protocol,
                TLSAttribute.channel_binding_tls_unique: tls.get_channel_binding,
                TLSAttribute.cipher: tls.cipher,
                TLSAttribute.peer_certificate: lambda: tls.getpeercert(False),
                TLSAttribute.peer_certificate_binary: lambda: tls.getpeercert(True),
                TLSAttribute.server_side: lambda: tls.server_side,
                TLSAttribute.shared_ciphers: lambda: tls.shared_ciphers() if tls.server_side else None,
                TLSAttribute.ssl_object: lambda: tls,
                TLSAttribute.standard_compatible: lambda: standard_compatible,
                TLSAttribute.tls_version: tls.version,
            }
        return attributes


def tls_over(
    transport: Transport,
    context: ssl.SSLContext | None,
    host: str,
    *,
    server_side: bool | None,
    standard_compatible: bool,
    plaintext: int,
) -> TLSTransport:
    """Make a TLS transport over a plain one, after checking that the context fits the role.

    :param transport: the plain transport
    :param context: keys, certificates and what is demanded of the peer; None for the default, for a client only
    :param host: the name or the address that the peer's certificate must be for; empty if there is none
    :param server_side: whether this is the server's side of TLS; None to take the role that the context is for
    :param standard_compatible: whether EOF without close_notify is an error
    :param plaintext: the number of bytes that are sent unencrypted before TLS begins
    :raises ValueError: if a server has no context, the context is for the other role, or it checks host names and there
        is none
    """
    if context is None:
        if server_side:
            raise ValueError("upgradeToSecure() on an accepted socket needs an ssl_context with a certificate")
        context = default_context()
    if server_side is None:
        server_side = context.protocol is ssl.PROTOCOL_TLS_SERVER
    check_role(context, server_side=server_side)
    name = None if server_side else identity(host)
    if name is None and context.check_hostname and not server_side:  # `ssl` would then check no name
        raise ValueError("server_hostname is needed: this connection has no host to check the certificate for")
    return TLSTransport(
        transport,
        context,
        server_side=server_side,
        server_hostname=name,
        standard_compatible=standard_compatible,
        plaintext=plaintext,
    )
