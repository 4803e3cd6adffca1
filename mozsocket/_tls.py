"""TLS over a plain transport: what carries the records of a :class:`TLSEngine` to and from it.

It waits for nothing: it is driven as a plain transport is.
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
"""Bytes encrypted at once, to be handed over in one call."""

READ_SIZE = 65_536
"""Bytes read at once, at least: several records."""

_NEW = Phase.NEW


class TLSTransport:
    """Encrypts what goes through a transport, and has the same methods.

    While the handshake lasts, :meth:`receive` drives it and gives nothing, and :meth:`send` takes nothing.

    :param transport: what it goes through
    :param context: keys, certificates and what is demanded of the peer
    :param server_side: whether this is the server's side of TLS
    :param server_hostname: what the peer's certificate must be for, in the client's role
    :param standard_compatible: whether an end of stream without close_notify is an error
    :param plaintext: how many bytes of what is sent first go before TLS, as they are
    :ivar plaintext: how many of those bytes are yet to be handed over
    :ivar moved: how many bytes of records have gone either way
    :ivar owes_answers: whether what TLS has answered in :meth:`receive` waits for room in the operating system
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
        self._sealed = 0  # bytes of the program's that are encrypted, and not yet handed over whole
        self._unsent: memoryview | None = None  # the rest of the records being handed over
        self.owes_answers = False
        self.moved = 0
        self._fin_sent = False  # whether the peer has got everything: it cannot be answered any more

    # How it is

    @property
    def established(self) -> bool:
        """Whether the handshake was done, whatever has become of TLS since."""
        return self._engine.established

    @property
    def closed(self) -> bool:
        """Whether it has been closed."""
        return self.watched.closed

    @property
    def pending(self) -> bool:
        """Whether :meth:`receive` may have something though nothing more arrives: data, an end, an error, or a step of
        the handshake.
        """
        return self._engine.pending

    @property
    def choked(self) -> bool:
        """Whether nothing is received, pending or not, before :meth:`flush` has handed over what TLS has answered."""
        return self._engine.choked

    @property
    def local(self) -> Any:
        """The address of this end; None if it is closed."""
        return self._transport.local

    @property
    def blocked(self) -> bool:
        """Whether something is made, or goes before TLS, and waits for room in the operating system. What else was not
        sent has to wait until more of the peer's is received.
        """
        return bool(self.plaintext or self._unsent or self._engine.outgoing.pending)

    # Receiving

    def feed(self, data: bytes) -> None:
        """Take bytes from the peer that were read before; ``b""`` is its end."""
        self._engine.feed(data)

    def receive(self, size: int) -> bytes | None:
        """What has arrived, of as many records as it came in, at most ``size`` bytes; ``b""`` at the peer's end, None
        if nothing is there yet, or the peer does not take what it is answered. A call that takes a step of the
        handshake gives None.

        It reads ``size`` bytes at most: further reads have to wait for the event loop's next turn, whatever the peer
        sends.

        What TLS answers meanwhile is handed over, as far as there is room; the rest, and a failure of that, is for the
        next :meth:`flush`, and the transport :attr:`blocked` until then. So is the end of a handshake, as what the
        program has to say then can go with it.

        :raises ssl.SSLError: if TLS fails; after that, what still comes is discarded
        :raises OSError: if the connection was lost
        """
        engine = self._engine
        if engine.choked:
            return None
        data, was_established = None, engine.established
        try:
            if engine.pending:
                data = engine.open(size)
            if data is None and not engine.pending:
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
        """What has arrived, in reads no larger than what a plain transport reads best."""
        transport = self._transport
        at_once = transport.read_size
        first = transport.receive(min(size, at_once))
        if first is None or len(first) < at_once or size <= at_once:
            return first
        try:
            more = transport.receive(size - at_once)
        except OSError:
            return first  # and then the transport tells once more, as it does of an end
        return first + more if more else first

    def _answer(self) -> None:
        try:
            self.owes_answers = not self.flush()
        except OSError:
            pass  # which the next flush tells

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
            return count
        if not self._sealed:
            self._sealed = self._engine.seal(chunks)
        if not self.flush():
            return 0
        count, self._sealed = self._sealed, 0
        return count

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
        engine = self._engine
        if engine.phase is _NEW and not engine.closed:
            engine.do_handshake()
        while self._unsent or engine.outgoing.pending:
            records = self._unsent = self._unsent or memoryview(engine.take())
            try:
                count = self._transport.send([records])
            except OSError:
                engine.take()  # nobody gets it
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
        """Tell the peer that no more will come: close_notify or, after a failure, what went wrong, and FIN.

        :return: whether that is done
        """
        engine = self._engine
        if not engine.closed:
            engine.close()
            self._unsent = memoryview(bytes(self._unsent or b"") + engine.take())  # it is the last
        try:
            if not self.flush():
                return False
            self._fin_sent = True
            return self._transport.send_eof()
        except OSError:
            return True  # the connection is lost already, which the next read tells

    def close(self, *, tell: bool = True) -> None:
        """Close the transport below, and wake who waits for it. To tell the peer is for :meth:`send_eof`.

        :param tell: as of the transport below
        """
        self._transport.close(tell=tell)

    def reset(self) -> None:
        """Reset the transport below: TLS has nothing to say for that."""
        self._transport.reset()

    # What has been agreed

    def shown_certificates(self) -> tuple[bytes, ...]:
        """The certificates that the peer has sent, trusted or not, in DER: its own, then those that vouch for it."""
        return self._engine.shown_certificates()

    @property
    def attributes(self) -> dict[Any, Callable[[], Any]]:
        """AnyIO's typed attributes of the connection, those of TLS once the handshake is done."""
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
    """TLS over a transport, in the role that it has, or else that the context is for.

    :param context: None for the default, which a client has
    :param host: the name or the address to check the peer's certificate for; empty for none
    :param server_side: the role; None if the context decides
    :raises ValueError: if there is no context, it is for the other side, or there is no name to check
    """
    if context is None:
        if server_side:
            raise ValueError("upgradeToSecure() on an accepted socket needs an ssl_context with a certificate")
        context = default_context()
    if server_side is None:
        server_side = context.protocol is ssl.PROTOCOL_TLS_SERVER
    check_role(context, server_side=server_side)
    name = None if server_side else identity(host)
    if name is None and context.check_hostname and not server_side:  # `ssl` would check none
        raise ValueError("server_hostname is needed: this connection has no host to check the certificate for")
    return TLSTransport(
        transport,
        context,
        server_side=server_side,
        server_hostname=name,
        standard_compatible=standard_compatible,
        plaintext=plaintext,
    )
