"""TCPSocket: a connection, as MDN's ``TCPSocket`` and Gecko's ``TCPSocket.webidl`` define it.

It checks the program's arguments, and has a :class:`Connection` do the work.
"""

from __future__ import annotations

import socket as stdlib_socket
from collections.abc import Callable, Mapping
from ssl import PROTOCOL_TLS_SERVER, SSLContext
from threading import get_ident
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload

from anyio import TypedAttributeLookupError
from anyio.abc import ByteStream

from ._addresses import host_and_port
from ._buffers import octets
from ._connection import Connection, Host, OpeningEvent
from ._events import (
    Event,
    EventHandler,
    EventTarget,
    TCPSocketErrorEvent,
)
from ._machine import ReadyState
from ._options import (
    AdoptOptions,
    BinaryType,
    Bytes,
    ClientOptions,
    ConnectOptions,
    DataT,
    SocketOptions,
    Text,
    accepts,
    check_server_hostname,
    check_ssl_context,
    documents,
    shared,
    takes,
)
from ._stream import SocketStream
from ._transport import Transport, has_ended
from ._unique import setters_of

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ("TCPSocket", "TCPSocketEvent", "accepted", "connection_of")

T = TypeVar("T")
D = TypeVar("D")
EventT = TypeVar("EventT", bound=Event[Any])
SelfT = TypeVar("SelfT", bound="TCPSocket[Any]")

_NO_DEFAULT: Any = object()


class TCPSocketEvent(Event["TCPSocket[DataT]"], Generic[DataT]):
    """``data``: bytes have arrived."""

    __slots__ = ("_data",)
    __match_args__ = ("type", "target", "data")

    def __init__(self, type: str, target: TCPSocket[DataT], data: DataT) -> None:
        self._type = type  # not by super().__init__(): there is an event for each message
        self._target = target
        self._data = data

    @property
    def data(self) -> DataT:
        """``bytes``, or with ``binaryType="string"`` a ``str`` of one character per byte; never empty, and of any
        length: TCP keeps no boundaries between messages. In the events of :func:`mozsocket.lines` and
        :func:`mozsocket.frames` it is one line or one frame, which may be empty.
        """
        return self._data

    def _details(self) -> str:
        start = self.data[:20]
        return f" {len(self.data)} B {start!a}{'...' if len(self.data) > len(start) else ''}"


class _DataHandler(EventHandler[EventT]):
    """The attribute ``ondata``. Data that the previous handler has not used goes to the new one: see
    :func:`mozsocket.lines`.
    """

    def __set__(self, target: Any, handler: Callable[[EventT], object] | None) -> None:
        connection: Connection = target._connection
        holds = connection.inbox.held is not None
        if holds:
            connection.require_task("setting ondata")
        super().__set__(target, handler)
        if holds:
            connection.offer_held_again()


