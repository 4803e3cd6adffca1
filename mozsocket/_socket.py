"""TCPSocket: a connection, as MDN's ``TCPSocket`` and Gecko's ``TCPSocket.webidl`` define it."""

from __future__ import annotations

import errno
import socket as stdlib_socket
from collections.abc import Callable, Mapping
from ssl import SSLContext
from typing import TYPE_CHECKING, Any, Literal

from anyio import TypedAttributeProvider
from anyio.abc import ByteStream

from ._addresses import host_and_port
from ._connection import Connection
from ._errors import InvalidStateError
from ._events import Event, EventHandler, TCPServerSocketEvent, TCPSocketErrorEvent, TCPSocketEvent
from ._options import (
    BinaryType,
    SocketOptions,
    check_host,
    check_port,
    check_role,
    check_server_hostname,
    check_ssl_context,
    check_stream_socket,
)
from ._state import ReadyState, octets
from ._stream import SocketStream
from ._transport import Transport, has_ended

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from ._server import TCPServerSocket

__all__ = ("TCPSocket",)

_CONNECTING = ReadyState.CONNECTING
_OPEN = ReadyState.OPEN
_CLOSING = ReadyState.CLOSING
_CLOSED = ReadyState.CLOSED


class TCPSocket(Connection, TypedAttributeProvider):
    """A TCP connection that calls handlers (MDN: ``TCPSocket``).

    Made by :meth:`MozTCPSocket.open`, accepted by a :class:`TCPServerSocket`, or used alone::

        async with TCPSocket("localhost", 6379) as socket:
            await socket.opened()

    Making one connects nothing and holds no resource; entering it does. Leaving the block calls :meth:`close` and
    waits until it is closed; leaving it by an exception calls :meth:`closeImmediately`. Cancelling the block closes
    the connection at once, and no handler runs any more.

    :param host: a host name or an IP address
    :param port: the port, 1 to 65535
    :param binaryType: ``"arraybuffer"``: data is ``bytes`` (Gecko's default is the other); ``"string"``: data is
        ``str``, one character (U+0000 to U+00FF) per byte
    :param connect_timeout: seconds that resolving the name, connecting and TLS may take together; None for no limit
    :param local_host: the address, or the name of one, to connect from; None for any
    :param max_buffered_amount: bytes that :meth:`send` buffers at most; None for no limit
    :param linger: seconds that :meth:`close` waits, after all is sent, for the peer to close too
    :param useSecureTransport: whether to use TLS from the start: ``open`` fires after the handshake
    :param ssl_context: for TLS: what is trusted, client certificates, ALPN; None for
        :func:`ssl.create_default_context`, which checks the certificate and the name by the system's authorities
    :param server_hostname: for TLS: the name or address that the certificate must be for; None for the host
    :param handshake_timeout: seconds that a TLS handshake may take
    :param tls_standard_compatible: whether a peer that ends a TLS connection without saying so (close_notify), as
        also happens when an attacker cuts it off, is an error; else it is the peer's end (AnyIO's term)
    :param allow_half_open: whether the socket stays open when the peer has ended its side: ``end`` fires, and sending
        goes on until :meth:`send_eof` or :meth:`close` (Node's ``allowHalfOpen``)
    :raises TypeError: if an argument is of the wrong type
    :raises ValueError: if an argument is out of range
    """

    __slots__ = ("_accepted_by", "_error_told")

    onopen: EventHandler[Event[TCPSocket]] = EventHandler(
        "The connection is open. Not for accepted sockets, which are open from the start."
    )
    onsecure: EventHandler[Event[TCPSocket]] = EventHandler(
        ":meth:`upgradeToSecure` is done: what is received and sent from now on is encrypted."
    )
    ondrain: EventHandler[Event[TCPSocket]] = EventHandler(
        "Everything buffered has been handed to the operating system, after a :meth:`send` that gave False."
    )
    ondata: EventHandler[TCPSocketEvent] = EventHandler("Bytes have arrived.")
    onend: EventHandler[Event[TCPSocket]] = EventHandler(
        "The peer has ended its side, and ours is open still: with ``allow_half_open`` only."
    )
    onerror: EventHandler[TCPSocketErrorEvent[TCPSocket]] = EventHandler(
        "The connection failed or was lost. ``close`` follows."
    )
    onclose: EventHandler[Event[TCPSocket]] = EventHandler("The connection is closed: the last event, exactly once.")

    def __init__(
        self,
        host: str,
        port: int,
        *,
        binaryType: BinaryType = "arraybuffer",
        connect_timeout: float | None = None,
        local_host: str | None = None,
        max_buffered_amount: int | None = None,
        linger: float = 5,
        useSecureTransport: bool = False,
        ssl_context: SSLContext | None = None,
        server_hostname: str | None = None,
        handshake_timeout: float = 30,
        tls_standard_compatible: bool = True,
        allow_half_open: bool = False,
    ) -> None:
        check_host("host", host)
        check_port(port, lowest=1)
        options = SocketOptions(
            binaryType=binaryType,
            connect_timeout=connect_timeout,
            local_host=local_host,
            max_buffered_amount=max_buffered_amount,
            linger=linger,
            useSecureTransport=useSecureTransport,
            ssl_context=ssl_context,
            server_hostname=server_hostname,
            handshake_timeout=handshake_timeout,
            tls_standard_compatible=tls_standard_compatible,
            allow_half_open=allow_half_open,
        )
        if ssl_context is not None:
            check_role(ssl_context, server_side=False)
        self._set_up(host, port, options)

    def _set_up(self, host: str, port: int, options: SocketOptions) -> None:
        super().__init__(host, port, options)
        self._accepted_by: TCPServerSocket | None = None
        self._error_told = False

    @classmethod
    def from_socket(
        cls,
        sock: stdlib_socket.socket,
        *,
        binaryType: BinaryType = "arraybuffer",
        max_buffered_amount: int | None = None,
        linger: float = 5,
        useSecureTransport: bool = False,
        ssl_context: SSLContext | None = None,
        server_hostname: str | None = None,
        handshake_timeout: float = 30,
        tls_standard_compatible: bool = True,
        allow_half_open: bool = False,
    ) -> TCPSocket:
        """Adopt a connected stream socket: one of a socketpair, of a SOCKS library, or inherited.

        It belongs to the TCPSocket from then on. ``open`` fires as for a connection of its own making. In TLS it is
        the client, unless the context is a server's.

        :param sock: a connected ``SOCK_STREAM`` socket
        :param binaryType: as of :class:`TCPSocket`, and so are the others
        :raises TypeError: if it is not a socket, or an argument is of the wrong type
        :raises ValueError: if it is not a connected stream socket, or an argument is out of range
        """
        options = SocketOptions(
            binaryType=binaryType,
            max_buffered_amount=max_buffered_amount,
            linger=linger,
            useSecureTransport=useSecureTransport,
            ssl_context=ssl_context,
            server_hostname=server_hostname,
            handshake_timeout=handshake_timeout,
            tls_standard_compatible=tls_standard_compatible,
            allow_half_open=allow_half_open,
        )
        self = cls._adopt(sock, _peer_of(sock), options, server_side=None)
        if useSecureTransport:
            self._make_tls()  # to raise here what it may raise
        return self

    @classmethod
    def _adopt(
        cls, sock: stdlib_socket.socket, peer: Any, options: SocketOptions, *, server_side: bool | None
    ) -> TCPSocket:
        self = cls.__new__(cls)
        self._set_up(*host_and_port(peer), options)
        self._server_side = server_side
        self._transport = Transport(sock)
        return self

    @classmethod
    def _accept(
        cls, sock: stdlib_socket.socket, peer: Any, options: SocketOptions, server: TCPServerSocket
    ) -> TCPSocket:
        self = cls._adopt(sock, peer, options, server_side=True)
        self._started = True
        self._accepted_by = server
        if not (options.useSecureTransport or options.proxy_protocol):
            self._set_ready_state(_OPEN)
        return self

    # What MDN documents

    @property
    def host(self) -> str:
        """What it connects to; of an accepted or adopted socket, the peer's address, or what a proxy says it is."""
        return self._host

    @property
    def port(self) -> int:
        """The port it connects to; of an accepted or adopted socket, the peer's; of a UNIX-domain socket 0."""
        return self._port

    @property
    def ssl(self) -> bool:
        """Whether the connection is, or is to be, encrypted: from the call of :meth:`upgradeToSecure` on."""
        return self._tls is not None or self._options.useSecureTransport

    @property
    def readyState(self) -> ReadyState:
        """``"connecting"``, ``"open"``, ``"closing"`` or ``"closed"``."""
        return self._state

    @property
    def binaryType(self) -> Literal["arraybuffer", "string"]:
        """``"arraybuffer"`` if data is ``bytes``, ``"string"`` if it is ``str``."""
        return self._options.binaryType

    @property
    def bufferedAmount(self) -> int:
        """Bytes given to :meth:`send` and not yet handed to the operating system, those held for TLS included."""
        return self._buffer.amount

    def send(self, data: Buffer | str, byteOffset: int = 0, byteLength: int | None = None) -> bool:
        """Send data, or buffer it to be sent as soon as the peer takes it.

        :param data: bytes-like (copied if it is mutable), or a ``str`` of characters up to U+00FF, one a byte
        :param byteOffset: where the part to be sent begins, in bytes; clamped to the data
        :param byteLength: how long that part is, in bytes; clamped likewise; None for all the rest
        :return: False if more than 65536 bytes are now buffered. That is a hint: the data is taken all the same, and
            ``drain`` will fire when all of it is handed over
        :raises InvalidStateError: if the socket is not open
        :raises BufferError: if more than ``max_buffered_amount`` bytes would be buffered; nothing is taken then, and
            ``drain`` will fire when there is room again
        :raises TypeError: if the data is of another type
        :raises ValueError: if an offset is negative or a character above U+00FF
        """
        if type(data) is not bytes or byteOffset != 0 or byteLength is not None:
            data = octets(data, byteOffset, byteLength)
        if self._state is not _OPEN:
            raise self._not_open("send()")
        if not self._flush_scheduled:
            self._schedule_flush()
        return self._buffer.append(data)

    def suspend(self) -> None:
        """Stop ``data`` events, and through TCP the peer. Suspensions count. Allowed while connecting.

        What has been received meanwhile waits for :meth:`resume`, and so does what comes behind it: the peer's end, or
        ``error`` and ``close``. With nothing before it a loss is told at once, and so it is where a ``drain`` is owed,
        which can come no more. ``drain`` does not wait.
        """
        self._suspensions.suspend()

    def resume(self) -> None:
        """Take back one :meth:`suspend`.

        :raises InvalidStateError: if the socket is not suspended
        """
        if self._inbox.used:
            self._require_task("resume()")
        self._suspensions.resume()
        if self._inbox.used and self._takes_data():
            self._wake_dispatch()

    def close(self) -> None:
        """Close the connection in order: nothing that was sent is lost.

        ``readyState`` is ``"closing"`` at once, and there is no more ``data``. What is buffered is sent, ``drain``
        fires if it is owed, the peer is told of the end; what it still sends is discarded until it closes too, for
        ``linger`` seconds at most; then ``close`` fires. While connecting, the attempt is abandoned. Closing twice
        does no harm.
        """
        self._require_task("close()")
        if self._state is _CONNECTING:
            self._abandon()
        elif self._state is _OPEN:
            if not self._flush_scheduled:
                self._schedule_flush()
            self._set_ready_state(_CLOSING)
            self._inbox.discard()

    def send_eof(self) -> None:
        """End our side of the connection: the peer gets what is buffered, and is told that no more will come.

        The socket stays open, and ``data`` goes on, until the peer ends its side too; then it closes. Over TLS that
        is close_notify, upon which some peers end at once, as TLS 1.2 demanded. Doing it twice does no harm.

        :raises InvalidStateError: if the socket is not open
        """
        if self._state is not _OPEN:
            raise self._not_open("send_eof()")
        self._require_task("send_eof()")
        self._buffer.finish()
        if self._end_told and self._stream is None:
            self.close()
        elif not self._flush_scheduled:
            self._schedule_flush()

    def closeImmediately(self) -> None:
        """Close the connection without sending what is buffered and without waiting for the peer; ``close`` fires.

        The peer may lose what it has not yet read, as with any plain close of a TCP connection.
        """
        self._require_task("closeImmediately()")
        if self._state is _CONNECTING:
            self._abandon()
        elif self._state is not _CLOSED:
            self._set_ready_state(_CLOSING)
            self._buffer.drop()
            self._inbox.discard()
            self._shut()

    def upgradeToSecure(
        self,
        *,
        ssl_context: SSLContext | None = None,
        server_hostname: str | None = None,
        leftover: Buffer | str = b"",
    ) -> None:
        """Go on in TLS, as STARTTLS of many protocols has it. Call it once both sides have agreed to.

        :attr:`ssl` is True at once. What was sent before goes out in plaintext; what is sent after waits for the
        handshake, and goes out encrypted or not at all. What has been received and not yet delivered is part of TLS:
        nothing that was injected into the plaintext is delivered later. ``secure`` fires after the handshake; if that
        fails, ``error`` and ``close``. On a connection that is secure, or about to be, it does nothing.

        :param ssl_context: as of :class:`TCPSocket`; None for that of the socket's options, or of its server's, which
            on an accepted socket has to be there, as it holds the certificate
        :param server_hostname: likewise
        :param leftover: what came in the same ``data`` as the plaintext's end, behind it. It is part of TLS too: an
            early ClientHello, unless an attacker has put it there; then the handshake fails
        :raises InvalidStateError: if the socket is not open, or either side has ended
        :raises TypeError: if an argument is of the wrong type
        :raises ValueError: if the context is for the other side of TLS, or missing
        """
        check_ssl_context(ssl_context)
        if server_hostname is not None:
            check_server_hostname(server_hostname)
        early = octets(leftover, what="leftover must be")
        if self._state is not _OPEN:
            raise self._not_open("upgradeToSecure()")
        if self._tls is None and (self._buffer.finished or self._end_told):
            raise InvalidStateError("upgradeToSecure() on a connection of which one side has ended: TLS needs both")
        self._require_task("upgradeToSecure()")
        if self._tls is None:
            self._upgrade(self._make_tls(ssl_context, server_hostname), early)

    def _abort(self) -> None:
        self.closeImmediately()

    def _close_all(self) -> None:
        self.close()

    # What mozsocket adds

    def stream(self) -> ByteStream:
        """The same connection as an AnyIO stream, for what reads better as a sequence and for libraries that take one.

        From now on what arrives is for :meth:`~anyio.abc.ByteReceiveStream.receive`, and there is no ``data`` event;
        what is queued comes first. Call it before anything can arrive: while connecting, or in a handler of
        ``connect`` or ``open``. ``send()`` returns when all is handed to the operating system. The peer's end does not
        close the socket; closing the stream does, within ``linger``, or at once if a ``send()`` was cancelled that the
        peer has not taken. :meth:`upgradeToSecure` goes on working, and so do the events but ``data`` and ``end``.
        :meth:`suspend` holds nothing back: not receiving does.

        A lost connection is :exc:`anyio.BrokenResourceError`, one that was closed here
        :exc:`anyio.ClosedResourceError`. That it is lost is noticed by receiving and by sending only. After a failed
        ``send()`` the socket closes, and what the peer had sent before can be received still.

        :return: the stream, the same each time
        :raises InvalidStateError: if the socket is neither connecting nor open
        """
        if self._stream is not None:
            return self._stream
        if self._former_stream is not None:
            return self._former_stream() or SocketStream(self)
        if self._state not in (_CONNECTING, _OPEN):
            raise self._not_open("stream()")
        self._require_task("stream()")
        self._stream = SocketStream(self)
        self._change_reader()
        return self._stream

    async def opened(self) -> None:
        """Wait until the connection is open.

        :raises TCPSocketError: if it failed
        :raises InvalidStateError: if it was closed first
        """
        await self._reach("opened()", lambda: self._opened, lambda: self._state is not _CONNECTING)

    async def secured(self) -> None:
        """Wait until the connection is encrypted; without TLS for as long as it is open.

        :raises TCPSocketError: if the handshake, or the connection, failed
        :raises InvalidStateError: if it was closed first
        """
        await self._reach(
            "secured()",
            self._is_secure,
            lambda: self._is_shut() and (self._failure is not None or self._state is not _CONNECTING),
        )

    async def drained(self) -> None:
        """Wait until everything given to :meth:`send` has been handed to the operating system.

        :raises TCPSocketError: if the connection was lost first
        :raises InvalidStateError: if it was closed first, without sending it
        """
        buffer = self._buffer
        await self._reach(
            "drained()",
            lambda: not (buffer.amount or buffer.dropped or self._failure),
            lambda: (buffer.dropped and self._failure is None) or self._is_lost(),
        )

    async def closed(self) -> None:
        """Wait until the connection is closed and the last handler has returned.

        :raises TCPSocketError: if the connection failed or was lost
        :raises RuntimeError: in a handler of this socket, which it would wait for
        """
        self._refuse_in_handler("closed()")
        await self._reach("closed()", lambda: self._over and self._failure is None, lambda: self._over)

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """AnyIO's typed attributes of the connection: :class:`anyio.abc.SocketAttribute`, and once it is secure
        :class:`anyio.streams.tls.TLSAttribute`; none while connecting.
        """
        if self._transport is None or self._transport.closed:
            return {}
        return self._transport.attributes

    # Dispatching

    def _opening_event(self) -> Event[Any]:
        if self._accepted_by is not None:
            return TCPServerSocketEvent("connect", self._accepted_by, self)
        return Event("open", self)

    async def _be_admitted(self) -> None:
        if self._accepted_by is not None:
            await self._accepted_by._admit(self)

    def _give_way(self) -> None:
        """Close, while there is no connection yet, as others want to have one too."""
        self._fail(
            TimeoutError(errno.ETIMEDOUT, "its handshake was given up for another's: see max_handshakes of the server")
        )
        self._abandon()

    def _warn(self, kind: str, message: str, *args: object) -> None:
        if self._accepted_by is None:
            super()._warn(kind, message, *args)
        else:
            self._accepted_by._warn(kind, message, *args)

    def _data_event(self, data: bytes) -> Event[Any]:
        if self._options.binaryType == "string":
            return TCPSocketEvent("data", self, data.decode("latin-1"))
        return TCPSocketEvent("data", self, data)

    def _next_event(self) -> Event[Any] | None:
        if self._announcement is not None:
            event, self._announcement = self._announcement, None
            return event
        if self._buffer.take_drain():
            return Event("drain", self)
        if self._takes_data():
            data = self._inbox.take()
            if data:
                return self._data_event(data)
            if data is not None and self._end_of_stream():
                return Event("end", self)
        if self._end_told and self._buffer.finished and self._state is _OPEN and self._stream is None:
            self._finish()
        return self._last_event() if self._is_over() else None

    def _is_due(self) -> bool:
        return (
            self._announcement is not None
            or self._buffer.drain_due
            or (self._is_over() and not self._close_told)
            or (self._takes_data() and bool(self._inbox))
        )

    def _last_event(self) -> Event[Any] | None:
        self._set_ready_state(_CLOSED)
        self._forget_queued()
        if self._failure is not None and not self._error_told:
            self._error_told = True
            self._failure_seen = self._failure_seen or self._has_listener("error")
            return TCPSocketErrorEvent("error", self, self._failure)
        if not self._close_told:
            self._close_told = True
            return Event("close", self)
        self._notify()
        return None


def _peer_of(sock: stdlib_socket.socket) -> Any:
    """The address of a socket's peer; empty if it has reset the connection, of which there may be something to read."""
    check_stream_socket(sock)
    try:
        return sock.getpeername()
    except OSError as exc:
        if has_ended(sock):
            return ""
        raise ValueError(f"from_socket() takes a connected socket: {exc}") from exc