@documents(ConnectOptions)
class TCPSocket(EventTarget, Generic[DataT]):
    """A TCP connection that calls handlers (MDN: ``TCPSocket``).

    Made by :meth:`MozTCPSocket.open`, accepted by a :class:`TCPServerSocket`, or used alone::

        async with TCPSocket("localhost", 6379) as socket:
            await socket.opened()

    To type checkers it is a ``TCPSocket[bytes]``, for which ``TCPSocket`` is short, or with ``binaryType="string"`` a
    ``TCPSocket[str]``.

    Creating a TCPSocket does not connect and holds no resource; entering its block connects. Leaving the block calls
    :meth:`close` and waits until the socket is closed; leaving it by an exception calls :meth:`closeImmediately`.
    Cancelling the block closes the connection immediately, and no handler runs any more.

    :raises TypeError: if an argument is of the wrong type
    :raises ValueError: if an argument is out of range
    """

    __slots__ = ("_connection", "_stream")

    _connection: Connection
    _stream: SocketStream | None

    onopen: EventHandler[Event[TCPSocket[DataT]]] = EventHandler(
        "The connection is open. Accepted sockets do not get this event: they are open from the start."
    )
    onsecure: EventHandler[Event[TCPSocket[DataT]]] = EventHandler(
        ":meth:`upgradeToSecure` is done: what is received and sent from now on is encrypted."
    )
    ondrain: EventHandler[Event[TCPSocket[DataT]]] = EventHandler(
        "Everything buffered has been handed to the operating system, after a :meth:`send` that returned False."
    )
    ondata: EventHandler[TCPSocketEvent[DataT]] = _DataHandler(
        "Bytes have arrived. Without a handler or listener they are discarded, and a warning is logged once: set it"
        " before anything can arrive, or call :meth:`suspend`."
    )
    onend: EventHandler[Event[TCPSocket[DataT]]] = EventHandler(
        "The peer has ended its side, and ours is still open. This event fires with ``allow_half_open`` only."
    )
    onerror: EventHandler[TCPSocketErrorEvent[TCPSocket[DataT]]] = EventHandler(
        "The connection failed or was lost. ``close`` follows."
    )
    onclose: EventHandler[Event[TCPSocket[DataT]]] = EventHandler(
        "The connection is closed: the last event, exactly once."
    )

    # pyright does not infer the type of data from `self` here: for text write TCPSocket[str](…).
    @overload
    @accepts(ConnectOptions[Bytes])
    def __init__(self: TCPSocket[bytes]) -> None: ...
    @overload
    @accepts(ConnectOptions[Text])
    def __init__(self: TCPSocket[str]) -> None: ...
    @overload
    @accepts(ConnectOptions[BinaryType])
    def __init__(self: TCPSocket[bytes | str]) -> None: ...
    @takes(ConnectOptions)
    def __init__(self, options: ConnectOptions) -> None:
        self._set_up(options.host, options.port, options)

    if TYPE_CHECKING:  # which event a listener gets: of "data" and "error" their own classes, of any other type Event

        @overload
        def addEventListener(
            self, type: Literal["data"], listener: Callable[[TCPSocketEvent[DataT]], object], *, once: bool = False
        ) -> None: ...
        @overload
        def addEventListener(
            self,
            type: Literal["error"],
            listener: Callable[[TCPSocketErrorEvent[TCPSocket[DataT]]], object],
            *,
            once: bool = False,
        ) -> None: ...
        @overload
        def addEventListener(
            self, type: str, listener: Callable[[Event[TCPSocket[DataT]]], object], *, once: bool = False
        ) -> None: ...
        def addEventListener(self, type: str, listener: Callable[[Any], object], *, once: bool = False) -> None: ...

    def _set_up(self, host: str, port: int, options: SocketOptions) -> Connection:
        """Initialize the object, and give it a connection."""
        super().__init__()
        connection = Connection(type(self).__name__, host, port, options, self._listeners)
        _set_connection(self, connection)
        _set_stream(self, None)
        return connection

    @overload
    @classmethod
    @accepts(AdoptOptions[Bytes])
    def from_socket(cls: type[SelfT]) -> SelfT: ...
    @overload
    @classmethod
    @accepts(AdoptOptions[Text])
    def from_socket(cls) -> TCPSocket[str]: ...
    @overload
    @classmethod
    @accepts(AdoptOptions[BinaryType])
    def from_socket(cls) -> TCPSocket[bytes | str]: ...
    @classmethod
    @takes(AdoptOptions)
    def from_socket(cls: type[SelfT], options: AdoptOptions) -> SelfT:
        """Adopt a connected stream socket, such as one of a socketpair, from a SOCKS library, or an inherited one.

        The TCPSocket owns it from then on. ``open`` fires as if the TCPSocket had connected itself. In TLS it is the
        client, unless the context is a server's. The ``__init__()`` of a subclass is called with the peer's host and
        port, and the same options.

        :raises TypeError: if it is not a socket, or an argument is of the wrong type
        :raises ValueError: if it is not a connected stream socket, or an argument is out of range
        """
        host, port = host_and_port(_peer_of(options.sock))
        self = cls(host or "localhost", port or 1, **_of_any_client(options))
        self._connection.adopt(host, port, options.sock, options.ssl_context)
        return self

    def __repr__(self) -> str:
        return repr(self._connection)

    async def __aenter__(self: SelfT) -> SelfT:
        connection = connection_of(self)
        await connection.lifetime.enter(connection)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return await self._connection.lifetime.leave(self._connection, exc)

    # What MDN documents

    @property
    def host(self) -> str:
        """The host it connects to; of an accepted or adopted socket, the peer's address, or the address that the PROXY
        protocol gives for it.
        """
        return self._connection.host

    @property
    def port(self) -> int:
        """The port it connects to; of an accepted or adopted socket, the peer's port; of a UNIX-domain socket 0."""
        return self._connection.port

    @property
    def ssl(self) -> bool:
        """Whether the connection is, or will be, encrypted: with ``useSecureTransport`` from the start, else from the
        call of :meth:`upgradeToSecure` on.
        """
        return self._connection.is_tls

    @property
    def readyState(self) -> ReadyState:
        """``"connecting"``, ``"open"``, ``"closing"`` or ``"closed"``."""
        return self._connection.machine.ready

    @property
    def binaryType(self) -> Literal["arraybuffer", "string"]:
        """``"arraybuffer"`` if data is ``bytes``, ``"string"`` if it is ``str``."""
        return self._connection.options.binaryType

    @property
    def bufferedAmount(self) -> int:
        """The number of bytes given to :meth:`send` and not yet handed to the operating system. Those that wait for the
        TLS handshake count too.
        """
        return self._connection.outgoing.amount

    @property
    def bytes_received(self) -> int:
        """The number of bytes that the program has received so far, by ``data`` events or from the stream (Node:
        ``bytesRead``).
        """
        return self._connection.bytes_received

    @property
    def bytes_sent(self) -> int:
        """The number of the program's bytes that were handed to the operating system so far (Node: ``bytesWritten``,
        which counts buffered bytes too).
        """
        return self._connection.bytes_sent

    def send(self, data: Buffer | str, byteOffset: int = 0, byteLength: int | None = None) -> bool:
        """Send data, or buffer it until the peer takes it. This method does not wait.

        :param data: bytes-like (copied if it is mutable), or a ``str``: with ``binaryType="string"`` of characters up
            to U+00FF, one per byte; else of ASCII only, as the program has not said how to encode any other character
        :param byteOffset: where the slice to send begins, in bytes; clamped to the data
        :param byteLength: the length of that slice in bytes, clamped likewise; None for everything after the offset
        :return: False if more than 65536 bytes are now buffered. That is a hint: the data is accepted all the same, and
            ``drain`` will fire when all of it has been handed to the operating system
        :raises InvalidStateError: if the socket is not open
        :raises BufferError: if more than ``max_buffered_amount`` bytes would be buffered; then none of the data is
            accepted, and if anything is buffered, ``drain`` will fire when that has been handed over
        :raises TypeError: if the data is of another type
        :raises ValueError: if an offset is negative, or a character is not allowed
        """
        if type(data) is not bytes or byteOffset != 0 or byteLength is not None:
            data = octets(data, byteOffset, byteLength, ascii_only=self.binaryType != "string")
        outgoing = self._connection.outgoing
        return outgoing.append(data) if outgoing.filling_thread == get_ident() else self._connection.send(data)

    def suspend(self) -> None:
        """Stop ``data`` events; TCP then holds the peer back too. Allowed while connecting.

        Suspensions count: call :meth:`resume` as often as this method. Data received meanwhile waits for that, and so
        does whatever follows it: the peer's end, or ``error`` and ``close``. ``drain`` does not wait. If the connection
        is lost while nothing waits, ``error`` and ``close`` fire immediately. They also do, though data waits, if the
        program is still owed a ``drain``, as that can no longer come.
        """
        self._connection.suspend()

    def resume(self) -> None:
        """Undo one :meth:`suspend`.

        :raises InvalidStateError: if the socket is not suspended
        """
        self._connection.resume()

    def close(self) -> None:
        """Close the connection in order: nothing that was sent is lost.

        ``readyState`` becomes ``"closing"`` immediately, and no ``data`` fires any more. The buffer is sent, then
        ``drain`` fires if it is owed, then our side ends (FIN; in TLS close_notify). Whatever the peer still sends is
        discarded until it closes too, for ``linger`` seconds at most; then ``close`` fires. While connecting, the
        attempt is abandoned. Closing twice does no harm.

        As long as the peer does not read, the buffer cannot be sent, whatever ``linger`` is: ``idle_timeout`` limits
        that, and :meth:`closeImmediately` does not wait.
        """
        self._connection.close()

    def send_eof(self) -> None:
        """End our side of the connection: send what is buffered, then EOF (FIN; in TLS close_notify).

        The socket stays open, and ``data`` continues, until the peer ends its side too; then the socket closes. On
        receiving close_notify some peers end their side immediately, as TLS 1.2 demanded. Calling it twice does no
        harm.

        :raises InvalidStateError: if the socket is not open
        """
        self._connection.send_eof()

    def closeImmediately(self) -> None:
        """Close the connection without sending what is buffered and without waiting for the peer; ``close`` fires.

        The peer may lose data that it has not yet read, as with any plain close of a TCP connection.
        """
        self._connection.close_immediately()

    def reset(self) -> None:
        """Close the connection immediately by a reset (RST), as a proxy does to pass on a reset; ``close`` fires.

        What is buffered is dropped. The peer learns that the connection was cut off, and may lose data that it has not
        yet read. A UNIX-domain socket cannot be reset: its peer reads EOF. While another process, such as a forked
        child, has the same socket open, the peer gets no reset either. Resetting a closed socket does no harm.
        (RFC 9293, section 3.10.5: ABORT)
        """
        self._connection.reset()

    def upgradeToSecure(
        self,
        *,
        ssl_context: SSLContext | None = None,
        server_hostname: str | None = None,
        leftover: Buffer | str = b"",
    ) -> None:
        """Continue the connection in TLS, as by STARTTLS in many protocols. Call it when both sides have agreed to.

        :attr:`ssl` becomes True immediately. Data sent before is sent in plaintext; data sent after waits for the
        handshake, and is sent encrypted or not at all. Bytes that were received and not yet delivered are given to TLS:
        plaintext that an attacker has injected is not delivered, and makes the handshake fail. ``secure`` fires after
        the handshake; if that fails, ``error`` and ``close`` do. On a connection that is already secure, or in its
        handshake, this method does nothing.

        :param ssl_context: of a client: what is trusted, client certificates, ALPN; None for
            :func:`ssl.create_default_context`. Of an accepted socket: the certificate, what is demanded of the client
        :param server_hostname: of a client: the name or address that the certificate must be for; None for the host
        :param leftover: bytes that came in the same ``data`` event after the last of the plaintext. They are given to
            TLS too: they are an early ClientHello or, if an attacker has injected them, make the handshake fail
        :raises InvalidStateError: if the socket is not open, or either side has ended
        :raises TypeError: if an argument is of the wrong type
        :raises ValueError: if the context is for the other side of TLS, or missing; or the name is, or cannot be one
        """
        check_ssl_context(ssl_context)
        if server_hostname is not None:
            check_server_hostname(server_hostname)
        early = octets(leftover, ascii_only=self.binaryType != "string", what="leftover must be")
        self._connection.upgrade(ssl_context, server_hostname, early)

    # What mozsocket adds

    def stream(self) -> ByteStream:
        """The same connection as an AnyIO stream, for dialogues that read better as a sequence, and for libraries that
        take a stream.

        From now on :meth:`~anyio.abc.ByteReceiveStream.receive` gives what arrives, queued data first, and no ``data``
        event fires. Call this method before anything can arrive: while connecting, or in a handler of ``connect`` or
        ``open``. The stream's ``send()`` returns when all of its data was handed to the operating system. The peer's
        end does not close the socket; closing the stream does, within ``linger`` seconds, or immediately if a
        ``send()`` was cancelled and the peer has not taken all of its data. :meth:`upgradeToSecure` still works, and
        all events but ``data`` and ``end`` still fire. :meth:`suspend` has no effect: the peer is held back while
        nothing is received.

        The stream raises :exc:`anyio.BrokenResourceError` if the connection was lost, and
        :exc:`anyio.ClosedResourceError` if it was closed here. A loss is noticed only by receiving and sending. After a
        failed ``send()`` the socket closes, and what the peer had sent before can still be received.

        :return: the stream, the same each time
        :raises InvalidStateError: if the socket is neither connecting nor open
        """
        if self._stream is None:
            connection = self._connection
            if connection.machine.ready not in (ReadyState.CONNECTING, ReadyState.OPEN):
                raise connection.not_open("stream()")
            connection.require_task("stream()")
            self._stream = SocketStream(connection)
            connection.begin_stream()
        return self._stream

    async def opened(self) -> None:
        """Wait until the connection is open.

        :raises TCPSocketError: if it failed
        :raises InvalidStateError: if it was closed first
        """
        await self._connection.opened()

    async def secured(self) -> None:
        """Wait until the connection is encrypted; without TLS until it is upgraded or has closed.

        :raises TCPSocketError: if the handshake, or the connection, failed
        :raises InvalidStateError: if it was closed first
        """
        await self._connection.secured()

    async def drained(self) -> None:
        """Wait until everything given to :meth:`send` has been handed to the operating system.

        :raises TCPSocketError: if the connection was lost first
        :raises InvalidStateError: if it was closed first, without sending it
        """
        await self._connection.drained()

    async def closed(self) -> None:
        """Wait until the connection is closed and the last handler has returned.

        :raises TCPSocketError: if the connection failed or was lost
        :raises RuntimeError: in a handler of this socket, as it would wait for that handler
        """
        await self._connection.closed()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """AnyIO's typed attributes of the connection: :class:`anyio.abc.SocketAttribute`, and once the connection is
        secure :class:`anyio.streams.tls.TLSAttribute`; none while connecting.
        """
        return self._connection.attributes

    @overload
    def extra(self, attribute: T) -> T: ...
    @overload
    def extra(self, attribute: T, default: D) -> T | D: ...
    def extra(self, attribute: Any, default: Any = _NO_DEFAULT) -> Any:
        """The value of one of :attr:`extra_attributes` (AnyIO: ``TypedAttributeProvider``).

        :param attribute: the attribute, such as :attr:`anyio.abc.SocketAttribute.remote_port`
        :param default: what to return if the connection has no such attribute
        :raises anyio.TypedAttributeLookupError: if the connection has no such attribute, and no default is given
        """
        get = self.extra_attributes.get(attribute)
        if get is not None:
            return get()
        if default is _NO_DEFAULT:
            raise TypedAttributeLookupError("Attribute not found")
        return default


_set_connection, _set_stream = setters_of(TCPSocket, "_connection", "_stream")


def connection_of(socket: TCPSocket[Any]) -> Connection:
    """The connection inside of a socket, ready to be run."""
    connection = socket._connection
    if not connection.lifetime.started:
        _attach(socket, connection)
    return connection


def accepted(
    sock: stdlib_socket.socket,
    peer: Any,
    options: SocketOptions,
    server: Host,
    opening: OpeningEvent,
) -> Connection:
    """Make a TCPSocket of a socket that a server has accepted.

    :param sock: the accepted socket
    :param peer: the peer's address
    :param options: the options of the server
    :param server: the server
    :param opening: called with the TCPSocket; gives the event that announces it, and the listeners for that event
    :return: the connection inside of the TCPSocket
    """
    socket: TCPSocket[Any] = TCPSocket.__new__(TCPSocket)
    connection = socket._set_up(*host_and_port(peer), options)
    _attach(socket, connection)
    connection.accept(Transport(sock), server, opening)
    return connection


def _attach(socket: TCPSocket[Any], connection: Connection) -> None:
    connection.attach(socket, _text_event if socket.binaryType == "string" else TCPSocketEvent)


def _text_event(type: str, target: TCPSocket[str], data: bytes) -> TCPSocketEvent[str]:
    return TCPSocketEvent(type, target, data.decode("latin-1"))


def _of_any_client(options: AdoptOptions) -> dict[str, Any]:
    """The options for the constructor, which connects, and so refuses a server's context."""
    found = shared(options, ClientOptions)
    if options.ssl_context is not None and options.ssl_context.protocol is PROTOCOL_TLS_SERVER:
        del found["ssl_context"]
    return found


def _peer_of(sock: stdlib_socket.socket) -> Any:
    """The address of a socket's peer; empty if the peer has reset the connection: data may be left to read.

    :raises ValueError: if the socket is not connected
    """
    try:
        return sock.getpeername()
    except OSError as exc:
        if has_ended(sock):
            return ""
        raise ValueError(f"from_socket() takes a connected socket: {exc}") from exc
